"""Text in, batches of token ids out: find the text, tokenize it, split it, and draw batches from it."""
