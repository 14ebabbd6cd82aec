"""The theory of 2601.08421 as experiments: exact bandits, designs, coverage."""
