"""Where the stages of a graph stand, and how long the rest may take."""

from __future__ import annotations

from dataclasses import dataclass, field

from orpo_ray.stages.graph import Graph, Stage


@dataclass
class Progress:
    graph: Graph
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by label."""

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

    @property
    def never(self) -> list[str]:
        """Labels of stages that cannot begin, since what they need has failed."""
        behind = {label for failed in self.failed for label in self.graph.behind(failed)}
        return [stage.label for stage in self.graph if stage.label in behind]

    def left(self, seconds: float) -> str:
        """How long the rest may take, in words, where what is done took `seconds`, a stage as long as another; empty:
        nobody knows."""
        ahead = len(self.graph) - len({*self.done, *self.failed, *self.never})
        if not ahead or not self.done:
            return ""
        rest = seconds * ahead / len(self.done)
        return f"about {rest / 60:.0f} min left" if rest >= 90 else f"about {rest:.0f} s left"

    def told(self) -> str:
        """What has failed and why, and what was not begun for it."""
        reasons = "; ".join(f"{label}: {why}" for label, why in self.failed.items())
        never = f"; not begun for it: {', '.join(self.never)}" if self.never else ""
        return f"{len(self.failed)} of {len(self.graph)} stages failed: {reasons}{never}"
