"""TEXT -> WHAT IT IS"""
