"""Copies of an environment stepped as one array: the interface and the built-in ones."""
