"""Answers that were made elsewhere, found again by what they answer.

| a record | its answers |
|---|---|
| `instruction`, `output` (AlpacaEval), or `prompt`, `response` (IFEval) | one |
| `prompt`, `responses` | its elements, one a round |
| `question_id`, `choices: [{index, turns}]` (MT-Bench) | of each choice, one a round, those of all turns |

What is asked is compared as text, without white space around it; MT-Bench's by `question_id`. Where several prompts are
alike, the first record is of the first of them, and so on. Left out on purpose: guessing which of two answers counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orpo_ray.config.evaluation import OutputsConfig, PromptsConfig
from orpo_ray.data.formats import Turns
from orpo_ray.data.formats.messages import checked_text
from orpo_ray.data.prompts import Prompt, read_each, readable
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.responses import ResponseReader
from orpo_ray.errors import UserError
from orpo_ray.parsing import member

LOGGED = "filtered_resps"
"""What a record of `lm-eval`'s logged samples has: `samples_TASK_DATE.jsonl`."""
_NAMED = 3
"""Records that a remark names."""


@dataclass(frozen=True)
class Outputs:
    """What a file answers of the prompts that are asked."""

    answers: list[list[tuple[str, ...]]]
    """Of each prompt, of each round that there is, an answer to each turn that was answered."""
    remarks: list[str]
    """What of prompts and file has no partner, each in a sentence that goes on from whose file it is."""


@dataclass(frozen=True)
class _Output:
    location: str
    question: str
    """Its text, or the `question_id` that it has in its place."""
    by_id: bool
    rounds: list[tuple[str, ...]]


def read_outputs(
    asked: OutputsConfig, prompts: Sequence[Prompt], config: PromptsConfig, *, may_have_none: bool = False
) -> Outputs:
    """The answers in `asked.outputs` to `prompts`, which were read by `config`.

    Raises `UserError`, naming the record, for one that is no answer, for a second answer to the same prompt, and where
    none of the prompts is answered, unless that may be.
    """
    settings = PromptsConfig(
        source=asked.outputs, split=asked.split, system=config.system, on_bad_record=config.on_bad_record,
        max_record_characters=config.max_record_characters,
    )  # fmt: skip
    reader = ResponseReader(settings, as_messages=False)
    account = Account()

    def read(record: Record, value: dict[str, Any]) -> _Output:
        if LOGGED in value:
            return _logged(record, value)
        return _chosen(record, value) if "choices" in value else _responses(record, reader(value))

    outputs = read_each(settings, account, read, "answer", None)
    places = {
        True: _places([prompt.question_id for prompt in prompts]),
        False: _places([readable(prompt.as_found.prompt).strip() for prompt in prompts]),
    }
    repeated = next((name for name, found in places[True].items() if len(found) > 1), None)
    if repeated is not None and any(output.by_id for output in outputs):
        raise UserError(f"{asked.outputs}: {len(places[True][repeated])} prompts have the question_id {repeated!r:.40}")
    answers: list[list[tuple[str, ...]]] = [[] for _ in prompts]
    answered: dict[tuple[bool, str], list[str]] = {}
    unasked = []
    for output in outputs:
        found = places[output.by_id].get(output.question, [])
        before = answered.setdefault((output.by_id, output.question), [])
        if not found:
            unasked.append(output.location)
        elif len(before) == len(found):
            raise UserError(f"{output.location}: answers what {before[0]} answers, so which of the two counts?")
        elif answers[place := found[len(before)]]:
            raise UserError(f"{output.location}: answers {prompts[place].location}, as a record of another kind does")
        else:
            answers[place] = output.rounds
        before.append(output.location)
    if not any(answers) and not may_have_none:
        what = "question_id" if outputs[0].by_id else "prompt"
        raise UserError(
            f"{asked.outputs}: answers none of the {len(prompts)} prompts; its first {what} is "
            f"{outputs[0].question!r:.60}, theirs {(next(iter(places[outputs[0].by_id]), None))!r:.60}"
        )
    remarks = []
    if account.quarantined:
        reasons = ", ".join(f"{reason} {count}" for reason, count in account.quarantined.most_common())
        remarks.append(f"has {account.quarantined.total()} records that are no answers and were left out: {reasons}")
    if unasked:
        remarks.append(f"has {len(unasked)} answers to what is not asked here, which are left out ({_named(unasked)})")
    return Outputs(answers, remarks)


