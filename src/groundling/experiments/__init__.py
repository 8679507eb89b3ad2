"""Experiments with whole runs: kill them and compare them bit for bit, or compare tokenizers on one text."""
