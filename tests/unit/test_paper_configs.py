"""The configurations of the whole paper: each stage that they make is the recipe that stands in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_ray.config import EvaluationConfig, SweepConfig, TrainConfig, load_as, load_config, parse_as
from orpo_ray.config.identity import identity
from orpo_ray.config.loading import read_yaml
from orpo_ray.config.paper import PaperConfig, load_paper
from orpo_ray.config.paths import named_paths
from orpo_ray.config.space import parse_dimension
from orpo_ray.paper.stages import PaperStages, Place

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = {"125M": "opt-125m", "350M": "opt-350m", "1.3B": "opt-1.3b"}
COMPARED = ("sft", "dpo", "ppo", "orpo")
MADE = {"reward": ("350M",), "judge": ("1.3B",), **{method: tuple(SIZES) for method in COMPARED}}
RUNS = [(data, size, method) for data in ("hh", "ultrafeedback") for method, sizes in MADE.items() for size in sizes]


@pytest.fixture(scope="module")
def papers() -> dict[str, PaperStages]:
    return {data: PaperStages(load_paper(CONFIGS / "paper" / f"{data}.yaml")) for data in ("hh", "ultrafeedback")}


def recipe(data: str, size: str, method: str) -> TrainConfig:
    stem = f"{SIZES[size]}-{data}-{ {'judge': 'reward'}.get(method, method) }"
    return load_config(CONFIGS / f"{stem}.yaml" if method == "orpo" else CONFIGS / "paper" / f"{stem}.yaml")


def place_of(papers: dict[str, PaperStages], data: str, size: str, method: str) -> Place:
    stages = papers[data]
    found = stages.find(method, data, size, None if method in ("reward", "judge") else 42)
    assert found is not None
    return found


def run_of(stages: PaperStages, place: Place) -> TrainConfig:
    found = stages.configs[place]
    assert isinstance(found, TrainConfig)
    return found


def settings(run: TrainConfig, models: dict[str, str]) -> dict[str, Any]:
    """What decides the run, but for its name; `models`: what stands for each folder of a stage."""
    mapping = run.model_dump(mode="json", by_alias=True)
    for _, section, key in named_paths(mapping):
        section[key] = models.get(section[key], section[key])
    return {key: value for key, value in identity(mapping).items() if key != "name"}


def test_they_make_these_stages_and_no_others(papers: dict[str, PaperStages]) -> None:
    for data, stages in papers.items():
        runs = {place_of(papers, data, size, method) for each, size, method in RUNS if each == data}
        extra = {Place("sweep", data, "350M")} | {Place("winrate", data, size, 42) for size in SIZES}
        if data == "hh":  # Figure 8
            extra.add(Place("probability_ratio", data, "350M", 42))
        assert stages.configs.keys() == runs | extra


@pytest.mark.parametrize(("data", "size", "method"), RUNS)
def test_a_stage_is_its_recipe(papers: dict[str, PaperStages], data: str, size: str, method: str) -> None:
    stages, place = papers[data], place_of(papers, data, size, method)
    # Folders of stages and of recipes go by the same names here; what is on the Hub is named in both.
    ours = {str(stages.folder_of(each)): _called(each) for each in stages.configs}
    theirs = {
        f"./runs/{recipe(data, each, kind).name}": _called(Place(kind, data, each))
        for kind, sizes in MADE.items() for each in sizes
    }  # fmt: skip
    wanted = recipe(data, size, method)
    made = run_of(stages, place)
    assert settings(made, _however_written(ours, made)) == settings(wanted, theirs)
    # Speed and what the paper says of it are no part of what decides a run.
    assert made.scaling == wanted.scaling
    assert made.train == wanted.train


def _called(place: Place) -> str:
    return f"<{place.kind} of {place.data}-{place.size}>"


def _however_written(folders: dict[str, str], run: TrainConfig) -> dict[str, str]:
    """`folders` by the texts by which `run` names them."""
    mapping = run.model_dump(mode="json", by_alias=True)
    texts = [section[key] for _, section, key in named_paths(mapping) if section.get(key) is not None]
    return {text: name for text in texts if (name := folders.get(str(Path(text).resolve()))) is not None}


@pytest.mark.parametrize("data", ["hh", "ultrafeedback"])
@pytest.mark.parametrize("size", SIZES)
def test_an_evaluation_is_its_recipe(papers: dict[str, PaperStages], data: str, size: str) -> None:
    stages = papers[data]
    made = stages.configs[Place("winrate", data, size, 42)]
    assert isinstance(made, EvaluationConfig)
    wanted = load_as(EvaluationConfig, CONFIGS / "paper" / f"{SIZES[size]}-{data}-winrate.yaml")
    free = {"name", "models", "reward_models", "storage"}
    assert made.model_dump(exclude=free) == wanted.model_dump(exclude=free)
    folders = {method: stages.folder_of(place_of(papers, data, size, method)) for method in COMPARED}
    assert {label: Path(model.path).resolve() for label, model in made.asked.items()} == folders
    assert {label: Path(model.path).name for label, model in wanted.asked.items()} == {
        method: recipe(data, size, method).name for method in COMPARED
    }
    judge = stages.folder_of(place_of(papers, data, "1.3B", "judge"))
    assert {label: Path(path).resolve() for label, path in made.reward_models.items()} == {"judge": judge}


def test_the_probability_ratio_differs_from_orpo_in_its_objective_alone(papers: dict[str, PaperStages]) -> None:
    stages = papers["hh"]
    ratio, orpo = (run_of(stages, Place(kind, "hh", "350M", 42)) for kind in ("probability_ratio", "orpo"))
    differing = {key for key, value in settings(orpo, {}).items() if settings(ratio, {}).get(key) != value}
    assert differing == {"objective.name", "objective.gradient_metrics"}


@pytest.mark.parametrize("data", ["hh", "ultrafeedback"])
def test_the_sweep_is_of_the_papers_weights(papers: dict[str, PaperStages], data: str) -> None:
    stages = papers[data]
    sweep = stages.configs[Place("sweep", data, "350M")]
    assert isinstance(sweep, SweepConfig)
    assert {key: parse_dimension(text).values for key, text in sweep.space.items()} == {
        "objective.lambda": (0.1, 0.5, 1.0)
    }
    assert (sweep.scheduler, sweep.number_of_trials) == ("none", 3)


def test_small_models_of_real_pairs() -> None:
    stages = PaperStages(load_paper(CONFIGS / "paper" / "small.yaml"))
    config, seeds = stages.config, stages.config.seeds
    kinds = [place.kind for place in stages.configs]
    compared = len(config.sizes) * len(config.data) * len(seeds)
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "base": len(config.sizes), "reward": 2, "judge": 2, "probability_ratio": len(seeds), "sweep": 1,
        **dict.fromkeys((*COMPARED, "winrate"), compared),
    }  # fmt: skip
    for size in config.sizes:
        base = run_of(stages, Place("base", size=size))
        shape = json.loads((CONFIGS.parent / base.model.name_or_path / "config.json").read_text())
        assert parameters(shape) == {"4M": 3_548_672, "8M": 7_490_560, "18M": 18_133_504}[size]
        # Either response of each pair, so that the base model has none to prefer.
        ways = [(each.source, each.columns) for each in base.data.train_sources]
        swapped = {"chosen": "rejected", "rejected": "chosen"}
        sources = [data.run["data"]["train"] for data in config.data.values()]
        assert ways == [(source, columns) for source in sources for columns in (None, swapped)]
        # No stage reads in training what another is held out on.
        held_out = [data.run["data"]["eval"] for data in config.data.values()]
        assert [each.source for each in base.data.eval_sources] == held_out
    for place, made in stages.configs.items():
        if isinstance(made, EvaluationConfig):
            assert made.prompts.source == config.data[place.data].run["data"]["eval"]


def parameters(shape: dict[str, Any]) -> int:
    """Of an OPT with tied embeddings."""
    width, feed = shape["hidden_size"], shape["ffn_dim"]
    block = 4 * (width + 1) * width + 2 * width * feed + feed + width + 4 * width
    embeddings = (shape["vocab_size"] + shape["max_position_embeddings"] + 2) * width
    return int(embeddings + shape["num_hidden_layers"] * block + 2 * width)


def test_what_is_left_out_of_ultrafeedback_is_ready_to_be_put_in() -> None:
    path = CONFIGS / "paper" / "ultrafeedback.yaml"
    text = path.read_text()
    left_out = yaml.safe_load(text[text.index("# sizes:") :].replace("\n# ", "\n").removeprefix("# "))
    whole = read_yaml(path)
    whole["sizes"] |= left_out["sizes"]
    stages = PaperStages(parse_as(PaperConfig, {**whole, "benchmarks": left_out["benchmarks"]}, [], "both"))
    orpo = run_of(stages, Place("orpo", "ultrafeedback", "2.7B", 42))
    wanted = load_config(CONFIGS / "phi-2-ultrafeedback-orpo.yaml")
    assert (settings(orpo, {}), orpo.scaling, orpo.train) == (settings(wanted, {}), wanted.scaling, wanted.train)
    measured = {}
    for place, made in stages.configs.items():
        if place.kind == "benchmark":
            assert isinstance(made, EvaluationConfig)
            measured[made.measures] = {*made.asked}
    assert measured == {(name,): {*COMPARED} for name in ("alpaca-eval-2", "mt-bench", "ifeval")}
