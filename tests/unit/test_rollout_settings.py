"""Settings of runs on rollouts: what is refused, and what is found from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollout_runs import settings

from orpo_ray.errors import UserError


@pytest.mark.parametrize("key", ["top_p", "top_k", "min_p"])
def test_bug_ratio_off_by_the_mass_that_is_cut(key: str, tmp_path: Path) -> None:
    """trl#6789: nobody may ask for it."""
    with pytest.raises(UserError, match=rf"rollouts\.{key}"):
        settings(tmp_path, f"rollouts.{key}=1")


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_a_temperature_that_vllm_does_not_draw_at_is_refused(temperature: float, tmp_path: Path) -> None:
    """It raises at one above 2, in each worker that is begun anew; below 0.01 it draws at another."""
    asked = f"rollouts.temperature={temperature}"
    settings(tmp_path, asked)  # by transformers
    with pytest.raises(UserError, match=rf"rollouts.*temperature \({temperature}\): vLLM draws at 0\.01 to 2"):
        settings(tmp_path, asked, "rollouts.engine=vllm")


@pytest.mark.parametrize("key", ["model.keep_dropout=true", "model.lora={dropout: 0.1}"])
def test_dropout_that_would_set_old_and_new_apart_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{key.partition('=')[0]}.*: ppo weighs the policy's probabilities"):
        settings(tmp_path, key)
    settings(tmp_path, key, "objective={name: online}", "rollouts.samples=2")


def test_what_pairs_of_rollouts_name_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers stand in another folder, and other hosts may lack it."""
    (tmp_path / "ref").mkdir()
    monkeypatch.chdir(tmp_path)
    objective = "objective={name: online, pairs: {name: dpo, reference: ./ref}}"
    config = settings(tmp_path, objective, "rollouts.samples=2").with_absolute_paths()
    assert config.objective.pairs.reference == str(tmp_path / "ref")  # type: ignore[union-attr]
    assert config.local_paths()["objective.pairs.reference"] == str(tmp_path / "ref")


def test_a_weight_of_tokens_is_no_setting_of_pairs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollouts\.importance_cap: weighs tokens, and online compares whole"):
        settings(tmp_path, "objective={name: online}", "rollouts.samples=2", "rollouts.importance_cap=2")
