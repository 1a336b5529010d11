"""Folders: the data of a split once, as what lies there says, and refused with the candidates where it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fuzzing import assert_one_line, cases, damaged, damages, odd_values
from hypothesis import given
from hypothesis import strategies as st
from test_data_prepare import TOY, plain
from test_data_prepare import config as run_config
from test_data_sources import PAIRS, values

from orpo_ray.config import parse_config
from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data.folders import Folder, files_of_split
from orpo_ray.data.prepare import prepare
from orpo_ray.data.prompts import read_prompts
from orpo_ray.data.sources import open_source, read_records
from orpo_ray.errors import UserError


def files(names: list[str], split: str, notes: Mapping[str, str] = {}, subset: str | None = None) -> list[str]:
    """Of a folder `x` of such files; `notes` are those that are read."""
    folder = Folder("x", tuple(sorted({*names, *notes})), lambda name: notes[name].encode())
    return files_of_split(folder, split, subset)


# Names ---------------------------------------------------------------------------------------------------------------

HH = [
    f"{subset}/{split}.jsonl.gz"
    for subset in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
    for split in ("test", "train")
]
ULTRAFEEDBACK = [
    f"data/{split}_{kind}-{i:05}-of-{count:05}.parquet"
    for split in ("test", "train") for kind, count in (("gen", 1), ("prefs", 2), ("sft", 1)) for i in range(count)
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "split", "told"),
    [
        ([*HH, "red-team-attempts/red_team_attempts.jsonl.gz"], "train", HH[1::2]),
        ([*HH, "red-team-attempts/red_team_attempts.jsonl.gz"], "test", HH[::2]),
        (HH, "validation", "has files of test and train but none of split 'validation'; set data.train_split or"),
        (ULTRAFEEDBACK, "train", "split 'train' may be train_gen, train_prefs or train_sft; set data.train_split or"),
        (ULTRAFEEDBACK, "test", "split 'test' may be test_gen, test_prefs or test_sft;"),
        (ULTRAFEEDBACK, "train_prefs", ULTRAFEEDBACK[5:7]),
        (["train_prefs-00000-of-00001.parquet", "test_prefs-00000-of-00001.parquet"], "train", [0]),
        # Splits as the Hub names them, none of which is asked for.
        (["data/prefs-00000-of-00001.parquet", "data/sft-00000-of-00001.parquet"], "train", "may be data/prefs or"),
        (["data/prefs-00000-of-00001.parquet", "data/sft-00000-of-00001.parquet"], "sft", [1]),
        (["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"], "train", [0, 1]),
        # A hash behind the number, as `push_to_hub` once wrote.
        (["train-00000-of-00002-6192f2f1cbaf2d3c.parquet", "train-00001-of-00002-0123456789abcdef.parquet"], "train",
         [0, 1]),
        (["train-00000-of-00001-6192f2f1cbaf2d3c.parquet", "train-00000-of-00001-0123456789abcdef.parquet"], "train",
         "train-00000-of-00001-0123456789abcdef.parquet and train-00000-of-00001-6192f2f1cbaf2d3c.parquet may"),
        (["train-0-of-2.jsonl", "train-1-of-2.jsonl", "train-0-of-1.jsonl"], "train", "may hold the same records"),
        (["train-1-of-3.jsonl", "train-3-of-3.jsonl"], "train", "2 of the 3 parts are there that train-1-of-3"),
        (["train-1-of-2.jsonl", "train-2-of-2.jsonl"], "train", [0, 1]),
        # The same in two ways.
        (["train.jsonl", "train.jsonl.gz"], "train", "train.jsonl and train.jsonl.gz may hold the same records"),
        (["a/train.json", "a/train.jsonl", "test.json"], "train", "a/train.json and a/train.jsonl may"),
        (["jsonl/train.jsonl", "parquet/train.parquet"], "train", "jsonl/train.jsonl and parquet/train.parquet may"),
        (["a.csv", "b.jsonl"], "train", "a.csv and b.jsonl may hold the same records, to go by their names; name one"),
        (["train.jsonl", "statistics.csv", "test.csv"], "train", [0]),
        (["train.csv", "test.csv"], "train", [0]),
        (["a.csv", "b.tsv.xz"], "train", [0, 1]),
        (["a.jsonl", "b.json", "c.ndjson.zst"], "train", [0, 1, 2]),
        # One place within another.
        (["train.jsonl", "extra/train.jsonl"], "train", "may be train.jsonl or extra/train.jsonl"),
        (["data/train.jsonl", "data/old/2023/train.jsonl"], "train", "or data/old/2023/train.jsonl"),
        (["train/a.jsonl", "train/b/c.jsonl", "train/train/d.jsonl"], "train", [0, 1, 2]),
        # Words before the split part it, words behind it are splits of their own.
        (["harmless.train.jsonl", "helpful.train.jsonl", "helpful.test.jsonl"], "train", [0, 1]),
        (["harmless-train/a.jsonl", "helpful-train/a.jsonl"], "train", [0, 1]),
        (["train-a.jsonl", "train-b.jsonl"], "train", "may be train-a or train-b"),
        (["train_part_1.jsonl", "train_part_2.jsonl"], "train", [0, 1]),
        (["train_sft/a.jsonl", "train_prefs/a.jsonl"], "train", "may be train_prefs or train_sft"),
        # Splits in other cases and forms: nothing of the test set is trained on.
        (["Train.jsonl", "Test.jsonl"], "train", "has files of Test and Train but none of split 'train'"),
        (["Train.jsonl", "Test.jsonl"], "Train", [0]),
        (["TRAIN/a.jsonl", "TEST/a.jsonl"], "train", "has files of TEST and TRAIN but none of split 'train'"),
        (["train1.jsonl", "train2.jsonl", "test1.jsonl"], "train", "has files of test1, train1 and train2 but none"),
        (["train1.jsonl", "train2.jsonl"], "train", [0, 1]),
        (["training.jsonl", "testing.jsonl"], "train", "has files of testing and training but none of split"),
        (["Training-1.jsonl", "Training-2.jsonl"], "train", [0, 1]),
        (["Training.jsonl", "pairs.jsonl"], "train", "has files of Training but none of split 'train'"),
        # What `map` of `datasets` leaves.
        (["json-train.arrow", "cache-1229aa6c31f902d0.arrow", "cache-1229aa6c31f902d0_00000_of_00002.arrow"], "train",
         [0]),
        (["cache-1229aa6c31f902d0.arrow"], "train", "no data files in this folder (.jsonl, .ndjson, .json, .csv"),
        (["cache-flow.arrow"], "train", [0]),
    ],
)  # fmt: skip
def test_names(names: list[str], split: str, told: list[Any] | str) -> None:
    if isinstance(told, list):
        assert files(names, split) == sorted(name if isinstance(name, str) else names[name] for name in told)
        return
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        files(names, split)
    assert_one_line(caught.value, "x: ")


def test_files_that_are_passed_over_are_said(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl", "train.txt", "b/train.jsonl.zip", "README.md", ".git/x.json", "a.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(plain("What is one plus two?")) + "\n")
    told = "files of the folder that are not read: b/train.jsonl.zip, test.jsonl and train.txt"
    assert open_source(str(tmp_path), "train").remarks() == [told]
    _, account = read_prompts(PromptsConfig(source=str(tmp_path), split="train"), with_messages=False)
    assert account.remarks() == [told]
    assert open_source(str(tmp_path / "train.jsonl"), "train").remarks() == []
    settings = run_config(tmp_path / ".cache", tmp_path, eval=str(tmp_path), eval_split="test")
    for _ in range(2):  # and from the cache
        held = told.replace("test.jsonl and train.txt", "train.jsonl and train.txt")
        remarks = prepare(settings, TOY).remarks
        assert [remark for remark in remarks if "files of" in remark] == [f"{tmp_path}: {told}", f"{tmp_path}: {held}"]


PART = st.sampled_from(["train", "test", "train_prefs", "a-train", "data", "b", "x.train", "2024", "_y", ".z"])
NAME = st.builds(
    "{}{}{}".format, st.lists(PART, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "-1", "-00000-of-00001", "-00000-of-00002", "-00001-of-00002"]),
    st.sampled_from([".jsonl", ".json.gz", ".csv", ".parquet", ".txt"]),
)  # fmt: skip


@given(st.lists(NAME, max_size=6, unique=True), st.sampled_from(["train", "test", "data"]))
@cases(1000)
def test_no_record_twice_and_none_of_another_split(names: list[str], split: str) -> None:
    try:
        found = files(names, split)
    except UserError as error:
        assert_one_line(error, "x: ")
        return
    data = [name for name in names if not name.endswith(".txt") and "_y" not in name and ".z" not in name]
    assert found == sorted(set(found)) and set(found) <= set(data)
    words = {name: re.split(r"[^A-Za-z0-9]", name) for name in data}
    if any(split in parts for parts in words.values()):
        assert all(split in words[name] for name in found)
    else:
        assert found == sorted(data)
    stems = [name.split(".jsonl")[0].split(".json.gz")[0] for name in found]
    assert len(set(stems)) == len(stems)
    assert len({name.rpartition(".")[2] for name in found} - {"jsonl", "gz"}) <= 1


# What `datasets` saves -----------------------------------------------------------------------------------------------


def test_a_saved_data_set_with_caches_beside_it(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(PAIRS).save_to_disk(tmp_path / "saved", num_shards=2)
    before = [record.location for record in read_records(str(tmp_path / "saved"), "train")]
    datasets.load_from_disk(tmp_path / "saved").map(lambda pair: {"score": pair["score"] + 1})
    assert list((tmp_path / "saved").glob("cache-*.arrow"))
    for name in ("data-00000-of-00003.arrow", "tmp1a2b"):  # of an earlier saving, of a `map` that was killed
        (tmp_path / "saved" / name).write_bytes((tmp_path / "saved" / "data-00000-of-00002.arrow").read_bytes())
    records = list(read_records(str(tmp_path / "saved"), "train"))
    assert [record.value for record in records] == PAIRS
    assert [record.location for record in records] == before
    assert values(read_records(str(tmp_path), "train")) == PAIRS, "and in a folder around it"


def test_a_saved_dictionary_of_splits(tmp_path: Path) -> None:
    import datasets

    splits = {name: [{**pair, "prompt": name} for pair in PAIRS] for name in ("train_prefs", "test_prefs")}
    datasets.DatasetDict({name: datasets.Dataset.from_list(pairs) for name, pairs in splits.items()}).save_to_disk(
        tmp_path
    )
    datasets.load_from_disk(tmp_path)["train_prefs"].filter(lambda pair: pair["score"] > 1)
    assert values(read_records(str(tmp_path), "train_prefs")) == splits["train_prefs"]
    with pytest.raises(UserError, match=r"has the splits train_prefs and test_prefs but no 'train'; set data\.train_"):
        read_records(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({"state.json": "{"}, "x/state.json: not valid JSON"),
        ({"state.json": '{"_data_files": 3}'}, "x/state.json: _data_files should be a list"),
        ({"state.json": '{"_data_files": [{"filename": "../y.arrow"}]}'}, "names '../y.arrow', which is not there"),
        ({"state.json": '{"_data_files": [3]}'}, "x/state.json: names None, which is not there"),
        ({"state.json": '{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}'}, "selects from the data"),
        ({"dataset_dict.json": "[]"}, "x/dataset_dict.json: expected a JSON object"),
        ({"dataset_dict.json": '{"splits": ["train"]}'}, "split 'train', but train/state.json is missing"),
    ],
)
def test_damaged_notes_are_told(notes: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        files(["a.arrow"], "train", notes)
    assert_one_line(caught.value, "x")


def test_a_state_of_something_else_is_none() -> None:
    assert files(["a.arrow"], "train", {"state.json": '{"step": 3}'}) == ["a.arrow"]


# README.md -----------------------------------------------------------------------------------------------------------


def card(configs: Any) -> dict[str, str]:
    return {"README.md": f"---\nlicense: mit\nconfigs: {json.dumps(configs)}\n---\n# A data set\n\n---\n"}


def config(name: str, files: Any = None, **others: Any) -> dict[str, Any]:
    return {"config_name": name, **({} if files is None else {"data_files": files}), **others}


def of(split: str, path: Any) -> dict[str, Any]:
    return {"split": split, "path": path}


NAMES = [f"{kind}/{split}-{i}.parquet" for kind in ("prefs", "sft") for split in ("test", "train") for i in (0, 1)]
PREFS = config("prefs", [of("train", "prefs/train-*"), of("test", ["prefs/test-0.parquet", "prefs/test-1.parquet"])])
SFT = config("sft", [of("train", "sft/train-*.parquet")])


@pytest.mark.parametrize(
    ("configs", "split", "told"),
    [
        ([PREFS], "train", ["prefs/train-0.parquet", "prefs/train-1.parquet"]),
        ([PREFS, SFT], "test", ["prefs/test-0.parquet", "prefs/test-1.parquet"]),
        ([PREFS, SFT], "train", "README.md has split 'train' in the subsets prefs and sft; name one, as in x:prefs"),
        ([PREFS, {**SFT, "default": True}], "train", ["sft/train-0.parquet", "sft/train-1.parquet"]),
        ([PREFS, {**SFT, "default": True}], "test", "README.md has the splits train but no 'test'; set data."),
        ([PREFS, {**SFT, "config_name": "default"}], "train", ["sft/train-0.parquet", "sft/train-1.parquet"]),
        ([{**PREFS, "default": True}, {**SFT, "default": True}], "train", "more than one is the default"),
        ([config("a", "prefs/*")], "train", [name for name in NAMES if name.startswith("prefs")]),
        ([config("a", ["prefs/test*", "**/test-0.parquet"])], "train",
         ["prefs/test-0.parquet", "prefs/test-1.parquet", "sft/test-0.parquet"]),
        ([config("a", {"train": "./sft/test-1.parquet"})], "train", ["sft/test-1.parquet"]),
        ([config("a", "test-*", data_dir="sft")], "train", ["sft/test-0.parquet", "sft/test-1.parquet"]),
        ([config("a", data_dir="./sft/")], "test", ["sft/test-0.parquet", "sft/test-1.parquet"]),
        ([config("a", data_dir="nowhere")], "test", "the subset 'a' in 'nowhere/', where no data files are"),
        ([config("a")], "test", sorted(name for name in NAMES if "test" in name)),
        ([config("a", "../*/train-0.parquet")], "train", "no data file matches '../*/train-0.parquet'"),
        ([config("a", "hf://datasets/b/c.parquet")], "train", "no data file matches 'hf://datasets/b/c.parquet'"),
        ([config("a", "sft/**")], "train", [name for name in NAMES if name.startswith("sft")]),
        ([config("a", "**/*-[0]*")], "train", [name for name in NAMES if "-0" in name]),
        ([config("a", "sft/**/te?t-1.*")], "train", ["sft/test-1.parquet"]),
        ([config("a", "*" + "t*" * 99)], "train", "no data file matches"),
        ([config("a", "*-1.parquet")], "train", "no data file matches '*-1.parquet'"),
        ([config("a", "[")], "train", "split 'train': no data file matches '['"),
        ([config("a", "sft/**.parquet")], "train", "'a': in 'sft/**.parquet' ** is beside other characters"),
        ([config("a", 3)], "train", "configs: 'a': data_files should be a path, or a list of paths"),
        ([config("a", [of("train", []), of("test", "x")])], "train", "configs: 'a': data_files should be a path"),
        ([config("a", [of("train", "x"), of("train", "y")])], "train", "configs: 'a': data_files has a split twice"),
        ([config("a", [of("train", "x"), "y"])], "train", "each of data_files should have a split and a path"),
        ([config("a", data_dir=3)], "train", "configs: 'a': data_dir should be text"),
        ([PREFS, PREFS], "train", "each should have a config_name of its own"),
        ([{}], "train", "each should have a config_name of its own"),
        ([], "train", "configs should be a list of subsets"),
        ({"a": 1}, "train", "configs should be a list of subsets"),
    ],
)  # fmt: skip
def test_configs_of_a_card_decide(configs: Any, split: str, told: list[str] | str) -> None:
    if isinstance(told, list):
        assert files(NAMES, split, card(configs)) == told
        return
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        files(NAMES, split, card(configs))
    assert_one_line(caught.value, "x", "README.md")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Pairs\n",
        "---\nlicense: mit\n---\nconfigs:\n",
        "---\nconfigs: [\n",
        "no\n---\nconfigs: 3\n---\n",
        "\0\xff",
    ],
)
def test_a_readme_without_configs_says_nothing(text: str) -> None:
    assert files(["train.jsonl", "test.jsonl"], "train", {"README.md": text}) == ["train.jsonl"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("---\nlicense: mit\nconfigs: [}\n---\n", "x/README.md, line 3: not valid YAML"),
        ("---\nconfigs: &a [*a]\n---\n", "not valid YAML: an alias stands for what holds it"),
        ("---\r\nconfigs: 3\r\n---\r\n", "x/README.md: configs should be a list"),
    ],
)
def test_a_damaged_card_is_told(text: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        files(["train.jsonl"], "train", {"README.md": text})
    assert_one_line(caught.value)


@given(
    odd_values,
    st.sampled_from([
        lambda value: card(value), lambda value: card([value]), lambda value: card([config("a", value), PREFS]),
        lambda value: card([config("a", [of("train", value)], data_dir=value)]),
        lambda value: card([{"config_name": value}, {"config_name": value, "default": value}, config("b")]),
        lambda value: {"state.json": json.dumps(value)},
        lambda value: {"state.json": json.dumps({"_data_files": value})},
        lambda value: {"state.json": json.dumps({"_data_files": [{"filename": value}]})},
        lambda value: {"dataset_dict.json": json.dumps({"splits": value})},
    ]), damages,
)  # fmt: skip
@cases(1500)
def test_odd_notes_are_told_in_one_line(value: Any, wrap: Any, changes: list[tuple[str, int, int]]) -> None:
    notes = {name: damaged(text.encode(), changes) for name, text in wrap(value).items()}
    folder = Folder("x", tuple(sorted([*NAMES, *notes])), notes.__getitem__)
    try:
        assert set(files_of_split(folder, "train")) <= set(NAMES)
    except UserError as error:
        assert_one_line(error, "x")


def test_a_subset_stands_behind_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("prefs", "sft"):
        (folder / f"{name}-train.jsonl").write_text(json.dumps({"from": name}))
    (folder / "README.md").write_text(card([config("a", "prefs*"), config("b", "sft*")])["README.md"])
    assert values(read_records(f"{folder}:b", "train")) == [{"from": "sft"}]
    for source, told in ((f"{folder}", r"subsets a and b; name one, as in .*/pairs:a$"),
                         (f"{folder}:c", r"pairs: has no subset 'c': it has a and b$"),
                         (f"{tmp_path}:c", r"has no subset 'c': README.md declares none$")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            read_records(source, "train")
    monkeypatch.chdir(tmp_path)  # workers stand elsewhere
    own = parse_config({"name": "x", "model": {"name_or_path": "toy"}, "data": {"train": "pairs:b"}}, [], "test")
    assert own.with_absolute_paths().data.train == f"{folder}:b"
