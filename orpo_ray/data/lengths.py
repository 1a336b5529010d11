"""How long records are before any is cut, counted while they are tokenised, and the limits that would cut few.

Counts are kept with the account of their source: the tokens beside it are cut already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orpo_ray.parsing import member

PARTS = ("prompt", "chosen", "rejected", "record")
"""`record`: the prompt and the longest of its responses together, which `data.max_length` bounds."""
Lengths = dict[str, Counter[int]]
"""Of each of `PARTS`, how many have each length in tokens, BOS and EOS included."""
HELD = 99
"""Percent of the records that suggested limits leave whole."""
_STEP = 64
"""Limits are suggested in multiples of it."""
_MOST = 1 << 40  # no record has as many tokens, and no source as many records


class Limits(NamedTuple):
    """What `data.max_length` and `data.max_prompt_length` would have to be."""

    max_length: int
    max_prompt_length: int


def none_yet() -> Lengths:
    return {part: Counter() for part in PARTS}


def count(lengths: Lengths, prompt: int, chosen: Sequence[int], rejected: Sequence[int]) -> None:
    """Count a record of these lengths in."""
    lengths["prompt"][prompt] += 1
    lengths["chosen"].update(chosen)
    lengths["rejected"].update(rejected)
    lengths["record"][prompt + max(*chosen, *rejected, 0)] += 1


def from_json(found: dict[str, Any]) -> Lengths:
    """What JSON made of one. Raises `ValueError` for anything else."""
    read = none_yet()
    for part in PARTS:
        of_part = member(found, part, dict)
        read[part].update({int(length): member(of_part, length, int) for length in of_part})
        if any(not (0 <= length < _MOST and 0 < many < _MOST) for length, many in read[part].items()):
            raise ValueError(f"{part} has a length that none can have")
    return read


def together(parts: Iterable[Lengths | None]) -> Lengths | None:
    """Of several sources; None where those of one are not known."""
    found = none_yet()
    for lengths in parts:
        if lengths is None:
            return None
        for part in PARTS:
            found[part].update(lengths[part])
    return found


def values(counted: Counter[int]) -> NDArray[np.int64]:
    """`(counted,)`: each length as often as it was counted, in no order."""
    return np.repeat(np.array([*counted], np.int64), np.array([*counted.values()], np.int64))


def suggested(lengths: Lengths) -> Limits | None:
    """The limits that leave `HELD` percent of the records, and of the prompts, as they are; None without a record."""
    if not lengths["record"]:
        return None
    prompt, record = (
        _rounded_up(int(np.percentile(values(lengths[part]), HELD, method="higher"))) for part in ("prompt", "record")
    )
    return Limits(max(record, prompt + _STEP), prompt)  # a prompt has to leave room for a response


def _rounded_up(length: int) -> int:
    return -(-length // _STEP) * _STEP
