"""Loading tokenizers and policies: from a Hub id, a folder, an earlier run's folder, or the embedded world."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray.config import ModelConfig
from orpo_ray.data import toyworld
from orpo_ray.errors import UserError
from orpo_ray.modeling.lora import add_adapters
from orpo_ray.modeling.parity import choose_way
from orpo_ray.modeling.policy import PackedPolicy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_CPU = torch.device("cpu")
_DROPOUT = ("dropout", "layerdrop", "layer_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop")


def load_tokenizer(model: ModelConfig) -> Tokenizer:
    """The tokenizer that `model` names, or its own. Raises `UserError` where there is none."""
    name = model.tokenizer or model.name_or_path
    if name == "toy":
        return toyworld.tokenizer()
    tokenizer: Tokenizer = _from_hub_or_folder(AutoTokenizer.from_pretrained, name, "tokenizer", model)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer has no EOS token, so a response could never end")
    return tokenizer


def load_policy(model: ModelConfig, *, seed: int, device: torch.device = _CPU) -> PackedPolicy:
    """The policy on `device`, in the configured dtype, in training mode; with `model.lora`, frozen but for adapters.

    Random weights are drawn from `seed`, the same on every rank. It is packed where that was found to be exact (see
    `parity.choose_way`). Raises `UserError` for a model that is not there, is not in safetensors, or whose log-probs
    nothing here computes.
    """
    network, _ = build_network(AutoModelForCausalLM, load_config(model), model, seed)
    network = network.to(device)
    alone = choose_way(network, PackedPolicy, model)
    if model.lora is not None:
        add_adapters(network, model.lora, seed)
    return PackedPolicy(network, alone=alone).train()


def check_fit(model: ModelConfig, tokenizer: Tokenizer, max_length: int) -> None:
    """Raises `UserError` where the model has no place for a token or a position that the data may hold."""
    config = load_config(model)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise UserError(
            f"data.max_length is {max_length}, but {model.name_or_path} has positions for {positions} tokens; "
            f"set data.max_length={positions} or less"
        )
    embedded = config.get_text_config().vocab_size
    if len(tokenizer) > embedded:
        raise UserError(
            f"model.tokenizer: {model.tokenizer or model.name_or_path} has {len(tokenizer)} tokens, but "
            f"{model.name_or_path} has embeddings for {embedded}; they do not belong together"
        )


def load_config(model: ModelConfig) -> PretrainedConfig:
    """The configuration of the model that `model` names, as it ships. Raises `UserError` where there is none."""
    if model.name_or_path == "toy":
        return toyworld.model_config()
    config: PretrainedConfig = _from_hub_or_folder(AutoConfig.from_pretrained, model.name_or_path, "model", model)
    return config


def build_network(
    auto: Any, config: PretrainedConfig, model: ModelConfig, seed: int
) -> tuple[PreTrainedModel, set[str]]:
    """The network of `auto`, one of transformers' AutoModels, and which of its parameters its files lack."""
    if not model.keep_dropout:
        _turn_dropout_off(config)
    if model.has_weights:
        network, info = _from_hub_or_folder(
            auto.from_pretrained, model.name_or_path, "model", model, config=config, dtype=DTYPES[model.dtype],
            use_safetensors=True, output_loading_info=True,
        )  # fmt: skip
        return network, info["missing_keys"]
    torch.manual_seed(seed)
    try:
        network = auto.from_config(config, trust_remote_code=model.trust_remote_code)
    except ValueError as error:  # there is no such class for this architecture
        raise UserError(f"{model.name_or_path}: the model cannot be built: {str(error).splitlines()[0]}") from error
    return network.to(DTYPES[model.dtype]), set()


def locate(name: str) -> str:
    """The folder that `name` stands for (of a run: its `model/`), absolute; or `name`, a Hub id."""
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path / "model" / "config.json"):  # `Path.is_file` raises where a name is too long
        path = path / "model"
    return str(path.resolve()) if os.path.isdir(path) else name


def _from_hub_or_folder(load: Any, name: str, what: str, model: ModelConfig, **options: Any) -> Any:
    """Call a transformers loader; what goes wrong with `name` is the user's to mend."""
    location = locate(name)
    if not os.path.isdir(location) and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(
            f"{name}: no such folder (a {what} is a folder, a run folder, or a Hub id such as facebook/opt-125m)"
        )
    try:
        return load(location, trust_remote_code=model.trust_remote_code, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "contains custom code" in str(error):
            raise UserError(
                f"{name}: the {what} comes with Python code of its own, which is not run; set "
                "model.trust_remote_code=true (in an evaluation: trust_remote_code=true) if you trust its source"
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: the {what} cannot be loaded: {reason}") from error


def _turn_dropout_off(config: PretrainedConfig) -> None:
    for name in vars(config):
        if name in _DROPOUT or name.endswith("_dropout"):
            setattr(config, name, 0.0)
