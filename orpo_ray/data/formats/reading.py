"""How the records of one source are read: what every shape may ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from orpo_ray.data.formats.comparison import NoPreference
from orpo_ray.data.formats.messages import Message, message_list
from orpo_ray.data.records import Account, BadRecord

CHANCE = 20
"""Characters: a shorter text may stand in another by chance."""


@dataclass
class Reading:
    account: Account
    """Where it is counted what is not read, and what was decided."""
    as_messages: bool
    """Text becomes messages too, for a template to render."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """`data.roles`."""
    prefer: str | None = None
    """`data.prefer`."""
    prompts_alone: bool = False
    """Answers are not wanted, so none of them has to win."""
    turns: int = 1
    """Questions of a record that are asked one after the other, at most."""
    repeats_prompt: bool | None = None
    """Whether chosen and rejected begin with the prompt, as text; None before the first record."""

    def messages(self, value: dict[str, Any], column: str) -> list[Message]:
        """Raises `BadRecord` where the column holds no messages."""
        return message_list(value, column, self.roles, self.account)

    def none_wins(self, reason: str) -> None:
        """Raises `NoPreference`, unless prompts alone are wanted."""
        if not self.prompts_alone:
            raise NoPreference(reason)


def number(value: dict[str, Any], column: str) -> float:
    """A number, or the text of one (CSV); a decimal one of Parquet's, too. Raises `BadRecord`."""
    found = value.get(column)
    try:
        if isinstance(found, int | float | Decimal | str) and not isinstance(found, bool):
            converted = float(found)
            if abs(converted) < float("inf"):  # NaN is not
                return converted
    except (ValueError, OverflowError):
        pass
    raise BadRecord("not a number", f"{column} is {found!r:.40}".encode("ascii", "backslashreplace").decode())


def unknown_label(column: str, found: Any) -> BadRecord:
    return BadRecord("unknown label", f"{column} is {found!r:.40}".encode("ascii", "backslashreplace").decode())
