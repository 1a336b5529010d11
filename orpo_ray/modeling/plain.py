"""Texts one by one: what a network is asked that cannot be packed, and what packing is held against.

A *text* is a prompt with one of its continuations, by itself: a forward of the network as it is, without padding, of
all texts of one length at once. It costs a prompt for each of its continuations, where packing computes it once.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from orpo_ray.data.packing import PackedBatch
from orpo_ray.modeling.head import logprobs


class Text(NamedTuple):
    """One of a packed batch."""

    prompt: int
    """Number of its prompt's sequence."""
    continuation: int
    """Number of its own."""
    positions: np.ndarray[tuple[int], np.dtype[np.int64]]
    """`(tokens,)`: where its tokens lie in the packed row."""
    tokens_of_prompt: int


def texts(batch: PackedBatch) -> list[Text]:
    """In the order of the row."""
    found = []
    prompt = 0
    for number, (start, end, prompt_start, prompt_end) in enumerate(batch.layout.segments):
        if prompt_start == prompt_end:
            prompt = number
        else:
            positions = np.r_[prompt_start:prompt_end, start:end]
            found.append(Text(prompt, number, positions, prompt_end - prompt_start))
    return found


def longest(batch: PackedBatch) -> int:
    """Tokens of the longest text."""
    return max(
        end - start + prompt_end - prompt_start for start, end, prompt_start, prompt_end in batch.layout.segments
    )


def by_length(batch: PackedBatch) -> list[tuple[list[Text], Tensor]]:
    """Texts of one length together, with their token ids `(texts, tokens)`."""
    groups = defaultdict(list)
    for text in texts(batch):
        groups[len(text.positions)].append(text)
    device = batch.input_ids.device
    return [
        (group, batch.input_ids[torch.from_numpy(np.stack([text.positions for text in group])).to(device)])
        for group in groups.values()
    ]


def text_logps(network: nn.Module, batch: PackedBatch, temperature: float = 1.0) -> list[Tensor]:
    """Log-probs `(predictions,)`, in float32 at least, of each prompt and continuation, in the order of the row.

    A prompt's own are those within the first of its texts; none where they are not wanted.
    """
    of_continuations = sum(end - start for start, end, p0, p1 in batch.layout.segments if p0 != p1)
    scores_prompts = batch.targets.numel() > of_continuations
    found: dict[int, Tensor] = {}
    for group, ids in by_length(batch):
        logits = forward(network, ids)[:, :-1]
        if temperature != 1:
            logits = logits / temperature
        every = logprobs(logits, ids[:, 1:])
        for text, logps in zip(group, every, strict=True):
            found[text.continuation] = logps[text.tokens_of_prompt - 1 :]
            if scores_prompts and text.continuation == text.prompt + 1:
                found[text.prompt] = logps[: text.tokens_of_prompt - 1]
    nothing = next(iter(found.values())).new_zeros(0)
    return [found.get(number, nothing) for number in range(len(batch.layout.segments))]


def text_values(network: nn.Module, batch: PackedBatch) -> Tensor:
    """What a classifier's head gives where each token of a continuation is predicted from: `(predictions,)`, in the
    order of the row, of a batch whose prompts are not scored."""
    found: dict[int, Tensor] = {}
    trunk: Any = network.base_model
    options = _no_cache(trunk)
    for group, ids in by_length(batch):
        hidden = trunk(input_ids=ids, **options).last_hidden_state
        values = network.score(hidden)[..., 0]  # type: ignore[operator]
        for text, of_text in zip(group, values, strict=True):
            found[text.continuation] = of_text[text.tokens_of_prompt - 1 : -1]
    return torch.cat([found[number] for number in sorted(found)])


def text_rewards(network: nn.Module, batch: PackedBatch) -> Tensor:
    """Rewards `(continuations,)` by a classifier of one label, in the order of the row."""
    rewards: dict[int, Tensor] = {}
    for group, ids in by_length(batch):
        rewards |= dict(zip((text.continuation for text in group), forward(network, ids)[:, 0], strict=True))
    return torch.stack([rewards[number] for number in sorted(rewards)])


def forward(network: nn.Module, ids: Tensor) -> Tensor:
    """What the network itself makes of `ids (texts, tokens)`: logits `(texts, tokens, vocab)`, or `(texts, labels)`."""
    logits: Tensor = network(input_ids=ids, **_no_cache(network)).logits
    return logits


def _no_cache(network: nn.Module) -> dict[str, bool]:
    """What has it keep nothing for tokens to come, where it would."""
    return {"use_cache": False} if "use_cache" in inspect.signature(network.forward).parameters else {}
