"""Any number of responses behind a prompt: what is compared, and that it is what the same pairs one by one would be."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from families import FAMILIES, build, random_groups, random_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_pieces import config
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from orpo_ray.config import OptimConfig
from orpo_ray.config.objectives import OBJECTIVES, KtoConfig, RewardConfig, SftConfig
from orpo_ray.data.comparisons import Rule, compared, dense_ranks
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.mismatch import Mismatched
from orpo_ray.data.packing import pack
from orpo_ray.errors import UserError
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import PackedRewardModel
from orpo_ray.modeling.scorer import packed_scores
from orpo_ray.objectives.registry import Objective, build_objective
from orpo_ray.storage.run_folder import write_eval_scores
from orpo_ray.training.batches import micro_batches, plan
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.measuring import evaluate, mean_reward, scores
from orpo_ray.training.reference import reference_logps

CPU = torch.device("cpu")
RULES: list[Rule] = ["every_pair", "best_against_each", "best_against_worst"]
PAIRWISE = [each for each in OBJECTIVES if each not in (KtoConfig, SftConfig) and not each.rolls_out]


def network(objective: Objective, dtype: torch.dtype = torch.float64) -> PackedPolicy | PackedRewardModel:
    policy = build(FAMILIES["opt-pre-norm"], NAME, dtype)
    if objective.model == "policy":
        return PackedPolicy(policy).train()
    settings = {**FAMILIES["opt-pre-norm"].to_dict(), "num_labels": 1}
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(
        type(FAMILIES["opt-pre-norm"])(**settings), attn_implementation=NAME
    )
    return PackedRewardModel(classifier.to(dtype)).train()


def written_out(data: PairDataset) -> PairDataset:
    """Every comparison as a pair of its own."""
    found = data.compared()
    tokens: list[np.ndarray] = []
    bounds: list[list[int]] = []
    for record, (better, worse) in zip(found.records.tolist(), found.responses.tolist(), strict=True):
        prompt, *responses = data.pair(record)
        parts = [prompt, responses[better], responses[worse]]
        start = sum(map(len, tokens))
        bounds.append([start, *(start + np.cumsum([len(part) for part in parts])).tolist()])
        tokens.append(np.concatenate(parts))
    return PairDataset(np.concatenate(tokens), np.array(bounds), np.arange(len(bounds)))


def with_references(data: PairDataset, seed: int = 7) -> PairDataset:
    """Log-probs of another model's, in float64."""
    torch.manual_seed(seed)
    other = PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME, torch.float64))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.02)

    def known(part: Any) -> Any:
        table = reference_logps(part, np.arange(len(part)), other, 200).astype(np.float64)
        return replace(part, reference=table)

    whole = known(data)
    return whole if data.mismatched is None else replace(whole, mismatched=known(data.mismatched))


