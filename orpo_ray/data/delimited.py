"""CSV and TSV: records end where lines do, outside of quotation marks, and their fields are named by the header.

Values are text; an empty cell is empty text. Where records end is found here, so that one of any size takes no more
memory than it may have; what stands in one is Python's `csv` to judge.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from typing import Any

from orpo_ray.data.records import RAW_LIMIT, BadRecord, one_line, too_long
from orpo_ray.data.streams import Held, TooLong, Unreadable

DELIMITERS = {".csv": b",;\t", ".tsv": b"\t,;"}
"""By extension, what parts fields: of these the first that the header has."""

_BOM = b"\xef\xbb\xbf"
_PEEK = 1 << 20  # bytes in which a header ends
_LONGEST = (1 << 31) - 1  # a field that `csv` can be told to allow
_QUOTED = re.compile(rb'"[^"]*"')
_NAME = rb'"?[A-Za-z_\x80-\xff][^{}\[\]":,;\t\r\n]{0,99}"?'
_HEADER = re.compile(rb"\s*+%b(?:[,;\t]%b)+\r?(?:\n|\Z)(?!\s*+[\[{])" % (_NAME, _NAME))

Entry = tuple[int, Any, str | None]
"""The line on which a record begins, counted from 1; value or `BadRecord`, raw text where there is no value."""


def is_header(opening: bytes) -> bool:
    """Whether a text begins as CSV or TSV does: with a line of two names or more, and no JSON behind it."""
    return _HEADER.match(opening) is not None


def delimited_entries(chunks: Iterator[bytes], extension: str, most: int) -> Iterator[Entry]:
    """The records of a file; one of more than `most` bytes is passed over while it is read.

    Raises `Unreadable` where the header cannot be read or names a field twice, or a quoted text does not end.
    """
    csv.field_size_limit(min(max(csv.field_size_limit(), most), _LONGEST))  # of the process; else 131,072 characters
    opening = b""
    while b"\n" not in opening.lstrip() and len(opening) < _PEEK and (chunk := next(chunks, b"")):
        opening += chunk
    opening = opening.removeprefix(_BOM)
    first = _QUOTED.sub(b"", opening.lstrip().partition(b"\n")[0])
    delimiter = next((chr(each) for each in DELIMITERS[extension] if each in first), ",")
    header: list[str] | None = None
    for line, text in _records(itertools.chain([opening], chunks), delimiter, most):
        if isinstance(text, bytes) and not text.rstrip(b"\r"):
            continue  # a blank line is no record
        fields = _fields(text, delimiter, most)
        if header is None:
            header = _names(fields, line)
        elif isinstance(fields, list) and len(fields) == len(header):
            yield line, dict(zip(header, fields, strict=True)), None
        else:
            yield line, _error(fields, len(header)), _beginning(text)


def _error(fields: list[str] | BadRecord, expected: int) -> BadRecord:
    if isinstance(fields, BadRecord):
        return fields
    return BadRecord("wrong number of fields", f"{len(fields)}, where the header names {expected}")


def _beginning(text: bytes | TooLong) -> str:
    return (text.beginning if isinstance(text, TooLong) else text[:RAW_LIMIT]).decode("utf-8", "backslashreplace")


def _names(fields: list[str] | BadRecord, line: int) -> list[str]:
    if isinstance(fields, BadRecord):
        raise Unreadable(f"the header, line {line}: {fields}")
    if len(set(fields)) < len(fields):
        raise Unreadable(f"the column {max(fields, key=fields.count)!r:.80} occurs twice")
    return fields


def _fields(text: bytes | TooLong, delimiter: str, most: int) -> list[str] | BadRecord:
    if isinstance(text, TooLong):
        return too_long(text.size, "bytes", most)
    try:
        return next(csv.reader([text.removesuffix(b"\r").decode("utf-8")], delimiter=delimiter, strict=True))
    except UnicodeDecodeError as error:
        return BadRecord("invalid UTF-8", f"byte {error.start + 1} of the record")
    except csv.Error as error:
        told = one_line(error)
        if "new-line character" in told:
            told = "a carriage return stands alone, outside of quotation marks; lines should end in a line feed"
        return BadRecord("malformed CSV", told)


def _records(chunks: Iterator[bytes], delimiter: str, most: int) -> Iterator[tuple[int, bytes | TooLong]]:
    """Each with its first line. As `csv` has it, what begins with a quotation mark is quoted, and nothing else."""
    marks = re.compile(b'["\n%b]' % re.escape(delimiter.encode()))
    held, line, seen, is_empty = Held(most), 1, 0, True
    begins, closed, quoted = 0, -2, False
    """Where in the chunk the present field begins; the last quotation mark that ended one; whether in between."""
    for chunk in chunks:
        start = 0
        for match in marks.finditer(chunk):
            at, mark = match.start(), match[0]
            if mark == b'"':
                if quoted:
                    quoted, closed = False, at
                elif at in (begins, closed + 1):  # the second of two stands for itself, and the text goes on
                    quoted = True
            elif not quoted:
                begins = at + 1
                if mark == b"\n":
                    held.add(chunk[start:at])
                    seen += chunk.count(b"\n", start, at) + 1
                    yield line, held.take()
                    start, line, is_empty = at + 1, 1 + seen, True
        held.add(chunk[start:])
        is_empty = is_empty and start == len(chunk)
        seen += chunk.count(b"\n", start)
        begins, closed = begins - len(chunk), closed - len(chunk)
    if quoted:
        raise Unreadable(f"a text in quotation marks that begins in line {line} or below does not end")
    if not is_empty:
        yield line, held.take()
