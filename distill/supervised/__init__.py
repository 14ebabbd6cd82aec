"""Regression sets distilled: by sampled regressors, by moments, in closed form."""
