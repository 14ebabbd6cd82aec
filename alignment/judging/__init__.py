"""Judges: language models that compare answers, AlpacaEval, the leaderboard's tasks."""
