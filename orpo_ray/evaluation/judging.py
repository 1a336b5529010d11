"""The stage of an evaluation in which judges read the answers: who is shown with whom, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answered:
    """What there is to judge."""

    questions: list[list[str]]
    """By prompt: what each turn of the conversation asks."""
    answers: dict[str, list[list[list[str] | None]]]
    """By model, prompt and round: the answer of each turn; None: there is no response."""
    references: list[list[str] | None]
    """By prompt: the reference answer of each turn, where there are any."""
