"""Bytes of one data file to records: JSON Lines, JSON, Parquet and Arrow, plain or compressed.

Compression and container are told by their first bytes, so a wrong or missing extension does no harm. What
is wrong with a file's *content* becomes a record with an error; an error of the disk or the network passes
through.
"""

from __future__ import annotations

import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from orpo_ray.data.records import RAW_LIMIT, BadRecord, Record, as_json, one_line

CHUNK_BYTES = 1 << 16
ROWS_PER_BATCH = 1000
COMPRESSIONS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    ".gz": (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    ".zst": (b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj()),
}
"""Extension: (first bytes, new decompressor of one frame)."""
EXTENSIONS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


class Unreadable(Exception):
    """The content of a file is damaged or of no known kind."""


def read_file(handle: BinaryIO, name: str, numbers: Iterator[int]) -> Iterator[Record]:
    """Records of one open file, numbered by `numbers`; `name` is what locations call it.

    Damage that ends the reading (a file cut short, not Parquet at all) is one last record with an error. JSON
    Lines, Parquet and Arrow are streamed; a JSON array or `{"data": [...]}` is held in memory whole.
    """
    seen = 0
    location = name
    try:
        for location, value, raw in _entries(handle, name):
            seen += 1
            number = next(numbers)
            if isinstance(value, BadRecord):
                yield Record(number, location, None, value, raw)
            elif not isinstance(value, dict):
                found = BadRecord("not a record", f"expected an object with fields, found {_kind(value)}")
                yield Record(number, location, None, found, as_json(value))
            else:
                yield Record(number, location, value)
    except Unreadable as error:
        where = f"after {location}" if seen else name
        yield Record(next(numbers), name, None, BadRecord("unreadable file", f"{error} ({where})"), "")


def base_extension(path: str) -> str:
    """The extension of `path` beneath a compression's: `.jsonl` of `pairs.jsonl.gz`, or empty."""
    path = path.lower()
    for compression in COMPRESSIONS:
        path = path.removesuffix(compression)
    return next((extension for extension in EXTENSIONS if path.endswith(extension)), "")


Entry = tuple[str, Any, str | None]
"""Location, value or `BadRecord`, raw text where there is no value."""


def _entries(handle: BinaryIO, name: str) -> Iterator[Entry]:
    stored = handle.read(CHUNK_BYTES)
    compression = next((new for magic, new in COMPRESSIONS.values() if stored.startswith(magic)), None)
    if not stored and name.lower().endswith(tuple(COMPRESSIONS)):
        raise Unreadable("the compressed file is empty")
    chunks = _chunks(handle, stored) if compression is None else _decompressed(handle, stored, compression)
    head = next(chunks, b"")

    def seekable() -> BinaryIO:
        if compression is None and handle.seekable():
            handle.seek(0)
            return handle
        return io.BytesIO(head + b"".join(chunks))

    extension = base_extension(name)
    if head.startswith(b"PAR1") or extension == ".parquet":
        yield from _table_entries(_parquet_batches(seekable()), name)
    elif head.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or extension == ".arrow":
        yield from _table_entries(_arrow_batches(seekable()), name)
    else:
        yield from _json_entries(itertools.chain([head], chunks), name, extension)


def _chunks(handle: BinaryIO, stored: bytes) -> Iterator[bytes]:
    while stored:
        yield stored
        stored = handle.read(CHUNK_BYTES)


def _decompressed(handle: BinaryIO, stored: bytes, compression: Callable[[], Any]) -> Iterator[bytes]:
    """The content of one compressed frame after another."""
    decompressor = compression()
    for chunk in _chunks(handle, stored):
        while chunk:
            if decompressor.eof:
                decompressor = compression()
            try:
                content = decompressor.decompress(chunk)
            except (zlib.error, zstandard.ZstdError) as error:
                raise Unreadable(f"damaged compressed data: {error}") from None
            if content:
                yield content
            chunk = decompressor.unused_data
    if not decompressor.eof:
        raise Unreadable("the compressed file is cut short")


def _parquet_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    with _content_errors("Parquet"):
        yield from pq.ParquetFile(file).iter_batches(ROWS_PER_BATCH)


def _arrow_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow IPC file or, as `datasets` writes, a stream."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    with _content_errors("Arrow"):
        if is_file:
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            _require_sound(batch)
            yield batch


def _require_sound(batch: pa.RecordBatch) -> None:
    """Raises pyarrow's error where offsets or lengths are damaged: it would follow them out of its memory and die."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        for column in batch.columns:  # text that is not UTF-8 is a row's own affair, but may hide worse
            as_bytes = _BYTES.get(column.type)
            (column.view(as_bytes) if as_bytes else column).validate(full=True)


@contextmanager
def _content_errors(kind: str) -> Iterator[None]:
    """Turns pyarrow's errors about the content into `Unreadable`; those of the disk pass through."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of a column's name
        # pyarrow reports damaged pages as an OSError without errno; an error of the system carries one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Unreadable(f"not a whole {kind} file: {one_line(error)}") from None


