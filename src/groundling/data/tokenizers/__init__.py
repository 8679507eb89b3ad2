"""TEXT <-> TOKENS"""
