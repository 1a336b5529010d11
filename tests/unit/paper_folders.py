"""The folders of a paper's stages as real ones leave them, made up: what the tests of its tables read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from evaluation_run import change, make_evaluation
from test_report import make_run

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.config.paper import PaperConfig
from orpo_ray.paper.stages import PaperStages, Place

SETTINGS = """
name: toy-paper
seeds: [1, 2, 3]
run: {data: {train: toy, eval: toy-test}, model: {dtype: float32}, train: {max_steps: 120}}
methods:
  sft: {model: {name_or_path: <base>}, objective: {name: sft}}
  dpo: {model: {name_or_path: <sft>}, objective: {name: dpo}}
  ppo: {model: {name_or_path: <sft>}, objective: {name: ppo}, rollouts: {rewards: {reward: <reward>}, max_tokens: 48}}
  orpo: {model: {name_or_path: <base>}, objective: {name: orpo, lambda: 1.0}}
  reward: {model: {name_or_path: <base>}, objective: {name: reward}}
  judge: {model: {name_or_path: <base>}, objective: {name: reward}}
sizes:
  small: {base: toy, paper: 125M}
  large: {base: toy, paper: 350M}
data:
  world: {paper: hh, title: The toy world, evaluation: {prompts: {source: toy-test}}}
reward: small
judge: large
figures: {data: world, size: large}
evaluation: {sampling: {max_tokens: 48}, reward_models: {truth: toy}}
"""
METHODS = ("sft", "dpo", "ppo", "orpo")


def paper_stages(folder: Path, **changes: Any) -> PaperStages:
    """`changes`: keys at the top in place of the same of `SETTINGS`."""
    settings = yaml.safe_load(SETTINGS) | {"storage": {"path": str(folder)}} | changes
    return PaperStages(parse_as(PaperConfig, settings, [], "paper.yaml"), "paper.yaml")


def finish(stages: PaperStages, *places: Place, prompts: int = 40) -> None:
    """Leave in each stage's folder what it leaves when it has finished; `prompts`: of an evaluation."""
    for place in places:
        folder = stages.folder_of(place)
        if isinstance(stages.configs[place], EvaluationConfig):
            seed = place.seed or 0
            make_evaluation(folder, METHODS, prompts=prompts, seed=seed + 10 * (place.size == "large"))
            _as_the_paper_names_it(folder, seed)
        else:
            make_run(folder, objective="orpo" if place.kind == "orpo" else "sft")
        (folder / "config.yaml").write_text(stages.configs[place].to_yaml())


def finish_all(stages: PaperStages) -> PaperStages:
    finish(stages, *stages.configs)
    return stages


def _as_the_paper_names_it(folder: Path, seed: int) -> None:
    """With `judge` for one of the reward models, and embedded answers."""
    table = pq.read_table(folder / "results.parquet")
    names = ["reward:judge" if name == "reward:opt-1.3b" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), folder / "results.parquet")

    def edit(content: dict[str, Any]) -> None:
        for pair in content["pairs"]:
            pair["reward_model"] = {"opt-1.3b": "judge"}.get(pair["reward_model"], pair["reward_model"])
        for name in ("reward_models", "ratings", "rewards"):
            content[name]["judge"] = content[name].pop("opt-1.3b")
        content["agreement"] = []
        for place, model in enumerate(content["models"].values()):
            model["diversity"] |= {"per_input_cosine": 0.8 + seed / 1000 + place / 100, "across_input_cosine": 0.5}

    change(folder, edit)
