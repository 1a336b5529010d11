"""How the C library hands out memory in a process that trains on a CPU."""

from __future__ import annotations

import ctypes

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""The same for a process that is yet to start. Ray trains in a thread, to which glibc would give an arena of its own,
that `keep_freed_memory` does not reach."""

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have freed memory stay with the process, for the rest of its life.

    By default glibc returns each large tensor to the system when it is freed, and the next one of that size is paid
    for page by page: a tenth of a step's time (benchmarks/NOTES.md). Does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
