"""Objectives as pure functions: log-probs of prompts and continuations in, loss and metrics out."""
