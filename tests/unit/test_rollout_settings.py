"""Settings of runs on rollouts: what is refused, and what is found from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollout_runs import settings

from orpo_ray.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run's prompts and of what it starts from."""
    return tmp_path_factory.mktemp("place")


@pytest.mark.parametrize("key", ["top_p", "top_k", "min_p"])
def test_bug_ratio_off_by_the_mass_that_is_cut(key: str, place: Path) -> None:
    """trl#6789: nobody may ask for it."""
    with pytest.raises(UserError, match=rf"rollouts\.{key}"):
        settings(place, f"rollouts.{key}=1")


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_a_temperature_that_vllm_does_not_draw_at_is_refused(temperature: float, place: Path) -> None:
    """It raises at one above 2, in each worker that is begun anew; below 0.01 it draws at another."""
    asked = f"rollouts.temperature={temperature}"
    settings(place, asked)  # by transformers
    with pytest.raises(UserError, match=rf"rollouts.*temperature \({temperature}\): vLLM draws at 0\.01 to 2"):
        settings(place, asked, "rollouts.engine=vllm")


@pytest.mark.parametrize("objective", ["ppo", "rloo", "grpo"])
@pytest.mark.parametrize("dropout", ["model.keep_dropout=true", "model.lora={rank: 4, alpha: 8, dropout: 0.1}"])
def test_dropout_that_would_part_policy_and_old_policy_is_refused(objective: str, dropout: str, place: Path) -> None:
    """With it the first ratio is not 1, though no weight has moved."""
    own = () if objective == "ppo" else (f"objective={{name: {objective}}}",)
    with pytest.raises(UserError, match=rf"model\.(keep|lora\.)_?dropout: {objective} weighs the policy's prob"):
        settings(place, *own, dropout, "rollouts.samples=2")
    settings(place, "objective={name: online}", dropout, "rollouts.samples=2")


def test_what_pairs_of_rollouts_name_is_found_from_anywhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers stand in another folder, and other hosts may lack it."""
    (place / "ref").mkdir()
    monkeypatch.chdir(place)
    objective = "objective={name: online, pairs: {name: dpo, reference: ./ref}}"
    config = settings(place, objective, "rollouts.samples=2").with_absolute_paths()
    assert config.objective.pairs.reference == str(place / "ref")  # type: ignore[union-attr]
    assert config.local_paths()["objective.pairs.reference"] == str(place / "ref")


def test_a_weight_of_tokens_is_no_setting_of_pairs(place: Path) -> None:
    with pytest.raises(UserError, match=r"rollouts\.importance_cap: weighs tokens, and online compares whole"):
        settings(place, "objective={name: online}", "rollouts.samples=2", "rollouts.importance_cap=2")
