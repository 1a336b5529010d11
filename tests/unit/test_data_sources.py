"""Sources: every container and compression, damage, folders, URLs, the Hub's failures."""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import http.server
import importlib.util
import io
import itertools
import json
import lzma
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.data import streams
from orpo_ray.data.names import base_extension
from orpo_ray.data.records import Record
from orpo_ray.data.sources import HubSource, open_source, read_records
from orpo_ray.data.streams import TooLong, lines
from orpo_ray.errors import UserError

PAIRS: list[dict[str, Any]] = [
    {
        "prompt": f"Frage {i}: wie heißt das?",
        "chosen": f"gut {i} ✓",
        "rejected": "schlecht\n\n…",
        "score": i / 2,
    }
    for i in range(7)
]


def _arrow(pairs: list[dict[str, Any]], new_writer: Any) -> bytes:
    table = pa.Table.from_pylist(pairs)
    sink = pa.BufferOutputStream()
    with new_writer(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue().to_pybytes()


def _parquet(pairs: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(pairs), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


def _delimited(pairs: list[dict[str, Any]], before: str = "", **dialect: Any) -> bytes:
    file = io.StringIO(before, newline="")
    file.seek(0, io.SEEK_END)
    writer = csv.DictWriter(file, list(pairs[0]), quoting=csv.QUOTE_ALL, **dialect)
    writer.writeheader()
    writer.writerows(pairs)
    return file.getvalue().encode()


CONTAINERS = {
    "lines.jsonl": "\n".join(json.dumps(pair, ensure_ascii=False) for pair in PAIRS).encode(),
    "lines-in.json": "".join(json.dumps(pair) + "\n" for pair in PAIRS).encode(),
    "windows.jsonl": b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(pair) for pair in PAIRS).encode(),
    "array.json": json.dumps(PAIRS).encode(),
    "pretty.json": json.dumps(PAIRS, indent=2).encode(),
    "object.json": json.dumps({"version": 1, "data": PAIRS}).encode(),
    "pretty-object.json": json.dumps({"version": 1, "data": PAIRS}, indent=2).encode(),
    "table.parquet": _parquet(PAIRS),
    "file.arrow": _arrow(PAIRS, pa.ipc.new_file),
    "stream.arrow": _arrow(PAIRS, pa.ipc.new_stream),
    "table.csv": _delimited(PAIRS, lineterminator="\n"),
    "windows.csv": _delimited(PAIRS, "\ufeff"),
    "semicolons.csv": _delimited(PAIRS, delimiter=";"),
    "tabs.csv": _delimited(PAIRS, delimiter="\t"),
    "table.tsv": _delimited(PAIRS, delimiter="\t", lineterminator="\n"),
}
SKIPPABLE = b"".join(bytes([0x50 + i]) + b"\x2a\x4d\x18\5\0\0\0\xff{}\n\0" for i in range(16))


def in_two(compress: Callable[[bytes], bytes], between: bytes = b"") -> Callable[[bytes], bytes]:
    """A file of two frames, members or streams."""
    return lambda content: between + compress(content[:99]) + between + compress(content[99:]) + between


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
}  # fmt: skip
PARTED: dict[str, Callable[[bytes], bytes]] = {
    ".gz of two members": in_two(gzip.compress), ".bz2 of two streams": in_two(bz2.compress),
    ".xz of two streams": in_two(lzma.compress), ".zst of two frames": in_two(zstandard.compress),
    ".zst of pzstd": in_two(zstandard.compress, SKIPPABLE),
    ".zst of a long window": lambda content: _long_window(content, 27),
    ".gz and zeros": lambda content: gzip.compress(content) + bytes(1 << 20),
    ".gz zeros between": lambda content: gzip.compress(content[:99]) + bytes(999) + gzip.compress(content[99:]),
    ".xz and zeros": lambda content: lzma.compress(content) + bytes(8),
}  # fmt: skip
"""By an extension and, behind a space, what is particular."""


