"""Whether a network may be packed, found by packing: when it loads, it is held against its own plain forwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from orpo_ray.config import ModelConfig
from orpo_ray.data.packing import Ids, PackedBatch, pack
from orpo_ray.errors import UserError
from orpo_ray.modeling import attention
from orpo_ray.modeling.plain import forward
from orpo_ray.modeling.policy import Packable

_TEXTS = (40, 50, 9), (11, 7, 32)
"""Tokens of each prompt and of its two continuations: one is short enough for a block of `packing`, one is not."""
_FAR = 400
"""Tokens that a text is lengthened to at most, to be longer than a window or a chunk."""
_COPIED = 10**9
"""Parameters up to which a network in half precision is probed as a copy in float32, where a fault is told from
rounding at once."""
_FLOOR = {torch.float64: 1e-8, torch.float32: 2e-4}
"""Nats that a text of one token may differ by through rounding, and one of n by the square root of n times as many."""
_HALF = 0.05  # in half precision
_DIVIDED = {"full": 0.05, "half": 0.5}
"""The same, of a network on one device and divided among others: kernels are others, and a router's choice may turn."""
_MORE = 4.0
"""The same, in what parts two plain ways of the same network."""


class Wrapper(Protocol):
    """`PackedPolicy` or `PackedRewardModel`."""

    def __call__(self, model: PreTrainedModel, *, alone: str = "") -> nn.Module: ...


def choose_way(
    network: PreTrainedModel, wrapper: Wrapper, model: ModelConfig, warn: Callable[[str], None] = lambda text: None
) -> str:
    """Why `network` is to be asked a text at a time; nothing: it is packed, and takes its attention from here.

    Two prompts with two continuations each, of random tokens, are computed both ways; `warn` is told, in one line,
    where `auto` does not pack. Raises `UserError` where what the
    network gives could not be trained on, or where `model.packing` asks for what it cannot do.
    """
    if network.device.type == "meta":
        return ""  # there is nothing to compute with
    name = model.name_or_path
    probed = [network]
    if network.dtype not in _FLOOR and network.num_parameters() <= _COPIED:
        probed = [copy.deepcopy(network).float()]
        if attention.has_kernels(network.device):
            probed.append(network)  # which other kernels compute than the copy
    mode = network.training
    with torch.no_grad():
        reasons = (_why_alone(each.eval(), wrapper, model) for each in probed)
        reason = next(filter(None, reasons), "")
    network.train(mode)
    if reason and model.packing == "shared_prefix":
        raise UserError(f"model.packing: {name} cannot be packed: {reason}")
    if not reason:
        network.set_attn_implementation(attention.NAME)
    elif model.packing == "auto":
        warn(f"{name}: not packed, so a prompt is computed once for each response: {reason}")
    return reason


def probe(scorer: Packable, forward: Callable[[PackedBatch], Tensor]) -> Tensor:
    """What `forward`, `scorer` itself or its engine on all ranks together, gives the texts of the probe: `(sequences,)`
    on the host."""
    mode = scorer.training
    scorer.eval()
    with torch.no_grad():
        found = forward(_texts(scorer.model.config, torch.device("cpu")))
    scorer.train(mode)
    return found.cpu()


def require_same_numbers(name: str, scorer: Packable, before: Tensor, after: Tensor) -> None:
    """Raises `UserError` where the probe `after` a network was divided among ranks differs from that `before` by more
    than rounding."""
    apart = _apart(after, before, _texts(scorer.model.config, torch.device("cpu")))
    rounding = _DIVIDED["full" if next(scorer.parameters()).dtype in _FLOOR else "half"]
    if not apart <= rounding:  # nor where it is not a number
        raise UserError(
            f"{name}: divided among ranks it gives other numbers than whole: by {apart:.2g} nats, of which rounding "
            f"explains {rounding:.2g}; choose another train.zero_stage"
        )


