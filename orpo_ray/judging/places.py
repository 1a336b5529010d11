"""What judges are asked: which answers stand against each other, which of two is shown first, how often.

The order that is shown is drawn by the texts themselves, so that it depends neither on what models are called nor on
who else is compared: a verdict on two answers is found again wherever they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from orpo_ray.config.judges import JudgingConfig
from orpo_ray.errors import UserError
from orpo_ray.judging.asking import Asked
from orpo_ray.judging.prompts import JudgePrompt, Turn
from orpo_ray.leaderboards.alpaca_eval import switched


@dataclass(frozen=True)
class Answered:
    """What there is to judge."""

    questions: list[list[str]]
    """By prompt: what each turn of the conversation asks."""
    answers: dict[str, list[list[list[str] | None]]]
    """By model, prompt and round: the answer of each turn; None: there is no response."""
    references: list[list[str] | None]
    """By prompt: the reference answer of each turn, where there are any."""

    @property
    def rounds(self) -> int:
        return max((len(rounds) for prompts in self.answers.values() for rounds in prompts), default=0)

    @property
    def turns(self) -> int:
        return max(map(len, self.questions), default=0)


class Place(NamedTuple):
    """Where a verdict belongs; see `Judgement`."""

    model: str
    against: str | None
    prompt: int
    round: int
    turn: int
    shown_first: bool | None
    repeat: int


def places(config: JudgingConfig, prompt: JudgePrompt, answered: Answered) -> Iterator[tuple[Place, Asked | None]]:
    """Every place with what is asked for it; nothing, where both answers are the same, which is a tie.

    Raises `UserError` where `config.against` is no model, or the judge's prompt does not fit a conversation.
    """
    for model, against in compared(config, list(answered.answers)):
        for number in range(len(answered.questions)):
            for round, mine, other in _rounds(answered, model, against, number):
                yield from _of_round(
                    config, prompt, answered, Place(model, against, number, round, 1, None, 0), mine, other
                )


def compared(config: JudgingConfig, models: Sequence[str]) -> list[tuple[str, str | None]]:
    """The pairs of models, or each by itself. Raises `UserError` where `config.against` is none of them."""
    if config.compares == "rates":
        return [(model, None) for model in models]
    if config.against is None:
        return list(combinations(models, 2))
    if config.against not in models:
        raise UserError(f"judging.against: no model is called {config.against}; there are {', '.join(models)}")
    return [(model, config.against) for model in models if model != config.against]


Answers = list[str]
"""Of each turn."""


def _rounds(
    answered: Answered, model: str, against: str | None, prompt: int
) -> Iterator[tuple[int, Answers, Answers | None]]:
    """Each round in which there is something to judge, with the answers. One that has a single response, such as
    outputs from a file, has it in every round."""
    mine = answered.answers[model][prompt]
    others = answered.answers[against][prompt] if against else [None] * len(mine)
    for round in range(max(len(mine), len(others)) if mine and others else 0):
        own, other = mine[round if len(mine) > 1 else 0], others[round if len(others) > 1 else 0]
        if own is not None and (against is None or other is not None):
            yield round, own, other


def _of_round(
    config: JudgingConfig, prompt: JudgePrompt, answered: Answered, place: Place, mine: Answers, other: Answers | None
) -> Iterator[tuple[Place, Asked | None]]:
    questions = answered.questions[place.prompt]
    references = answered.references[place.prompt] or []
    for turn in range(1, 1 + min(len(questions), len(mine), len(mine if other is None else other))):
        here = place._replace(turn=turn)
        shown = [
            (question, references[at] if at < len(references) else None) for at, question in enumerate(questions[:turn])
        ]
        if other is None:
            orders: list[tuple[bool | None, list[tuple[str, ...]]]] = [(None, [(text,) for text in mine[:turn]])]
        elif mine[:turn] == other[:turn]:
            yield here, None
            continue
        else:
            both = list(zip(mine[:turn], other[:turn], strict=True))
            orders = [
                (first, [pair if first else pair[::-1] for pair in both]) for first in _orders(config, questions, both)
            ]
        for first, texts in orders:
            turns = [Turn(question, text, known) for (question, known), text in zip(shown, texts, strict=True)]
            for repeat in range(config.repeats):
                yield here._replace(shown_first=first, repeat=repeat), prompt.asked(turns, repeat)


def _orders(config: JudgingConfig, questions: list[str], answers: list[tuple[str, str]]) -> list[bool]:
    """Whether the model's answers are shown before the other's, of each time that they are shown."""
    if config.order == "both":
        return [True, False]
    if config.order == "alpaca_eval":
        return [switched(questions[0])]
    mine, other = ([pair[side] for pair in answers] for side in (0, 1))
    low, high = sorted((mine, other))
    drawn = hashlib.blake2b(
        repr((config.seed, questions[: len(answers)], low, high)).encode("utf-8", "backslashreplace")
    )
    return [(mine == low) == bool(drawn.digest()[0] & 1)]