def _long_window(content: bytes, window_log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return bytes(compressor.compress(content) + compressor.flush())


def pairs_of(name: str) -> list[dict[str, Any]]:
    """What the container `name` holds: of CSV and TSV all is text."""
    if not name.endswith(("csv", "tsv")):
        return PAIRS
    return [{key: str(value) for key, value in pair.items()} for pair in PAIRS]


def values(records: Iterator[Record]) -> list[dict[str, Any] | None]:
    return [record.value for record in records]


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_and_compression(tmp_path: Path, name: str, compression: str) -> None:
    content = COMPRESSED[compression](CONTAINERS[name])
    for file in (tmp_path / (name + compression), tmp_path / "no-extension"):
        file.write_bytes(content)
        if file.name == "no-extension" and pairs_of(name) != PAIRS:
            with pytest.raises(UserError, match=r"no-extension: begins with the header of a CSV or TSV file, and not"):
                list(read_records(str(file), "train"))
            continue
        records = list(read_records(str(file), "train"))
        assert [record.value for record in records] == pairs_of(name)
        assert [record.index for record in records] == list(range(7))
        assert all(record.error is None for record in records)


@pytest.mark.parametrize("compression", PARTED)
def test_files_of_several_frames_and_what_stands_between_them(tmp_path: Path, compression: str) -> None:
    for name in ("lines.jsonl", "table.parquet", "table.csv"):
        file = tmp_path / (name + compression.partition(" ")[0])
        file.write_bytes(PARTED[compression](CONTAINERS[name]))
        assert values(read_records(str(file), "train")) == pairs_of(name)


def test_locations(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    lines.write_bytes(b'\n{"a": 1}\n\n{"a": 2}')
    table.write_bytes(CONTAINERS["table.parquet"])
    assert [record.location for record in read_records(str(lines), "train")] == [f"{lines}:2", f"{lines}:4"]
    assert [r.location for r in read_records(str(table), "train")][-1] == f"{table}[record 6]"


BAD_LINES = {
    b'{"prompt": "a", ': "malformed JSON",
    b"not json": "malformed JSON",
    b'{"a": "\xff"}': "invalid UTF-8",
    b"[1, 2]": "not a record",
    b'"text"': "not a record",
    b"null": "not a record",
    b"[" * 100_000: "malformed JSON",
    b'{"n": ' + b"9" * 5000 + b"}": "malformed JSON",
}


def test_a_bad_line_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"\n".join([b'{"a": 0}', *BAD_LINES, b'{"a": NaN}']))
    records = list(read_records(str(file), "train"))
    assert [record.value for record in records[:1]] == [{"a": 0}]
    assert [record.error and record.error.reason for record in records[1:-1]] == list(BAD_LINES.values())
    assert [record.location for record in records] == [f"{file}:{i}" for i in range(1, 11)]
    assert records[-1].value is not None  # NaN in a field that nobody reads does no harm
    assert records[3].raw_text() == '{"a": "\\xff"}'
    assert all(len(record.raw_text()) <= 4096 for record in records)


def test_invalid_utf8_in_a_table_spoils_its_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    text = pa.array([b"good", b"bad \xff", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"chosen": text, "n": [1, 2, 3]}), file)
    first, second, third = read_records(str(file), "train")
    assert (first.value, third.value) == ({"chosen": "good", "n": 1}, {"chosen": "fine", "n": 3})
    assert second.error is not None
    assert second.error.reason == "invalid UTF-8"
    assert json.loads(second.raw_text()) == {"chosen": "bad \\xff", "n": 2}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_file_cut_short_is_never_read_as_whole(tmp_path: Path, name: str, compression: str) -> None:
    content = COMPRESSED[compression](CONTAINERS[name])
    file = tmp_path / (name + compression)
    for length in (0, 1, len(content) // 2, len(content) - 9):
        file.write_bytes(content[:length])
        records = list(read_records(str(file), "train"))
        if length == 0 and not compression and ".arrow" not in name and ".parquet" not in name:
            assert records == []
        elif length == 1 and name == "windows.jsonl" and not compression:
            assert records[-1].error is not None
        else:
            assert records[-1].error is not None, (length, records[-1])
            assert str(file) in records[-1].location
        sound = [record.value for record in records[:-1]]
        assert sound == pairs_of(name)[: len(sound)]


def test_truncated_gzip_names_the_last_line_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl.gz"
    lines = b"".join(b'{"i": %d}\n' % i for i in range(50_000))
    file.write_bytes(gzip.compress(lines)[:-2000])
    records = list(read_records(str(file), "train"))
    seen = len(records) - 1
    assert 10_000 < seen < 50_000
    assert str(records[-1].error) == (f"unreadable file: the compressed file is cut short (after {file}:{seen})")


FOREIGN: dict[str, tuple[bytes, str]] = {
    "zip": (b"PK\x03\x04\x14\0\0\0\0\0" + CONTAINERS["lines.jsonl"], "a zip archive or a workbook: unpack it, or"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "a zip archive"),
    "tar": (
        b"pairs.jsonl".ljust(257, b"\0") + b"ustar\0".ljust(255, b"\0") + CONTAINERS["lines.jsonl"],
        "a tar archive",
    ),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(24), "a 7z archive: unpack it first"),
    "rar": (b"Rar!\x1a\x07\1\0" + bytes(24), "a rar archive"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7" + CONTAINERS["lines.jsonl"], "compressed by lz4: unpack it first"),
    "UTF-16": (CONTAINERS["lines.jsonl"].decode().encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a pointer of Git LFS: fetch",
    ),
    "web page": (b"\n<!doctype html>\n<html><body>Sign in</body></html>\n", "a web page: a file of the Hub has"),
    "twice": (gzip.compress(CONTAINERS["lines.jsonl"]), "compressed twice"),
}  # fmt: skip


@pytest.mark.parametrize("compression", ["", ".gz", ".xz"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_another_kind_of_file_is_told_and_none_of_it_read(tmp_path: Path, kind: str, compression: str) -> None:
    content, told = FOREIGN[kind]
    if kind == "twice" and not compression:
        return
    for name in (f"x.jsonl{compression}", f"x.csv{compression}", "x"):
        (tmp_path / name).write_bytes(COMPRESSED[compression](content))
        with pytest.raises(UserError, match=f"/{name}: is {told}") as caught:
            list(read_records(str(tmp_path / name), "train"))
        assert "\n" not in str(caught.value)


def test_real_archives_are_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_bytes(CONTAINERS["lines.jsonl"])
    for kind in ("zip", "tar", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "pairs"), kind, tmp_path / "data")
        with pytest.raises(UserError, match=f"is a {kind.removeprefix('gz')} archive"):
            list(read_records(archive, "train"))


@pytest.mark.parametrize("ending", [".zst", ".xz", ".lzma"])
def test_a_window_that_is_too_large_is_told(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zstandard's fills while it is read: a small file of a large window is read whole (the table above)."""
    lines = b"".join(b'{"i": "%d"}\n' % 10 ** (i % 1000) for i in range(4000))
    filters = [{"id": lzma.FILTER_LZMA2 if ending == ".xz" else lzma.FILTER_LZMA1, "dict_size": 1 << 21}]
    file = tmp_path / f"x.jsonl{ending}"
    if ending == ".zst":
        file.write_bytes(_long_window(lines, 21))
    else:
        file.write_bytes(
            lzma.compress(lines, lzma.FORMAT_XZ if ending == ".xz" else lzma.FORMAT_ALONE, filters=filters)
        )
    assert sum(record.value is not None for record in read_records(str(file), "train")) == 4000
    monkeypatch.setattr(streams, "WINDOW_BYTES", 1 << 20)
    with pytest.raises(UserError, match=rf"x\.jsonl{ending}: to unpack it takes a window of more than 1 MiB: compress"):
        list(read_records(str(file), "train"))


def test_few_bytes_that_become_many_come_in_pieces() -> None:
    for compression, size, most in ((".bz2", 1 << 23, 1 << 20), (".xz", 1 << 23, 1 << 20), (".zst", 1 << 27, 1 << 25)):
        packed = COMPRESSED[compression](bytes(size))
        sizes = [len(chunk) for chunk in streams.content(io.BytesIO(packed), f"x{compression}").chunks]
        assert sum(sizes) == size and max(sizes) <= most, compression


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(CONTAINERS["lines.jsonl"] + b"\nbroken")
    assert values(read_records(str(file), "train", limit=7)) == PAIRS


@given(st.lists(st.binary(max_size=8).map(lambda b: b.replace(b"x", b"\n"))), st.integers(0, 9))
def test_lines_do_not_depend_on_chunks(chunks: list[bytes], most: int) -> None:
    whole = b"".join(chunks).split(b"\n")
    expected = [line if len(line) <= most else TooLong(line, len(line), line.isspace()) for line in whole]
    assert list(lines(iter(chunks), most)) == expected


# Folders ------------------------------------------------------------------------------------------------


def _folder(root: Path, names: list[str]) -> str:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps({"from": i}))
    return str(root)


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (["b.jsonl", "a.jsonl", "README.md", ".hidden.jsonl"], "train", [1, 0]),
        (["train.jsonl", "test.jsonl"], "test", [1]),
        (
            ["data/train-00001-of-00002.jsonl", "data/train-00000-of-00002.jsonl", "data/test.jsonl"],
            "train",
            [1, 0],
        ),
        (["train/x.jsonl", "test/x.jsonl", "train/dataset_info.json"], "train", [0]),
        (["train_sft.jsonl", "train_prefs.jsonl", "test_prefs.jsonl"], "train_prefs", [1]),
        (["train.jsonl", "train_sft.jsonl"], "train", [0]),
        (
            ["harmless-base-train.jsonl", "helpful-base-train.jsonl", "helpful-base-test.jsonl"],
            "train",
            [0, 1],
        ),
    ],
)
def test_a_folder_gives_the_files_of_its_split(tmp_path: Path, names: list[str], split: str, read: list[int]) -> None:
    found = values(read_records(_folder(tmp_path, names), split))
    assert found == [{"from": i} for i in read]


