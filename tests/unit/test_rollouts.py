"""Steps over rollouts: what they compute, what is kept, what a run that continues repeats (issue 19)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import random_pairs
from live_models import COMMON
from rollout_runs import InProcess, Trained, settings
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config

from orpo_ray.data.comparisons import best
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.rollouts import Rollouts, as_pairs
from orpo_ray.data.schedule import RoundSchedule
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Sample
from orpo_ray.inference.plain_generation import load_network
from orpo_ray.modeling.digests import network_digest
from orpo_ray.modeling.reward import StateDict
from orpo_ray.training.batches import rows_of, totals_of
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.loop import State
from orpo_ray.training.round import first_of_each, learned_scores
from orpo_ray.training.source import Arrays

KINDS: dict[str, tuple[str, ...]] = {
    "ppo": (),
    "rloo": ("objective={name: rloo}", "rollouts.samples=3"),
    "grpo": ("objective={name: grpo}", "rollouts.samples=3"),
    "online": ("objective={name: online, pairs: {name: dpo}}", "rollouts.samples=3"),
    "online-orpo": ("objective={name: online, pairs: {name: orpo}}", "rollouts.samples=3"),
}

# Rounds --------------------------------------------------------------------------------------------------------------


def test_rounds_take_prompts_epoch_behind_epoch_and_passes_all_of_a_round() -> None:
    schedule = RoundSchedule(10, 4, 2, 3, epochs=2, max_steps=None, seed=5)
    assert (schedule.steps_per_pass, schedule.steps_per_round, schedule.total_steps) == (2, 6, 30)
    taken = np.concatenate([schedule.indices(number) for number in range(5)])
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert list(taken[:10]) != list(taken[10:])
    steps = schedule.steps(3, 4)
    for number in range(3):
        assert sorted(np.concatenate(steps[2 * number : 2 * number + 2])) == list(range(4))
    assert all((a == b).all() for a, b in zip(steps, schedule.steps(3, 4), strict=True))
    assert any((a != b).any() for a, b in zip(steps, schedule.steps(2, 4), strict=True))
    assert RoundSchedule(10, 4, 2, 3, 2, max_steps=7, seed=5).total_steps == 7


def test_columns_of_tokens_follow_their_records_wherever_they_are_packed() -> None:
    def ids(*numbers: int) -> Any:
        return np.array(numbers, np.int32)

    data = Rollouts(
        [ids(1), ids(2), ids(3)], [[ids(4, 5), ids(6)], [ids(7)], [ids(8, 9, 10)]],
        {"advantages": np.arange(7, dtype=np.float32)},
    )  # fmt: skip
    rows = rows_of(data, np.array([2, 0]), best_alone=False)
    assert rows.columns["advantages"].tolist() == [4, 5, 6, 0, 1, 2]
    assert rows.records.tolist() == [2, 0, 0]
    totals = totals_of(data, np.array([2, 0]), best_alone=False, score_prompts=False)
    assert (totals.pairs, totals.nll_tokens, totals.records) == (3, 6, 2), "responses, their tokens, prompts"
    assert data.lengths().tolist() == [[1, 2, 1], [1, 1, 0], [1, 3, 0]]


def test_pairs_of_rollouts_are_pairs_as_any() -> None:
    pairs = as_pairs(
        [np.array([1, 2], np.int32), np.array([3], np.int32)], [np.array([4], np.int32), np.array([5, 6], np.int32)],
        [np.array([7, 8], np.int32), np.array([9], np.int32)], np.zeros((2, 2), np.float32),
    )  # fmt: skip
    assert [[part.tolist() for part in pairs.pair(i)] for i in (0, 1)] == [[[1, 2], [4], [7, 8]], [[3], [5, 6], [9]]]
    assert pairs.are_pairs and best(2).records.tolist() == [0, 1]


# What is computed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_begins_at_its_reference(kind: str, tmp_path: Path) -> None:
    config = settings(tmp_path, *KINDS[kind], "train.max_steps=4")
    trained = Trained(config)
    first = trained.rounds[0]
    assert first["kl"] == 0, "the reference is the policy, in the same rows"
    assert first["mismatch_max"] < 1e-4
    assert first["response_tokens"] > 0 and 0 <= first["share_cut"] <= 1
    if kind in {"ppo", "rloo", "grpo"}:
        assert first["ratio"] == pytest.approx(1, abs=1e-6) and first["clip_fraction"] == 0
        assert first["approx_kl"] < 1e-10
    assert len(trained.rounds) == (1 if kind == "ppo" else 2)
    assert all(np.isfinite(value) for line in trained.lines for value in line.values())
    assert {"eval_reward", "eval_kl", "eval_response_tokens", "eval_share_cut", "eval_entropy"} <= {
        *trained.evaluations[0]
    }
    if kind != "ppo":
        assert trained.rounds[1]["kl"] != 0


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_temperature_is_on_both_sides(temperature: float, tmp_path: Path) -> None:
    """trl#4159: missing on one, the first ratio is not 1."""
    trained = Trained(settings(tmp_path, f"rollouts.temperature={temperature}", "train.max_steps=1"))
    assert trained.rounds[0]["mismatch_max"] < 1e-4
    assert trained.rounds[0]["ratio"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["ppo", "rloo", "grpo", "online"])
