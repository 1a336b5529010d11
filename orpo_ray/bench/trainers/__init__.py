"""The trainers that a benchmark can compare; each imports what it needs when it is loaded."""
