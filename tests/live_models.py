"""Small models for engines whose weights are replaced, and what such an engine is asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from orpo_ray.data import toyworld
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Live, LiveOptions, Sample

TOKENIZER = toyworld.tokenizer()
EOS = TOKENIZER.eos_token_id
COMMON: dict[str, Any] = {
    "vocab_size": len(TOKENIZER), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 256, "eos_token_id": EOS, "bos_token_id": EOS, "pad_token_id": EOS,
}  # fmt: skip


def opt(**own: Any) -> PretrainedConfig:
    return OPTConfig(**COMMON, ffn_dim=96, **{"word_embed_proj_dim": 64, **own})


def llama(**own: Any) -> PretrainedConfig:
    return LlamaConfig(**COMMON, intermediate_size=96, num_key_value_heads=1, **own)


def gpt2() -> PretrainedConfig:
    return GPT2Config(
        vocab_size=len(TOKENIZER), n_embd=64, n_layer=2, n_head=2, n_positions=256, eos_token_id=EOS, bos_token_id=EOS
    )


def mixtral(**own: Any) -> PretrainedConfig:
    return MixtralConfig(**COMMON, intermediate_size=96, num_key_value_heads=1, num_local_experts=4, **own)


SHAPES: dict[str, PretrainedConfig] = {
    "opt tied": opt(),
    "opt untied": opt(tie_word_embeddings=False),
    "opt of 350M": opt(word_embed_proj_dim=32, do_layer_norm_before=False),
    "llama tied": llama(tie_word_embeddings=True),
    "llama untied": llama(tie_word_embeddings=False),
    "gpt2": gpt2(),
    "mixtral": mixtral(tie_word_embeddings=False),
}


def network(config: PretrainedConfig, seed: int, kind: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """Whose choices differ from those of another seed; of one label, where it is a classifier."""
    torch.manual_seed(seed)
    config = copy.deepcopy(config)
    config.num_labels = 1
    model: PreTrainedModel = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(folder: Path, config: PretrainedConfig, seed: int = 0, kind: Any = AutoModelForCausalLM) -> PreTrainedModel:
    model = network(config, seed, kind)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model


def options(folder: Path, **own: Any) -> LiveOptions:
    return LiveOptions(str(folder), **{"dtype": "float32", "max_length": 40, "max_tokens": 12, "threads": 1, **own})


def asked(count: int = 8, length: int = 16) -> list[Request]:
    """Two prompts of four tokens and two of `length`, several samples of each."""
    long = [[0, *(start + i % 23 for i in range(length - 1))] for start in (20, 40)]
    prompts = [[0, 5, 9, 7], [0, 31, 8, 11], *long]
    return [Request(i % 4, i // 4, prompts[i % 4], 1000 + i) for i in range(count)]


def everything(engine: Live, requests: Sequence[Request]) -> dict[tuple[int, int], Sample]:
    found = engine.advance(requests)
    while more := engine.advance([]):
        found += more
    assert len(found) == len(requests)
    return {(sample.prompt, sample.sample): sample for sample in found}


def plain_logps(model: PreTrainedModel, prompt: list[int], ids: list[int], temperature: float = 1.0) -> Tensor:
    """Of `ids` behind `prompt`, by one forward of `model`."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def worst(
    model: PreTrainedModel,
    samples: Mapping[tuple[int, int], Sample],
    temperature: float = 1.0,
    requests: Sequence[Request] = (),
) -> float:
    """The largest difference between an engine's log-probs and `model`'s own."""
    prompts = {request.prompt: request.ids for request in requests or asked()}
    differences = [
        (plain_logps(model, prompts[sample.prompt], sample.ids, temperature) - torch.tensor(sample.logps)).abs().max()
        for sample in samples.values()
    ]
    return float(max(differences))
