"""What a configuration says of the records of preference data and of prompts, the same for both."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from orpo_ray.config.section import Section

PairFormat = Literal[
    "auto", "hh-rlhf", "ultrafeedback", "argilla", "plain", "conversational", "webgpt", "shp", "nectar", "helpsteer2",
    "helpsteer3", "arena", "arena-55k", "prism", "pku-saferlhf", "orca", "alpaca", "sharegpt", "rewardbench2",
    "ranked", "several", "labelled",
]  # fmt: skip
ROLES = ("user", "assistant", "system", "tool", "developer")
COLUMNS = ("prompt", "chosen", "rejected", "system", "tools")


class RecordsConfig(Section):
    columns: dict[str, str | list[str]] | None = None
    """Where prompt, chosen, rejected, system and tools are: columns, or dotted paths into structs and lists, such as
    {prompt: question, chosen: answers.0.text}; of a list of columns the texts are joined by a blank line."""
    roles: dict[str, str] | None = None
    """What roles of other names are, such as {customer: user, agent: assistant}; the usual names are known."""
    system: str | None = None
    """Text of a system turn, for records that have none of their own."""
    prefer: Literal["better", "safer", "both"] | None = None
    """Which label of PKU-SafeRLHF says who wins; `both`: pairs on which the two agree."""
    unread: list[str] | None = None
    """Columns to leave unread although their names say that they are part of the question (input, context, …)."""

    @field_validator("roles")
    @classmethod
    def _are_roles(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for name, role in (value or {}).items():
            if role not in ROLES:
                raise ValueError(f"{name} should be one of {', '.join(ROLES)} (got {role!r:.80})")
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _are_columns(cls, value: Any) -> Any:
        if value is None:
            return None
        for name, paths in value.items() if isinstance(value, dict) else [("", value)]:
            if name not in COLUMNS:
                space = f"; {name} wants a space behind its colon" if paths is None and ":" in str(name) else ""
                raise ValueError(f"should say where any of {', '.join(COLUMNS)} are (got {value!r:.80}){space}")
            several = isinstance(paths, list) and paths and name == "prompt"
            if not all(isinstance(path, str) and path for path in (paths if several else [paths])):
                kind = "a column, or a list of columns" if name == "prompt" else "a column"
                raise ValueError(f"{name} should be {kind} (got {paths!r:.80})")
        return value
