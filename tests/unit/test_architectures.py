"""Every causal architecture of transformers is computed exactly, packed or a text at a time, or refused in one line."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers
from architectures import NAMES, QUICK, VOCAB, build, config_of
from families import FAMILIES
from test_packing_parity import plain_logps

from orpo_ray.config import ModelConfig
from orpo_ray.data.packing import pack
from orpo_ray.errors import UserError
from orpo_ray.modeling.parity import choose_way
from orpo_ray.modeling.policy import PackedPolicy

PAGE = Path(__file__).resolve().parents[2] / "docs/models.md"
NAMED = ("gemma2", "gpt_oss", "cohere", "granite", "bloom", "falcon", "qwen3_5", "qwen3_next", "lfm2")


class Verdict(NamedTuple):
    way: str
    """`packed`, `a text at a time`, `refused`; `not built`, where the shrunk configuration makes no model."""
    reason: str


@contextmanager
def quiet() -> Iterator[None]:
    """transformers has something to say of many of them."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


@cache
@quiet()
def verdict(name: str) -> Verdict:
    """What is done with an architecture; fails where its numbers are not those of plain forwards."""
    try:
        network = build(config_of(name))
    except Exception as error:
        return Verdict("not built", f"{type(error).__name__}: {' '.join(str(error).split())}"[:100])
    rng = np.random.default_rng(3)
    examples = [[rng.integers(3, VOCAB, rng.integers(2, 45)).astype(np.int32) for _ in range(3)] for _ in range(4)]
    plain = copy.deepcopy(network)
    refused = ""
    try:
        alone = choose_way(network, PackedPolicy, ModelConfig(name_or_path=name))
    except UserError as error:
        refused = str(error)
    if refused:
        assert "\n" not in refused and refused.startswith(f"{name}: ")
        return Verdict("refused", refused.removeprefix(f"{name}: "))
    with torch.no_grad():
        options = {"use_cache": False} if name in ("jamba", "xlstm") else {}  # whose caches want to be given
        expected = torch.cat([plain_logps(plain, example, **options) for example in examples])
        found = PackedPolicy(network, alone=alone)(pack(examples, score_prompts=True))
    tokens = torch.tensor([max(1, len(ids)) for example in examples for ids in example])
    assert float(((found - expected).abs() / tokens).max()) <= 1e-5
    return Verdict("a text at a time" if alone else "packed", alone)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in NAMES]
)
def test_it_is_exact_or_refused(name: str) -> None:
    way, reason = verdict(name)
    assert way in ("packed", "a text at a time") or (name not in NAMED and reason)


@pytest.mark.long
def test_most_are_exact_and_the_page_says_how() -> None:
    """`WRITE_MODELS=1` writes it anew."""
    verdicts = {name: verdict(name) for name in NAMES}
    exact = [name for name, (way, _) in verdicts.items() if way in ("packed", "a text at a time")]
    assert len(exact) >= 110
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition("<!-- made by tests/unit/test_architectures.py -->\n")
    # Not by how much: that is this machine's.
    rows = "".join(f"| {name} | {way} | {reason.partition(': by ')[0]} |\n" for name, (way, reason) in verdicts.items())
    text = f"{head}{mark}\n| architecture | how | why not packed |\n|---|---|---|\n{rows}"
    if os.environ.get("WRITE_MODELS"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text


class TestTheProbe:
    def test_a_family_is_packed_and_takes_its_attention_from_here(self) -> None:
        network = build(copy.deepcopy(FAMILIES["mistral-window-shorter"]))
        assert choose_way(network, PackedPolicy, ModelConfig(name_or_path="x")) == ""
        assert network.config._attn_implementation == "shared_prefix"

    def test_a_fault_is_found_in_bfloat16_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sequences that see a token too few, by a window that the layout alone has."""
        from orpo_ray.modeling import attention

        whole = attention.causal_mask
        monkeypatch.setattr("orpo_ray.data.packing.causal_mask", lambda q, p, w, d: whole(q, p, w or 20, d))
        network = build(copy.deepcopy(FAMILIES["llama-grouped-query"])).to(torch.bfloat16)
        alone = choose_way(network, PackedPolicy, ModelConfig(name_or_path="x"))
        assert "packed, LlamaForCausalLM gives other numbers" in alone
        assert network.config._attn_implementation == "sdpa"
        with pytest.raises(
            UserError, match=r"model\.packing: x cannot be packed: packed, LlamaForCausalLM gives other"
        ):
            choose_way(network, PackedPolicy, ModelConfig(name_or_path="x", packing="shared_prefix"))

    def test_it_can_be_off(self) -> None:
        network = build(copy.deepcopy(FAMILIES["opt-pre-norm"]))
        assert choose_way(network, PackedPolicy, ModelConfig(name_or_path="x", packing="off")) == "model.packing is off"

    def test_a_model_that_reads_ahead_is_refused(self) -> None:
        config = config_of("bert")
        config.is_decoder = False
        network = build(config)
        with pytest.raises(UserError, match="BertLMHeadModel, as it is configured, reads tokens that are yet to come"):
            choose_way(network, PackedPolicy, ModelConfig(name_or_path="x"))
