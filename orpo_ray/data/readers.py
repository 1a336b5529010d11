"""Bytes of one data file to records: JSON Lines, JSON, CSV, TSV, Parquet and Arrow, plain or compressed.

Compression and container are told by their first bytes, so a wrong or missing extension does no harm, but for CSV and
TSV, which have no mark and are told by theirs. What is wrong with a file's *content* becomes a record with an error; an
error of the disk or the network passes through, and a file of another kind is a `UserError`.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from orpo_ray.data.delimited import DELIMITERS, delimited_entries, is_header
from orpo_ray.data.documents import elements
from orpo_ray.data.json_values import decode
from orpo_ray.data.names import base_extension
from orpo_ray.data.records import RAW_LIMIT, BadRecord, Record, as_json, too_long
from orpo_ray.data.streams import CHUNK_BYTES, TooLong, Unreadable, content, lines
from orpo_ray.data.tables import Row, arrow_rows, parquet_rows
from orpo_ray.errors import UserError
from orpo_ray.parsing import from_json, kind

_BOM = b"\xef\xbb\xbf"
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_DATA_ARRAY = re.compile(rb'\{(?:\s*%b\s*:\s*(?:%b|[\w.+-]+)\s*,)*\s*"data"\s*:\s*\[' % (_TEXT, _TEXT))


def read_file(handle: BinaryIO, name: str, numbers: Iterator[int], most: int) -> Iterator[Record]:
    """Records of one open file, numbered by `numbers`; `name` is what locations call it.

    A record of more than `most` bytes, as it stands in the file, has an error; of a line, of an element of a JSON array
    and of a Parquet row group no more is held. Damage that ends the reading (a file cut short, not Parquet at all) is
    one last record with an error. Raises `UserError` where the file is sound and of a kind that is not read.
    """
    seen = 0
    location = name
    try:
        for location, value, raw in _entries(handle, name, most):
            seen += 1
            number = next(numbers)
            if isinstance(value, BadRecord):
                yield Record(number, location, None, value, raw)
            elif not isinstance(value, dict):
                found = BadRecord("not a record", f"expected an object with fields, found {kind(value)}")
                yield Record(number, location, None, found, as_json(value))
            else:
                yield Record(number, location, value)
    except Unreadable as error:
        where = f"after {location}" if seen else name
        yield Record(next(numbers), name, None, BadRecord("unreadable file", f"{error} ({where})"), "")


Entry = tuple[str, Any, str | None]
"""Location, value or `BadRecord`, raw text where there is no value."""


def _entries(handle: BinaryIO, name: str, most: int) -> Iterator[Entry]:
    head, whole, is_compressed = content(handle, name)
    extension = base_extension(name)
    rows: Iterator[Row] | None = None
    if head.startswith(b"PAR1") or extension == ".parquet":
        rows = parquet_rows(_seekable(handle, is_compressed, whole, most), most)
    elif head.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or extension == ".arrow":
        rows = arrow_rows(_seekable(handle, is_compressed, whole, most), most)
    if rows is not None:
        yield from ((f"{name}[record {row}]", value, raw) for row, (value, raw) in enumerate(rows))
    elif extension in DELIMITERS and not head.removeprefix(_BOM).lstrip().startswith((b"{", b"[")):
        yield from ((f"{name}:{line}", *entry) for line, *entry in delimited_entries(whole, extension, most))
    else:
        yield from _json_entries(whole, name, extension, most)


def _seekable(handle: BinaryIO, is_compressed: bool, chunks: Iterator[bytes], most: int) -> BinaryIO:
    """The content as a file to move about in; on the disk, where it is not one and larger than `most`."""
    if not is_compressed and handle.seekable():
        handle.seek(0)
        return handle
    spool = tempfile.SpooledTemporaryFile(most)  # noqa: SIM115 (it lives as long as its reader)
    for chunk in chunks:
        spool.write(chunk)
    spool.seek(0)
    return cast(BinaryIO, spool)


def _json_entries(chunks: Iterator[bytes], name: str, extension: str, most: int) -> Iterator[Entry]:
    opening, is_document = _opening(chunks, extension, most)
    if not is_document and is_header(opening):
        raise UserError(
            f"{name}: begins with the header of a CSV or TSV file, and not with JSON: let its name end in .csv or .tsv"
        )
    whole = itertools.chain([opening], chunks)
    if is_document:
        for i, element in enumerate(elements(whole, most)):
            yield f"{name}[record {i}]", *_decoded(element, most)
        return
    for number, line in enumerate(lines(whole, most), start=1):
        is_blank = line.blank if isinstance(line, TooLong) else not line or line.isspace()
        if not is_blank:  # blank lines are no records
            yield f"{name}:{number}", *_decoded(line, most)


def _decoded(text: bytes | TooLong, most: int) -> tuple[Any, str | None]:
    """The JSON value that `text` is, or the error and how the text begins."""
    value: Any
    if isinstance(text, TooLong):
        return too_long(text.size, "bytes", most), text.beginning.decode("utf-8", "backslashreplace")
    try:
        value = decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        value = BadRecord("invalid UTF-8", f"byte {error.start + 1} of the line")
    return value, text[:RAW_LIMIT].decode("utf-8", "backslashreplace") if isinstance(value, BadRecord) else None


def _opening(chunks: Iterator[bytes], extension: str, most: int) -> tuple[bytes, bool]:
    """The file up to where its second line that is not blank begins, or as much of it as may be held; and whether it is
    one JSON document, rather than a JSON value on each line."""
    held: list[bytes] = []
    size = 0
    first, has_second = None, False
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if b"\n" in chunk:
            first, has_second = _first_line(b"".join(held))
        if has_second or size > most:
            break
    opening = b"".join(held).removeprefix(_BOM)
    if size <= most or first is not None:
        first = _first_line(opening)[0] or opening
        return opening, _is_document(first.strip(), extension, has_second)
    first = opening.lstrip()
    is_data = extension not in {".jsonl", ".ndjson"} and _DATA_ARRAY.match(first[:CHUNK_BYTES]) is not None
    return opening, is_data or first.startswith(b"[")


def _first_line(text: bytes) -> tuple[bytes | None, bool]:
    """The first line that is not blank, None where its end is not in sight; and whether another begins behind it."""
    line, newline, rest = text.lstrip().partition(b"\n")
    return (line if newline and line else None), bool(rest.strip())


def _is_document(first: bytes, extension: str, has_second: bool) -> bool:
    """Told by the first line."""
    if not _begins_document(first, extension):
        return False
    # Perhaps the first of many lines: then one that is no record must not take the others with it.
    return not (has_second and first.endswith((b"]", b"}")) and _is_whole(first))


def _is_whole(line: bytes) -> bool:
    try:
        from_json(line)
    except ValueError:
        return False
    return True


def _begins_document(first: bytes, extension: str) -> bool:
    if first.startswith(b"["):
        return True
    if extension in {".jsonl", ".ndjson"}:
        return False
    try:
        value = from_json(first)
    except ValueError:  # the first line of an object that goes on, or a malformed record
        return first.startswith(b"{") and (extension == ".json" or first == b"{")
    return isinstance(value, dict) and isinstance(value.get("data"), list) and "chosen" not in value
