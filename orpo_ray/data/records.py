"""A record as a source yields it, the error of one that cannot be used, and the account of them all."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from orpo_ray.data import lengths
from orpo_ray.parsing import member
from orpo_ray.visible import visible

RAW_LIMIT = 4096
"""Characters of a bad record that are kept in `quarantine.jsonl`."""
_NAME_LIMIT, _NAMES_LIMIT, _NAMES_SHOWN = 80, 200, 30
"""Of columns that are not read: characters of a name, names that are counted, and that are shown."""

_NAMELESS = "(one without a name)"
"""Such as the index that pandas writes first into a CSV file."""


class BadRecord(Exception):
    """A record that is not a preference pair. `reason` is a category, counted; `detail` is particular."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def bytes_of(characters: int) -> int:
    """How many bytes a record of so many characters may have in a file. JSON writes a character in up to 12; where that
    is little, other fields have room."""
    return 12 * max(characters, 1 << 20)


def too_long(size: int, what: str, most: int) -> BadRecord:
    """The error of a record of which `size` is more than the `most` that follow from `max_record_characters`."""
    return BadRecord("too many characters", f"{size:,} {what}, where max_record_characters allows {most:,}")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source: its `value`, or the `error` that says why it has none."""

    index: int
    """Position in the source, counted from 0 over all its files."""
    location: str
    """`file:line`, lines counted from 1, or `source[record i]`, counted from 0 as in Python."""
    value: dict[str, Any] | None
    error: BadRecord | None = None
    raw: str | None = None
    """What the file holds there, where it could not be read as a value."""

    def raw_text(self) -> str:
        """The record as text, at most `RAW_LIMIT` characters, encodable as UTF-8."""
        text = self.raw
        if text is None:
            text = as_json(self.value)
        return text[:RAW_LIMIT].encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def as_json(value: Any) -> str:
    """`value` as JSON for a reader's eyes, whatever is in it."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError) as error:  # read one level of brackets before the limit, say
        return f"(cannot be shown: {error})"


@dataclass
class Account:
    """What became of the records of one source: read = kept + dropped + quarantined, always."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Sound pairs that cannot teach a preference (the paper's filters), by reason."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """Bad records that `data.on_bad_record: quarantine` set aside, by reason."""
    cut_prompts: int = 0
    cut_chosen: int = 0
    cut_rejected: int = 0
    """Of the kept records, how many had their prompt, a best or another response cut to fit."""
    unread: Counter[str] = field(default_factory=Counter)
    """Columns, and fields of messages, that hold something and are not read, with the records that have them."""
    noted: Counter[str] = field(default_factory=Counter)
    """What else a person should know of so many records; a sentence goes on from `12 of 100 records `."""
    said: list[str] = field(default_factory=list)
    """What template and tokenizer do to the texts that a person may not expect, each in a line."""
    straddled: int = 0
    """Of the kept records, how many have a token in a whole conversation that holds the end of the prompt and the
    beginning of a response: there the response is tokenised as what continues the prompt."""
    uncut: lengths.Lengths | None = field(default_factory=lengths.none_yet)
    """Of the kept records before any was cut, where they hold responses; None: an earlier version did not count them.
    """

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Account:
        """What `vars` of one gave. Raises `ValueError`, naming the key, for anything else."""
        counters: dict[str, Counter[str]] = {}
        for name in ("dropped", "quarantined", "unread", "noted"):
            each = member(found, name, dict)
            counters[name] = Counter({key: member(each, key, int) for key in each})
        numbers = {
            name: member(found, name, int)
            for name in ("read", "kept", "cut_prompts", "cut_chosen", "cut_rejected", "straddled")
        }
        said = [str(line) for line in member(found, "said", list)]
        uncut = lengths.from_json(member(found, "uncut", dict)) if "uncut" in found else None
        return cls(
            **numbers,
            dropped=counters["dropped"],
            quarantined=counters["quarantined"],
            unread=counters["unread"],
            noted=counters["noted"],
            said=said,
            uncut=uncut,
        )

    def note_unread(self, name: str) -> None:
        """Count a column of a stranger's file: of any number of names so many are kept."""
        name = visible(name[:_NAME_LIMIT]) if name.strip() else _NAMELESS
        self.unread[name if name in self.unread or len(self.unread) < _NAMES_LIMIT else "(others)"] += 1

    def remarks(self) -> list[str]:
        """What of the records is not read, what was decided about them, and what became of their texts that a person
        should know of, each in a line."""
        lines = [f"{count} of {self.read} records {sentence}" for sentence, count in sorted(self.noted.items())]
        if self.unread:
            names = [
                name if count >= self.read else f"{name} (of {count} records)"
                for name, count in sorted(self.unread.items())
            ]
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            lines.append(f"columns that are not read: {', '.join(names[:_NAMES_SHOWN])}{more}")
        lines += self.said
        if self.straddled:
            lines.append(
                f"in {self.straddled} of {self.kept} pairs a token of the whole conversation holds the end of the "
                "prompt and the beginning of a response: there the response is tokenised as what continues the prompt"
            )
        return lines

    def check(self) -> None:
        """Raises `AssertionError` where a record is not accounted for."""
        assert self.read == self.kept + self.dropped.total() + self.quarantined.total(), self.describe()

    def describe(self) -> str:
        """`2312 read = 2303 kept + 4 dropped (empty response 4) + 5 quarantined (prompts differ 5)`."""
        parts = [f"{self.read} read = {self.kept} kept"]
        for name, reasons in (("dropped", self.dropped), ("quarantined", self.quarantined)):
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            parts.append(f"{reasons.total()} {name}" + (f" ({listed})" if listed else ""))
        return " + ".join(parts)
