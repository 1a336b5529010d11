"""`train.deterministic`: it runs on a CPU as well, changes no bit there, and names what has no such kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, random_groups, random_pairs
from live_models import opt, save
from rollout_runs import Trained, settings
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification

from orpo_ray.config import EvaluationConfig, TrainConfig, parse_as, parse_config
from orpo_ray.config.identity import digest
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.mismatch import Mismatched
from orpo_ray.errors import UserError
from orpo_ray.evaluation import pipeline
from orpo_ray.evaluation.cluster import Resources
from orpo_ray.evaluation.plan import make_plan
from orpo_ray.inference.generation import BATCH_INVARIANT, ENVIRONMENT, lacks_batch_invariance
from orpo_ray.judging.judges import find_judges
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.memory import set_recomputation
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import PackedRewardModel
from orpo_ray.modeling.scorer import Scorer
from orpo_ray.objectives.registry import build_objective
from orpo_ray.training import determinism
from orpo_ray.training.deepspeed_engine import local_rank
from orpo_ray.training.determinism import deterministic
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.launcher import environment_of_workers
from orpo_ray.training.loop import Sink, State, run
from orpo_ray.training.source import PairSource
from orpo_ray.training.writers import environment_of

REFUSED_ON_CUDA = {
    "adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward", "_embedding_bag",
    "avg_pool3d_backward", "bincount", "ctc_loss", "cumsum", "fractional_max_pool2d_backward", "grid_sampler_2d",
    "fractional_max_pool3d_backward", "grid_sampler_3d", "histc", "kthvalue", "logcumsumexp", "max_unpool2d", "median",
    "max_unpool3d", "nll_loss_forward", "nll_loss2d_forward", "put_", "reflection_pad1d_backward", "scatter_reduce",
    "reflection_pad2d_backward", "reflection_pad3d_backward", "upsample_bilinear2d_backward", "cumprod",
    "upsample_linear1d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward",
}  # fmt: skip
"""Operators that PyTorch's documentation of `use_deterministic_algorithms` lists as refused on a CUDA tensor, by their
names at dispatch (`cumsum` and the like: of floating-point numbers)."""


def config(*overrides: str) -> TrainConfig:
    mapping = {"name": "d", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}}
    short = [
        "train.global_batch_size=6", "optim.lr=1e-2", "optim.warmup_steps=0", "train.tokens_per_microbatch=90",
        "train.deterministic=true", "model.dtype=float32", "train.eval_every_steps=9", "train.max_steps=1",
    ]  # fmt: skip
    return parse_config(mapping, [*short, *overrides], "test")


class Dispatched(TorchDispatchMode):
    """Which operators were dispatched on floating-point tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
            self.names.add(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


def data_of(run_: TrainConfig) -> PairDataset:
    objective = build_objective(run_.objective)
    if objective.judges_labels:
        data = random_groups(12, rule="labels")
        data = replace(data, mismatched=Mismatched(data, 0, 30))
        other = data.mismatched
        assert other is not None
        return replace(data, reference=references(data), mismatched=replace(other, reference=references(other)))
    data = random_groups(12) if "choices" in run_.objective.columns else random_pairs(12)
    return replace(data, reference=references(data)) if objective.needs_reference else data


def references(data: Any) -> np.ndarray:
    shape = (len(data), int(data.counts().max()))
    return np.random.default_rng(0).normal(-20, 3, shape).astype(np.float32)


def scorer_of(run_: TrainConfig, shape: str) -> Scorer:
    if build_objective(run_.objective).model == "reward":
        small = type(FAMILIES[shape])(**{**FAMILIES[shape].to_dict(), "num_labels": 1, "pad_token_id": 1})
        torch.manual_seed(0)
        return PackedRewardModel(AutoModelForSequenceClassification.from_config(small, attn_implementation=NAME))
    dtype = torch.bfloat16 if run_.model.dtype == "bfloat16" else torch.float32
    return PackedPolicy(build(FAMILIES[shape], NAME, dtype)).train()


def steps(run_: TrainConfig, shape: str, asked: bool) -> tuple[list[str], dict[str, bytes], set[str]]:
    scorer = scorer_of(run_, shape)
    set_recomputation(scorer, "none" if run_.train.memory == "auto" else run_.train.memory)
    lines: list[str] = []

    class Lines(Sink):
        def metrics(self, line: dict[str, Any]) -> None:
            told = ("loss", "grad_norm", "eval_loss")
            lines.append(repr([line.get(name) for name in told]))

    engine, data = TorchEngine(scorer, run_.optim), data_of(run_)
    with deterministic(asked), Dispatched() as seen:
        assert torch.are_deterministic_algorithms_enabled() == asked
        run(engine, run_, PairSource(engine, run_, data, data), Lines(), State())
    weights = {piece.name: piece.weight.float().numpy().tobytes() for piece in engine.pieces()}
    return lines, weights, seen.names


CASES = [
    *(("opt-pre-norm", (f"objective={{name: {name}}}",)) for name in ("orpo", "dpo", "kto")),
    ("opt-pre-norm", ("objective={name: reward, loss: plackett_luce}",)),
    ("llama-grouped-query", ("train.memory=full",)),
    ("mistral-window-shorter", ("model.dtype=bfloat16", "train.memory=selective")),
    ("gpt2", ()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "overrides"), CASES, ids=lambda part: part if isinstance(part, str) else "".join(part)
)
def test_training_runs_with_deterministic_kernels_to_the_same_bits(shape: str, overrides: tuple[str, ...]) -> None:
    """And by no operator that PyTorch has none for on a device."""
    asked = config(*overrides)
    lines, weights, seen = steps(asked, shape, asked=True)
    plain_lines, plain_weights, _ = steps(asked, shape, asked=False)
    assert len(lines) == 3 and lines == plain_lines and weights == plain_weights
    assert not seen & REFUSED_ON_CUDA


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_rollouts_train_with_deterministic_kernels_to_the_same_bits(name: str, tmp_path: Path) -> None:
    found = []
    for asked in (True, False):
        objective = () if name == "ppo" else (f"objective={{name: {name}}}", "rollouts.samples=2")
        one = settings(tmp_path / str(asked), *objective, "train.max_steps=1")
        with deterministic(asked), Dispatched() as seen:
            trained = Trained(one)
        assert seen.names & REFUSED_ON_CUDA <= {"cumsum"}, "of drawing, which an engine does in a process of its own"
        found.append((trained.weights(), [line["loss"] for line in trained.lines]))
    assert found[0] == found[1]


def test_an_operator_without_such_a_kernel_is_named_in_one_line() -> None:
    with (
        pytest.raises(UserError, match=r"^train\.deterministic: this run needs put_.*; leave train.determ") as error,
        deterministic(True),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert "\n" not in str(error.value)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(RuntimeError, match="must match"), deterministic(True):
        torch.zeros(3) + torch.zeros(4)  # as it is
    with deterministic(False):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))


