"""From pieces that are there to the numbers of an evaluation: what is not finite, lengths, several judges."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_evaluation_models import save_toy

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.errors import UserError
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.plan import OWN, EvaluationPlan, make_plan
from orpo_ray.evaluation.progress import counting, reporting
from orpo_ray.inference.scoring import Judged, PackedJudge, not_finite
from orpo_ray.report import write_evaluation_report
from orpo_ray.terminal import Console

NAN, INF = float("nan"), float("inf")
PROMPTS, ROUNDS = 40, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"policy": str(save_toy(folder / "policy")), "judge": str(save_toy(folder / "judge", labels=1))}


def config_of(storage: Path, models: dict[str, str]) -> EvaluationConfig:
    mapping = {
        "name": "e", "models": {"a": models["policy"], "b": models["policy"]}, "embedder": None,
        "prompts": {"source": "toy-test", "limit": PROMPTS}, "sampling": {"max_tokens": 12, "rounds": ROUNDS},
        "reward_models": {"truth": "toy", "r": models["judge"]}, "storage": {"path": str(storage)},
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, [], "test")


def fill(plan: EvaluationPlan, odd: dict[tuple[str, str, int], float]) -> None:
    """Pieces as engines and scorers would leave them, with these rewards by reward model, label and prompt."""
    rng = np.random.default_rng(0)
    for label, work in plan.policies.items():
        for block, prompts in enumerate(plan.blocks):
            work.responses.write(block, [
                {"prompt": i, "round": k, "text": " word" * int(rng.integers(1, 9)), "tokens": 7, "ended": "stop"}
                for i in sorted(prompts) for k in range(ROUNDS)
            ])  # fmt: skip
            assert work.log_probs is not None
            work.log_probs.write(block, [
                {"prompt": i, "chosen": -INF if (label, i) == ("a", 3) else -5.0, "rejected": -7.0,
                 "chosen_tokens": 4, "rejected_tokens": 5}
                for i in prompts
            ])  # fmt: skip
    for name, judge in plan.judges.items():
        for block, prompts in enumerate(plan.blocks):
            rows = []
            for i in prompts:
                places = [(label, 0) for label, _ in plan.own[i]]
                places += [(label, k) for label in plan.policies for k in range(ROUNDS)]
                for label, k in places:
                    value: float | None = float(rng.normal(label == "a"))
                    if k == 0:
                        value = odd.get((name, label, i), value)
                    if (name, label, i, k) == ("r", "b", 1, 1):
                        value = None  # too long
                    rows.append({"prompt": i, "model": label, "round": k, "reward": value})
            for who, pieces in judge.rewards.parts.items():
                pieces.write(
                    block, [row for row in rows if who == (row["model"] if row["model"] in plan.policies else OWN)]
                )


ODD = {
    ("r", "a", 5): INF,
    ("r", "b", 6): NAN,
    ("r", "b", 7): -INF,
    ("r", "chosen", 8): NAN,
    ("truth", "rejected", 2): INF,
}


@pytest.fixture(scope="module")
def finished(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation whose pieces are there: the command makes its numbers without a cluster."""
    config = config_of(tmp_path_factory.mktemp("runs"), models)
    fill(make_plan(config), ODD)
    return evaluate(config, Console(file=io.StringIO())).path


