"""Text -> report: contents, duplicates, leakage, n-gram baselines, and a recommended model."""
