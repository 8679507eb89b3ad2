"""Batches in, weights out: the training loop, its optimizers and schedule, checkpoints, and recovery from faults."""
