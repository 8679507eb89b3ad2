"""Tokens in, logits out: the transformer, its attention, its KV cache, and its weights on disk."""
