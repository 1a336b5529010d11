"""What other judges say of the contests that verdicts go by the first judge's word of: the notices of the page."""

from __future__ import annotations

from collections.abc import Sequence

from orpo_ray.paper.cells import METHODS, called
from orpo_ray.paper.outcomes import AGAINST, Contest, Outcomes
from orpo_ray.report.numbers import number, percent
from orpo_ray.statistics.seeds import Interval

MOST_NAMED = 3
"""Contests with another winner; more of them are counted."""

Both = tuple[Contest, Contest]
"""One contest by the first judge and by another."""


def disagreements(outcomes: Outcomes) -> list[str]:
    """For each two judges that do not tell the same winners what they tell of the contests that both decided."""
    found: dict[tuple[str, str], list[Both]] = {}
    for data, judges in outcomes.stages.judges.items():
        first, *others = judges
        for other in others:
            found.setdefault((first, other), []).extend(_decided_by_both(outcomes, data, first, other))
    return [said for judges, both in found.items() if (said := _in_words(outcomes, *judges, both))]


def _decided_by_both(outcomes: Outcomes, data: str, first: str, other: str) -> list[Both]:
    places = [(data, size, against) for size in outcomes.stages.config.sizes for against in AGAINST]
    both = [(outcomes.contest(*place, first), outcomes.contest(*place, other)) for place in places]
    return [(one, two) for one, two in both if one.overall is not None and two.overall is not None]


def _in_words(outcomes: Outcomes, first: str, other: str, both: Sequence[Both]) -> str:
    """Empty where each winner that the first tells is told by the other, too."""
    sides = [(_winner(one), _winner(two)) for one, two in both]
    against = [pair for pair, (one, two) in zip(both, sides, strict=True) if one * two < 0]
    lost = sum(one != 0 and two == 0 for one, two in sides)
    if not against and not lost:
        return ""
    by_other = called(outcomes, other)
    told = sum(one != 0 for one, _ in sides)
    counts = [f"another winner in {number(len(against))}"] if against else []
    counts += [f"none in {number(lost)}"] if lost else []
    more = len(against) - MOST_NAMED
    return " ".join(
        [
            f"{'Verdicts go by' if _has_verdicts(outcomes, both) else 'The first judge is'} {called(outcomes, first)}, "
            f"which tells a winner in {number(told)} of the {number(len(both))} comparisons that {by_other} decided as "
            f"well: of these {number(told)}, {by_other} tells {' and '.join(counts)}.",
            *(_contradiction(outcomes, pair) for pair in against[:MOST_NAMED]),
            *([f"So it is in {number(more)} more."] if more > 0 else []),
        ]
    )


def _has_verdicts(outcomes: Outcomes, both: Sequence[Both]) -> bool:
    """Whether any of them stands beside a number of the paper."""
    config = outcomes.stages.config
    return any(config.data[one.data].paper and config.sizes[one.size].paper for one, _ in both)


def _contradiction(outcomes: Outcomes, both: Both) -> str:
    one, two = both
    title = outcomes.stages.config.data[one.data].title
    return (
        f"ORPO against {METHODS[one.against]} ({title}, {one.size}): {_rate(one)} by {called(outcomes, one.judge)}, "
        f"{_rate(two)} by {called(outcomes, two.judge)}."
    )


def _rate(contest: Contest) -> str:
    ours = _overall(contest)
    return f"{percent(ours.mean, 1)} ({percent(ours.low, 1)} to {percent(ours.high, 1)})"


def _winner(contest: Contest) -> int:
    """1 for ORPO, -1 for the other, 0 where the interval holds one half."""
    return _overall(contest).beyond(0.5)


def _overall(contest: Contest) -> Interval:
    assert contest.overall is not None
    return contest.overall
