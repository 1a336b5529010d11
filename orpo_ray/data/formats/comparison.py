"""What a record says once it is read: a prompt, and answers to it of which some are better than others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orpo_ray.data.formats.messages import Message, Tools, Turns, size, turn
from orpo_ray.data.records import BadRecord, too_long


class NoPreference(Exception):
    """A sound record that prefers none of its answers. `reason` is counted: a tie, no winner, labels that disagree."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt and its two completions: all of them text, verbatim, or all of them messages."""

    prompt: Turns
    chosen: Turns
    rejected: Turns
    tools: Tools | None = None
    """Functions that the model may call; with messages alone."""


@dataclass(frozen=True, slots=True)
class Answer:
    turns: Turns
    rating: float
    """Higher is better. Only the order counts: a label that names the winner rates it 1 and the others 0."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt and its answers, in the order of the record; none where a record only asks."""

    prompt: Turns
    answers: tuple[Answer, ...]
    tools: Tools | None = None
    labelled: bool = False
    """Whether ratings are labels, 1 desirable and 0 not, that say something of each answer by itself."""
    further: tuple[str, ...] = ()
    """Questions that follow the answer to `prompt`."""

    def pair(self) -> PreferencePair:
        """The best answer against the worst, of equal ones the first. Raises `NoPreference` where all are equal."""
        best = max(self.answers, key=lambda answer: answer.rating)
        worst = min(self.answers, key=lambda answer: answer.rating)
        if best.rating == worst.rating:
            raise NoPreference("tie")
        return PreferencePair(self.prompt, best.turns, worst.turns, self.tools)


def rated(prompt: Turns, answers: list[Turns], ratings: list[float]) -> Comparison:
    return Comparison(prompt, tuple(map(Answer, answers, ratings)))


def asked(prompt: str | list[Message], answers: list[str], ratings: list[float]) -> Comparison:
    """A question and texts that answer it, as messages."""
    opening = turn("user", prompt) if isinstance(prompt, str) else prompt
    return rated(opening, [turn("assistant", text) for text in answers], ratings)


def parted(opening: list[Message], answers: list[list[Message]], ratings: list[float]) -> Comparison:
    """Conversations, or answers alone behind `opening`, parted where they differ: the prompt is what all share, short
    of a last message each, so that equal completions stay completions.

    Raises `BadRecord` where what they part into is not the assistant's alone: a turn of the user's would be trained as
    if the model were to write it.
    """
    if opening and all(messages[0]["role"] == "assistant" for messages in answers):
        answers = [opening + messages for messages in answers]
    first, *others = answers
    shared = 0
    while shared < min(map(len, answers)) - 1 and all(first[shared] == other[shared] for other in others):
        shared += 1
    for messages in answers:
        if messages[shared]["role"] != "assistant":
            raise BadRecord(
                "prompts differ",
                f"message {shared}, where the answers part, is not the assistant's but of the role "
                f"{messages[shared]['role']!r:.40}; the key roles names others",
            )
    if shared == 0:
        raise BadRecord("no prompt", "the messages begin with the assistant's")
    for messages in answers:
        for number, message in enumerate(messages[shared:], start=shared):
            if message["role"] != "assistant":
                raise BadRecord(
                    "parts before the last turn",
                    f"the answers differ from message {shared} on, and message {number} is of the role "
                    f"{message['role']!r:.40}, not for the model to write",
                )
    if first[:shared][: len(opening)] != opening:
        raise BadRecord("prompts differ", "chosen and rejected do not begin with the messages of prompt")
    return rated(first[:shared], [messages[shared:] for messages in answers], ratings)


def require_short(most: int, *parts: Turns | Tools | None) -> None:
    """Raises `BadRecord` where texts, messages with all their fields, and tools have more than `most` characters
    together."""
    total = sum(size(part) for part in parts)
    if total > most:
        raise too_long(total, "in its texts", most)


def has_text(turns: Turns) -> bool:
    """Whether there is anything to learn in an answer: text, a call, a thought."""
    if isinstance(turns, str):
        return bool(turns.strip())
    return any(_says_something(message) for message in turns)


def _says_something(message: Message) -> bool:
    fields: list[Any] = [inner for key, inner in message.items() if key not in ("role", "name", "tool_call_id")]
    return any(inner.strip() if isinstance(inner, str) else inner for inner in fields)
