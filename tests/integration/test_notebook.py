"""The notebook of the docs: its cells, one after the other, in fewer steps than they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "first-steps.ipynb"
CELLS = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
FEWER = {'"max_steps": 120': '"max_steps": 8', '"limit": 64': '"limit": 8'}
LINES = 20
"""Fewer lead from the import to a model, a win-rate and a plot."""


def test_it_is_short() -> None:
    assert len([line for cell in CELLS for line in cell.splitlines() if line.strip()]) < LINES
    assert all(not cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text())["cells"])


def test_its_cells_lead_to_a_model_a_win_rate_and_a_plot(tmp_path: Path, beside_tests: dict[str, str]) -> None:
    text = "\n".join(CELLS)
    for whole, fewer in FEWER.items():
        assert whole in text
        text = text.replace(whole, fewer)
    checks = """
import matplotlib.pyplot as plt
assert len(plt.gca().lines) == 2 and len(orpo.metrics) > 8
assert 0 <= low <= rate <= high <= 1 and len(found.responses) == 2 * 8 * 3 + 2 * 8  # the data's own too
assert (orpo.model / "model.safetensors").is_file() and found.report.is_file() and orpo.report.is_file()
"""
    environment = {**beside_tests, "MPLBACKEND": "agg"}
    ended = subprocess.run(
        [sys.executable, "-c", text + checks],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    assert "ORPO wins" in ended.stdout
