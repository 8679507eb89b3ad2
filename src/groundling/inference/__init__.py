"""Model and prompt in, text out: the batched generation engine, sampling, n-gram drafts, and streaming."""
