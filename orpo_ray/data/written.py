"""Whether a chat template writes what the messages hold: one that passes over a field hides a part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from orpo_ray.data.formats import Message, Tools, Turns
from orpo_ray.data.formats.messages import CARRIED
from orpo_ray.data.records import Account, BadRecord
from orpo_ray.data.templates import Renderer
from orpo_ray.errors import UserError

_CALLS = ("tool_calls", "function_call")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Templates leave those of earlier turns out as a rule, so only in answers must they be written."""
_END_OF_THOUGHTS = "</think>"
"""Where thoughts end that stand in the content itself."""


def require_written(
    renderer: Renderer,
    prompt: Turns,
    completions: Sequence[Turns],
    tools: Tools | None,
    account: Account | None = None,
) -> None:
    """Raises `BadRecord` where the template writes the same text without the tools, without the calls, or without the
    thoughts of an answer. `account`: counts the records with other fields that it does not write."""
    parts = [prompt, *completions]
    fields = [
        (at, key)
        for at, turns in enumerate(parts)
        for key in CARRIED
        if not isinstance(turns, str) and any(message.get(key) for message in turns)
    ]
    thoughtful = [
        at
        for at, turns in enumerate(parts)
        if not isinstance(turns, str) and any(_has_thoughts(message["content"]) for message in turns)
    ]
    if not fields and not tools and not thoughtful:
        return
    whole = renderer.rendered(prompt, completions, tools=tools)
    if tools and _same(renderer, whole, prompt, completions, None):
        raise BadRecord("not written by the chat template", "tools")
    without = [(at, key, _without(parts[at], key)) for at, key in fields]
    without += [(at, "thoughts", _without_thoughts(parts[at])) for at in thoughtful]
    for at, key, other in without:
        others = [other if i == at else turns for i, turns in enumerate(parts)]
        if not _same(renderer, whole, others[0], others[1:], tools):
            continue
        if key in _CALLS or (key in (*_THOUGHTS, "thoughts") and at > 0):
            where = ("the prompt", "chosen", "rejected")[at] if len(parts) == 3 else "a message"
            raise BadRecord("not written by the chat template", f"{key} of {where}")
        if account is not None:
            account.noted[f"have {key} in {'the prompt' if at == 0 else 'an answer'}, not written by the template"] += 1


def _same(
    renderer: Renderer,
    whole: object,
    prompt: Turns,
    completions: Sequence[Turns],
    tools: Tools | None,
) -> bool:
    try:
        return renderer.rendered(prompt, completions, tools=tools) == whole
    except (BadRecord, UserError):  # a template that cannot do without it reads it
        return False


def _has_thoughts(text: str) -> bool:
    """An empty block of them, which some templates write into every answer, is none."""
    return bool(text.rpartition(_END_OF_THOUGHTS)[0].replace("<think>", "").strip())


def _without_thoughts(turns: Turns) -> Turns:
    assert not isinstance(turns, str)
    return [cast(Message, {**m, "content": m["content"].rpartition(_END_OF_THOUGHTS)[2]}) for m in turns]


def _without(turns: Turns, key: str) -> Turns:
    assert not isinstance(turns, str)
    return [cast(Message, {name: inner for name, inner in message.items() if name != key}) for message in turns]
