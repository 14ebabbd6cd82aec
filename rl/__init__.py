"""Replicable reinforcement learning: equal internal randomness, other data, the same result."""
