"""Weights <-> the world: the formats of other engines, each way, with proof that they compute the same."""
