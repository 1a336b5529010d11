"""Runs on rollouts of which something is wanted while they evaluate (see `rollout_runs`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rollout_runs import InProcess, Saving

from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Sample
from orpo_ray.training.loop import Wanted


class Slow(InProcess):
    """Takes its time over the evaluation of step `at`."""

    at = -1
    evaluates = False
    answered = 0
    """Of its prompts."""

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
        for found in super().draw(requests):
            for sample in found:
                yield [sample]
                if self.step == self.at and requests[0].round == 0 and len(requests) == 4:
                    self.evaluates = True
                    self.answered += 1
                    time.sleep(0.2)
        self.evaluates = False


class Asked(Saving):
    """Wants `wish` while that is drawn."""

    wish = Wanted.NOTHING

    def signals(self) -> dict[str, float]:
        writers = self.source._writers  # of rank 0
        return super().signals() | {"asked": float(getattr(writers, "evaluates", False))}

    def heard(self, signals: dict[str, float]) -> Wanted:
        super().heard(signals)
        return self.wish if signals["asked"] else Wanted.NOTHING


def slow_at(step: int) -> type[Slow]:
    return type("SlowThere", (Slow,), {"at": step})


def asking(wish: Wanted, kind: type[Asked] = Asked) -> type[Asked]:
    return type("AskedFor", (kind,), {"wish": wish})
