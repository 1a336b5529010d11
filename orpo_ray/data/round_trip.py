"""Whether a tokenizer gives back the text that it was given."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING

from orpo_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROUND_TRIPS = 32
"""Records, the first, whose texts must come back from their tokens."""
CHARACTERS_COMPARED = 5_000
"""Of a prompt, its end, and of a response, its beginning."""
_SHOWN = 40
"""Characters on each side of a difference that an error shows."""

_NORMALISATIONS: dict[str, Callable[[str], str]] = {
    "brings Unicode into its composed form (NFC)": lambda text: unicodedata.normalize("NFC", text),
    "brings Unicode into its compatible form (NFKC: 'ﬁ' is 'fi')": lambda text: unicodedata.normalize("NFKC", text),
    "makes all letters small": lambda text: unicodedata.normalize("NFKC", text).lower(),
}
"""What tokenizers document that they do to text before they look at it; the text stays one that a person can read."""


def lost_in_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """None where `text` comes back from its ids as it was, but for spaces at its beginning, or what was made of it by
    one of the normalisations of `tokenizer`, or by its token for what it does not know, in a line.

    Raises `UserError`, with the text beside what came back, where anything else differs: spaces, lines, characters.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    back = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    # SentencePiece's tokenizers put a space before a text and take one off when they decode.
    given, back = text.lstrip(" "), back.lstrip(" ")
    if given == back:
        return None
    unknown = tokenizer.unk_token
    if unknown and tokenizer.unk_token_id in ids and _in_order(given, back.split(unknown)):
        return f"the tokenizer has no token for some characters of the data: each such stretch becomes {unknown}"
    for what, normalised in _NORMALISATIONS.items():
        if normalised(given) == normalised(back):
            return f"the tokenizer {what}, and the model sees the data so"
    at = next((i for i, (a, b) in enumerate(zip(given, back, strict=False)) if a != b), min(len(given), len(back)))
    name = tokenizer.name_or_path or "the tokenizer"
    shown, came = (each[max(at - _SHOWN, 0) : at + _SHOWN] for each in (given, back))
    raise UserError(
        f"model.tokenizer: {name} does not give back what it is given: {shown!r} came back as {came!r}; set "
        "model.tokenizer to one that does, or mend its files"
    )


def _in_order(text: str, parts: list[str]) -> bool:
    """Whether `parts` stand in `text` one after the other, the first at its beginning and the last at its end. What a
    decoder puts around a token that stands for anything is nobody's."""
    at = 0
    for i, part in enumerate(parts):
        found = text.find(part.strip(" "), at)
        if found < 0 or (i == 0 and text[:found].strip()):
            return False
        at = found + len(part.strip(" "))
    return not parts[-1].strip() or text.endswith(parts[-1].strip(" "))
