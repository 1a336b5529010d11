"""A set of hashes that may be as many as the records of a source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_RECENT = 1 << 16


class Hashes:
    """64-bit hashes that were met, at eight bytes each; a set of Python's takes ten times that.

    The last are a set; the others sorted arrays, each longer than the next, so that there are few to look into.
    """

    def __init__(self, recent: int = _RECENT) -> None:
        self._most_recent = recent
        self._recent: set[int] = set()
        self._sorted: list[NDArray[np.uint64]] = []

    def add(self, value: int) -> bool:
        """Whether `value` was not there before."""
        if value in self._recent or any(_holds(values, np.uint64(value)) for values in self._sorted):
            return False
        self._recent.add(value)
        if len(self._recent) == self._most_recent:
            values = np.sort(np.fromiter(self._recent, np.uint64))
            while self._sorted and len(self._sorted[-1]) <= len(values):
                values = np.sort(np.concatenate([self._sorted.pop(), values]))
            self._sorted.append(values)
            self._recent = set()
        return True


def _holds(values: NDArray[np.uint64], value: np.uint64) -> bool:
    at = int(np.searchsorted(values, value))
    return at < len(values) and bool(values[at] == value)
