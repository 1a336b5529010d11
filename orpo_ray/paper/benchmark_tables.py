"""Benchmarks' numbers beside the paper's: AlpacaEval (Table 1), IFEval (Table 6), MT-Bench."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orpo_ray.config import EvaluationConfig
from orpo_ray.paper import published
from orpo_ray.paper.cells import METHODS, percent, source
from orpo_ray.paper.outcomes import Outcomes
from orpo_ray.paper.stages import Place
from orpo_ray.paper.table import Cell, Number, Table
from orpo_ray.paper.verdicts import Word, holds, same_number
from orpo_ray.report.leaderboard_tables import TITLES as BENCHMARKS
from orpo_ray.report.leaderboard_tables import AlpacaEval, BenchmarkRow, Ifeval, MtBench, Rate
from orpo_ray.statistics.seeds import Interval

_OF_PAPER = (
    "A model under benchmarks.B.evaluation.models that is called as one of the paper's (mistral-orpo-beta) is held "
    "against its number; other models need not have the same."
)


@dataclass(frozen=True)
class _Measured:
    """One number of a benchmark's row."""

    ours: Interval
    """Over prompts."""
    error: float | None = None
    """Standard error, where the benchmark gives one."""


def _percent(value: float) -> str:
    return percent(value, 2)


@dataclass(frozen=True)
class _Column:
    title: str
    measure: str
    """The benchmark that it is of."""
    quantity: str
    take: Callable[[BenchmarkRow], _Measured | None]
    show: Callable[[float], str] = _percent


@dataclass(frozen=True)
class _Spec:
    """A table of benchmarks: its columns, and the paper's rows of as many numbers."""

    name: str
    title: str
    columns: Sequence[_Column]
    printed: Mapping[str, Sequence[float]]
    """By model."""

    @property
    def measures(self) -> list[str]:
        return list(dict.fromkeys(column.measure for column in self.columns))

    def paper(self, model: str) -> Sequence[float | None]:
        """The paper's numbers of a model that is called as one of its own."""
        found = {_spelled(name): values for name, values in self.printed.items()}
        return found.get(_spelled(model), [None] * len(self.columns))


@dataclass(frozen=True)
class _Whose:
    model: str
    judge: str
    round: int

    def named(self, place: Place) -> str:
        """`ORPO (hh-350M-alpaca, by gpt)`."""
        by = f", by {self.judge}" if self.judge else ""
        round = f", round {self.round + 1}" if self.round else ""
        return f"{METHODS.get(self.model, self.model)} ({place.label}{by}{round})"


def alpaca_table(outcomes: Outcomes) -> Table:
    """Table 1: AlpacaEval 1.0 and 2.0."""
    columns = [
        _Column("AlpacaEval 1.0", "alpaca-eval-1", "alpaca_eval_1_win_rate", _win_rate),
        _Column("AlpacaEval 2.0", "alpaca-eval-2", "alpaca_eval_2_win_rate", _win_rate),
    ]
    printed = {each.model: (each.first, each.second) for each in published.ALPACA}
    return _table(outcomes, _Spec("table-1", "Table 1. AlpacaEval: win-rates, in %", columns, printed))


def ifeval_table(outcomes: Outcomes) -> Table:
    """Table 6: IFEval."""
    titles = {
        "prompt_strict": "prompts, strict", "prompt_loose": "prompts, loose",
        "instruction_strict": "instructions, strict", "instruction_loose": "instructions, loose",
    }  # fmt: skip
    columns = [_Column(title, "ifeval", f"ifeval_{name}", _followed(name)) for name, title in titles.items()]
    printed = {each.model: [getattr(each, name) for name in titles] for each in published.IFEVAL}
    return _table(outcomes, _Spec("table-6", "Table 6. IFEval: followed, in %", columns, printed))


def mt_bench_table(outcomes: Outcomes) -> Table:
    """The scores that Figure 10 shows by category."""
    columns = [_Column("Score", "mt-bench", "mt_bench_score", _score, "{:.2f}".format)]
    printed = {model: (score,) for model, score in published.MT_BENCH.items()}
    return _table(outcomes, _Spec("mt-bench", "MT-Bench: scores from 1 to 10", columns, printed))


def _win_rate(row: BenchmarkRow) -> _Measured | None:
    if not isinstance(row, AlpacaEval):
        return None
    value, low, high = (number / 100 for number in (row.win_rate, *row.ci95))
    error = None if row.standard_error is None else row.standard_error / 100
    return _Measured(Interval(value, low, high, (value,), row.n), error)


def _followed(name: str) -> Callable[[BenchmarkRow], _Measured | None]:
    def take(row: BenchmarkRow) -> _Measured | None:
        if not isinstance(row, Ifeval):
            return None
        found: Rate = getattr(row, name)
        low, high = found.ci95
        return _Measured(Interval(found.rate, low, high, (found.rate,), found.n))

    return take


