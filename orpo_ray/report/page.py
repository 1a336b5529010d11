"""The report of one run: `report.html`, one file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orpo_ray import __version__
from orpo_ray.atomic import new_file
from orpo_ray.config.metrics import of_unseen, spoken, spoken_name
from orpo_ray.config.objectives import OBJECTIVES
from orpo_ray.errors import UserError
from orpo_ray.parsing import finite
from orpo_ray.report import figures
from orpo_ray.report.figures import Drawn
from orpo_ray.report.held_out import ACCURACY, HeldOut, read_held_out
from orpo_ray.report.numbers import describe_change, is_number, number, percent, time_taken
from orpo_ray.report.reward_figures import reward_figures
from orpo_ray.report.reward_words import (
    COLUMNS,
    is_reward_model,
    margin_caption,
    margin_fact,
    rewards_caption,
)
from orpo_ray.report.rollout_figures import rollout_figures
from orpo_ray.report.rollout_samples import read_samples
from orpo_ray.report.rollout_words import columns_of_rollouts, facts_of_rollouts
from orpo_ray.report.runs import Run, read_run
from orpo_ray.training.remarks import fallen_margin, long_warmup

EVALUATION_COLUMNS = {
    "eval_loss": "loss",
    "eval_nll": "NLL",
    "eval_logps_chosen": "chosen log-prob",
    "eval_logps_rejected": "rejected log-prob",
    "eval_log_odds_ratio": "log odds ratio",
    "eval_reward_margin": "reward margin",
    "eval_reward_accuracy": "reward accuracy",
}
_WEIGHTS = (("λ", "lambda"), ("β", "kl_coefficient"))
_BY_REFERENCE = "Pairs whose chosen response has gained more over the reference's log-probs than the rejected one."
_ACCURATE = {
    "dpo": _BY_REFERENCE, "ipo": _BY_REFERENCE, "kto_pair": _BY_REFERENCE,
    "cpo": "Pairs whose chosen response is likelier as a whole, not per token.",
    "kto": "Responses that are on their label's side of the reference point.",
}  # fmt: skip
"""What `reward_accuracy` counts, by objective."""
TITLES = {objective.model_fields["name"].default: objective.title for objective in OBJECTIVES}


def write_report(run_dir: Path) -> Path:
    """Draw `report.html` in a run folder from the files there, finished or not, and return its path.

    Raises `UserError` where the folder holds no readable run, or the page cannot be written.
    """
    run = read_run(run_dir)
    return write_page(run_dir / "report.html", run_page(run, _figures(run)))


def _figures(run: Run) -> list[Drawn]:
    if run.rolls_out:
        return rollout_figures(run, _kept_caption(run))
    if is_reward_model(run):
        return _figures_of_rewards(run)
    return [
        ("Loss", figures.loss(run), _kept_caption(run)),
        ("Log-probs of chosen and rejected", figures.log_probs(run), _log_prob_caption(run)),
        ("Log odds ratio", figures.log_odds_ratio(run), "How much likelier, in odds, chosen is than rejected."),
        ("Reward accuracy", figures.reward_accuracy(run), _accuracy_caption(run)),
        ("Win-rate", figures.win_rate(run), _win_rate_caption(run)),
        *_figures_of_the_work(run),
    ]


def _figures_of_rewards(run: Run) -> list[Drawn]:
    scores = run.folder / "eval_scores.parquet"
    return [
        ("Loss", figures.loss(run), _kept_caption(run)),
        ("Reward accuracy", figures.reward_accuracy(run), "Pairs whose chosen response has the higher reward."),
        ("Reward margin", figures.reward_margin(run), margin_caption(run)),
        ("Rewards in training", figures.rewards(run), rewards_caption(run)),
        *(reward_figures(scores) if scores.is_file() else []),
        *_figures_of_the_work(run),
    ]


def _figures_of_the_work(run: Run) -> list[Drawn]:
    return [
        ("Learning rate", figures.learning_rate(run), ""),
        ("Throughput", figures.throughput(run), "Over all workers."),
    ]


def _accuracy_caption(run: Run) -> str:
    objective = str(run.section("objective").get("name"))  # of a damaged configuration it may be anything
    return _ACCURATE.get(objective, "Pairs whose chosen response is likelier per token.")


def run_page(run: Run, drawn: list[Drawn]) -> str:
    """The page of a run, with these figures on it."""
    columns, held_out = _present_columns(run), read_held_out(run.folder)
    return render(
        "run.html",
        run=run,
        title=run.name,
        facts=_facts(run),
        status=_status(run),
        warnings=_warnings(run),
        figures=[(title, svg, caption) for title, svg, caption in drawn if svg is not None],
        samples=read_samples(run) if run.rolls_out else None,
        columns=columns,
        accuracies=held_out.legend(columns),
        sources=_by_source(run, held_out, columns),
        evaluations=[
            (line["step"], [held_out.cell(key, line.get(key)) for key in columns])
            for line in run.lines
            if run.evaluated in line
        ],
        configuration=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    )


def render(template: str, **values: Any) -> str:
    """A page from one of `templates/`, every value escaped but the figures drawn here.

    All have one policy: no script but `browser.js`, which it names by its hash, and nothing from elsewhere.
    """
    return _environment().get_template(template).render(**values)


def write_page(path: Path, html: str) -> Path:
    """Write a page whole or not at all. Raises `UserError` where the folder cannot be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as new:
            new.write_text(html, encoding="utf-8", errors="replace")  # JSON may hold half a surrogate pair
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """The headline: what each number is, the number, and a word on it."""
    objective, model, data = run.section("objective"), run.section("model"), run.section("data")
    name = str(objective.get("name", "?"))
    best, held_out = run.best_step, read_held_out(run.folder)
    weights = (f"{sign} = {objective[key]:g}" for sign, key in _WEIGHTS if is_number(objective, key))
    return [
        ("Objective", TITLES.get(name, name), next(weights, "")),
        ("Model", str(model.get("name_or_path", "?")), str(model.get("dtype", ""))),
        ("Data", _data(data.get("train", "?")), _pairs(run)),
        ("Steps", number(run.last_step), planned(run)),
        (
            f"Best {spoken_name(run.keep_by)}",
            number(run.value_at(run.keep_by, best)),
            f"at step {number(best)}{_luck(run, held_out)}{_unseen(run, held_out)}",
        ),
        *(facts_of_rollouts(run) if run.rolls_out else _facts_of_pairs(run, held_out)),
    ]


