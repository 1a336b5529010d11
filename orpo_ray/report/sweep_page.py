"""The report of a sweep: `report.html`, one file that needs nothing beside it."""

from __future__ import annotations

import statistics
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from orpo_ray.config.metrics import of_unseen
from orpo_ray.errors import UserError
from orpo_ray.report import sweep_figures as figures
from orpo_ray.report.numbers import number, percent
from orpo_ray.report.page import render, write_page, write_report
from orpo_ray.report.sweep_folder import Finalist, Rate, Sweep, Trial, read_sweep


def write_sweep_report(folder: Path) -> Path:
    """Draw `report.html` in a sweep's folder from the files there, finished or not, and return its path.

    Each trial that has metrics gets the report of a run, too.
    Raises `UserError`, naming the file, where one is missing or unreadable, or the page cannot be written.
    """
    sweep = read_sweep(folder)
    for run in sorted((folder / "trials").glob("*/")):
        with suppress(UserError):  # one that failed may have left nothing to draw
            write_report(run)
    numbers = sweep.numbers
    html = render(
        "sweep.html",
        title=numbers.name,
        headline=_headline(sweep),
        verdict=_verdict(sweep),
        status=_under_way(sweep),
        facts=_facts(sweep),
        figures=_figures(sweep),
        keys=list(numbers.space),
        metrics=[numbers.metric, *numbers.trade_off],
        outcomes=_outcomes(sweep),
        trials=_ranked(sweep),
        accuracies=_legend(sweep),
        finalists=[_finalist(finalist) for finalist in numbers.finalists],
        configuration=yaml.safe_dump(sweep.config, sort_keys=False, allow_unicode=True),
    )
    return write_page(folder / "report.html", html)


def _headline(sweep: Sweep) -> str:
    best = _best(sweep)
    if best is None:
        return ""
    settings = ", ".join(f"{figures.short(key)} = {_setting(value)}" for key, value in best.settings.items())
    so_far = "" if sweep.numbers.finished else " so far"
    return f"Trial {best.label} is the best{so_far}: {settings}{_behind(sweep, best)}."


def _behind(sweep: Sweep, best: Trial) -> str:
    """Whether the best is told apart from the second: by their win-rates, else by their accuracies' intervals."""
    numbers = sweep.numbers
    if len(numbers.finalists) > 1 and numbers.finalists[0].trial == best.trial:
        second, behind = numbers.finalists[1].trial, numbers.finalists[1].behind
        return f", {_told(behind is not None and behind.told_apart)} apart from trial {second:03d} by win-rate"
    others = [trial for index in numbers.ranking if (trial := _trial(sweep, index)) and trial is not best]
    if numbers.trade_off or not others:
        return ""
    ours, theirs = (sweep.held_out(one).interval(numbers.metric, one.value) for one in (best, others[0]))
    if ours is None or theirs is None:
        return ""
    apart = ours[0] > theirs[1] or ours[1] < theirs[0]
    lie = "lie apart" if apart else "overlap"
    return f", {_told(apart)} apart from trial {others[0].label} (their 95% intervals {lie})"


def _told(apart: bool) -> str:
    return "told" if apart else "not told"


def _best(sweep: Sweep) -> Trial | None:
    """The winner; of a sweep under way the first in rank."""
    numbers = sweep.numbers
    first = None if numbers.finished else next(iter(numbers.ranking), None)
    return _trial(sweep, first if numbers.winner is None else numbers.winner)


def _under_way(sweep: Sweep) -> str:
    if sweep.numbers.finished:
        return ""
    begun, asked = len(sweep.numbers.trials), sweep.config.get("trials")
    of_all = f" of {number(asked)}" if type(asked) is int and asked >= begun else ""
    words = f": {_counted(sweep)}" if begun else ""
    trials = f"{number(begun)}{of_all} trial{'' if begun == 1 and not of_all else 's'}"
    return f"Not finished when this page was drawn. {trials} begun{words}."


def _counted(sweep: Sweep) -> str:
    count = Counter(trial.status for trial in sweep.numbers.trials)
    return ", ".join(
        f"{count[status]} {status}" for status in ("finished", "stopped", "failed", "unfinished") if count[status]
    )