def _score(row: BenchmarkRow) -> _Measured | None:
    if not isinstance(row, MtBench) or row.score is None:
        return None
    low, high = row.score.ci95
    return _Measured(Interval(row.score.mean, low, high, (row.score.mean,), 0))


def _table(outcomes: Outcomes, spec: _Spec) -> Table:
    """Rows of ours, then the paper's; where no benchmark of the configuration is of the table, a row that says so."""
    rows: list[tuple[Cell, ...]] = []
    numbers: list[Number] = []
    notes: list[str] = []
    places = [place for place in outcomes.benchmarks if set(spec.measures) & set(_measures(outcomes, place))]
    for place in places:
        if why := outcomes.missing(place):
            rows.append((Cell(place.label), *[_not_run(why)] * len(spec.columns)))
            notes.append(f"Not run: {place.label}: {why}.")
        for whose, found in _by_model(outcomes.benchmark(place), spec.measures).items():
            cells = [Cell(whose.named(place))]
            for column, paper in zip(spec.columns, spec.paper(whose.model), strict=True):
                one = column.take(found[column.measure]) if column.measure in found else None
                if one is None:
                    cells.append(_not_run(f"{place.label} has no number of {BENCHMARKS[column.measure]} of it"))
                else:
                    cells.append(_cell(outcomes, place, column, one, paper))
                    numbers.append(_number(outcomes, place, column, one, paper, whose))
            rows.append(tuple(cells))
    if not places:
        why = f"no benchmark of the configuration measures {' or '.join(BENCHMARKS[each] for each in spec.measures)}"
        rows.append((Cell("ours"), *[_not_run(why)] * len(spec.columns)))
        notes.append(f"Not run: {why}.")
    for model, values in spec.printed.items():
        pairs = list(zip(spec.columns, values, strict=True))
        rows.append((Cell(f"{model} (the paper's)"), *(Cell(column.show(value), True) for column, value in pairs)))
        numbers += [Number(column.quantity, method=model, paper=value) for column, value in pairs]
    titles = ("Model", *(column.title for column in spec.columns))
    return Table(spec.name, spec.title, titles, tuple(rows), tuple(numbers), (*notes, _OF_PAPER))


def _measures(outcomes: Outcomes, place: Place) -> Sequence[str]:
    config = outcomes.stages.configs[place]
    return config.measures if isinstance(config, EvaluationConfig) else ()


def _by_model(
    found: Mapping[str, Sequence[BenchmarkRow]], measures: Sequence[str]
) -> dict[_Whose, dict[str, BenchmarkRow]]:
    """By model, judge and round the row of each benchmark."""
    every: dict[_Whose, dict[str, BenchmarkRow]] = {}
    for measure in measures:
        for row in found.get(measure, ()):
            whose = _Whose(row.model, "" if isinstance(row, Ifeval) else row.judge, row.round)
            every.setdefault(whose, {})[measure] = row
    return every


def _not_run(why: str) -> Cell:
    return Cell(Word.NOT_RUN.value, verdict=Word.NOT_RUN.value, why=why)


def _cell(outcomes: Outcomes, place: Place, column: _Column, one: _Measured, paper: float | None) -> Cell:
    show, ours = column.show, one.ours
    text = show(ours.mean) + ("" if one.error is None else f" ({show(one.error)})")
    details = [f"{show(ours.low)} to {show(ours.high)}"]
    word = why = ""
    if paper is not None:
        details.append(f"paper {show(paper)}")
        verdict = same_number(ours, paper)
        word, why = verdict.word.value, verdict.why
    return Cell(text, True, tuple(details), word, why, (source(outcomes, place, "evaluation"),))


def _number(
    outcomes: Outcomes, place: Place, column: _Column, one: _Measured, paper: float | None, whose: _Whose
) -> Number:
    ours = one.ours
    return Number(
        column.quantity, data=place.data, size=place.size, method=whose.model, judge=whose.judge,
        seed=str(outcomes.stages.config.seeds[0]), value=ours.mean, sd=one.error, low=ours.low, high=ours.high,
        prompts=ours.prompts or None, round=whose.round + 1, paper=paper,
        verdict="" if paper is None else same_number(ours, paper).word.value,
        holds_paper=None if paper is None else holds(ours, paper), folder=outcomes.link(place),
    )  # fmt: skip


def _spelled(model: str) -> str:
    """Letters and digits alone, in which `mistral-orpo-beta` is Mistral-ORPO-β."""
    latin = model.lower().replace("α", "alpha").replace("β", "beta").replace("λ", "lambda")
    return re.sub(r"[^a-z0-9]", "", latin)
