"""The token cache: what is written is read back, what was cut short never is."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_ray.data.cache import ARRAYS, MANIFEST, QUARANTINE, CacheWriter, Kept, TokenizedSource, read_or_build
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.tokenization import Tokenized
from orpo_ray.errors import UserError


def tokenized(prompt: list[int], *responses: list[int]) -> Tokenized:
    return Tokenized(prompt, responses, False, (False,) * len(responses))


PAIRS = [
    Kept(3, tokenized([1, 5], [6, 7, 2], [8, 2]), (0, 1), 7),
    Kept(4, tokenized([1], [2], [9, 9, 2]), (0, 1), 2**64 - 1),
    Kept(9, tokenized([1, 5], [5, 2], [4, 2], [7, 7, 2]), (0, 1, 1), 7),
]


def fill(writer: CacheWriter) -> Account:
    writer.write(PAIRS[:2])
    writer.write([])
    writer.write(PAIRS[2:])
    writer.quarantine(Record(5, "a.jsonl:6", None, raw="raw \udce9"), BadRecord("prompts differ", "here"))
    return Account(read=5, kept=3, dropped=Counter({"empty": 1}), quarantined=Counter({"prompts differ": 1}))


def as_lists(source: TokenizedSource) -> list[tuple[int, list[list[int]]]]:
    pairs = source.pairs
    return [(record, [part.tolist() for part in pairs.pair(i)]) for i, record in enumerate(pairs.record_ids.tolist())]


WRITTEN = [(kept.record, [kept.tokenized.prompt, *kept.tokenized.responses]) for kept in PAIRS]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    calls = []

    def build(writer: CacheWriter) -> Account:
        calls.append(writer)
        return fill(writer)

    for _ in range(2):
        source = read_or_build(tmp_path, "key", build)
        assert as_lists(source) == WRITTEN
        first, second, third = source.prompt_hashes.tolist()
        assert first == third != second
        assert source.question_hashes.tolist() == [7, 2**64 - 1, 7]
        assert source.account.describe() == ("5 read = 3 kept + 1 dropped (empty 1) + 1 quarantined (prompts differ 1)")
        assert source.quarantine is not None
        assert source.quarantine.read_text() == (
            '{"location": "a.jsonl:6", "reason": "prompts differ: here", "raw": "raw \\\\udce9"}\n'
        )
    assert len(calls) == 1


@pytest.mark.parametrize("name", [*ARRAYS, QUARANTINE, MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_an_entry_cut_short_is_built_anew(tmp_path: Path, name: str, damage: str) -> None:
    read_or_build(tmp_path, "key", fill)
    file = tmp_path / "key" / name
    if damage == "gone":
        file.unlink()
    else:
        os.truncate(file, 0 if damage == "empty" else file.stat().st_size - 1)
    source = read_or_build(tmp_path, "key", fill)
    assert as_lists(source) == WRITTEN
    assert read_or_build(tmp_path, "key", _never).account == source.account


def _never(writer: CacheWriter) -> Account:
    raise AssertionError("built though it was there")


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(writer: CacheWriter) -> Account:
        writer.write(PAIRS)
        raise UserError("bad record")

    with pytest.raises(UserError, match="bad record"):
        read_or_build(tmp_path, "key", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []

    def forget(writer: CacheWriter) -> Account:
        fill(writer)
        return Account(read=9, kept=3)

    with pytest.raises(AssertionError, match="9 read = 3 kept"):
        read_or_build(tmp_path, "key", forget)
    assert not (tmp_path / "key").exists()


def _build_and_die(root: Path) -> None:
    def die(writer: CacheWriter) -> Account:
        fill(writer)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    read_or_build(root, "key", die)


def _build_and_count(root: Path) -> None:
    def build(writer: CacheWriter) -> Account:
        with (root / "builds").open("a") as file:
            file.write("built\n")
        return fill(writer)

    assert as_lists(read_or_build(root, "key", build)) == WRITTEN


def test_a_killed_build_is_not_read_and_several_processes_build_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    killed = fork.Process(target=_build_and_die, args=(tmp_path,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "key").exists()

    workers = [fork.Process(target=_build_and_count, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "builds").read_text() == "built\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["key"]


def test_no_pair_at_all(tmp_path: Path) -> None:
    source = read_or_build(tmp_path, "key", lambda writer: Account())
    assert (len(source.pairs), len(source.pairs.tokens), source.quarantine) == (0, 0, None)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/tokens: cannot hold tokenised data: .*; set storage\.cache"):
        read_or_build(tmp_path / "file" / "tokens", "key", fill)


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)


@st.composite
def records(draw: st.DrawFn, fewest: int, most: int) -> Kept:
    responses = draw(st.lists(ids, min_size=fewest, max_size=most))
    ranks = (0, 1) if len(responses) == 2 else tuple(sorted(draw(st.integers(0, 3)) for _ in responses))
    return Kept(draw(st.integers(0, 10**12)), tokenized(draw(ids), *responses), ranks, draw(st.integers(0, 2**64 - 1)))


batches = st.one_of(*(st.lists(st.lists(records(*numbers))) for numbers in ((2, 2), (1, 4))))


@settings(max_examples=25, deadline=None)
@given(batches)
def test_any_batches_round_trip(tmp_path_factory: pytest.TempPathFactory, batches: list[list[Kept]]) -> None:
    def build(writer: CacheWriter) -> Account:
        for batch in batches:
            writer.write(batch)
        return Account()

    source = read_or_build(tmp_path_factory.mktemp("cache"), "key", build)
    written = [kept for batch in batches for kept in batch]
    assert as_lists(source) == [(kept.record, [kept.tokenized.prompt, *kept.tokenized.responses]) for kept in written]
    assert source.question_hashes.tolist() == [kept.question for kept in written]
    ranks = [kept.ranks for kept in written]
    assert [tuple(rank for rank in row if rank >= 0) for row in source.pairs.ranks().tolist()] == ranks
    assert source.pairs.counts().tolist() == list(map(len, ranks))
    assert source.pairs.are_pairs == (set(ranks) <= {(0, 1)})
