"""orpo_ray: align language models with ORPO on Ray, and measure what it bought."""

__version__ = "0.1.0"
