"""The numbers of AlpacaEval, MT-Bench and IFEval on an evaluation's page: a table each, among published numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from orpo_ray.errors import UserError
from orpo_ray.report.numbers import number, percent

Row = dict[str, str]
Interval = tuple[float, float]

TITLES = {"alpaca-eval-1": "AlpacaEval 1", "alpaca-eval-2": "AlpacaEval 2", "mt-bench": "MT-Bench", "ifeval": "IFEval"}
MOST_FAILURES = 200
"""Failed instructions of a model that a page lists; the file of numbers has all."""
SHOWN_PUBLISHED = 40


class Published(BaseModel):
    name: str
    numbers: dict[str, float]


class Leaderboard(BaseModel):
    """As `winrates.json` has it."""

    ranked_by: Literal["win_rate", "length_controlled_winrate", "score", "prompt_strict"]
    rows: list[dict[str, Any]]
    published: list[Published]


class _Here(BaseModel):
    win_rate: float | None
    ci95: Interval | None
    unknown: str | None


class AlpacaEval(BaseModel):
    """A model's numbers of AlpacaEval, in percent."""

    model: str
    judge: str
    round: int
    n: int
    win_rate: float
    standard_error: float | None
    ci95: Interval
    unreadable: int
    identical: int | None
    length_controlled_winrate: float | None
    length_controlled: dict[str, Any] | None
    length_controlled_here: _Here
    remarks: list[str]

    @property
    def numbers(self) -> dict[str, float | None]:
        return {"length_controlled_winrate": self.length_controlled_winrate, "win_rate": self.win_rate}


class Score(BaseModel):
    mean: Annotated[float, Field(validation_alias=AliasChoices("mean", "score"))]
    """`score`: in files of earlier versions."""
    ci95: Interval


class MtBench(BaseModel):
    """A model's ratings, from 1 to 10."""

    model: str
    judge: str
    round: int
    score: Score | None
    turns: dict[str, Score]
    categories: dict[str, Score]
    unreadable: list[dict[str, Any]]
    remarks: list[str]

    @property
    def numbers(self) -> dict[str, float | None]:
        return {"score": self.score.mean if self.score else None}


class Rate(BaseModel):
    followed: int
    n: int
    rate: float
    ci95: Interval


class _Failure(BaseModel):
    key: int | str
    instruction: str
    strict: bool
    loose: bool


class Ifeval(BaseModel):
    """How often a model followed its instructions, as fractions."""

    model: str
    round: int
    prompt_strict: Rate
    instruction_strict: Rate
    prompt_loose: Rate
    instruction_loose: Rate
    failures: list[_Failure]
    remarks: list[str]

    @property
    def numbers(self) -> dict[str, float | None]:
        names = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
        return {name: 100 * getattr(self, name).rate for name in names}


BenchmarkRow = AlpacaEval | MtBench | Ifeval


def sections(leaderboards: Mapping[str, Leaderboard], source: Path) -> list[dict[str, Any]]:
    """Of each benchmark its title, rows with published ones among them, their order, remarks, and failed instructions
    by model. Raises `UserError`, naming `source`, where the rows are none of the benchmark's."""
    sections = []
    for name, found in leaderboards.items():
        if name in _MAKERS and found.rows:
            with _told(name, source):
                made = _MAKERS[name](found)
            left_out = max(len(found.published) - SHOWN_PUBLISHED, 0)
            published = {"published": bool(found.published), "left_out": left_out}
            sections.append({"title": TITLES.get(name, name), **published, **made})
    return sections


def own_numbers(leaderboards: Mapping[str, Leaderboard], source: Path) -> dict[str, list[dict[str, Any]]]:
    """By benchmark, best first: `model`, `judge` where one judged, `round`, and the benchmark's own numbers as far as
    there are any, all but MT-Bench's in percent. Raises `UserError` as `sections` does."""
    every: dict[str, list[dict[str, Any]]] = {}
    for name, rows in benchmark_rows(leaderboards, source).items():
        rows.sort(key=lambda row: -(row.numbers.get(leaderboards[name].ranked_by) or 0))
        every[name] = [
            {key: value for key in ("model", "judge", "round") if (value := getattr(row, key, None)) is not None}
            | {key: value for key, value in row.numbers.items() if value is not None}
            for row in rows
        ]  # fmt: skip
    return every


