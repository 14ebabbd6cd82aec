"""Dataset distillation by loss matching (2512.00536): regression and offline RL."""
