"""Benchmarks of an evaluation's stages: our way and the plain one, in turn."""
