"""Samples on disk as they are drawn, in a run's folder: what a killed run has drawn is not drawn again (issue 19).

`rollouts/ROUND.jsonl` begins with a line that names all that decides what is drawn, then has a line for each sample.
What a round trains on is in the checkpoints that are in the middle of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from orpo_ray.atomic import new_file
from orpo_ray.inference.live import Sample
from orpo_ray.parsing import NUMBER, member, object_from_json


class RolloutFiles:
    """Those of one run. Only rank 0 writes. A disk that fails costs what would be drawn again, and stops no run."""

    def __init__(self, run: Path, note: Callable[[str], None]) -> None:
        """`note` is told what could not be read or written."""
        self._folder, self._note = run / "rollouts", note
        self._failing = False

    def samples(self, round: int, drawn_by: str) -> list[Sample]:
        """What has been drawn of a round, where its file says that it was drawn by the same; of damaged lines none."""
        path = self._path(round)
        try:
            head, *lines = path.read_bytes().split(b"\n")
            if object_from_json(head).get("drawn_by") != drawn_by:
                return []
        except (FileNotFoundError, ValueError):
            return []
        except OSError as error:
            self._note(f"{path}: cannot be read, and its responses are drawn again: {error}")
            return []
        found, damaged = [], 0
        for line in lines[:-1]:  # the last may have been cut short
            try:
                found.append(_sample(object_from_json(line)))
            except ValueError:
                damaged += 1
        if damaged:
            self._note(f"{path}: {damaged} lines are damaged, and their responses are drawn again")
        return found

    def begin(self, round: int, drawn_by: str, samples: Iterable[Sample]) -> None:
        """A round's samples so far, written anew: a last line cut short is gone."""
        lines = [{"drawn_by": drawn_by}, *(sample._asdict() for sample in samples)]
        self._failing = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with new_file(self._path(round)) as new:
                new.write_bytes(_lines(lines))
        except OSError as error:
            self._fails(error)

    def append(self, round: int, samples: Iterable[Sample]) -> None:
        if self._failing:
            return
        try:
            text = _lines(sample._asdict() for sample in samples)
            with self._path(round).open("ab", buffering=0) as file:  # at once: a killed rank 0 may not be gone yet
                if file.write(text) < len(text):
                    raise OSError("No space left on device")
        except OSError as error:
            self._fails(error)

    def forget_before(self, round: Callable[[], int]) -> None:
        """Remove the files of earlier rounds than that which checkpoints may need. `round` may fail as storage does:
        then they stay."""
        try:
            first = round()
            for path in self._folder.glob("[0-9]*.jsonl"):
                if path.stem.isdigit() and int(path.stem) < first:
                    path.unlink(missing_ok=True)
        except Exception as error:  # whatever kind a filesystem raises
            self._note(f"{self._folder}: files of earlier rounds are still there: {error}")

    def _fails(self, error: OSError) -> None:
        self._failing = True
        self._note(f"{self._folder}: cannot be written, so a killed run would draw this round again: {error}")

    def _path(self, round: int) -> Path:
        return self._folder / f"{round:06d}.jsonl"


def _lines(rows: Iterable[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _sample(row: dict[str, object]) -> Sample:
    """Raises `ValueError` where it is none."""
    ids, logps, ended = member(row, "ids", list), member(row, "logps", list), member(row, "ended", str)
    whole = 0 < len(ids) == len(logps) and {type(token) for token in ids} == {int}
    if not whole or not {type(logp) for logp in logps} <= {*NUMBER} or ended not in ("stop", "length"):
        raise ValueError("a line is no sample")
    prompt, sample, step = (member(row, key, int) for key in ("prompt", "sample", "step"))
    return Sample(prompt, sample, ids, logps, ended, step)