def benchmark_rows(leaderboards: Mapping[str, Leaderboard], source: Path) -> dict[str, list[BenchmarkRow]]:
    """By benchmark that has any, a row for each model, judge and round. Raises `UserError` as `sections` does."""
    every: dict[str, list[BenchmarkRow]] = {}
    for name, found in leaderboards.items():
        if name in _ROWS and found.rows:
            with _told(name, source):
                every[name] = [_ROWS[name].model_validate(row) for row in found.rows]
    return every


@contextmanager
def _told(name: str, source: Path) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{source}: leaderboards.{name}.rows: {where}: {first['msg']}") from None


def _alpaca_eval(found: Leaderboard) -> dict[str, Any]:
    rows = [AlpacaEval.model_validate(row) for row in found.rows]
    table = [(getattr(row, found.ranked_by, None), {
        "model": row.model, "judge": row.judge, **_round(row.round, found),
        "win-rate": f"{row.win_rate:.2f}" + ("" if row.standard_error is None else f" ± {row.standard_error:.2f}"),
        "95% interval": _percents(row.ci95, 1),
        "length-controlled, AlpacaEval 2's": _or(row.length_controlled_winrate),
        "refitted without gamed rows": _or((row.length_controlled or {}).get("without_gamed_rows")),
        "length-controlled, ours": _here(row.length_controlled_here),
        "n": number(row.n),
        "unreadable": number(row.unreadable),
        "the same": number(row.identical),
    }) for row in rows]  # fmt: skip
    columns = {"win-rate": "win_rate", "length-controlled, AlpacaEval 2's": "length_controlled_winrate"}
    remarks = _said((f"{row.model}, by {row.judge}", row.round, row.remarks) for row in rows)
    order = {name: column for column, name in columns.items()}.get(found.ranked_by, "win-rate")
    return {"rows": _among(table, found, columns), "order": order, "remarks": remarks, "failures": []}


def _mt_bench(found: Leaderboard) -> dict[str, Any]:
    rows = [MtBench.model_validate(row) for row in found.rows]
    table = [(row.score.mean if row.score else None, {
        "model": row.model, "judge": row.judge, **_round(row.round, found),
        "score": _score(row.score),
        **{f"turn {turn}": _score(score) for turn, score in row.turns.items()},
        **{category: f"{score.mean:.2f}" for category, score in row.categories.items()},
        "unreadable": number(len(row.unreadable)),
    }) for row in rows]  # fmt: skip
    remarks = _said((f"{row.model}, by {row.judge}", row.round, [*row.remarks, *_unreadable(row)]) for row in rows)
    among = _among(table, found, {"score": "score"})
    return {"rows": among, "order": "score", "remarks": remarks, "failures": []}


def _unreadable(row: MtBench) -> list[str]:
    """Where, each place once."""
    turns: dict[Any, dict[int, None]] = {}
    for place in row.unreadable:
        turns.setdefault(place["question_id"], {})[place["turn"]] = None
    places = [f"{question} ({', '.join(map(str, sorted(own)))})" for question, own in turns.items()]
    return [f"unreadable, by question (and turn), are {', '.join(places[:MOST_FAILURES])}"] if places else []