def test_a_folder_without_the_split_or_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has files of test but none of split 'train'; set data\.train_split"):
        read_records(_folder(tmp_path / "a", ["x-test.jsonl"]), "train")
    with pytest.raises(UserError, match="no data files in this folder"):
        read_records(_folder(tmp_path / "b", ["README.md"]), "train")


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(PAIRS).save_to_disk(tmp_path / "saved")
    assert values(read_records(str(tmp_path / "saved"), "train")) == PAIRS


def test_records_of_a_folder_are_numbered_through(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(CONTAINERS["lines.jsonl"])
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "a.jsonl")
    records = list(read_records(str(tmp_path), "train"))
    assert [record.index for record in records] == list(range(21))
    assert records[7].location == f"{tmp_path}/b.jsonl:1"
    assert records[14].location == f"{tmp_path}/c.jsonl:1"


# URLs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server over `tmp_path` that knows no byte ranges."""
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_http(server: str, tmp_path: Path) -> None:
    for name in ("lines.jsonl", "table.parquet"):
        (tmp_path / f"{name}.zst").write_bytes(zstandard.compress(CONTAINERS[name]))
        (tmp_path / name).write_bytes(CONTAINERS[name])
        for url in (f"{server}/{name}", f"{server}/{name}.zst"):
            assert values(read_records(url, "train")) == PAIRS
    (tmp_path / "table.csv").write_bytes(CONTAINERS["table.csv"])
    assert values(read_records(f"{server}/table.csv?download=true", "train")) == pairs_of("table.csv")
    with pytest.raises(UserError, match=r"nowhere\.jsonl: cannot be read: 404"):
        list(read_records(f"{server}/nowhere.jsonl", "train"))
    before = open_source(f"{server}/lines.jsonl", "train").fingerprint()
    assert before == open_source(f"{server}/lines.jsonl", "train").fingerprint()
    (tmp_path / "lines.jsonl").write_bytes(CONTAINERS["lines.jsonl"] + b"\n{}")
    assert before != open_source(f"{server}/lines.jsonl", "train").fingerprint()


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("a.csv", ".csv"), ("A.CSV.GZ", ".csv"), ("a.jsonl.lzma", ".jsonl"), ("a.csv?x", ""), ("a.txt", ""),
        ("https://h/a.tsv.bz2?download=true#x", ".tsv"), ("https://h/a.csv", ".csv"), ("https://h/a?b=.csv", ""),
        ("zip://in/a.csv::https://h/b.zip", ".csv"), ("simplecache::s3://b/a.csv.xz", ".csv"),
    ],
)  # fmt: skip
def test_extensions(name: str, extension: str) -> None:
    assert base_extension(name) == extension


