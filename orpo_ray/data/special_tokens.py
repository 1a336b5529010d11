"""What a tokenizer does of its own accord: tokens and a space that it puts before a text, and stretches of text that
are one token each."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase

_NO_MATCH = r"(?!)"


def text_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that it puts before a text: `[</s>]` for OPT, `[<s>]` for Llama 2, none for GPT-2 and Qwen, whether or not
    they name a BOS."""
    alone, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    for i in range(len(whole) - len(alone) + 1):
        if whole[i : i + len(alone)] == alone:
            return list(whole[:i])
    return []


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches each token that `split_special_tokens` makes text of."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return _any_of(special | set(tokenizer.all_special_tokens))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the special tokens, and others that were added to the vocabulary: templates are written with both. Not
    those of white space, which stand for text."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return _any_of(token for token in added if token.strip())


def anchors(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches tokens at which a text may be cut in two, before the match: no other token of the first part depends on
    the second, nor the other way round."""
    added = tokenizer.added_tokens_decoder.values()
    if any(token.single_word or token.lstrip for token in added):
        return re.compile(_NO_MATCH)  # what of the text belongs to these is not a token's own characters alone
    return _any_of(str(token) for token in added if not token.normalized)


def line_starts(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches where no token of the text from there on depends on what came before. By GPT-2's split that is a letter
    that begins a line: only a space goes into a word with it, and nothing looks back."""
    from tokenizers import models, normalizers, pre_tokenizers

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    split = getattr(backend, "pre_tokenizer", None)
    known = (
        isinstance(split, pre_tokenizers.ByteLevel)
        and split.use_regex and not split.add_prefix_space
        and isinstance(backend.model, models.BPE)
        and (backend.normalizer is None or isinstance(backend.normalizer, normalizers.NFC))
    )  # fmt: skip
    whole = all("\n" not in str(token) and not token.lstrip for token in tokenizer.added_tokens_decoder.values())
    return re.compile(r"(?<=\n)(?=[A-Za-z])" if known and whole else _NO_MATCH)


def without_dummy_space(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """One for text that continues another: `tokenizer`, or a copy where it puts a space before each text, as
    SentencePiece's do."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _sentencepiece_without(tokenizer)
    parts: dict[str, Any] = json.loads(backend.to_str())
    changed = dict(parts, normalizer=_without(parts["normalizer"]), pre_tokenizer=_without(parts["pre_tokenizer"]))
    if changed == parts:
        return tokenizer
    clone: Any = copy.deepcopy(tokenizer)
    clone._tokenizer = type(backend).from_str(json.dumps(changed))
    return clone  # type: ignore[no-any-return]


def _sentencepiece_without(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    model = getattr(tokenizer, "sp_model", None)
    if model is None:
        return tokenizer
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto.FromString(model.serialized_model_proto())
    if not proto.normalizer_spec.add_dummy_prefix:
        return tokenizer
    proto.normalizer_spec.add_dummy_prefix = False
    clone: Any = copy.deepcopy(tokenizer)
    clone.sp_model.LoadFromSerializedProto(proto.SerializeToString())
    return clone  # type: ignore[no-any-return]


def _without(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer of a `tokenizer.json` that puts no space before a text."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Metaspace":
        return dict(part, prepend_scheme="never")
    if part["type"] == "ByteLevel":
        return dict(part, add_prefix_space=False)
    for steps in ("normalizers", "pretokenizers"):
        if steps in part:
            kept = [step for step in map(_without, part[steps]) if step is not None]
            return dict(part, **{steps: kept})
    return part


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, filter(None, tokens)), key=len, reverse=True)
    return re.compile("|".join(longest_first) or _NO_MATCH)
