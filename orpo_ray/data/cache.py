"""Tokenised records on disk, found again by a digest of all that decides them.

An entry is built in a folder beside its place and renamed into it, its manifest (with the size of every file)
written last: a folder without a manifest, or with a file of another size, was cut short and is built anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike, NDArray

from orpo_ray.atomic import new_folder
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.questions import PromptDataset
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.tokenization import Tokenized
from orpo_ray.errors import UserError
from orpo_ray.parsing import member, object_from_json

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
_PAIR = (0, 1)  # ranks
ARRAYS: dict[str, DTypeLike] = {
    "tokens.bin": np.int32,
    "bounds.bin": np.int64,
    "record_ids.bin": np.int64,
    "starts.bin": np.int64,
    "ranks.bin": np.int32,
    "prompt_hashes.bin": np.uint64,
    "question_hashes.bin": np.uint64,
}
LINES, LINE_STARTS = "questions.jsonl", "question_starts.bin"
"""Of records that are prompts alone: the questions, and where each begins; entries of others have neither."""
_AT_RANDOM = ("tokens.bin", LINES)


class Kept(NamedTuple):
    """A record that is to be kept."""

    record: int
    """Its index in the source."""
    tokenized: Tokenized
    ranks: tuple[int, ...]
    """Of its responses."""
    question: int
    """See `split.question_hash`."""
    line: bytes | None = None
    """Of a record that is a prompt alone (see `questions.as_line`); either all of an entry are, or none."""


@dataclass(frozen=True)
class TokenizedSource:
    """All kept records of one source, in its order."""

    pairs: PairDataset
    prompt_hashes: NDArray[np.uint64]
    """(records,): a hash of the prompt's token ids, equal for equal prompts."""
    question_hashes: NDArray[np.uint64]
    """(records,): a hash of the prompt's words, equal however they are written down."""
    account: Account
    quarantine: Path | None
    """`quarantine.jsonl`, where it holds any record."""
    digest: str
    """Of the records."""
    folder: Path
    """Where it lies; what follows from it may be kept there too."""
    highest: tuple[int, int]
    """The highest token id, and the index of the first record that has it; -1 twice where there is no pair."""


class CacheWriter:
    """Appends records and quarantined ones to the files of one entry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._highest = (-1, -1)
        self._end = 0  # of the tokens written so far
        self._bounds = 0  # numbers written of them
        self._line_end = 0
        self._only_pairs = True
        self._digest = hashlib.blake2b(digest_size=16)
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context((folder / name).open("wb"))
            for name in [*ARRAYS, QUARANTINE, LINES, LINE_STARTS]
        }

    def write(self, records: Sequence[Kept]) -> None:
        """Append records."""
        bounds, parts = [], []
        for kept in records:
            bounds.append(self._end)
            for part in (kept.tokenized.prompt, *kept.tokenized.responses):
                self._end += len(part)
                bounds.append(self._end)
                parts.append(part)
                if (highest := max(part, default=-1)) > self._highest[0]:
                    self._highest = highest, kept.record
        self._append("tokens.bin", np.fromiter(itertools.chain.from_iterable(parts), np.int32))
        self._append_lines([kept.line for kept in records if kept.line is not None])
        self._append("bounds.bin", bounds)
        self._append("record_ids.bin", [kept.record for kept in records])
        self._append("prompt_hashes.bin", [prompt_hash(kept.tokenized.prompt) for kept in records])
        # What a run is known by follows from tokens alone.
        self._append("question_hashes.bin", [kept.question for kept in records], counted=False)
        ranks = [kept.ranks for kept in records]
        counted = set(ranks) - {_PAIR}  # of pairs the digest is that of their tokens
        self._only_pairs &= not counted
        starts = self._bounds + np.cumsum([0, *(2 + len(each) for each in ranks)])
        self._append("starts.bin", starts[:-1], counted=bool(counted))
        self._append("ranks.bin", list(itertools.chain.from_iterable(ranks)), counted=bool(counted))
        self._bounds = int(starts[-1])

    def quarantine(self, record: Record, error: BadRecord) -> None:
        """Append a record that cannot be used: where it is, why, and its text (its beginning, if long)."""
        line = {"location": record.location, "reason": str(error), "raw": record.raw_text()}
        self._files[QUARANTINE].write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def _append_lines(self, lines: list[bytes]) -> None:
        """Rewards are of text, so a run is known by that too."""
        starts = self._line_end + np.cumsum([0, *map(len, lines)])
        self._files[LINE_STARTS].write(starts[:-1].astype(np.int64).tobytes())
        self._line_end = int(starts[-1])
        for line in lines:
            self._digest.update(line)
            self._files[LINES].write(line)

    def _append(self, name: str, values: Any, counted: bool = True) -> None:
        data = np.ascontiguousarray(values, dtype=ARRAYS[name]).tobytes()
        if counted:
            self._digest.update(data)
        self._files[name].write(data)

    def finish(self, account: Account) -> None:
        """Flush all to the disk, and write the manifest. Where all are pairs, nothing says so of each."""
        self._append("starts.bin", [self._bounds], counted=False)
        self._files[LINE_STARTS].write(np.int64(self._line_end).tobytes())
        if self._only_pairs:
            for name in ("starts.bin", "ranks.bin"):
                self._files[name].truncate(0)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._stack.close()
        if not self._line_end:
            for name in (LINES, LINE_STARTS):
                self._files.pop(name)
                (self.folder / name).unlink()
        sizes = {name: (self.folder / name).stat().st_size for name in self._files}
        with (self.folder / MANIFEST).open("w", encoding="utf-8") as manifest:
            written = {
                "sizes": sizes, "account": vars(account), "digest": self._digest.hexdigest(), "highest": self._highest,
            }  # fmt: skip
            json.dump(written, manifest, indent=1)
            manifest.flush()
            os.fsync(manifest.fileno())

    def close(self) -> None:
        self._stack.close()


def cache_key(parts: dict[str, Any]) -> str:
    """A digest of all that decides an entry's content."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_or_build(root: Path, key: str, build: Callable[[CacheWriter], Account]) -> TokenizedSource:
    """The entry `key` in the folder `root`; `build` fills it where there is none that is whole.

    Several processes of one machine wait for the first to build it. On a shared folder several machines may
    build it at once, each beside; the first to finish wins. Raises `UserError` where it cannot be written.
    """
    entry = root / key
    found = _read(entry)
    if found is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            found = _read(entry)  # another process may have built it while this one waited
            return found if found is not None else _build(entry, build)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{root}: cannot hold tokenised data: {reason}; set storage.cache to another folder") from error


