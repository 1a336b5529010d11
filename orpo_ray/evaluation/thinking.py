"""What a model thinks aloud before it answers, and how it is cut (`answers.strip_thinking`)."""

from __future__ import annotations

from typing import Literal

_OPEN, _CLOSE = "<think>", "</think>"

Thought = Literal["", "closed", "unclosed"]
"""Whether an answer thought aloud, and whether it came to an end of that."""


def without_thinking(text: str) -> tuple[str, Thought]:
    """An answer without its thoughts, and without the white space around what is left; and what was cut.

    Between `<think>` and `</think>`; from the beginning where a template has opened them in the prompt, so that the
    answer only closes them; to the end where they are not closed, of which mostly no answer is left.
    """
    kept: list[str] = []
    thought: Thought = ""
    at = 0
    while True:
        opened, closed = text.find(_OPEN, at), text.find(_CLOSE, at)
        if closed >= 0 and not 0 <= opened < closed:
            kept, at, thought = [], closed + len(_CLOSE), "closed"
        elif opened >= 0:
            kept.append(text[at:opened])
            if closed < 0:
                thought = "unclosed"
                break
            at, thought = closed + len(_CLOSE), "closed"
        else:
            kept.append(text[at:])
            break
    if not thought:
        return text, ""
    indent = text[: len(text) - len(text.lstrip())]  # what parts the continuation of a text from that text
    answer = "".join(kept).strip()
    return indent + answer if answer else "", thought
