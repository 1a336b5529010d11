"""Shapes that hold text: dialogues, and prompts with completions, kept verbatim where no template asks otherwise."""

from __future__ import annotations

import re
from typing import Any

from orpo_ray.data.formats.columns import holds, missing
from orpo_ray.data.formats.comparison import Comparison, asked, rated
from orpo_ray.data.formats.messages import Message, text_field, turn
from orpo_ray.data.formats.reading import CHANCE, Reading, number
from orpo_ray.data.records import BadRecord

ASSISTANT_TURN = "\n\nAssistant:"
CHOSEN_FIRST = [1.0, 0.0]
"""Ratings of chosen and rejected, where a record names them so."""
_DIALOGUE = re.compile(r"\s*Human:")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def hh_rlhf(value: dict[str, Any], reading: Reading) -> Comparison:
    prompt, chosen = _last_turn(text_field(value, "chosen"), "chosen")
    other, rejected = _last_turn(text_field(value, "rejected"), "rejected")
    if prompt != other:
        raise BadRecord("prompts differ", "chosen and rejected disagree before their last assistant turn")
    return dialogue(prompt, [chosen, rejected], CHOSEN_FIRST, reading)


def dialogue(prompt: str, answers: list[str], ratings: list[float], reading: Reading) -> Comparison:
    """A prompt that ends with `Assistant:`, and what may follow it."""
    if not reading.as_messages:
        return rated(prompt, [*answers], ratings)
    turns = hh_messages(prompt.rstrip().removesuffix(ASSISTANT_TURN))
    return asked(turns, [answer.strip() for answer in answers], ratings)


def _last_turn(dialogue: str, field: str) -> tuple[str, str]:
    """Everything up to and with the last `Assistant:`, and the response after it, both verbatim."""
    before, turn, response = dialogue.rpartition(ASSISTANT_TURN)
    if not turn:
        raise BadRecord("no assistant turn", f'no "\\n\\nAssistant:" in {field}')
    return before + turn, response


def hh_messages(dialogue: str) -> list[Message]:
    """The turns of an HH-RLHF dialogue as messages, without the white space around each."""
    before, *turns = _TURN.split(dialogue)
    if before.strip():
        raise BadRecord("not a dialogue", "text before the first Human: or Assistant:")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [Message(role=roles[name], content=content.strip()) for name, content in pairs]


def plain(value: dict[str, Any], reading: Reading) -> Comparison:
    chosen, rejected = (text_field(value, name) for name in ("chosen", "rejected"))
    note_equal_ratings(value, reading)
    if isinstance(value.get("prompt"), list):
        return asked(reading.messages(value, "prompt"), [chosen, rejected], CHOSEN_FIRST)
    prompt = text_field(value, "prompt")
    chosen, rejected = _without_prompt(prompt, chosen, rejected, reading)
    if not reading.as_messages:
        return rated(prompt, [chosen, rejected], CHOSEN_FIRST)
    return asked(prompt, [chosen, rejected], CHOSEN_FIRST)


def _without_prompt(prompt: str, chosen: str, rejected: str, reading: Reading) -> tuple[str, str]:
    """The answers without the prompt, where those of a source repeat it: the first record says."""
    question, both = prompt.strip(), (chosen, rejected)
    begins = bool(question) and all(text.startswith(prompt) for text in both)
    if not begins and all(_DIALOGUE.match(text) and ASSISTANT_TURN in text and question in text for text in both):
        raise BadRecord(
            "prompt within the answers",
            "chosen and rejected are dialogues that hold prompt; with unread=[prompt] they are read as such",
        )
    repeated = len(question) >= CHANCE and begins
    if reading.repeats_prompt is None:
        reading.repeats_prompt = repeated
    if not reading.repeats_prompt:
        if repeated or (len(question) >= CHANCE and all(text.lstrip().startswith(question) for text in both)):
            reading.account.noted["repeat their prompt in both answers, and are read as they stand"] += 1
        return chosen, rejected
    if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
        raise BadRecord("prompts differ", "chosen and rejected do not repeat prompt, as those of the first record do")
    reading.account.noted["repeat their prompt in both answers; it is read once"] += 1
    return chosen[len(prompt) :], rejected[len(prompt) :]


