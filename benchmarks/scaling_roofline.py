"""One step on one GPU, operator by operator: FLOPs and bytes counted on tensors without memory, time by the roofline.

    python benchmarks/scaling.py --parts device [--measured gpu.jsonl]

Each operator of forward, backward and update takes the longer of its FLOPs at the rate that products reach and its
bytes at the rate that memory reaches. Ours is the trainer's own policy on its path for GPUs; the baseline is a plain
Hugging Face forward of padded rows, chosen and rejected apart, with all logits in float32, as peers have it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scaling_model import build
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface

from orpo_ray.config.schema import LoraConfig
from orpo_ray.costs.step import OPTIMIZER_BYTES, Lengths, Load, Network
from orpo_ray.data.packing import pack
from orpo_ray.modeling import attention, head
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.kernels.logprob import bytes_moved
from orpo_ray.modeling.lora import add_adapters
from orpo_ray.modeling.memory import Recomputation, set_recomputation
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.terms import Totals

META = torch.device("meta")
ACCUMULATION_BYTES = 10
"""A parameter's gradient added up: read in bfloat16, its float32 sum read and written."""


@dataclass(frozen=True)
class Device:
    """What a device reaches; by default an H100 SXM, until it is measured."""

    peak: float = 989e12
    """FLOP/s in bfloat16 of the data sheet: the denominator of MFU."""
    products: float = 0.70 * 989e12
    """ASSUMED: FLOP/s that large products reach."""
    attention: float = 200e12
    """ASSUMED: FLOP/s of FlashAttention over texts of hundreds of tokens (335 at its best, arXiv 2307.08691)."""
    bandwidth: float = 0.85 * 3.35e12
    """ASSUMED: bytes a second that element-wise kernels reach."""
    launch: float = 8e-6
    """ASSUMED: seconds of the host for an operator; a step is no shorter than all of them."""


