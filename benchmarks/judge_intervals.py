"""How often the intervals around a judge's numbers hold the truth, for simulated judges whose truth is known.

python benchmarks/judge_intervals.py

A judge has a preference between two models that differs from prompt to prompt, a liking for the answer shown first, and
noise; it answers with a probability, or with a word drawn from it. The table goes to
`benchmarks/results/judge_intervals.json`. One core, about three minutes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from orpo_ray.statistics.judged_pairs import Verdicts, consistency, outcomes_of_verdicts, position_bias
from orpo_ray.statistics.rated_answers import rated_answers
from orpo_ray.statistics.winrate import mean_outcome

Floats = NDArray[np.float64]

RESULTS = Path(__file__).resolve().parent / "results" / "judge_intervals.json"
SIMULATIONS = 500
RESAMPLES = 500
PROMPTS = (80, 805)
"""MT-Bench's and AlpacaEval's."""


class Judge(NamedTuple):
    """All in log odds, but for the last two."""

    preference: float = 0.3
    """For A, over prompts on average."""
    spread: float = 1.0
    """Its standard deviation over prompts; that over the rounds of a prompt is half as much."""
    place: float = 0.6
    """What being shown first is worth."""
    noise: float = 0.7
    """Standard deviation from verdict to verdict."""
    words: bool = False
    """Whether it answers with who won, drawn from its probability, instead of that."""
    unreadable: tuple[float, float] = (0.0, 0.0)
    """The share of verdicts with A's answer first, and with B's."""

    def verdicts(
        self, rng: np.random.Generator, prompts: int, *, rounds: int = 1, judgings: int = 1, orders: str = "both"
    ) -> Verdicts:
        """`orders`: `both`, one drawn `by_prompt`, or one drawn `by_round`."""
        liking = rng.normal(self.preference, self.spread, (prompts, 1, 1, 1))
        liking = liking + rng.normal(0, self.spread / 2, (prompts, rounds, 1, 1))
        side = np.array([1.0, -1.0])[:, None]
        shape = (prompts, rounds, 2, judgings)
        first = expit(side * liking + self.place + rng.normal(0, self.noise, shape))
        if self.words:
            first = (rng.random(shape) < first).astype(np.float64)
        asked = np.ones(shape, dtype=bool)
        if orders != "both":
            drawn = rng.integers(2, size=(prompts, rounds if orders == "by_round" else 1, 1, 1))
            asked &= drawn == np.arange(2)[:, None]
        read = asked & (rng.random(shape) >= np.array(self.unreadable)[:, None])
        return Verdicts(np.where(read, first, np.nan), asked)

    def truth(self) -> dict[str, float]:
        """Of endlessly many prompts, in both orders each; counted here by hand."""
        first = self._replace(unreadable=(0.0, 0.0)).verdicts(np.random.default_rng(0), 400_000).first[:, 0, :, 0]
        won = np.stack([first[:, 0], 1 - first[:, 1]])
        return {
            "win_rate": float(won.mean()),
            "position_bias": float(2 * first.mean() - 1),
            "consistency": float(((won > 0.5)[0] == (won > 0.5)[1]).mean()),
        }


JUDGES = {
    "label probabilities": Judge(),
    "words": Judge(words=True),
    "words, a strong liking for the first place": Judge(words=True, place=1.5),
    "probabilities near 0 and 1": Judge(preference=1.0, spread=4.0, place=2.0, noise=2.0),
    "a model that nearly always wins": Judge(preference=3.0, words=True),
    "words, 5 % and 20 % unreadable": Judge(words=True, unreadable=(0.05, 0.2)),
}
DESIGNS: dict[str, dict[str, Any]] = {
    "both orders": {},
    "one order of each prompt": {"orders": "by_prompt"},
}


def coverage(judge: Judge, prompts: int, simulations: int = SIMULATIONS, **design: Any) -> dict[str, dict[str, float]]:
    """Of each number: how many intervals hold the truth, how far they reach, how far their middle is off on average."""
    truth = judge.truth()
    rng = np.random.default_rng(7)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in truth}
    for seed in range(simulations):
        verdicts = judge.verdicts(rng, prompts, **design)
        rate = mean_outcome(outcomes_of_verdicts(verdicts), resamples=RESAMPLES, seed=seed)
        bias = position_bias(verdicts, resamples=RESAMPLES, seed=seed)
        found["win_rate"].append((rate.win_rate, *rate.ci95))
        if not isinstance(bias, str):
            found["position_bias"].append((bias.bias, *bias.ci95))
        if verdicts.first.shape[3] == 1:  # more judgings are another verdict, so another truth
            alike = consistency(verdicts, resamples=RESAMPLES, seed=seed)
            if not isinstance(alike, str):
                found["consistency"].append((alike.consistent, *alike.ci95))
    return {name: _covered(np.array(rows), truth[name]) for name, rows in found.items() if rows}


def rating_coverage(questions: int, simulations: int = SIMULATIONS) -> dict[str, Any]:
    """Two turns that are alike within a question, judged twice on 1 to 10: the mean, and its noise between judgings."""
    rng = np.random.default_rng(7)

    def ratings(number: int) -> Floats:
        level = 6.5 + rng.normal(0, 2, (number, 1, 1, 1)) + rng.normal(0, 1.2, (number, 1, 2, 1))
        return np.clip(np.rint(level + rng.normal(0, 1, (number, 1, 2, 2))), 1, 10).astype(np.float64)

    truth = float(ratings(200_000).mean())
    rows, expected, apart = [], [], []
    for seed in range(simulations):
        given = ratings(questions)
        rated = rated_answers(given, np.ones(given.shape, dtype=bool), resamples=RESAMPLES, seed=seed)
        assert rated.score and rated.noise and rated.noise.sd_by_chance is not None
        rows.append((rated.score.mean, *rated.score.ci95))
        expected.append(rated.noise.sd_by_chance)
        apart.append(np.diff(rated.noise.means)[0])
    return _covered(np.array(rows), truth) | {
        "sd_by_chance": round(float(np.mean(expected)), 4),
        "sd_between_judgings": round(float(np.std(apart) / np.sqrt(2)), 4),
    }


def _covered(rows: Floats, truth: float) -> dict[str, float]:
    """`rows (intervals, 3)`: estimate, low, high."""
    estimate, low, high = rows.T
    return {
        "covered": round(float(((low <= truth) & (truth <= high)).mean()), 3),
        "intervals": len(rows),
        "truth": round(truth, 4),
        "mean_error": round(float(estimate.mean() - truth), 4),
        "mean_width": round(float((high - low).mean()), 4),
    }


def main() -> None:
    table = {}
    for design, options in DESIGNS.items():
        for name, judge in JUDGES.items():
            for prompts in PROMPTS:
                table[f"{design}; {name}; {prompts} prompts"] = found = coverage(judge, prompts, **options)
                print(design, name, prompts, {number: row["covered"] for number, row in found.items()}, flush=True)
    ratings = {f"{questions} questions, two turns": rating_coverage(questions) for questions in (10, 80)}
    print(ratings)
    content = {"simulations": SIMULATIONS, "resamples": RESAMPLES, "pairs": table, "ratings": ratings}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
