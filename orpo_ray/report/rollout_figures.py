"""The figures of a run with rollouts.

What a round has found is drawn at the step of the policy that wrote it, which is the one before the round's first
update; what an update has found at its own step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray

from orpo_ray.parsing import finite
from orpo_ray.report import figures
from orpo_ray.report.evaluation_figures import MODELS
from orpo_ray.report.figures import (
    CHOSEN,
    INK,
    NEUTRAL,
    REJECTED,
    Drawn,
    Percent,
    binned,
    curve,
    over_steps,
    points,
)
from orpo_ray.report.numbers import is_number, number
from orpo_ray.report.rollout_frontier import LARGEST, frontier, frontier_caption, reward_labels, sound
from orpo_ray.report.rollout_words import (
    counted,
    kl_coefficient,
    last_value,
    learned_otherwise,
    scored_by,
    shortened,
    sources_of_reward,
)
from orpo_ray.report.runs import Run, Series
from orpo_ray.storage.rounds import Rounds

Floats = NDArray[np.float64]
_SOURCES = (MODELS[0], MODELS[1], MODELS[4], MODELS[6], CHOSEN, REJECTED, MODELS[5], NEUTRAL)
"""Colours that are seen on light and on dark pages."""
_FEW = 40
"""Points that are drawn as such; more are a line."""
_MOST_TICKS = 6
_LEAST = 1e-16
"""On a log axis, of float64: what is less is none."""


def rollout_figures(run: Run, kept: str) -> list[Drawn]:
    """Title, figure and caption of each. `kept`: which model is kept, in words."""
    loss = {"loss": ("all", INK), "policy_loss": ("policy", CHOSEN)}
    return [
        ("Reward", _reward(run), " ".join(filter(None, [scored_by(run), learned_otherwise(run), counted(run), kept]))),
        ("Reward against KL", frontier(run), frontier_caption(run)),
        ("Reward by source", _reward_by_source(run), "Before weights. Lines: rollouts; points: held-out."),
        ("KL to the reference", _kl(run), f"Mean over responses; {kl_coefficient(run)}."),
        ("KL coefficient", _kl_coefficient(run), "It rises while KL is above its target."),
        ("Entropy", _entropy(run), "−log-prob of the drawn tokens, mean. Near 0 the policy always writes the same."),
        ("Response length", _length(run), ""),
        ("Responses cut", _cut(run), "Those that max_tokens cut, which have no end."),
        ("Loss", _of_updates(run, loss, "loss"), ""),
        ("Value loss", _of_updates(run, {"value_loss": ("", NEUTRAL)}, "value loss"), "Of the critic."),
        ("Explained variance", _explained(run), "Of the returns, by the critic: 1 is all of it, 0 none."),
        (
            "Clip fraction",
            _clip_fraction(run),
            _clip_caption(run),
        ),
        ("Probability ratio", _ratio(run), "To the policy that wrote the responses: 1 at a round's first update."),
        (
            "KL of the updates",
            _of_updates(run, {"approx_kl": ("", NEUTRAL)}, "nats a token"),
            "From the policy that wrote the responses (k3).",
        ),
        ("Mismatch of engine and trainer", _mismatch(run), _mismatch_caption(run)),
        ("Throughput", _throughput(run), _throughput_caption(run)),
        ("Win-rate", figures.win_rate(run), _win_rate_caption(run)),
        ("Learning rate", figures.learning_rate(run), ""),
    ]


def _clip_caption(run: Run) -> str:
    """By what the objective holds: RLOO the ratio of a whole response, PPO the critic's values as well."""
    what = "Responses" if run.section("objective").get("name") == "rloo" else "Tokens"
    held = "ratio, or value," if len(run.series("value_clip_fraction")[0]) else "ratio"
    return f"{what} whose {held} was held. Strong: means of rounds."


def _win_rate_caption(run: Run) -> str:
    return "With 95% intervals." if run.section("eval").get("win_rate") else ""


def _of_rounds(run: Run, key: str) -> Series:
    """A metric of rollouts, at the step of the policy that wrote them."""
    steps, values = sound(run.series(key))
    return np.maximum(steps - 1, 0), values


def _line(axes: Axes, series: Series, colour: str, label: str) -> None:
    """As `curve`; a run of few rounds shows each, so that one alone is seen."""
    curve(axes, series, colour, label)
    steps, values = series
    if len(steps) <= _FEW:
        axes.plot(steps, values, color=colour, linestyle="", marker=".", markersize=4)


