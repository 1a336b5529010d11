"""The networks that stages train and ask, built without memory and without a download, for their sizes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from orpo_ray.config import ModelConfig, TrainConfig
from orpo_ray.config.paths import expanded
from orpo_ray.costs.step import Network
from orpo_ray.data import toyworld
from orpo_ray.modeling import lora
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.loading import locate
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import PackedRewardModel
from orpo_ray.stages.graph import Graph

_OPT: dict[str, Any] = {"vocab_size": 50272, "max_position_embeddings": 2048}


def _opt(width: int, layers: int, heads: int, **more: Any) -> tuple[str, dict[str, Any]]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": 4 * width}
    return "opt", {**_OPT, **sizes, "word_embed_proj_dim": width, **more}


_PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "facebook/opt-125m": _opt(768, 12, 12),
    "facebook/opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "facebook/opt-1.3b": _opt(2048, 24, 32),
    "microsoft/phi-2": (
        "phi",
        {"vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
         "num_attention_heads": 32},
    ),
    "meta-llama/Llama-2-7b-hf": ("llama", {}),  # transformers' defaults are those of the 7B, here and below
    "mistralai/Mistral-7B-v0.1": ("mistral", {}),
}  # fmt: skip
"""The paper's models as their authors published them: a plan must not ask the Hub for their sizes."""


class Trained(NamedTuple):
    """A network of a training run, and how many of its parameters are trained."""

    net: Network
    trained: int


class Networks:
    """Of a graph's stages: whose model comes from another stage has that one's architecture."""

    def __init__(self, graph: Graph) -> None:
        self._by_folder = {stage.folder: stage.config for stage in graph}

    def root(self, name: str) -> tuple[str, ModelConfig | None]:
        """The model that stands at the beginning of what `name` names: text, and the section that names it, where that
        is a stage's."""
        run = self._made_by(name)
        if run is None:
            return name, None
        root, section = self.root(run.model.name_or_path)
        return root, section or run.model

    def trained(self, run: TrainConfig) -> Trained | None:
        """None: nothing here tells its size."""
        root, _ = self.root(run.model.name_or_path)
        adapters = None if run.model.lora is None else run.model.lora.model_dump_json()
        return _built(root, run.objective.model == "reward", adapters)

    def asked(self, name: str) -> Network | None:
        """Of a policy that is asked, or a reward model's; None: nothing here tells its size."""
        run = self._made_by(name)
        found = _built(self.root(name)[0], run is not None and run.objective.model == "reward", None)
        return None if found is None else found.net

    def _made_by(self, name: str) -> TrainConfig | None:
        if os.sep not in name:
            return None
        path = Path(os.path.realpath(expanded(name)))
        for folder in (path, *path.parents):
            if isinstance(config := self._by_folder.get(folder), TrainConfig):
                return config
        return None


@cache
def _built(name: str, reward: bool, adapters: str | None) -> Trained | None:
    config = _config(name)
    if config is None:
        return None
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    if reward:
        config.num_labels = 1
    with torch.device("meta"):
        network = auto.from_config(config, attn_implementation=NAME)
        if adapters is not None:
            from orpo_ray.config.schema import LoraConfig

            lora.add_adapters(network, LoraConfig.model_validate_json(adapters), seed=0)
        scorer = (PackedRewardModel if reward else PackedPolicy)(network)
    trained = sum(each.numel() for each in scorer.parameters() if each.requires_grad)
    return Trained(Network.of(scorer), trained)


def _config(name: str) -> PretrainedConfig | None:
    if name == "toy":
        return toyworld.model_config()
    place, _ = locate(name)
    try:
        if os.path.isdir(place):
            found: PretrainedConfig = AutoConfig.from_pretrained(place)
            return found
        if place in _PUBLISHED:
            family, sizes = _PUBLISHED[place]
            return AutoConfig.for_model(family, **sizes)  # type: ignore[no-any-return]
        return AutoConfig.from_pretrained(place, local_files_only=True)  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None
