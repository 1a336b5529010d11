"""Columns of JSON in Parquet and Arrow: read as what their text stands for; text that looks like JSON stays text."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.data.readers import read_file
from orpo_ray.data.records import Record
from orpo_ray.data.sources import HubSource, read_records


def arrow(table: pa.Table, new_writer: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with new_writer(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue().to_pybytes())


WRITERS: dict[str, Callable[[pa.Table], bytes]] = {
    "x.parquet": parquet,
    "without Arrow's schema.parquet": lambda table: parquet(table, store_schema=False),  # as others than pyarrow write
    "x.arrow": lambda table: arrow(table, pa.ipc.new_file),
    "stream.arrow": lambda table: arrow(table, pa.ipc.new_stream),
}


def read(table: pa.Table, name: str = "x.arrow", most: int = 1 << 20) -> list[Record]:
    return list(read_file(io.BytesIO(WRITERS[name](table)), name, itertools.count(), most))


values = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(st.sampled_from('ab"\\\n[]{},é🦜'), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=4,
)
JSON = pa.json_()
KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "JSON": (JSON, values),
    "list": (pa.list_(JSON), st.lists(values, max_size=3)),
    "large list": (pa.large_list(JSON), st.lists(values, max_size=3)),
    "fixed list": (pa.list_(JSON, 2), st.lists(values, min_size=2, max_size=2)),
    "lists": (pa.list_(pa.list_(JSON)), st.lists(st.lists(values, max_size=2), max_size=2)),
    "struct": (pa.struct({"j": JSON, "s": pa.string()}), st.fixed_dictionaries({"j": values, "s": st.text("[1]")})),
    "structs": (
        pa.list_(pa.struct({"s": pa.string(), "j": pa.list_(JSON)})),
        st.lists(st.fixed_dictionaries({"s": st.just('"s"'), "j": st.lists(values, max_size=2)}), max_size=2),
    ),
    "text": (pa.string(), st.sampled_from(['"a"', "[1]", '{"a": 1}', "null", "3", ""])),
    "texts": (pa.list_(pa.string()), st.lists(st.sampled_from(['"a"', "[1]", "null"]), max_size=2)),
}


def stored(value: Any, kind: pa.DataType) -> Any:
    """`value` with the text of JSON wherever the type has it."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.dumps(value)
    if pa.types.is_struct(kind):
        return {name: stored(value[name], kind.field(name).type) for name in value}
    if not pa.types.is_string(kind):
        return [stored(inner, kind.value_type) for inner in value]
    return value


def as_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    plain = pa.array([stored(value, kind) for value in values], without_json(kind))
    return plain.cast(kind)


def without_json(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.JsonType):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, without_json(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(without_json(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(without_json(kind.value_type))
    return pa.list_(without_json(kind.value_type)) if pa.types.is_list(kind) else kind


@given(st.data(), st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(WRITERS)), st.sampled_from([8, 1 << 20]))
@cases(600)
def test_json_of_any_nesting_is_read_as_its_value(data: st.DataObject, kind: str, name: str, most: int) -> None:
    type, strategy = KINDS[kind]
    rows = data.draw(st.lists(st.none() | strategy, min_size=1, max_size=3))
    found = read(pa.table({"id": range(len(rows)), "column": as_array(rows, type)}), name, most)
    assert len(found) == len(rows)
    for record, expected in zip(found, rows, strict=True):
        if record.error is None:
            assert record.value is not None
            assert record.value["column"] == expected
        else:
            assert record.error.reason == "too many characters" and most == 8


def test_a_cell_that_is_no_json_is_its_row_s_error() -> None:
    column = pa.ExtensionArray.from_storage(JSON, pa.array(['{"a": 1}', "{", None, '{"a": 1, "a": 2}', ""]))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 1, 1, 1, 2], pa.int32()), column[:2])
    for name in ("x.parquet", "x.arrow"):
        first, *found = read(pa.table({"chosen": column, "n": range(5), "lists": lists}), name)
        assert first.value == {"chosen": {"a": 1}, "n": 0, "lists": [{"a": 1}]}
        assert [str(record.error) for record in found] == [
            "malformed JSON: 'chosen': Expecting property name enclosed in double quotes at character 2",
            "None",
            "malformed JSON: 'chosen': the key 'a' occurs twice",
            "malformed JSON: 'chosen': Expecting value at character 1",
        ]
        assert json.loads(found[0].raw_text()) == {"chosen": "{", "n": 1, "lists": []}
    [record] = read(pa.table({"lists": lists[4:]}))
    assert "'lists': Expecting property name" in str(record.error)


def test_json_that_is_not_utf8_spoils_its_row_alone() -> None:
    column = pa.ExtensionArray.from_storage(JSON, pa.array([b'"good"', b'"\xff"'], pa.binary()).view(pa.string()))
    good, bad = read(pa.table({"chosen": column}))
    assert good.value == {"chosen": "good"}
    assert bad.error is not None and bad.error.reason == "invalid UTF-8"


MIXED: list[dict[str, Any]] = [
    {"prompt": 'Say "1".', "chosen": 'It is "1".\n', "rejected": [{"role": "user", "content": "a"}]},
    {"prompt": "b", "chosen": [{"role": "assistant", "content": "é"}], "rejected": [{"role": "user", "x": [1, "2"]}]},
    {"prompt": '["c"]', "chosen": {"a": None}, "rejected": []},
    {"prompt": "null", "chosen": None, "rejected": None},
]


def test_columns_that_datasets_makes_of_several_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "train.jsonl").write_text("\n".join(map(json.dumps, MIXED)))
    loaded = datasets.load_dataset(str(tmp_path / "repo"), split="train")
    assert isinstance(loaded.features["chosen"], datasets.Json)
    assert loaded.features["rejected"] == datasets.List(datasets.Json())
    loaded.to_parquet(tmp_path / "x.parquet")
    loaded.save_to_disk(tmp_path / "saved")
    for source in ("x.parquet", "saved"):
        assert [record.value for record in read_records(str(tmp_path / source), "train")] == MIXED
    assert [record.value for record in HubSource(str(tmp_path / "repo"), None, "train").records()] == MIXED
