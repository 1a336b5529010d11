"""Ray's side of `test_placement.py`: who is given which device, on two nodes of this machine that declare four GPUs
each. Actors that only tell stand where engines, vLLM's workers and scorers would."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from transformers import AutoModelForCausalLM

from orpo_ray.cluster.waiting import node_places
from orpo_ray.config import EvaluationConfig, ScalingConfig, parse_as
from orpo_ray.config.evaluation import EvaluationScaling
from orpo_ray.data import toyworld
from orpo_ray.data.templates import write_text_rule
from orpo_ray.evaluation import progress
from orpo_ray.evaluation.cluster import Resources, beside, share_out
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.pipeline import Pipeline
from orpo_ray.evaluation.places import Places, starts_workers

BESIDE = beside(ScalingConfig(num_workers=1, use_gpu=True), 8)


class Told:
    def told(self) -> dict[str, Any]:
        context = ray.get_runtime_context()
        given = context.get_accelerator_ids()["GPU"]
        return {"node": context.get_node_id(), "gpus": given, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


class Engine(Told):
    """Starts workers as vLLM's `RayExecutorV2` does: in the group of its own process, a bundle each."""

    def workers(self, kind: Any) -> list[dict[str, Any]]:
        group = ray.util.get_current_placement_group()
        self._workers = [
            kind.options(
                num_cpus=0, num_gpus=float(os.environ.get("VLLM_RAY_PER_WORKER_GPUS", "1.0")),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
            ).remote()
            for bundle in range(len(group.bundle_specs))
        ]  # fmt: skip
        told: list[dict[str, Any]] = ray.get([worker.told.remote() for worker in self._workers])
        return told


def stand(resources: Resources, again: int = 0) -> dict[str, Any]:
    """Where all of `resources` stand, and an engine that comes `again` in the first one's place."""
    places, engine, scorer = Places(resources, {}), ray.remote(Engine), ray.remote(Told)
    found: dict[str, Any] = {"engines": [], "scorers": [], "again": [], "sharing": resources.sharing}

    def begun(number: int) -> tuple[Any, Any]:
        actor = engine.options(**places.engine(number)).remote()
        by_ray = starts_workers(resources, number)
        return actor, actor.workers.remote(scorer) if by_ray else actor.told.remote()

    engines = [begun(number) for number in range(resources.generators)]
    scorers = [scorer.options(**places.scorer(number)).remote() for number in range(resources.scorers)]
    found["engines"] = ray.get([call for _, call in engines])
    found["own"] = ray.get([actor.told.remote() for actor, _ in engines])
    found["scorers"] = ray.get([actor.told.remote() for actor in scorers])
    for _ in range(again):
        ray.kill(engines[0][0])
        engines[0] = begun(0)
        found["again"].append(ray.get(engines[0][1]))
    for actor in [*(actor for actor, _ in engines), *scorers]:
        ray.kill(actor)
    places.release()
    deadline = time.monotonic() + 20
    while ray.available_resources().get("GPU", 0) < 8 and time.monotonic() < deadline:
        time.sleep(0.1)
    return found | {"left": ray.available_resources().get("GPU", 0)}


def evaluated(folder: Path) -> dict[str, Any]:
    """A whole evaluation whose engine and scorer share a GPU that was declared: on a CPU, since there is none."""
    shape = toyworld.model_config()
    shape.num_hidden_layers = 1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder / "a")
    toyworld.tokenizer().save_pretrained(folder / "a")
    write_text_rule(folder / "a", through_template=False)
    mapping = {
        "name": "e", "models": {"a": str(folder / "a")}, "reward_models": {"truth": "toy"}, "embedder": None,
        "prompts": {"source": "toy-test", "limit": 40}, "sampling": {"max_tokens": 4, "rounds": 1},
        "generation": {"engine": "transformers"}, "log_probs": False, "storage": {"path": str(folder)},
    }  # fmt: skip
    begun: list[list[Any]] = []
    engine, scorer = Places.engine, Places.scorer

    class Watched(Pipeline):
        def run(self) -> None:
            slot = self._engines[0]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Places, "engine", lambda *given: (begun.append(["engine", slot.most]), engine(*given))[1])
                patch.setattr(Places, "scorer", lambda *given: (begun.append(["scorer", slot.most]), scorer(*given))[1])
                super().run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "Pipeline", Watched)
        done = evaluate(parse_as(EvaluationConfig, mapping, [], "test"), resources=BESIDE)
    return {"begun": begun, "rewards": pq.read_table(done.results)["reward:truth"].to_pylist()}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 4, "include_dashboard": False})
    cluster.add_node(num_cpus=8, num_gpus=4)
    ray.init(cluster.address, log_to_driver=False)
    nodes = node_places()

    def shared(**scaling: Any) -> Resources:
        return share_out(EvaluationScaling(**scaling), nodes, most=100)

    found = {
        "by four": stand(shared(tensor_parallel=4), again=1),
        "over nodes": stand(shared(tensor_parallel=5, scorers=1)),
        "beside training": stand(BESIDE),
        "on CPUs": stand(shared(use_gpu=False, generators=1)),
    }
    print(json.dumps({"nodes": nodes, "found": found, "evaluated": evaluated(Path(sys.argv[1]))}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
