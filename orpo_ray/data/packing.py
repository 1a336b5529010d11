"""Packing: prompts and their continuations in one row of tokens, without padding.

A packed row is `[prompt | cont 1 | … | cont K][prompt | …]`. Position ids restart at the prompt's end for
every continuation, and attention (`modeling.attention`) lets a continuation see its prompt and itself only,
so that each log-prob equals that of the plain text `prompt + continuation`, at the cost of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int32]


class Segment(NamedTuple):
    """Queries `[start, end)` that see keys `[prompt_start, prompt_end)` and, causally, themselves.

    A prompt is a segment whose own prompt range is empty.
    """

    start: int
    end: int
    prompt_start: int
    prompt_end: int


class Varlen(NamedTuple):
    """A layout as variable-length attention kernels take it: the keys of each segment gathered side by side."""

    keys: Tensor
    """`(keys,)` int64: packed positions."""
    cu_seq_q: Tensor
    """`(segments + 1,)` int32: where the queries of each segment begin."""
    cu_seq_k: Tensor
    """`(segments + 1,)` int32: where its keys begin in `keys`."""
    max_q: int
    max_k: int

    def to(self, device: torch.device) -> Varlen:
        keys, cu_seq_q, cu_seq_k = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return self._replace(keys=keys, cu_seq_q=cu_seq_q, cu_seq_k=cu_seq_k)

    def pinned(self) -> Varlen:
        keys, cu_seq_q, cu_seq_k = (tensor.pin_memory() for tensor in self[:3])
        return self._replace(keys=keys, cu_seq_q=cu_seq_q, cu_seq_k=cu_seq_k)


@dataclass(frozen=True)
class Layout:
    """Which tokens of a packed row see which; travels to the attention function as a forward keyword."""

    segments: tuple[Segment, ...]
    device: torch.device

    @cached_property
    def varlen(self) -> Varlen:
        spans = np.asarray(self.segments, dtype=np.int64)
        queries = spans[:, 1] - spans[:, 0]
        lengths = queries + spans[:, 3] - spans[:, 2]
        keys = np.concatenate([np.r_[p0:p1, q0:q1] for q0, q1, p0, p1 in self.segments])
        starts_q, starts_k = (np.r_[0, each.cumsum()].astype(np.int32) for each in (queries, lengths))
        host = Varlen(
            torch.from_numpy(keys),
            torch.from_numpy(starts_q),
            torch.from_numpy(starts_k),
            int(queries.max()),
            int(lengths.max()),
        )
        return host.to(self.device)

    def to(self, device: torch.device) -> Layout:
        moved = Layout(self.segments, device)
        if "varlen" in vars(self):  # computed ahead
            vars(moved)["varlen"] = self.varlen.to(device)
        return moved

    @cached_property
    def _masks(self) -> dict[int | None, list[Tensor | None]]:
        return {}

    def masks(self, window: int | None) -> list[Tensor | None]:
        """Per segment the boolean `(queries, keys)` mask, True where a query sees a key; None: plain causal.

        `window`: a query at position p sees keys at positions above `p - window` only (sliding window).
        Built once per batch and shared by its layers.
        """
        if window not in self._masks:
            self._masks[window] = [_mask(segment, window, self.device) for segment in self.segments]
        return self._masks[window]


def _mask(segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
    queries, prompt = segment.end - segment.start, segment.prompt_end - segment.prompt_start
    slides = window is not None and window < prompt + queries
    if prompt == 0 and not slides:
        return None
    mask = torch.ones(queries, prompt + queries, dtype=torch.bool, device=device).tril(prompt)
    return mask.triu(prompt - window + 1) if slides and window is not None else mask


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch.

    A *sequence* is a prompt or a continuation; those of one prompt follow each other:
    `[prompt, cont 1, …, cont K, prompt, …]`. A *prediction* is one scored token.
    """

    input_ids: Tensor
    """`(tokens,)` int64."""
    position_ids: Tensor
    """`(tokens,)` int64."""
    layout: Layout
    source: Tensor
    """`(predictions,)` int64: the packed position whose hidden state predicts the token. A prompt's last
    position predicts the first token of each of its continuations."""
    targets: Tensor
    """`(predictions,)` int64: the tokens predicted."""
    ends: Tensor
    """`(sequences,)` int64: the packed position of each sequence's last token."""
    lengths: Tensor
    """`(sequences,)` int64: predictions of each sequence; 0 for a prompt that is not scored."""
    prompts: int
    """Number of prompts, so that results of shape `(sequences,)` view as `(prompts, 1 + K)`."""
    weight: float = 1.0
    """0.0 for a micro-batch that only keeps this rank in step with the others."""

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()

    def to(self, device: torch.device) -> PackedBatch:
        if self.layout.device == device:
            return self
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return replace(self, layout=self.layout.to(device), **moved)

    def pinned(self) -> PackedBatch:
        """The same in page-locked memory, with all that a CUDA device will ask for computed."""
        layout = Layout(self.layout.segments, self.layout.device)
        vars(layout)["varlen"] = self.layout.varlen.pinned()
        return replace(self, layout=layout, **{name: getattr(self, name).pin_memory() for name in _TENSORS})


_TENSORS = ("input_ids", "position_ids", "source", "targets", "ends", "lengths")


def pack(examples: Sequence[Sequence[Ids]], *, score_prompts: bool, weight: float = 1.0) -> PackedBatch:
    """Pack prompts with their continuations.

    `examples`: for each prompt `[prompt_ids, cont_ids, …]`, each `(length,)` and not empty, the same number
    of continuations for all. `score_prompts`: also predict the prompts' own tokens (from their second on).
    """
    segments: list[Segment] = []
    positions: list[NDArray[np.int64]] = []
    sources: list[NDArray[np.int64]] = []
    targets: list[Ids] = []
    lengths: list[int] = []
    end = 0
    for prompt, *continuations in examples:
        prompt_start, prompt_end = end, end + len(prompt)
        segments.append(Segment(prompt_start, prompt_end, prompt_start, prompt_start))
        positions.append(np.arange(len(prompt)))
        if score_prompts:
            sources.append(np.arange(prompt_start, prompt_end - 1))
            targets.append(prompt[1:])
        lengths.append(len(prompt) - 1 if score_prompts else 0)
        end = prompt_end
        for continuation in continuations:
            segments.append(Segment(end, end + len(continuation), prompt_start, prompt_end))
            positions.append(np.arange(len(prompt), len(prompt) + len(continuation)))
            sources.append(np.r_[prompt_end - 1, end : end + len(continuation) - 1])
            targets.append(continuation)
            lengths.append(len(continuation))
            end += len(continuation)
    cpu = torch.device("cpu")
    return PackedBatch(
        input_ids=_int64([ids for example in examples for ids in example]),
        position_ids=_int64(positions),
        layout=Layout(tuple(segments), cpu),
        source=_int64(sources),
        targets=_int64(targets),
        ends=torch.tensor([segment.end - 1 for segment in segments], dtype=torch.int64),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        prompts=len(examples),
        weight=weight,
    )


def _int64(parts: Sequence[NDArray[np.int64]] | Sequence[Ids]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64, copy=False))
