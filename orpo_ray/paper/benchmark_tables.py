"""Benchmarks' numbers of the paper remade beside the printed ones: AlpacaEval (Table 1), IFEval (Table 6), MT-Bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orpo_ray.config import EvaluationConfig
from orpo_ray.paper import published
from orpo_ray.paper.cells import METHODS, percent, source
from orpo_ray.paper.outcomes import Outcomes
from orpo_ray.paper.stages import Place
from orpo_ray.paper.table import NOT_RUN, Cell, Number, Table
from orpo_ray.report.leaderboard_tables import AlpacaEval, BenchmarkRow, Ifeval, MtBench
from orpo_ray.report.leaderboard_tables import TITLES as BENCHMARKS


@dataclass(frozen=True)
class _Measured:
    """One number of a benchmark's row."""

    value: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None


@dataclass(frozen=True)
class _Column:
    title: str
    measure: str
    """The benchmark that it is of."""
    quantity: str
    take: Callable[[BenchmarkRow], _Measured | None]
    show: Callable[[float], str] = percent


def alpaca_table(outcomes: Outcomes) -> Table:
    """Table 1: AlpacaEval 1.0 and 2.0."""
    columns = [
        _Column("AlpacaEval 1.0", "alpaca-eval-1", "alpaca_eval_1_win_rate", _alpaca),
        _Column("AlpacaEval 2.0", "alpaca-eval-2", "alpaca_eval_2_win_rate", _alpaca),
    ]
    printed = [(each.model, (each.first, each.second)) for each in published.ALPACA]
    note = "Win-rates, in %; in brackets the standard error. The judge is whoever the configuration names."
    return _of_benchmarks(outcomes, "table-1", "Table 1. AlpacaEval, in %", columns, printed, [note])


def ifeval_table(outcomes: Outcomes) -> Table:
    """Table 6: IFEval."""
    titles = {
        "prompt_strict": "prompts, strict", "prompt_loose": "prompts, loose",
        "instruction_strict": "instructions, strict", "instruction_loose": "instructions, loose",
    }  # fmt: skip
    columns = [_Column(title, "ifeval", f"ifeval_{name}", _followed(name)) for name, title in titles.items()]
    printed = [(each.model, tuple(getattr(each, name) for name in titles)) for each in published.IFEVAL]
    return _of_benchmarks(outcomes, "table-6", "Table 6. IFEval: followed, in %", columns, printed)


def mt_bench_table(outcomes: Outcomes) -> Table:
    """The scores that Figure 10 shows by category."""
    columns = [_Column("Score", "mt-bench", "mt_bench_score", _mt_bench, "{:.2f}".format)]
    printed = [(model, (score,)) for model, score in published.MT_BENCH.items()]
    return _of_benchmarks(outcomes, "mt-bench", "MT-Bench: scores from 1 to 10", columns, printed)


def _alpaca(row: BenchmarkRow) -> _Measured | None:
    if not isinstance(row, AlpacaEval):
        return None
    error = None if row.standard_error is None else row.standard_error / 100
    return _Measured(row.win_rate / 100, row.ci95[0] / 100, row.ci95[1] / 100, error)


def _followed(name: str) -> Callable[[BenchmarkRow], _Measured | None]:
    def take(row: BenchmarkRow) -> _Measured | None:
        return _Measured(getattr(row, name).rate, *getattr(row, name).ci95) if isinstance(row, Ifeval) else None

    return take


def _mt_bench(row: BenchmarkRow) -> _Measured | None:
    return _Measured(row.score.mean, *row.score.ci95) if isinstance(row, MtBench) and row.score else None


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


def _of_benchmarks(
    outcomes: Outcomes,
    name: str,
    title: str,
    columns: Sequence[_Column],
    printed: Sequence[tuple[str, Sequence[float]]],
    notes: Sequence[str] = (),
) -> Table:
    """Rows of ours, then the paper's; where no benchmark is of `columns`, one row that says so."""
    rows: list[tuple[Cell, ...]] = []
    numbers: list[Number] = []
    measures = list(dict.fromkeys(column.measure for column in columns))
    places = [place for place in outcomes.benchmarks if set(measures) & set(_measures(outcomes, place))]
    for place in places:
        if why := outcomes.missing(place):
            rows.append((Cell(place.label), *[_not_run(why)] * len(columns)))
        for whose, found in _by_model(outcomes.benchmark(place), measures).items():
            taken = [column.take(found[column.measure]) if column.measure in found else None for column in columns]
            cells = [
                _not_run(f"{BENCHMARKS[column.measure]} has no number of it")
                if one is None
                else _cell(column, one, outcomes, place)
                for column, one in zip(columns, taken, strict=True)
            ]
            rows.append((Cell(whose.named(place)), *cells))
            numbers += [
                _number(column, one, outcomes, place, whose)
                for column, one in zip(columns, taken, strict=True) if one is not None
            ]  # fmt: skip
    if not places:
        names = " or ".join(BENCHMARKS[measure] for measure in measures)
        rows.append((Cell("ours"), *[_not_run(f"no benchmark of the configuration measures {names}")] * len(columns)))
    for model, values in printed:
        cells = [Cell(column.show(value), numeric=True) for column, value in zip(columns, values, strict=True)]
        rows.append((Cell(f"{model} (the paper's)"), *cells))
        numbers += [
            Number(column.quantity, method=model, paper=value) for column, value in zip(columns, values, strict=True)
        ]
    titles = ("Model", *(column.title for column in columns))
    return Table(name, title, titles, tuple(rows), tuple(numbers), tuple(notes))


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
    return Cell(NOT_RUN, verdict=NOT_RUN, why=why)


def _cell(column: _Column, one: _Measured, outcomes: Outcomes, place: Place) -> Cell:
    sd = "" if one.sd is None else f" ({column.show(one.sd)})"
    interval = () if one.low is None or one.high is None else (f"{column.show(one.low)} to {column.show(one.high)}",)
    return Cell(column.show(one.value) + sd, True, interval, sources=(source(outcomes, place, "evaluation"),))


def _number(column: _Column, one: _Measured, outcomes: Outcomes, place: Place, whose: _Whose) -> Number:
    return Number(
        column.quantity, data=place.data, size=place.size, method=whose.model, judge=whose.judge,
        seed=str(outcomes.stages.config.seeds[0]), round=whose.round + 1, value=one.value, sd=one.sd, low=one.low,
        high=one.high, folder=outcomes.link(place),
    )  # fmt: skip
