"""Rendered records to token ids that fit, each response cut by its own room."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orpo_ray.data.encoding import Encoded, Encoder
from orpo_ray.data.templates import Rendered
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
    """`ids`; of a longer prompt its BOS, where it begins with one, and its end. And whether it was cut."""
    start = ids[:1] if ids[:1] == [bos] else []
    if len(ids) <= longest:
        return ids, False
    room = longest - len(start)
    return start + ids[len(ids) - room :], True


def fit_response(ids: list[int], room: int) -> tuple[list[int], bool]:
    """`ids`, whose last ends the turn; of a longer response the first `room`, without that: it did not end there."""
    return ids[:room], len(ids) > room


class PairTokenizer:
    """Tokenises prompts with their responses, such as pairs, in batches.

    `max_length` bounds prompt plus one response. Where it is too little for the longest response, the prompt, but for
    its BOS, is cut first, no further than to `max_prompt_length`. Raises `UserError` where the tokenizer has no EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, max_prompt_length: int) -> None:
        if tokenizer.eos_token_id is None:
            name = tokenizer.name_or_path or "the tokenizer"
            raise UserError(
                f"{name}: has no end-of-sequence token, so a model could not learn to stop; "
                "set model.tokenizer to one that has"
            )
        self.encode = Encoder(tokenizer)
        self.bos: int | None = tokenizer.bos_token_id
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length

    def __call__(self, records: Sequence[Rendered]) -> Iterator[tuple[Tokenized, Encoded]]:
        """Each record, cut to fit, and whole."""
        for encoded in self.encode(records):
            spare = self.max_length - max(map(len, encoded.responses))  # beside the longest response
            prompt, prompt_cut = fit_prompt(encoded.prompt, self.bos, max(self.max_prompt_length, spare))
            room = self.max_length - len(prompt)
            responses, cuts = zip(*(fit_response(ids, room) for ids in encoded.responses), strict=True)
            yield Tokenized(prompt, responses, prompt_cut, cuts), encoded


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