def test_gradients_do_not_depend_on_how_a_step_is_cut(kind: str, tmp_path: Path) -> None:
    class Watched(TorchEngine):
        gradients: dict[str, Tensor]

        def step(self, lr: float) -> Tensor:
            named = self.policy.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
            return super().step(lr)

    found = []
    for budget in (100_000, 60):
        config = settings(
            tmp_path / str(budget), *KINDS[kind], "train.max_steps=1",
            f"train.tokens_per_microbatch={budget}", "optim.max_grad_norm=null",
        )  # fmt: skip
        trained = Trained(config, engine=lambda policy, config=config: Watched(policy, config.optim))  # type: ignore[misc]
        assert isinstance(trained.engine, Watched)
        found.append(trained.engine.gradients)
    whole, cut = found
    assert whole.keys() == cut.keys() and max(float(g.abs().max()) for g in whole.values()) > 1e-4
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-6


class Shifted(InProcess):
    """An engine whose log-probs are half a nat too low."""

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
        for found in super().draw(requests):
            yield [sample._replace(logps=[logp - 0.5 for logp in sample.logps]) for sample in found]


def shifted_round(folder: Path, *overrides: str) -> Arrays:
    """What the second round is trained on, which the policy has moved in."""
    config = settings(folder, *KINDS["grpo"], "rollouts.importance_cap=9", "train.max_steps=3", *overrides)
    held = Trained(config, writers=Shifted).source._round
    assert held is not None and held.number == 1
    return held.arrays


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    return shifted_round(tmp_path_factory.mktemp("shifted"))


@pytest.mark.parametrize(
    "override",
    ["objective.kl_coefficient=2", "rollouts.clip_scores=0.5", "rollouts.cut_penalty=3", "rollouts.importance_cap=1.1"],
)
def test_bug_coefficient_of_a_run_read_and_never_used(override: str, shifted: Arrays, tmp_path: Path) -> None:
    """slime#397: each is in what a round is trained on."""
    column = "importance" if "cap" in override else "advantages"
    assert not np.array_equal(shifted[column], shifted_round(tmp_path, override)[column])


def test_bug_penalty_of_a_cut_response_in_the_place_of_its_score(tmp_path: Path) -> None:
    """trl#2012: it is subtracted, from what is left of a score that is clipped, and responses that were cut are
    counted."""
    config = settings(tmp_path, "rollouts.cut_penalty=2", "rollouts.clip_scores=5", "train.max_steps=1")
    assert config.rollouts is not None
    learned = learned_scores([3.0, 3.0, 9.0, None], [False, True, True, True], config.rollouts)
    np.testing.assert_array_equal(learned, [3.0, 1.0, 3.0, np.nan])
    trained = Trained(config)
    cut = [line["ended"] == "length" for line in lines_of(tmp_path / "run" / "rollouts" / "000000.jsonl")]
    assert trained.rounds[0]["share_cut"] == sum(cut) / len(cut) > 0


class Odd(InProcess):
    """An engine that draws what no text becomes: a special token first."""

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
        for found in super().draw(requests):
            yield [sample._replace(ids=[self.tokenizer.eos_token_id, *sample.ids[1:]]) for sample in found]


