"""Files of verdicts or responses, made here or elsewhere, to the numbers of a benchmark as JSON: `orpo-ray verdicts`.

A benchmark plugs in with a line in `BENCHMARKS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from orpo_ray.errors import UserError
from orpo_ray.leaderboards import alpaca_eval, ifeval, mt_bench
from orpo_ray.leaderboards.alpaca_eval import PUBLISHED, LengthControlled
from orpo_ray.leaderboards.files import instruction_of, read_judgments, read_questions, records
from orpo_ray.leaderboards.length_controlled import Difficulty, Weights, read_difficulty, read_weights

Row = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """What the command is given."""

    verdicts: Path
    difficulty: Path | None = None
    weights: Path | None = None
    prompts: Path | None = None


@dataclass(frozen=True)
class Benchmark:
    results: Callable[[Files], list[Row]]
    """The numbers of each model, and of each judge, in the files."""
    options: tuple[str, ...]
    """The files beside the first that it reads."""


def aggregate(benchmark: str, files: Files) -> Row:
    """The numbers of all models in `files.verdicts`, as JSON has them.

    Raises `UserError` for a benchmark that is not known, a file that it does not read, and a record that is not what
    it should be.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"--benchmark {benchmark}: not one of {', '.join(BENCHMARKS)}")
    found = BENCHMARKS[benchmark]
    for option in ("difficulty", "weights", "prompts"):
        if getattr(files, option) is not None and option not in found.options:
            raise UserError(f"--{option}: {benchmark} does not read it")
    return {"benchmark": benchmark, "file": str(files.verdicts), "results": found.results(files)}


def as_json(numbers: Row) -> str:
    return json.dumps(numbers, indent=2, allow_nan=False)


def _alpaca_eval(reference: str, annotator: str, files: Files) -> list[Row]:
    instructions = None if files.prompts is None else _instructions(files.prompts)
    difficulty = None if files.difficulty is None else read_difficulty(files.difficulty, instructions)
    weights = None if files.weights is None else read_weights(files.weights)
    if weights is not None and difficulty is None:
        raise UserError("--weights: tell nothing without --difficulty")
    own = {"reference": reference, "annotator": annotator}
    expected = difficulty.instructions if instructions is None and difficulty is not None else instructions
    found = alpaca_eval.read_verdicts(files.verdicts, expected)
    if weights is not None and not any(each.model in weights for each in found):
        names = ", ".join(str(each.model or "a model without a name (generator_2)") for each in found[:5])
        raise UserError(f"{files.weights}: has no weights of {names}; without --weights they are fitted")
    return [_of_model(each, expected, difficulty, (weights or {}).get(each.model or ""), own, files) for each in found]


def _instructions(path: Path) -> tuple[str, ...]:
    """AlpacaEval's own, from `alpaca_eval.json` or a file of anybody's outputs."""
    found: list[str] = []
    for location, row in records(path):
        try:
            found.append(instruction_of(row))
        except ValueError as error:
            raise UserError(f"{location}: {error}") from None
    if len(set(found)) < len(found):
        twice = next(each for each in found if found.count(each) > 1)
        raise UserError(f"{path}: has the instruction {twice!r:.80} twice")
    return tuple(found)


def _of_model(
    found: alpaca_eval.Verdicts,
    expected: Sequence[str] | None,
    difficulty: Difficulty | None,
    weights: Weights | None,
    own: Mapping[str, str],
    files: Files,
) -> Row:
    """`own`: the reference and the judge of the benchmark's leaderboard."""
    # Without prompts a row whose difficulty is not known is refused: it may well be the benchmark's.
    verdicts = found if files.prompts is None or expected is None else found.among(expected)
    if np.isnan(verdicts.preferences).all():
        raise UserError(f"{files.verdicts}: no row of {found.model or 'the model'} has a preference")
    there = set(verdicts.instructions)
    missing = [each for each in expected or () if each not in there]
    here = alpaca_eval.length_controlled_here(verdicts)
    controlled = None if difficulty is None else alpaca_eval.length_controlled(verdicts, difficulty, weights)
    numbers: Row = {
        "model": found.model,
        "reference": found.reference,
        "annotator": found.annotator,
        "instructions": None if expected is None else len(expected),
        "without_row": len(missing),
        "without_instruction": len(found.instructions) - len(verdicts.instructions),
        "unreadable": int(np.isnan(verdicts.preferences).sum()),
        "duplicates": found.duplicates,
        "identical": verdicts.identical,
        **asdict(alpaca_eval.win_rate(verdicts.preferences)),
        "characters": float(verdicts.model_characters.mean()),
        "reference_characters": float(verdicts.reference_characters.mean()),
        "length_controlled_winrate": None if controlled is None else controlled.win_rate,
        "length_controlled": None if controlled is None else _details(controlled),
        "length_controlled_here": {
            "win_rate": None if here.win_rate is None else 100 * here.win_rate,
            "ci95": None if here.ci95 is None else [100 * here.ci95[0], 100 * here.ci95[1]],
            "unknown": here.unknown,
        },
    }
    remarks = _remarks(numbers, missing, controlled, own)
    if files.weights is not None and weights is None:
        remarks.append(f"{files.weights} has no weights of this model")
    return {**numbers, "remarks": remarks}