@dataclass(frozen=True)
class Counts:
    """Of all operators together; `seconds` of each by the roofline, summed by kind."""

    operators: int
    flops: float
    bytes: float
    seconds: dict[str, float]

    def step(self, device: Device) -> float:
        """Seconds, of the device or of the host that starts its operators."""
        return max(sum(self.seconds.values()), self.operators * device.launch)

    def __add__(self, other: Counts) -> Counts:
        kinds = {**self.seconds, **other.seconds}
        seconds = {kind: self.seconds.get(kind, 0.0) + other.seconds.get(kind, 0.0) for kind in kinds}
        return Counts(
            self.operators + other.operators, self.flops + other.flops, self.bytes + other.bytes, seconds
        )  # fmt: skip


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that run under it. `pairs`: of a query and a key, that each call of the varlen kernel
    sees, which its shapes do not tell."""

    def __init__(self, device: Device, pairs: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device, self._pairs = device, pairs
        self._operators, self._flops, self._bytes = 0, 0.0, 0.0
        self._seconds: dict[str, float] = defaultdict(float)

    def counts(self) -> Counts:
        return Counts(self._operators, self._flops, self._bytes, dict(self._seconds))

    def add(self, kind: str, flops: float, size: float, rate: float | None = None) -> None:
        """An operator that does not run here: its FLOPs, its bytes."""
        self._operators += 1
        self._flops += flops
        self._bytes += size
        self._seconds[kind] += max(flops / (rate or self._device.products), size / self._device.bandwidth)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if not _moves(operator):
            return result
        name = operator.name()
        written = sum(_storages(result).values())
        if name.startswith(_PICKING) and "backward" not in name:
            size = 2.0 * written
        else:
            size = float(sum(_storages((args, kwargs)).values()) + written)
        if "_varlen_attn" in name:
            query = args[1] if "backward" in name else args[0]
            forward = 4.0 * query.shape[1] * query.shape[2] * self._pairs
            self.add("attention", forward * (2.5 if "backward" in name else 1), size, self._device.attention)
        elif operator.overloadpacket in flop_registry:
            kind = "attention" if "attention" in name else "products"
            flops = flop_registry[operator.overloadpacket](*args, **(kwargs or {}), out_val=result)
            # A kernel for causal attention passes over the half that nobody sees; the count here does not.
            self.add(kind, flops / (2 if kind == "attention" else 1), size,
                     self._device.attention if kind == "attention" else None)  # fmt: skip
        else:
            self.add("elements", 0.0, size)
        return result


_PICKING = ("aten::gather", "aten::index.Tensor", "aten::index_select", "aten::embedding")
"""What they read is what they write, not all that they are given."""


def _moves(operator: Any) -> bool:
    """Whether it reads or writes memory: neither views nor tensors that nobody has written."""
    if operator.name().startswith(("aten::empty", "aten::new_empty", "aten::_unsafe_view")):
        return False
    aliases = [each.alias_info for each in operator._schema.returns]
    return not aliases or not all(alias is not None and not alias.is_write for alias in aliases)


def _storages(tree: Any) -> dict[int, int]:
    """Bytes of the tensors in `tree`, an expanded one as what is stored of it."""
    leaves = torch.utils._pytree.tree_leaves(tree)
    return {id(leaf): min(leaf.nbytes, leaf.untyped_storage().nbytes()) for leaf in leaves if isinstance(leaf, Tensor)}


# What is counted

_ROWS = "rows_of_one_width"


def _varlen_rows(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention of rows of one width by the kernel for texts of many lengths."""
    from torch.nn.attention.varlen import varlen_attn

    rows, _, width, _ = query.shape
    starts = torch.empty(rows + 1, dtype=torch.int32, device=META)
    own, keys, values = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (query, key, value))
    grouped = key.shape[1] != query.shape[1]
    attended = varlen_attn(
        own, keys, values, starts, starts, width, width, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    assert isinstance(attended, Tensor)
    return attended.view(rows, width, *attended.shape[1:]), None


AttentionInterface.register(_ROWS, _varlen_rows)


@contextmanager
def _path_of_gpus(counting: Counting) -> Iterator[None]:
    """Packed attention and log-probs as a device computes them: FlashAttention, and the fused kernel by its bytes."""

    def fused(
        logits: Tensor, targets: Tensor, residuals: Tensor | None, scale: float = 1.0, softcap: float | None = None
    ) -> Tensor:
        rows, vocabulary = logits.shape
        written = None if residuals is None else residuals.dtype
        counting.add("elements", 0.0, bytes_moved(rows, vocabulary, logits.dtype, written))
        return torch.empty(rows, device=META)

    with (
        patch.object(attention, "capability_of", lambda device: (9, 0)),
        patch.object(head, "logprobs_for", lambda logits: fused),
    ):
        yield


def _add_update(counting: Counting, model: torch.nn.Module, micro_batches: int) -> None:
    """Sums of gradients and the optimizer, whose operators are fused, by the bytes of each trained parameter."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    counting.add("update", 0.0, trained * (ACCUMULATION_BYTES * micro_batches + OPTIMIZER_BYTES))


class Subject:
    """A network of a family, in bfloat16 with float32 masters, and what counts its steps on `device`.

    `lora`: adapters of rank 16 on a frozen network; `sizes`: in place of the family's.
    """

    def __init__(self, family: str, device: Device, *, lora: bool = False, **sizes: int) -> None:
        self._device = device
        with META:
            self._policy = build(family, **sizes)
            if lora:
                add_adapters(self._policy.model, LoraConfig(), seed=0)
        self._policy.to(torch.bfloat16)  # behind peft, which leaves adapters without memory in float32
        self.network = Network.of(self._policy)

    def packed(self, micro_batches: Sequence[Lengths], level: Recomputation) -> Counts:
        """A step as the trainer makes it."""
        set_recomputation(self._policy, level)
        update = Counting(self._device)
        _add_update(update, self._policy, len(micro_batches))
        return sum((self._packed(lengths) for lengths in micro_batches), update.counts())

    def _packed(self, lengths: Lengths) -> Counts:
        batch = pack([[np.zeros(length, dtype=np.int32) for length in pair] for pair in lengths], score_prompts=True)
        _ = batch.layout.varlen  # of numbers, so before there are none
        counting = Counting(self._device, Load.of(lengths).visible)
        shape = torch.tensor([[prompt - 1, *responses] for prompt, *responses in lengths.tolist()])
        totals = Totals(len(lengths), int(shape[:, :2].sum()))
        with _path_of_gpus(counting), counting:
            sums = self._policy(batch.to(META)).view(-1, 3)
            orpo(sums, shape.to(META), totals, lambda_=0.1)[0].backward()  # type: ignore[no-untyped-call]
        return counting.counts()

    def padded(self, micro_batches: Sequence[Lengths], level: Recomputation) -> Counts:
        """A step of peers: plain forwards of the chosen and of the rejected, each padded to its longest; logits of
        every position, made float32. In their favour: weights are bfloat16, where they cast float32 ones in every
        forward, and attention is the same kernel without a mask.
        """
        network = self._policy.model
        network.set_attn_implementation(_ROWS)
        set_recomputation(self._policy, level)
        update = Counting(self._device)
        _add_update(update, network, len(micro_batches))
        total = update.counts()
        for lengths in micro_batches:
            for side in (1, 2):
                rows, width = len(lengths), int((lengths[:, 0] + lengths[:, side]).max())
                ids = torch.zeros(rows, width, dtype=torch.long, device=META)
                counting = Counting(self._device, rows * width * (width + 1) / 2)
                with counting:
                    logits = network(input_ids=ids, use_cache=False).logits
                    logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).sum().backward()  # type: ignore[no-untyped-call]
                total += counting.counts()
        network.set_attn_implementation(NAME)
        return total