def step(
    objective: Objective, data: PairDataset, budget: int, ranks: int = 1
) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of one step over all of `data`, by definition: a sum over ranks and micro-batches."""
    model = network(objective)
    deal = {"score_prompts": objective.score_prompts, "ranks": ranks, "budget": budget}
    everything = np.arange(len(data))
    of_step: dict[Any, Tensor] = {}
    if objective.judges_labels:
        assert data.mismatched is not None
        ratio = 0.0
        for rank in range(ranks):
            work = plan(data.mismatched, everything, best_alone=False, rank=rank, **deal)
            for _, _, batch, rows, _ in micro_batches([work], CPU):
                with torch.no_grad():
                    sums = rows.lay_out(model(batch), batch.prompts)[:, 1:]
                ratio += float((sums - rows.columns["reference"]).sum()) * batch.weight
        of_step["baseline"] = torch.tensor(max(0.0, ratio / len(data)), dtype=torch.float64)
    loss, metrics = 0.0, dict[str, float]()
    for rank in range(ranks):
        work = plan(data, everything, best_alone=objective.best_alone, rank=rank, **deal)
        for _, _, batch, rows, _ in micro_batches([work], CPU):
            sums, lengths = (rows.lay_out(values, batch.prompts) for values in (model(batch), batch.lengths))
            share, told = objective.loss(sums, lengths, work.totals, {**rows.columns, **of_step})
            (share * batch.weight).backward()
            loss += float(share.detach()) * batch.weight
            for name, value in told.items():
                metrics[name] = metrics.get(name, 0.0) + float(value) * batch.weight
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss, gradient, metrics


def same(one: tuple[float, Tensor, dict[str, float]], other: tuple[float, Tensor, dict[str, float]]) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-10, rel=1e-10)
    assert one[1].abs().max() > 1e-4 and (one[1] - other[1]).abs().max() < 1e-10
    assert one[2] == pytest.approx(other[2], abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", PAIRWISE, ids=lambda kind: kind.model_fields["name"].default)
def test_a_group_is_its_pairs_written_out(kind: type, rule: Rule) -> None:
    objective = build_objective(kind())
    groups = random_groups(6, rule=rule)
    pairs = written_out(groups)
    if objective.needs_reference:
        groups, pairs = with_references(groups), with_references(pairs)
    same(step(objective, groups, budget=10_000), step(objective, pairs, budget=10_000))


CASES: dict[str, tuple[Any, Rule]] = {
    "orpo": (OBJECTIVES[0](), "every_pair"),
    "sft": (SftConfig(), "best_against_worst"),
    "plackett-luce": (RewardConfig(loss="plackett_luce"), "every_pair"),
    "kto": (KtoConfig(beta=0.7, desirable_weight=1.3, undesirable_weight=0.6), "labels"),
}


@pytest.mark.parametrize("case", CASES)
def test_neither_ranks_nor_micro_batches_change_a_step(case: str) -> None:
    settings, rule = CASES[case]
    objective, data = build_objective(settings), random_groups(9, rule=rule)
    if objective.judges_labels:
        data = with_references(replace(data, mismatched=Mismatched(data, 3, 30)))
    whole = step(objective, data, budget=10_000)
    for budget, ranks in ((40, 1), (10_000, 3), (60, 2), (1, 4)):
        same(whole, step(objective, data, budget, ranks))


@pytest.mark.parametrize("objective", [build_objective(CASES["orpo"][0]), build_objective(RewardConfig())])
def test_each_response_is_scored_as_if_alone(objective: Objective) -> None:
    """Also in a row with examples of other numbers of responses, in blocks and by single segments."""
    data, model = random_groups(12), network(objective).eval()
    longer = [[np.resize(part, 60) for part in data.pair(i)] if i % 3 == 0 else list(data.pair(i)) for i in range(12)]
    with torch.no_grad():
        together = model(pack(longer, score_prompts=False)).tolist()
        alone = [
            model(pack([[prompt, response]], score_prompts=False))[1]
            for prompt, *responses in longer
            for response in responses
        ]
    expected = iter(map(float, alone))
    numbers = [number for prompt, *responses in longer for number in (0.0, *(next(expected) for _ in responses))]
    assert together == pytest.approx(numbers, abs=1e-9)
    found = packed_scores(model, [longer[0], longer[1][:1], longer[2]], budget=50)
    assert list(map(len, found)) == [len(longer[0]) - 1, 0, len(longer[2]) - 1]


ranks = st.lists(st.integers(0, 4), min_size=1, max_size=6).map(lambda drawn: list(dense_ranks(sorted(drawn))))


@settings(max_examples=200, deadline=None)
@given(st.lists(ranks, min_size=1, max_size=5))
def test_what_is_compared(lists: list[list[int]]) -> None:
    width = max(map(len, lists))
    table = np.array([row + [-1] * (width - len(row)) for row in lists])

    def rows(rule: Rule) -> list[tuple[int, ...]]:
        found = compared(table, rule)
        return [(record, *each) for record, each in zip(found.records.tolist(), found.responses.tolist(), strict=True)]

    every = [(i, a, b) for i, row in enumerate(lists) for a, b in combinations(range(len(row)), 2) if row[a] < row[b]]
    assert rows("every_pair") == every
    assert rows("best_against_each") == [row for row in every if lists[row[0]][row[1]] == 0]
    assert rows("best_against_worst") == [(i, 0, row.index(row[-1])) for i, row in enumerate(lists)]
    assert rows("labels") == [(i, a) for i, row in enumerate(lists) for a in range(len(row))]
    found = compared(table, "every_pair")
    choices = [sum(row[:2] == winner for row in every) for winner in dict.fromkeys(row[:2] for row in every)]
    assert found.choices.tolist() == choices
    flat = [(i, number) for i, row in enumerate(lists) for number in range(1 + len(row))]
    positions = found.positions(np.array(list(map(len, lists))))
    assert [[flat[place] for place in row] for row in positions.tolist()] == [
        [(i, 0), (i, 1 + a), (i, 1 + b)] for i, a, b in every
    ]


def test_views_of_groups() -> None:
    data = random_groups(20)
    part = data.subset(np.array([7, 2, 19])).subset(np.array([2, 0]))
    assert len(part) == 2 and part.record_ids.tolist() == [19, 7]
    for place, record in enumerate((19, 7)):
        for mine, whole in zip(part.pair(place), data.pair(record), strict=True):
            np.testing.assert_array_equal(mine, whole)
        assert [n for n in part.lengths()[place].tolist() if n] == list(map(len, data.pair(record)))
    assert part.lengths(np.array([1]))[0, 0] == len(data.pair(7)[0])
    np.testing.assert_array_equal(part.counts(), data.counts()[[19, 7]])
    np.testing.assert_array_equal(part.ranks(np.array([0]))[0], data.ranks(np.array([19]))[0])
    assert data.amount() == f"20 prompts with {data.counts().sum()} responses" and random_pairs(3).amount() == "3 pairs"


class TestEvaluation:
    def table(self, objective: Objective, data: PairDataset) -> tuple[dict[str, Any], np.ndarray]:
        engine = TorchEngine(network(objective, torch.float32), OptimConfig())
        line, table = evaluate(engine, config("train.tokens_per_microbatch=70"), objective, data)
        return line, table.numpy()

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("kind", [OBJECTIVES[0], RewardConfig], ids=["orpo", "reward"])
    def test_is_that_of_the_pairs_written_out(self, kind: type, rule: Rule, tmp_path: Path) -> None:
        objective, groups = build_objective(kind()), random_groups(8, rule=rule)
        line, table = self.table(objective, groups)
        expected, by_pair = self.table(objective, written_out(groups))
        assert line == pytest.approx(expected, abs=1e-5)
        np.testing.assert_array_equal(np.isnan(table[:, 1:]), groups.ranks() < 0)
        write_eval_scores(tmp_path / "scores.parquet", groups, torch.from_numpy(table))
        rows = pq.read_table(tmp_path / "scores.parquet").to_pandas()
        assert rows["record"].tolist() == groups.compared().records.tolist()
        np.testing.assert_allclose(rows[["chosen", "rejected"]], by_pair[:, 1:], atol=1e-4)
        np.testing.assert_array_equal(
            rows[["prompt_tokens", "chosen_tokens", "rejected_tokens"]], written_out(groups).lengths()
        )

    def test_of_sft_counts_the_best_response_once(self) -> None:
        groups = random_groups(8, rule="best_against_worst")
        line, table = self.table(build_objective(SftConfig(nll_tokens="chosen")), groups)
        assert line["eval_nll"] == pytest.approx(-table[:, 1].sum() / groups.lengths()[:, 1].sum(), rel=1e-6)

    def test_the_mean_reward_is_that_of_all_responses(self) -> None:
        objective, groups = build_objective(RewardConfig()), random_groups(8)
        engine = TorchEngine(network(objective, torch.float32), OptimConfig())
        rewards = scores(engine, config(), objective, groups)[0][:, 1:]
        assert mean_reward(engine, config(), objective, groups) == pytest.approx(float(rewards.nanmean()), rel=1e-12)

    def test_of_labelled_responses(self, tmp_path: Path) -> None:
        objective, data = build_objective(KtoConfig(beta=0.7)), random_groups(8, rule="labels")
        data = with_references(replace(data, mismatched=Mismatched(data, 0, 30)))
        line, table = self.table(objective, data)
        assert data.mismatched is not None and data.mismatched.reference is not None and data.reference is not None
        model = network(objective, torch.float32)
        texts = [data.mismatched.pair(i) for i in range(8)]
        ratio = np.array(packed_scores(model, texts, 100)) - data.mismatched.reference
        point = max(0.0, float(ratio.mean()))
        assert line["eval_reference_point"] == pytest.approx(point, abs=1e-5)
        there, desirable = data.ranks() >= 0, data.ranks() == 0
        gains = np.where(desirable, 1, -1) * 0.7 * (table[:, 1:] - data.reference - point)
        assert line["eval_loss"] == pytest.approx((1 / (1 + np.exp(gains)))[there].mean(), abs=1e-6)
        assert line["eval_reward_accuracy"] == pytest.approx((gains > 0)[there].mean())
        rewards = 0.7 * (table[:, 1:] - data.reference)
        assert line["eval_rewards_chosen"] == pytest.approx(rewards[desirable & there].mean(), abs=1e-5)
        assert line["eval_rewards_rejected"] == pytest.approx(rewards[~desirable & there].mean(), abs=1e-5)
        write_eval_scores(tmp_path / "scores.parquet", data, torch.from_numpy(table))
        rows = pq.read_table(tmp_path / "scores.parquet").to_pandas()
        assert rows["desirable"].tolist() == desirable[there].tolist()
        np.testing.assert_array_equal(rows["response"], table[:, 1:][there])


class TestMismatched:
    def data(self, prompts: int = 5, records: int = 40, seed: int = 2) -> PairDataset:
        """Few prompts, so that partners often share them; a response says whose it is."""
        tokens = [part for i in range(records) for part in ([9, 3 + i % prompts], [50, i], [60, i, i])]
        ends = np.cumsum(list(map(len, tokens))).reshape(-1, 3)
        bounds = np.c_[np.r_[0, ends[:-1, 2]], ends]
        return PairDataset(np.concatenate(tokens).astype(np.int32), bounds, np.arange(records), rule="labels")

    def test_partners_have_another_prompt_and_are_those_of_the_seed(self) -> None:
        data = self.data()
        found = Mismatched(data, 4, 99)
        everything = np.arange(40)
        partners = found.partners(everything)
        assert ((partners - everything) % 5 != 0).all() and len(set(partners.tolist())) > 15
        numbers = set()
        for i in (3, 30, 17):
            prompt, response = found.pair(i)
            np.testing.assert_array_equal(prompt, data.pair(i)[0])
            assert response[1] == partners[i]
            assert found.lengths(np.array([i, 0]))[0].tolist() == [2, len(response)]
        numbers = {int(found.pair(i)[1][0]) for i in range(40)}
        assert numbers == {50, 60}, "any of the partner's responses"
        assert Mismatched(data, 4, 99).partners(everything[::-1]).tolist() == partners[::-1].tolist()
        assert Mismatched(data, 5, 99).partners(everything).tolist() != partners.tolist()

    def test_what_is_too_long_is_cut(self) -> None:
        found = Mismatched(self.data(), 0, 3)
        assert found.lengths(np.arange(40)).tolist() == [[2, 1]] * 40
        assert all(len(found.pair(i)[1]) == 1 for i in range(40))

    def test_one_prompt_has_no_partner(self) -> None:
        Mismatched(self.data(prompts=2), 0, 9).check("x")
        for data in (self.data(prompts=1), self.data(records=1)):
            with pytest.raises(UserError, match=r"^pairs\.jsonl: KTO's reference point needs .* one prompt alone"):
                Mismatched(data, 0, 9).check("pairs.jsonl")
