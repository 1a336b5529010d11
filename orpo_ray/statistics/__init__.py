"""Numbers of comparisons and texts, and how sure they are: arrays in, dataclasses out."""
