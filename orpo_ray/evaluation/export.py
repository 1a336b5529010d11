"""The answers of a finished evaluation in the files that AlpacaEval, MT-Bench and IFEval read, for others to recompute.

| benchmark | files | rounds |
|---|---|---|
| `alpaca-eval` | `LABEL.json`: `{instruction, output, generator}` | one file each: `LABEL+2.json`, … |
| `mt-bench` | `LABEL.jsonl`: `{question_id, model_id, choices}` | a choice each |
| `ifeval` | `LABEL.jsonl`: `{prompt, response}` | one file each: `LABEL+2.jsonl`, … |

What was judged is written: with `answers.strip_thinking` without thoughts. Their tools know of no missing answer, so a
prompt without one is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.data.records import one_line
from orpo_ray.errors import UserError
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.leaderboards.files import (
    Answer,
    Output,
    Response,
    of_round,
    write_answers,
    write_outputs,
    write_responses,
)

Benchmark = Literal["alpaca-eval", "mt-bench", "ifeval"]


@dataclass(frozen=True)
class _Answered:
    """All that a model answered."""

    label: str
    prompts: list[dict[str, Any]]
    rounds: list[list[list[str] | None]]
    """By round and prompt, the answers in order of turns; None where one is missing."""


def export_outputs(folder: Path, benchmark: str, out: Path | None = None) -> list[tuple[Path, int]]:
    """Write the answers of each model of the evaluation in `folder` to `out` (default: its `outputs/BENCHMARK`).

    Returns the files, and how many prompts have no answer in each. Raises `UserError`, naming the file, where the
    evaluation is not finished, and where its prompts are none of the benchmark's kind.
    """
    benchmark = "alpaca-eval" if benchmark in ("alpaca-eval-1", "alpaca-eval-2") else benchmark  # as it is evaluated by
    if benchmark not in _WRITERS:
        raise UserError(f"--benchmark: should be one of {', '.join(get_args(Benchmark))} (got {benchmark!r:.40})")
    evaluation = EvaluationFolder(folder)
    prompts, rows = _table(evaluation.prompts), _table(evaluation.results)
    if benchmark == "mt-bench" and not all("question_id" in prompt for prompt in prompts):
        raise UserError(f"{evaluation.prompts}: its prompts have no question_id, by which MT-Bench knows its own")
    if benchmark != "mt-bench" and any(row.get("turn", 1) > 1 for row in rows):
        raise UserError(f"{evaluation.results}: has answers of several turns, for which {benchmark} has no place")
    written = []
    for answered in _answered(prompts, rows):
        written += _WRITERS[benchmark](out or folder / "outputs" / benchmark, answered)
    return written


def _table(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; is this the folder of a finished evaluation?")
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    return rows


def _answered(prompts: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[_Answered]:
    texts: dict[str, dict[tuple[int, int], list[str | None]]] = {}
    for row in rows:  # in the order of turns
        if row["model"] not in DATA_LABELS:
            texts.setdefault(row["model"], {}).setdefault((row["round"], row["prompt"]), []).append(row["text"])
    found = []
    for label, by_place in texts.items():
        rounds = [
            [_all(by_place.get((round, prompt["prompt"]), [None])) for prompt in prompts]
            for round in range(1 + max(round for round, _ in by_place))
        ]
        found.append(_Answered(label, prompts, rounds))
    return found


def _all(texts: Sequence[str | None]) -> list[str] | None:
    given = [text for text in texts if text is not None]
    return given if len(given) == len(texts) else None


def _alpaca_eval(folder: Path, answered: _Answered) -> list[tuple[Path, int]]:
    written = []
    for round, answers in enumerate(answered.rounds):
        path = folder / f"{of_round(answered.label, round)}.json"
        given = [(prompt, texts) for prompt, texts in zip(answered.prompts, answers, strict=True) if texts]
        write_outputs(
            path, [Output(instruction=prompt["text"], output=texts[0], generator=answered.label)
                   for prompt, texts in given],
        )  # fmt: skip
        written.append((path, len(answers) - len(given)))
    return written


def _ifeval(folder: Path, answered: _Answered) -> list[tuple[Path, int]]:
    written = []
    for round, answers in enumerate(answered.rounds):
        path = folder / f"{of_round(answered.label, round)}.jsonl"
        given = [(prompt, texts) for prompt, texts in zip(answered.prompts, answers, strict=True) if texts]
        write_responses(path, [Response(prompt=prompt["text"], response=texts[0]) for prompt, texts in given])
        written.append((path, len(answers) - len(given)))
    return written


def _mt_bench(folder: Path, answered: _Answered) -> list[tuple[Path, int]]:
    """A question counts as missing where any of its rounds is."""
    path = folder / f"{answered.label}.jsonl"
    answers, lacking = [], 0
    for prompt, rounds in zip(answered.prompts, zip(*answered.rounds, strict=True), strict=True):
        choices = tuple(tuple(texts) for texts in rounds if texts)
        lacking += len(choices) < len(rounds)
        known_by = prompt["question_id"]
        number = int(known_by) if known_by.isascii() and known_by.isdigit() else known_by
        if choices:
            answers.append(Answer(question_id=number, model=answered.label, choices=choices))
    write_answers(path, answers)
    return [(path, lacking)]


_WRITERS: dict[str, Callable[[Path, _Answered], list[tuple[Path, int]]]] = {
    "alpaca-eval": _alpaca_eval, "mt-bench": _mt_bench, "ifeval": _ifeval,
}  # fmt: skip