def test_a_file_in_an_archive_has_an_address(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as archive:
        archive.writestr("in/table.csv", CONTAINERS["table.csv"])
    source = f"zip://in/table.csv::{tmp_path}/pairs.zip"
    assert values(read_records(source, "train")) == pairs_of("table.csv")


def test_a_url_that_nobody_answers_is_one_line() -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/x\.jsonl: cannot be read: ") as caught:
        list(read_records("http://127.0.0.1:9/x.jsonl", "train"))
    assert "\n" not in str(caught.value)


def test_other_file_systems() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("train-0.jsonl", "test-0.jsonl"):
        memory.pipe(f"/sources/{name}", CONTAINERS["lines.jsonl"])
    try:
        records = list(read_records("memory://sources", "test"))
        assert [record.value for record in records] == PAIRS
        assert records[0].location == "memory://sources/test-0.jsonl:1"
        assert values(read_records("memory://sources/train-0.jsonl", "train")) == PAIRS
    finally:
        memory.rm("/sources", recursive=True)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_driver_is_named() -> None:
    with pytest.raises(UserError, match="Install s3fs"):
        read_records("s3://bucket/pairs.jsonl", "train")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl.gz", "no such file or folder$"),
        ("./nowhere", "no such file or folder$"),
        ("/nowhere/at/all", "no such file or folder$"),
        ("data/pairs.parquet", "no such file or folder$"),
        ("nowhere", "no such file or folder, and not a Hub id"),
        ("foo://bar/x.jsonl", "Protocol not known: foo"),
    ],
)
def test_a_source_that_is_not_there(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_records(source, "train"))


