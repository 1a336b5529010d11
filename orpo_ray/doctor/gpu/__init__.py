"""One GPU measured and held against this package's predictions: `orpo-ray doctor --gpu` (docs/gpu.md).

It needs torch and transformers alone, so it also runs where the rest is not installed: `python -m orpo_ray.doctor.gpu`.
"""

SECONDS = 520.0
"""The time that a check takes at most, where nothing else is said."""