def _verdict(sweep: Sweep) -> str:
    """How sure that is."""
    finalists = sweep.numbers.finalists
    if len(finalists) < 2:
        if sweep.numbers.winner is None:
            return ""
        among = " among those that no other beats in all metrics" if sweep.numbers.trade_off else " alone"
        chosen = f"Chosen by {sweep.numbers.metric}{among}: no finalists were compared by win-rate."
        return " ".join(filter(None, [chosen, _worth(sweep), _longer(sweep)]))
    best, second = finalists[:2]
    assert second.behind is not None
    word = "is told apart from" if second.behind.told_apart else "is not told apart from"
    return (
        f"Win-rate {_rate(best)}. It {word} the runner-up, trial {second.trial:03d}: "
        f"win-rate over it {_rate(second.behind)}. The intervals hold for whichever of the {len(finalists)} came out "
        f"best, on prompts that ranked none of them. {_longer(sweep)}".rstrip()
    )


def _longer(sweep: Sweep) -> str:
    keys, train = sweep.numbers.unlike_lengths, sweep.config.get("train")
    seen = "prompts" if isinstance(train, dict) and train.get("rollouts") else "pairs"
    return f"Trials see other numbers of {seen} ({', '.join(keys)}): the best may be so for that." if keys else ""


def _worth(sweep: Sweep) -> str:
    """What the winner has where nothing was chosen, and how much of its number is luck."""
    numbers, best = sweep.numbers, _trial(sweep, sweep.numbers.winner)
    if best is None or best.value is None or best.unseen is None:
        return ""
    held_out, metric = sweep.held_out(best), numbers.metric
    said = (
        f"On the held-out pairs that ranked the trials it has {held_out.cell(metric, best.value)}, on those that chose "
        f"nothing {held_out.cell(of_unseen(metric), best.unseen)}"
    )
    if numbers.flattered is None:
        return f"{said}."
    luck = numbers.flattered if numbers.mode == "max" else -numbers.flattered
    finished = sum(trial.status == "finished" and trial.unseen is not None for trial in numbers.trials)
    gap = best.value - best.unseen
    gaps = (
        f"{said}: the first less the second is {number(gap)}, and {number(gap - numbers.flattered)} at the mean of the "
        f"{finished} trials that finished"
    )
    if luck <= 0:
        return f"{gaps}, so the choice shows no luck."
    return f"{gaps}. The {number(luck)} between is what the best of {finished} owes to having been chosen."


def _rate(rate: Rate) -> str:
    low, high = rate.ci95
    return f"{percent(rate.win_rate, 1)} (95% interval {percent(low, 1)} to {percent(high, 1)})"


def _facts(sweep: Sweep) -> list[tuple[str, str, str]]:
    numbers = sweep.numbers
    best = _best(sweep)
    share = numbers.steps_run / numbers.steps_of_all if numbers.steps_of_all else None
    minutes = numbers.seconds / 60
    return [
        ("Trials", number(len(numbers.trials)), _counted(sweep)),
        (
            f"Best {numbers.metric}{'' if numbers.finished else ' so far'}",
            number(best.value if best else None),
            f"{'lower' if numbers.mode == 'min' else 'higher'} is better" + _of_few(sweep, best, numbers.metric),
        ),
        *(
            []
            if best is None or best.unseen is None
            else [
                (
                    "On unseen pairs",
                    number(best.unseen),
                    "the same" + (_of_few(sweep, best, of_unseen(numbers.metric)) or " of pairs that chose nothing"),
                )
            ]
        ),
        ("Steps run", number(numbers.steps_run), f"{percent(share)} of running every trial to its end"),
        *_starts([trial.start_seconds for trial in numbers.trials if trial.start_seconds is not None]),
        ("Time", f"{minutes:.0f} min" if minutes >= 1 else f"{numbers.seconds:.0f} s", "over all tries"),
    ]


def _of_few(sweep: Sweep, best: Trial | None, metric: str) -> str:
    """Behind the best trial's accuracy, of how few it is. `metric`: the sweep's, or that of what chose nothing."""
    if best is None:
        return ""
    told = sweep.held_out(best).told(metric, best.value if metric == sweep.numbers.metric else best.unseen)
    return f", {told}" if told else ""


def _legend(sweep: Sweep) -> str:
    """What is written behind accuracies in the table of trials, where it is the same of all."""
    legends = {sweep.held_out(trial).legend(_outcomes(sweep)) for trial in sweep.numbers.trials} - {""}
    return legends.pop() if len(legends) == 1 else ""


def _starts(seconds: list[float]) -> list[tuple[str, str, str]]:
    """What each trial pays before it trains."""
    if not seconds:
        return []
    words = f"from its turn to its first step, at the median; {sum(seconds):.0f} s of all trials"
    return [("A trial's start", f"{statistics.median(seconds):.1f} s", words)]


