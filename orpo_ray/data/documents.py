"""The records of a file that is one JSON document, read one at a time: a file of any size takes a record's memory.

What stands between the commas of the array is cut out, and is for `json` to judge, as a line of JSON Lines is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from orpo_ray.data.streams import Held, TooLong, Unreadable

_MARK = re.compile(rb'[\\"\[\]{},]')
_DATA = re.compile(rb'\s*"data"\s*:\s*')
_NO_ARRAY = 'expected an array of records, or an object with an array "data"'


def elements(chunks: Iterator[bytes], most: int) -> Iterator[bytes | TooLong]:
    """The elements of an array, or of the array "data" of an object, as they stand there.

    One that has more than `most` bytes is passed over while it is read. Raises `Unreadable` where the document is
    neither, or does not end where it should.
    """
    document, marks = _Document(most), _Marks()
    for chunk in chunks:
        start = 0
        for at, mark in marks.of(chunk):
            cut = document.at(mark, chunk[start:at])
            if cut is not None:
                start = at + 1
                yield from cut
        document.hold(chunk[start:])
    document.end()


class _Marks:
    """Where in a chunk brackets, braces and commas are that stand in no text, and which; texts may span chunks."""

    def __init__(self) -> None:
        self._in_text = False
        self._escaped = -1  # place of the character that the last backslash stands before

    def of(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        for match in _MARK.finditer(chunk):
            at, mark = match.start(), match[0]
            if at == self._escaped:
                continue
            if mark == b"\\":
                self._escaped = at + 1
            elif mark == b'"':
                self._in_text = not self._in_text
            elif not self._in_text:
                yield at, mark
        self._escaped -= len(chunk)


class _Document:
    def __init__(self, most: int) -> None:
        self._held = Held(most)
        """Of the present element, or of a member of the object around the array."""
        self._depth = 0
        self._level = 0
        """The depth within the array of records; 0: not in it."""
        self._count = 0
        self._has_array = self._over = False

    def at(self, mark: bytes, piece: bytes) -> list[bytes | TooLong] | None:
        """The elements that are complete at `mark`, where `piece` stands before it; None: `piece` goes on behind it."""
        if self._over:
            raise Unreadable("something follows the JSON")
        if mark == b",":
            return self._comma(piece) if self._depth == max(self._level, 1) else None
        if mark in b"[{":
            self._depth += 1
            return self._opened(mark, piece) if not self._level and self._depth <= 2 else None
        self._depth -= 1
        return self._closed(piece) if self._depth < max(self._level, 1) else None

    def _opened(self, mark: bytes, piece: bytes) -> list[bytes | TooLong]:
        """The document, or a member of it that may be the array."""
        if self._depth == 1 and piece.strip():
            raise Unreadable(_NO_ARRAY)
        self._held.add(piece)
        before = self._held.take()
        is_data = self._depth == 1 or (isinstance(before, bytes) and _DATA.fullmatch(before) is not None)
        if mark == b"[" and is_data:
            if self._has_array:
                raise Unreadable("the key 'data' occurs twice")
            self._level, self._has_array = self._depth, True
        return []

    def _comma(self, piece: bytes) -> list[bytes | TooLong]:
        self._held.add(piece)
        complete = self._held.take()
        if not self._level:
            return []
        self._count += 1
        return [complete]

    def _closed(self, piece: bytes) -> list[bytes | TooLong]:
        """The array of records, or the document."""
        self._held.add(piece)
        last = self._held.take()
        in_array, self._level = self._level, 0
        self._over = self._depth == 0
        return [last] if in_array and (self._count or not _is_blank(last)) else []

    def hold(self, piece: bytes) -> None:
        """The end of a chunk, which goes on in the next."""
        if piece.strip() and not (self._depth and not self._over):
            raise Unreadable("something follows the JSON" if self._over else _NO_ARRAY)
        self._held.add(piece)

    def end(self) -> None:
        if self._depth:
            raise Unreadable("the JSON is cut short")
        if not self._has_array:
            raise Unreadable(_NO_ARRAY)


def _is_blank(found: bytes | TooLong) -> bool:
    return found.blank if isinstance(found, TooLong) else not found.strip()
