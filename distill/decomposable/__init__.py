"""The decomposable case of 2512.00536, where distillation is convex."""
