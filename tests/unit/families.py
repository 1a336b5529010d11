"""Small models of every family, and pairs for them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from orpo_ray.data.comparisons import Rule
from orpo_ray.data.dataset import PairDataset

VOCAB = 97
_OPT: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
    max_position_embeddings=128, word_embed_proj_dim=32, pad_token_id=1, bos_token_id=2, eos_token_id=2, dropout=0.0,
)  # fmt: skip
_LLAMA: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=128,
)  # fmt: skip
_GPT2: dict[str, Any] = dict(
    vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip

FAMILIES: dict[str, PretrainedConfig] = {
    "opt-pre-norm": OPTConfig(**_OPT),
    "opt-post-norm-projected": OPTConfig(**{**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "llama-grouped-query": LlamaConfig(**_LLAMA, num_key_value_heads=2),
    "mistral-window-longer": MistralConfig(**_LLAMA, num_key_value_heads=2, sliding_window=100),
    "mistral-window-shorter": MistralConfig(**_LLAMA, num_key_value_heads=2, sliding_window=7),
    "phi": PhiConfig(**_LLAMA, partial_rotary_factor=0.5),
    "qwen3": Qwen3Config(**_LLAMA, num_key_value_heads=2, head_dim=16),
    "gpt2": GPT2Config(**_GPT2),
}


def build(config: PretrainedConfig, attention: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with weights drawn large enough that attention and positions matter, dropout off."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model = model.to(dtype)
    if dtype == torch.float64:
        _use_exact_norms(model)
    return model.eval()


def _use_exact_norms(model: PreTrainedModel) -> None:
    """transformers' RMSNorms compute in float32 whatever the weights are; a float64 reference needs float64."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            exact = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            exact.weight = module.weight
            model.set_submodule(name, exact)


def random_examples(seed: int, prompts: int, continuations: int = 2, longest: int = 30) -> list[list[np.ndarray]]:
    """`prompts` examples of random ids and lengths: `[prompt, cont 1, …]`."""
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(3, VOCAB, rng.integers(1, longest)).astype(np.int32) for _ in range(1 + continuations)]
        for _ in range(prompts)
    ]


def random_pairs(pairs: int, seed: int = 1) -> PairDataset:
    """Tokenised pairs of random ids and lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, (pairs, 3))
    ends = lengths.reshape(-1).cumsum()
    starts = np.r_[0, ends[:-1]].reshape(pairs, 3)
    tokens = rng.integers(3, VOCAB, ends[-1]).astype(np.int32)
    return PairDataset(tokens, np.c_[starts, starts[:, 2] + lengths[:, 2]], np.arange(pairs))


def random_groups(records: int, seed: int = 1, rule: Rule = "every_pair") -> PairDataset:
    """Prompts with one to five ranked responses of random ids and lengths; with one only where they are labelled."""
    rng = np.random.default_rng(seed)
    tokens, bounds, ranks, starts = [], [], [], [0]
    for _ in range(records):
        count = int(rng.integers(1 if rule == "labels" else 2, 6))
        lengths = rng.integers(2, 12, 1 + count)
        bounds += (sum(map(len, tokens)) + np.r_[0, lengths.cumsum()]).tolist()
        tokens.append(rng.integers(3, VOCAB, lengths.sum()).astype(np.int32))
        steps = np.r_[0, rng.integers(0, 2, count - 1)].cumsum()
        if rule == "labels":
            ranks += np.sort(rng.integers(0, 2, count)).tolist()
        else:
            ranks += (steps if steps[-1] else np.r_[steps[:-1], 1]).tolist()
        starts.append(len(bounds))
    return PairDataset(
        np.concatenate(tokens), np.array(bounds, np.int64), np.arange(records),
        source_starts=np.array(starts, np.int64), source_ranks=np.array(ranks, np.int32), rule=rule,
    )  # fmt: skip
