"""What the fuzz tests share: how many cases, odd values, damage to bytes.

`make test` runs a tenth of the cases, the same each time; FUZZ=1 (`make test-all`) all, the same each time too; FUZZ=20
(`make fuzz`) twenty times as many, drawn anew.
"""

from __future__ import annotations

import math
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = float(os.environ.get("FUZZ", "0.1"))


def cases(count: int) -> settings:
    """Settings of a test that `make test-all` runs on `count` cases."""
    return settings(
        max_examples=math.ceil(count * FACTOR),
        derandomize=FACTOR <= 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


ODD_TEXTS = [
    "", " ", "\n", "\0", "a\0b", "\ud800", "x\udfffy", "\ufeff", "é", "🦜", "</s>", "<s>", "\n\nAssistant:",
    "\n\nHuman: hi", "{{ 7 * 7 }}", "{% for %}", "a" * 3000, "\r\n",
    "\u2028", "\x1b[2J", "***", "NaN", "null", "../../etc/passwd",
]  # fmt: skip
odd_texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=8)
odd_scalars: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, -1, 2**63, 10**400, -(10**30), 0.5, float("nan"), float("inf"), -0.0, 1e308]
) | odd_texts  # fmt: skip


def _nested(depth: int, in_list: bool) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value] if in_list else {"a": value}
    return value


odd_values: st.SearchStrategy[Any] = st.one_of(
    odd_scalars,
    st.lists(odd_scalars, max_size=3),
    st.dictionaries(odd_texts, odd_scalars, max_size=3),
    st.builds(_nested, st.sampled_from([3, 60, 200]), st.booleans()),
)

damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "drop", "double", "insert", "front"]),
        st.integers(0, 2**20),
        st.integers(0, 255),
    ),
    max_size=4,
)
"""Changes to bytes: what, where (as a share of the length) and with which byte."""


def damaged(content: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    for what, where, byte in changes:
        at = where * len(content) >> 20
        before, after = content[:at], content[at:]
        if what == "flip":
            after = bytes([after[0] ^ (1 << byte % 8)]) + after[1:] if after else after
        elif what == "set":
            after = bytes([byte]) + after[1:]
        elif what == "cut":
            after = b""
        elif what == "drop":
            after = after[1 + byte % 16 :]
        elif what == "double":
            after = after[: 1 + byte] + after
        elif what == "insert":
            after = bytes([byte]) * (1 + byte % 5) + after
        else:
            before, after = bytes([byte]) + before, after
        content = before + after
    return content


def assert_one_line(error: Exception, *names: str) -> None:
    """A message is one line, short, and says what it is about."""
    message = str(error)
    assert "\n" not in message
    assert 0 < len(message) < 1500, message
    for name in names:
        assert name in message, message