def _updates(axes: Axes, run: Run, key: str, colour: str, label: str) -> None:
    """A metric of every step, faint, and its means over rounds: within each it goes the same way again."""
    series = sound(run.series(key))
    each = Rounds.of(run.config)
    if each is None or each.steps == 1 or not len(series[0]):
        _line(axes, series, colour, label)
        return
    axes.plot(*binned(series), color=colour, linewidth=0.7, alpha=0.3)
    steps, values = series
    starts = np.flatnonzero(np.diff((steps - 1) // each.steps, prepend=-1))
    parts = np.split(np.arange(len(steps)), starts[1:])
    parts = [part for part in parts if len(part) == each.steps] or parts  # the present round's first steps are not it
    means = [values[part][np.isfinite(values[part])] for part in parts]
    of_rounds = np.array([part.mean() if part.size else np.nan for part in means])
    _line(axes, (np.array([steps[part[-1]] for part in parts]), of_rounds), colour, label)


def _from_zero(axes: Axes) -> None:
    """Have 0 on the y axis, and room above the highest mark: what there was is of the values' own range."""
    low, high = axes.get_ylim()
    low = min(0.0, low)
    axes.set_ylim(low, high + 0.04 * (high - low))


def _both(axes: Axes, run: Run, key: str, labels: tuple[str, str] = ("rollouts", "held-out")) -> None:
    """Of rollouts and of held-out prompts."""
    _line(axes, _of_rounds(run, key), NEUTRAL, labels[0])
    points(axes, sound(run.series(f"eval_{key}")), INK, labels[1])


def _reward(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        _both(axes, run, "reward", reward_labels(run))
        step = run.kept_step
        value = run.value_at("eval_reward", step)
        if step is not None and value is not None and abs(value) < LARGEST:
            axes.plot([step], [value], marker="*", markersize=11, color=INK, linestyle="", label="kept")
        axes.set_ylabel("reward")

    return over_steps(
        draw, run, ("reward", "eval_reward"), "Mean reward of rollouts and of held-out prompts over steps"
    )


def _reward_by_source(run: Run) -> Markup | None:
    labels = sources_of_reward(run)

    def draw(axes: Axes) -> None:
        for label, shown, colour in zip(labels, shortened(labels), _SOURCES, strict=False):
            _line(axes, _of_rounds(run, f"reward/{label}"), colour, shown)
            points(axes, sound(run.series(f"eval_reward/{label}")), colour, "")
        axes.set_ylabel("reward")

    keys = [f"{part}reward/{label}" for label in labels for part in ("", "eval_")]
    return over_steps(draw, run, keys, "Mean reward by source over steps")


def _kl(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        objective = run.section("objective")
        if is_number(objective, "kl_target"):
            axes.axhline(objective["kl_target"], color=CHOSEN, linewidth=0.9, linestyle=(0, (4, 3)), label="target")
        _both(axes, run, "kl")
        axes.set_ylabel("KL, nats a response")

    return over_steps(draw, run, ("kl", "eval_kl"), "KL to the reference model over steps")


def _kl_coefficient(run: Run) -> Markup | None:
    series = _of_rounds(run, "kl_coefficient")
    values = series[1][np.isfinite(series[1])]
    if not values.size or np.ptp(values) == 0:  # the caption of KL says it
        return None

    def draw(axes: Axes) -> None:
        _line(axes, series, NEUTRAL, "")
        _from_zero(axes)
        axes.set_ylabel("KL coefficient")

    return over_steps(draw, run, ("kl_coefficient",), "KL coefficient over steps")


def _entropy(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        _both(axes, run, "entropy")
        _from_zero(axes)
        axes.set_ylabel("nats a token")

    return over_steps(draw, run, ("entropy", "eval_entropy"), "Entropy of the policy over steps")


def _length(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        _both(axes, run, "response_tokens")
        asked = run.section("rollouts")
        if is_number(asked, "max_tokens"):
            axes.axhline(asked["max_tokens"], color=REJECTED, linewidth=0.9, linestyle=(0, (4, 3)), label="max_tokens")
        _from_zero(axes)
        axes.set_ylabel("tokens a response")

    keys = ("response_tokens", "eval_response_tokens")
    return over_steps(draw, run, keys, "Mean length of responses over steps")


def _cut(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        _both(axes, run, "share_cut")
        _shares(axes, "share cut")

    return over_steps(draw, run, ("share_cut", "eval_share_cut"), "Share of responses that were cut over steps")


def _shares(axes: Axes, what: str) -> None:
    axes.set_ylim(0, min(1.05, max(0.05, axes.get_ylim()[1])))
    axes.yaxis.set_major_formatter(Percent())
    axes.set_ylabel(what)


def _of_updates(run: Run, lines: dict[str, tuple[str, str]], what: str) -> Markup | None:
    """Metrics of every step, by key: label and colour of each."""

    def draw(axes: Axes) -> None:
        for key, (label, colour) in lines.items():
            _updates(axes, run, key, colour, label if len(present) > 1 else "")
        axes.set_ylabel(what)

    present = [key for key in lines if np.isfinite(run.series(key)[1]).any()]
    return over_steps(draw, run, tuple(lines), f"{what} over steps")


def _explained(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        _line(axes, _of_rounds(run, "explained_variance"), NEUTRAL, "")
        axes.set_ylim(max(-1.05, min(-0.05, axes.get_ylim()[0])), 1.05)
        axes.set_ylabel("explained variance")

    return over_steps(draw, run, ("explained_variance",), "Share of the returns' variance that the critic explains")


def _clip_fraction(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        for key, label, colour in (("clip_fraction", "policy", CHOSEN), ("value_clip_fraction", "critic", REJECTED)):
            _updates(axes, run, key, colour, label)
        _shares(axes, "share")

    return over_steps(
        draw, run, ("clip_fraction", "value_clip_fraction"), "Share of tokens that are clipped over steps"
    )


def _ratio(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        axes.axhline(1, color=NEUTRAL, linewidth=0.8)
        _updates(axes, run, "ratio", CHOSEN, "")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_ylabel("mean ratio")

    return over_steps(draw, run, ("ratio",), "Mean probability ratio over steps")


_MISMATCHES: Sequence[tuple[str, str, str]] = (
    ("mismatch_max", "largest", REJECTED), ("mismatch_mean", "mean", CHOSEN), ("mismatch_k3", "k3", NEUTRAL),
)  # fmt: skip


def _mismatch(run: Run) -> Markup | None:
    """On a log axis, whose lower end is 0: where both compute alike there is none."""

    def draw(axes: Axes) -> None:
        found = []
        for key, label, colour in _MISMATCHES:
            steps, values = _of_rounds(run, key)
            values = np.where(values < _LEAST, 0.0, values)
            _line(axes, (steps, values), colour, label)
            found.append(values[values > 0])  # blind to NaN
        positive = np.concatenate(found)
        if positive.size:
            least, most = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))
            axes.set_yscale("symlog", linthresh=10**least, linscale=1)
            axes.set_ylim(0, 3 * float(positive.max()))
            axes.set_yticks([0, *10 ** np.arange(most, least - 1, -np.ceil((most - least + 1) / _MOST_TICKS))])
        axes.set_ylabel("nats a token")

    keys = [key for key, _, _ in _MISMATCHES]
    return over_steps(draw, run, keys, "Difference of the log-probs of engine and trainer over steps")


def _mismatch_caption(run: Run) -> str:
    _, largest = sound(run.series("mismatch_max"))
    largest = largest[np.isfinite(largest)]
    said = "Of a drawn token's log-prob by the engine and by the trainer."
    return f"{said} At most {largest.max():.2g} nats.".replace("-0", "−0") if largest.size else said


_RATES = (
    ("rollout_tokens_per_second", "writing", CHOSEN), ("score_tokens_per_second", "scoring", REJECTED)
)  # fmt: skip


def _update_rate(run: Run) -> Series:
    """Tokens of responses a second in the updates of each round: of the time that its steps took, where each line tells
    of its own."""
    ends, rates = [], []
    length, each = float("nan"), Rounds.of(run.config)
    step_rates: list[float] = []
    for line in run.lines:
        if "round" in line:
            length, step_rates = finite(line.get("response_tokens")), []
        if "pairs_per_second" in line:
            step_rates.append(finite(line.get("pairs_per_second")))
        if each is not None and len(step_rates) == each.steps and min(step_rates) > 0:
            ends.append(line["step"])
            rates.append(length * each.steps / sum(1 / rate for rate in step_rates))
            step_rates = []
    return sound((np.array(ends, dtype=np.int64), np.array(rates, dtype=np.float64)))


def _throughput(run: Run) -> Markup | None:
    def draw(axes: Axes) -> None:
        for key, label, colour in _RATES:
            _line(axes, sound(run.series(key)), colour, label)
        _line(axes, _update_rate(run), NEUTRAL, "updates")
        _from_zero(axes)
        axes.set_ylabel("tokens per second")

    return over_steps(draw, run, [key for key, _, _ in _RATES], "Tokens per second of writing, scoring and updates")


def _throughput_caption(run: Run) -> str:
    _, updates = _update_rate(run)
    rates = [(label, last_value(run, key)) for key, label, _ in _RATES]
    rates.append(("updates", float(updates[-1]) if updates.size and np.isfinite(updates[-1]) else None))
    last = [f"{label} {number(rate, 0)}" for label, rate in rates if rate is not None]
    spent = {word: run.series(f"{word}_seconds")[1] for word in ("rollout", "scoring")}
    means = {word: values[np.isfinite(values)].mean() for word, values in spent.items() if np.isfinite(values).any()}
    mean: dict[str, Any] = {"rollout": "writing", "scoring": "scoring"}
    took = ", ".join(f"{mean[word]} {number(float(value), 1)} s" for word, value in means.items())
    said = [
        f"Last: {', '.join(last)} tokens a second." if last else "",
        f"A round, in the mean: {took}." if took else "",
    ]
    return " ".join(filter(None, said))
