"""Training: the loop, its engines, checkpoints, and the Ray Train launcher."""