def _ifeval(found: Leaderboard) -> dict[str, Any]:
    rows = [Ifeval.model_validate(row) for row in found.rows]
    table = [(100 * row.prompt_strict.rate, {
        "model": row.model, **_round(row.round, found),
        "prompts, strict": _rate(row.prompt_strict),
        "instructions, strict": _rate(row.instruction_strict),
        "prompts, loose": _rate(row.prompt_loose),
        "instructions, loose": _rate(row.instruction_loose),
        "prompts ": number(row.prompt_strict.n),
        "instructions ": number(row.instruction_strict.n),
    }) for row in rows]  # fmt: skip
    remarks = _said((row.model, row.round, row.remarks) for row in rows)
    failures = [
        (
            _named(row.model, row.round),
            len(row.failures),
            [
                {
                    "prompt": str(each.key), "instruction": each.instruction, "strictly": "no",
                    "loosely": "yes" if each.loose else "no",
                }
                for each in row.failures[:MOST_FAILURES]
            ],
        )
        for row in rows if row.failures
    ]  # fmt: skip
    return {
        "rows": _among(table, found, {"prompts, strict": "prompt_strict"}),
        "order": "prompts, strict",
        "remarks": remarks,
        "failures": failures,
    }


_MAKERS: dict[str, Callable[[Leaderboard], dict[str, Any]]] = {
    "alpaca-eval-1": _alpaca_eval, "alpaca-eval-2": _alpaca_eval, "mt-bench": _mt_bench, "ifeval": _ifeval,
}  # fmt: skip
_ROWS: dict[str, type[BenchmarkRow]] = {
    "alpaca-eval-1": AlpacaEval, "alpaca-eval-2": AlpacaEval, "mt-bench": MtBench, "ifeval": Ifeval,
}  # fmt: skip


def _among(own: Sequence[tuple[float | None, Row]], found: Leaderboard, columns: Mapping[str, str]) -> list[Row]:
    """Best first, those without the number last. Published ones say that they are, and have numbers in `columns`. All
    rows have the columns that any has: a model may have no rating in a category."""
    blank = dict.fromkeys((column for _, row in own for column in row), "–")
    own = [(rank, {**blank, **row}) for rank, row in own]
    published = [
        (entry.numbers.get(found.ranked_by),
         {**blank, "model": f"{entry.name} (published)",
          **{column: _or(entry.numbers.get(name)) for column, name in columns.items()}})
        for entry in found.published[:SHOWN_PUBLISHED]
    ]  # fmt: skip
    return [row for _, row in sorted([*own, *published], key=lambda each: (each[0] is None, -(each[0] or 0)))]


def _said(rows: Iterable[tuple[str, int, Sequence[str]]]) -> list[str]:
    """Each remark once, with whose it is and, where not all rounds have it, in which: `rows` of who, round, remarks."""
    rounds: dict[str, list[int]] = {}
    found: dict[str, dict[str, list[int]]] = {}
    for who, round, remarks in rows:
        rounds.setdefault(who, []).append(round)
        for remark in remarks:
            found.setdefault(remark, {}).setdefault(who, []).append(round)
    return [f"{_whom(theirs, rounds)}: {remark}." for remark, theirs in found.items()]


def _whom(theirs: Mapping[str, Sequence[int]], rounds: Mapping[str, Sequence[int]]) -> str:
    if len(rounds) > 1 and theirs == rounds:
        return "All"
    names = [
        who if own == rounds[who] else f"{who}, round {' and '.join(str(round + 1) for round in own)}"
        for who, own in theirs.items()
    ]
    return "; ".join(names)


def _round(round: int, found: Leaderboard) -> Row:
    """A column of its own where there is more than one."""
    return {"round": str(round + 1)} if any(row["round"] for row in found.rows) else {}


def _named(model: str, round: int) -> str:
    return model if round == 0 else f"{model}, round {round + 1}"


def _or(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percents(interval: Interval, digits: int) -> str:
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _here(found: _Here) -> str:
    if found.win_rate is None:
        return "cannot be told" if found.unknown else "–"
    return f"{found.win_rate:.2f}" + (f" ({_percents(found.ci95, 1)})" if found.ci95 else "")


def _score(found: Score | None) -> str:
    return "–" if found is None else f"{found.mean:.2f} ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})"


def _rate(found: Rate) -> str:
    return f"{percent(found.rate, 1)} ({100 * found.ci95[0]:.1f} to {100 * found.ci95[1]:.1f})"
