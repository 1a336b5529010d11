"""Prompts that stand alone, for a policy to answer: their tokens, and beside them the questions as they were read.

A question is text for whoever scores the answers: a reward model with another tokenizer or template, or a function.
Questions lie in one file, a line of JSON each, and are read one at a time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orpo_ray.data.dataset import PairDataset, Pairs, Prompts
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.prompts import Prompt, Question
from orpo_ray.data.records import BadRecord
from orpo_ray.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PromptDataset(PairDataset):
    """Prompts without responses, K = 0: `pair(i)` is the prompt's ids alone, `lengths()` is (records, 1)."""

    lines: NDArray[np.uint8]
    """(bytes,), memory-mapped: of each record of the source what `as_line` made."""
    line_starts: NDArray[np.int64]
    """(source records + 1,), memory-mapped: where each begins in `lines`."""
    file: Path
    """Of `lines`, for messages."""
    source: str = ""
    """What messages call the source."""

    def question(self, i: int) -> Prompt:
        """What record `i` asks. Raises `UserError` where the file no longer holds that."""
        row = i if self.rows is None else int(self.rows[i])
        start, end = self.line_starts[row : row + 2].tolist()
        try:
            return _from_line(self.lines[start:end].tobytes(), f"{self.source}[record {self.record(i)}]")
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{self.file}: is damaged; delete the folder {self.file.parent} and run again") from None


class JoinedPrompts(JoinedPairs):
    """The prompts of several sources as one data set."""

    def question(self, i: int) -> Prompt:
        """As `PromptDataset.question`."""
        source, number = self.at(i)
        part = self.parts[source]
        assert isinstance(part, PromptDataset)
        return part.question(number)


def prompts_of(data: Pairs) -> Prompts:
    """`data` of a run that reads prompts alone, as what it is."""
    assert isinstance(data, PromptDataset | JoinedPrompts)
    return data


def as_line(found: Question, spoken: Question) -> bytes:
    """A question as the source holds it and as messages, as a line of JSON. Raises `BadRecord` where a field of a
    message is nothing that JSON has."""
    held = {"as_found": _fields(found)}
    if spoken != found:
        held["as_messages"] = _fields(spoken)
    try:
        return json.dumps(held, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except TypeError as error:
        raise BadRecord("not JSON", f"in a message or in tools: {error}") from None


def _from_line(line: bytes, location: str) -> Prompt:
    held = json.loads(line)
    found = _question(held["as_found"])
    return Prompt(location, found, _question(held["as_messages"]) if "as_messages" in held else found)


def _fields(question: Question) -> dict[str, Any]:
    return {"prompt": question.prompt, **({"tools": question.tools} if question.tools else {})}


def _question(fields: dict[str, Any]) -> Question:
    return Question(fields["prompt"], (), fields.get("tools"))
