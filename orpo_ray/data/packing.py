"""Packing: prompts and their continuations in one row of tokens, without padding.

A packed row is `[prompt | cont 1 | … | cont K][prompt | …]`. Position ids restart at the prompt's end for
every continuation, and attention (`modeling.attention`) lets a continuation see its prompt and itself only,
so that each log-prob equals that of the plain text `prompt + continuation`, at the cost of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int32]

# Attention of a prompt with its continuations up to this many tokens takes longer to call than to compute.
_SHORT = 80
_CALL = 5000
"""Scores that are computed in the time of a call: where padding adds more, there is another."""


class Segment(NamedTuple):
    """Queries `[start, end)` that see keys `[prompt_start, prompt_end)` and, causally, themselves.

    A prompt is a segment whose own prompt range is empty.
    """

    start: int
    end: int
    prompt_start: int
    prompt_end: int


class Varlen(NamedTuple):
    """A layout as variable-length attention kernels take it: the keys of each segment gathered side by side.

    A prompt and its first continuation are one segment, since they stand side by side in the row.
    """

    keys: Tensor
    """`(keys,)` int64: packed positions."""
    cu_seq_q: Tensor
    """`(segments + 1,)` int32: where the queries of each segment begin."""
    cu_seq_k: Tensor
    """`(segments + 1,)` int32: where its keys begin in `keys`."""
    copies: Tensor
    """`(keys,)` int32: places in `keys`, those of one packed token beside each other, in order."""
    cu_copies: Tensor
    """`(tokens + 1,)` int32: where those of each packed token begin in `copies`."""
    max_q: int
    max_k: int

    @property
    def bounds(self) -> tuple[Tensor, Tensor, int, int]:
        """As kernels are told of the segments."""
        return self.cu_seq_q, self.cu_seq_k, self.max_q, self.max_k

    def to(self, device: torch.device) -> Varlen:
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Varlen:
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Varlen:
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in self._fields[:-2]}
        return self._replace(**changed)


class Block(NamedTuple):
    """Short prompts with their continuations, `[start, end)` of a packed row, that attention computes in one call.

    Each has a row of slots, as long as the longest; what it leaves over is padding.
    """

    start: int
    end: int
    slots: Tensor
    """`(rows * width,)` int64: the token in each slot, counted from `start`; 0 in padding."""
    places: Tensor
    """`(end - start,)` int64: the slot of each token."""
    segment: Tensor
    """`(rows, width)` int64: of a slot's token: 0 in a prompt, 1 and up in its continuations; -1 in padding."""
    position: Tensor
    """`(rows, width)` int64: position id of a slot's token; -1 in padding."""

    def to(self, device: torch.device) -> Block:
        return self._replace(**{name: getattr(self, name).to(device) for name in self._fields[2:]})

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """`(rows, 1, width, width)`: 0 where the query of a row sees the key of a column, else minus infinity.

        Padding sees padding: a query that saw nothing would have no softmax.
        """
        query_segment, key_segment = self.segment[:, :, None], self.segment[:, None]
        distance = self.position[:, :, None] - self.position[:, None]
        seen = ((query_segment == key_segment) | (key_segment == 0)) & (distance >= 0)
        if window is not None:
            seen &= distance < window
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return mask[:, None]


@dataclass(frozen=True)
class Layout:
    """Which tokens of a packed row see which; travels to the attention function as a forward keyword."""

    segments: tuple[Segment, ...]
    device: torch.device

    @cached_property
    def parts(self) -> list[Block | Segment]:
        """The row, from its first token to its last, in blocks of short examples and single segments of long ones."""
        return [part.to(self.device) if isinstance(part, Block) else part for part in _parts(self.segments)]

    @cached_property
    def longest(self) -> int:
        """Keys of the segment that has most: its prompt's and its own."""
        return max(end - start + prompt_end - prompt_start for start, end, prompt_start, prompt_end in self.segments)

    @cached_property
    def varlen(self) -> Varlen:
        segments: list[Segment] = []
        for segment in self.segments:
            if segment.prompt_start < segment.prompt_end == segment.start:  # the first continuation
                segment = segments.pop()._replace(end=segment.end)
            segments.append(segment)
        spans = np.asarray(segments, dtype=np.int64)
        queries = spans[:, 1] - spans[:, 0]
        lengths = queries + spans[:, 3] - spans[:, 2]
        keys = np.concatenate([np.r_[p0:p1, q0:q1] for q0, q1, p0, p1 in segments])
        copies = keys.argsort(kind="stable").astype(np.int32)
        starts = (np.r_[0, each.cumsum()].astype(np.int32) for each in (queries, lengths, np.bincount(keys)))
        cu_seq_q, cu_seq_k, cu_copies = map(torch.from_numpy, starts)
        host = Varlen(
            torch.from_numpy(keys),
            cu_seq_q,
            cu_seq_k,
            torch.from_numpy(copies),
            cu_copies,
            int(queries.max()),
            self.longest,
        )
        return host.to(self.device)

    def to(self, device: torch.device) -> Layout:
        moved = Layout(self.segments, device)
        if "varlen" in vars(self):  # computed ahead
            vars(moved)["varlen"] = self.varlen.to(device)
        return moved

    @cached_property
    def _masks(self) -> dict[tuple[int | None, torch.dtype], list[Tensor | None]]:
        return {}

    def masks(self, window: int | None, dtype: torch.dtype) -> list[Tensor | None]:
        """Of each of `parts`: of a block see its `mask`; of a segment the boolean `(queries, keys)`, True where a query
        sees a key, or None: plain causal.

        `window`: a query at position p sees keys at positions above `p - window` only (sliding window); `dtype`: of the
        queries. Built once per batch and shared by its layers.
        """
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = [
                part.mask(window, dtype)
                if isinstance(part, Block)
                else causal_mask(part.end - part.start, part.prompt_end - part.prompt_start, window, self.device)
                for part in self.parts
            ]
        return self._masks[window, dtype]


