"""Sources of preference pairs, their tokens, and the packed batches made of them."""