def _details(controlled: LengthControlled) -> Row:
    return {key: value for key, value in asdict(controlled).items() if key != "win_rate"}


def _remarks(
    numbers: Row, missing: Sequence[str], controlled: LengthControlled | None, own: Mapping[str, str]
) -> list[str]:
    said = [
        f"the {role} is not {name}: no number of the leaderboard compares with these"
        for role, name in own.items()
        if numbers[role] not in (None, name)
    ]
    if missing:
        have = "has" if len(missing) == 1 else "have"
        said.append(
            f"{len(missing)} of {numbers['instructions']} instructions {have} no row, such as {missing[0]!r:.80}; "
            "n is what the win-rate is of"
        )
    if numbers["without_instruction"]:
        left_out = _counted(numbers["without_instruction"], "row is", "rows are")
        said.append(f"{left_out} left out: the benchmark has no such instruction")
    if numbers["unreadable"]:
        unread = _counted(numbers["unreadable"], "row has no preference and is", "rows have no preference and are")
        said.append(f"{unread} left out of the win-rate")
    if controlled is None:
        said.append("length_controlled_here is another number than AlpacaEval 2's, and does not compare with it")
    elif controlled.win_rate is None:
        said.append(
            "without_gamed_rows is another number than AlpacaEval 2's, of 29 published ones 1.0 points off on average "
            "and 2.5 at most; length_controlled_here is another still"
        )
    elif controlled.made_by != PUBLISHED:
        said.append(
            "the length-controlled win-rate is fitted here, about 0.01 points from what AlpacaEval's solver finds"
        )
    elif controlled.by_instruction != controlled.win_rate:
        said.append(
            "AlpacaEval takes difficulties by a row's place in the file, so where rows are missing those of other "
            "instructions: length_controlled_winrate is that number, by_instruction has them by instruction"
        )
    return said


def _mt_bench(files: Files) -> list[Row]:
    questions = None if files.prompts is None else read_questions(files.prompts)
    return [_of_ratings(each) for each in mt_bench.results(read_judgments(files.verdicts), questions)]


def _of_ratings(found: mt_bench.Result) -> Row:
    said = []
    if found.score and not found.categories:
        said.append("--prompts says which category a question is of")
    if found.unreadable:
        one, many = "judging has no rating from 1 to 10 and is", "judgings have no rating from 1 to 10 and are"
        said.append(f"{_counted(len(found.unreadable), one, many)} left out")
    if found.missing:
        said.append(f"{_counted(len(found.missing), 'answer has', 'answers have')} no judging")
    if found.score and abs(found.score.by_answer - found.score.mean) > 1e-9:
        said.append(
            "answers were judged unequally often, and those with more ratings weigh more, as in show_result.py; each "
            f"counting once, the score is {found.score.by_answer:.4f}"
        )
    if found.copies:
        one, many = "record is left out: it repeats", "records are left out: they repeat"
        said.append(f"{_counted(found.copies, one, many)} another with its time stamp")
    return {**asdict(found), "remarks": said}


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _ifeval(files: Files) -> list[Row]:
    if files.prompts is None:
        raise UserError("--benchmark ifeval: --prompts has to hold what each response was asked for (input_data.jsonl)")
    return [ifeval.measure_files(files.verdicts, files.prompts).to_json()]


BENCHMARKS = {
    "alpaca-eval-1": Benchmark(partial(_alpaca_eval, "text_davinci_003", "alpaca_eval_gpt4"), ("prompts",)),
    "alpaca-eval-2": Benchmark(
        partial(_alpaca_eval, "gpt4_1106_preview", "weighted_alpaca_eval_gpt4_turbo"),
        ("prompts", "difficulty", "weights"),
    ),
    "mt-bench": Benchmark(_mt_bench, ("prompts",)),
    "ifeval": Benchmark(_ifeval, ("prompts",)),
}
"""By what `--benchmark` calls it."""
