"""What `winrates.json` holds of judges that judge in words, as a page reads it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

Interval = tuple[float, float]


class PositionBias(BaseModel):
    bias: float
    ci95: Interval
    prompts: int
    both_orders: bool


class Consistency(BaseModel):
    consistent: float
    ci95: Interval
    first: float
    second: float
    comparisons: int


class Noise(BaseModel):
    judgings: int
    answers: int
    flips: float
    sd: float
    means: list[float]
    sd_of_means: float | None
    sd_by_chance: float | None


class JudgedPair(BaseModel):
    """What the judge did with two models' answers; its win-rate stands among those of reward models."""

    model: str
    against: str
    position_bias: PositionBias | None
    consistency: Consistency | None
    noise: Noise | None
    asked: tuple[int, int]
    unreadable: tuple[int, int]
    unjudged: tuple[int, int] = (0, 0)
    left_out: int
    unknown: dict[str, str]


class MeanRating(BaseModel):
    mean: float
    ci95: Interval
    answers: int
    questions: int


class Rated(BaseModel):
    """The ratings of one model."""

    score: MeanRating | None
    turns: list[MeanRating | None]
    noise: Noise | None
    asked: list[int]
    unreadable: list[int]
    unjudged: list[int] = []
    unknown: dict[str, str]
    categories: dict[str, MeanRating | None]


class Counts(BaseModel):
    asked: int
    same: int
    unreadable: int
    too_long: int
    refused: int = 0
    prompt_tokens: int
    tokens: int


class Judge(BaseModel):
    described: dict[str, Any]
    """What it is, how it is asked and drawn."""
    counts: Counts
    pairs: list[JudgedPair]
    rated: dict[str, Rated]