def _build(entry: Path, build: Callable[[CacheWriter], Account]) -> TokenizedSource:
    with new_folder(entry) as new, closing(CacheWriter(new)) as writer:
        account = build(writer)
        account.check()
        writer.finish(account)
        if _read(entry) is None:  # what is there, if anything, is damaged
            shutil.rmtree(entry, ignore_errors=True)
    built = _read(entry)
    if built is None:
        raise UserError(f"{entry}: was changed while it was being built; run again, or set storage.cache")
    return built


def _read(entry: Path) -> TokenizedSource | None:
    """The entry, memory-mapped, or None where it is not there or not whole."""
    try:
        manifest = object_from_json((entry / MANIFEST).read_text(encoding="utf-8"))
        sizes, digest = member(manifest, "sizes", dict), member(manifest, "digest", str)
        account = Account.from_json(member(manifest, "account", dict))
        highest, record = map(int, member(manifest, "highest", list))
        names = [*ARRAYS, QUARANTINE, *((LINES, LINE_STARTS) if LINES in sizes else ())]
        whole = all((entry / name).stat().st_size == sizes[name] for name in names)
    except (OSError, ValueError, LookupError):
        return None
    if not whole:
        return None
    tokens, bounds, record_ids, starts, ranks, prompts, questions = (
        mapped(entry / name, dtype) for name, dtype in ARRAYS.items()
    )
    quarantine = entry / QUARANTINE if sizes[QUARANTINE] else None
    if LINES in sizes:
        lines, line_starts = mapped(entry / LINES, np.uint8), mapped(entry / LINE_STARTS, np.int64)
        pairs: PairDataset = PromptDataset(
            tokens, bounds, record_ids, source_starts=starts, source_ranks=ranks,
            lines=lines, line_starts=line_starts, file=entry / LINES,
        )  # fmt: skip
    elif len(starts):
        pairs = PairDataset(tokens, bounds, record_ids, source_starts=starts, source_ranks=ranks)
    else:
        pairs = PairDataset(tokens, bounds.reshape(-1, 4), record_ids)
    return TokenizedSource(pairs, prompts, questions, account, quarantine, digest, entry, (highest, record))


def mapped(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """A file's numbers, memory-mapped for reading."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if path.name in _AT_RANDOM:
        # Pairs are read in random order. Read-ahead, megabytes on many disks, would fetch their neighbours for nothing;
        # bounds are small enough that it soon has all of them.
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype)


def prompt_hash(prompt: list[int]) -> int:
    """A hash of a prompt's token ids."""
    digest = hashlib.blake2b(np.array(prompt, np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
