"""The paper's figures, drawn from what its stages have left: Figures 3 and 5 to 11, and what becomes of their claims.

Where some runs are missing a figure shows the others and says so; where all are it has no picture, and why not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from orpo_ray.config import EvaluationConfig
from orpo_ray.objectives.sampled_ratios import sampled_ratios
from orpo_ray.paper.cells import METHODS
from orpo_ray.paper.curve_figures import figure_3, figure_7, figure_8, figure_9
from orpo_ray.paper.doubts import doubt
from orpo_ray.paper.figure import Figure, listed, made, not_run
from orpo_ray.paper.figure_radar import BENCHMARK, radar_drawing, rating_judges
from orpo_ray.paper.figure_ratios import ratios_drawing
from orpo_ray.paper.figure_rewards import rewards_drawing
from orpo_ray.paper.outcomes import AGAINST, ORPO, Outcomes
from orpo_ray.paper.published import WIN_RATES
from orpo_ray.paper.stages import Place
from orpo_ray.paper.verdicts import Claim, Verdict, Word, left_open, mean_reward
from orpo_ray.report.evaluation_folder import Floats
from orpo_ray.report.judge_numbers import Judge
from orpo_ray.report.numbers import number

__all__ = ["Figure", "paper_figures"]

_REWARDS = {"ultrafeedback": ("figure-5", "Figure 5"), "hh": ("figure-11", "Figure 11")}
"""By the paper's data set: name and title of the figure of its rewards."""
_DATA = {"ultrafeedback": "UltraFeedback", "hh": "Anthropic HH-RLHF"}


def paper_figures(outcomes: Outcomes) -> list[Figure]:
    """All of them, in the paper's order; last, rewards on data sets that stand for none of the paper's."""
    data = outcomes.stages.config.data
    rewards = {own.paper: label for label, own in data.items()}
    others = [label for label, own in data.items() if own.paper is None]
    return [
        figure_3(outcomes),
        _rewards_of(outcomes, "ultrafeedback", rewards.get("ultrafeedback")),
        _figure_6(),
        figure_7(outcomes),
        figure_8(outcomes),
        figure_9(outcomes),
        _figure_10(outcomes),
        _rewards_of(outcomes, "hh", rewards.get("hh")),
        *(_rewards(outcomes, f"rewards-{label}", "Rewards", label) for label in others),
    ]


def _rewards_of(outcomes: Outcomes, paper: Literal["hh", "ultrafeedback"], data: str | None) -> Figure:
    name, title = _REWARDS[paper]
    if data is None:
        why = f"no data set of the configuration stands for {_DATA[paper]}"
        return made(name, f"{title}. Rewards", f"Of {_DATA[paper]} in the paper.", None, (not_run(why),), why)
    return _rewards(outcomes, name, f"{title}. Rewards", data)


def _rewards(outcomes: Outcomes, name: str, title: str, data: str) -> Figure:
    config = outcomes.stages.config
    own = config.data[data]
    judge = outcomes.stages.first_judge(data)
    sizes: dict[str, dict[int, dict[str, Floats]]] = {}
    missing: dict[str, dict[str, str]] = {size: {} for size in config.sizes}
    for size in config.sizes:
        for seed in config.seeds:
            place = outcomes.stages.find("winrate", data, size, seed)
            known: dict[str, Floats] = {}
            for method in config.compared:
                given = outcomes.scores(data, size, seed, method, judge)
                if given is not None and np.isfinite(given).any():
                    known[method] = given
            if known:
                sizes.setdefault(size, {})[seed] = known
            elif place is not None:
                missing[size][place.label] = outcomes.missing(place) or f"{judge} gave no reward there"
    stands = "" if own.paper is None else f", in the place of {_DATA[own.paper]}"
    caption = (
        f"Rewards by {judge} of what each method answers to the held-out prompts of {own.title}{stands}: histograms of "
        "all seeds and rounds, and a density for each seed."
    )
    claims = [
        claim for size, lacks in missing.items() for against in AGAINST if against in config.compared
        if (claim := _mean_reward(outcomes, data, size, against, judge, sizes.get(size, {}), listed(lacks))) is not None
    ]  # fmt: skip
    why = listed({label: said for lacks in missing.values() for label, said in lacks.items()})
    return made(name, f"{title} on {own.title}", caption, rewards_drawing(sizes) if sizes else None, claims, why)


