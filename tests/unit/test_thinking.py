"""What is cut where an answer thinks aloud, and what of it is counted."""

from __future__ import annotations

import time

import pytest

from orpo_ray.evaluation.thinking import without_thinking

CASES = {
    "none": ("An answer.\n", "An answer.\n", ""),
    "closed": ("<think>Hm.\nSo.</think>\n\nAn answer.", "An answer.", "closed"),
    "opened in the prompt": ("Hm. So.</think>\n\nAn answer.", "An answer.", "closed"),
    "unclosed": ("<think>Hm. So", "", "unclosed"),
    "unclosed behind a closed one": ("<think>a</think>Yes. <think>or", "Yes.", "unclosed"),
    "several": ("<think>a</think>One.<think>b</think> Two.", "One. Two.", "closed"),
    "one within another": ("<think>a<think>b</think>c</think>Yes.", "Yes.", "closed"),
    "nothing behind it": ("<think>a</think>\n", "", "closed"),
    "the continuation of a text": (" <think>a</think>\n\nYes.", " Yes.", "closed"),
    "empty": ("", "", ""),
}


@pytest.mark.parametrize("name", CASES)
def test_thoughts_are_cut(name: str) -> None:
    text, answer, thought = CASES[name]
    assert without_thinking(text) == (answer, thought)


@pytest.mark.parametrize("text", ["<think>" * 50_000, "</think>" * 50_000, "<think></think>" * 50_000])
def test_a_text_that_repeats_itself_is_no_burden(text: str) -> None:
    started = time.monotonic()
    assert without_thinking(text)[0] == ""
    assert time.monotonic() - started < 5
