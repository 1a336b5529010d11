"""Rollouts on disk, in a run's folder: samples as they are drawn, and a round as it is trained on (issue 19).

`rollouts/ROUND.jsonl` begins with a line that names the weights that write, then has a line for each sample; so what a
killed run has drawn is not drawn again. `rollouts/ROUND.safetensors` is all that the steps of a round read, for a run
that continues in the middle of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from orpo_ray.atomic import new_file
from orpo_ray.errors import UserError
from orpo_ray.inference.live import Sample
from orpo_ray.parsing import member, read_lines

Arrays = dict[str, NDArray[np.generic]]


class RolloutFiles:
    """Those of one run. Only rank 0 writes."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "rollouts"

    def samples(self, round: int, weights: str) -> list[Sample]:
        """What has been drawn of a round by the policy whose weights have this digest; nothing of another's."""
        path = self._path(round, "jsonl")
        if not path.is_file():
            return []
        head, *rows = read_lines(path).values() or [{}]  # the last may have been cut short
        if head.get("weights") != weights:
            return []
        try:
            return [_sample(row) for row in rows]
        except ValueError as error:
            raise UserError(f"{path}: {error}; remove the file, and its round is drawn anew") from None

    def begin(self, round: int, weights: str, samples: Iterable[Sample]) -> None:
        """A round's samples so far, written anew: a last line cut short is gone."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [{"weights": weights}, *(sample._asdict() for sample in samples)]
        with new_file(self._path(round, "jsonl")) as new:
            new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def append(self, round: int, samples: Iterable[Sample]) -> None:
        with self._path(round, "jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(sample._asdict()) + "\n" for sample in samples))

    def write(self, round: int, arrays: Arrays) -> None:
        """A round as it is trained on."""
        with new_file(self._path(round, "safetensors")) as new:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, new)

    def read(self, round: int) -> Arrays:
        """Raises `UserError` where a round that a checkpoint is in the middle of is not there, or damaged."""
        path = self._path(round, "safetensors")
        try:
            found: Arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: the rollouts that the run was training on cannot be read ({error}); restore the file, or "
                "remove the newest checkpoints to continue from an earlier round"
            ) from None
        return found

    def forget_before(self, round: int) -> None:
        """Remove the files of earlier rounds."""
        for path in self._folder.glob("[0-9]*.*"):
            if path.stem.isdigit() and int(path.stem) < round:
                path.unlink(missing_ok=True)

    def _path(self, round: int, kind: str) -> Path:
        return self._folder / f"{round:06d}.{kind}"


def _sample(row: dict[str, object]) -> Sample:
    ids, logps = member(row, "ids", list), member(row, "logps", list)
    if len(ids) != len(logps) or not all(type(token) is int for token in ids):
        raise ValueError("a line is no sample")
    prompt, sample, step = (member(row, key, int) for key in ("prompt", "sample", "step"))
    return Sample(prompt, sample, ids, logps, member(row, "ended", str), step)
