"""HTTP: an OpenAI-compatible API for runs, and the studio's web pages."""
