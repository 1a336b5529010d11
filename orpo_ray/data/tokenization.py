"""Rendered records to token ids: prompt and responses apart, one BOS, one EOS, each cut by its own room."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orpo_ray.data.templates import Segment
from orpo_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids of a prompt and its responses, and which of them were cut to fit."""

    prompt: list[int]
    responses: tuple[list[int], ...]
    prompt_cut: bool
    responses_cut: tuple[bool, ...]


def fit_prompt(ids: list[int], bos: int | None, longest: int) -> tuple[list[int], bool]:
    """BOS, where there is one, and `ids`; of a longer prompt BOS and its end. And whether it was cut."""
    start = [] if bos is None else [bos]
    room = longest - len(start)
    cut = len(ids) > room
    return start + (ids[len(ids) - room :] if cut else ids), cut


def fit_response(ids: list[int], eos: int, room: int) -> tuple[list[int], bool]:
    """`ids` and EOS; of a longer response the first `room` ids, without EOS: it did not end there."""
    cut = len(ids) + 1 > room
    return (ids[:room] if cut else [*ids, eos]), cut


class PairTokenizer:
    """Tokenises prompts with their responses, such as pairs, in batches.

    `max_length` bounds prompt plus one response. Where it is too little for the longest response, the prompt, with its
    BOS, is cut first, no further than to `max_prompt_length`. Raises `UserError` where the tokenizer has no EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, max_prompt_length: int) -> None:
        if tokenizer.eos_token_id is None:
            name = tokenizer.name_or_path or "the tokenizer"
            raise UserError(
                f"{name}: has no end-of-sequence token, so a model could not learn to stop; "
                "set model.tokenizer to one that has"
            )
        self.tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int = tokenizer.eos_token_id
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length

    def __call__(self, records: Sequence[Sequence[Sequence[Segment]]]) -> Iterator[tuple[Tokenized, int]]:
        """`records`: of each `[prompt, response, …]`, as text. Yields each, and how many tokens its prompt had (BOS
        included) before it was cut."""
        texts = iter(token_ids(self.tokenizer, [text for record in records for text in record]))
        for record in records:
            prompt_ids, *response_ids = (next(texts) for _ in record)
            spare = self.max_length - max(map(len, response_ids)) - 1  # beside the longest response and EOS
            prompt, prompt_cut = fit_prompt(prompt_ids, self.bos, max(self.max_prompt_length, spare))
            room = self.max_length - len(prompt)
            responses, cuts = zip(*(fit_response(ids, self.eos, room) for ids in response_ids), strict=True)
            yield Tokenized(prompt, responses, prompt_cut, cuts), len(prompt_ids) + (self.bos is not None)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[Segment]]) -> list[list[int]]:
    """Ids of each text. Segments with and without control tokens are two calls of the tokenizer."""
    ids: list[list[int]] = [[] for _ in texts]
    by_kind: dict[bool, list[tuple[int, int, str]]] = {True: [], False: []}
    for i, segments in enumerate(texts):
        for k, segment in enumerate(segments):
            by_kind[segment.control].append((i, k, segment.text))
    pieces: list[tuple[int, int, list[int]]] = []
    for control, items in by_kind.items():
        if items:
            encoded = tokenizer(
                [text for _, _, text in items],
                add_special_tokens=False,
                split_special_tokens=not control,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            pieces.extend((i, k, piece) for (i, k, _), piece in zip(items, encoded, strict=True))
    for i, _, piece in sorted(pieces, key=lambda item: item[:2]):
        ids[i] += piece
    return ids


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of everything that decides the ids of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # State that an earlier call may have left behind; every call of a tokenizer sets both anew.
        backend.no_truncation()
        backend.no_padding()
        content = backend.to_str()
    else:
        content = json.dumps([tokenizer.get_vocab(), repr(tokenizer.init_kwargs)], sort_keys=True)
    added = {i: repr(token) for i, token in tokenizer.added_tokens_decoder.items()}
    parts = [type(tokenizer).__name__, content, added, tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
