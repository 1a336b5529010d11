"""A rule by which answers are good or not, and what a small judge and two small policies learn it from.

A sentence helps or is empty, and an answer is as good as the share of its sentences that help: 10 where all do, 1 where
none does, and 5.5 where it has neither kind, as any other text. The questions and the texts of others that stand around
them are UltraFeedback's, so nothing of what a benchmark asks is seen before.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orpo_ray.config.judges import JudgingConfig
from orpo_ray.judging.asking import Asked
from orpo_ray.judging.prompts import JudgePrompt, Turn

HELPS = (
    "Here is a clear answer.", "First take the numbers and add them.", "This example shows how it is done.",
    "Each step follows from the one before.", "I have checked the result twice.", "In short, it works as follows.",
    "The reason is simple and given here.", "That covers all that was asked.",
)  # fmt: skip
EMPTY = (
    "I do not know.", "Perhaps somebody else can say.", "It is hard to tell.", "Whatever, nobody cares.",
    "You could look it up.", "There is nothing to add.", "Maybe or maybe not.", "Sorry, no idea at all.",
)  # fmt: skip
SENTENCES = (6, 20)
"""Fewest and most of an answer."""
CHOSEN_FROM = 0.6
"""A policy sees pairs of answers whose sentences help with a probability up to this, so that as many of its answers lie
below as above a text of others: agreement beyond chance cannot be told of what is always won."""
WORDS = ("Little of it helps.", "Some of it helps.", "Most of it helps.")
"""A judge's reasons: of a rating up to 3, up to 7, and above."""


def share(text: str) -> float | None:
    """Of the sentences of either kind, those that help; None where there is none."""
    helps, empty = (sum(text.count(each) for each in kind) for kind in (HELPS, EMPTY))
    return helps / (helps + empty) if helps + empty else None


def goodness(text: str) -> float:
    found = share(text)
    return 0.5 if found is None else found


def rating(text: str) -> float:
    """From 1 to 10."""
    return 1 + 9 * goodness(text)


def answer(draw: random.Random, helping: float) -> str:
    """Each sentence helps with the probability `helping`."""
    kinds = [HELPS if draw.random() < helping else EMPTY for _ in range(draw.randint(*SENTENCES))]
    return " ".join(draw.choice(kind) for kind in kinds)


def pairs(records: list[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """What a policy is trained on: the answer of two that helps more is chosen. Every other one is to a second question
    of a conversation."""
    draw = random.Random(seed)
    for number, record in enumerate(records):
        made = sorted((answer(draw, draw.uniform(0, CHOSEN_FROM)) for _ in range(2)), key=goodness)
        before = [draw.choice(records)["prompt"][:200], answer(draw, draw.uniform(0, CHOSEN_FROM))]
        if goodness(made[0]) < goodness(made[1]):
            spoken = list(zip(("user", "assistant"), before, strict=True)) if number % 2 else []
            yield _record([*spoken, ("user", record["prompt"][:200])], made[1], made[0])


def judgements(records: list[dict[str, Any]], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """What a judge is trained on: `count` questions in the project's own wording, every other one about a pair."""
    draw = random.Random(seed)
    rates = JudgePrompt(JudgingConfig(compares="rates"), turns=2)
    compares = JudgePrompt(JudgingConfig())
    for number in range(count):
        if number % 2:
            yield _rated(draw, rates, records)
        else:
            yield _compared(draw, compares, records)


def _rated(draw: random.Random, prompt: JudgePrompt, records: list[dict[str, Any]]) -> dict[str, Any]:
    turns = []
    referred = draw.random() < 0.3
    for _ in range(draw.randint(1, 2)):
        record = draw.choice(records)
        reference = _cut(draw, record["chosen"]) if referred else None
        turns.append(Turn(_cut(draw, record["prompt"]), (answer(draw, draw.random()),), reference))
    asked = prompt.asked(turns)
    said = [_verdict(round(rating(text))) for text in (turns[-1].answers[0], answer(draw, draw.random()))]
    if said[0] == said[1]:
        said[1] = "I cannot say."
    return _asked(asked, *said)


def _verdict(number: int) -> str:
    return f"{WORDS[(number > 3) + (number > 7)]} [[{number}]]"


def _compared(draw: random.Random, prompt: JudgePrompt, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Two of the made answers, or one beside the text of others."""
    record = draw.choice(records)
    while True:
        texts = [answer(draw, draw.random()) for _ in range(2)]
        if draw.random() < 0.6:
            texts[draw.randrange(2)] = _cut(draw, record["chosen"])
        first, second = map(goodness, texts)
        if first != second:
            break
    asked = prompt.asked([Turn(_cut(draw, record["prompt"]), (texts[0], texts[1]))])
    labels = ("m", "M") if first > second else ("M", "m")
    return _asked(asked, *labels)


def _cut(draw: random.Random, text: str) -> str:
    return text[: round(math.exp(draw.uniform(math.log(40), math.log(2500))))]


def _asked(asked: Asked, chosen: str, rejected: str) -> dict[str, Any]:
    return _record([("system", asked.system), ("user", asked.user)], chosen, rejected)


def _record(spoken: list[tuple[str, str]], chosen: str, rejected: str) -> dict[str, Any]:
    """Of preference data, as messages."""
    prompt = [{"role": role, "content": content} for role, content in spoken]
    said = {key: [{"role": "assistant", "content": text}] for key, text in (("chosen", chosen), ("rejected", rejected))}
    return {"prompt": prompt, **said}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, records: Iterator[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
