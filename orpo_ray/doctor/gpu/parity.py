"""The stage `parity`: packed rows against the texts one by one, by plain forwards of transformers and torch alone.

Small networks of several families. The measure of what half precision may be off by is what it is off by in the plain
forwards. Controls are wrong on purpose: they show that a fault would be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from orpo_ray.data.packing import pack
from orpo_ray.doctor.gpu.check import Check, Fields, Stage
from orpo_ray.doctor.gpu.sizes import Example, build, totals
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.objectives.orpo import orpo

_LAMBDA = 0.1
_NOISE = 0.03
"""Of weights, beside the small ones that a network starts from: so that attention and positions matter."""
_SUMS, _GRADIENT = 1e-3, 2e-4
"""In float32: nats that a text of one token may be off by, and one of n by the square root of n times as many, of which
the plain forwards' own sums of thousands of nats take the most; and the part of its length that the gradient may be."""
_MORE = 3.0
"""Times what plain forwards are off by in the same half precision."""
_SEEN = 3.0
"""Times what packed rows are off by: a control is off by more."""


@dataclass(frozen=True)
class Found:
    loss: float
    sums: Tensor
    """`(pairs, 3)` float32: summed log-probs of prompt, chosen and rejected."""
    gradient: Tensor
    """`(elements,)` float32, of all weights."""

    def off(self, reference: Found, lengths: Tensor) -> Fields:
        apart = (self.sums - reference.sums).abs()
        return {
            "loss_error": abs(self.loss - reference.loss),
            "sum_error": float(apart.max()),
            "scaled_error": float((apart / lengths.sqrt()).max()),
            "gradient_error": float((self.gradient - reference.gradient).norm() / reference.gradient.norm()),
        }


class Comparison:
    """Networks of one configuration and the same weights, asked the same."""

    def __init__(self, check: Check, config: PretrainedConfig) -> None:
        self._config, self._place = config, check.device.place
        self._examples = check.sizes.examples(1, check.sizes.parity_pairs, config.vocab_size)
        predictions = [[len(p) - 1, len(c), len(r)] for p, c, r in self._examples]
        self.lengths = torch.tensor(predictions, device=self._place)
        network = build(config, "eager", torch.float32, self._place)
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight) * _NOISE)
        self._weights = network.state_dict()

    def found(self, attention: str, dtype: torch.dtype) -> Found:
        """One forward and backward of ORPO's loss: plain with attentions of transformers, packed with others."""
        network = build(self._config, attention, dtype, self._place).eval()
        network.load_state_dict(self._weights)
        if attention in ("eager", "sdpa"):
            sums = torch.stack([plain_sums(network, example, self._place) for example in self._examples])
        else:
            batch = pack(self._examples, score_prompts=True).to(self._place)
            sums = PackedPolicy(network)(batch).view(self.lengths.shape)
        loss = orpo(sums, self.lengths, totals(self._examples), lambda_=_LAMBDA)[0]
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [weight.grad.float().flatten() for weight in network.parameters() if weight.grad is not None]
        return Found(loss.item(), sums.detach(), torch.cat(gradients))


def stages(check: Check) -> Iterator[Stage]:
    for family, config in check.sizes.families.items():
        yield Stage("parity", 12, about(family, config), partial(parity, config=config))


def about(family: str, config: PretrainedConfig) -> Fields:
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    return {
        "family": family, "head_dim": config.hidden_size // heads, "heads": heads, "kv_heads": kv_heads or heads,
        "window": getattr(config, "sliding_window", None),
    }  # fmt: skip


def twice(comparison: Comparison, dtype: torch.dtype, packed: Found | None = None) -> Fields:
    """Whether packed rows give the same bits again; `packed`: what they gave."""
    first, again = packed or comparison.found(NAME, dtype), comparison.found(NAME, dtype)
    return {
        "same_sums": torch.equal(first.sums, again.sums), "same_gradient": torch.equal(first.gradient, again.gradient),
    }  # fmt: skip


def parity(check: Check, config: PretrainedConfig) -> Iterator[Fields]:
    comparison = Comparison(check, config)
    found, lengths = comparison.found, comparison.lengths
    reference = found("eager", torch.float32)
    plain = found("sdpa", torch.bfloat16).off(reference, lengths)
    yield {"way": "plain", "dtype": "bfloat16", **plain, "ok": None}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        packed = found(NAME, dtype)
        off = packed.off(reference, lengths)
        yield {"way": "packed", "dtype": name, **off, "ok": _fine(off, plain if dtype == torch.bfloat16 else None)}
        for control, wrong in _controls(config).items():
            AttentionInterface.register(control, wrong)
            controlled = found(control, dtype).off(reference, lengths)
            seen = controlled["gradient_error"] > _SEEN * off["gradient_error"]
            yield {"way": control, "dtype": name, **controlled, "ok": seen}
        yield {"way": "packed twice", "dtype": name, **twice(comparison, dtype, packed), "ok": None}


def _fine(off: Fields, plain: Fields | None) -> bool:
    """`plain`: what plain forwards are off by in the same precision; None: it is float32."""
    if plain is None:
        return bool(off["scaled_error"] <= _SUMS and off["gradient_error"] <= _GRADIENT)
    return all(bool(off[name] <= _MORE * plain[name]) for name in ("scaled_error", "gradient_error"))


def plain_sums(network: PreTrainedModel, example: Example, place: torch.device) -> Tensor:
    """`(3,)` float32, by nothing of this package."""
    prompt, *responses = example
    found: list[Tensor] = []
    for response in responses:
        ids = torch.from_numpy(np.r_[prompt, response]).long().to(place)
        logits = network(input_ids=ids[None], use_cache=False).logits[0, :-1]
        logps = logits.float().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        if not found:
            found.append(logps[: len(prompt) - 1].sum())
        found.append(logps[len(prompt) - 1 :].sum())
    return torch.stack(found)


Attention = Callable[..., tuple[Tensor, None]]


def _controls(config: PretrainedConfig) -> dict[str, Attention]:
    """Faulty attentions by name: each position sees the key of the one before it; a window is one too long."""
    attention: Attention = AttentionInterface()[NAME]

    def rolled(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        return attention(module, query, key.roll(1, dims=2), value, mask, **options)

    def longer(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, sliding_window: int, **options: Any
    ) -> Any:
        return attention(module, query, key, value, mask, sliding_window=sliding_window + 1, **options)

    controls: dict[str, Attention] = {"control: keys shifted by one": rolled}
    if getattr(config, "sliding_window", None):
        controls["control: window longer by one"] = longer
    return controls