def _table_entries(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[Entry]:
    row = 0
    for batch in batches:
        with _content_errors("readable"):
            names = batch.schema.names
        if len(set(names)) < len(names):
            raise Unreadable(f"the column {max(names, key=names.count)!r:.80} occurs twice")
        for value, raw in table_rows(batch):
            yield f"{name}[record {row}]", value, raw
            row += 1


def table_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[tuple[dict[str, Any] | BadRecord, str | None]]:
    """(value, None) of each row, or (error, raw text): its text is not UTF-8, or Python cannot hold its date."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        for i in range(batch.num_rows):
            row = batch.slice(i, 1)
            try:
                yield row.to_pylist()[0], None
            except (ValueError, OverflowError) as error:
                cells = {name: _cell(row.column(name)[0]) for name in row.column_names}
                found = BadRecord("no value", one_line(error))
                if isinstance(error, UnicodeDecodeError):
                    found = BadRecord("invalid UTF-8", error.reason)
                yield found, as_json(cells)
    else:
        yield from ((value, None) for value in values)


def _cell(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        as_buffer = getattr(cell, "as_buffer", None)
        if as_buffer is None:  # text nested in a list or a struct
            return "(not UTF-8)"
        return as_buffer().to_pybytes()[:RAW_LIMIT].decode("utf-8", "backslashreplace")
    except (ValueError, OverflowError) as error:  # such as a date of the year 300,000
        return f"({one_line(error)})"


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any] | BadRecord:
    """A JSON object; one that has a key twice says two things, and neither is taken."""
    value = dict(fields)
    if len(value) == len(fields):
        return value
    names = [name for name, _ in fields]
    return BadRecord("malformed JSON", f"the key {max(names, key=names.count)!r:.80} occurs twice")


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _json_entries(chunks: Iterator[bytes], name: str, extension: str) -> Iterator[Entry]:
    lines = _lines(chunks)
    first = b""
    skipped = 0
    for line in lines:
        first = line.removeprefix(b"\xef\xbb\xbf") if skipped == 0 else line
        if first.strip():
            break
        skipped += 1
    rest = itertools.chain([first], lines)
    is_document = _is_one_document(first.strip(), extension)
    if is_document and first.rstrip().endswith((b"]", b"}")):
        # Perhaps the first of many lines: then one that is no record must not take the others with it.
        following = []
        for line in lines:
            following.append(line)
            if line.strip():
                is_document = not _is_whole(first)
                break
        rest = itertools.chain([first, *following], lines)
    if is_document:
        yield from _document_entries(b"\n" * skipped + b"\n".join(rest), name)
    else:
        yield from _line_entries(rest, name, skipped + 1)


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_one_document(first: bytes, extension: str) -> bool:
    """Whether the file is one JSON value, rather than a JSON value on each line; told by its first line."""
    if first.startswith(b"["):
        return True
    if extension in {".jsonl", ".ndjson"}:
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):  # the first line of an object that goes on, or a malformed record
        return first.startswith(b"{") and (extension == ".json" or first == b"{")
    return isinstance(value, dict) and isinstance(value.get("data"), list) and "chosen" not in value


def _document_entries(content: bytes, name: str) -> Iterator[Entry]:
    try:
        document = _JSON.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"invalid UTF-8 in line {line}") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"not valid JSON in line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not usable JSON: {one_line(error)}") from None
    if isinstance(document, BadRecord):
        raise Unreadable(str(document))
    values = document.get("data") if isinstance(document, dict) else document
    if not isinstance(values, list):
        raise Unreadable('expected an array of records, or an object with an array "data"')
    for i, value in enumerate(values):
        yield f"{name}[record {i}]", value, "" if isinstance(value, BadRecord) else None


def _line_entries(lines: Iterator[bytes], name: str, first_number: int) -> Iterator[Entry]:
    """A value of each line; blank lines are no records."""
    for number, line in enumerate(lines, first_number):
        if not line or line.isspace():
            continue
        value: Any
        try:
            value = _JSON.decode(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            value = BadRecord("invalid UTF-8", f"byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            value = BadRecord("malformed JSON", f"{error.msg} at character {error.pos + 1}")
        except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
            value = BadRecord("malformed JSON", one_line(error))
        raw = line[:RAW_LIMIT].decode("utf-8", "backslashreplace") if isinstance(value, BadRecord) else None
        yield f"{name}:{number}", value, raw


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of a line that goes on; joined once, so long lines cost no more than short
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts = [rest[-1]]
    yield b"".join(parts)


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), type(value).__name__)
