"""The table of faults in docs/reliability.md, from what the harness has measured.

PYTHONPATH=tests python tests/faults/fault_page.py benchmarks/results/faults.json docs/reliability.md
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- faults -->", "<!-- /faults -->"


def table(result: dict[str, Any]) -> str:
    """A row for each fault, in the order of `fault_table.FAULTS`, and the machine."""
    from fault_table import FAULTS

    lines = [
        "| fault | how | at steps | goes on from | verdict | seconds to the next step |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(result["faults"][fault.name]) for fault in FAULTS if fault.name in result["faults"]]
    machine = result["machine"]
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    return "\n".join([*lines, "", f"Measured on {machine['cpu']}, {machine['cores']} cores, {memory}."])


def _row(entry: dict[str, Any]) -> str:
    moments = entry["moments"]
    seconds = [moment["seconds"] for moment in moments]
    spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f})"
    at, onward = (", ".join(str(moment[key]) for moment in moments) for key in ("at_step", "goes_on_from"))
    return f"| {entry['fault']} | {entry['how']} | {at} | {onward} | {entry['verdict']} | {spread} |"


def main(results: Path, page: Path) -> None:
    block = f"{BEGIN}\n{table(json.loads(results.read_text(encoding='utf-8')))}\n{END}"
    text, replaced = re.subn(f"{BEGIN}.*{END}", lambda _: block, page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert replaced == 1, f"{page} has no {BEGIN} ... {END}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