def _why_alone(network: PreTrainedModel, wrapper: Wrapper, model: ModelConfig) -> str:
    name, kind = model.name_or_path, type(network).__name__
    batch = _texts(network.config, next(network.parameters()).device)
    try:
        expected = wrapper(network, alone="probed")(batch)
        ahead = _reads_ahead(network, batch)
    except UserError:
        raise
    except Exception as error:  # of any kind: what runs is the network's own code
        raise UserError(f"{name}: {kind} alone cannot be asked what follows a text: {_said(error)}") from error
    if not expected.isfinite().all():
        raise UserError(f"{name}: {kind} gives numbers that are not finite")
    if ahead:
        raise UserError(f"{name}: {kind}, as it is configured, reads tokens that are yet to come")
    if model.packing == "off":
        return "model.packing is off"
    if not network._supports_attention_backend:
        return f"{kind} does not take its attention from transformers' attention interface"
    usual = network.config._attn_implementation
    network.set_attn_implementation(attention.NAME)
    try:
        apart = _apart(wrapper(network)(batch), expected, batch)
    except Exception as error:
        return f"{kind} cannot be packed: {_said(error)}"
    finally:
        network.set_attn_implementation(usual)
    rounding = _FLOOR.get(network.dtype, _HALF)
    if apart > rounding and usual != "eager":
        network.set_attn_implementation("eager")
        other = wrapper(network, alone="probed")(batch)
        network.set_attn_implementation(usual)
        rounding = max(rounding, _MORE * _apart(other, expected, batch))
    if apart <= rounding:
        return ""
    return f"packed, {kind} gives other numbers: by {apart:.2g} nats, of which rounding explains {rounding:.2g}"


def _apart(found: Tensor, expected: Tensor, batch: PackedBatch) -> float:
    """The largest difference of a sequence, over the square root of its tokens."""
    return float(((found - expected).abs() / batch.lengths.clamp(min=1).sqrt()).max())


def _reads_ahead(network: PreTrainedModel, batch: PackedBatch) -> bool:
    """Whether what a language model gives at a token depends on later ones. A classifier may read as it likes."""
    ids = batch.input_ids[None, : sum(_TEXTS[0][:2]) // 2]
    whole = forward(network, ids)
    if whole.dim() < 3:
        return False
    half = ids.shape[1] // 2
    part = forward(network, ids[:, :half])
    apart = (whole[:, :half].log_softmax(-1) - part.log_softmax(-1)).abs().max()
    return float(apart) > 10 * _FLOOR.get(network.dtype, _HALF)


def _texts(config: PretrainedConfig, device: torch.device) -> PackedBatch:
    """Random tokens, the same each time; as long as what the configuration says of windows and chunks asks for."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "local_attention")]
    far = max((limit + 20 for limit in limits if isinstance(limit, int) and limit + 20 <= _FAR), default=0)
    room = getattr(text, "max_position_embeddings", None) or 10**9
    shrink = min(1.0, room / max(sum(lengths) for lengths in _TEXTS))
    special = _special(config)
    ids = np.setdiff1d(np.arange(text.vocab_size, dtype=np.int32), list(special))
    rng = np.random.default_rng(0)
    examples: list[list[Ids]] = []
    for prompt, *continuations in _TEXTS:
        longer = max(0, min(far, room) - prompt - min(continuations)) if not examples else 0
        lengths = [max(2, int(length * shrink)) for length in (prompt + longer, *continuations)]
        examples.append([rng.choice(ids, length) for length in lengths])
    return pack(examples, score_prompts=True).to(device)


def _special(config: PretrainedConfig) -> set[int]:
    """Token ids that stand for something else than text: padding, the place of an image."""
    found: set[int] = set()
    for name, value in _settings(config):
        if name.endswith(("_token_id", "_token_index")):
            found |= {number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)}
    return found


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        yield name, value
        if isinstance(value, PretrainedConfig):
            yield from _settings(value)


def _said(error: Exception) -> str:
    """In one line."""
    text = " ".join(str(error).split())[:200]
    return text if text and isinstance(error, NotImplementedError) else f"{type(error).__name__}: {text}"
