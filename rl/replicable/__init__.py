"""Replicable learning with linear functions: rounding, ridge, LSVI, fitted Q-iteration."""
