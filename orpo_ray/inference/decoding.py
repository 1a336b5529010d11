"""Token ids as text, as vLLM makes it of them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer as Words
from tokenizers.decoders import DecodeStream


class Decoder:
    """Turns tokens that follow a prompt into text one by one, as vLLM does. Special tokens are no text."""

    def __init__(self, words: Words, prompt: Sequence[int]) -> None:
        """`prompt`: token ids that the text continues, so that SentencePiece's first space stands where it is one."""
        self._words = words
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)

    def take(self, token: int) -> str:
        """What `token` adds to the text; nothing while a character is not whole."""
        try:
            return self._stream.step(self._words, token) or ""
        except Exception as error:  # tokenizers raises nothing more special
            if not str(error).startswith("Invalid prefix"):
                raise
        self._stream = DecodeStream(skip_special_tokens=True)  # bytes that are no text: go on behind them
        return self._stream.step(self._words, token) or ""


def decoded(words: Words, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` behind `prompt`, as vLLM makes it while they are drawn."""
    decoder = Decoder(words, prompt)
    return "".join(decoder.take(token) for token in ids)
