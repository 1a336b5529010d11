"""Mixtures of experts: what of their weights a token computes with, and what of them a run leaves as it is."""

from __future__ import annotations

import re
from collections import Counter

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

# What families call the number of experts that a token goes to.
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")
_PARALLEL = ("input_linear", "output_linear")  # JetMoE's, which lie in no module of experts
_EXPERT = re.compile(r"(.*\bexperts)\.\d+\.(.*)")


def shares(network: nn.Module, config: PretrainedConfig) -> dict[str, float]:
    """By name of an expert's weight, the part of it that a token computes with: of all experts of a layer those that it
    goes to. Weights of all experts are one tensor `(experts, ...)`, or each has its own."""
    chosen = next((number for name in _CHOSEN if (number := getattr(config, name, None))), None)
    if chosen is None:
        return {}
    weights = dict(network.named_parameters())
    apart = {name: one.groups() for name in weights if (one := _EXPERT.fullmatch(name))}
    siblings = Counter(apart.values())
    number = {name: siblings[group] for name, group in apart.items()}
    number |= {name: whole_shape(weight)[0] for name, weight in weights.items() if is_of_all_experts(name, weight)}
    adapted = {name: layer for name, layer in network.named_modules() if hasattr(layer, "parameter_name")}  # peft's
    number |= {name: adapted[of].num_experts for name in weights if (of := name.partition(".lora_")[0]) in adapted}
    return {name: min(1.0, chosen / experts) for name, experts in number.items()}


def is_of_all_experts(name: str, weight: nn.Parameter) -> bool:
    parts = name.split(".")
    return len(whole_shape(weight)) == 3 and ("experts" in parts or parts[-2] in _PARALLEL)


def remarks(network: PreTrainedModel) -> list[str]:
    """What a person should know of who trains this mixture of experts."""
    config = network.config.get_text_config()
    if not getattr(config, "output_router_logits", False) or not getattr(config, "router_aux_loss_coef", 0):
        return []
    return [
        f"its config.json asks for an auxiliary loss of the router ({config.router_aux_loss_coef:g} of it); no "
        "objective here adds it"
    ]


def whole_shape(weight: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter, also where ZeRO-3 holds a part of it here."""
    return tuple(getattr(weight, "ds_shape", weight.shape))
