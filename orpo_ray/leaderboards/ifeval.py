"""IFEval (Zhou et al., arXiv 2311.07911): does a response do what its prompt asks of its form?

Each prompt holds one to three instructions of 25 kinds, which `lm-eval`'s own checkers verify; no judge is asked. An
instruction is followed *strictly* where its checker finds so in the response as it is, *loosely* where it does in that
or one of seven variants: without the first line, the last or both, each with and without asterisks. The four numbers
are the share of prompts all of whose instructions are followed and the share of instructions, strictly and loosely.

A prompt without a response counts as one with an empty response: not followed, and named. A share of those that have
one would be a number of other prompts, and the public one is of all.

The checkers are applied in the order of `lm-eval`'s `process_results`, and so give what it gives with `langdetect` and
Python's generator seeded with 0; `ifeval_checkers` says what else is held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.files import Response, Row, read_responses, records, write_lines
from orpo_ray.leaderboards.ifeval_checkers import SEED, Checker, Checkers, Found, open_checkers, versions
from orpo_ray.parsing import kind, member
from orpo_ray.statistics.winrate import prompt_interval

Key = int | str
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Instruction:
    kind: str
    """`punctuation:no_comma` and the like: its id in the file of prompts."""
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    key: Key
    text: str
    instructions: tuple[Instruction, ...]
    location: str = ""
    """Where it was read, for messages."""


@dataclass(frozen=True)
class Rate:
    followed: int
    n: int
    rate: float
    """`followed / n`."""
    ci95: tuple[float, float]
    """Bootstrap over prompts: the instructions of a prompt are not independent."""


@dataclass(frozen=True)
class Place:
    """An instruction of a prompt."""

    key: Key
    index: int
    """In the prompt, from 0: one may ask for two things of a kind."""
    instruction: str


@dataclass(frozen=True)
class Listed(Place):
    """One of which something is so, taken strictly, loosely, or both."""

    strict: bool
    loose: bool


@dataclass(frozen=True)
class Drawn(Place):
    """An argument that its checker does not take, and what it checked in its place, drawn anew for the loose number."""

    given: Mapping[str, Any]
    strict: Mapping[str, Any]
    loose: Mapping[str, Any]


@dataclass(frozen=True)
class IfevalResult:
    prompt_strict: Rate
    instruction_strict: Rate
    prompt_loose: Rate
    instruction_loose: Rate
    kinds: Mapping[str, Mapping[str, int]]
    """Of each kind of instruction, by name: `n`, and how many were followed, `strict` and `loose`."""
    missing: tuple[Key, ...]
    """Prompts without a response, whose instructions count as not followed."""
    without_prompt: int
    """Responses to none of the prompts, left out."""
    empty: tuple[Key, ...]
    """Prompts with an empty response, which follows nothing."""
    undetected: tuple[Listed, ...]
    """Followed for no other reason than that no language was found in the response."""
    too_deep: tuple[Listed, ...]
    """Not followed, since the response is JSON nested deeper than Python reads: `lm-eval` ends there with an error."""
    drawn: tuple[Drawn, ...]
    failures: tuple[Listed, ...]
    """Every instruction that was not followed."""
    checkers: Mapping[str, str | int]
    """Versions of the packages that decide, and the seed."""

    @property
    def remarks(self) -> list[str]:
        """What a reader must know before comparing, in sentences."""
        n = self.prompt_strict.n
        told: dict[str, Sequence[Key]] = {
            f"{len(self.missing)} of {n} prompts have no response, and count as not followed": self.missing,
            f"{len(self.empty)} of {n - len(self.missing)} responses are empty, and follow nothing": self.empty,
            f"{len(self.undetected)} instructions count as followed only since langdetect found no language": [
                each.key for each in self.undetected
            ],
            f"{len(self.too_deep)} instructions count as not followed since the response is nested deeper than Python "
            "reads JSON, where lm-eval would end with an error": [each.key for each in self.too_deep],
            f"{len(self.drawn)} instructions have an argument that lm-eval's checkers replace by one drawn at random "
            f"(seed {SEED}), listed under drawn": [each.key for each in self.drawn],
        }
        said = [f"{remark}: {_named(keys)}" for remark, keys in told.items() if keys]
        if self.without_prompt:
            said.append(f"{self.without_prompt} responses are left out: they are to none of the prompts")
        return said

    def to_json(self) -> Row:
        return {**asdict(self), "remarks": self.remarks}


def measure(
    responses: Iterable[Response],
    prompts: Sequence[Prompt],
    *,
    source: str = "responses",
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> IfevalResult:
    """The numbers of one response to each prompt. `source` names the responses in messages; `seed` draws the intervals'
    `resamples`.

    Raises `UserError` where a prompt has two responses that differ, where there are some and none is to a prompt, where
    an instruction has no checker or not the arguments that it needs, and where `lm-eval` is not installed.
    """
    texts = _by_prompt(responses, source)
    answered = [prompt for prompt in prompts if prompt.text in texts]
    if texts and not answered:
        raise UserError(f"{source}: none of the {len(texts)} responses is to one of the {len(prompts)} prompts")
    with open_checkers() as checkers:
        checked = [_check(checkers, prompt, texts.get(prompt.text, "")) for prompt in prompts]
    strict = [[each.strict.followed for each in prompt] for prompt in checked]
    loose = [[each.loose.followed for each in prompt] for prompt in checked]
    every = [each for prompt in checked for each in prompt]
    return IfevalResult(
        prompt_strict=_rate([[all(prompt)] for prompt in strict], resamples, seed),
        instruction_strict=_rate(strict, resamples, seed),
        prompt_loose=_rate([[all(prompt)] for prompt in loose], resamples, seed),
        instruction_loose=_rate(loose, resamples, seed),
        kinds=_kinds(every),
        missing=tuple(prompt.key for prompt in prompts if prompt.text not in texts),
        without_prompt=len(texts.keys() - {prompt.text for prompt in prompts}),
        empty=tuple(prompt.key for prompt in answered if not texts[prompt.text].strip()),
        undetected=_listed(every, lambda found: found.undetected),
        too_deep=_listed(every, lambda found: found.too_deep),
        drawn=tuple(each.drawn for each in every if each.drawn),
        failures=_listed(every, lambda found: not found.followed),
        checkers={**versions(), "seed": SEED},
    )


def require_checkers(prompts: Sequence[Prompt]) -> None:
    """Raises `UserError`, before there are responses, where `measure` would because of the prompts or of `lm-eval`."""
    with open_checkers() as checkers:
        for prompt in prompts:
            for i in range(len(prompt.instructions)):
                _checker(checkers, prompt, i)


def measure_files(responses: Path, prompts: Path) -> IfevalResult:
    """Of IFEval's own files: `{"prompt", "response"}` for each prompt, and `input_data.jsonl`. Raises as `measure`."""
    asked = read_prompts(prompts)
    return measure(read_responses(responses), asked, source=str(responses))


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """As `input_data.jsonl`, which `read_prompts` reads."""
    write_lines(path, (
        {"key": prompt.key, "prompt": prompt.text, "instruction_id_list": [each.kind for each in prompt.instructions],
         "kwargs": [dict(each.arguments) for each in prompt.instructions]}
        for prompt in prompts
    ))  # fmt: skip


