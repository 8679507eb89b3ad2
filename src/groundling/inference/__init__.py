"""LOGITS -> TEXT"""
