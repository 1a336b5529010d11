"""LoRA (Hu et al., arXiv 2106.09685) through peft: adapters on the linear layers of a frozen network.

The network stays the Hugging Face model that it was: an adapted layer `q_proj` becomes peft's, which holds what it
was as `q_proj.base_layer` and the adapter as `q_proj.lora_A.default` and `q_proj.lora_B.default`. Where the weights of
all experts are one parameter `(experts, ...)`, peft puts a layer of its own around the module that holds it, one around
the other for each such parameter, and an adapter of each expert lies in it side by side.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from orpo_ray.config import LoraConfig
from orpo_ray.errors import UserError
from orpo_ray.modeling.experts import is_of_all_experts, whole_shape
from orpo_ray.modeling.linear import Linear

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"
_BASE = ".base_layer."


def add_adapters(network: PreTrainedModel, lora: LoraConfig, seed: int) -> None:
    """Freeze `network` and put adapters, in its dtype, on linear layers and experts of its trunk, in place.

    `A` is drawn from `seed`, the same on every rank, and `B` is zero: at first `network` computes what it did. The
    output layer (of logits, or of a reward) gets none, nor do experts whose weights are one parameter where there is
    dropout: what they read is not apart from them. Raises `UserError` where a name of `target_modules` is none of what
    can be adapted.
    """
    import peft

    layers, experts = _linear_layers(network), _experts(network)
    names = sorted({name.rpartition(".")[2] for name in layers})
    of_experts = sorted({".".join(name.split(".")[-2:]) for name in experts})
    if lora.target_modules == "all-linear":
        targets, parameters = names, [] if lora.dropout else of_experts
    else:
        parameters = [t for t in lora.target_modules if not _named(t, layers) and _named(t, experts)]
        targets = [target for target in lora.target_modules if target not in parameters]
    for target in targets:
        if not _named(target, layers):
            raise UserError(
                f"model.lora.target_modules: {type(network).__name__} has no linear layer {target} below its output; "
                f"it has {', '.join(names + of_experts)}"
            )
    if parameters and lora.dropout:
        raise UserError(f"model.lora.dropout: adapters of experts ({parameters[0]}) have none; set it to 0")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets or None,
        target_parameters=parameters or None,
        exclude_modules=_alike(network, layers, targets) or None,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(config, network)


def _linear_layers(network: PreTrainedModel) -> dict[str, nn.Module]:
    """The trunk's linear layers by their names in `network`."""
    trunk = {id(module) for module in network.base_model.modules() if isinstance(module, nn.Linear | Conv1D)}
    named = ((name, module) for name, module in network.named_modules() if id(module) in trunk)
    return {name: module for name, module in named if _is_linear(module)}


def _alike(network: PreTrainedModel, layers: dict[str, nn.Module], targets: list[str]) -> list[str]:
    """Modules that have the name of a target, and are none of `layers`."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name not in layers and any(_named(target, [name]) for target in targets)
    ]


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer does what its class is derived from, found by asking it: a router that is an `nn.Linear` may give
    a choice of experts, and peft would take that for a product."""
    if type(layer).forward in (nn.Linear.forward, Linear.forward, Conv1D.forward):
        return True
    assert isinstance(layer, nn.Linear)
    asked = torch.ones(2, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    with torch.no_grad():
        try:
            given = layer(asked)
        except Exception:  # of any kind: what runs is the network's own code
            return False
        expected = nn.functional.linear(asked, layer.weight, layer.bias)
        return isinstance(given, Tensor) and given.shape == expected.shape and torch.allclose(given, expected)


def _experts(network: PreTrainedModel) -> list[str]:
    """The parameters that are the weights of all experts of a layer."""
    found = network.named_parameters()
    return [name for name, weight in found if is_of_all_experts(name, weight) and whole_shape(weight)[0] > 1]


def _named(target: str, names: Iterable[str]) -> bool:
    """Whether `target` is one of `names`, as peft matches them."""
    return any(name == target or name.endswith(f".{target}") for name in names)


def remarks(network: PreTrainedModel, lora: LoraConfig) -> list[str]:
    """What of `network` with adapters a person might expect to be adapted, and is not."""
    frozen = [name for name in _experts(network) if _adapter_of(network, name) is None]
    if not frozen:
        return []
    why = "have none where model.lora.dropout is set" if lora.dropout else "are not among model.lora.target_modules"
    return [f"the experts' weights, such as {plain_name(frozen[0])}, get no adapters and stay frozen: they {why}"]


def _adapter_of(network: PreTrainedModel, name: str) -> tuple[str, Any] | None:
    """Name and module of peft's layer that adapts the parameter `name`; None: nothing does."""
    layer, _, own = name.rpartition(".")
    while layer.endswith(_BASE[:-1]):
        layer = layer.removesuffix(_BASE[:-1])
        adapted = network.get_submodule(layer)
        if getattr(adapted, "parameter_name", "weight") == own:
            return layer, adapted
    return None


def _change(adapted: Any, a: Tensor, b: Tensor) -> Tensor:
    """What an adapter adds to the weight that it adapts, but for the scale; in the dtype of `a` and `b`."""
    experts = getattr(adapted, "num_experts", None)
    if experts is None:
        product = b @ a  # (out, in)
        return product.t() if adapted.fan_in_fan_out else product
    a, b = a.view(experts, -1, a.shape[-1]), b.view(b.shape[0], -1, experts)  # (experts, r, in), (out, r, experts)
    order = "eoi" if adapted._did_swap_in_out_features else "eio"
    return torch.einsum(f"ore,eri->{order}", b, a)


def merged_weights(network: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, a whole state dict of `network`, with its adapters merged in, under the names of the plain network.

    Computed in float32 at least; merged matrices lie on the host. `weights` does not change, and what has no adapter
    is handed on as it is.
    """
    merged = {}
    for name, weight in weights.items():
        if name.endswith((_A, _B)):
            continue
        if (found := _adapter_of(network, name)) is not None:
            layer, adapted = found
            exact = torch.promote_types(weight.dtype, torch.float32)
            share = _change(adapted, weights[layer + _A].to(exact), weights[layer + _B].to(exact))
            weight = (weight.to(exact) + share * adapted.scaling["default"]).to(weight.dtype).cpu()
        merged[plain_name(name)] = weight
    return merged


def plain_name(name: str) -> str:
    """What a parameter of a network with adapters is called in the plain one."""
    return re.sub(r"(\.base_layer)+\.", ".", name)


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
    config.target_modules = sorted(config.target_modules or [])
    config.modules_to_save = modules or None
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {f"base_model.model.{name}": weight.cpu().contiguous() for name, weight in (adapters | whole).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