def test_new_memory_is_not_filled() -> None:
    """That would be paid for in every step, and make padding that nobody wrote, which DeepSpeed sums up, not finite."""
    with deterministic(True):
        assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("asked", [True, False])
def test_workers_on_gpus_find_it_in_their_environment(asked: bool) -> None:
    run_ = config(f"train.deterministic={str(asked).lower()}")
    assert environment_of_workers(run_, use_gpu=True) == (determinism.ENVIRONMENT if asked else {})
    assert environment_of_workers(run_, use_gpu=False).keys() >= {"MALLOC_ARENA_MAX"}
    assert "NCCL_ALGO" not in environment_of_workers(run_, use_gpu=False)


def test_a_run_may_be_continued_with_it_and_without() -> None:
    assert digest(config().for_a_file()) == digest(config("train.deterministic=false").for_a_file())


@pytest.mark.parametrize(("device", "rank"), [("cuda:0", "0"), ("cuda:3", "3"), ("cuda", "0")])
def test_libraries_take_the_device_by_its_index(device: str, rank: str) -> None:
    """Whatever number the worker has on its node: where each sees its own GPU alone, all have the index 0."""
    assert local_rank(torch.device(device)) == rank


# --- engines -----------------------------------------------------------------------------------------------------


def evaluation(*overrides: str) -> EvaluationConfig:
    mapping = {"name": "e", "models": {"a": "runs/a"}, "prompts": {"source": "toy"}, "reward_models": {"r": "toy"}}
    return parse_as(EvaluationConfig, mapping, list(overrides), "test")


