"""The commands that README and the guides show."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_SHELL = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def lines() -> list[tuple[str, str]]:
    """Page and command of every line of every shell block; continued lines are one."""
    found = []
    for page in _PAGES:
        for block in _SHELL.findall(page.read_text(encoding="utf-8")):
            text = re.sub(r"\\\n\s*", " ", block)
            found += [(page.name, line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return found
