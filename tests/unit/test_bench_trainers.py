"""The contestants of a benchmark: all compute the same loss on the same pairs, from the same weights."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import random_pairs
from torch import nn

from orpo_ray.bench.process import Finished
from orpo_ray.bench.task import Task, stretched
from orpo_ray.bench.trainers.own import Own, Watched
from orpo_ray.bench.trainers.padded import Padded
from orpo_ray.bench.trainers.plain import PlainTrainer
from orpo_ray.config import OrpoConfig, TrainConfig, parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.packing import pack
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_policy
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.terms import Totals

PAIRS, STEPS = 4, 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return parse_config(
        {
            "name": "bench",
            "model": {"name_or_path": "toy", "init": "random", "dtype": "float32"},
            "data": {"train": "toy", "limit": 100, "max_length": 60, "max_prompt_length": 40},
            "objective": {"lambda": 0.5},
            "optim": {"schedule": "constant", "warmup_steps": 0, "lr": 1e-3, "eps": 1e-3},
            "train": {"global_batch_size": PAIRS},
            "storage": {"path": str(tmp_path_factory.mktemp("bench"))},
        },
        [],
        "test",
    )  # fmt: skip


def task(config: TrainConfig, trainer: Any = "padded", stretch: int | None = None) -> Task:
    return Task(trainer, config, stretch, warm_up=1, steps=STEPS)


def gradients(config: TrainConfig, pairs: Any, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the packed policy, which is what every baseline is held against."""
    assert isinstance(config.objective, OrpoConfig)
    policy = load_policy(config.model, seed=config.seed).to(dtype)
    batch = pack(pairs, score_prompts=True)
    sums, lengths = policy(batch).view(len(pairs), 3), batch.lengths.view(len(pairs), 3)
    totals = Totals(len(pairs), int(lengths[:, :2].sum()))
    loss = orpo(sums, lengths, totals, lambda_=config.objective.lambda_)[0]
    loss.backward()
    return float(loss.detach()), _gradients(policy.model)


def _gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def compare(trainer: PlainTrainer, dtype: torch.dtype, bound: float) -> None:
    """The baseline's loss and every gradient within `bound` of ours, relative to the largest."""
    trainer.network.to(dtype)
    for step in range(2):
        pairs = trainer.task.pairs(step)
        expected_loss, expected = gradients(trainer.config, pairs, dtype)
        loss = trainer.loss(pairs)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected_loss, rel=bound)
        actual = _gradients(trainer.network)
        assert actual.keys() == expected.keys()
        scale = max(float(gradient.abs().max()) for gradient in expected.values())
        assert scale > 1e-3
        for name, gradient in expected.items():
            assert (actual[name] - gradient).abs().max() <= bound * scale, name
        trainer.network.zero_grad()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_the_padded_baseline_computes_our_loss(config: TrainConfig, dtype: torch.dtype, bound: float) -> None:
    compare(Padded(task(config)), dtype, bound)


def test_liger_computes_our_loss(config: TrainConfig) -> None:
    pytest.importorskip("liger_kernel", reason="Liger is not installed (pip install orpo_ray[bench])")
    from orpo_ray.bench.trainers.liger import Liger

    compare(Liger(task(config)), torch.float32, 1e-5)


class Turns:
    """Gives `steps` turns one after another, and keeps what they were ended with."""

    def __init__(self, steps: int, *, in_parts: bool = False) -> None:
        self.left, self.in_parts = steps, in_parts
        self.ended: list[dict[str, Any]] = []

    def __call__(self, **measured: Any) -> bool:
        self.ended.append(measured)
        if not self.left:
            raise Finished
        self.left -= 1
        return self.in_parts


def weights_after(contestant: Any, network: nn.Module) -> dict[str, torch.Tensor]:
    with pytest.raises(Finished):
        contestant.run(Turns(STEPS))
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def test_the_padded_baseline_goes_our_way(config: TrainConfig) -> None:
    own, padded = Own(task(config, "orpo_ray")), Padded(task(config))
    own.engine.policy.double()
    padded.network.double()
    start = {name: weight.detach().clone() for name, weight in padded.network.named_parameters()}
    ours, theirs = weights_after(own, own.engine.policy.model), weights_after(padded, padded.network)
    assert max(float((ours[name] - start[name]).abs().max()) for name in start) > 1e-4
    for name in start:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-9, rtol=0)


