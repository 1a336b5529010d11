"""CSV and TSV: what Python's `csv` wrote is read back as text, and what is no record is told with its line."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from fuzzing import cases
from hypothesis import example, given
from hypothesis import strategies as st

from orpo_ray.data.delimited import delimited_entries
from orpo_ray.data.readers import read_file
from orpo_ray.data.records import Record
from orpo_ray.errors import UserError


def read(content: bytes, name: str = "x.csv", most: int = 1 << 20) -> list[Record]:
    return list(read_file(io.BytesIO(content), name, itertools.count(), most))


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


cells = st.text(st.sampled_from('ab",;\t\n\r é\0{['), max_size=6)


@given(
    st.lists(st.lists(cells, min_size=2, max_size=2), max_size=5),
    st.sampled_from([(",", ".csv"), (";", ".csv"), ("\t", ".csv"), ("\t", ".tsv"), (",", ".tsv")]),
    st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.integers(1, 9), st.sampled_from([12, 10**6]),
)  # fmt: skip
@example([["a", "b" * 20]], (",", ".csv"), "\n", True, False, 3, 12)
@cases(3000)
def test_what_was_written_is_read(
    rows: list[list[str]], kind: tuple[str, str], ending: str, quote_all: bool, with_mark: bool, size: int, most: int
) -> None:
    delimiter, extension = kind
    if not quote_all:  # `csv` writes a carriage return without quotation marks, and then it ends a line
        rows = [[cell.replace("\r", "") for cell in row] for row in rows]
    file = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    begins = []
    for row in [["p", "q"], *rows]:
        begins.append(1 + file.getvalue().count("\n"))
        writer.writerow(row)
    content = (b"\xef\xbb\xbf" if with_mark else b"") + file.getvalue().encode()
    found = list(delimited_entries(pieces(content, size), extension, most))
    assert [line for line, _, _ in found] == begins[1:]
    for (_, value, raw), row in zip(found, rows, strict=True):
        if isinstance(value, dict):
            assert value == dict(zip("pq", row, strict=True)) and raw is None
        else:
            assert value.reason == "too many characters" and raw is not None
            assert len("".join(row).encode()) * 2 + 6 > most


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", []),
        (b"\n\r\n", []),
        (b"a,b\n", []),
        (b"a,b\n1,\n,2", [(2, {"a": "1", "b": ""}), (3, {"a": "", "b": "2"})]),
        (b",a\n0,1\n", [(2, {"": "0", "a": "1"})]),  # an index that pandas wrote
        (b'a\nx\n\n"y, z"\n', [(2, {"a": "x"}), (4, {"a": "y, z"})]),
        (b'a,b\n5" disk,"5"" disk"\n', [(2, {"a": '5" disk', "b": '5" disk'})]),
        (b'a,b\n1, "x"\n', [(2, {"a": "1", "b": ' "x"'})]),
        (b'"a;x",b\n1,2\n', [(2, {"a;x": "1", "b": "2"})]),
        (b"a;b\n1;2,5\n", [(2, {"a": "1", "b": "2,5"})]),
        (b'a,b\n1\n1,2,3\n"4\n\n",5\n6,7,\n', [
            (2, "wrong number of fields: 1, where the header names 2"),
            (3, "wrong number of fields: 3, where the header names 2"),
            (4, {"a": "4\n\n", "b": "5"}),
            (7, "wrong number of fields: 3, where the header names 2"),
        ]),
        (b'a,b\n"x"y,2\n3,4\n', [(2, "malformed CSV: ',' expected after '\"'"), (3, {"a": "3", "b": "4"})]),
        (b"a,b\n1,\xff\n3,4\n", [(2, "invalid UTF-8: byte 3 of the record"), (3, {"a": "3", "b": "4"})]),
        (b'a,b\n1,2\n3,"4\n5,6\n', [
            (2, {"a": "1", "b": "2"}), (0, "a text in quotation marks that begins in line 3 or below does not end"),
        ]),
        (b'"a,b\n', [(0, "a text in quotation marks that begins in line 1 or below does not end")]),
        (b"a,b,a\n1,2,3", [(0, "the column 'a' occurs twice")]),
        (b"\xff,b\n1,2", [(0, "the header, line 1: invalid UTF-8")]),
        (b"a,b\r1,2\r", [(0, "the header, line 1: malformed CSV: a carriage return stands alone")]),
        (b"a" * 99 + b"\n1\n", [(0, "the header, line 1: too many characters")]),
        (b"a,b\n" + b"x" * 99 + b',1\n3,4\n5,"' + b'"",\n' * 30 + b'"\n6,7\n', [
            (2, "too many characters: 101 bytes, where max_record_characters allows 90"), (3, {"a": "3", "b": "4"}),
            (4, "too many characters: 124 bytes, where max_record_characters allows 90"), (35, {"a": "6", "b": "7"}),
        ]),
    ],
)  # fmt: skip
def test_records_and_what_is_none(content: bytes, told: list[tuple[int, Any]]) -> None:
    records = read(content, most=90)
    assert len(records) == len(told)
    for record, (line, expected) in zip(records, told, strict=True):
        assert record.location == (f"x.csv:{line}" if line else "x.csv")
        if isinstance(expected, dict):
            assert record.value == expected
        else:
            assert expected in str(record.error)
            assert (record.error is not None) and (record.error.reason == "unreadable file") == (line == 0)


def test_a_field_may_be_as_long_as_a_record() -> None:
    """Of its own accord `csv` reads fields of 131,072 characters."""
    [record] = read(b"a,b\n1," + b"x" * 500_000 + b"\n")
    assert record.value == {"a": "1", "b": "x" * 500_000}


def test_json_by_a_name_of_csv_is_json() -> None:
    for content in (b'\n{"a": "1,2"}\n', b'[{"a": "1,2"}]', b'\xef\xbb\xbf{"a": "1,2"}'):
        for name in ("x.csv", "x.tsv"):
            assert [record.value for record in read(content, name)] == [{"a": "1,2"}]


@pytest.mark.parametrize("name", ["x.txt", "x", "x.jsonl", "x.json"])
def test_csv_by_another_name_is_told(name: str) -> None:
    for content in (
        b"prompt,chosen,rejected\nIs 0 even?,Yes,No\n", b"\xef\xbb\xbf\r\nid;prompt;answer\r\n1;a;b\r\n", b"a\tb",
        b'"prompt","chosen answer","rejected"\n"a","b","c"\n', "Frage,größte Antwort\na,b\n".encode(),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            read(content, name)
        assert str(caught.value) == (
            f"{name}: begins with the header of a CSV or TSV file, and not with JSON: let its name end in .csv or .tsv"
        )


def test_a_first_line_that_is_no_record_is_no_header() -> None:
    for first in (b"some words, and more", b'"a": 1, "b": 2}', b"1,2", b"{a, b}", b"a"):
        found = read(first + b'\n{"a": 1}\n', "x.jsonl")
        assert [record.value for record in found] == [None, {"a": 1}]
        assert found[0].error is not None and found[0].error.reason in ("malformed JSON", "not a record")
