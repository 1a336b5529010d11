"""Lengths as they are before any record is cut: shown, suggested from, and not known of what an older version cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_data_prepare import account_of, config, plain, write
from test_data_tokenization import bytes_tokenizer

from orpo_ray.data import lengths
from orpo_ray.data.cache import MANIFEST
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.data.summary import print_summary, summarize
from orpo_ray.terminal import Console
from orpo_ray.training.remarks import cut_answers

TOKENIZER = bytes_tokenizer()
RECORDS = [plain("p" * (3 + i), "c" * (8 + 2 * i), "r" * (5 + i)) for i in range(100)]
"""A token a letter, BOS before the prompt and EOS behind a response."""
CUT = {"max_length": 128, "max_prompt_length": 64}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", RECORDS)


def printed(tmp_path: Path, settings, width: int = 160) -> str:
    console = Console(width=width, record=True, file=(tmp_path / "out").open("w"))
    print_summary(settings, console, TOKENIZER)
    return console.export_text()


def test_lengths_are_those_before_cutting(pairs: Path, tmp_path: Path) -> None:
    cut, whole = (summarize(config(tmp_path, pairs, **limits), TOKENIZER) for limits in (CUT, {"max_length": 4096}))
    assert cut.lengths.tolist() == whole.lengths.tolist()
    assert cut.lengths[:, -1].tolist() == [103, 207, 105, 310]
    assert not cut.after_cutting and whole.cut == (0, 0, 0)
    assert cut.train.lengths().sum(axis=1).max() < whole.train.lengths().sum(axis=1).max()
    account = next(iter(cut.accounts.values()))
    assert cut.cut == (account.cut_prompts, account.cut_chosen, account.cut_rejected) and min(cut.cut[:2]) > 30
    text = " ".join(printed(tmp_path, config(tmp_path, pairs, **CUT)).replace("│", " ").split())
    assert "Tokens of kept records before cutting" in text
    assert f"{cut.cut[1]} ({cut.cut[1]}.0%)" in text, "of a hundred records"
    assert "data.max_length=320, and of prompts into data.max_prompt_length=128 (here 128 and 64)" in text


def test_limits_that_are_suggested_cut_one_in_a_hundred(pairs: Path, tmp_path: Path) -> None:
    found = account_of(prepare(config(tmp_path, pairs, **CUT), TOKENIZER)).uncut
    assert found is not None
    limits = lengths.suggested(found)
    assert limits is not None
    assert limits.max_length % 64 == 0 and limits.max_prompt_length % 64 == 0
    settings = config(tmp_path, pairs, max_length=limits.max_length, max_prompt_length=limits.max_prompt_length)
    account = account_of(prepare(settings, TOKENIZER))
    assert account.cut_prompts + account.cut_chosen + account.cut_rejected <= 1
    assert cut_answers(settings, prepare(settings, TOKENIZER)) == ""


def test_a_prompt_that_is_nearly_all_of_a_record_leaves_room() -> None:
    counted = lengths.none_yet()
    lengths.count(counted, 126, [2], [1])
    assert lengths.suggested(counted) == (192, 128)
    assert lengths.suggested(lengths.none_yet()) is None
    assert sorted(lengths.values(counted["record"] + counted["prompt"])) == [126, 128]


def forget_lengths(tmp_path: Path, *, count: int = 1) -> None:
    """As an earlier version left its manifests."""
    manifests = [*tmp_path.glob(f"*/*/{MANIFEST}"), *tmp_path.glob(f"*/{MANIFEST}")]
    assert len(manifests) == count
    for file in manifests:
        found = json.loads(file.read_text())
        del found["account"]["uncut"]
        file.write_text(json.dumps(found))


def same_tokens(a: PreparedData, b: PreparedData) -> bool:
    parts = [(a.train, b.train), (a.eval, b.eval)]
    alike = all(
        np.array_equal(x, y) for one, other in parts for i in range(len(one))
        for x, y in zip(one.pair(i), other.pair(i), strict=True)
    )  # fmt: skip
    return a.digest == b.digest and alike


def test_what_an_earlier_version_cut_is_read_on_and_said_to_be_cut(pairs: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, pairs, **CUT)
    before = prepare(settings, TOKENIZER)
    forget_lengths(tmp_path)
    again = prepare(settings, TOKENIZER, progress=lambda _: pytest.fail("it was tokenised again"))
    assert same_tokens(before, again) and account_of(again).uncut is None
    summary = summarize(settings, TOKENIZER)
    assert summary.after_cutting and summary.limits is None
    assert summary.lengths[3, -1] == 128
    text = " ".join(printed(tmp_path, settings).split())
    assert "Tokens of kept records after cutting" in text and "set storage.cache to a new folder" in text
    assert "fit" not in cut_answers(settings, again).partition(";")[2], "no limit is suggested from cut lengths"


def test_where_an_earlier_version_cut_nothing_lengths_are_known_all_the_same(pairs: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, pairs, max_length=4096)
    known = summarize(settings, TOKENIZER).lengths.tolist()
    forget_lengths(tmp_path)
    summary = summarize(settings, TOKENIZER)
    assert (summary.lengths.tolist(), summary.after_cutting) == (known, False)


def test_more_than_one_answer_in_twenty_cut_is_told(pairs: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, pairs, **CUT)
    data = prepare(settings, TOKENIZER)
    cut = account_of(data).cut_chosen
    assert cut_answers(settings, data) == (
        f"{cut} of 100 chosen responses ({cut}.0%) are cut to fit into data.max_length=128, and do not teach where to "
        "stop; into data.max_length=320 fit 99% of the records whole (`orpo-ray data` shows how long they are)"
    )
    at_the_edge = write(tmp_path / "edge.jsonl", [plain(f"{i:02}", "c" * (200 if i < 5 else 9)) for i in range(100)])
    settings = config(tmp_path, at_the_edge, **CUT)
    assert account_of(prepare(settings, TOKENIZER)).cut_chosen == 5
    assert cut_answers(settings, prepare(settings, TOKENIZER)) == "", "five in a hundred are not more than that"
