"""Prompts and their questions in the cache, and the set of hashes that tells which prompt came before."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_data_prepare import TOY, plain, write
from test_data_prepare import config as pair_config
from test_data_tokenization import bytes_tokenizer
from test_prompt_data import config, questions

from orpo_ray.config import TrainConfig
from orpo_ray.data import hashes as hashes_module
from orpo_ray.data.cache import LINE_STARTS, LINES, CacheWriter, Kept, read_or_build
from orpo_ray.data.hashes import Hashes
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.data.prompts import Prompt, Question
from orpo_ray.data.questions import PromptDataset, as_line, prompts_of
from orpo_ray.data.records import Account
from orpo_ray.data.tokenization import Tokenized
from orpo_ray.errors import UserError


def told(data: PreparedData) -> tuple[str, list[Prompt], list[Prompt]]:
    return data.digest, questions(prompts_of(data.train)), questions(prompts_of(data.eval))


def test_the_cache_gives_the_same_questions(tmp_path: Path) -> None:
    file = write(tmp_path / "asked.jsonl", [{"prompt": f'Wer ist № {i}\u2028"{{}}\\ 猫?\n'} for i in range(600)])
    read: list[int] = []

    def built(settings: TrainConfig) -> tuple[str, list[Prompt], list[Prompt]]:
        read.clear()
        return told(prepare(settings, bytes_tokenizer(), read.append))

    first = built(config(tmp_path, file))
    assert read == [256, 512, 600]
    assert built(config(tmp_path, file)) == first and not read
    for cut in (90, 10**6):
        assert built(config(tmp_path, file, max_prompt_length=cut))[0] == first[0] and not read, "which cuts no prompt"
    moved = file.rename(tmp_path / "moved.jsonl")
    again = built(config(tmp_path, moved))
    assert again[0] == first[0] and not read
    assert again[1][0] == replace(first[1][0], location=first[1][0].location.replace("asked", "moved"))
    for change in ({"max_tokens": 9}, {"max_length": 1020}, {"drop_prompts_over": 400}, {"limit": 300}):
        built(config(tmp_path, moved, **change))
        assert read, change
    read.clear()
    pairs = write(tmp_path / "pairs.jsonl", [plain(f"{i}") for i in range(60)])
    prepare(pair_config(tmp_path, pairs), bytes_tokenizer(), read.append)
    built(config(tmp_path, pairs))
    assert read, "pairs in the cache are not prompts"


@pytest.mark.parametrize("name", [LINES, LINE_STARTS])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_questions_cut_short_are_read_anew(name: str, damage: str, tmp_path: Path) -> None:
    file = write(tmp_path / "asked.jsonl", [{"prompt": f"Why {i}?"} for i in range(20)])
    first = told(prepare(config(tmp_path, file), bytes_tokenizer()))
    [kept] = (tmp_path / "tokens").glob(f"*/{name}")
    if damage == "gone":
        kept.unlink()
    else:
        os.truncate(kept, 0 if damage == "empty" else kept.stat().st_size - 1)
    read: list[int] = []
    assert told(prepare(config(tmp_path, file), bytes_tokenizer(), read.append)) == first
    assert read


def test_a_damaged_question_is_one_line(tmp_path: Path) -> None:
    file = write(tmp_path / "asked.jsonl", [{"prompt": f"Why {i}?"} for i in range(20)])
    prepare(config(tmp_path, file), bytes_tokenizer())
    [kept] = (tmp_path / "tokens").glob(f"*/{LINES}")
    for other in (
        b"[" * kept.stat().st_size,
        b"\xff" * kept.stat().st_size,
        kept.read_bytes().replace(b"prompt", b"prxmpt"),
    ):
        kept.write_bytes(other)
        with pytest.raises(UserError, match=r"questions\.jsonl: is damaged; delete the folder .* and run again"):
            prompts_of(prepare(config(tmp_path, file), bytes_tokenizer()).train).question(0)


def test_a_run_is_known_by_its_questions_too(tmp_path: Path) -> None:
    """Words that the tokenizer does not know have one token, and rewards of their own."""
    digests = []
    for word in ("foreign", "strange"):
        file = write(tmp_path / f"{word}.jsonl", [{"prompt": f"What is {word}?"}])
        digests.append(prepare(config(tmp_path, file, eval=str(file)), TOY).digest)
    assert digests[0] != digests[1]


def test_entries_of_pairs_have_no_questions(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", [plain(f"{i}") for i in range(60)])
    prepare(pair_config(tmp_path, file), bytes_tokenizer())
    assert not [*(tmp_path / "tokens").glob("*/question*.jsonl"), *(tmp_path / "tokens").glob(f"*/{LINE_STARTS}")]


def test_one_question_reads_one_line(tmp_path: Path) -> None:
    """Nothing of the file is held, and what lies far from the line stays on the disk."""
    spoken = [Question(f"{i} " + "why " * 10_000, ()) for i in range(1000)]

    def build(writer: CacheWriter) -> Account:
        for i, question in enumerate(spoken):
            writer.write([Kept(i, Tokenized([1, i], (), False, ()), (), i, as_line(question, question))])
        return Account(read=1000, kept=1000)

    read_or_build(tmp_path, "key", build)
    before = _resident()
    data = read_or_build(tmp_path, "key", build).pairs
    assert isinstance(data, PromptDataset) and data.lines.nbytes > 40_000_000
    asked = [data.subset(np.array([700, 3])).question(i).as_found for i in (0, 1)]
    assert asked == [spoken[700], spoken[3]]
    assert _resident() - before < 4_000_000


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Hashes ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40) | st.integers(2**64 - 20, 2**64 - 1), max_size=300), st.integers(1, 9))
@examples(max_examples=50)
def test_hashes_are_a_set(values: list[int], recent: int) -> None:
    met, reference = Hashes(recent), set[int]()
    for value in values:
        assert met.add(value) == (value not in reference)
        reference.add(value)


def test_hashes_take_eight_bytes_each() -> None:
    met = Hashes(64)
    for value in range(5000):
        assert met.add(value * 2**50)
    sizes = [len(part) for part in met._sorted]
    assert sum(sizes) + len(met._recent) == 5000 and len(met._recent) < 64
    assert all(a > b for a, b in itertools.pairwise(sizes)), "few to look into"
    assert hashes_module._RECENT == 1 << 16
