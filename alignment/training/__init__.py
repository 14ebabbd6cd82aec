"""Trainers: one round's update, supervised training, checkpoints, shards, optimizers."""