def causal_mask(queries: int, prompt: int, window: int | None, device: torch.device) -> Tensor | None:
    """`(queries, prompt + queries)`: True where a query sees a key of the prompt or of its own; None: plain causal."""
    slides = window is not None and window < prompt + queries
    if prompt == 0 and not slides:
        return None
    mask = torch.ones(queries, prompt + queries, dtype=torch.bool, device=device).tril(prompt)
    return mask.triu(prompt - window + 1) if slides and window is not None else mask


def _parts(segments: tuple[Segment, ...]) -> Iterator[Block | Segment]:
    """Examples are taken in order; a block ends where the next would bring more padding than another call takes."""
    starts = [index for index, segment in enumerate(segments) if segment.prompt_end == segment.prompt_start]
    examples = [segments[start:end] for start, end in zip(starts, [*starts[1:], len(segments)], strict=True)]
    short: list[tuple[Segment, ...]] = []
    longest = scores = 0
    for example in examples:
        tokens = example[-1].end - example[0].start
        width = max(longest, tokens)
        if short and (tokens > _SHORT or width**2 * (len(short) + 1) > scores + tokens**2 + _CALL):
            yield _block(short)
            short, width, scores = [], tokens, 0
        if tokens > _SHORT:
            yield from example
            continue
        short.append(example)
        longest, scores = width, scores + tokens**2
    if short:
        yield _block(short)


def _block(examples: list[tuple[Segment, ...]]) -> Block:
    start, end = examples[0][0].start, examples[-1][-1].end
    tokens = np.array([example[-1].end - example[0].start for example in examples])
    rows, width = len(examples), int(tokens.max())
    sizes = np.zeros((rows, max(map(len, examples))), np.int64)  # 0: an example with fewer continuations than others
    for row, example in enumerate(examples):
        sizes[row, : len(example)] = [segment.end - segment.start for segment in example]
    within = np.arange(end - start) - np.repeat(tokens.cumsum() - tokens, tokens)  # of its example
    numbers = np.tile(np.arange(sizes.shape[1]), rows)
    segment = np.repeat(numbers, sizes.ravel())
    # A continuation's positions follow the prompt's, whatever other continuations lie between.
    before = (sizes.cumsum(1) - sizes) - np.where(np.arange(sizes.shape[1]) > 0, sizes[:, :1], 0)
    position = within - np.repeat(before.ravel(), sizes.ravel())
    places = np.repeat(np.arange(rows), tokens) * width + within
    slots = np.zeros(rows * width, np.int64)
    slots[places] = np.arange(end - start)
    of_slots = np.full((2, rows * width), -1, np.int64)
    of_slots[:, places] = segment, position
    segments, positions = torch.from_numpy(of_slots.reshape(2, rows, width))
    return Block(start, end, torch.from_numpy(slots), torch.from_numpy(places), segments, positions)


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
    continuations: Tensor
    """`(continuations,)` int64: which of the sequences are no prompts."""
    lengths: Tensor
    """`(sequences,)` int64: predictions of each sequence; 0 for a prompt that is not scored."""
    prompts: int
    """Number of prompts, so that results of shape `(sequences,)` view as `(prompts, 1 + K)` where each has K
    continuations."""
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


_TENSORS = ("input_ids", "position_ids", "source", "targets", "ends", "continuations", "lengths")


def pack(examples: Sequence[Sequence[Ids]], *, score_prompts: bool, weight: float = 1.0) -> PackedBatch:
    """Pack prompts with their continuations.

    `examples`: for each prompt `[prompt_ids, cont_ids, …]`, each `(length,)` and not empty.
    `score_prompts`: also predict the prompts' own tokens (from their second on).
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
        continuations=torch.tensor([i for i, s in enumerate(segments) if s.prompt_end > s.prompt_start]),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        prompts=len(examples),
        weight=weight,
    )


def _int64(parts: Sequence[NDArray[np.int64]] | Sequence[Ids]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64, copy=False))
