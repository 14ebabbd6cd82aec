"""Rewards: models, rules, servers; trained, checked, and what they are trained against."""
