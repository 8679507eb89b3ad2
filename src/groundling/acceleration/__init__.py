"""Faster generation on CPUs: lower precision, and a decoder compiled by Numba."""
