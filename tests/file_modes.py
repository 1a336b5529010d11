"""Which files are not for whom the umask says."""

from __future__ import annotations

import os
from pathlib import Path


def unlike_the_umask(folder: Path) -> dict[str, str]:
    """The modes of what in `folder` has another one than a file, or a folder, that this process would make there."""
    umask = os.umask(0o022)
    os.umask(umask)
    found = {path.relative_to(folder).as_posix(): (path.is_dir(), path.stat().st_mode) for path in folder.rglob("*")}
    assert found, f"{folder} is empty"
    made = {True: 0o777 & ~umask, False: 0o666 & ~umask}
    return {name: oct(mode & 0o7777) for name, (is_dir, mode) in found.items() if mode & 0o7777 != made[is_dir]}
