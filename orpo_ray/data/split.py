"""Which pairs are held out for evaluation: whole prompts, drawn by their hashes, listed on the disk.

Neither drawing nor using the lists takes memory that grows with the data set: prompts are drawn in passes over chunks,
and the lists are memory-mapped, so a node's ranks share their pages.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orpo_ray.atomic import new_folder
from orpo_ray.data.cache import mapped
from orpo_ray.data.formats import Turns
from orpo_ray.data.schedule import Indices, mix64
from orpo_ray.errors import UserError

_CHUNK = 1 << 18  # pairs at once
_FILES = ("train.bin", "eval.bin")
_UNSEEN = 0x756E7365656E  # no seed of a run, which are below 2^32: the two draws are independent
_SPEAKER = re.compile(r"(?:\A|\n\n)(?:Human|Assistant):")


def question_hash(prompt: Turns) -> int:
    """A hash of a prompt's words: the same as text, as a dialogue of Human and Assistant and as messages, whatever
    system turn stands before it."""
    if isinstance(prompt, str):
        text = _SPEAKER.sub(" ", prompt)
    else:
        spoken = [message for message in prompt if message["role"] not in ("system", "developer")]
        text = " ".join(message["content"] for message in spoken or prompt)
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "little")


def split_by_prompt(
    hashes: NDArray[np.uint64], fraction: float, seed: int, name: str, folder: Path, *, alone: bool = True
) -> tuple[Indices, Indices]:
    """Indices `(train, eval)` of pairs with these hashes of their prompts, each in its order; found in `folder` or
    written there.

    Whole prompts are held out, in an order drawn by `seed` and the hash alone, until they make up at least
    `fraction` of the pairs; so pairs of one prompt never part, and adding data moves few of them. Where the source is
    not `alone`, what is drawn is held against the fraction itself: of all sources the same prompts are held out,
    whatever else they have, which may be none of a small source. Raises `UserError`, about the source `name`, where no
    prompt would be left to train on, or `folder` cannot be written.
    """
    digest = hashlib.blake2b(
        f"{fraction} {seed}{'' if alone else ' of several by their words'}".encode(), digest_size=8
    ).hexdigest()
    place = folder / f"split-{digest}"
    if not place.is_dir():
        try:
            with new_folder(place) as new:  # any process may be the first, and all write the same
                _write(hashes, fraction, seed, name, new, alone)
        except OSError as error:
            message = f"{folder}: cannot hold the split: {error.strerror or error}; set storage.cache to another folder"
            raise UserError(message) from error
    train, held = (mapped(place / file, np.int64) for file in _FILES)
    return train, held


def set_apart(hashes: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which of the held-out records with these prompt hashes `(records,)` choose nothing.

    Whole prompts, in an order drawn by the hash alone, until they make up at least `fraction` of the records: so any
    run on the same prompts, of whatever seed, sets the same apart. Raises `UserError` where no prompt would be left.
    """
    last = _smallest(hashes, _UNSEEN, max(1, math.ceil(fraction * len(hashes))))
    apart = np.concatenate([numbers <= last for numbers in _drawn(hashes, _UNSEEN)])
    if apart.all():
        raise UserError(
            f"data.unseen_fraction: {len(hashes)} held-out records have {len(np.unique(hashes))} different prompts, "
            f"too few to set {fraction:.0%} apart; hold more out"
        )
    return apart


def _write(hashes: NDArray[np.uint64], fraction: float, seed: int, name: str, folder: Path, alone: bool) -> None:
    if alone:
        last = _smallest(hashes, seed, max(1, math.ceil(fraction * len(hashes))))
    else:
        last = np.uint64(max(int(fraction * 2**64) - 1, 0))
    start = held = 0
    with (folder / _FILES[0]).open("wb") as train, (folder / _FILES[1]).open("wb") as evaluation:
        for numbers in _drawn(hashes, seed):
            out = numbers <= last
            (np.flatnonzero(~out) + start).tofile(train)
            (np.flatnonzero(out) + start).tofile(evaluation)
            start, held = start + len(numbers), held + int(out.sum())
        for file in (train, evaluation):
            file.flush()
            os.fsync(file.fileno())
    if held == len(hashes):
        raise UserError(
            f"{name}: {len(hashes)} records have {len(np.unique(hashes))} different prompts, too few to hold out "
            f"{fraction:.0%} of the records; set data.eval to a source of its own, or lower data.eval_fraction"
        )


def _drawn(hashes: NDArray[np.uint64], seed: int) -> Iterator[NDArray[np.uint64]]:
    """A number for each pair, the same for equal prompts and another for others, in chunks: their order is the draw."""
    key = mix64(np.array([seed % 2**64], np.uint64))
    for start in range(0, len(hashes), _CHUNK):
        yield mix64(hashes[start : start + _CHUNK] ^ key)


def _smallest(hashes: NDArray[np.uint64], seed: int, rank: int) -> np.uint64:
    """The number at `rank` (from 1) of all that are drawn, in ascending order: 16 bits of it in each pass."""
    found = np.uint64(0)
    for shift in map(np.uint64, (48, 32, 16, 0)):
        counts = np.zeros(1 << 16, np.int64)
        for numbers in _drawn(hashes, seed):
            tail = (numbers >> shift) - (found << np.uint64(16))  # below 2^16 where the bits above are those found
            counts += np.bincount(tail[tail < 1 << 16].astype(np.int64), minlength=1 << 16)
        digit = int(np.searchsorted(np.cumsum(counts), rank))
        rank -= int(counts[:digit].sum())
        found = found << np.uint64(16) | np.uint64(digit)
    return found
