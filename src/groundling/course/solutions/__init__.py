"""Our answers to the exercises, one module per chapter. Each passes its check."""
