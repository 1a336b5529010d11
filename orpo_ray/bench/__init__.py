"""Trainers side by side: each in its own process, taking turns at the same pairs."""
