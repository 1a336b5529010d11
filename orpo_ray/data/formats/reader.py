"""The records of one source, each read into a comparison: columns found, the shape told by the first, all accounted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orpo_ray.config.records import ROLES, RecordsConfig
from orpo_ray.data.formats.columns import SYSTEM, holds, mapped, note_unread, with_messages_as_lists
from orpo_ray.data.formats.comparison import Comparison, NoPreference
from orpo_ray.data.formats.conversations import without_system_twice
from orpo_ray.data.formats.messages import text_field, tool_list
from orpo_ray.data.formats.reading import CHANCE, Reading
from orpo_ray.data.formats.shapes import PAIRS, Shape, recognise, recognise_question, shape_named
from orpo_ray.data.records import Account, BadRecord
from orpo_ray.visible import visible


class RecordReader:
    """Reads records one by one; the first that has a shape decides on that of all."""

    def __init__(
        self,
        settings: RecordsConfig,
        format: str,
        account: Account,
        *,
        as_messages: bool,
        may_only_ask: bool = False,
        prompts_alone: bool = False,
        turns: int = 1,
    ) -> None:
        """`account`: counts what is not read. `may_only_ask`: records without answers are prompts (evaluations).
        `prompts_alone`: answers are not wanted (rollouts), so none of them has to win. `turns`: questions of a record
        that are asked, at most."""
        self._settings = settings
        self._account = account
        self._may_only_ask = may_only_ask
        self._asks = format == "prompts"
        self._shape: Shape | None = None if format in ("auto", "prompts") else shape_named(format)
        self._reading = Reading(account, as_messages, settings.roles or {}, settings.prefer, prompts_alone, turns)
        self._first = True
        self._spoken = [name for name in (*SYSTEM, "tools") if name not in (settings.unread or ())]
        """Columns that any shape may have beside its own."""
        self._left_out = set(settings.unread or ()) - set(settings.columns or ())
        """Columns that are not read although a shape has them."""
        self._default = settings.system if settings.system and settings.system.strip() else ""
        self._unmet = set(settings.unread or ())
        self._odd_role = ""
        """The first that is none of ours."""

    def comparison(self, value: dict[str, Any]) -> Comparison:
        """Raises `BadRecord`; `NoPreference` where a sound record prefers nothing; `UserError` where a setting is
        missing."""
        settings = self._settings
        self._unmet -= value.keys()
        if settings.columns is not None:
            value = mapped(value, settings.columns, self._account)
        columns = value
        value = with_messages_as_lists({name: inner for name, inner in columns.items() if name not in self._left_out})
        shape = self._shape_of(value)
        reading = self._reading
        tools = tool_list(value.get("tools")) if "tools" in self._spoken else []
        if self._first:
            # A system turn, and tools, need a template; so do then all records, that all be written alike.
            reading.as_messages = reading.as_messages or bool(self._default or tools or self._system(value))
        if settings.prefer is not None and shape.name != "pku-saferlhf":
            self._account.noted["have no labels for prefer to choose between"] += 1
        try:
            comparison = shape.read(value, reading)
        except NoPreference:
            self._note_unread(columns, shape, None)
            raise
        system = self._system(value) or self._default_system(comparison)
        if system or tools:
            if isinstance(comparison.prompt, str):
                found = "a system turn" if system else "tools"
                raise BadRecord(
                    f"{found} beside text",
                    f"the first record has none, so the others are read as text; set chat_template, and {found} "
                    "goes where it puts it",
                )
            prompt = without_system_twice(comparison.prompt, system) if system else comparison.prompt
            comparison = replace(comparison, prompt=prompt, tools=tools or None)
        self._note_unread(columns, shape, comparison)
        self._note_roles(comparison)
        self._first = False
        return comparison

    def remarks(self) -> list[str]:
        """What settings ask that no record of those read so far could answer."""
        return [f"unread: none has a column {visible(name)}" for name in sorted(self._unmet)]

    def _shape_of(self, value: dict[str, Any]) -> Shape:
        if self._shape is not None:
            return self._shape
        if self._asks:
            return recognise_question(value)
        if self._may_only_ask and "chosen" not in value and not any(shape.fits(value) for shape in PAIRS):
            self._asks = True
            return recognise_question(value)
        self._shape = recognise(value)
        return self._shape

    def _system(self, value: dict[str, Any]) -> str:
        found = [text_field(value, name) for name in SYSTEM if name in self._spoken and holds(value.get(name))]
        if len(set(found)) > 1:
            raise BadRecord("two system turns", f"{', '.join(SYSTEM)} differ")
        return found[0] if found and found[0].strip() else ""

    def _default_system(self, comparison: Comparison) -> str:
        own = not isinstance(comparison.prompt, str) and comparison.prompt[0]["role"] == "system"
        return "" if own else self._default

    def _note_roles(self, comparison: Comparison) -> None:
        turns = [comparison.prompt, *(answer.turns for answer in comparison.answers)]
        odd = [m["role"] for each in turns if not isinstance(each, str) for m in each if m["role"] not in ROLES]
        if odd:
            self._odd_role = self._odd_role or odd[0]
            self._account.noted[
                f"have turns of roles that are not known ({visible(self._odd_role):.40}), given to the template as "
                "they stand; the key roles says what they are"
            ] += 1

    def _note_unread(self, value: dict[str, Any], shape: Shape, comparison: Comparison | None) -> None:
        """`comparison`: None where the record says nothing, so that nothing of it can be missing."""

        def is_said(text: str) -> bool:
            if comparison is None:
                return True
            prompt = comparison.prompt
            texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
            return any(text == other.strip() or (len(text) >= CHANCE and text in other) for other in texts)

        reads = {*shape.columns, *shape.also, *self._spoken} - self._left_out
        note_unread(value, reads, self._settings.unread or (), is_said, self._account)
