"""What calls of a judge will cost, before they are made, and what they may cost while they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orpo_ray.config.judges import ServerJudge
from orpo_ray.errors import UserError
from orpo_ray.judging.asking import Asked

CHARACTERS_OF_TOKEN = 4


@dataclass(frozen=True)
class Forecast:
    """Of the calls that are to be made."""

    calls: int
    prompt_tokens: int
    answer_tokens: int
    """At most."""
    exact: bool
    """Counted by the judge's tokenizer, and not by characters."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    def __str__(self) -> str:
        how = "" if self.exact else f" (an estimate: characters / {CHARACTERS_OF_TOKEN})"
        return (
            f"{self.calls:,} calls, {'' if self.exact else 'about '}{self.prompt_tokens:,} tokens of prompts{how} and "
            f"at most {self.answer_tokens:,} of answers"
        )


def estimated_tokens(asked: Asked) -> int:
    """Of a prompt, where nothing knows the judge's tokenizer."""
    return math.ceil((len(asked.system) + len(asked.user)) / CHARACTERS_OF_TOKEN)


def forecast(calls: Sequence[Asked], answer_tokens: int, count: Callable[[Asked], int] | None) -> Forecast:
    """`answer_tokens`: of one answer at most; `count`: tokens of a prompt by the judge's tokenizer; None: estimated."""
    prompts = sum(map(count or estimated_tokens, calls))
    return Forecast(len(calls), prompts, len(calls) * answer_tokens, exact=count is not None)


def require_within(label: str, config: ServerJudge, expected: Forecast) -> None:
    """Raises `UserError` where what is expected is more than `config` allows."""
    for key, most, wanted in (
        ("max_calls", config.max_calls, expected.calls),
        ("max_tokens_total", config.max_tokens_total, expected.tokens),
    ):
        if most is not None and wanted > most:
            raise UserError(f"judges.{label}.{key}={most}: nothing was asked, since it takes {expected}")


class Budget:
    """What calls that are being made may still cost. A call is paid for before it begins, by its forecast, and settled
    when it ends."""

    def __init__(self, label: str, config: ServerJudge) -> None:
        self._label, self._calls, self._tokens = label, config.max_calls, config.max_tokens_total
        self.calls = 0
        """That were sent, those that were lost included."""
        self.tokens = 0
        """That were used or, of calls at work and of answers that were lost, may have been."""

    def pay(self, tokens: int) -> None:
        """For a call that begins. Raises `UserError` where nothing is left for it."""
        for key, most, would_be in (
            ("max_calls", self._calls, self.calls + 1), ("max_tokens_total", self._tokens, self.tokens + tokens),
        ):  # fmt: skip
            if most is not None and would_be > most:
                raise UserError(
                    f"judges.{self._label}.{key}={most} is used up, by calls that had to be asked again or took more "
                    "than was expected; the verdicts that are there are kept, and the same command asks for the others"
                )
        self.calls += 1
        self.tokens += tokens

    def settle(self, paid: int, used: int) -> None:
        self.tokens += used - paid
