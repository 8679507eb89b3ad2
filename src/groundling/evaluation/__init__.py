"""Model and tokens in, loss out: perplexity, bits per byte, the loss of each token, and a causality check."""
