"""The files in which AlpacaEval, MT-Bench and IFEval hold questions, answers and verdicts: written, and read.

What is written can be read by their own tools, has neither time nor machine in it, and is ASCII; a name that ends in
`.gz` is compressed. What is read may be a JSON array, JSON lines or a table, compressed or not, and is checked: each
reader raises `UserError`, naming the file and the record, where one is not what it should be, and where there is none.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orpo_ray.atomic import new_file
from orpo_ray.config.data import MAX_RECORD_CHARACTERS
from orpo_ray.data.outputs import LOGGED, of_logged_sample
from orpo_ray.data.readers import read_file
from orpo_ray.data.records import bytes_of
from orpo_ray.errors import UserError
from orpo_ray.parsing import NUMBER, kind, member

Row = dict[str, Any]
T = TypeVar("T")
Number = int | str
"""Of a question of MT-Bench: 81 to 160, or what another benchmark calls its own."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A model's answer to an instruction of AlpacaEval: `model_outputs.json`."""

    instruction: str
    output: str
    generator: str
    """The model."""
    dataset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What a judge made of two answers to an instruction of AlpacaEval: `annotations.json`."""

    instruction: str
    output_1: str
    """The reference's."""
    output_2: str
    """The model's."""
    preference: float | None
    """1: the reference's is the better, 2: the model's, and between; None: not told."""
    generator_1: str | None = None
    generator_2: str | None = None
    annotator: str | None = None
    """Names of the reference, the model and the judge; None where the file has none."""
    dataset: str | None = None
    raw_completion: Any = None
    """What the judge said: text, or log-probs as OpenAI's servers give them."""
    location: str = field(default="", compare=False)
    """Where it was read, for messages."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of MT-Bench and what is asked after its answer: `question.jsonl`."""

    question_id: Number
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answers to all turns of a question of MT-Bench: `model_answer/MODEL.jsonl`, and reference answers."""

    question_id: Number
    model: str
    choices: tuple[tuple[str, ...], ...]
    """Of each time that it was asked, the answers in order of turns. MT-Bench's own tools judge the first."""


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """What a judge made of an answer of MT-Bench: `model_judgment/JUDGE_single.jsonl`."""

    question_id: Number
    model: str
    turn: int
    """1, 2, and so on."""
    score: float | None
    """As the file has it, -1 for one that could not be read; None: null, or none."""
    judgment: str | None = None
    """The judge's words."""
    judge: str | None = None
    judge_prompt: str | None = None
    """The name of the prompt that it was asked with."""
    user_prompt: str | None = None
    tstamp: float | None = None
    location: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class Response:
    """A model's response to a prompt of IFEval: `input_response_data.jsonl`."""

    prompt: str
    response: str


def write_outputs(path: Path, outputs: Iterable[Output]) -> None:
    """As a JSON array, which `alpaca_eval --model_outputs` takes."""
    _write_array(path, (_without_none(vars(output), "dataset") for output in outputs))


def read_outputs(path: Path) -> list[Output]:
    return _read(path, _output)


def write_annotations(path: Path, annotations: Iterable[Annotation]) -> None:
    """As a JSON array; a preference that is not told is null, as AlpacaEval writes one."""
    optional = ("generator_1", "generator_2", "annotator", "dataset", "raw_completion", "location")
    rows = ({**vars(annotation), "location": None} for annotation in annotations)
    _write_array(path, (_without_none(row, *optional) for row in rows))


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """As JSON lines, which `gen_judgment.py` takes."""
    write_lines(path, ({
        "question_id": answer.question_id,
        "model_id": answer.model,
        "choices": [{"index": i, "turns": list(turns)} for i, turns in enumerate(answer.choices)],
    } for answer in answers))  # fmt: skip


def read_answers(path: Path) -> list[Answer]:
    return _read(path, _answer)


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    write_lines(path, ({**vars(question), "turns": list(question.turns)} for question in questions))


def read_questions(path: Path) -> list[Question]:
    """Raises `UserError` where two have the same number, too."""
    found = _read(path, _question)
    numbers = [question.question_id for question in found]
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UserError(f"{path}: has question {twice} twice")
    return found


def write_judgments(path: Path, judgments: Iterable[Judgment]) -> None:
    """As JSON lines, which `show_result.py --input-file` takes: what could not be read is -1 there."""
    write_lines(path, (_without_none({
        "question_id": judgment.question_id,
        "model": judgment.model,
        "judge": None if judgment.judge is None else [judgment.judge, judgment.judge_prompt or ""],
        "user_prompt": judgment.user_prompt,
        "judgment": judgment.judgment,
        "score": -1 if judgment.score is None else judgment.score,
        "turn": judgment.turn,
        "tstamp": judgment.tstamp,
    }, "judge", "user_prompt", "judgment", "tstamp") for judgment in judgments))  # fmt: skip


def read_judgments(path: Path) -> list[Judgment]:
    """Of ratings. Verdicts on pairs are refused: they make no score."""
    return _read(path, _judgment)


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    """As JSON lines, which `instruction_following_eval` takes."""
    write_lines(path, (vars(response) for response in responses))


def read_responses(path: Path) -> list[Response]:
    """Those in samples that `lm-eval` has logged, too (`samples_ifeval_DATE.jsonl`).

    Raises `UserError` where two are to the same prompt and differ: it has no place for a second round.
    """
    found = dict[str, Response]()
    for response in _read(path, _response):
        if found.setdefault(response.prompt, response) != response:
            raise UserError(f"{path}: has two different responses to the prompt {response.prompt!r:.80}")
    return list(found.values())


def of_round(label: str, round: int) -> str:
    """What the file of a label's round is called, counted from 0: no label has a `+`, so none is another's file."""
    return label if round == 0 else f"{label}+{round + 1}"


