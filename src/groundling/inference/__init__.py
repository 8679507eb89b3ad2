"""Model and prompt in, text out: the batched generation engine, sampling, and streaming."""
