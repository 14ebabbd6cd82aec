"""`reprise evaluate`: suites beyond the reward model."""