def _facts_of_pairs(run: Run, held_out: HeldOut) -> list[tuple[str, str, str]]:
    kept = run.kept_step
    margin, start = _margin(run, kept), _margin(run, 0)
    accuracy = run.value_at(ACCURACY, kept)
    origin = f"from {number(start)} at step 0" if start is not None else "chosen − rejected log-prob"
    return [
        margin_fact(run) if is_reward_model(run) else ("Eval log-prob margin", number(margin), origin),
        ("Reward accuracy", percent(accuracy, 1), held_out.told(ACCURACY, accuracy) or "of evaluation pairs"),
        ("Pairs per second", number(pace(run), 1), time_taken(run)),
    ]


def pace(run: Run) -> float | None:
    """Pairs a second over the later half of the steps: what steps of equal size at these rates come to. Their plain
    mean is more, by far where one was slow."""
    _, rates = run.series("pairs_per_second")
    rates = rates[len(rates) // 2 :]
    rates = rates[np.isfinite(rates) & (rates > 0)]
    return float(rates.size / (1 / rates).sum()) if rates.size else None


def _luck(run: Run, held_out: HeldOut) -> str:
    """Where the best is told by an accuracy, of how few."""
    told = held_out.told(run.keep_by, run.value_at(run.keep_by, run.best_step))
    return f", {told}" if told else ""


def _unseen(run: Run, held_out: HeldOut) -> str:
    """What the best model has of the same metric on the held-out pairs that choose nothing, where there are some."""
    metric = of_unseen(run.keep_by)
    value = run.value_at(metric, run.best_step)
    if value is None:
        return ""
    return f"; {number(value)} {held_out.told(metric, value) or 'on pairs that choose nothing'}"


def _margin(run: Run, step: int | None) -> float | None:
    chosen, rejected = (run.value_at(f"eval_logps_{name}", step) for name in ("chosen", "rejected"))
    return None if chosen is None or rejected is None else chosen - rejected


def _status(run: Run) -> str:
    """Empty for a finished run."""
    if run.summary is not None:
        return ""
    of_all = planned(run)
    return f"Not finished: at step {number(run.last_step)}{' ' + of_all if of_all else ''} when this page was drawn."


def planned(run: Run) -> str:
    loop = run.section("train")
    if is_number(loop, "max_steps"):
        return f"of {number(loop['max_steps'])}"
    _, epochs = run.series("epoch")
    if epochs.size and is_number(loop, "epochs"):
        return f"epoch {epochs[-1]:.1f} of {loop['epochs']}"
    return ""


def _warnings(run: Run) -> list[str]:
    """What a reader has to know before the numbers, each in a sentence."""
    said = [*run.warnings, long_warmup(run.section("optim").get("warmup_steps"), finite(run.total_steps))]
    said.append(fallen_margin(str(run.section("objective").get("name")), run.lines, _kept_of_two(run)))
    return [_diverged(run), *(f"{text[0].upper()}{text[1:]}." for text in said if text)]


def _kept_of_two(run: Run) -> int | None:
    """The step of the model that is kept beside, or instead of, the last."""
    return None if run.section("train").get("keep") == "last" else run.kept_step


def _diverged(run: Run) -> str:
    """A warning where training met a loss that is not a number; else empty."""
    skipped = [line for line in run.lines if "skipped" in line]
    if not skipped:
        return ""
    first = skipped[0]
    records = ", ".join(map(str, first["skipped"][:8])) + (", …" if len(first["skipped"]) > 8 else "")
    return (
        f"The loss or the gradient was not finite at {number(len(skipped))} steps, which were skipped: first at step "
        f"{number(first['step'])}, with the records {records}."
    )


def _kept_caption(run: Run) -> str:
    by = "lowest evaluation loss" if run.keep_by == "eval_loss" else spoken(run.keep_by, run.keep_direction)
    best = f"the one with the {by}"
    return {
        "last": "The kept model is the last one evaluated.",
        "both": f"The kept models are {best}, in model/, and the last one evaluated, in model-last/.",
    }.get(str(run.section("train").get("keep")), f"The kept model is {best}.")


def _log_prob_caption(run: Run) -> str:
    changes = [(name, describe_change(run, f"eval_logps_{name}")) for name in ("chosen", "rejected")]
    said = "; ".join(f"{name} {change}" for name, change in changes if change)
    return f"On held-out pairs: {said}." if said else ""


def _win_rate_caption(run: Run) -> str:
    asked = run.section("eval").get("win_rate")
    if not isinstance(asked, dict):
        return ""
    return f"Against {asked.get('against')}, judged by {asked.get('reward_model')}, with 95% intervals."


def _pairs(run: Run) -> str:
    pairs = (run.summary or {}).get("pairs")
    return f"{number(pairs)} {'prompts' if run.rolls_out else 'pairs'}" if isinstance(pairs, int) else ""


def _by_source(run: Run, held_out: HeldOut, columns: dict[str, str]) -> dict[str, list[str]]:
    """Of each of several sources, by column, what the kept model gives its held-out pairs; behind that how many there
    are. Empty while none is kept."""
    names = {key.partition("/")[2] for line in run.lines for key in line if key.startswith("eval_loss/")}
    step = run.kept_step
    if step is None:
        return {}
    return {
        name: [
            *(held_out.cell(f"{key}/{name}", run.value_at(f"{key}/{name}", step)) for key in columns),
            number(part.rows) if (part := held_out.parts.get(f"{ACCURACY}/{name}")) else number(None),
        ]
        for name in sorted(names)
    }


def _data(value: Any) -> str:
    """`data.train` as it is called: one source, or the names of several."""
    if not isinstance(value, list):
        return str(value)
    return ", ".join(str(source.get("name", "?")) if isinstance(source, dict) else "?" for source in value)


def _columns_of_pairs(run: Run) -> dict[str, str]:
    return COLUMNS if is_reward_model(run) else EVALUATION_COLUMNS


def _present_columns(run: Run) -> dict[str, str]:
    columns = columns_of_rollouts(run) if run.rolls_out else _columns_of_pairs(run)
    return {key: title for key, title in columns.items() if any(key in line for line in run.lines)}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orpo_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (Path(__file__).parent / "templates" / "browser.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(version=__version__, script=Markup(script), script_digest=digest)
    environment.filters.update(number=number, percent=percent)
    return environment
