"""The demo's stages and the files in `configs/` that let a person run them one by one say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from orpo_ray.config import EvaluationConfig, load_as, load_config
from orpo_ray.demo import _SECONDS, STAGES, demo_config, demo_evaluation

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("stage", STAGES)
def test_toy_files_are_the_demos_stages(stage: str, tmp_path: Path) -> None:
    demo, file = demo_config(stage, tmp_path), load_config(CONFIGS / f"toy-{stage}.yaml")
    expected = {"base": "toy", "dpo": "./runs/toy-sft", "reward": "./runs/toy-sft"}.get(stage, "./runs/toy-base")
    assert file.model.name_or_path == expected
    if stage != "base":
        assert demo.model.name_or_path == str(tmp_path / expected.removeprefix("./runs/toy-"))
    model = file.model.model_copy(update={"name_or_path": demo.model.name_or_path})
    assert file.model_copy(update={"name": stage, "model": model, "storage": demo.storage}) == demo


def test_toy_winrate_is_the_demos_comparison(tmp_path: Path) -> None:
    demo, file = demo_evaluation(tmp_path), load_as(EvaluationConfig, CONFIGS / "toy-winrate.yaml")

    def elsewhere(path: str) -> str:
        return path.replace("./runs/toy-", f"{tmp_path}/")

    models = {label: asked.model_copy(update={"path": elsewhere(asked.path)}) for label, asked in file.models.items()}
    judges = {label: elsewhere(path) for label, path in file.reward_models.items()}
    moved = {"name": "winrate", "models": models, "reward_models": judges, "storage": demo.storage}
    assert file.model_copy(update=moved) == demo


def test_every_stage_has_what_it_usually_takes() -> None:
    assert list(_SECONDS) == [*STAGES, "winrate"]
