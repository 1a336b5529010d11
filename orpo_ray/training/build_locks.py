"""Extensions that DeepSpeed compiles when it is first used, and the lock that a killed compilation leaves behind.

torch waits for such a lock for ever: a worker that was killed in its first seconds would hang all later runs of its
machine.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

_SECONDS_OF_A_BUILD = 300.0  # at most; half a minute is usual


def wait_for_builds() -> None:
    """Wait until nobody compiles an extension of DeepSpeed here, and remove the locks of those that died over it."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in [*root.glob("deepspeed_*/lock"), *root.glob("*/deepspeed_*/lock")]:
        while (age := _age(lock)) is not None and age < _SECONDS_OF_A_BUILD:
            time.sleep(0.5)
        lock.unlink(missing_ok=True)


def _age(lock: Path) -> float | None:
    """Seconds; None: it is gone."""
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None
