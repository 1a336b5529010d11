"""Asking a model: requests as it was trained to read them, vLLM engines, packed judges."""
