"""How the C library hands out memory in a process that computes on a CPU."""

from __future__ import annotations

import ctypes

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""`keep_freed_memory` and `use_one_arena` for a process that is yet to start."""

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Have freed memory stay with the process, for the rest of its life.

    By default glibc returns each large tensor to the system when it is freed, and the next one of that size is paid
    for page by page: a tenth of a step's time (benchmarks/NOTES.md). Does nothing where there is no glibc.
    """
    _set(_M_MMAP_MAX, 0)
    _set(_M_TRIM_THRESHOLD, -1)


def use_one_arena() -> None:
    """Have all threads of this process, and of those forked from it, take memory from one arena.

    Ray trains in a thread, to which glibc would give an arena of its own, that `keep_freed_memory` does not reach. To
    be called before there is a second thread: glibc decides on the number of arenas once.
    """
    _set(_M_ARENA_MAX, 1)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
