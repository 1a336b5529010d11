"""The bytes of a data file: decompressed piece by piece, cut into lines, no more of them held than were asked for."""

from __future__ import annotations

import bz2
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import zstandard

from orpo_ray.data.records import RAW_LIMIT
from orpo_ray.errors import UserError

CHUNK_BYTES = 1 << 16
WINDOW_BYTES = 1 << 27
"""What a decompressor may hold of what it has unpacked: Zstandard's own default, and twice what `xz -9` takes."""
_HEAD_BYTES = 512  # enough for a tar archive's mark
_FRAME_HEADER_BYTES = 18  # the most that a Zstandard frame's header has
_SHORTEST = 9
"""Bytes of an empty file's compressed content, of whichever has the fewest."""


class Unreadable(Exception):
    """The content of a file is damaged or of no known kind."""


class _LargeWindow(Exception):
    """To unpack a file takes more than `WINDOW_BYTES`."""


class _Zstandard:
    """One frame, as zlib's decompressors are. A frame of any declared window is read as far as that is held."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << zstandard.WINDOWLOG_MAX).decompressobj()
        self._header = b""
        self._size = 0

    def decompress(self, part: bytes) -> bytes:
        if len(self._header) < _FRAME_HEADER_BYTES:
            self._header += part[:_FRAME_HEADER_BYTES]
        found: bytes = self._decompressor.decompress(part)
        self._size += len(found)
        # The window fills as the frame is unpacked, so a small frame takes little, whatever its header allows for.
        if self._size > WINDOW_BYTES and zstandard.get_frame_parameters(self._header).window_size > WINDOW_BYTES:
            raise _LargeWindow
        return found

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decompressor.unused_data)


class Compression(NamedTuple):
    magic: re.Pattern[bytes]
    """How a file begins."""
    new: Callable[[], Any]
    """Makes the decompressor of one frame (gzip: member, bzip2 and xz: stream)."""
    step: int
    """Bytes that it is given at a time: they become at most 32 MiB, by a thousandfold or, Zstandard, 32,768-fold."""
    padded: bool = False
    """Zeros may stand behind a frame."""


COMPRESSIONS = {
    ".gz": Compression(re.compile(rb"\x1f\x8b"), lambda: zlib.decompressobj(wbits=31), 1 << 14, padded=True),
    # What `pzstd` writes, and others put between frames, begins with a frame to be skipped.
    ".zst": Compression(re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _Zstandard, 1 << 10),
    ".bz2": Compression(
        re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)"), bz2.BZ2Decompressor, CHUNK_BYTES
    ),
    ".xz": Compression(
        re.compile(rb"\xfd7zXZ\0"), lambda: lzma.LZMADecompressor(memlimit=WINDOW_BYTES), CHUNK_BYTES, padded=True
    ),
    ".lzma": Compression(
        re.compile(rb"\x5d\0\0"), lambda: lzma.LZMADecompressor(memlimit=WINDOW_BYTES), CHUNK_BYTES
    ),
}  # fmt: skip
"""By extension."""
_PIECE = 1 << 20  # of bzip2 and xz, where few bytes may become any number
_ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)  # OSError: bz2's

_FOREIGN = (
    (re.compile(rb"PK(?:\x03\x04|\x05\x06|\x07\x08)"), "a zip archive or a workbook: unpack it, or save it as CSV"),
    (re.compile(rb"(?s).{257}ustar"), "a tar archive: unpack it first"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive: unpack it first"),
    (re.compile(rb"Rar!\x1a\x07"), "a rar archive: unpack it first"),
    (re.compile(rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18"), "compressed by lz4: unpack it first"),
    (re.compile(rb"LZIP"), "compressed by lzip: unpack it first"),
    (re.compile(rb"\x1f\x9d"), "compressed by compress: unpack it first"),
    (re.compile(rb"\xff\x06\0\0sNaPpY"), "compressed by snappy: unpack it first"),
    (re.compile(rb"\xff\xfe(?!\xff)|\xfe\xff"), "UTF-16 text: save it as UTF-8"),
    (re.compile(rb"version https://git-lfs\."), "a pointer of Git LFS: fetch what it stands for by `git lfs pull`"),
    (
        re.compile(rb"\s*+<(?i:!doctype html|html)"),
        "a web page: a file of the Hub has /resolve/ in its address, not /blob/",
    ),
)
"""How files begin that are not read, and what they are told as."""


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


class Content(NamedTuple):
    """What a file holds, decompressed."""

    head: bytes
    """Its first bytes, some hundreds, or all of fewer."""
    chunks: Iterator[bytes]
    """All of it, the head too."""
    is_compressed: bool


def content(handle: BinaryIO, name: str) -> Content:
    """Raises `Unreadable` of what is damaged, and `UserError` of a sound file that is of no kind that is read."""
    stored = handle.read(CHUNK_BYTES)
    found = next((each for each in COMPRESSIONS.values() if each.magic.match(stored)), None)
    if found is None and len(stored) < _SHORTEST and name.lower().endswith(tuple(COMPRESSIONS)):
        raise Unreadable("the compressed file is cut short" if stored else "the compressed file is empty")
    chunks = _chunks(handle, stored)
    if found is not None:
        chunks = _decompressed(chunks, found, name)
    head = b""
    while len(head) < _HEAD_BYTES and (chunk := next(chunks, b"")):
        head += chunk
    told = next((told for begins, told in _FOREIGN if begins.match(head)), None)
    if found is not None and any(each.magic.match(head) for each in COMPRESSIONS.values()):
        told = "compressed twice: unpack it once"
    if told is not None:
        raise UserError(f"{name}: is {told}")
    return Content(head, itertools.chain([head], chunks), found is not None)


def _chunks(handle: BinaryIO, stored: bytes) -> Iterator[bytes]:
    while stored:
        yield stored
        stored = handle.read(CHUNK_BYTES)


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _decompressed(chunks: Iterator[bytes], compression: Compression, name: str) -> Iterator[bytes]:
    """The content of one compressed frame after another."""
    decompressor = compression.new()
    for part in (part for chunk in chunks for part in _cut(chunk, compression.step)):
        while part:
            if decompressor.eof:
                if compression.padded and not (part := part.lstrip(b"\0")):
                    break
                decompressor = compression.new()
            try:
                yield from filter(None, _unpacked(decompressor, part))
            except _LargeWindow:
                hint = "compress it again with a smaller one, as `zstd --long=27` and `xz -9` have"
                most = WINDOW_BYTES >> 20
                raise UserError(f"{name}: to unpack it takes a window of more than {most} MiB: {hint}") from None
            except _ERRORS as error:
                raise Unreadable(f"damaged compressed data: {error}") from None
            part = decompressor.unused_data
    if not decompressor.eof:
        raise Unreadable("the compressed file is cut short")


def _unpacked(decompressor: Any, part: bytes) -> Iterator[bytes]:
    if not isinstance(decompressor, bz2.BZ2Decompressor | lzma.LZMADecompressor):
        yield decompressor.decompress(part)
        return
    try:
        yield decompressor.decompress(part, _PIECE)
        while not decompressor.eof and not decompressor.needs_input:
            yield decompressor.decompress(b"", _PIECE)
    except lzma.LZMAError as error:
        if "Memory usage limit" in str(error):
            raise _LargeWindow from None
        raise


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
