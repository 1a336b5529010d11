"""Rendered prompts and responses to token ids: the one way that text takes to a model, in training, evaluation and
scoring.

A response has the ids that it has within the whole conversation, as in `apply_chat_template` and on any server. A
tokenizer that puts a space before each text (SentencePiece's) gives other ids where prompt and response are tokenised
apart. Special tokens part a text, and so do some tokenizers' lines: a conversation is tokenised from its prompt's last
such place on, which is a few tokens more than the response's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from orpo_ray.data.special_tokens import anchors, line_starts, text_start, without_dummy_space
from orpo_ray.data.templates import Rendered, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """Token ids of a prompt and of the responses to it."""

    prompt: list[int]
    """As a server asks it."""
    responses: list[list[int]]
    """What the conversation's ids have behind the prompt's, through the token that ends the turn."""
    straddled: bool
    """Whether a token of a conversation holds the end of the prompt and the beginning of the response. Such a response
    was tokenised as the continuation of the prompt's text, so that all have one prompt."""


class _Piece(NamedTuple):
    """What the tokenizer is given in one call."""

    text: str
    control: bool
    begins: bool
    """Whether the tokenizer may put a space before it; not where it goes on with another text."""


class _Response(NamedTuple):
    """The pieces of a response."""

    whole: _Piece | None
    """The prompt's end and, directly behind it, the beginning of the response; None where no token could hold both."""
    first: list[_Piece]
    """That beginning by itself, needed where there is no `whole` or a token straddles."""
    rest: list[_Piece]


class Encoder:
    """Tokenises for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.start = text_start(tokenizer)
        """Comes before text that went through no template."""
        self._eos: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._unknown: int | None = tokenizer.unk_token_id
        self._anchors = anchors(tokenizer)
        lines = line_starts(tokenizer)
        self._ends = {True: re.compile(f"{self._anchors.pattern}|{lines.pattern}"), False: lines}

    @cached_property
    def _continuing(self) -> PreTrainedTokenizerBase:
        return without_dummy_space(self.tokenizer)

    def __call__(self, texts: Sequence[Rendered]) -> list[Encoded]:
        """Ids of each prompt and its responses, in batched calls of the tokenizer."""
        prompts = [self._pieces(text.prompt, begins=True) for text in texts]
        ends = [self._end_of(pieces) for pieces in prompts]
        responses = [
            [self._behind(end, response.segments) for response in text.responses]
            for text, end in zip(texts, ends, strict=True)
        ]
        ids: dict[_Piece, list[int]] = {}
        self._tokenize(ids, chain(chain.from_iterable(prompts), (end for end in ends if end is not None)))
        self._tokenize(
            ids,
            (
                piece for response in chain.from_iterable(responses)
                for piece in (response.first if response.whole is None else [response.whole])
            ),
        )  # fmt: skip
        self._tokenize(ids, chain.from_iterable(response.rest for response in chain.from_iterable(responses)))
        straddling = [
            [self._straddles(ids, end, response) for response in of_text]
            for end, of_text in zip(ends, responses, strict=True)
        ]
        self._tokenize(
            ids,
            (
                piece for pieces, straddles in zip(chain(*responses), chain(*straddling), strict=True) if straddles
                for piece in pieces.first
            ),
        )  # fmt: skip
        return [
            Encoded(
                (self.start if text.verbatim else []) + _joined(ids, prompt),
                [
                    self._response(ids, end, pieces, straddles)
                    + ([] if response.closed or response.cut else self._eos)
                    for response, pieces, straddles in zip(text.responses, of_text, some, strict=True)
                ],
                any(some),
            )
            for text, prompt, end, of_text, some in zip(texts, prompts, ends, responses, straddling, strict=True)
        ]  # fmt: skip

    def whole(self, texts: Sequence[Sequence[Segment]]) -> list[list[int]]:
        """Ids of each text, from its beginning to its end."""
        pieces = [self._pieces(text, begins=True) for text in texts]
        ids: dict[_Piece, list[int]] = {}
        self._tokenize(ids, chain.from_iterable(pieces))
        return [_joined(ids, each) for each in pieces]

    def _straddles(self, ids: dict[_Piece, list[int]], end: _Piece | None, response: _Response) -> bool:
        if end is None or response.whole is None:
            return False
        before = ids[end]
        # Unknown tokens are equal whatever text they stand for.
        return ids[response.whole][: len(before)] != before or before[-1:] == [self._unknown]

    def _response(
        self, ids: dict[_Piece, list[int]], end: _Piece | None, pieces: _Response, straddles: bool
    ) -> list[int]:
        if end is None or pieces.whole is None or straddles:
            first = _joined(ids, pieces.first)
        else:
            first = ids[pieces.whole][len(ids[end]) :]
        return first + _joined(ids, pieces.rest)

    def _pieces(self, segments: Iterable[Segment], *, begins: bool) -> list[_Piece]:
        """`begins`: whether the first is the beginning of a text. Behind a special token of its own a text that goes on
        is tokenised as ever."""
        pieces: list[_Piece] = []
        for text, control in segments:
            if not text:
                continue
            anchor = None if begins or not control else self._anchors.search(text)
            parted = 0 if begins else len(text) if anchor is None else anchor.start()
            pieces += [
                _Piece(part, control, own)
                for part, own in ((text[:parted], False), (text[parted:], True)) if part
            ]  # fmt: skip
            begins = False
        return pieces

    def _end_of(self, prompt: list[_Piece]) -> _Piece | None:
        """The prompt from its last special token or line on, all of its last piece where nothing parts that."""
        if not prompt:
            return None
        last = prompt[-1]
        *_, anchor = [None, *self._ends[last.control].finditer(last.text)]
        return last if anchor is None else last._replace(text=last.text[anchor.start() :], begins=True)

    def _behind(self, end: _Piece | None, response: list[Segment]) -> _Response:
        segments = [segment for segment in response if segment.text]
        if end is None or not segments or end.control != segments[0].control:
            return _Response(None, self._pieces(segments, begins=end is None), [])
        first, control = segments[0]
        anchor = self._anchors.search(first) if control else None
        parted = len(first) if anchor is None else anchor.start()
        rest = [_Piece(first[parted:], control, begins=True)] if anchor is not None else []
        rest += self._pieces(segments[1:], begins=False)
        if not parted:
            return _Response(None, [], rest)
        return _Response(
            end._replace(text=end.text + first[:parted]), [_Piece(first[:parted], control, begins=False)], rest
        )

    def _tokenize(self, ids: dict[_Piece, list[int]], pieces: Iterable[_Piece]) -> None:
        """Put the ids of `pieces` into `ids`, a call of the tokenizer for each kind of them."""
        kinds: dict[tuple[bool, bool], list[_Piece]] = {}
        for piece in dict.fromkeys(pieces):
            if piece not in ids:
                kinds.setdefault(piece[1:], []).append(piece)
        for (control, begins), some in kinds.items():
            encoded = (self.tokenizer if begins else self._continuing)(
                [piece.text for piece in some],
                add_special_tokens=False,
                split_special_tokens=not control,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            ids.update(zip(some, encoded, strict=True))


def _joined(ids: dict[_Piece, list[int]], pieces: list[_Piece]) -> list[int]:
    return list(chain.from_iterable(ids[piece] for piece in pieces))
