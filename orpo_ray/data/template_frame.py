"""What a chat template writes around an answer, found by one question and one answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from orpo_ray.data.formats import Message

Render = Callable[[list[Message], bool], str]
"""The text of messages, with a generation prompt or without."""

_QUESTION, _ANSWER = "zqquestionqz", "zqanswerqz"  # what no template writes or takes apart


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around an answer. A conversation is rendered prompt, `header`, answer, `end`, `rest`."""

    header: str
    """Between the rendered prompt and the answer's text, so part of a response: an empty think block, or the
    assistant's mark where there is no generation prompt."""
    end: str
    """Behind the text, through the end of turn."""
    rest: str
    """Behind the end of turn: a newline, the header of a next answer."""
    closes: bool
    """Whether `end` ends with a token; if not, EOS is the response's end."""
    surplus: str
    """What the generation prompt has at its end that the conversation has not, such as an opened think block."""
    prompts: bool
    """Whether there is a generation prompt."""
    always_prompts: bool
    """Whether it ends with the header of a next answer, wanted or not."""


def frame_of(render: Render, control: re.Pattern[str], eos: str | None) -> Frame | None:
    """The frame of the template that `render` renders; None where the answer is not found in what it writes.

    `control`: matches tokens of the vocabulary. Raises what `render` raises.
    """
    question = Message(role="user", content=_QUESTION)
    asked = [question, Message(role="assistant", content=_ANSWER)]
    opening, bare, whole = render([question], True), render([question], False), render(asked, False)
    before, found, tail = whole.partition(_ANSWER)
    header = before.removeprefix(opening) if before.startswith(opening) else ""
    surplus = opening.removeprefix(before) if opening.startswith(before) else ""
    if not found or _ANSWER in tail or opening not in (before + surplus, before.removesuffix(header)):
        return None
    prompts = opening != bare
    end, rest = split_end(tail, control, eos)
    closes = control.search(end) is not None
    opener = "" if prompts else bare.rpartition(_QUESTION)[2]
    if not closes and not header and opener.strip() and end.endswith(opener):
        # Text alone: the header of a next answer, which does not follow an answer that a question follows.
        followed = render([*asked, question], False).partition(_ANSWER)[2]
        if not followed.startswith(end):
            end, rest = end.removesuffix(opener), opener
    always_prompts = bool(rest.strip()) and opener.endswith(rest)
    return Frame(header, end, rest, closes, surplus, prompts, always_prompts)


def split_end(tail: str, control: re.Pattern[str], eos: str | None) -> tuple[str, str]:
    """What a template writes behind an answer, parted behind the end of turn: the first token there, or of several
    that touch EOS, where it is one of them. All of it where it holds no token."""
    first = match = control.search(tail)
    if first is None:
        return tail, ""
    touching = first.end()
    while match is not None and match.start() <= touching:
        if match[0] == eos:
            return tail[: match.end()], tail[match.end() :]
        touching = match.end()
        match = control.search(tail, touching)
    return tail[: first.end()], tail[first.end() :]
