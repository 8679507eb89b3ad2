"""Minutes -> model size, batch and schedule, and the loss to expect."""
