"""TEXT -> TOKENS"""
