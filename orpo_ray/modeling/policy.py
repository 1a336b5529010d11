"""The policy as training and scoring see it: a packed batch in, log-probs of tokens, or their sums, out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from orpo_ray.data.packing import PackedBatch
from orpo_ray.errors import UserError
from orpo_ray.modeling.head import LogprobHead
from orpo_ray.modeling.linear import ROWS, by_onednn, quicken
from orpo_ray.modeling.plain import longest, text_logps


def hidden_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """The trunk's last hidden states `(tokens, width)` of a packed row."""
    ids = torch.stack([batch.input_ids, batch.position_ids])
    if by_onednn(next(model.parameters())):
        # Tokens behind the row that nothing attends to: without them every batch would be of a shape of its own.
        ids = F.pad(ids, (0, -batch.tokens % ROWS))
    output = model.base_model(
        input_ids=ids[:1],
        position_ids=ids[1:],
        # Says that nothing is padding. Else transformers looks among the positions for rows that are packed in its own
        # way, and the host waits for the device to say that there are some.
        attention_mask=torch.ones_like(ids[:1]),
        layout=batch.layout,
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state[0, : batch.tokens]
    return hidden


def longest_alike(config: PretrainedConfig) -> int | None:
    """The longest text whose positions a model of LongRoPE embeds as those of short ones; None: it is of another kind.

    It embeds all of a longer text by another factor, and so it would all that stands in one row with it.
    """
    ropes = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [ropes, *(kind for kind in ropes.values() if isinstance(kind, dict))]  # by type of layer, in some
    thresholds = [
        rope["original_max_position_embeddings"]
        for rope in kinds
        if rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings")
    ]
    return min(thresholds, default=None)


class Packable(nn.Module):
    """A Hugging Face network behind shared-prefix packing; or, where it is to be `alone`, as it is, and asked a text at
    a time (`modeling.plain`)."""

    def __init__(self, model: PreTrainedModel, alone: str) -> None:
        super().__init__()
        if not alone:
            quicken(model.base_model)
        self.model = model
        self.alone = alone
        """Why it is asked a text at a time; nothing: it is packed."""
        self._longest_alike = longest_alike(model.config)

    def _one_by_one(self, batch: PackedBatch) -> bool:
        """Whether it is to be asked for the texts of `batch` one at a time."""
        return bool(self.alone) or (self._longest_alike is not None and longest(batch) > self._longest_alike)


class PackedPolicy(Packable):
    """A Hugging Face causal language model behind shared-prefix packing.

    `model` must have been built with `attn_implementation="shared_prefix"` (see `loading.load_policy`). Its
    output layer is replaced by a `LogprobHead` with the same parameters, so `model.save_pretrained` writes
    what it always did. Where it is to be `alone`, it is left as it is and asked a text at a time (`modeling.plain`).
    """

    temperature = 1.0
    """That logits are divided by, as a sampler does."""

    def __init__(self, model: PreTrainedModel, *, alone: str = "") -> None:
        super().__init__(model, alone)
        if not alone:
            model.set_output_embeddings(LogprobHead.of(model))

    def at_temperature(self, temperature: float) -> PackedPolicy:
        """Itself, which from now on gives the log-probs of tokens drawn at `temperature`. Raises `UserError` where that
        cannot be had: capped logits are divided behind the cap."""
        head = self.model.get_output_embeddings()
        if isinstance(head, LogprobHead):
            if head.softcap is not None and temperature != 1:
                raise UserError(f"rollouts.temperature: {type(self.model).__name__} caps its logits; leave it at 1")
            head.scale *= self.temperature / temperature
        self.temperature = temperature
        return self

    def forward(self, batch: PackedBatch, *, by_token: bool = False) -> Tensor:
        """Summed log-probs `(sequences,)` in float32 of every prompt and continuation of `batch`; `by_token`: those of
        every prediction, `(predictions,)`."""
        if self._one_by_one(batch):
            logps_of = text_logps(self.model, batch, self.temperature)
            return torch.cat(logps_of) if by_token else torch.stack([logps.sum() for logps in logps_of])
        hidden = hidden_states(self.model, batch)  # (tokens, width)
        logps: Tensor = self.model.get_output_embeddings()(hidden[batch.source], batch.targets)  # (predictions,)
        if by_token:
            return logps
        # segment_reduce adds in order; index_add on CUDA would not give the same bits twice.
        # `unsafe` leaves out a check of the lengths, for which a device would have to be waited for.
        return torch.segment_reduce(logps, "sum", lengths=batch.lengths, unsafe=True)