def strict(path: Path) -> dict[str, Any]:
    """JSON without the words NaN and Infinity, which other programs refuse."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path.name} holds {word}")

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


def test_rewards_that_are_not_finite_are_counted_and_end_nothing(finished: Path) -> None:
    found = strict(finished / "winrates.json")
    assert found["reward_models"]["r"]["not_scored"] == {"too long": 1, "not finite": 3}
    assert found["reward_models"]["truth"]["not_scored"] == {"too long": 0, "not finite": 0}
    pairs = {(pair["reward_model"], pair["model"]): pair for pair in found["pairs"]}
    everything = PROMPTS * ROUNDS
    assert sum(pairs["r", "a"][key] for key in ("wins", "ties", "losses")) == everything - 4
    assert sum(pairs["truth", "a"][key] for key in ("wins", "ties", "losses")) == everything
    assert found["reward_models"]["r"]["data_accuracy"]["pairs"] == PROMPTS - 1
    notes = "\n".join(found["notes"])
    assert (
        "The reward model r gave 4 responses a reward that is not finite (the first: inf to a, prompt 5, round 0)"
        in (notes)
    )
    assert "The reward model truth gave 1 responses a reward that is not finite (the first: inf to rejected" in notes
    assert "1 responses are too long for the reward model r" in notes


def test_log_probs_that_are_not_finite_are_counted(finished: Path) -> None:
    found = strict(finished / "winrates.json")
    odds = {label: (model["odds"]["pairs"], model["odds"]["not_finite"]) for label, model in found["models"].items()}
    assert odds == {
        "a": (PROMPTS - 1, 1), "b": (PROMPTS, 0),
    }  # fmt: skip
    assert any(
        note.startswith("a gives 1 of the data's pairs log-probs that are not finite") for note in found["notes"]
    )


def test_the_table_of_responses_keeps_what_was_given_and_the_page_opens(finished: Path) -> None:
    rows = pq.read_table(finished / "results.parquet").to_pylist()
    given = {(row["model"], row["prompt"]): row["reward:r"] for row in rows if row["round"] == 0}
    assert given["a", 5] == INF and given["b", 7] == -INF
    assert np.isnan(given["b", 6]) and np.isnan(given["chosen", 8])
    assert [row["reward:r"] for row in rows if (row["model"], row["prompt"], row["round"]) == ("b", 1, 1)] == [None]
    assert "1 too long, 3 not finite" in write_evaluation_report(finished).read_text()


def test_holm_counts_every_reward_model_and_lengths_are_in_characters(finished: Path) -> None:
    found = strict(finished / "winrates.json")
    by_judge = {pair["reward_model"]: pair for pair in found["pairs"] if pair["model"] == "a"}
    p = sorted(pair["p_value"] for pair in by_judge.values())
    assert sorted(pair["p_holm"] for pair in by_judge.values()) == pytest.approx(
        [min(1, 2 * p[0]), max(2 * p[0], p[1])]
    )
    for pair in found["pairs"]:  # all have 7 tokens, so token counts would leave the win-rate as it is
        low, high = pair["length_controlled_ci95"]
        assert low < pair["length_controlled"] < high
        assert pair["length_controlled"] != pair["win_rate"]
    characters = [
        len(row["text"]) for row in pq.read_table(finished / "results.parquet").to_pylist() if row["model"] == "a"
    ]
    assert found["models"]["a"]["mean_characters"] == pytest.approx(np.mean(characters))


def test_numbers_of_an_earlier_version_are_made_anew_from_the_pieces(finished: Path, models: dict[str, str]) -> None:
    config = config_of(finished.parent, models)
    first = (finished / "winrates.json").read_bytes()
    told = io.StringIO()
    evaluate(config, Console(file=told))
    assert "already finished" in told.getvalue()
    (finished / "winrates.json").write_text(json.dumps({"key": "of an earlier version"}))
    evaluate(config, Console(file=io.StringIO()))
    assert (finished / "winrates.json").read_bytes() == first


def test_results_of_other_settings_are_not_replaced_without_a_word(models: dict[str, str], tmp_path: Path) -> None:
    for temperature, said in ((1.0, ""), (0.5, "other settings (sampling.temperature); they are made anew")):
        config = config_of(tmp_path, models)
        config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"temperature": temperature})})
        fill(make_plan(config), ODD)
        told = io.StringIO()
        evaluate(config, Console(file=told, width=400))
        assert ("they are made anew" in told.getvalue()) == bool(said)
        assert said in told.getvalue()


def test_a_reward_model_without_a_finite_reward_is_refused_with_its_first_block(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    plan = make_plan(config_of(tmp_path, models))
    model = plan.judges["r"].model
    assert model is not None
    judge = PackedJudge(model, None, 1000, torch.device("cpu"))
    block = [Judged(prompt, ()) for prompt in plan.prompts[:4]]
    given = judge.scores
    monkeypatch.setattr(judge, "scores", lambda rows: [[NAN for _ in values] for values in given(rows)])
    with pytest.raises(
        UserError, match=r"^reward_models\.r: none of its first 8 rewards is finite \(they begin with nan"
    ):
        judge.rewards(block)
    monkeypatch.setattr(judge, "scores", lambda rows: [[INF, *values[1:]] for values in given(rows)])
    assert not_finite({"r": judge.rewards(block), "whole": [[1.0, None]]}) == {"r": 4}


def test_rewards_that_are_not_finite_are_told_with_the_first_of_them() -> None:
    told = io.StringIO()
    with counting("e", {"judged": ("prompts judged", 48)}, console := Console(file=told, width=200)) as count:
        progress = reporting(count, console)
        progress(judged=32, not_finite={})
        progress(judged=8, not_finite={"r": 3})
        progress(judged=8, not_finite={"r": 1})
    assert told.getvalue().count("note: the reward model r gives rewards that are not finite") == 1


def test_a_comparison_beside_training_without_any_reward_says_why() -> None:
    from orpo_ray.evaluation.in_training import _metrics

    pair = {"model": "policy", "win_rate": 0.6, "ci95": [0.5, 0.7]}
    assert _metrics({"pairs": [pair], "notes": []})["eval_win_rate_high"] == 0.7
    with pytest.raises(UserError, match=r"^eval\.win_rate: no prompt has a reward of both models: 64 .* too long"):
        _metrics({"pairs": [], "notes": ["64 responses are too long for the reward model r."]})
