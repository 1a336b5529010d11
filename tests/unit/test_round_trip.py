"""A tokenizer must give back what it is given, or the run stops with the text beside what came back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import FAMILIES, family
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from orpo_ray.config import parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.prepare import prepare
from orpo_ray.data.prompts import Prompt, Question
from orpo_ray.data.round_trip import lost_in_tokens
from orpo_ray.errors import UserError
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.inference.speaking import Speaker


def of_bytes(normalizer: Any = None, splits: Any = None) -> PreTrainedTokenizerFast:
    """A token a byte, after a normalizer and, before the bytes, a split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["</s>", *alphabet])}, merges=[]))
    inner.normalizer = normalizer
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = own if splits is None else pre_tokenizers.Sequence([splits, own])
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", name_or_path="made-here")


@pytest.mark.parametrize("name", FAMILIES)
def test_sound_tokenizers_give_every_text_back(name: str) -> None:
    tokenizer = family(name).tokenizer

    @settings(max_examples=60, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    def check(text: str) -> None:
        lost = lost_in_tokens(tokenizer, text)
        assert lost is None or (name == "chatml-qwen" and "(NFC)" in lost)

    check()


@pytest.mark.parametrize(
    ("normalizer", "text", "said"),
    [
        (normalizers.NFC(), "cafe\u0301", r"the tokenizer brings Unicode into its composed form \(NFC\)"),
        (normalizers.NFKC(), "ﬁne…", r"the tokenizer brings Unicode into its compatible form \(NFKC"),
        (normalizers.Lowercase(), "The Cat", "the tokenizer makes all letters small"),
    ],
)
def test_what_a_normalizer_documents_is_said(normalizer: Any, text: str, said: str) -> None:
    tokenizer = of_bytes(normalizer)
    assert lost_in_tokens(tokenizer, "plain text") is None
    assert re.match(said, lost_in_tokens(tokenizer, text) or "")


@pytest.mark.parametrize(
    ("tokenizer", "text", "shown", "back"),
    [
        (of_bytes(splits=pre_tokenizers.WhitespaceSplit()), "The cat\nsat", r"'The cat\\nsat'", "'Thecatsat'"),
        (of_bytes(normalizers.Replace("\n", " ")), "The cat\nsat", r"'The cat\\nsat'", "'The cat sat'"),
        (of_bytes(normalizers.Replace("  ", " ")), "a  b", "'a  b'", "'a b'"),
        (of_bytes(normalizers.StripAccents()), "é\u0301", "'é\u0301'", "'é'"),
        (of_bytes(normalizers.Strip()), "a \n", r"'a \\n'", "'a'"),
        (of_bytes(normalizers.Replace("猫", "")), "a猫" + "b" * 99, "'a猫b{39}'", "'a" + "b{39,40}'"),
    ],
)
def test_what_is_lost_stops_the_run(tokenizer: Any, text: str, shown: str, back: str) -> None:
    with pytest.raises(UserError, match=f"made-here does not give back what it is given: {shown} came back as {back}"):
        lost_in_tokens(tokenizer, text)


def test_unknown_words_are_said() -> None:
    tokenizer = toyworld.tokenizer()
    known = next(iter(toyworld.records("toy-test")))["prompt"]
    assert lost_in_tokens(tokenizer, known) is None
    assert "has no token for some characters" in (lost_in_tokens(tokenizer, f"{known} cryptography") or "")


def test_the_first_texts_of_data_and_prompts_are_looked_at(tmp_path: Path) -> None:
    tokenizer = of_bytes(splits=pre_tokenizers.WhitespaceSplit())
    rows = [{"prompt": "one", "chosen": "two", "rejected": "three"}, {"prompt": "q", "chosen": "a b", "rejected": "c"}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(
        {"name": "t", "model": {"name_or_path": "x"}, "storage": {"path": str(tmp_path)}, "data": {"train": str(file)}},
        [], "test",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"jsonl:2: model\.tokenizer: .*'qa b' came back as 'qab'"):
        prepare(config, tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    speaker = Speaker(EvaluatedModel("m", "m", tmp_path / "model", "", "float32", "float32", None, False), None)
    with pytest.raises(UserError, match=r"asked\.jsonl:1: .*'a b' came back as 'ab'"):
        speaker.look_at([Prompt("asked.jsonl:1", Question("a b", ()), None)])


def test_a_tokenizer_of_the_wrong_class_is_refused(tmp_path: Path) -> None:
    """transformers 5 builds a Llama tokenizer of SentencePiece's shape around a byte-level `tokenizer.json`."""
    of_bytes().save_pretrained(tmp_path)
    settings_file = tmp_path / "tokenizer_config.json"
    held = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**held, "tokenizer_class": "LlamaTokenizerFast"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("The cat\nsat", add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids) == "The cat\nsat":
        pytest.skip("this transformers reads it rightly")
    with pytest.raises(UserError, match="does not give back what it is given"):
        lost_in_tokens(tokenizer, "The cat\nsat")
