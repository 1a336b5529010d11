"""Records and files of any size: what is held of them is bounded, what may be used of them is used."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from test_data_prepare import GOOD, account_of, config, plain
from test_data_tokenization import bytes_tokenizer
from test_training_pieces import config as run_config

from orpo_ray.config import parse_config
from orpo_ray.config.data import MAX_RECORD_CHARACTERS
from orpo_ray.config.evaluation import PromptsConfig, WinRateConfig, on_held_out
from orpo_ray.data import passes as module
from orpo_ray.data import toyworld
from orpo_ray.data.documents import elements
from orpo_ray.data.prepare import prepare
from orpo_ray.data.prompts import read_prompts
from orpo_ray.data.readers import read_file
from orpo_ray.data.records import Record, bytes_of
from orpo_ray.data.streams import TooLong, Unreadable
from orpo_ray.errors import UserError
from orpo_ray.storage.run_folder import RunFolder

TOY = toyworld.tokenizer()
TOO_MANY = "too many characters"


def as_lines(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


# Memory --------------------------------------------------------------------------------------------------------------

# `getrusage` would count what the process was forked from; the kernel's high-water mark is of this program alone.
_MEASURED = """
import sys
from orpo_ray.cli import main
try:
    main(sys.argv[2:])
finally:
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    open(sys.argv[1], "w").write(status["VmHWM"].split()[0])
"""


def test_huge_records_take_neither_memory_nor_time(tmp_path: Path) -> None:
    """A record of 52 MB took 12 GB and 80 s, a line of 190 MB in 185 kB went past 10 GB."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    words = json.dumps(plain("What is one?", chosen="Gladly, Ada! " * 4_000_000)).encode()
    assert len(words) > 52e6
    (folder / "record.jsonl").write_bytes(as_lines(GOOD) + words + b"\n" + as_lines(GOOD[:1]))
    with gzip.open(folder / "line.jsonl.gz", "wb", compresslevel=9) as file:
        file.write(as_lines(GOOD) + b'{"prompt": "' + b"a" * 190_000_000 + b'"}\n' + as_lines(GOOD[:1]))
    assert (folder / "line.jsonl.gz").stat().st_size < 190e3
    arguments = ["data", str(Path(__file__).parents[2] / "configs" / "toy-orpo.yaml"), "model.name_or_path=toy",
                 f"data.train={folder}", "data.eval=null", "data.eval_fraction=0.3", "data.on_bad_record=quarantine",
                 f"storage.path={tmp_path / 'runs'}"]  # fmt: skip
    command = [sys.executable, "-c", _MEASURED, str(tmp_path / "kibibytes"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = " ".join(re.sub(r"[^\w :.]", " ", done.stdout).split())
    assert "records read 10 kept 8 dropped 0 quarantined 2 too many characters 2" in told
    assert int((tmp_path / "kibibytes").read_text()) < 1 << 20
    (quarantine,) = (tmp_path / "runs").rglob("quarantine.jsonl")
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [line["location"] for line in lines] == [f"{folder}/line.jsonl.gz:4", f"{folder}/record.jsonl:4"]
    assert lines[0]["reason"] == (
        "too many characters: 190,000,014 bytes, where max_record_characters allows 18,000,000"
    )
    assert all(len(line["raw"]) == 4096 for line in lines)
    with pytest.raises(UserError) as caught:
        prepare(config(tmp_path, folder / "line.jsonl.gz"), TOY)
    assert str(caught.value) == (
        f"{folder}/line.jsonl.gz:4: {lines[0]['reason']}; mend the record, or set data.on_bad_record=quarantine to set "
        "such records aside"
    )


def test_as_much_is_tokenised_at_once_as_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which tokens come of it, and what the pairs are known by, does not depend on that."""
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(as_lines([plain(f"What is {i}?", "a" * (i % 97), "b") for i in range(600)]))
    settings = {"max_length": 64, "max_prompt_length": 32}
    before = prepare(config(tmp_path / "once", file, **settings), bytes_tokenizer())
    at_once: list[int] = []

    class Watched(module.PairTokenizer):
        def __call__(self, pairs: Any) -> Any:
            at_once.append(sum(text.characters for text in pairs))
            return super().__call__(pairs)

    monkeypatch.setattr(module, "PairTokenizer", Watched)
    monkeypatch.setattr(module, "CHARACTERS_AT_ONCE", 500)
    after = prepare(config(tmp_path / "parts", file, **settings), bytes_tokenizer())
    assert (after.digest, after.accounts) == (before.digest, before.accounts)
    assert len(at_once) > 50 and max(at_once) <= 500


# Characters ----------------------------------------------------------------------------------------------------------

MESSAGES = {
    "chosen": [{"role": "user", "content": "Q" * 10}, {"role": "assistant", "content": "A" * 20}],
    "rejected": [{"role": "user", "content": "Q" * 10}, {"role": "assistant", "content": "B" * 31}],
}
DIALOGUE = {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: no"}
SIZES = [
    (plain("é" * 10, "b" * 20, "c" * 30), 60),
    ({**plain("a" * 10, "b" * 20, "c" * 30), "notes": "x" * 1000}, 60),
    (MESSAGES, 10 + 20 + 31 + len("user") + 2 * len("assistant")),
    (DIALOGUE, len("\n\nHuman: Q\n\nAssistant:") + len(" yes") + len(" no")),
]


@pytest.mark.parametrize(("record", "size"), SIZES)
def test_the_characters_of_its_texts_count(record: dict[str, Any], size: int, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(as_lines([record, plain("x", "y", "z") if "prompt" in record else record]))
    template = "orpo" if record is MESSAGES else None
    for most, told in ((size, None), (size - 1, TOO_MANY)):
        own = config(tmp_path, file, max_record_characters=most, chat_template=template, eval=str(file))
        asked = PromptsConfig(source=str(file), max_record_characters=most)
        if told is None:
            assert account_of(prepare(own, bytes_tokenizer())).kept == 2
            assert read_prompts(asked, with_messages=True)[1].kept == 2
            continue
        for work in (lambda own=own: prepare(own, bytes_tokenizer()),
                     lambda asked=asked: read_prompts(asked, with_messages=False)):  # fmt: skip
            with pytest.raises(
                UserError, match=rf"pairs\.jsonl:1: {told}: {size} in its texts, where .* allows {most};"
            ):
                work()


def test_prompts_alone_count_alone(tmp_path: Path) -> None:
    file = tmp_path / "ask.jsonl"
    file.write_bytes(as_lines([{"prompt": "a" * 10, "notes": "x" * 99}, {"instruction": "b" * 20}]))
    config = PromptsConfig(source=str(file), max_record_characters=14, on_bad_record="quarantine")
    prompts, account = read_prompts(config, with_messages=False)
    assert (len(prompts), account.quarantined) == (1, {TOO_MANY: 1})
    account.check()


def test_a_checkpoint_s_win_rate_reads_as_the_run_does() -> None:
    own = run_config("data.eval=toy-test", "data.max_record_characters=77")
    asked = WinRateConfig(against="x", reward_model="toy")
    assert on_held_out(own, asked, {"policy": "y"}, "e", Path("/x"), 0).prompts.max_record_characters == 77


def test_a_run_from_before_goes_on(tmp_path: Path) -> None:
    """The setting does not make a run another: where it changes the pairs, their digest does."""
    own = run_config()
    folder = RunFolder(tmp_path / "run")
    folder.open_for(own)
    folder.append_metrics({"step": 1, "loss": 3.0})
    text = folder.config.read_text()
    folder.config.write_text("".join(line for line in text.splitlines(True) if "max_record_characters" not in line))
    folder.open_for(own)
    assert run_config("data.max_record_characters=9").digest() == own.digest()
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(as_lines([*GOOD, plain("What is one?", "Ada " * 50)]))
    digests = {
        most: prepare(config(tmp_path, file, max_record_characters=most, on_bad_record="quarantine"), TOY).digest
        for most in (100, 1000, 2000)
    }
    assert digests[100] != digests[1000] == digests[2000]


def test_the_default_has_room_for_long_contexts() -> None:
    """128,000 tokens, four characters each, in two whole dialogues."""
    assert MAX_RECORD_CHARACTERS > 2 * 128_000 * 4
    assert bytes_of(MAX_RECORD_CHARACTERS) < 20e6


# Containers ----------------------------------------------------------------------------------------------------------

RECORDS = st.lists(
    st.builds(lambda n, text: {"n": n, "text": text}, st.integers(0, 9), st.text(max_size=60)), max_size=6
)


def parquet(records: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def arrow(records: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(records)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def delimited(records: list[dict[str, Any]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["n", "text"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue().encode()


CONTAINERS: dict[str, Any] = {
    "x.jsonl": as_lines, "x.json": lambda records: json.dumps(records).encode(),
    "pretty.json": lambda records: json.dumps(records, indent=1).encode(),
    "data.json": lambda records: json.dumps({"version": "[1,", "data": records, "more": [{}]}).encode(),
    "x.parquet": parquet, "x.arrow": arrow, "x.csv": delimited,
}  # fmt: skip
PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def read(content: bytes, name: str, most: int = 1 << 20) -> list[Record]:
    return list(read_file(io.BytesIO(content), name, itertools.count(), most))


@given(RECORDS, st.sampled_from(sorted(CONTAINERS)), st.sampled_from(sorted(PACKED)), st.sampled_from([40, 75, 10**6]))
@example([{"n": 1, "text": "x" * 50}], "x.json", "", 40)
@example([{"n": 1, "text": "x" * 50}], "data.json", "", 40)
@example([{"n": 1, "text": "x" * 50}, {"n": 2, "text": '"\n'}], "x.csv", ".xz", 40)
@example([{"n": 1, "text": "\U0001f99c" * 20}, {"n": 2, "text": ""}], "x.parquet", ".zst", 40)
def test_what_is_too_long_is_counted_and_the_rest_is_read(
    records: list[dict[str, Any]], name: str, packing: str, most: int
) -> None:
    if not records and name in ("x.parquet", "x.arrow"):
        return
    found = read(PACKED[packing](CONTAINERS[name](records)), name + packing, most)
    assert [record.index for record in found] == list(range(len(records)))
    for record, given_record in zip(found, records, strict=True):
        if record.value is None:
            assert record.error is not None and record.error.reason == TOO_MANY
            assert len(json.dumps(given_record, indent=1)) + 20 > most
            assert len(record.raw_text().encode()) <= 4 * 4096
        else:
            assert record.value == (given_record if name != "x.csv" else {**given_record, "n": str(given_record["n"])})
            assert len(given_record["text"]) <= most


def test_a_first_line_that_is_too_long_does_not_take_the_others_with_it() -> None:
    long = json.dumps({"prompt": "x" * 200, "data": [1]}).encode()
    for name in ("x.jsonl", "x.json", "x"):
        first, *others = read(long + b"\n" + as_lines(GOOD), name, 100)
        assert first.error is not None and first.error.reason == TOO_MANY
        assert (first.location, [other.value for other in others]) == (f"{name}:1", GOOD)
    blank = b" " * 300 + b"\n" + as_lines(GOOD)
    assert [record.value for record in read(blank, "x.jsonl", 100)] == GOOD, "a long blank line is none"


def test_a_file_in_one_line_is_read_element_by_element() -> None:
    content = json.dumps({"version": 1, "info": 'a \\" [', "data": GOOD * 50}).encode()
    for name in ("x.json", "x"):
        assert [record.value for record in read(content, name, 200)] == GOOD * 50
    assert [record.value for record in read(json.dumps(GOOD * 50).encode(), "x.jsonl", 200)] == GOOD * 50


def test_csv_is_prepared_as_any_other_file_is(tmp_path: Path) -> None:
    pairs = [plain(f"Is {i} even?", 'Yes, "or" no.\n', "") if i == 3 else plain(f"Is {i} even?") for i in range(9)]
    files = {name: tmp_path / name for name in ("pairs.jsonl", "pairs.csv", "pairs.tsv", "pairs.txt")}
    files["pairs.jsonl"].write_bytes(as_lines(pairs))
    for name, delimiter in (("pairs.csv", ","), ("pairs.tsv", "\t"), ("pairs.txt", ",")):
        with files[name].open("w", newline="") as file:
            writer = csv.DictWriter(file, list(pairs[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(pairs)
    expected = prepare(config(tmp_path, files["pairs.jsonl"]), bytes_tokenizer())
    assert account_of(expected).dropped == {"empty response": 1}
    for name in ("pairs.csv", "pairs.tsv"):
        found = prepare(config(tmp_path, files[name]), bytes_tokenizer())
        assert (found.digest, account_of(found)) == (expected.digest, account_of(expected))
    for on_bad in ("error", "quarantine"):  # though tokens of the same bytes are cached
        with pytest.raises(UserError, match=r"pairs\.txt: begins with the header of a CSV or TSV file"):
            prepare(config(tmp_path, files["pairs.txt"], on_bad_record=on_bad), bytes_tokenizer())


def test_nothing_of_an_archive_is_kept(tmp_path: Path) -> None:
    """A zip that stores its files has most of their lines as they were."""
    file = tmp_path / "pairs.jsonl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("pairs.jsonl", as_lines(GOOD * 9))
    with pytest.raises(UserError, match=r"pairs\.jsonl: is a zip archive or a workbook: unpack it, or save it as CSV$"):
        prepare(config(tmp_path, file, on_bad_record="quarantine"), TOY)


# JSON documents ------------------------------------------------------------------------------------------------------


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


values = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\[]{},:\n é'), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\]}a', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, max_size=5), st.integers(1, 9), st.sampled_from([None, 0, 1]), st.booleans(), st.booleans())
def test_elements_are_those_of_the_array_whatever_the_chunks(
    array: list[Any], size: int, indent: int | None, in_object: bool, ascii_only: bool
) -> None:
    document: Any = {"a": {"data": [[1]]}, "data": array, "b]": [2, {"data": 3}]} if in_object else array
    content = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    found = list(elements(pieces(content, size), 10**6))
    assert [json.loads(element) for element in found if isinstance(element, bytes)] == array
    assert len(found) == len(array)
    for element in [] if in_object else elements(pieces(content, size), 8):
        assert element.size > 8 if isinstance(element, TooLong) else len(element) <= 8


@pytest.mark.parametrize(
    ("text", "found", "told"),
    [
        ("[]", [], None),
        (" [ ] ", [], None),
        ("[{}, ]", ["{}", " "], None),
        ("[,]", ["", ""], None),
        ("[1 2]", ["1 2"], None),
        ('[{"a": 1}', [], "the JSON is cut short"),
        ('[{"a": 1}, {"b": ', ['{"a": 1}'], "the JSON is cut short"),
        ('["]', [], "the JSON is cut short"),
        ("[1] [2]", ["1"], "something follows the JSON"),
        ("[1] x", ["1"], "something follows the JSON"),
        ("[1]]", ["1"], "something follows the JSON"),
        ("x [1]", [], 'expected an array of records, or an object with an array "data"'),
        ("3", [], 'expected an array of records, or an object with an array "data"'),
        ("", [], 'expected an array of records, or an object with an array "data"'),
        ('{"data": {"data": [1]}}', [], 'expected an array of records, or an object with an array "data"'),
        ('{"data": [1], "data": [2]}', ["1"], "the key 'data' occurs twice"),
        ("]", [], "the JSON is cut short"),
    ],
)
def test_documents_that_are_none(text: str, found: list[str], told: str | None) -> None:
    for size in (1, 3, 100):
        seen: list[bytes | TooLong] = []
        with nullcontext() if told is None else pytest.raises(Unreadable, match=f"^{re.escape(told)}$"):
            seen.extend(elements(pieces(text.encode(), size), 99))
        assert seen == ([element.encode() for element in found] if told is None else seen)


def test_one_element_that_is_malformed_does_not_take_the_others_with_it() -> None:
    found = read(b'[{"a": 1}, {"a": nope}, {"a": "\xff"}, {"a": 2}]', "x.json")
    assert [record.value for record in found] == [{"a": 1}, None, None, {"a": 2}]
    assert [record.error and record.error.reason for record in found[1:3]] == ["malformed JSON", "invalid UTF-8"]
    assert found[1].location == "x.json[record 1]"


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "list of dictionary"])
def test_rows_that_share_their_bytes_are_looked_at_one_by_one(kind: str) -> None:
    """A batch of them is small, and what Python makes of it is not."""
    texts = ["a" * 10, "b" * 500, "c"]
    types: dict[str, Any] = {"string": pa.string(), "large_string": pa.large_string(), "string_view": pa.string_view()}
    column = pa.array(texts, types.get(kind, pa.string()))
    if "dictionary" in kind:
        column = column.dictionary_encode()
    if kind.startswith("list"):
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), column)
    sink = pa.BufferOutputStream()
    table = pa.table({"text": column, "n": [1, 2, 3]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    first, second, third = read(sink.getvalue().to_pybytes(), "x.arrow", 100)
    assert (first.value, third.value) == tuple(table.to_pylist()[::2])
    assert second.error is not None and second.error.reason == TOO_MANY
    assert json.loads(second.raw_text())["n"] == 2


def test_a_row_group_of_huge_rows_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"text": letter * 3000} for letter in "ab"] + [{"text": "c"}]
    content = parquet(records)  # groups of two rows
    asked: list[list[int]] = []
    real = pq.ParquetFile.iter_batches

    def watched(self: Any, rows: int, row_groups: list[int]) -> Any:
        asked.append(row_groups)
        return real(self, rows, row_groups=row_groups)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    found = read(content, "x.parquet", 500)
    assert asked == [[1]]
    assert [record.error and record.error.reason for record in found] == [TOO_MANY, TOO_MANY, None]
    assert found[0].error is not None and "bytes a row on average" in str(found[0].error)


def test_batches_of_large_rows_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = pq.ParquetFile.iter_batches

    def watched(self: Any, rows: int, row_groups: list[int]) -> Any:
        asked.append(rows)
        return real(self, rows, row_groups=row_groups)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [f"{i}" * 300 for i in range(40)]}), sink, use_dictionary=False)
    assert len(read(sink.getvalue().to_pybytes(), "x.parquet", 2000)) == 40
    assert 1 <= max(asked) < 10


def test_settings_are_bounded() -> None:
    mapping = {"name": "x", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}
    for text in ("0", "-1", "null", "many"):
        with pytest.raises(UserError, match=r"data\.max_record_characters"):
            parse_config(mapping, [f"data.max_record_characters={text}"], "test")
