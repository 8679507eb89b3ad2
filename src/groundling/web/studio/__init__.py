"""The studio: web pages to start and watch runs, generate text, and look inside models."""
