"""Verdicts on disk: each is kept as soon as it is there, and found again by all that decided it, whatever its judge is
called."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orpo_ray.errors import UserError
from orpo_ray.judging.verdict import Verdict
from orpo_ray.parsing import NUMBER, member, read_lines


class VerdictStore:
    """`folder/JUDGE.jsonl`, one file for each judge that was asked, in the order in which verdicts came.

    A name says where a judge's next verdict is written, and nothing of which are its own: those of all files are one
    store. Only one process writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, Verdict] | None = None
        self._mended: set[str] = set()

    def path(self, judge: str) -> Path:
        return self._folder / f"{judge}.jsonl"

    @property
    def found(self) -> dict[str, Verdict]:
        """All verdicts, by key; one that a killed process was writing is none.

        Raises `UserError`, naming the line, where one cannot be read.
        """
        if self._found is None:
            self._found = {}
            for path in sorted(self._folder.glob("*.jsonl")):
                for number, line in read_lines(path).items():
                    verdict = _verdict(path, number, line)
                    self._found.setdefault(verdict.key, verdict)
        return self._found

    def keep(self, judge: str, verdict: Verdict) -> None:
        """Write `verdict` down before anything else happens."""
        known = self.found
        path = self.path(judge)
        if judge not in self._mended:
            path.parent.mkdir(parents=True, exist_ok=True)
            _without_torn_line(path)
            self._mended.add(judge)
        with path.open("a", encoding="ascii") as file:
            file.write(json.dumps(asdict(verdict)) + "\n")
        known[verdict.key] = verdict


def _verdict(path: Path, number: int, line: dict[str, Any]) -> Verdict:
    try:
        found = Verdict(
            key=member(line, "key", str),
            probability=member(line, "probability", *NUMBER, type(None)),
            rating=member(line, "rating", *NUMBER, type(None)),
            words=member(line, "words", str),
            prompt_tokens=member(line, "prompt_tokens", int, type(None)),
            tokens=member(line, "tokens", int, type(None)),
            served_by=member(line, "served_by", str, type(None)),
            server=_text(line, "server"),
        )
        if found.probability is not None and not 0 <= found.probability <= 1:
            raise ValueError(f"probability should be from 0 to 1, and is {found.probability}")
    except ValueError as error:
        hint = "remove the line, and its verdict is asked for again"
        raise UserError(f"{path}, line {number}: {error}; {hint}") from None
    return found


def _text(line: dict[str, Any], key: str) -> str | None:
    """None where it is absent: earlier versions did not write it."""
    return None if line.get(key) is None else member(line, key, str)


def _without_torn_line(path: Path) -> None:
    """Cut off what a killed process began to write, so that the next verdict begins a line."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