def test_trl_gets_the_same_pairs_in_the_same_order(config: TrainConfig) -> None:
    pytest.importorskip("trl", reason="TRL is not installed (pip install orpo_ray[bench])")
    from orpo_ray.bench.trainers.trl import Trl

    assignment = task(config, "trl")
    contestant = Trl(assignment)
    seen = []
    compute = contestant.trainer.get_batch_loss_metrics

    def watched(model: nn.Module, batch: dict[str, torch.Tensor], **options: Any) -> Any:
        loss, metrics = compute(model, batch, **options)
        seen.append((batch, float(loss.detach())))
        return loss, metrics

    contestant.trainer.get_batch_loss_metrics = watched
    theirs = weights_after(contestant, contestant.trainer.model)
    assert len(seen) == STEPS
    for step, (batch, loss) in enumerate(seen):
        pairs = assignment.pairs(step)
        assert len(pairs) == len(batch["chosen_input_ids"]) == PAIRS
        for row, (prompt, *responses) in enumerate(pairs):
            for side, response in zip(("chosen", "rejected"), responses, strict=True):
                real = batch[f"{side}_attention_mask"][row] == 1
                ids, labels = batch[f"{side}_input_ids"][row][real], batch[f"{side}_labels"][row][real]
                np.testing.assert_array_equal(ids, np.r_[prompt, response])
                np.testing.assert_array_equal(labels[labels != -100], response)
        if step == 0:
            assert loss == pytest.approx(gradients(config, pairs, torch.float32)[0], abs=1e-5)
    own = Own(task(config, "orpo_ray"))
    start = {name: weight.detach().clone() for name, weight in own.engine.policy.model.named_parameters()}
    ours = weights_after(own, own.engine.policy.model)
    assert max(float((ours[name] - start[name]).abs().max()) for name in start) > 1e-3
    for name in start:
        torch.testing.assert_close(theirs[name], ours[name], atol=2e-5, rtol=0)


def test_a_step_in_parts_is_the_same_step(config: TrainConfig) -> None:
    whole, parted = Own(task(config, "orpo_ray")), Own(task(config, "orpo_ray"))
    turns = Turns(STEPS, in_parts=True)
    with pytest.raises(Finished):
        parted.run(turns)
    for name, weight in weights_after(whole, whole.engine.policy.model).items():
        torch.testing.assert_close(dict(parted.engine.policy.model.named_parameters())[name], weight, atol=0, rtol=0)
    assert turns.ended[0] == {"parts": None}
    for ended in turns.ended[1:]:
        assert set(ended["parts"]) == {"data", "forward", "backward", "optimizer"}
        assert min(ended["parts"].values()) > 0
    assert Watched(parted.engine).parts(2.5)["data"] == 2.5  # what none of the others took


def test_only_pairs_are_compared_on(tmp_path: Path) -> None:
    ranked = [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], "Ada"], "ranks": [1, 2, 3]}
        for row in islice(toyworld.records("toy"), 40)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ranked))
    data = {"train": str(tmp_path / "x.jsonl"), "max_length": 60, "max_prompt_length": 30}
    for objective, comparisons, told in (
        ("orpo", "every_pair", True),
        ("kto", "every_pair", True),
        ("orpo", "best_against_worst", False),
    ):
        run = parse_config(
            {"name": "x", "model": {"name_or_path": "toy"}, "data": {**data, "comparisons": comparisons},
             "objective": {"name": objective}, "storage": {"path": str(tmp_path)}}, [], "test",
        )  # fmt: skip
        task = Task("orpo_ray", run, None, 0, 1)
        if told:
            with pytest.raises(UserError, match=r"x\.jsonl: trainers are compared on pairs; set data\.comparisons"):
                assert task.data
        else:
            assert {len(pair) for pair in task.pairs(0)} == {3}


def test_stretched_pairs() -> None:
    data = random_pairs(3).subset(np.array([2, 0, 1]))
    longer = stretched(data, [1, 1], 10)
    for pair in (0, 2):
        for before, after in zip(data.pair(pair), longer.pair(pair), strict=True):
            np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(longer.lengths()[1], 10 * data.lengths()[1])
    (prompt, chosen, _), (long_prompt, long_chosen, _) = data.pair(1), longer.pair(1)
    assert long_prompt[0] == prompt[0]
    np.testing.assert_array_equal(long_prompt[1 : len(prompt)], prompt[1:])
    assert prompt[0] not in long_prompt[1:] or prompt[0] in prompt[1:]
    assert long_chosen[-1] == chosen[-1]
    np.testing.assert_array_equal(long_chosen[: len(chosen) - 1], chosen[:-1])


def test_the_steps_of_a_stretched_task_have_one_long_pair_each(config: TrainConfig) -> None:
    even, long = task(config), task(config, "orpo_ray", stretch=3)
    for step in range(STEPS):
        for number, (plain, other) in enumerate(zip(even.pairs(step), long.pairs(step), strict=True)):
            assert [len(ids) for ids in other] == [len(ids) * (1 if number else 3) for ids in plain]
