"""How large everything is: as people train, or at toy size, where a CPU takes seconds for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from orpo_ray.data.packing import Ids
from orpo_ray.objectives.terms import Totals

Example = list[Ids]
"""Token ids of a prompt, its chosen and its rejected response."""
_MEDIANS = 150, 260, 230
_SPREAD = 0.6
"""Tokens of UltraFeedback's prompts and responses, as a log-normal has them: 742 a pair in the mean there."""
_LONGEST, _SHORTEST = 900, 4


class Way(NamedTuple):
    """How steps are taken."""

    who: str
    """`orpo_ray`: packed; `padded`: the baseline."""
    memory: str
    """What is computed again, as `train.memory`; of the baseline `none` or `full`."""
    precision: str = "bfloat16"
    """`bfloat16`: of weights, with float32 masters of what is trained; `autocast`: weights in float32, products in
    bfloat16, as Hugging Face's trainers have it."""


@dataclass(frozen=True)
class Model:
    name: str
    config: PretrainedConfig
    pairs: int
    """Of a step, in one micro-batch."""
    rank: int | None
    """Of LoRA's adapters; None: every weight is trained."""
    ways: tuple[Way, ...]
    """Most informative first."""
    needs: float
    """Seconds for one of them."""

    @property
    def heads(self) -> tuple[int, int, int]:
        """Heads, heads of keys and values, entries of each."""
        heads = self.config.num_attention_heads
        return heads, getattr(self.config, "num_key_value_heads", heads), self.config.hidden_size // heads


@dataclass(frozen=True)
class Sizes:
    scale: float
    """Of the lengths of texts."""
    families: dict[str, PretrainedConfig]
    """Of the networks that packing is held against plain forwards with."""
    models: tuple[Model, ...]
    chunks: tuple[int, ...]
    """Bytes of logits that the head holds at most."""
    product: int
    """Rows and columns of the matrices of the peak."""
    copied: int
    """Bytes of the copy that memory's bandwidth is measured by."""
    parity_pairs: int = 4

    def examples(self, seed: int, pairs: int, vocabulary: int) -> list[Example]:
        """Random ids, of random lengths."""
        rng = np.random.default_rng(seed)

        def text(median: int) -> Ids:
            drawn = self.scale * rng.lognormal(np.log(median), _SPREAD)
            tokens = int(np.clip(drawn, _SHORTEST, max(_SHORTEST, self.scale * _LONGEST)))
            return rng.integers(3, vocabulary, tokens).astype(np.int32)

        return [[text(median) for median in _MEDIANS] for _ in range(pairs)]


def totals(examples: list[Example]) -> Totals:
    """Of a step of these pairs."""
    return Totals(len(examples), sum(len(prompt) - 1 + len(chosen) for prompt, chosen, _ in examples))


def build(config: PretrainedConfig, attention: str, dtype: torch.dtype, place: torch.device) -> PreTrainedModel:
    """A network with random weights, the same for the same `config` and `dtype`, made on `place`."""
    torch.manual_seed(0)
    with place:
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    return network


_POSITIONS = 2048
_TOY: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": _POSITIONS // 16,
}  # fmt: skip
_NO_DROPOUT: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}


def _families(window: int) -> dict[str, PretrainedConfig]:
    """Small networks of every size of heads that the kernels tell apart."""
    small: dict[str, Any] = {
        "vocab_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": _POSITIONS,
    }  # fmt: skip
    grouped = {**small, "hidden_size": 512, "intermediate_size": 512, "num_key_value_heads": 2}
    return {
        "opt": OPTConfig(
            **small, **_NO_DROPOUT, hidden_size=256, ffn_dim=512, word_embed_proj_dim=256,
        ),
        "phi": PhiConfig(**small, hidden_size=320, intermediate_size=512),
        "llama-grouped": LlamaConfig(**grouped),
        "mistral-grouped-window": MistralConfig(**grouped, sliding_window=window),
    }  # fmt: skip


_OF_ALL_WEIGHTS = (
    Way("orpo_ray", "none"), Way("padded", "full", "autocast"), Way("orpo_ray", "selective"), Way("orpo_ray", "full"),
    Way("padded", "full"), Way("padded", "none"),
)  # fmt: skip
_OF_ADAPTERS = (
    Way("orpo_ray", "none"), Way("padded", "full"), Way("orpo_ray", "selective"), Way("orpo_ray", "full"),
    Way("padded", "none"),
)  # fmt: skip

REAL = Sizes(
    scale=1.0,
    families=_families(window=100),
    models=(
        Model(
            "OPT-1.3B",
            OPTConfig(
                vocab_size=50272, hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192,
                word_embed_proj_dim=2048, max_position_embeddings=_POSITIONS, **_NO_DROPOUT,
            ),
            pairs=16, rank=None, ways=_OF_ALL_WEIGHTS, needs=20,
        ),
        Model("Mistral-7B", MistralConfig(sliding_window=4096), pairs=8, rank=16, ways=_OF_ADAPTERS, needs=30),
    ),
    chunks=(1 << 27, 1 << 29, 1 << 30, 1 << 32),
    product=8192,
    copied=1 << 31,
)  # fmt: skip

TOY = Sizes(
    scale=1 / 16,
    families=_families(window=12),
    models=(
        Model(
            "toy-opt", OPTConfig(**_TOY, **_NO_DROPOUT, ffn_dim=256, word_embed_proj_dim=64),
            pairs=4, rank=None, ways=_OF_ALL_WEIGHTS, needs=1,
        ),
        Model(
            "toy-mistral", MistralConfig(**_TOY, num_key_value_heads=2, intermediate_size=224, sliding_window=4096),
            pairs=2, rank=4, ways=_OF_ADAPTERS, needs=1,
        ),
    ),
    chunks=(1 << 12, 1 << 30),
    product=256,
    copied=1 << 20,
)  # fmt: skip