# The Hub and the embedded world -------------------------------------------------------------------------


def test_a_hub_id_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^nobody/no-such-pairs:sub: .*; .*give their folder$") as caught:
        list(read_records("nobody/no-such-pairs:sub", "train"))
    assert "\n" not in str(caught.value)


def test_hub_records_come_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("harmless", "helpful"):
        (tmp_path / "repo" / name).mkdir(parents=True)
        for split in ("train", "test"):
            pairs = [{**pair, "from": f"{name} {split}"} for pair in PAIRS]
            (tmp_path / "repo" / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    source = HubSource(str(tmp_path / "repo"), "helpful", "test")
    records = list(source.records())
    assert [record.value for record in records] == [{**pair, "from": "helpful test"} for pair in PAIRS]
    assert records[6].location.endswith("repo[record 6]")
    assert source.fingerprint() != HubSource(str(tmp_path / "repo"), "helpful", "train").fingerprint()
    with pytest.raises(UserError, match="is 'nosplit' one of its splits"):
        list(HubSource(str(tmp_path / "repo"), None, "nosplit").records())


def test_the_embedded_world() -> None:
    records = list(itertools.islice(read_records("toy", "train"), 3))
    assert [record.location for record in records] == ["toy[record 0]", "toy[record 1]", "toy[record 2]"]
    assert records[0].value is not None
    assert set(records[0].value) == {"prompt", "chosen", "rejected"}
    assert open_source("toy", "train").fingerprint() != open_source("toy-base", "train").fingerprint()


def test_a_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_bytes(CONTAINERS["lines.jsonl"])
    b.write_bytes(CONTAINERS["lines.jsonl"])
    assert open_source(str(a), "train").fingerprint() == open_source(str(b), "train").fingerprint()
    b.write_bytes(CONTAINERS["lines.jsonl"].replace(b"gut 3", b"gut 4"))
    assert open_source(str(a), "train").fingerprint() != open_source(str(b), "train").fingerprint()
