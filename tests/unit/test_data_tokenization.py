"""Templates and tokens: one BOS, one EOS, boundaries, and truncation by each response's own room."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.formats import PreferencePair
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.records import BadRecord
from orpo_ray.data.templates import Rendered, Renderer, Response, Segment
from orpo_ray.data.tokenization import (
    PairTokenizer,
    fit_prompt,
    fit_response,
    tokenizer_digest,
)
from orpo_ray.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def bytes_tokenizer(bos: str | None = "<s>", eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """One token a byte, after the special ones: lengths in tokens are lengths in bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if bos is not None:  # as OPT's and Llama's, it begins a text with it
        inner.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token=eos, pad_token="<pad>")
    tokenizer.name_or_path = "bytes"
    return tokenizer


def real_tokenizer(name: str) -> Any:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs ../shared/{name}")
    return AutoTokenizer.from_pretrained(SHARED / name)


class TokenizedPair(NamedTuple):
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    cut: tuple[bool, ...]


def tokenize(tokenizer: Any, pair: PreferencePair, template: str | None = None, **lengths: int) -> TokenizedPair:
    limits = {"max_length": 10_000, "max_prompt_length": 9_000, **lengths}
    rendered = Renderer(tokenizer, template).rendered(pair.prompt, [pair.chosen, pair.rejected])
    found = next(PairTokenizer(tokenizer, **limits)([rendered]))[0]
    return TokenizedPair(found.prompt, *found.responses, cut=(found.prompt_cut, *found.responses_cut))


def chat(*texts: str) -> list[Any]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def messages(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(chat(prompt), chat("", chosen)[1:], chat("", rejected)[1:])


# Truncation ---------------------------------------------------------------------------------------------


def test_a_response_is_cut_by_its_own_room() -> None:
    """The case of trl#6548: 924 of 1,000 response tokens are kept, however long the other response is."""
    tokenizer = bytes_tokenizer()
    pair = tokenize(tokenizer, PreferencePair("p" * 99, "c" * 999, "r" * 20), max_length=1024, max_prompt_length=768)
    assert (len(pair.prompt), len(pair.chosen), len(pair.rejected)) == (100, 924, 21)
    assert pair.cut == (False, True, False)
    assert tokenizer.eos_token_id not in pair.chosen
    assert pair.rejected[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "kept"),
    [
        (900, 100, 123, 900),  # all of it fits beside the longer response
        (900, 100, 124, 899),  # no more is cut than has to be
        (900, 255, 20, 768),
        (900, 999, 20, 768),  # and no further than to max_prompt_length, where a response is longer still
        (700, 999, 20, 700),
    ],
)
def test_a_prompt_is_cut_only_where_it_does_not_fit_beside_its_responses(
    prompt: int, chosen: int, rejected: int, kept: int
) -> None:
    """Lengths in tokens, the prompt's with its BOS, the responses' without EOS."""
    texts = PreferencePair("p" * (prompt - 2) + "q", "c" * chosen, "r" * rejected)
    pair = tokenize(bytes_tokenizer(), texts, max_length=1024, max_prompt_length=768)
    assert len(pair.prompt) == kept
    assert bytes_tokenizer().decode(pair.prompt).endswith("pq") and pair.prompt[0] == 1
    room = 1024 - kept
    assert (len(pair.chosen), len(pair.rejected)) == (min(chosen + 1, room), min(rejected + 1, room))
    assert pair.cut == (kept < prompt, chosen + 1 > room, rejected + 1 > room)


ids = st.lists(st.integers(10, 99), max_size=60)


@given(ids, ids, ids, st.sampled_from([None, 1]), st.integers(1, 40), st.integers(1, 40))
def test_truncation(
    prompt: list[int],
    chosen: list[int],
    rejected: list[int],
    bos: int | None,
    longest_prompt: int,
    spare: int,
) -> None:
    max_length = longest_prompt + spare
    start = [] if bos is None else [bos]
    kept, cut = fit_prompt(start + prompt, bos, longest_prompt)
    assert len(kept) == min(len(start) + len(prompt), longest_prompt)
    assert kept[: len(start)] == start
    assert kept[len(start) :] == prompt[len(prompt) - (len(kept) - len(start)) :]  # the end of the prompt
    assert cut == (len(kept) < len(start) + len(prompt))

    room = max_length - len(kept)
    for response in (chosen, rejected):
        fitted, cut = fit_response([*response, 2], room)
        assert len(fitted) == min(len(response) + 1, room)
        assert fitted == [*response, 2][:room]  # its beginning; EOS last, where it ends
        assert cut == (len(response) + 1 > room)
        assert fitted.count(2) == (not cut)
        assert 1 <= len(fitted) <= max_length - len(kept)


