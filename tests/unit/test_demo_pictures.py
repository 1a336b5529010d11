"""The demo's pictures are drawn from numbers that are written down beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_ray.demo import demo_settings
from orpo_ray.report.demo_pictures import CURVES, NUMBERS, WIN_RATES, demo_numbers, draw_demo, write_demo

ROOT = Path(__file__).resolve().parents[2]


def pictures(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (CURVES, WIN_RATES)]


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """Numbers of two runs of ten steps and their win-rates."""
    for name in ("sft", "orpo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("{name: x}")
        lines = [{"step": step, "logps_chosen": -1 / (step + 1), "loss": 2.0} for step in range(10)]
        lines += [{"step": step, "eval_logps_chosen": -0.5, "eval_logps_rejected": -0.75} for step in (0, 9)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = [
        {"model": model, "against": "sft", "reward_model": judge, "win_rate": 0.6123456, "ci95": [0.59, 0.64]}
        for model in ("orpo", "dpo")
        for judge in ("truth", "reward")
    ]
    found = {"prompts": 4, "rounds": 3, "pairs": pairs}
    return demo_numbers({"SFT": tmp_path / "sft", "ORPO": tmp_path / "orpo"}, found, {"orpo": {}})


def test_numbers_are_of_what_is_drawn(made: dict[str, Any]) -> None:
    steps, values = made["curves"]["ORPO"]["logps_chosen"]
    assert (steps[:3], values[:3]) == ([0, 1, 2], [-1.0, -0.5, -0.3333])
    assert made["curves"]["SFT"]["eval_logps_rejected"] == [[0, 9], [-0.75, -0.75]]
    assert "loss" not in made["curves"]["SFT"] and "logps_rejected" not in made["curves"]["SFT"]
    assert [(each["judge"], each["win_rate"]) for each in made["win_rates"]] == [("truth", 0.6123), ("reward", 0.6123)]


def test_what_is_written_down_draws_the_same_pictures(made: dict[str, Any], tmp_path: Path) -> None:
    write_demo(made, tmp_path)
    before = pictures(tmp_path)
    draw_demo(json.loads((tmp_path / NUMBERS).read_text()), tmp_path)
    assert pictures(tmp_path) == before
    made["win_rates"][0]["win_rate"] = 0.7
    made["curves"]["ORPO"]["eval_logps_rejected"][1][1] = -2.0
    draw_demo(made, tmp_path)
    assert all(new != old for new, old in zip(pictures(tmp_path), before, strict=True))


def test_readme_shows_the_demo_as_it_is(tmp_path: Path) -> None:
    """Its settings, its pictures, and in the caption its numbers. Where it fails: `make demo`, and copy the three files
    from `runs/demo` into docs/images."""
    images = ROOT / "docs" / "images"
    numbers = json.loads((images / NUMBERS).read_text())
    assert numbers["settings"] == demo_settings()
    draw_demo(numbers, tmp_path)
    assert pictures(tmp_path) == pictures(images)
    rates = {(each["against"], each["judge"]): each["win_rate"] for each in numbers["win_rates"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"by its reward model {rates['sft', 'reward']:.1%}, by the truth {rates['sft', 'truth']:.1%}" in readme
