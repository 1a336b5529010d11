"""Shapes of a question, two answers and a label that says which is better."""

from __future__ import annotations

from typing import Any

from orpo_ray.data.formats.comparison import Comparison, asked
from orpo_ray.data.formats.conversations import strength
from orpo_ray.data.formats.messages import Message, text_field, turn
from orpo_ray.data.formats.reading import Reading, number, unknown_label
from orpo_ray.data.records import BadRecord
from orpo_ray.errors import UserError


def webgpt(value: dict[str, Any], reading: Reading) -> Comparison:
    question = value.get("question")
    text = text_field(question, "full_text") if isinstance(question, dict) else text_field(value, "question")
    answers = [text_field(value, name) for name in ("answer_0", "answer_1")]
    return asked(text, answers, [number(value, name) for name in ("score_0", "score_1")])


def shp(value: dict[str, Any], reading: Reading) -> Comparison:
    answers = [text_field(value, name) for name in ("human_ref_A", "human_ref_B")]
    first = _one_of(value, "labels", (0, 1), reading)
    return asked(text_field(value, "history"), answers, [first, 1.0 - first])


def helpsteer2(value: dict[str, Any], reading: Reading) -> Comparison:
    answers = [text_field(value, name) for name in ("response_1", "response_2")]
    return asked(_turns(text_field(value, "prompt")), answers, strength(value, "preference_strength", reading))


_EXTRA = "<extra_id_1>"


def _turns(prompt: str) -> str | list[Message]:
    """HelpSteer2 writes earlier turns into its prompt, each behind a line `<extra_id_1>User` or `…Assistant`."""
    if _EXTRA not in prompt:
        return prompt
    first, *others = prompt.split(f"\n{_EXTRA}")
    turns = turn("user", first)
    for other in others:
        name, line, text = other.partition("\n")
        if name.strip() not in ("User", "Assistant") or not line:
            raise BadRecord("not a dialogue", f"{_EXTRA} is followed by neither User nor Assistant")
        turns += turn(name.strip().lower(), text)
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns.pop()
    if turns[-1]["role"] != "user":
        raise BadRecord("not a dialogue", "prompt ends with a turn of the assistant's")
    return turns


def pku_saferlhf(value: dict[str, Any], reading: Reading) -> Comparison:
    answers = [text_field(value, name) for name in ("response_0", "response_1")]
    labels = ("better_response_id", "safer_response_id")
    better, safer = (_one_of(value, name, (0, 1), reading) for name in labels)
    if reading.prefer is None and not reading.prompts_alone:
        raise UserError(
            "has two labels, better_response_id and safer_response_id; set prefer, beside format, to better, safer "
            "or both"
        )
    if better != safer and not reading.prompts_alone:
        if reading.prefer == "both":
            reading.none_wins("better and safer disagree")
        reading.account.noted[f"have another better answer than safer one; {reading.prefer} counts"] += 1
    second = safer if reading.prefer == "safer" else better
    return asked(text_field(value, "prompt"), answers, [1.0 - second, second])


def _one_of(value: dict[str, Any], column: str, labels: tuple[int, ...], reading: Reading) -> float:
    if value.get(column) in (None, ""):
        reading.none_wins("no winner")
        return 0.0
    found = number(value, column)
    if found not in labels:
        raise unknown_label(column, value[column])
    return found