_RATINGS = (
    ("chosen-rating", "rejected-rating"), ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"), ("rating_chosen", "rating_rejected"),
)  # fmt: skip


def note_equal_ratings(value: dict[str, Any], reading: Reading) -> None:
    """Say where the ratings beside chosen and rejected do not say that chosen is better."""
    if reading.prompts_alone:
        return
    for better, worse in _RATINGS:
        if better in value and worse in value:
            try:
                apart = number(value, better) - number(value, worse)
            except BadRecord:
                return
            if apart <= 0:
                kind = "rate both answers alike" if apart == 0 else "rate rejected above chosen"
                reading.account.noted[f"{kind} ({better}, {worse}); chosen counts as the better one"] += 1


def nectar(value: dict[str, Any], reading: Reading) -> Comparison:
    prompt, items = text_field(value, "prompt"), value.get("answers")
    if not isinstance(items, list) or len(items) < 2 or not all(isinstance(item, dict) for item in items):
        raise BadRecord("not ranked answers", "answers is no list of two or more {answer, rank}")
    for item in items:
        for key in item.keys() - {"answer", "rank"}:
            if holds(item[key]):
                reading.account.note_unread(f"answers[].{key}")
    answers = [text_field(item, "answer") for item in items]
    ranks = [-number(item, "rank") for item in items]
    if reading.as_messages and ASSISTANT_TURN not in prompt:
        return asked(prompt, answers, ranks)
    return dialogue(prompt, answers, ranks, reading)


def orca(value: dict[str, Any], reading: Reading) -> Comparison:
    if holds(value.get("question")) and holds(value.get("input")):
        raise BadRecord("column not read", "both question and input hold something; the key columns says which to read")
    question = text_field(value, "question" if holds(value.get("question")) else "input")
    if value.get("status") == "tie":  # argilla's ratings of the two
        reading.none_wins("tie")
    note_equal_ratings(value, reading)
    return asked(question, [text_field(value, name) for name in ("chosen", "rejected")], CHOSEN_FIRST)


def instruction(value: dict[str, Any]) -> list[Message]:
    """Alpaca's question: earlier turns, the instruction, and what it is about."""
    text, about = text_field(value, "instruction"), value.get("input")
    if about is not None and text_field(value, "input").strip():
        text = f"{text}\n\n{about}"
    earlier: list[Message] = []
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRecord("column not read", "history is no list of [question, answer]")
    for i, (question, answer) in enumerate(history):
        pair = {f"history[{i}][0]": question, f"history[{i}][1]": answer}
        earlier += turn("user", text_field(pair, f"history[{i}][0]"))
        earlier += turn("assistant", text_field(pair, f"history[{i}][1]"))
    return [*earlier, *turn("user", text)]


def alpaca(value: dict[str, Any], reading: Reading) -> Comparison:
    return asked(instruction(value), [text_field(value, name) for name in ("chosen", "rejected")], CHOSEN_FIRST)


def rewardbench2(value: dict[str, Any], reading: Reading) -> Comparison:
    answers: list[str] = []
    ratings: list[float] = []
    for name, rating in (("chosen", 1.0), ("rejected", 0.0)):
        texts = value.get(name)
        if not isinstance(texts, list) or not texts:
            raise missing(value, name) if name not in value else BadRecord("not text", f"{name} is no list of texts")
        answers += [text_field({f"{name}[{i}]": text}, f"{name}[{i}]") for i, text in enumerate(texts)]
        ratings += [rating] * len(texts)
    return asked(text_field(value, "prompt"), answers, ratings)