def records(path: Path) -> Iterator[tuple[str, Row]]:
    """Where each record of a file stands, and its fields. Raises `UserError` at one that cannot be read."""
    try:
        with path.open("rb") as handle:
            location = None
            for record in read_file(handle, str(path), itertools.count(), bytes_of(MAX_RECORD_CHARACTERS)):
                location = record.location
                if record.value is None:
                    raise UserError(f"{location}: {record.error}")
                yield location, record.value
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if location is None:
        raise UserError(f"{path}: holds no records")


def number(found: Row, key: str) -> float | None:
    """A finite number, or the text of one as tables have it; None for null, NaN and none. Raises `ValueError`."""
    value = found.get(key)
    if isinstance(value, str):
        try:
            value = float(value) if value.strip() else None
        except ValueError:
            raise ValueError(f"{key} should be a number, and is {value!r:.40}") from None
    if value is None:
        return None
    if type(value) not in NUMBER:
        raise ValueError(f"{key} should be a number, and is {kind(value)}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if math.isinf(value):
        raise ValueError(f"{key} should be a finite number, and is not")
    return None if math.isnan(value) else value


def instruction_of(row: Row) -> str:
    """Of a record of AlpacaEval; older ones have a part of it under `input`. Raises `ValueError`."""
    more = _text(row, "input")
    instruction: str = member(row, "instruction", str)
    return f"{instruction}\n\n{more}" if more else instruction


def annotation(location: str, row: Row) -> Annotation:
    """A record of `annotations.json`. `preference` may be absent; 0, AlpacaEval's older sign for a draw, is 1.5.

    Raises `UserError`, naming the record.
    """
    return _checked(_annotation, location, row)


def _read(path: Path, made: Callable[[str, Row], T]) -> list[T]:
    return [_checked(made, location, row) for location, row in records(path)]


def _checked(made: Callable[[str, Row], T], location: str, row: Row) -> T:
    try:
        return made(location, row)
    except ValueError as error:
        raise UserError(f"{location}: {error}") from None


def _text(row: Row, key: str) -> str | None:
    return None if row.get(key) is None else member(row, key, str)


def _output(_: str, row: Row) -> Output:
    return Output(
        instruction=instruction_of(row),
        output=member(row, "output", str),
        generator=member(row, "generator", str),
        dataset=_text(row, "dataset"),
    )


def _annotation(location: str, row: Row) -> Annotation:
    if "output" in row and "output_2" not in row:
        raise ValueError("is a model's output and no verdict on two")
    preference = number(row, "preference")
    if preference is not None and preference != 0 and not 1 <= preference <= 2:
        raise ValueError(f"preference should be from 1 to 2, and is {preference:g}")
    return Annotation(
        instruction=instruction_of(row),
        output_1=member(row, "output_1", str),
        output_2=member(row, "output_2", str),
        preference=1.5 if preference == 0 else preference,
        generator_1=_text(row, "generator_1"),
        generator_2=_text(row, "generator_2"),
        annotator=_text(row, "annotator"),
        dataset=_text(row, "dataset"),
        raw_completion=row.get("raw_completion"),
        location=location,
    )


def _turns(row: Row) -> tuple[str, ...]:
    turns = member(row, "turns", list)
    if not turns or not all(isinstance(turn, str) for turn in turns):
        raise ValueError("turns should be texts, at least one")
    return tuple(turns)


def _number(row: Row) -> Number:
    found: Number = member(row, "question_id", int, str)
    return found


def _question(_: str, row: Row) -> Question:
    return Question(question_id=_number(row), category=member(row, "category", str), turns=_turns(row))


def _answer(_: str, row: Row) -> Answer:
    choices = member(row, "choices", list)
    if not choices or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError("choices should be objects with turns, at least one")
    return Answer(
        question_id=_number(row), model=member(row, "model_id", str), choices=tuple(_turns(each) for each in choices)
    )


def _judgment(location: str, row: Row) -> Judgment:
    if "model_1" in row or "g1_winner" in row:
        raise ValueError("is a verdict on a pair of answers; the score is made of ratings of single answers")
    if "score" not in row:
        raise ValueError("has no score")
    turn: int = member(row, "turn", int)
    if turn < 1:
        raise ValueError(f"turn should be 1 or more, and is {turn}")
    judge, judge_prompt = row.get("judge"), None
    if isinstance(judge, list):  # the judge's model, and the name of its prompt
        if len(judge) != 2 or not all(isinstance(part, str) for part in judge):
            raise ValueError("judge should be the names of a model and of a prompt")
        judge, judge_prompt = judge
    elif judge is not None and not isinstance(judge, str):
        raise ValueError(f"judge should be text or a list, and is {kind(judge)}")
    return Judgment(
        question_id=_number(row),
        model=member(row, "model", str),
        turn=turn,
        score=number(row, "score"),
        judgment=_text(row, "judgment"),
        judge=judge,
        judge_prompt=judge_prompt,
        user_prompt=_text(row, "user_prompt"),
        tstamp=number(row, "tstamp"),
        location=location,
    )


def _response(_: str, row: Row) -> Response:
    if LOGGED in row:
        prompt, response = of_logged_sample(row)
        return Response(prompt=prompt, response=response)
    return Response(prompt=member(row, "prompt", str), response=member(row, "response", str))


def _without_none(row: Row, *keys: str) -> Row:
    return {key: value for key, value in row.items() if value is not None or key not in keys}


def _write_array(path: Path, rows: Iterable[Row]) -> None:
    lines = [json.dumps(row, allow_nan=False) for row in rows]
    _write(path, "[\n" + ",\n".join(lines) + "\n]\n")


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """As JSON, a line each."""
    _write(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    content = text.encode("ascii")
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as new:
        new.write_bytes(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)
