"""How the C library hands out memory in a process that computes on a CPU."""

from __future__ import annotations

import ctypes
import os

_LARGE = 1 << 25
"""Bytes of a block that goes back to the system when it is freed; glibc takes no more (`DEFAULT_MMAP_THRESHOLD_MAX`).

Of a vocabulary of 50,000 a step's logits are blocks of several hundred MB, each of another size. Kept, they leave holes
that small ones are put into and the next large one does not fit: a process grew by such a block again and again, to
11 GB for a model of four million parameters (issue 22)."""

_HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Has PyTorch ask for huge pages, of which a large block needs few (benchmarks/NOTES.md); read at its first tensor."""

ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(_LARGE), "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    **_HUGE_PAGES,
}  # fmt: skip
"""`keep_freed_memory`, `use_one_arena` and `use_huge_pages` for a process that is yet to start."""

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Have freed memory stay with the process, for the rest of its life, but for large blocks.

    By default glibc returns each tensor of some size to the system when it is freed, and the next one of that size is
    paid for page by page: a tenth of a step's time (benchmarks/NOTES.md). Does nothing where there is no glibc.
    """
    _set(_M_MMAP_THRESHOLD, _LARGE)
    _set(_M_TRIM_THRESHOLD, -1)


def use_one_arena() -> None:
    """Have all threads of this process, and of those forked from it, take memory from one arena.

    Ray trains in a thread, to which glibc would give an arena of its own, that `keep_freed_memory` does not reach. To
    be called before there is a second thread: glibc decides on the number of arenas once.
    """
    _set(_M_ARENA_MAX, 1)


def use_huge_pages() -> None:
    """Have PyTorch ask for huge pages, in this process and in those forked from it. To be called before its import."""
    os.environ |= _HUGE_PAGES


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
