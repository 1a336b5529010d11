"""How numbers of the paper's tables are written, and what they link to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from orpo_ray.paper.outcomes import Outcomes
from orpo_ray.paper.stages import JUDGE, Place
from orpo_ray.paper.table import Source

METHODS = {"sft": "SFT", "dpo": "SFT+DPO", "ppo": "SFT+PPO", "orpo": "ORPO"}
"""As the paper calls them."""


def percent(value: float, digits: int = 1) -> str:
    """A fraction, without the sign."""
    return f"{100 * value:.{digits}f}"


def with_sd(value: float, sd: float | None) -> str:
    """As the paper's Tables 2 and 3 have it: `84.0 (0.62)`, of fractions."""
    return percent(value) + ("" if sd is None else f" ({percent(sd, 2)})")


def span(low: float, high: float) -> str:
    """An interval of fractions."""
    return f"{percent(low)} to {percent(high)}"


def source(outcomes: Outcomes, place: Place, label: str) -> Source:
    return Source(label, outcomes.link(place), outcomes.command(place))


def called(outcomes: Outcomes, judge: str) -> str:
    """A judge's name in a sentence; the paper's own has none but what it is."""
    size = outcomes.stages.config.judge
    return f"the reward model of size {size}" if judge == JUDGE and size else judge


def seeds_in_words(seeds: Sequence[int], cells: Iterable[Collection[int]]) -> str:
    """`3 training seeds (1, 2, 3)`: of all `seeds` those that have a number in some cell of a table; each of `cells`
    holds its own."""
    own = [cell for cell in cells if cell]
    run = [seed for seed in seeds if any(seed in cell for cell in own)]
    if not run:
        return "training seeds, none of which has a number yet"
    listed = ", ".join(map(str, run))
    told = f"{len(run)} training seeds ({listed})" if len(run) > 1 else f"one training seed ({listed})"
    return told + (", or those of them that have a number" if any(len(cell) < len(run) for cell in own) else "")
