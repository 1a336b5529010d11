"""Several training runs side by side: what they are called, and which of their curves may lie over each other.

Two curves share axes only where the same thing was measured: on the same pairs, in the same tokens, by the same
formula. What decides that is an *aspect*: a function of two runs that says in words what parts them, or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orpo_ray.config import DataConfig, read_yaml
from orpo_ray.config.kinds import kind_of
from orpo_ray.errors import UserError
from orpo_ray.report.comparison_scores import Scores, read_scores
from orpo_ray.report.runs import Run, read_run

MOST = 24
"""Runs on a page: as many as eight colours in three styles of line tell apart."""

_LARGEST_BATCH = 2**31
_BY_MEAN_LOG_PROB = ("sft", "orpo", "probability_ratio", "unlikelihood", "simpo")
"""Objectives whose reward accuracy is that of the mean log-prob."""
_READING = ("format", "columns", "roles", "system", "prefer", "unread", "comparisons", "drop_prompts_over")
_CUTTING = ("chat_template", "max_length", "max_prompt_length")
_ANSWERING = ("max_tokens", "temperature")


@dataclass(frozen=True)
class Compared:
    """One of the runs of a page."""

    label: str
    run: Run
    scores: Scores | str
    """What its kept model gave each held-out comparison, or why there is nothing to compare."""


def read_runs(folders: Sequence[Path]) -> list[Compared]:
    """The training runs in these folders, finished or not, in their order.

    Raises `UserError`, naming the folder, where one is missing, holds anything but a training run, or comes twice; and
    for one run alone, or more than `MOST`.
    """
    if not 2 <= len(folders) <= MOST:
        raise UserError(f"expected the folders of 2 to {MOST} training runs to compare, found {len(folders)}")
    places = [folder.resolve() for folder in folders]
    for place, folder in enumerate(folders):
        if places[place] in places[:place]:
            raise UserError(f"{folder}: is there twice; a run is compared with others")
        _require_run(folder)
    found = [read_run(folder) for folder in folders]
    scores = [read_scores(run.folder / "eval_scores.parquet", rewards=objective_of(run) == "reward") for run in found]
    return [Compared(*each) for each in zip(labels(folders), found, scores, strict=True)]


def _require_run(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    config = folder / "config.yaml"
    kind = kind_of(read_yaml(config)) if config.is_file() else None
    if kind not in (None, "training run"):
        hint = "; name those of its trials" if kind == "sweep" else ""
        raise UserError(f"{folder}: is the folder of another kind ({kind}), and only training runs are compared{hint}")


def labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, each with as many of the folders above it as tell it from all others."""
    parts = [folder.resolve().parts for folder in folders]
    depths = [1] * len(parts)
    while True:
        found = ["/".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        alike = [
            found.count(label) > 1 and depth < len(part)
            for label, depth, part in zip(found, depths, parts, strict=True)
        ]
        if not any(alike):
            return found
        depths = [depth + same for depth, same in zip(depths, alike, strict=True)]


def objective_of(run: Run) -> str:
    return str(run.section("objective").get("name", "?"))


Aspect = Callable[[Compared, Compared], str]
"""In words that go behind "apart, as": what keeps the curves of two runs from sharing axes; empty: nothing."""


def objective(a: Compared, b: Compared) -> str:
    """Of losses, and of rewards that an objective makes of log-probs."""
    return "" if _formula(a.run) == _formula(b.run) else "the objectives differ"


def ranking(a: Compared, b: Compared) -> str:
    """Of reward accuracy."""
    return "" if _ranks_by(a.run) == _ranks_by(b.run) else "the objectives rank responses by other scores"


def nll_tokens(a: Compared, b: Compared) -> str:
    first, second = (_pairs_of(each.run).get("nll_tokens", "chosen") for each in (a, b))
    return "" if first == second else "the NLL counts prompt tokens in some (objective.nll_tokens)"


def held_out(a: Compared, b: Compared) -> str:
    """Of all that is found on held-out records."""
    if reason := _written_by(a.run, b.run):
        return reason
    if keys := _unlike(_held_out_settings(a.run), _held_out_settings(b.run)):
        return f"the held-out {_records(a.run)} differ ({', '.join(keys)})"
    if isinstance(a.scores, Scores) and isinstance(b.scores, Scores) and a.scores.compared != b.scores.compared:
        return "the held-out records differ (eval_scores.parquet)"
    return ""


def trained_on(a: Compared, b: Compared) -> str:
    """Of all that is found on what was trained on. A part of the same pairs (`data.limit`) is like all of them."""
    if reason := _written_by(a.run, b.run):
        return reason
    keys = _unlike(_training_settings(a.run), _training_settings(b.run))
    return f"the training {_records(a.run)} differ ({', '.join(keys)})" if keys else ""


def tokens(a: Compared, b: Compared) -> str:
    """Of what is counted per token. Where the kept models' scores of the same records tell how many tokens these are,
    they decide; else runs from models of other names may well have other tokenizers."""
    if isinstance(a.scores, Scores) and isinstance(b.scores, Scores) and a.scores.compared == b.scores.compared:
        if a.scores.tokens != b.scores.tokens:
            return "the same records are other tokens (tokenizer, template or data.max_length)"
        keys = _unlike(_data_settings(a.run, _CUTTING[:1]), _data_settings(b.run, _CUTTING[:1]))
        return f"the tokens differ ({', '.join(keys)})" if keys else ""
    keys = _unlike(
        _data_settings(a.run, _CUTTING) | _tokenizer(a.run), _data_settings(b.run, _CUTTING) | _tokenizer(b.run)
    )
    return f"the tokens may differ ({', '.join(keys)})" if keys else ""


def rewards(a: Compared, b: Compared) -> str:
    """Of rewards that are given to rollouts."""
    first, second = (each.run.section("rollouts").get("rewards") for each in (a, b))
    return "" if first == second else "other sources score (rollouts.rewards)"


def learned_rewards(a: Compared, b: Compared) -> str:
    """Of rewards as they are learned from."""
    keys = ("clip_scores", "cut_penalty")
    first, second = ([each.run.section("rollouts").get(key) or 0 for key in keys] for each in (a, b))
    return rewards(a, b) or ("" if first == second else f"rewards are changed otherwise (rollouts.{', '.join(keys)})")


def reference(a: Compared, b: Compared) -> str:
    return "" if _reference(a.run) == _reference(b.run) else "the reference models differ"


def comparison_run(a: Compared, b: Compared) -> str:
    """Of win-rates that training asks for."""
    first, second = (each.run.section("eval").get("win_rate") for each in (a, b))
    return "" if first == second else "win-rates are asked for otherwise (eval.win_rate)"


def unit(a: Compared, b: Compared) -> str:
    """Of speeds."""
    return "" if unit_of(a.run) == unit_of(b.run) else "pairs are counted in some, responses in others"


def unit_of(run: Run) -> str:
    return "responses" if run.rolls_out or objective_of(run) == "kto" else "pairs"


def grouped(runs: Sequence[Compared], aspects: Sequence[Aspect]) -> list[list[Compared]]:
    """The runs in groups whose members no aspect parts, each in the first that it fits into."""
    groups: list[list[Compared]] = []
    for run in runs:
        fitting = [group for group in groups if not any(parted(member, run, aspects) for member in group)]
        if fitting:
            fitting[0].append(run)
        else:
            groups.append([run])
    return groups


def parted(a: Compared, b: Compared, aspects: Sequence[Aspect]) -> str:
    """What parts two runs, by the first aspect that does; empty: nothing."""
    return next((reason for aspect in aspects if (reason := aspect(a, b))), "")


def batch_sizes(runs: Sequence[Compared]) -> list[int] | None:
    """Pairs, or prompts, of a step of each; None where one does not say."""
    found = [each.run.section("train").get("global_batch_size") for each in runs]
    sizes = [size for size in found if type(size) is int and 0 < size < _LARGEST_BATCH]
    return sizes if len(sizes) == len(found) else None


def _formula(run: Run) -> str:
    """The loss, up to the weights that it is taken of; what changes no value of it is left out."""
    left_out = ("gradient_metrics", "centre", "critic")
    held = {key: value for key, value in run.section("objective").items() if key not in left_out}
    return _written([held, _reference(run)] if _refers(run) else [held])


def _ranks_by(run: Run) -> str:
    name = str(_pairs_of(run).get("name", "?"))
    if name in _BY_MEAN_LOG_PROB:
        return "mean log-prob"
    return _written([name, _reference(run)] if _refers(run) else [name])


def _pairs_of(run: Run) -> dict[str, Any]:
    """The objective whose loss it is: of pairs of rollouts another than the one that draws them."""
    section = run.section("objective")
    pairs = section.get("pairs")
    return pairs if isinstance(pairs, dict) else section


def _refers(run: Run) -> bool:
    return "reference" in _pairs_of(run)


def _reference(run: Run) -> Any:
    return _pairs_of(run).get("reference") or run.section("model").get("name_or_path")


def _held_out_settings(run: Run) -> dict[str, Any]:
    data = run.section("data")
    keys = ["eval", "eval_split", "unseen_fraction", *_READING]
    if data.get("eval") is None:
        keys += ["train", "train_split", "limit", "eval_fraction"]
    found = _data_settings(run, keys) | _answering(run)
    if data.get("eval") is None:
        found["seed"] = run.config.get("seed")
    if run.rolls_out:
        found["rollouts.eval_prompts"] = run.section("rollouts").get("eval_prompts")
    return found


def _training_settings(run: Run) -> dict[str, Any]:
    return _data_settings(run, ["train", "train_split", "temperature", *_READING]) | _answering(run)


def _answering(run: Run) -> dict[str, Any]:
    """How the policy's own responses are drawn; of others, whether they are labelled."""
    if run.rolls_out:
        return {f"rollouts.{key}": run.section("rollouts").get(key) for key in _ANSWERING}
    return {"objective.name": "labels"} if objective_of(run) == "kto" else {}


def _tokenizer(run: Run) -> dict[str, Any]:
    model = run.section("model")
    return (
        {"model.tokenizer": model["tokenizer"]}
        if model.get("tokenizer")
        else {"model.name_or_path": model.get("name_or_path")}
    )


def _data_settings(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    data, fields = run.section("data"), DataConfig.model_fields
    return {f"data.{key}": data.get(key, None if fields[key].is_required() else fields[key].default) for key in keys}


def _unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]


def _records(run: Run) -> str:
    return "prompts" if run.rolls_out else "pairs"


def _written_by(a: Run, b: Run) -> str:
    return "" if a.rolls_out == b.rolls_out else "some are of pairs and some of what the policy writes"


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
