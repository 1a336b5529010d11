"""Preparing a run's data: every record accounted for, prompts held out whole, the printed summary."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_data_tokenization import bytes_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from orpo_ray.config import TrainConfig
from orpo_ray.data import toyworld
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.data.records import Account
from orpo_ray.data.summary import print_summary, summarize
from orpo_ray.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TOY = toyworld.tokenizer()


def config(cache: Path, train: Path | str, seed: int = 0, **data: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "name": "test",
            "seed": seed,
            "model": {"name_or_path": "toy"},
            "data": {"train": str(train), **data},
            "storage": {"cache": str(cache)},
        }
    )


def account_of(prepared: PreparedData) -> Account:
    """Of `data.train`, where that is one source."""
    return next(iter(prepared.accounts.values()))


def write(path: Path, records: list[Any]) -> Path:
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join(lines))
    return path


def plain(prompt: str, chosen: str = "Gladly, Ada!", rejected: str = "What now, Ada?") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


GOOD = [plain("What is one plus two?"), plain("What is two plus two?"), plain("Ada asks", "What is one")]
DROPPED = {
    "empty response": [plain("a", rejected=""), plain("a", chosen=" \n")],
    "chosen = rejected": [plain("a", "Ada", "Ada")],
    "chosen = rejected once tokenised and cut": [plain("a", "foreign", "strange")],
    "prompt over 12 tokens": [plain("one " * 12)],
}
BAD = {
    "malformed JSON": [b'{"prompt": '],
    "invalid UTF-8": [b'{"prompt": "\xff"}'],
    "missing field": [{"prompt": "a", "chosen": "b"}],
    "not text": [plain("a", rejected=None), plain("a", chosen=3)],  # type: ignore[arg-type]
}


def flat(reasons: dict[str, list[Any]]) -> list[Any]:
    return [record for records in reasons.values() for record in records]


def test_every_record_is_kept_dropped_or_quarantined(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", [*flat(BAD)[:2], *GOOD, *flat(DROPPED), *flat(BAD)[2:]])
    settings = {"drop_prompts_over": 12, "max_prompt_length": 12, "max_length": 20, "eval_fraction": 0.3}
    prepared = prepare(config(tmp_path, file, on_bad_record="quarantine", **settings), TOY)
    account = account_of(prepared)
    assert (account.read, account.kept) == (13, 3)
    assert account.dropped == {reason: len(records) for reason, records in DROPPED.items()}
    assert account.quarantined == {reason: len(records) for reason, records in BAD.items()}
    assert sorted([*prepared.train.record_ids, *prepared.eval.record_ids]) == [2, 3, 4]

    (path,) = prepared.quarantine
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["location"] for line in lines] == [f"{file}:{n}" for n in (1, 2, 11, 12, 13)]
    assert lines[1] == {
        "location": f"{file}:2",
        "reason": "invalid UTF-8: byte 13 of the line",
        "raw": '{"prompt": "\\xff"}',
    }
    assert json.loads(lines[2]["raw"]) == flat(BAD)[2]


@pytest.mark.parametrize("record", flat(BAD))
def test_by_default_a_bad_record_stops_with_one_line(tmp_path: Path, record: Any) -> None:
    file = write(tmp_path / "pairs.jsonl", [*GOOD, record])
    with pytest.raises(UserError) as caught:
        prepare(config(tmp_path, file), TOY)
    message = str(caught.value)
    assert message.startswith(f"{file}:4: ")
    assert message.endswith("set data.on_bad_record=quarantine to set such records aside")
    assert "\n" not in message


def test_where_json_ends_is_told_once(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", [*GOOD, b'{"prompt": "one'])
    with pytest.raises(UserError, match=r"4: malformed JSON: Unterminated string starting at character 12;"):
        prepare(config(tmp_path, file), TOY)


def test_a_file_cut_short_stops_or_is_quarantined(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl.gz"
    lines = b"".join(json.dumps(plain(f"{i}", f"a {i}")).encode() + b"\n" for i in range(5000))
    file.write_bytes(gzip.compress(lines)[:-1000])
    with pytest.raises(UserError, match=r"unreadable file: the compressed file is cut short \(after .*gz:\d+\)"):
        prepare(config(tmp_path, file), bytes_tokenizer())
    account = account_of(prepare(config(tmp_path, file, on_bad_record="quarantine"), bytes_tokenizer()))
    assert account.quarantined == {"unreadable file": 1}
    assert 0 < account.kept < 5000


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"empty\.jsonl: holds no records"):
        prepare(config(tmp_path, write(tmp_path / "empty.jsonl", [])), TOY)
    same = write(tmp_path / "same.jsonl", [plain("a", "Ada", "Ada")])
    with pytest.raises(UserError, match=r"no pair is left: 1 read = 0 kept \+ 1 dropped \(chosen = rejected 1\)"):
        prepare(config(tmp_path, same), TOY)
    foreign = write(tmp_path / "foreign.jsonl", [plain("a", "foreign", "strange")])
    with pytest.raises(
        UserError, match=r"and cut 1\) \+ 0 quarantined; the tokenizer has no token for some characters"
    ):
        prepare(config(tmp_path, foreign), TOY)
    one = write(tmp_path / "one.jsonl", [plain("one"), plain("one", "Ada")])
    with pytest.raises(UserError, match=r"2 records have 1 different prompts.*set data\.eval"):
        prepare(config(tmp_path, one), TOY)


def test_message_lists_without_a_template_name_the_record(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}]
    chosen, rejected = ([*turns, {"role": "assistant", "content": text}] for text in "ab")
    file = write(tmp_path / "lists.jsonl", [{"chosen": chosen, "rejected": rejected}])
    with pytest.raises(UserError, match=r"lists\.jsonl:1: .*has no chat template.*set data\.chat_template"):
        prepare(config(tmp_path, file), TOY)


def test_an_eval_source_of_its_own(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", GOOD[:1])
    prepared = prepare(config(tmp_path, write(tmp_path / "pairs.jsonl", GOOD), eval=str(held)), TOY)
    assert (len(prepared.train), len(prepared.eval)) == (3, 1)
    assert [account.read for account in prepared.accounts.values()][1:] == [1]


# Held-out pairs -----------------------------------------------------------------------------------------


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    """A worker that the driver has told the fingerprints finds the cache, whatever has become of the files."""
    train, held = (write(tmp_path / name, GOOD) for name in ("train.jsonl", "held.jsonl"))
    settings = config(tmp_path / "cache", train, eval=str(held))
    first = prepare(settings, toyworld.tokenizer())
    train.write_text("no record\n")
    again = prepare(settings, toyworld.tokenizer(), fingerprints=first.fingerprints)
    assert again.digest == first.digest and len(again.train) == len(GOOD)
    with pytest.raises(UserError, match="train"):
        prepare(settings, toyworld.tokenizer())
    write(train, GOOD[:2])
    assert prepare(settings, toyworld.tokenizer()).digest != first.digest


def test_the_seed_draws_the_held_out_prompts(tmp_path: Path) -> None:
    sides = [prepare(config(tmp_path, "toy", seed=seed, limit=2000), TOY) for seed in (0, 0, 1)]
    for prepared in sides:
        assert len(prepared.train) + len(prepared.eval) == 2000
        assert 100 <= len(prepared.eval) < 120
    held = [set(prepared.eval.record_ids.tolist()) for prepared in sides]
    assert held[0] == held[1]
    assert len(held[0] & held[2]) < 30


# The cache ----------------------------------------------------------------------------------------------


def test_the_cache_is_found_again_unless_something_changed(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", GOOD)
    read: list[int] = []

    def built(settings: TrainConfig, tokenizer: PreTrainedTokenizerBase = TOY) -> bool:
        read.clear()
        prepare(settings, tokenizer, read.append)
        return bool(read)

    base = {"max_length": 64, "max_prompt_length": 32, "eval_fraction": 0.3}
    assert built(config(tmp_path, file, **base))
    assert read == [3]
    assert not built(config(tmp_path, file, **base))
    assert not built(config(tmp_path, file, seed=5, **{**base, "eval_fraction": 0.4}))
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    assert not built(config(tmp_path, copy, **base))
    for change in (
        {"max_length": 63},
        {"max_prompt_length": 31},
        {"drop_prompts_over": 40},
        {"chat_template": "hh-rlhf"},
        {"chat_template": "orpo"},
        {"format": "plain"},
        {"limit": 2},
        {"max_record_characters": 10**6},
        {"on_bad_record": "quarantine"},
        {"roles": {"agent": "assistant"}},
        {"unread": ["context"]},
        {"columns": {"chosen": "rejected", "rejected": "chosen"}},
    ):
        assert built(config(tmp_path, file, **{**base, **change})), change
    other = toyworld.tokenizer.__wrapped__()
    other.add_tokens(["Quentin"])
    assert built(config(tmp_path, file, **base), other)
    write(file, [*GOOD, plain("three")])
    assert built(config(tmp_path, file, **base))


# Real data ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opt() -> PreTrainedTokenizerBase:
    if not (SHARED / "tokenizers" / "opt").is_dir():
        pytest.skip("needs ../shared/tokenizers/opt")
    return AutoTokenizer.from_pretrained(SHARED / "tokenizers" / "opt")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


UNCUT = {"on_bad_record": "quarantine", "max_length": 4096, "max_prompt_length": 2048}
HARMLESS = SHARED / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz"


@pytest.mark.skipif(not HARMLESS.exists(), reason="needs ../shared/data/hh_rlhf")
def test_hh_rlhf_is_accounted_for(cache: Path, tmp_path: Path, opt: PreTrainedTokenizerBase) -> None:
    """All 2,312 records of harmless-base; the kept ones are the dialogues, token for token."""
    with pytest.raises(UserError, match=r"jsonl\.gz:1255: prompts differ: .*data\.on_bad_record=quarantine"):
        prepare(config(tmp_path, HARMLESS), opt)
    prepared = prepare(config(cache, HARMLESS, **UNCUT), opt)
    account = account_of(prepared)
    assert (account.read, account.kept) == (2312, 2303)
    assert account.dropped == {"empty response": 4}
    assert account.quarantined == {"prompts differ": 5}
    assert (account.cut_prompts, account.cut_chosen, account.cut_rejected) == (0, 0, 0)
    assert len(prepared.train) + len(prepared.eval) == 2303
    assert len(prepared.quarantine[0].read_text().splitlines()) == 5

    with gzip.open(HARMLESS) as lines:
        dialogues = [json.loads(line) for line in lines]
    for i in range(0, len(prepared.train), 97):
        prompt, chosen, rejected = (part.tolist() for part in prepared.train.pair(i))
        dialogue = dialogues[int(prepared.train.record_ids[i])]
        assert prompt[0] == chosen[-1] == rejected[-1] == 2
        for name, response in (("chosen", chosen), ("rejected", rejected)):
            assert opt.decode(prompt[1:] + response[:-1], clean_up_tokenization_spaces=False) == dialogue[name]


@pytest.mark.skipif(not HARMLESS.exists(), reason="needs ../shared/data/hh_rlhf")
def test_the_printed_summary_of_hh_rlhf(cache: Path, tmp_path: Path, opt: PreTrainedTokenizerBase) -> None:
    settings = config(cache, HARMLESS, **UNCUT)
    summary = summarize(settings, opt)
    assert summary.lengths[:, -1].tolist() == [846, 282, 572, 1022]
    assert summary.unshared_tokens / summary.shared_tokens == pytest.approx(1.57, abs=0.02)
    assert 3 < summary.padded_tokens / summary.shared_tokens < 5

    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    print_summary(settings, console, opt)
    rows = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    for row in ("records read 2,312", "kept 2,303", "dropped 4", "quarantined 5", "prompts differ 5"):
        assert row in rows
    assert "kept + dropped + quarantined 2,312" in rows
    printed = "\n".join(rows)
    assert printed.count("⟦prompt⟧⟦BOS </s>⟧") == 2
    assert printed.count("⟦EOS </s>⟧") == 4


def test_text_of_the_data_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """Markup, terminal codes and special tokens of the data are shown as they are; the real EOS is marked."""
    hostile = "[red]x[/red] \x1b[2J </s>"
    file = write(tmp_path / "pairs.jsonl", [plain(f"one {i}", f"Ada {i} {hostile}", "Ada") for i in range(9)])
    settings = config(tmp_path, file, max_length=16, max_prompt_length=15)
    summary = summarize(settings, bytes_tokenizer())
    assert all(example.eos[0] is None for example in summary.examples)
    settings = config(tmp_path, file)
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    print_summary(settings, console, bytes_tokenizer())
    printed = console.export_text()
    assert "[red]x[/red] \\x1b[2J </s>⟦EOS </s>⟧" in printed
    assert "\x1b" not in printed