def read_prompts(path: Path) -> list[Prompt]:
    """Of `input_data.jsonl`: `{"key", "prompt", "instruction_id_list", "kwargs"}`.

    Raises `UserError`, naming the record, where one is not so, or has the key or the prompt of another.
    """
    found = []
    for location, row in records(path):
        try:
            found.append(prompt_of(location, row))
        except ValueError as error:
            raise UserError(f"{location}: {error}") from None
    for name, values in (("key", [each.key for each in found]), ("prompt", [each.text for each in found])):
        first = dict[Any, str]()
        for value, prompt in zip(values, found, strict=True):
            if value in first:
                raise UserError(f"{prompt.location}: has the same {name} as {first[value]}")
            first[value] = prompt.location
    return found


@dataclass(frozen=True)
class _Checked:
    """What was found of one instruction of a prompt."""

    place: Place
    strict: Found
    loose: Found
    drawn: Drawn | None


def _check(checkers: Checkers, prompt: Prompt, response: str) -> list[_Checked]:
    """Of each instruction. All strictly before all loosely: the order decides what is drawn."""
    numbers = range(len(prompt.instructions))
    strict = [_checker(checkers, prompt, i) for i in numbers]
    strictly = [_find(strict[i], prompt, i, [response]) for i in numbers]
    loose = [_checker(checkers, prompt, i) for i in numbers]
    found = []
    for i, instruction in enumerate(prompt.instructions):
        place = Place(prompt.key, i, instruction.kind)
        drawn = {**strict[i].drawn, **loose[i].drawn}
        given = {name: instruction.arguments[name] for name in drawn}
        # The response is itself the first of the variants.
        surely = strictly[i] == Found(True) and not drawn
        loosely = strictly[i] if surely else _find(loose[i], prompt, i, _variants(response))
        told = Drawn(**vars(place), given=given, strict=strict[i].drawn, loose=loose[i].drawn) if drawn else None
        found.append(_Checked(place, strictly[i], loosely, told))
    return found


