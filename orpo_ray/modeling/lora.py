"""LoRA (Hu et al., arXiv 2106.09685) through peft: adapters on the linear layers of a frozen network.

The network stays the Hugging Face model that it was: an adapted layer `q_proj` becomes peft's, which holds what it
was as `q_proj.base_layer` and the adapter as `q_proj.lora_A.default` and `q_proj.lora_B.default`.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orpo_ray.config import LoraConfig
from orpo_ray.errors import UserError

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"
_BASE = ".base_layer."


def add_adapters(network: PreTrainedModel, lora: LoraConfig, seed: int) -> None:
    """Freeze `network` and put adapters, in its dtype, on linear layers of its trunk, in place.

    `A` is drawn from `seed`, the same on every rank, and `B` is zero: at first `network` computes what it did. The
    output layer (of logits, or of a reward) gets none. Raises `UserError` where a name of `target_modules` is none of
    a layer that can be adapted.
    """
    import peft

    layers = _linear_layers(network)
    names = sorted({name.rpartition(".")[2] for name in layers})
    targets = names if lora.target_modules == "all-linear" else lora.target_modules
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):  # as peft matches them
            raise UserError(
                f"model.lora.target_modules: {type(network).__name__} has no linear layer {target} below its output; "
                f"it has {', '.join(names)}"
            )
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(config, network)


def _linear_layers(network: PreTrainedModel) -> dict[str, nn.Module]:
    """The trunk's linear layers by their names in `network`."""
    trunk = {id(module) for module in network.base_model.modules() if isinstance(module, nn.Linear | Conv1D)}
    return {name: module for name, module in network.named_modules() if id(module) in trunk}


def merged_weights(network: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, a whole state dict of `network`, with its adapters merged in, under the names of the plain network.

    Computed in float32 at least; merged matrices lie on the host. `weights` does not change, and what has no adapter
    is handed on as it is.
    """
    merged = {}
    for name, weight in weights.items():
        if name.endswith((_A, _B)):
            continue
        layer, _, rest = name.partition(_BASE)
        if rest == "weight":
            adapted = network.get_submodule(layer)
            exact = torch.promote_types(weight.dtype, torch.float32)
            product = weights[layer + _B].to(exact) @ weights[layer + _A].to(exact)  # (out, in)
            share = (product.t() if adapted.fan_in_fan_out else product) * adapted.scaling["default"]
            weight = (weight.to(exact) + share).to(weight.dtype).cpu()
        merged[plain_name(name)] = weight
    return merged


def plain_name(name: str) -> str:
    """What a parameter of a network with adapters is called in the plain one."""
    return name.replace(_BASE, ".")


def write_adapter(
    folder: Path,
    network: PreTrainedModel,
    weights: dict[str, Tensor],
    exported: dict[str, Tensor],
    base: str,
    revision: str | None = None,
) -> None:
    """Write the adapters in peft's format, so that they make of `base`, a folder, or a Hub id and its `revision`, what
    `exported` is.

    `weights`: the whole state dict of `network`; `exported`: its `merged_weights`, as the merged model is written.
    Modules beside the adapted ones that are not as in `base` (a reward model's new head, a norm that centres it) are
    saved whole.
    """
    adapters = {name.replace(".default.", "."): weight for name, weight in weights.items() if name.endswith((_A, _B))}
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    changed = {name for name, weight in exported.items() if name in weights and weights[name] is not weight}
    modules = sorted({name.rpartition(".")[0] for name in changed | trained & exported.keys()})
    whole = {name: weight for name, weight in exported.items() if name.rpartition(".")[0] in modules}

    config = copy.copy(network.peft_config["default"])
    config.base_model_name_or_path, config.revision = base, revision
    config.task_type = "SEQ_CLS" if type(network).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"
    config.target_modules = sorted(config.target_modules)
    config.modules_to_save = modules or None
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {f"base_model.model.{name}": weight.cpu().contiguous() for name, weight in (adapters | whole).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
