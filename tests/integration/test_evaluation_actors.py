"""Actors that Ray ends, and actors that no node has room for."""

from __future__ import annotations

import io
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from orpo_ray.cluster import waiting
from orpo_ray.config import EvaluationConfig, ScoreConfig, parse_as
from orpo_ray.data import toyworld
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.evaluation import progress
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.score import score
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.terminal import Console


def config_of(folder: Path, **settings: Any) -> ScoreConfig:
    mapping = {
        "name": "s", "reward_models": {"truth": "toy"}, "prompts": {"source": "toy-test", "limit": 40},
        "storage": {"path": str(folder)}, **settings,
    }  # fmt: skip
    return parse_as(ScoreConfig, mapping, [], "test")


def test_a_model_that_vllm_lacks_on_a_cpu_answers_by_transformers(ray_cluster: None, tmp_path: Path) -> None:
    """It is refused before an engine starts; by the other engine the number of actors changes no byte."""
    shape = toyworld.model_config()
    shape.num_hidden_layers, shape.num_attention_heads = 1, 8  # heads of 16 dimensions
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "a")
    toyworld.tokenizer().save_pretrained(tmp_path / "a")
    write_text_rule(tmp_path / "a", through_template=False)
    mapping = {
        "name": "one", "models": {"a": str(tmp_path / "a"), "b": {"path": str(tmp_path / "a"), "dtype": "bfloat16"}},
        "prompts": {"source": "toy-test", "limit": 40}, "reward_models": {"truth": "toy"}, "embedder": None,
        "sampling": {"max_tokens": 8, "rounds": 2}, "storage": {"path": str(tmp_path)},
        "scaling": {"generators": 1, "scorers": 1},
    }  # fmt: skip

    def run(*overrides: str) -> EvaluationFolder:
        return evaluate(parse_as(EvaluationConfig, mapping, list(overrides), "test"))

    with pytest.raises(
        UserError, match=r"^models\.a: vLLM has no attention heads of 16 .*generation\.engine=transform"
    ):
        run()
    plainly = run("generation.engine=transformers")
    rows = pq.read_table(plainly.results).to_pylist()
    assert len(rows) == 40 * (2 * 2 + 2)
    assert all(row["reward:truth"] is not None for row in rows)
    assert len({row["text"] for row in rows if row["model"] == "a"}) > 70
    two = ["name=two", "scaling.generators=2", f"models={{a: {tmp_path / 'a'}}}"]
    twice = run("generation.engine=transformers", *two)
    again = [row for row in rows if row["model"] != "b"]
    assert pq.read_table(twice.results).to_pylist() == again


def test_what_waits_for_room_is_said_and_goes_on_when_there_is_some(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Hog:
        def is_here(self) -> bool:
            return True

    monkeypatch.setattr(progress, "saying_what_waits", partial(waiting.saying_what_waits, seconds=2))
    [(cpus, _)] = waiting.node_places()
    hog = ray.remote(num_cpus=cpus)(Hog).remote()
    assert ray.get(hog.is_here.remote(), timeout=60) and not waiting.waits_for_room(hog)
    said = io.StringIO()
    thread = threading.Thread(target=score, args=(config_of(tmp_path), Console(file=said, width=500)))
    thread.start()
    try:
        line = f"s: not started for 2 s, for want of room: 1 of 1 scorer ({cpus:.0f} CPUs each); the largest of 1 node"
        for _ in range(300):
            if line in said.getvalue():
                break
            thread.join(0.1)
        assert line in said.getvalue()
    finally:
        ray.kill(hog)
        thread.join(120)
    assert (tmp_path / "s/scores.json").is_file()
