"""Figure 10: MT-Bench by category."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from orpo_ray.paper.cells import METHODS
from orpo_ray.paper.figure_drawing import Drawing, Panel, colour_entry
from orpo_ray.report.evaluation_figures import colours, short
from orpo_ray.report.evaluation_folder import Evaluation
from orpo_ray.report.evaluation_judges import FEWEST_AXES, draw_radar, rated_categories
from orpo_ray.report.judge_numbers import Judge

BENCHMARK = "mt-bench"


def rating_judges(evaluation: Evaluation) -> dict[str, Judge]:
    """The judges of an MT-Bench that rated enough categories for a radar; none of another benchmark."""
    if BENCHMARK not in evaluation.numbers.leaderboards:
        return {}
    models = list(evaluation.numbers.models)
    return {
        label: judge for label, judge in evaluation.numbers.judges.items()
        if len(rated_categories(judge, models)) >= FEWEST_AXES
    }  # fmt: skip


def radar_drawing(judges: Mapping[str, tuple[Judge, list[str]]]) -> Drawing:
    """By the panel's title, a judge's ratings and the models that were asked."""
    models = list(dict.fromkeys(model for _, rated in judges.values() for model in rated))
    colour = colours(models)
    panels = [
        Panel(title if len(judges) > 1 else "", partial(draw_radar, judge=judge, models=models))
        for title, (judge, _) in judges.items()
    ]
    entries = {METHODS.get(model, short(model)): colour_entry(colour[model]) for model in models}
    return Drawing(panels, (entries,), share_x="none", share_y="none", height=3.6)
