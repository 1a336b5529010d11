"""Where the stages of a graph stand, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orpo_ray.stages.graph import Graph, Stage


@dataclass
class Progress:
    graph: Graph
    usual: Mapping[str, float] = field(default_factory=dict)
    """Seconds that a stage usually takes, by label; only their ratios count."""
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by label."""
    carried_out: set[str] = field(default_factory=set)
    """Those of `done` that were not so before."""

    def ready(self, running: set[str]) -> list[Stage]:
        """Stages that may begin, in their order."""
        begun = {*self.done, *self.failed, *running}
        return [stage for stage in self.graph if stage.label not in begun and self.done.issuperset(stage.needs)]

    def end(self, label: str, failure: str) -> None:
        """`failure`: why it has failed; empty: it has not."""
        if failure:
            self.failed[label] = failure
        else:
            self.done.add(label)
            self.carried_out.add(label)

    @property
    def never(self) -> list[str]:
        """Labels of stages that cannot begin, since what they need has failed."""
        behind = {label for failed in self.failed for label in self.graph.behind(failed)}
        return [stage.label for stage in self.graph if stage.label in behind]

    def left(self, seconds: float) -> str:
        """How long the rest may take, in words, where what was carried out took `seconds`; empty: nobody knows."""
        weight = {stage.label: self.usual.get(stage.label, 1.0) for stage in self.graph}
        over = {*self.done, *self.failed, *self.never}
        ahead = sum(amount for label, amount in weight.items() if label not in over)
        behind = sum(weight[label] for label in self.carried_out)
        if not ahead or not behind:
            return ""
        rest = seconds * ahead / behind
        return f"about {rest / 60:.0f} min left" if rest >= 90 else f"about {rest:.0f} s left"

    def told(self) -> str:
        """What has failed and why, and what was not begun for it."""
        reasons = "; ".join(f"{label}: {why}" for label, why in self.failed.items())
        never = f"; not begun for it: {', '.join(self.never)}" if self.never else ""
        return f"{len(self.failed)} of {len(self.graph)} stages failed: {reasons}{never}"
