"""Messages of a record: text, roles and the fields that a chat template may write, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

from orpo_ray.config.records import ROLES
from orpo_ray.data.json_values import decode
from orpo_ray.data.records import Account, BadRecord, as_json

CARRIED = ("name", "tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "thinking")
"""Fields of a message beside role and content that reach the chat template."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
MOST_NESTED = 40
"""Levels of what a field of a message holds; Python, and a template, end somewhere too."""
_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatgpt", "chatbot", "ai"), "assistant"),
    **{name: name for name in ROLES},
    "observation": "tool",
}


class Message(TypedDict):
    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[Any]]
    function_call: NotRequired[Any]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    thinking: NotRequired[str]


Turns = str | list[Message]
"""A prompt or an answer: text, verbatim, or messages."""
Tools = list[dict[str, Any]]
"""Functions that the model may call, as JSON schemas."""


def turn(role: str, content: str) -> list[Message]:
    return [Message(role=role, content=content)]


def spoken(role: str, turns: Turns) -> list[Message]:
    """Text as a turn of `role`; messages as they are."""
    return turn(role, turns) if isinstance(turns, str) else turns


def text_field(value: dict[str, Any], field: str) -> str:
    """A field that must be text. Raises `BadRecord` where it is not."""
    if field not in value:
        raise BadRecord("missing field", field)
    return checked_text(value[field], field)


def checked_text(text: Any, where: str) -> str:
    """`text`, which must be text that UTF-8 can hold. Raises `BadRecord`, naming the field `where`, where it is not."""
    if not isinstance(text, str):
        raise BadRecord("not text", f"{where} is {'null' if text is None else type(text).__name__}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRecord("invalid Unicode", f"half of a surrogate pair in {where}") from None
    return text


def message_list(
    value: dict[str, Any], field: str, roles: Mapping[str, str] | None = None, account: Account | None = None
) -> list[Message]:
    """A field that must be a list of messages, as `{role, content}` or ShareGPT's `{from, value}`.

    `roles`: names beside the usual ones. `account` counts fields that are not read. Raises `BadRecord`.
    """
    if field not in value:
        raise BadRecord("missing field", field)
    items = value[field]
    if not isinstance(items, list) or not items:
        found = "an empty list" if items == [] else "null" if items is None else type(items).__name__
        raise BadRecord("not messages", f"{field} is {found}")
    return [_message(item, f"{field}[{i}]", field, roles or {}, account) for i, item in enumerate(items)]


def _message(item: Any, where: str, field: str, roles: Mapping[str, str], account: Account | None) -> Message:
    keys = ("role", "content")
    if isinstance(item, dict) and item.get("role") is None and item.get("content") is None:
        keys = ("from", "value")
    if not isinstance(item, dict) or keys[0] not in item:
        raise BadRecord("not messages", f"{where} has no role and content")
    found = {key: inner for key, inner in item.items() if inner is not None and key not in keys}
    for kind in MEDIA:
        if found.get(kind):
            raise BadRecord(kind, f"{where} has {kind}, which is not read")
    if isinstance(calls := found.get("tool_calls"), str):
        found["tool_calls"] = _calls(calls, where)
    fields = {key: without_nulls(found[key], f"{where}.{key}") for key in CARRIED if key in found}
    content = item.get(keys[1])
    if content is None and (any(fields.get(key) for key in CARRIED if key not in ("name", "tool_call_id"))):
        content = ""  # the answer is a call
    elif keys[1] not in item:
        raise BadRecord("not messages", f"{where} has no role and content")
    if account is not None:
        for key in found.keys() - set(CARRIED):
            account.note_unread(f"{field}[].{key}")
    message = Message(
        role=_role(checked_text(item[keys[0]], f"{where}.{keys[0]}"), roles),
        content=_content(content, f"{where}.{keys[1]}"),
    )
    return cast(Message, {**message, **fields})


def _calls(text: str, where: str) -> list[Any]:
    """Calls that are written as JSON text: a template would go through its characters."""
    value = decode(text) if text.strip() else []
    if value is not None and not isinstance(value, list):
        raise BadRecord("not calls", f"{where}.tool_calls is text that is no JSON of a list")
    return value or []


def _role(name: str, roles: Mapping[str, str]) -> str:
    return roles.get(name) or _ROLES.get(name.lower(), name)


def _content(content: Any, where: str) -> str:
    """Text, or the text of a list of parts, joined as templates join them: with nothing between."""
    if not isinstance(content, list):
        return checked_text(content, where)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and kind in (None, "text") and isinstance(part.get("text"), str):
            part = part["text"]
        elif isinstance(part, dict):
            raise BadRecord(_part_name(kind), f"{where}[{i}] is no text, and is not read")
        texts.append(checked_text(part, f"{where}[{i}]"))
    return "".join(texts)


def _part_name(kind: Any) -> str:
    for media in ("image", "audio", "video"):
        if isinstance(kind, str) and media in kind:
            return media
    return "part of another kind than text"


def without_nulls(value: Any, where: str, levels: int = MOST_NESTED) -> Any:
    """`value` without keys whose value is null, at any depth: Arrow and Parquet fill in the keys of other rows so.

    Raises `BadRecord`: text that UTF-8 cannot hold, more than `levels` levels.
    """
    if levels == 0:
        raise BadRecord("nested too deeply", f"{where}: more than {MOST_NESTED} levels")
    if isinstance(value, dict):
        return {
            checked_text(key, where): without_nulls(inner, where, levels - 1)
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list):
        return [without_nulls(inner, where, levels - 1) for inner in value]
    return checked_text(value, where) if isinstance(value, str) else value


def tool_list(value: Any) -> Tools:
    """A `tools` column: a list of JSON schemas, or its JSON text. Raises `BadRecord`."""
    if isinstance(value, str) and value.strip():
        value = decode(value)
        if isinstance(value, BadRecord):
            raise BadRecord("not tools", f"tools is text that is no JSON ({value})")
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRecord("not tools", "tools is no list of JSON schemas")
    tools: Tools = without_nulls(value, "tools")
    return tools


def size(value: Any) -> int:
    """Characters of all that a template may write of a text, of messages or of tools."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        fixed = value.keys() & {"role", "content"}  # the names of these stand in no text
        return sum((0 if key in fixed else len(key)) + size(inner) for key, inner in value.items())
    if isinstance(value, list):
        return sum(map(size, value))
    return 0 if value is None else len(repr(value)) if not isinstance(value, int) else value.bit_length() // 3 + 1


def readable(turns: Turns) -> str:
    """A prompt or an answer as a person reads it."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1:
        return _readable(turns[0])
    return "\n\n".join(f"{message['role']}: {_readable(message)}" for message in turns)


def _readable(message: Message) -> str:
    fields = [f"{key}: {inner if isinstance(inner, str) else as_json(inner)}"
              for key, inner in message.items() if key not in ("role", "content", "tool_call_id")]  # fmt: skip
    return "\n".join([*([message["content"]] if message["content"] or not fields else []), *fields])