def _mean_reward(
    outcomes: Outcomes,
    data: str,
    size: str,
    against: str,
    judge: str,
    rewards: Mapping[int, Mapping[str, Floats]],
    why: str,
) -> Claim | None:
    """None where the paper has no such place."""
    table, row = outcomes.stages.config.data[data].paper, outcomes.stages.config.sizes[size].paper
    if table is None or row is None:
        return None
    both = {seed: (own[ORPO], own[against]) for seed, own in rewards.items() if ORPO in own and against in own}
    both = {seed: two for seed, two in both.items() if np.isfinite(two[0] - two[1]).any()}
    pairs: list[tuple[ArrayLike, ArrayLike]] = list(both.values())
    if both and not outcomes.asked_alike(Place("winrate", data, size, seed) for seed in both):
        pairs = [(float(np.nanmean(own - others)), 0.0) for own, others in both.values()]
    orpo, other = zip(*pairs, strict=True) if pairs else (None, None)
    claim = mean_reward(orpo, other, METHODS[against], WIN_RATES[table, row, against], why)
    verdict = left_open(claim.verdict, doubt(outcomes, data, judge))
    return Claim(f"{size}: {claim.text}", Verdict(verdict.word, f"{size}: {verdict.why}"), claim.ours)


def _figure_6() -> Figure:
    found = sampled_ratios()
    odds, probability = float(found.odds.std()), float(found.probability.std())
    further = float(np.mean(np.abs(found.odds) > np.abs(found.probability)))
    why = (
        f"Standard deviations {number(odds, 2)} and {number(probability, 2)} nats; in {100 * further:g}% of 50,000 "
        "pairs the log odds ratio is further from 0."
    )
    word = Word.AGREES if further == 1 else Word.DIFFERS
    claim = Claim("The log odds ratio is wider than the log probability ratio.", Verdict(word, why))
    caption = (
        "The log odds ratio and the log probability ratio (times β) of 50,000 pairs of probabilities drawn uniformly, "
        "as the paper draws them; it needs no run. "
        f"Standard deviations: {number(odds, 2)} nats, and {number(probability, 2)} at β = 1."
    )
    return made("figure-6", "Figure 6. Two ratios of the same pairs", caption, ratios_drawing(), (claim,), "")


def _figure_10(outcomes: Outcomes) -> Figure:
    radars: dict[str, tuple[Judge, list[str]]] = {}
    missing: dict[str, str] = {}
    for place in outcomes.benchmarks:
        own = outcomes.stages.configs[place]
        if not isinstance(own, EvaluationConfig) or BENCHMARK not in own.measures:
            continue
        evaluation = outcomes.evaluation(place)
        if evaluation is None:
            missing[place.label] = outcomes.missing(place)
        elif judges := rating_judges(evaluation):
            models = list(evaluation.numbers.models)
            radars |= {f"{place.name}, by {label}": (judge, models) for label, judge in judges.items()}
        else:
            missing[place.label] = "its judges rated too few categories"
    why = listed(missing) if radars or missing else "no benchmark of the configuration measures MT-Bench"
    caption = "Mean ratings by category of MT-Bench, from 0 in the middle to 10 on the outer ring."
    claim = not_run(why) if not radars else Claim(
        "Mistral-ORPO's ratings by category.", Verdict(Word.CANNOT_TELL, "The paper prints no number by category.")
    )  # fmt: skip
    drawing = radar_drawing(radars) if radars else None
    return made("figure-10", "Figure 10. MT-Bench by category", caption, drawing, (claim,), why)