# BOS, EOS and boundaries --------------------------------------------------------------------------------

text = st.one_of(st.text(max_size=30), st.sampled_from(["</s>", "<s> a</s>b", " </s>", "<pad><s>", "a  \n\n b"]))


@pytest.mark.parametrize("kind", ["bytes", "no-bos", "tokenizers/opt", "models/stories260k"])
def test_boundaries(kind: str) -> None:
    """A response has the ids that continue the prompt's; no text of the data becomes a control token."""
    tokenizer = {"bytes": bytes_tokenizer, "no-bos": lambda: bytes_tokenizer(bos=None)}.get(
        kind, lambda: real_tokenizer(kind)
    )()
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    @settings(max_examples=60, deadline=None)
    @given(text, text, text)
    def check(prompt: str, chosen: str, rejected: str) -> None:
        pair = tokenize(tokenizer, PreferencePair(prompt, chosen, rejected))
        assert pair.prompt[: len(start)] == start
        body = [pair.prompt[len(start) :], pair.chosen[:-1], pair.rejected[:-1]]
        assert pair.chosen[-1] == pair.rejected[-1] == tokenizer.eos_token_id
        alone, *wholes = (
            tokenizer(source, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for source in (prompt, prompt + chosen, prompt + rejected)
        )
        assert body[0] == alone
        for tokens, source, whole in zip(body[1:], (chosen, rejected), wholes, strict=True):
            assert not special & set(alone + tokens)
            if whole[: len(alone)] == alone:
                assert alone + tokens == whole
            assert tokenizer.decode(alone + tokens, clean_up_tokenization_spaces=False) == tokenizer.decode(
                whole, clean_up_tokenization_spaces=False
            )
            if kind != "models/stories260k":  # which puts a space before each text
                assert tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == source

    check()


@pytest.mark.parametrize("template", NAMED_TEMPLATES)
def test_named_templates_end_once(template: str) -> None:
    tokenizer = bytes_tokenizer()

    @settings(max_examples=60, deadline=None)
    @given(st.lists(text, min_size=1, max_size=4), text, text)
    def check(turns: list[str], chosen: str, rejected: str) -> None:
        prompt = chat(*turns, *[""] * (len(turns) % 2 == 0))
        pair = tokenize(tokenizer, PreferencePair(prompt, chat("", chosen)[1:], chat("", rejected)[1:]), template)
        assert pair.prompt[0] == tokenizer.bos_token_id
        assert pair.prompt.count(tokenizer.bos_token_id) == 1
        for tokens, source in ((pair.chosen, chosen), (pair.rejected, rejected)):
            assert tokens.count(tokenizer.eos_token_id) == 1
            assert tokens[-1] == tokenizer.eos_token_id
            wrapped = {"chatml": f"{source}<|im_end|>", "hh-rlhf": f" {source}"}.get(template, source)
            assert tokenizer.decode(tokens[:-1], clean_up_tokenization_spaces=False) == wrapped

    check()


def test_what_the_named_templates_write() -> None:
    tokenizer = bytes_tokenizer()
    pair = PreferencePair(chat("Hi", "Yes?", "Why?"), chat("", "So.")[1:], chat("", "No.")[1:])
    expected = {
        "orpo": "<|user|>\nHi</s>\n<|assistant|>\nYes?</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n",
        "zephyr": "<|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\nYes?</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n",
        "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "hh-rlhf": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:",
    }
    for name, prompt in expected.items():
        tokens = tokenize(tokenizer, pair, name).prompt
        assert tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == "<s>" + prompt
        # An EOS that the template writes is the token, not its letters.
        assert tokens.count(tokenizer.eos_token_id) == prompt.count("</s>")


def test_the_tokenizers_own_template_and_an_inline_one() -> None:
    """A template that writes BOS and EOS itself, as Mistral's, still ends in one of each."""
    tokenizer = bytes_tokenizer()
    mistral = (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    inline = tokenize(tokenizer, messages("q", "a", "b"), mistral)
    tokenizer.chat_template = mistral
    assert tokenize(tokenizer, messages("q", "a", "b")) == inline
    assert tokenizer.decode(inline.prompt) == "<s>[INST] q [/INST]"
    assert tokenizer.decode(inline.chosen) == " a</s>"
    # Plain text is taken verbatim, the tokenizer's own template notwithstanding.
    assert tokenizer.decode(tokenize(tokenizer, PreferencePair("q", "a", "b")).prompt) == "<s>q"


def test_special_tokens_in_the_data_stay_text_within_a_template() -> None:
    tokenizer = bytes_tokenizer()
    pair = tokenize(tokenizer, messages("a</s>b<s>", "c</s>", "</s></s>\n"), "orpo")
    assert tokenizer.decode(pair.prompt) == "<s><|user|>\na</s>b<s></s>\n<|assistant|>\n"
    assert pair.prompt.count(tokenizer.eos_token_id) == 1  # the template's
    assert tokenizer.decode(pair.chosen) == "c</s></s>"
    assert pair.chosen.count(tokenizer.eos_token_id) == pair.rejected.count(tokenizer.eos_token_id) == 1


def test_templates_that_do_not_fit_are_refused() -> None:
    tokenizer = bytes_tokenizer()
    pair = messages("q", "a", "b")
    with pytest.raises(UserError, match=r"bytes: has no chat template.*set data\.chat_template to one of orpo"):
        tokenize(tokenizer, pair)
    with pytest.raises(UserError, match=r"'chatlm' is neither .* did you mean chatml\?"):
        tokenize(tokenizer, pair, "chatlm")
    with pytest.raises(UserError, match=r"data\.chat_template, line 2: "):
        tokenize(tokenizer, pair, "{{ messages[0].content }}\n{% if %}")
    with pytest.raises(UserError, match="renders a prompt differently once a response follows"):
        tokenize(tokenizer, pair, "{{ messages|length }}: {{ messages[0].content }}")
    with pytest.raises(BadRecord, match="refused by the chat template: roles must alternate"):
        tokenize(tokenizer, pair, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="bytes: has no end-of-sequence token"):
        tokenize(bytes_tokenizer(eos=None), PreferencePair("q", "a", "b"))


def test_segments_keep_their_order_over_both_kinds() -> None:
    tokenizer = bytes_tokenizer()
    mixed = [Segment("a</s>", True), Segment("</s>", False), Segment("b<s>", True)]
    pair = Rendered(mixed, [Response([], False), Response([Segment("x", False)], False)], verbatim=True)
    tokenized, encoded = next(PairTokenizer(tokenizer, 100, 50)([pair]))
    a, b = (tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "ab")
    literal = tokenizer("</s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenized.prompt == [1, a, 2, *literal, b, 1]
    assert tokenized.responses[0] == [2]
    assert encoded.prompt == tokenized.prompt


def test_the_digest_follows_the_tokenizer_not_its_use() -> None:
    tokenizer = bytes_tokenizer()
    digest = tokenizer_digest(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == digest == tokenizer_digest(bytes_tokenizer())
    tokenizer.add_tokens(["word"])
    assert tokenizer_digest(tokenizer) != digest
    assert tokenizer_digest(bytes_tokenizer(bos=None)) != digest


def test_pair_dataset() -> None:
    tokens = np.arange(12, dtype=np.int32)
    data = PairDataset(tokens, np.array([[0, 2, 3, 6], [6, 7, 10, 12]]), np.array([4, 9]))
    assert [part.tolist() for part in data.pair(1)] == [[6], [7, 8, 9], [10, 11]]
    assert data.lengths().tolist() == [[2, 1, 3], [1, 3, 2]]
    assert data.lengths(np.array([1])).tolist() == [[1, 3, 2]]
    part = data.subset(np.array([1, 0, 1]))
    assert (len(part), part.record_ids.tolist()) == (3, [9, 4, 9])
    assert np.shares_memory(part.pair(0)[1], tokens)
