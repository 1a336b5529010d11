"""What forward keeps for backward, and what is computed again: `train.memory`.

- `none`: nothing is computed again.
- `selective`: results of matrix products and attention are kept; norms, activations and sums are computed again.
- `full`: only each layer's input is kept (gradient checkpointing).

The result is the same up to the order of floating-point sums in the log-prob head.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from orpo_ray.data.packing import pack
from orpo_ray.modeling.critic import ActorCritic
from orpo_ray.modeling.experts import is_of_all_experts
from orpo_ray.modeling.head import LogprobHead
from orpo_ray.modeling.policy import PackedPolicy, hidden_states

if TYPE_CHECKING:
    from orpo_ray.modeling.scorer import Scorer

Recomputation = Literal["none", "selective", "full"]
LEVELS: tuple[Recomputation, ...] = ("none", "selective", "full")

_KEPT_OPERATORS = (
    "aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise", "aten::_scaled_dot_product",
    "torch_attn::_varlen_attn", "aten::_efficient_attention_forward",
)  # fmt: skip
SMALL_CHUNK = 1 << 27
"""Bytes of logits that the head keeps at most under `full`."""
_PROBE_TOKENS = 64


def set_recomputation(scorer: Scorer, level: Recomputation) -> None:
    """Have `scorer` compute again in backward what `level` says, from now on."""
    if isinstance(scorer, ActorCritic):
        set_recomputation(scorer.critic, level)
    network: PreTrainedModel = scorer.model
    if level == "none":
        network.gradient_checkpointing_disable()
    else:
        options: dict[str, Any] = {"use_reentrant": False}
        if level == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _selective)
        network.gradient_checkpointing_enable(options)
    head = network.get_output_embeddings()
    if isinstance(head, LogprobHead):
        head.chunk_bytes = SMALL_CHUNK if level == "full" else LogprobHead.chunk_bytes


def least_recomputation(scorer: Scorer, tokens: int, room: int) -> Recomputation:
    """The level that computes least again while a micro-batch of `tokens` packed tokens takes at most `room` bytes.

    `full` where none does. `scorer` must hold its whole weights and no recomputation may be set yet.
    """
    if not scorer.model.supports_gradient_checkpointing:
        return "none"
    needed = activation_bytes(scorer, tokens)
    return next((level for level in LEVELS if needed[level] <= room), "full")


def activation_bytes(scorer: Scorer, tokens: int) -> dict[Recomputation, int]:
    """Bytes that forward and backward of `tokens` packed tokens hold beside weights, gradients and optimizer.

    Of a short probe, scaled up: what it keeps grows with its tokens, but for what adapters make of experts' weights, a
    copy of each. The log-prob head's logits come on top. What attention on a CUDA device gathers of one layer at a time
    (`modeling.varlen`: a prompt's keys for each continuation) is not counted.
    """
    if isinstance(scorer, ActorCritic):
        critic = activation_bytes(scorer.critic, tokens)
        return {level: critic[level] + held for level, held in _activation_bytes(scorer, tokens).items()}
    return _activation_bytes(scorer, tokens)


def _activation_bytes(scorer: Scorer, tokens: int) -> dict[Recomputation, int]:
    network = scorer.model
    device = next(network.parameters()).device
    ids = np.zeros(_PROBE_TOKENS // 2, dtype=np.int32)
    batch = pack([[ids, ids]], score_prompts=False).to(device)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    experts = {weight.nbytes for name, weight in network.named_parameters() if is_of_all_experts(name, weight)}
    kept: dict[int, int] = {}
    adapted: dict[int, int] = {}
    products = _Products()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            place = adapted if storage.nbytes() in experts else kept
            place[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, it would hold the graph that holds it, where it is what an operator gave

    with torch.random.fork_rng(), saved_tensors_hooks(keep, lambda tensor: tensor), products, torch.enable_grad():
        # alive: what is freed could give its address to the next
        results = scorer(batch) if scorer.alone else hidden_states(network, batch)
    config = network.config.get_text_config()
    layers, scale = config.num_hidden_layers, tokens / batch.tokens
    everything = sum(kept.values())
    inputs = layers * batch.tokens * config.hidden_size * results.element_size()
    one_layer = everything / layers
    full = inputs + one_layer
    trunk = {"none": everything, "selective": min(everything, products.bytes + full), "full": full}
    copies = sum(adapted.values())
    fixed = {"none": copies, "selective": copies / layers, "full": copies / layers}
    return {level: int(scale * trunk[level] + fixed[level]) + _head_bytes(scorer, tokens, level) for level in LEVELS}


def _head_bytes(scorer: Scorer, tokens: int, level: Recomputation) -> int:
    if not isinstance(scorer, PackedPolicy):
        return 0
    head = scorer.model.get_output_embeddings()
    each = head.bytes_per_logit if isinstance(head, LogprobHead) else head.weight.element_size()
    logits: int = tokens * head.weight.shape[0] * each
    return min(logits, SMALL_CHUNK if level == "full" else LogprobHead.chunk_bytes)


def _selective(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    kept = operator.name().startswith(_KEPT_OPERATORS)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the results that `selective` keeps."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operator(*args, **(kwargs or {}))
        if operator.name().startswith(_KEPT_OPERATORS):
            every = results if isinstance(results, tuple) else (results,)
            self.bytes += sum(result.nbytes for result in every if isinstance(result, Tensor))
        return results