@pytest.mark.parametrize(
    ("resources", "asked", "invariant"),
    [
        (Resources(1, 1, 1, 1, 1, 0.9), "true", True),
        (Resources(1, 1, 1, 0.7, 0.3, 0.63), "true", True),
        (Resources(1, 1, 1, 1, 1, 0.9), "false", False),
        (Resources(1, 1, 1, 0, 0, None), "true", False),  # vLLM's CPU backend would refuse to start
    ],
)
def test_engines_on_gpus_are_batch_invariant_where_asked(resources: Resources, asked: str, invariant: bool) -> None:
    found = pipeline.environment_of(evaluation(f"generation.deterministic={asked}"), resources)
    assert found == ENVIRONMENT | (BATCH_INVARIANT if invariant else {})


@pytest.mark.parametrize("takes_turns", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_engines_that_draw_rollouts_are_too(takes_turns: bool, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    found = environment_of(torch.device("cuda:1"), 3, 5, takes_turns=takes_turns, deterministic=asked)
    place = {"CUDA_VISIBLE_DEVICES": "6", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"} if takes_turns else {}
    assert found == ENVIRONMENT | place | (BATCH_INVARIANT if asked else {})
    on_cpu = environment_of(torch.device("cpu"), 3, 5, takes_turns=takes_turns, deterministic=asked)
    assert on_cpu == ENVIRONMENT | {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("capability", "told"),
    [((9, 0), ""), ((10, 0), ""), ((12, 0), ""), ((8, 9), "this GPU's is 8.9;"), ((8, 0), "this GPU's is 8.0;"),
     (None, "this GPU's is an unknown one;")],
)  # fmt: skip
def test_gpus_without_such_kernels_are_refused(capability: tuple[int, int] | None, told: str) -> None:
    lack = lacks_batch_invariance(capability)
    assert (told in lack) and bool(lack) == bool(told) and "\n" not in lack


def test_the_engine_that_has_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"^test: generation\.deterministic: is of vLLM's kernels"):
        evaluation("generation.deterministic=true", "generation.engine=transformers")


def test_what_was_drawn_with_it_is_apart_from_what_was_not(tmp_path: Path) -> None:
    """Else a folder could hold some of each, and not come out the same again."""
    policy = tmp_path / "policy"
    save(policy, opt(), seed=1)
    mapping = {
        "name": "e", "models": {"a": str(policy)}, "prompts": {"source": "toy-test", "limit": 2},
        "reward_models": {"r": "toy"}, "judging": {"compares": "rates"},
        "judges": {"j": {"kind": "vllm", "model": str(policy), "chat_template": "chatml"}},
        "storage": {"path": str(tmp_path)}, "sampling": {"max_tokens": 8},
    }  # fmt: skip
    found = [
        parse_as(EvaluationConfig, mapping, [f"generation.deterministic={asked}"], "test")
        for asked in ("false", "true")
    ]
    folders = [make_plan(each).policies["a"].responses.folder for each in found]
    identities = [find_judges(each)["j"].identity for each in found]
    assert folders[0] != folders[1]
    assert identities[1] == {**identities[0], "deterministic": True}
