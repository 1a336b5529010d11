"""Tokens that a policy has drawn, as text: what it said, for whoever judges text. The ids themselves are trained on as
they were drawn; nobody makes them of this text again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray.inference.decoding import decoded
from orpo_ray.inference.speaking import Answer

if TYPE_CHECKING:
    from orpo_ray.data.prompts import Prompt
    from orpo_ray.data.templates import Renderer


def answer_of(prompt: Prompt, asked: Sequence[int], drawn: Sequence[int], ended: str, renderer: Renderer) -> Answer:
    """What the policy in training said: a response as reward models take it.

    `asked`: token ids of the prompt; `drawn`: those of the response, the one that ended it included; `ended`: `stop`
    where the policy ended it, `length` where it was cut, and so has no end; `renderer`: the policy's, of its training.
    As `Speaker.answer` does of an engine's text, a message goes without what the template writes around it.
    """
    is_cut = ended != "stop"
    text = _text(renderer.tokenizer, asked, drawn if is_cut else drawn[:-1])
    is_text = isinstance(prompt.form(renderer.overrides_text).prompt, str)
    return Answer(text if is_text else renderer.said(text), is_cut, is_text)


def _text(tokenizer: Tokenizer, asked: Sequence[int], drawn: Sequence[int]) -> str:
    words = getattr(tokenizer, "backend_tokenizer", None)
    if words is None:  # a tokenizer in Python, which has no stream
        prompt, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (asked, [*asked, *drawn]))
        return str(whole[len(prompt) :])
    return decoded(words, asked, drawn)
