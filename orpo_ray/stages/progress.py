"""Where the stages of a graph stand, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orpo_ray.stages.graph import Graph, Stage


@dataclass
class Progress:
    graph: Graph
    done: set[str] = field(default_factory=set)
    """Labels; first those that are known to be."""
    usual: Mapping[str, float] = field(default_factory=dict)
    """By label, what each takes as a rule, in any unit; empty: each as long as another."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by label."""

    def __post_init__(self) -> None:
        self._before = set(self.done)

    def ready(self, running: set[str]) -> list[Stage]:
        """Stages that may begin, in their order."""
        begun = {*self.done, *self.failed, *running}
        return [stage for stage in self.graph if stage.label not in begun and self.done.issuperset(stage.needs)]

    def begin(self, label: str, *, finished: bool) -> None:
        """`finished`: before it began, so that it will take no time."""
        if finished:
            self._before.add(label)

    def end(self, label: str, failure: str) -> None:
        """`failure`: why it has failed; empty: it has not."""
        if failure:
            self.failed[label] = failure
        else:
            self.done.add(label)

    @property
    def never(self) -> list[str]:
        """Labels of stages that cannot begin, since what they need has failed."""
        behind = {label for failed in self.failed for label in self.graph.behind(failed)}
        return [stage.label for stage in self.graph if stage.label in behind]

    def left(self, seconds: float) -> str:
        """How long the rest may take, in words, where what is done beyond what was before took `seconds`; empty: nobody
        knows. Where nothing is yet, what is usual counts as seconds."""
        over = {*self._before, *self.done, *self.failed, *self.never}
        ahead = sum(self._usually(stage.label) for stage in self.graph if stage.label not in over)
        behind = sum(self._usually(label) for label in self.done - self._before)
        if not ahead or not (behind or self.usual):
            return ""
        rest = ahead * (seconds / behind if behind else 1.0)
        return f"about {rest / 60:.0f} min left" if rest >= 90 else f"about {rest:.0f} s left"

    def place(self, running: int) -> str:
        """Which stage begins beside so many that run, in words."""
        return f"stage {len(self.done) + len(self.failed) + running + 1} of {len(self.graph)}"

    def _usually(self, label: str) -> float:
        return self.usual.get(label, 0.0) if self.usual else 1.0

    def told(self) -> str:
        """What has failed and why, and what was not begun for it."""
        reasons = "; ".join(f"{label}: {why}" for label, why in self.failed.items())
        never = f"; not begun for it: {', '.join(self.never)}" if self.never else ""
        return f"{len(self.failed)} of {len(self.graph)} stages failed: {reasons}{never}"