def _figures(sweep: Sweep) -> list[tuple[str, Markup, str]]:
    """Title, figure and caption of each that there is something for."""
    numbers = sweep.numbers
    landscape, place, bars = figures.landscape(sweep) or ("", None, "")
    important = figures.importance(sweep)
    rungs = "Dashed: the rungs at which the worse trials stop." if numbers.rungs else ""
    beyond = any(trial.steps_run > trial.steps for trial in numbers.trials)
    stopped = "Where a trial stopped counts; the paler end was computed before that was known." if beyond else ""
    line = "On the line: the trials that no other equals in all metrics and beats in one." if numbers.front else ""
    front = f"{line}{' Ringed: the one chosen.' if numbers.winner is not None else ''}".strip()
    known_by = f"Each trial at the step that it is known by{_which(sweep)}."
    drawn: list[tuple[str, Markup | None, str]] = [
        (landscape, place, known_by + bars),
        *(
            (f"{numbers.metric} against {metric}", figures.trade_off(sweep, metric), front)
            for metric in numbers.trade_off
        ),
        ("Learning curves", figures.learning_curves(sweep), rungs),
        ("Rungs" if numbers.rungs else "How far trials ran", figures.lengths(sweep), stopped),
        ("Parallel coordinates", figures.parallel(sweep), figures.parallel_caption(sweep)),
        ("What matters", important and important[0], important[1] if important else ""),
        ("λ and the log-probs", figures.log_probs(sweep), f"{known_by} {_parting(sweep)}".strip()),
    ]  # fmt: skip
    return [(title, svg, caption) for title, svg, caption in drawn if svg is not None]


def _which(sweep: Sweep) -> str:
    """Of its evaluations; empty where trials may differ in that."""
    train = sweep.config.get("train")
    overridden = "train.keep=" in str(sweep.config.get("overrides"))
    if "train.keep" in sweep.numbers.space or overridden or not isinstance(train, dict):
        return ""
    loop = train.get("train")
    last = isinstance(loop, dict) and loop.get("keep") == "last"
    return f", its {'last' if last else 'best'} one{'' if sweep.numbers.finished else ' so far'}"


def _parting(sweep: Sweep) -> str:
    """How the gap between chosen and rejected goes with λ (the paper's Figure 9), where enough trials tell."""
    found = figures.parting(sweep)
    if found is None:
        return ""
    rho, trials = found
    return (
        f"Chosen less rejected against λ: Spearman's ρ is {number(rho, 2)} over {trials} trials. In the paper's "
        "Figure 9 the two part as λ grows."
    )


def _ranked(sweep: Sweep) -> list[dict[str, Any]]:
    """All trials, best first, those without a value last."""
    places = {index: place for place, index in enumerate(sweep.numbers.ranking)}
    ordered = sorted(sweep.numbers.trials, key=lambda trial: places.get(trial.trial, len(places)))
    return [
        {
            "label": trial.label, "status": _status(sweep, trial), "steps": trial.steps,
            "kept": trial.kept,
            "outcome": _outcome(sweep, trial),
            "front": trial.trial in sweep.numbers.front,
            "settings": [_setting(value) for value in trial.settings.values()], "reason": trial.reason,
            "best": trial.trial == sweep.numbers.winner,
        }
        for trial in ordered
    ]  # fmt: skip


def _outcomes(sweep: Sweep) -> list[str]:
    """The columns of what a trial came to: the sweep's metrics, and the first one of what chose nothing, if known."""
    numbers = sweep.numbers
    known = any(trial.unseen is not None for trial in numbers.trials)
    return [numbers.metric, *numbers.trade_off, *([of_unseen(numbers.metric)] if known else [])]


def _outcome(sweep: Sweep, trial: Trial) -> list[str]:
    numbers, held_out = sweep.numbers, sweep.held_out(trial)
    own = {numbers.metric: trial.value, of_unseen(numbers.metric): trial.unseen}
    values = {metric: own[metric] if metric in own else sweep.kept(trial, metric) for metric in _outcomes(sweep)}
    return [held_out.cell(metric, value, 4) for metric, value in values.items()]


def _status(sweep: Sweep, trial: Trial) -> str:
    if trial.status != "unfinished":
        return trial.status
    return f"unfinished, at step {number(trial.steps_run)} of {number(sweep.length(trial))}"


def _finalist(finalist: Finalist) -> tuple[str, str, str, str]:
    behind = finalist.behind
    apart = "" if behind is None else "yes" if behind.told_apart else "no"
    return f"{finalist.trial:03d}", _rate(finalist), _rate(behind) if behind else "", apart


def _trial(sweep: Sweep, index: int | None) -> Trial | None:
    return next((trial for trial in sweep.numbers.trials if trial.trial == index), None)


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
