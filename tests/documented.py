"""The commands that README and the guides show."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = ["data.limit=120", "train.max_steps=2", "train.global_batch_size=8", "scaling.num_workers=1"]
"""What is typed behind a command that trains, so that it takes seconds."""
FEW = ["prompts.limit=2", "sampling.max_tokens=4", "embedder=null", "scaling={generators: 1, scorers: 1}"]
"""The same of an evaluation."""
SHORT_PIPELINE = [
    *(f"train.{label}.{key}" for label in ("base", "sft", "orpo") for key in TINY),
    *(f"evaluate.{key}" for key in FEW),
]
"""The same of configs/toy-pipeline.yaml."""
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
