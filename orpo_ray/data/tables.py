"""Rows of Parquet and Arrow files: batch by batch, and of what is large row by row.

A column of the type `arrow.json`, which `datasets` makes of values of several types, is stored as JSON text and read as
the values that this stands for. Text that merely looks like JSON stays text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_ray.data.json_values import decode
from orpo_ray.data.records import RAW_LIMIT, BadRecord, as_json, one_line, too_long
from orpo_ray.data.streams import Unreadable

ROWS_PER_BATCH = 100
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_UNREAD = 4
"""A Parquet row group whose rows have, on average, so many times more bytes than one may have is not read."""

Row = tuple[dict[str, Any] | BadRecord, str | None]
"""The value, or the error and the raw text."""


class _Unread(NamedTuple):
    """Rows that are passed over."""

    rows: int
    bytes_a_row: int


def parquet_rows(file: BinaryIO, most: int) -> Iterator[Row]:
    """Raises `Unreadable`. `most`: bytes that a row may have; one of more is an error."""
    return _rows(_parquet_batches(file, most), most)


def arrow_rows(file: BinaryIO, most: int) -> Iterator[Row]:
    """As `parquet_rows`, of an Arrow IPC file or, as `datasets` writes, a stream. Its batches are held whole."""
    return _rows(_arrow_batches(file), most)


def _parquet_batches(file: BinaryIO, most: int) -> Iterator[pa.RecordBatch | _Unread]:
    with _content_errors("Parquet"):
        parquet = pq.ParquetFile(file)
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            a_row = group.total_byte_size // max(group.num_rows, 1)
            if a_row > _UNREAD * most:
                yield _Unread(group.num_rows, a_row)
            else:
                rows = most // max(a_row, 1)
                yield from parquet.iter_batches(min(max(rows, 1), ROWS_PER_BATCH), row_groups=[number])


def _arrow_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
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
            column = column.storage if isinstance(column, pa.ExtensionArray) else column
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


def _rows(batches: Iterator[pa.RecordBatch | _Unread], most: int) -> Iterator[Row]:
    for batch in batches:
        if isinstance(batch, _Unread):
            yield from ((too_long(batch.bytes_a_row, "bytes a row on average", most), "") for _ in range(batch.rows))
            continue
        with _content_errors("readable"):
            names = batch.schema.names
        if len(set(names)) < len(names):
            raise Unreadable(f"the column {max(names, key=names.count)!r:.80} occurs twice")
        yield from table_rows(batch, most)


def table_rows(batch: pa.RecordBatch | pa.Table, most: int) -> Iterator[Row]:
    """(value, None) of each row, or (error, raw text): it has more than `most` bytes, its text is not UTF-8, a JSON
    column of it holds none, or Python cannot hold its date."""
    readers = _json_readers(batch.schema)
    for value, raw in _stored_rows(batch, most):
        if isinstance(value, BadRecord) or not readers:
            yield value, raw
            continue
        try:
            yield value | _read_as_json(value, readers), None
        except BadRecord as error:
            yield error, as_json(value)


def _stored_rows(batch: pa.RecordBatch | pa.Table, most: int) -> Iterator[Row]:
    """As `table_rows`, JSON as text."""
    if batch.nbytes <= most and not any(_repeats(field.type) for field in batch.schema):
        yield from _values(batch)
        return
    for i in range(batch.num_rows):
        for value, raw in _values(batch.slice(i, 1)):
            if isinstance(value, BadRecord) or (size := _bytes_at_least(value)) <= most:
                yield value, raw
            else:
                beginning = {name: _beginning(inner) for name, inner in value.items()}
                yield too_long(size, "bytes in one row", most), as_json(beginning)


_Reader = Callable[[Any], Any]


def _json_reader(kind: pa.DataType) -> _Reader | None:
    """What turns a value of this type, as pyarrow gives it, into that which the JSON in it stands for; None where the
    type holds no JSON at any depth. It raises `BadRecord` where text is no JSON."""
    read = _reader_of_present(kind)
    return None if read is None else lambda value: None if value is None else read(value)


def _reader_of_present(kind: pa.DataType) -> _Reader | None:
    if isinstance(kind, pa.JsonType):
        return _from_json
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _json_reader(kind.value_type)
    if pa.types.is_struct(kind):
        readers = _json_readers(kind.field(i) for i in range(kind.num_fields))
        return (lambda value: value | _read_as_json(value, readers)) if readers else None
    if pa.types.is_map(kind):
        item = _json_reader(kind.item_type)
        return item and (lambda pairs: [(key, item(value)) for key, value in pairs])
    if any(test(kind) for test in _LISTS):
        inner = _json_reader(kind.value_type)
        return inner and (lambda values: [inner(value) for value in values])
    return None


def _json_readers(fields: Iterable[pa.Field]) -> dict[str, _Reader]:
    """By the names of those fields that hold JSON."""
    return {field.name: reader for field in fields if (reader := _json_reader(field.type)) is not None}


_LISTS = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view,
    pa.types.is_large_list_view,
)  # fmt: skip


def _from_json(text: str) -> Any:
    found = decode(text)
    if isinstance(found, BadRecord):
        raise found
    return found


def _read_as_json(value: dict[str, Any], readers: dict[str, _Reader]) -> dict[str, Any]:
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read(value[name])
        except BadRecord as error:
            raise BadRecord(error.reason, f"{name!r:.80}: {str(error).removeprefix(f'{error.reason}: ')}") from None
    return found


def _repeats(kind: pa.DataType) -> bool:
    """Whether several rows may stand for the same bytes, so that together they are larger than the batch."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    tests = (
        pa.types.is_dictionary, pa.types.is_run_end_encoded, pa.types.is_string_view, pa.types.is_binary_view,
        pa.types.is_list_view, pa.types.is_large_list_view,
    )  # fmt: skip
    return any(test(kind) for test in tests) or any(_repeats(kind.field(i).type) for i in range(kind.num_fields))


def _bytes_at_least(value: Any) -> int:
    """Of a row as Python holds it: a byte for each character and item."""
    if isinstance(value, dict):
        return sum(1 + _bytes_at_least(inner) for inner in value.values())
    if isinstance(value, list):
        return sum(1 + _bytes_at_least(inner) for inner in value)
    return len(value) if isinstance(value, str | bytes) else 1


def _beginning(value: Any) -> Any:
    return value[:RAW_LIMIT] if isinstance(value, str | bytes | list) else value


def _values(batch: pa.RecordBatch | pa.Table) -> Iterator[Row]:
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
