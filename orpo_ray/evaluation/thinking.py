"""What a model thinks aloud before it answers, and how it is cut (`answers.strip_thinking`)."""

from __future__ import annotations

import re
from typing import Literal

_TAG = re.compile("</?think>")

Thought = Literal["", "closed", "unclosed"]
"""Whether an answer thought aloud, and whether it came to an end of that."""


def without_thinking(text: str) -> tuple[str, Thought]:
    """An answer without its thoughts, and without the white space around what is left; and what was cut.

    Between `<think>` and `</think>`; from the beginning where a template has opened them in the prompt, so that the
    answer only closes them; to the end where they are not closed, of which mostly no answer is left.
    """
    kept: list[str] = []
    thought: Thought = ""
    at, thinks = 0, False
    for tag in _TAG.finditer(text):
        if tag[0] == "</think>":
            kept = kept if thinks else []
            at, thinks, thought = tag.end(), False, "closed"
        elif not thinks:
            kept.append(text[at : tag.start()])
            thinks = True
    if thinks:
        thought = "unclosed"
    else:
        kept.append(text[at:])
    if not thought:
        return text, ""
    indent = text[: len(text) - len(text.lstrip())]  # what parts the continuation of a text from that text
    answer = "".join(kept).strip()
    return indent + answer if answer else "", thought
