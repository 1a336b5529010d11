"""Columns of the Parquet files that runs and evaluations leave, in the types that pages take them to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_ray.errors import UserError

TEXT, KEY, NUMBER, FLAG = pa.large_binary(), pa.int64(), pa.float64(), pa.bool_()
"""What a column may be read as; a key is never missing."""


def read_columns(
    path: Path, types: Mapping[str, pa.DataType], optional: Mapping[str, pa.DataType] | None = None
) -> dict[str, list[Any]]:
    """Columns of a Parquet file as lists. Bytes of a text that are not UTF-8 become U+FFFD: models write anything.

    `optional`: columns that are read where they are there. Raises `UserError`, naming the file, where it cannot be read
    so.
    """
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        missing = [name for name in types if name not in table.column_names]
        if missing:
            raise UserError(f"{path}: has no column {missing[0]}")
        there = {name: type for name, type in (optional or {}).items() if name in table.column_names}
        return {name: _values(table.column(name), type) for name, type in (dict(types) | there).items()}
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        said = str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__]
        raise UserError(f"{path}: cannot be read: {said[0]}") from None


def _values(column: Any, type: pa.DataType) -> list[Any]:
    values = column.cast(type).to_pylist()
    if type == KEY and None in values:
        raise ValueError("a row has no number")
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
