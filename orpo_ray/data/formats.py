"""The shapes of a preference record: recognised by content, and read into one prompt and two completions.

| format | a record |
|---|---|
| `hh-rlhf` | `chosen`, `rejected`: two whole dialogues as text, parted at the last `\\n\\nAssistant:` |
| `ultrafeedback` | `prompt` as text; `chosen`, `rejected`: message lists, prompt included |
| `argilla` | the same beside `chosen-rating`, `chosen-model`, ... |
| `plain` | `prompt`, `chosen`, `rejected` as text |
| `conversational` | `chosen`, `rejected`: message lists; `prompt`: a message list, or absent |

Other fields are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from orpo_ray.data.records import BadRecord, too_long

Format = Literal["hh-rlhf", "ultrafeedback", "argilla", "plain", "conversational"]
ASSISTANT_TURN = "\n\nAssistant:"
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt and its two completions: all of them text, verbatim, or all of them messages."""

    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]


def require_short(most: int, *turns: str | list[Message]) -> None:
    """Raises `BadRecord` where texts, and messages with their roles, have more than `most` characters together."""
    size = sum(
        len(each) if isinstance(each, str) else sum(len(m["role"]) + len(m["content"]) for m in each) for each in turns
    )
    if size > most:
        raise too_long(size, "in its texts", most)


def recognise(value: dict[str, Any]) -> Format:
    """The format of a record, by its fields. Raises `BadRecord` where it is none of them."""
    for field in ("chosen", "rejected"):
        if not isinstance(value.get(field), list):
            text_field(value, field)
    chosen, rejected, prompt = value["chosen"], value["rejected"], value.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list):
        if not isinstance(prompt, str):
            return "conversational"
        return "argilla" if "chosen-rating" in value or "chosen-model" in value else "ultrafeedback"
    if isinstance(chosen, list) or isinstance(rejected, list):
        raise BadRecord("unknown shape", "one of chosen and rejected is text, the other a list")
    if prompt is None and ASSISTANT_TURN in chosen and ASSISTANT_TURN in rejected:
        return "hh-rlhf"
    text_field(value, "prompt")
    return "plain"


def parse(value: dict[str, Any], format: Format, as_messages: bool) -> PreferencePair:
    """Read a record. `as_messages`: text becomes messages too, for a template to render.

    Raises `BadRecord`: a missing field, one that is not text or messages, prompts that differ.
    """
    if format == "hh-rlhf":
        return _hh_rlhf(value, as_messages)
    if format == "plain":
        prompt, chosen, rejected = (text_field(value, name) for name in ("prompt", "chosen", "rejected"))
        if not as_messages:
            return PreferencePair(prompt, chosen, rejected)
        return PreferencePair(_turn("user", prompt), _turn("assistant", chosen), _turn("assistant", rejected))
    return _messages(value)


def _hh_rlhf(value: dict[str, Any], as_messages: bool) -> PreferencePair:
    prompt, chosen = _last_turn(text_field(value, "chosen"), "chosen")
    other, rejected = _last_turn(text_field(value, "rejected"), "rejected")
    if prompt != other:
        raise BadRecord("prompts differ", "chosen and rejected disagree before their last assistant turn")
    if not as_messages:
        return PreferencePair(prompt, chosen, rejected)
    dialogue = hh_messages(prompt.removesuffix(ASSISTANT_TURN))
    return PreferencePair(dialogue, _turn("assistant", chosen.strip()), _turn("assistant", rejected.strip()))


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


def _messages(value: dict[str, Any]) -> PreferencePair:
    chosen, rejected = message_list(value, "chosen"), message_list(value, "rejected")
    given = value.get("prompt")
    opening = _turn("user", text_field(value, "prompt")) if isinstance(given, str) else []
    if isinstance(given, list):
        opening = message_list(value, "prompt")
    if chosen[0]["role"] == rejected[0]["role"] == "assistant" and opening:
        chosen, rejected = opening + chosen, opening + rejected

    # The prompt is what both share, short of a last message each, so that equal completions stay completions.
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if chosen[shared]["role"] != "assistant" or rejected[shared]["role"] != "assistant":
        raise BadRecord("prompts differ", f"message {shared}, where the two part, is not the assistant's")
    if shared == 0:
        raise BadRecord("no prompt", "the messages begin with the assistant's")
    prompt = chosen[:shared]
    asked = {message["content"].strip() for message in prompt}
    if isinstance(given, str) and given.strip() not in asked:
        raise BadRecord("prompts differ", "prompt is none of the messages that chosen and rejected share")
    if isinstance(given, list) and prompt[: len(opening)] != opening:
        raise BadRecord("prompts differ", "chosen and rejected do not begin with the messages of prompt")
    return PreferencePair(prompt, chosen[shared:], rejected[shared:])


def _turn(role: str, content: str) -> list[Message]:
    return [Message(role=role, content=content)]


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


def message_list(value: dict[str, Any], field: str) -> list[Message]:
    """A field that must be a list of messages. Raises `BadRecord` where it is not."""
    if field not in value:
        raise BadRecord("missing field", field)
    items = value[field]
    if not isinstance(items, list) or not items:
        found = "an empty list" if items == [] else "null" if items is None else type(items).__name__
        raise BadRecord("not messages", f"{field} is {found}")
    messages = []
    for i, item in enumerate(items):
        if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
            raise BadRecord("not messages", f"{field}[{i}] has no role and content")
        role = checked_text(item["role"], f"{field}[{i}].role")
        messages.append(Message(role=role, content=checked_text(item["content"], f"{field}[{i}].content")))
    return messages
