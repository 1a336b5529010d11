"""The bytes of a data file: decompressed piece by piece, cut into lines, no more of them held than were asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import zstandard

from orpo_ray.data.records import RAW_LIMIT

CHUNK_BYTES = 1 << 16


class Unreadable(Exception):
    """The content of a file is damaged or of no known kind."""


class Compression(NamedTuple):
    magic: bytes
    new: Callable[[], Any]
    """Makes the decompressor of one frame."""
    step: int
    """Bytes that it is given at a time: they become at most 32 MiB, by a thousandfold or, Zstandard, 32,768-fold."""


COMPRESSIONS = {
    ".gz": Compression(b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31), 1 << 14),
    ".zst": Compression(b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj(), 1 << 10),
}
"""By extension."""


class TooLong(NamedTuple):
    """In the place of bytes that are more than may be held."""

    beginning: bytes
    size: int
    blank: bool
    """White space alone."""


class Held:
    """Bytes that are gathered piece by piece, up to `most` of them; of more, only the beginning is kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begin()

    def _begin(self) -> None:
        self._parts: list[bytes] = []  # joined once, so many pieces cost no more than few
        self._size = 0
        self._blank = True

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        self._blank = self._blank and (not piece or piece.isspace())
        self._parts.append(piece)
        if self._size > self._most:
            self._parts = [b"".join(self._parts)[:RAW_LIMIT]]

    def take(self) -> bytes | TooLong:
        """What was gathered; gathering begins anew."""
        gathered = b"".join(self._parts)
        found = gathered if self._size <= self._most else TooLong(gathered, self._size, self._blank)
        self._begin()
        return found


def content(handle: BinaryIO, name: str) -> tuple[Iterator[bytes], bool]:
    """The pieces of an opened file's content, and whether they are decompressed. Raises `Unreadable`."""
    stored = handle.read(CHUNK_BYTES)
    found = next((each for each in COMPRESSIONS.values() if stored.startswith(each.magic)), None)
    if not stored and name.lower().endswith(tuple(COMPRESSIONS)):
        raise Unreadable("the compressed file is empty")
    chunks = _chunks(handle, stored)
    return (chunks, False) if found is None else (_decompressed(chunks, found), True)


def _chunks(handle: BinaryIO, stored: bytes) -> Iterator[bytes]:
    while stored:
        yield stored
        stored = handle.read(CHUNK_BYTES)


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _decompressed(chunks: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
    """The content of one compressed frame after another."""
    decompressor = compression.new()
    for part in (part for chunk in chunks for part in _cut(chunk, compression.step)):
        while part:
            if decompressor.eof:
                decompressor = compression.new()
            try:
                found = decompressor.decompress(part)
            except (zlib.error, zstandard.ZstdError) as error:
                raise Unreadable(f"damaged compressed data: {error}") from None
            if found:
                yield found
            part = decompressor.unused_data
    if not decompressor.eof:
        raise Unreadable("the compressed file is cut short")


def lines(chunks: Iterator[bytes], most: int) -> Iterator[bytes | TooLong]:
    """The lines of a file; each that has more than `most` bytes is passed over while it is read."""
    held = Held(most)
    for piece in (piece for chunk in chunks for piece in _cut(chunk, CHUNK_BYTES)):  # a list of lines takes far more
        first, *rest = piece.split(b"\n")
        held.add(first)
        for line in rest:
            yield held.take()
            held.add(line)
    yield held.take()
