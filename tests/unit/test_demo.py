"""The demo's stages and the files in `configs/` that let a person run them one by one say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from orpo_ray.config import load_config
from orpo_ray.demo import demo_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("stage", ["base", "sft", "orpo"])
def test_toy_files_are_the_demos_stages(stage: str, tmp_path: Path) -> None:
    demo, file = demo_config(stage, tmp_path), load_config(CONFIGS / f"toy-{stage}.yaml")
    expected = "toy" if stage == "base" else "./runs/toy-base"
    assert file.model.name_or_path == expected
    model = file.model.model_copy(update={"name_or_path": demo.model.name_or_path})
    assert file.model_copy(update={"name": stage, "model": model, "storage": demo.storage}) == demo