def _checker(checkers: Checkers, prompt: Prompt, index: int) -> Checker:
    instruction = prompt.instructions[index]
    try:
        return checkers.checker(instruction.kind, instruction.arguments)
    except ValueError as error:
        raise _at(prompt, index, error) from None


def _find(checker: Checker, prompt: Prompt, index: int, texts: Sequence[str]) -> Found:
    try:
        return checker.find(texts)
    except ValueError as error:
        raise _at(prompt, index, error) from None


def _at(prompt: Prompt, index: int, error: ValueError) -> UserError:
    where = f"{prompt.location}: " if prompt.location else ""
    return UserError(f"{where}prompt {prompt.key}, instruction {prompt.instructions[index].kind}: {error}")


def _variants(response: str) -> list[str]:
    """The eight texts of which one has to do, each once."""
    lines = response.split("\n")
    cut = [response, *("\n".join(each).strip() for each in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(each.replace("*", "") for each in cut)]))


def _by_prompt(responses: Iterable[Response], source: str) -> dict[str, str]:
    found = dict[str, str]()
    for each in responses:
        if found.setdefault(each.prompt, each.response) != each.response:
            raise UserError(f"{source}: has two different responses to the prompt {each.prompt!r:.80}")
    return found


def _listed(every: Sequence[_Checked], so: Callable[[Found], bool]) -> tuple[Listed, ...]:
    both = [(each.place, so(each.strict), so(each.loose)) for each in every]
    return tuple(Listed(**vars(place), strict=strict, loose=loose) for place, strict, loose in both if strict or loose)


def _rate(followed: Sequence[Sequence[bool]], resamples: int, seed: int) -> Rate:
    """`followed`: of each prompt, what counts of it."""
    sums = np.array([sum(each) for each in followed], dtype=np.float64)
    counts = np.array([len(each) for each in followed], dtype=np.float64)
    share = float(sums.sum() / counts.sum())
    return Rate(int(sums.sum()), int(counts.sum()), share, prompt_interval(sums, counts, resamples, seed))


def _kinds(every: Sequence[_Checked]) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for each in sorted(every, key=lambda each: each.place.instruction):
        counts = kinds.setdefault(each.place.instruction, {"n": 0, "strict": 0, "loose": 0})
        counts["n"] += 1
        counts["strict"] += each.strict.followed
        counts["loose"] += each.loose.followed
    return kinds


def prompt_of(location: str, row: Row) -> Prompt:
    """Of a record. Raises `ValueError` where it is none of IFEval's."""
    kinds, arguments = member(row, "instruction_id_list", list), member(row, "kwargs", list)
    if not kinds or not all(isinstance(each, str) for each in kinds):
        raise ValueError("instruction_id_list should be texts, at least one")
    if len(kinds) != len(arguments):
        raise ValueError(f"has {len(kinds)} instructions, and kwargs of {len(arguments)}")
    for each in arguments:
        if not isinstance(each, dict):
            raise ValueError(f"kwargs should be objects, and one is {kind(each)}")
        if not all(math.isfinite(value) for value in each.values() if isinstance(value, float)):
            raise ValueError("kwargs should hold finite numbers, and one is not")
    return Prompt(
        key=member(row, "key", int, str),
        text=member(row, "prompt", str),
        instructions=tuple(Instruction(*each) for each in zip(kinds, arguments, strict=True)),
        location=location,
    )


def _named(keys: Sequence[Key]) -> str:
    shown = ", ".join(str(key) for key in keys[:10])
    return f"{shown} and {len(keys) - 10} more" if len(keys) > 10 else shown