def missing(outputs: Outputs, prompts: Sequence[Prompt], rounds: int, turns: int) -> list[str]:
    """What of `rounds` answers to `turns` questions of each prompt is not there, or is more than that: remarks."""
    nowhere = "what is missing counts in none of its comparisons"
    remarks = []
    none = [prompt.location for prompt, found in zip(prompts, outputs.answers, strict=True) if not found]
    if none:
        remarks.append(f"has no answer to {len(none)} of {len(prompts)} prompts ({_named(none)}): {nowhere}")
    counts = Counter(len(found) for found in outputs.answers if found)
    if fewer := sum(count for number, count in counts.items() if number < rounds):
        most = max(number for number in counts if number < rounds)
        remarks.append(
            f"has {'an answer' if most == 1 else f'at most {most} answers'} to {fewer} prompts, where sampling.rounds "
            f"is {rounds}: {nowhere}"
        )
    if more := sum(count for number, count in counts.items() if number > rounds):
        remarks.append(f"has more answers to {more} prompts than sampling.rounds, {rounds}: the first are taken")
    lengths = Counter(len(texts) for found in outputs.answers for texts in found[:rounds])
    if fewer := sum(count for number, count in lengths.items() if number < turns):
        remarks.append(f"stops before turn {turns} in {fewer} answers: {nowhere}")
    if more := sum(count for number, count in lengths.items() if number > turns):
        remarks.append(f"goes on behind turn {turns} in {more} answers, which is left out (prompts.turns)")
    return remarks


def _places(names: Sequence[str | None]) -> Mapping[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name is not None:
            places.setdefault(name, []).append(place)
    return places


def _named(locations: Sequence[str]) -> str:
    more = len(locations) - _NAMED
    return ", ".join(locations[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _responses(record: Record, found: Any) -> _Output:
    question, chosen = found
    if chosen is not None:
        raise BadRecord("ranked answers", "a model's own are wanted, one or several that are none above the other")
    rounds: list[tuple[str, ...]] = [(_text(turns),) for turns in question.completions]
    return _Output(record.location, readable(question.prompt).strip(), False, rounds)


def _text(turns: Turns) -> str:
    if isinstance(turns, str):
        return turns
    if len(turns) > 1 or turns[0]["role"] != "assistant":
        raise BadRecord("more than an answer", "a message of the assistant's is wanted, and nothing else")
    return turns[0]["content"]


def of_logged_sample(value: dict[str, Any]) -> tuple[str, str]:
    """The prompt and the response, as it was checked, of a sample that `lm-eval` has logged of a task whose documents
    have a `prompt`, as IFEval's have. Raises `ValueError` for another, and for one with several responses."""
    doc, responses = member(value, "doc", dict), member(value, LOGGED, list)
    if len(responses) != 1 or not isinstance(responses[0], str):
        raise ValueError(f"{LOGGED} should hold one text")
    try:
        return member(doc, "prompt", str), responses[0]
    except ValueError as error:
        raise ValueError(f"doc: {error}") from None


def _logged(record: Record, value: dict[str, Any]) -> _Output:
    try:
        prompt, response = of_logged_sample(value)
    except ValueError as error:
        raise BadRecord("no answer", str(error)) from None
    return _Output(record.location, prompt.strip(), False, [(checked_text(response, LOGGED),)])


def _chosen(record: Record, value: dict[str, Any]) -> _Output:
    known_by, choices = value.get("question_id"), value["choices"]
    if isinstance(known_by, bool) or not isinstance(known_by, int | str):
        raise BadRecord("no question_id", "choices are found by it")
    if not isinstance(choices, list) or not choices:
        raise BadRecord("no answer", "choices is no list, or an empty one")
    rounds = []
    for i, choice in enumerate(choices):
        turns = choice.get("turns") if isinstance(choice, dict) else None
        if not isinstance(turns, list) or not turns:
            raise BadRecord("no answer", f"choices[{i}] has no turns")
        rounds.append(tuple(checked_text(text, f"choices[{i}].turns[{j}]") for j, text in enumerate(turns)))
    return _Output(record.location, str(known_by), True, rounds)
