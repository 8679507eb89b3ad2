"""Faster generation on CPUs: lower precision, a decoder compiled by Numba, and n-gram drafts."""