def test_bug_text_of_a_response_encoded_again(tmp_path: Path) -> None:
    """SkyRL#123, trl#5224: trained on are the token ids that were drawn."""
    trained = Trained(settings(tmp_path, "train.max_steps=1"), writers=Odd)
    lines = sorted(lines_of(tmp_path / "run" / "rollouts" / "000000.jsonl"), key=lambda line: int(line["prompt"]))
    held, tokenizer = trained.source._round, trained.writers.tokenizer
    assert held is not None
    assert held.arrays["ids"].tolist() == [id for line in lines for id in line["ids"]]
    texts = [tokenizer.decode(line["ids"], skip_special_tokens=True) for line in lines]
    assert all(tokenizer(text)["input_ids"] != line["ids"] for text, line in zip(texts, lines, strict=True))


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Of the samples of a round."""
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


class Stale(InProcess):
    """An engine that goes on with the weights that it began with (trl#5312, trl#4571)."""

    def load(self, weights: StateDict, step: int) -> str:
        if self.engine is None:
            super().load(weights, step)
        return network_digest(self._policy.model, dict(weights))


def test_an_engine_that_serves_old_weights_is_told(tmp_path: Path) -> None:
    config = settings(tmp_path, *KINDS["grpo"], "train.max_steps=6")
    stale = Trained(config, writers=Stale)
    assert [line["mismatch_max"] > 1e-4 for line in stale.rounds] == [False, True, True]
    [said] = stale.writers.said
    assert said.startswith("round 1: the engine's log-probs are not the trainer's: mismatch_max is ")
    assert Trained(settings(tmp_path / "b", *KINDS["grpo"], "train.max_steps=6")).writers.said == []


# What a run that continues repeats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "steps", "begins"), [("ppo", 11, (9, 3)), ("grpo", 7, (3,)), ("online", 7, (3,))])
def test_a_resumed_run_ends_in_the_same_bits(kind: str, steps: int, begins: Sequence[int], tmp_path: Path) -> None:
    """From the middle of a round, whose rollouts, advantages and old log-probs are of a policy that is gone."""
    overrides = (*KINDS[kind], f"train.max_steps={steps}")
    if kind == "ppo":
        overrides += ("objective.kl_target=0.001", "objective.kl_horizon=20")
    whole = Trained(settings(tmp_path / "whole", *overrides))
    config = settings(tmp_path / "again", *overrides)
    Trained(config, stop_after=begins[0])
    for begin in begins:
        again = Trained(config, begin=begin)
        assert again.state.step == steps
        assert [line["step"] for line in again.lines] == list(range(begin + 1, steps + 1))
        assert [line["loss"] for line in again.lines] == [line["loss"] for line in whole.lines][begin:]
        assert again.weights() == whole.weights()
        assert again.state.source == whole.state.source


def test_what_was_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    config = settings(tmp_path, "train.max_steps=2")
    whole = Trained(config)
    file = tmp_path / "run" / "rollouts" / "000000.jsonl"
    head, *rows = file.read_text().splitlines()
    assert len(rows) == 8
    file.write_text("\n".join([head, *rows[:5], rows[5][:20]]))  # killed in the middle of a line
    again = Trained(config)
    held = {(json.loads(row)["prompt"], json.loads(row)["sample"]) for row in rows[:5]}
    asked = {(one.prompt, one.round) for one in again.writers.drawn[4:7]}
    assert len(again.writers.drawn) == 4 + 3 + 4, "two evaluations, and what was left of the round"
    assert not held & asked
    assert again.weights() == whole.weights()
    file.write_text("\n".join([json.dumps({"drawn_by": "another policy"}), *rows]) + "\n")
    assert len(Trained(config).writers.drawn) == 4 + 8 + 4


def test_an_adapted_coefficient_travels(tmp_path: Path) -> None:
    config = settings(tmp_path, "objective.kl_target=1e-6", "objective.kl_horizon=20", "train.max_steps=17")
    trained = Trained(config)
    first, second, third = [line["kl_coefficient"] for line in trained.rounds]
    assert first == 0.1
    assert second == pytest.approx(first * (1 - 0.2 * 8 / 20)), "KL 0 is below any target"
    assert third == pytest.approx(second * (1 + 0.2 * 8 / 20)), "by now it is above"
    assert trained.state.source == {"kl_coefficient": pytest.approx(third * (1 + 0.2 * 8 / 20))}
    assert State.from_json(json.loads(json.dumps(vars(trained.state)))) == trained.state


def test_rounds_that_no_checkpoint_needs_go(tmp_path: Path) -> None:
    config = settings(tmp_path, *KINDS["grpo"], "train.max_steps=8")
    trained = Trained(config)
    folder = tmp_path / "run" / "rollouts"
    assert sorted(path.name for path in folder.glob("*.jsonl")) == [f"{i:06d}.jsonl" for i in range(4)]
    trained.source._files.forget_before(lambda: 3)
    assert [path.name for path in folder.glob("0*")] == ["000003.jsonl"]


# Scores --------------------------------------------------------------------------------------------------------------


def test_responses_without_a_score_are_counted_and_left_out(tmp_path: Path) -> None:
    trained = Trained(settings(tmp_path, "rollouts.prompts=16", "train.max_steps=4", rule="some"))
    first = trained.rounds[0]
    assert 0 < first["not_finite"] < 16
    assert all(np.isfinite(line["loss"]) for line in trained.lines)


def test_held_out_responses_without_a_score_are_told(tmp_path: Path) -> None:
    """The mean that chooses the model is of the others."""
    trained = Trained(settings(tmp_path, "train.max_steps=1", "rollouts.eval_prompts=16", rule="some"))
    for line in trained.evaluations:
        assert 0 < line["eval_not_finite"] < 16 and line["eval_too_long"] == 0


@pytest.mark.parametrize("pairs", ["dpo", "ipo"])
def test_kl_of_a_run_is_of_its_rounds_alone(pairs: str, tmp_path: Path) -> None:
    """An objective of pairs with a reference has another `kl`, per token of chosen responses."""
    trained = Trained(settings(
        tmp_path, f"objective={{name: online, pairs: {{name: {pairs}}}}}", "rollouts.samples=2", "train.max_steps=4",
    ))  # fmt: skip
    assert ["kl" in line for line in trained.lines] == ["round" in line for line in trained.lines]


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_engine_and_trainer_cap_attention(packing: str, tmp_path: Path) -> None:
    """Gemma 2's: transformers' sdpa, its default, leaves the cap out."""
    shape = Gemma2Config(
        **COMMON, num_key_value_heads=1, head_dim=32, intermediate_size=96, query_pre_attn_scalar=32,
        attn_logit_softcapping=0.5,
    )  # fmt: skip
    config = settings(tmp_path, *KINDS["grpo"], "train.max_steps=1", f"model.packing={packing}", network=shape)
    trained = Trained(config)
    assert trained.rounds[0]["mismatch_max"] < 1e-4
    eager = AutoModelForCausalLM.from_pretrained(config.model.name_or_path, attn_implementation="eager")
    ids = torch.arange(3, 43)[None]
    given = load_network(config.model, config.model.name_or_path)(ids).logits
    assert torch.allclose(given, eager(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_scores_past_float32_are_not_finite(kind: str, tmp_path: Path) -> None:
    """Means of them overflow, and GRPO's advantages over their spread are 0."""
    first = Trained(settings(tmp_path, *KINDS[kind], "train.max_steps=1", rule="huge")).rounds[0]
    assert 0 < first["not_finite"] < 24 and abs(first["reward/rule"]) < 3.5e38 and first["reward"] == 1
    assert np.isfinite(first["loss"])


def test_nothing_that_can_be_trained_on_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^round 0: 0 of 8 prompts .* 8 scores are not finite$"):
        Trained(settings(tmp_path, "train.max_steps=1", rule="none"))


class Lost(InProcess):
    """An engine that dies after its first samples, once."""

    deaths = 0

    def draw(self, requests: list[Request]) -> Any:  # type: ignore[override]
        for found in super().draw(requests):
            if len(requests) > 4 and not self.deaths:
                self.deaths = 1
                yield [Sample(*found[0])]
                raise ConnectionError("gone")
            yield found


def test_a_worker_that_dies_in_mid_rollout_goes_on_where_it_was(tmp_path: Path) -> None:
    config = settings(tmp_path / "a", "train.max_steps=3")
    with pytest.raises(ConnectionError):
        Trained(config, writers=Lost)
    again = Trained(config)
    assert len(again.writers.drawn) == 4 + 7 + 4
    assert again.weights() == Trained(settings(tmp_path / "b", "train.max_steps=3")).weights()


def test_held_out_prompts_are_of_all_sources() -> None:
    """A large first one would be all that an evaluation asks."""
    none = random_pairs(1).subset(np.arange(0))
    parts = JoinedPairs(("a", "b", "none", "c"), (random_pairs(12), random_pairs(6), none, random_pairs(6)))
    assert first_of_each(parts, 8).tolist() == [0, 1, 2, 3, 12, 13, 18, 19]
    assert first_of_each(parts, 99).tolist() == list(range(24))
    assert first_of_each(random_pairs(5), 3).tolist() == [0, 1, 2]  # type: ignore[arg-type]
