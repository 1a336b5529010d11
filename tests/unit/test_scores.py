"""What `orpo-ray score` reads, and what it says of the rewards, without a cluster."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from orpo_ray.config import ScoreConfig, load_any, parse_as
from orpo_ray.config.evaluation import PromptsConfig, ScoringConfig
from orpo_ray.config.score import ScorersScaling
from orpo_ray.data.prompts import readable
from orpo_ray.data.responses import read_responses
from orpo_ray.errors import UserError
from orpo_ray.evaluation.cluster import scorers_alone
from orpo_ray.evaluation.score import ScorePlan, make_score_plan, rewards_of
from orpo_ray.evaluation.scores import print_scores, scores_table, summary
from orpo_ray.evaluation.work import Judgements, Responses
from orpo_ray.inference.scoring import Scorer
from orpo_ray.statistics.accuracy import accuracy, margin, wilson
from orpo_ray.statistics.reward_bench import SECTIONS, benchmark_of, first, second, ties
from orpo_ray.terminal import Console


def write(folder: Path, records: list[dict[str, Any]]) -> str:
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# --- read ----------------------------------------------------------------------------------------------------------

# A record, its prompt and responses as they are found, and how many of these are chosen.
SHAPES: dict[str, tuple[dict[str, Any], Any, list[Any], int | None]] = {
    "pair": ({"prompt": "Q", "chosen": "a", "rejected": "b"}, "Q", ["a", "b"], 1),
    "pair of messages": (
        {"chosen": user("Q") + assistant("a"), "rejected": user("Q") + assistant("b")},
        user("Q"), [assistant("a"), assistant("b")], 1,
    ),
    "RewardBench 2": (
        {"prompt": "Q", "chosen": ["a", "b"], "rejected": ["c"], "num_correct": 2},
        user("Q"), [assistant("a"), assistant("b"), assistant("c")], 2,
    ),
    "several rejected": ({"prompt": "Q", "chosen": "a", "rejected": ["b", "c"]}, "Q", ["a", "b", "c"], 1),
    "responses": ({"prompt": "Q", "responses": ["a", "b", "c"]}, "Q", ["a", "b", "c"], None),
    "ranked": ({"prompt": "Q", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]}, "Q", ["b", "a", "c"], 1),
    "rated, two of them best": (
        {"prompt": "Q", "responses": ["a", "b", "c"], "scores": ["1", "2", "2"]}, "Q", ["b", "c", "a"], 2,
    ),
    "rated alike": ({"prompt": "Q", "responses": ["a", "b"], "ratings": [1, 1]}, "Q", ["a", "b"], None),
    "one response": ({"prompt": "Q", "response": "a"}, "Q", ["a"], None),
    "AlpacaEval": ({"instruction": "Q", "output": "a", "generator": "x"}, user("Q"), [assistant("a")], None),
    "messages": ({"prompt": user("Q"), "response": assistant("a")}, user("Q"), [assistant("a")], None),
    "a text beside messages": ({"prompt": user("Q"), "responses": ["a"]}, user("Q"), [assistant("a")], None),
    "messages beside a text": (
        {"prompt": "Q", "responses": [assistant("a"), "b"]}, user("Q"), [assistant("a"), assistant("b")], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_of_each_shape(shape: str, tmp_path: Path) -> None:
    value, prompt, responses, chosen = SHAPES[shape]
    source = write(tmp_path, [{**value, "id": 7, "subset": "s", "nested": {"a": 1}}])
    [record], account = read_responses(PromptsConfig(source=source), with_messages=True)
    assert (record.prompt.as_found.prompt, list(record.prompt.as_found.completions)) == (prompt, responses)
    assert (record.index, record.chosen, account.kept) == (0, chosen, 1)
    assert {"id": 7, "subset": "s"}.items() <= record.columns.items()
    assert not {"nested", "prompt", "instruction", "response", "output"} & record.columns.keys()
    assert record.prompt.as_messages is not None
    assert record.prompt.as_messages.prompt == user("Q")
    assert [readable(turns) for turns in record.prompt.as_messages.completions] == [
        readable(turns) for turns in responses
    ]


def test_what_goes_along_is_not_said_to_be_unread_and_the_rest_is(tmp_path: Path) -> None:
    answered = [{"from": "helper", "value": "a", "mood": "calm"}]
    source = write(tmp_path, [{"prompt": "Q", "response": answered, "output": "b", "id": 7, "nested": {"a": 1}}])
    settings = PromptsConfig(source=source, roles={"helper": "assistant"})
    [record], account = read_responses(settings, with_messages=True)
    assert record.prompt.as_found.completions == (assistant("a"),)
    assert record.columns == {"id": 7}
    assert account.unread == {"response[].mood": 1, "output": 1, "nested": 1}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Q"}, "no response: none of the fields chosen, responses, response, output"),
        ({"response": "a"}, "no prompt: none of the fields prompt, instruction"),
        ({"prompt": "Q", "responses": []}, "no response: responses is no list, or an empty one"),
        ({"prompt": "Q", "responses": ["a", 3]}, r"not text: responses\[1\] is int"),
        ({"prompt": " ", "response": "a"}, "empty prompt"),
        ({"prompt": "Q", "chosen": ["a"], "rejected": ["b", None]}, r"not text: rejected\[1\] is null"),
    ],
)
def test_a_record_that_cannot_be_scored_is_named(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"prompt": "Q", "response": "a"}
    source = write(tmp_path, [good, record])
    with pytest.raises(UserError, match=rf"records\.jsonl:2: ({message}).*set prompts\.on_bad_record=quarantine"):
        read_responses(PromptsConfig(source=source), with_messages=False)
    found, account = read_responses(PromptsConfig(source=source, on_bad_record="quarantine"), with_messages=False)
    assert (len(found), account.quarantined.total()) == (1, 1)


# --- counted -------------------------------------------------------------------------------------------------------


def test_the_margin_is_that_of_the_worst_chosen_over_the_best_other() -> None:
    assert margin([1.0, 0.5], 1) == 0.5
    assert margin([3.0, 2.0, 1.0, 1.5], 2) == 0.5
    assert np.isnan(margin([3.0, None, 1.0], 2))
    assert np.isnan(margin([3.0, 2.0, None], 2))


def test_wilson_is_that_of_whole_counts_and_goes_between_them() -> None:
    for correct, n in ((10, 15), (0, 5), (7, 7), (500, 1000)):
        interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
        assert wilson(correct / n, n) == pytest.approx((interval.low, interval.high))
    assert wilson(10 / 15, 15)[0] < wilson(10.5 / 15, 15)[0] < wilson(11 / 15, 15)[0], "a tie counts half"


def test_accuracy_counts_ties_as_wrong_and_prompts_as_units() -> None:
    found = accuracy(np.array([1.0, 2e-5, -1.0, np.nan, 0.5]), list("abcde"))
    assert found is not None
    assert (found.records, found.correct, found.ties, found.accuracy, found.prompts) == (4, 2, 1, 0.5, 4)
    assert found.ci95[0] < 0.5 < found.ci95[1]
    assert accuracy(np.array([np.nan]), ["a"]) is None
    # A hundred records of four prompts say less than a hundred of as many.
    margins = np.where(np.arange(100) % 2, 1.0, -1.0)
    apart = accuracy(margins, [str(i) for i in range(100)])
    alike = accuracy(margins, [str(i // 2 * 2 % 8 + i % 2) for i in range(100)])
    assert apart is not None and alike is not None
    assert alike.ci95[1] - alike.ci95[0] > 2 * (apart.ci95[1] - apart.ci95[0])


def test_reward_bench_weighs_subsets_in_a_section_and_not_sections() -> None:
    assert benchmark_of({"hep-go", "donotanswer"}) == 1
    assert benchmark_of({"Math", "Ties"}) == 2
    assert benchmark_of({"Math", "hep-go"}) is benchmark_of(set()) is None
    correct = {subset: [True] * 10 for section in SECTIONS.values() for subset in section}
    correct |= {"alpacaeval-easy": [False] * 60, "math-prm": [False] * 447, "hep-go": [True] * 164}
    correct |= {f"hep-{name}": [True] * 164 for name in ("cpp", "java", "js", "python", "rust")}
    found = first(correct)
    assert found["sections"] == {
        "Chat": pytest.approx(0.4), "Chat Hard": 1.0, "Safety": 1.0, "Reasoning": pytest.approx(0.5),
    }  # fmt: skip
    assert found["score"] == pytest.approx((0.4 + 1 + 1 + 0.5) / 4)
    assert first({"math-prm": [True]}) == {
        "benchmark": "RewardBench", "score": None,
        "sections": {"Chat": None, "Chat Hard": None, "Safety": None, "Reasoning": 1.0},
    }  # fmt: skip


def test_reward_bench_2_is_the_mean_of_its_subsets() -> None:
    correct = {name: [True, False] for name in ("Factuality", "Focus", "Math", "Precise IF", "Safety")}
    records = [("ref:1", [5.0, 1.0], 1), ("tied:1", [5.0, 4.0, 1.0], 2)]
    tied = 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * np.tanh(3 / 1 - 1)
    assert second(correct, records)["subsets"]["Ties"] == pytest.approx(tied)
    assert second(correct, records)["score"] == pytest.approx((2.5 + tied) / 6)
    assert second(correct, [])["score"] is None


@pytest.mark.parametrize(
    ("ref", "tied", "chosen", "expected"),
    [
        # Of the tied prompt the gap is 1 and that among its right answers 2: neither margin counts.
        ([3.0, 0.0], [4.0, 2.0, 1.0], 2, 0.6 + 0.01 * np.tanh(0.5 - 1)),
        # The tied prompt's own gap of 3 is wide enough, the reference's of 0.5 is not.
        ([1.0, 0.5], [5.0, 4.0, 1.0], 2, 0.6 + 0.2 + 0.01 * np.tanh(0.5 - 1)),
        # A wrong answer above the only right one of the reference.
        ([0.0, 1.0], [5.0, 4.0, 1.0], 2, 0.3 + 0.2 + 0.01 * np.tanh(-1 - 1)),
        # Right answers that are all alike: x / 0.
        ([1.0, 0.0], [4.0, 4.0, 1.0], 2, 1.0 + 0.01),
    ],
)
def test_the_rule_of_ties(ref: list[float], tied: list[float], chosen: int, expected: float) -> None:
    assert ties([("ref:3", ref, 1), ("tied:3", tied, chosen)]) == pytest.approx(expected)


def test_ties_without_their_ids_have_no_score() -> None:
    assert ties([("1", [1.0, 0.0], 1)]) is None
    assert ties([("ref:1", [1.0, 0.0], 1)]) is None
    assert ties([("ref:1", [1.0, 0.0], 1), ("tied:2", [1.0, 0.0], 1)]) is None


@pytest.mark.parametrize(
    ("scaling", "cpus", "gpus", "expected"),
    [({}, 2, 0, (1, 2, 0)), ({}, 16, 0, (4, 4, 0)), ({"scorers": 2}, 2, 0, (2, 1, 0)), ({}, 32, 8, (5, 1, 1)),
     ({"scorers": 3}, 32, 8, (3, 1, 1)), ({"use_gpu": False}, 8, 8, (2, 4, 0))],
)  # fmt: skip
def test_the_cluster_is_dealt_to_scorers(
    scaling: dict[str, Any], cpus: int, gpus: int, expected: tuple[int, int, int]
) -> None:
    found = scorers_alone(ScorersScaling(**scaling), [(cpus, gpus)], most=5)
    assert (found.generators, found.scorers, found.cpus, found.scorer_gpus) == (0, *expected)
    for refused in (ScorersScaling(scorers=9, use_gpu=False), ScorersScaling(scorers=9), ScorersScaling(use_gpu=True)):
        with pytest.raises(UserError, match=r"^scaling: \d scorers need a [CG]PU each, and the cluster has 0|8"):
            scorers_alone(refused, [(8, 0)], most=5)


# --- told ----------------------------------------------------------------------------------------------------------


def planned(folder: Path, source: str, *overrides: str) -> ScorePlan:
    mapping = {
        "name": "s", "reward_models": {"truth": "toy"}, "prompts": {"source": source}, "storage": {"path": str(folder)},
    }  # fmt: skip
    return make_score_plan(parse_as(ScoreConfig, mapping, list(overrides), "test"))


def scored(plan: ScorePlan) -> dict[str, list[list[float | None]]]:
    """By the scorer itself, in this process."""
    scorer = Scorer({label: judge.model for label, judge in plan.judges.items()}, None, ScoringConfig())
    judgements = Judgements(plan, Responses(plan))
    here = SimpleNamespace(rewards=SimpleNamespace(remote=scorer.rewards))
    for task in judgements.left:
        judgements.receive(task, judgements.begin(here, task))
    return rewards_of(plan)


def test_scores_lie_beside_the_fields_of_their_records(tmp_path: Path) -> None:
    from orpo_ray.data import toyworld

    pairs = list(toyworld.records("toy-test"))[:40]
    records = [
        {**pair, "subset": "even" if i % 2 == 0 else "odd", "id": i if i else "first", "record": "mine"}
        for i, pair in enumerate(pairs)
    ]
    records[3] = {**records[3], "chosen": pairs[3]["rejected"], "rejected": pairs[3]["chosen"]}
    plan = planned(tmp_path, write(tmp_path, records))
    rewards = scored(plan)
    table = scores_table(plan.records, plan.own, rewards)
    pq.write_table(table, tmp_path / "scores.parquet")
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(rows) == 80
    assert rows[7] == {
        "record": 3, "location": f"{tmp_path}/records.jsonl:4", "response": "rejected", "number": 0, "subset": "odd",
        "id": "3", "data.record": "mine", "reward:truth": rows[7]["reward:truth"],
    }  # fmt: skip
    found = summary(plan.config, plan, plan.records, rewards)
    model = found["reward_models"]["truth"]
    assert (model["accuracy"]["records"], model["accuracy"]["correct"]) == (40, 39)
    assert {name: part["accuracy"] for name, part in model["subsets"].items()} == {"even": 1.0, "odd": 0.95}
    assert model["mean_of_subsets"] == pytest.approx(0.975)
    assert model["reward_bench"] is None
    told = io.StringIO()
    print_scores(found, Console(file=told, width=200))
    assert "truth         odd              19       20  0     95.0%" in told.getvalue()
    json.dumps(found)


@pytest.mark.parametrize(
    ("records", "rewards", "score"),
    [
        (
            [{"prompt": "Q", "chosen": "a", "rejected": "b", "subset": subset} for subset in
             ("alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm")],
            [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 0.5,
        ),
        (
            [{"prompt": "Q", "chosen": ["a"], "rejected": ["b", "c"], "subset": subset, "id": str(i)}
             for i, subset in enumerate(("Factuality", "Focus", "Math", "Precise IF", "Safety"))]
            + [{"prompt": "Q", "chosen": ["a"], "rejected": ["b"], "subset": "Ties", "id": "ref:0"},
               {"prompt": "Q", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties", "id": "tied:0"}],
            [[1.0, 0.0, 0.5], [1.0, 0.0, 2.0], [1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0],
             [1.0, 0.0], [1.0, 1.0, 0.0]], (3 + 1.01) / 6,
        ),
        ([{"prompt": "Q", "chosen": "a", "rejected": "b", "subset": "donotanswer"},
          {"prompt": "Q", "chosen": "a", "rejected": "b"}], [[1.0, 0.0]] * 2, None),
    ],
)  # fmt: skip
def test_reward_benchs_averages_stand_beside_its_records(
    records: list[dict[str, Any]], rewards: list[list[float]], score: float | None, tmp_path: Path
) -> None:
    plan = planned(tmp_path, write(tmp_path, records))
    found = summary(plan.config, plan, plan.records, {"truth": rewards})["reward_models"]["truth"]["reward_bench"]
    assert score is None if found is None else found["score"] == pytest.approx(score)


def test_several_responses_and_no_word_on_which_is_better(tmp_path: Path) -> None:
    from orpo_ray.data import toyworld

    [pair, *_] = toyworld.records("toy-test")
    source = write(tmp_path, [{"prompt": pair["prompt"], "responses": [pair["chosen"], pair["rejected"], "No."]}])
    plan = planned(tmp_path, source)
    assert plan.own == [[("response", 0), ("response", 1), ("response", 2)]]
    rewards = scored(plan)
    found = summary(plan.config, plan, plan.records, rewards)
    assert found["reward_models"]["truth"]["accuracy"] is None
    told = io.StringIO()
    print_scores(found, Console(file=told, width=200))
    assert "truth: nothing says which responses are the better ones; mean reward" in told.getvalue()


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    plan = planned(tmp_path, write(tmp_path, [{**pair, "nested": {"a": 1}, "kind": 3}, pair]), "subset=knd")
    assert plan.notes == [
        "Of the records: columns that are not read: nested (of 1 records).",
        "No record has a text or a number as its 'knd' (subset).",
    ]
    turns = {"conversation_a": user("Q") + assistant("a"), "conversation_b": user("Q") + assistant("b")}
    source = write(tmp_path, [{**turns, "winner": winner} for winner in ("tie", "model_a", None)])
    assert planned(tmp_path, source).notes == [
        "2 of 3 records prefer none of their responses and were left out: tie 1, no winner 1."
    ]


def test_accuracies_are_told_apart_by_numbers_too(tmp_path: Path) -> None:
    records = [{"prompt": "Q", "chosen": "a", "rejected": "b", "level": level} for level in (1, 1, 2, True, "x")]
    plan = planned(tmp_path, write(tmp_path, records), "subset=level")
    assert plan.notes == []
    found = summary(plan.config, plan, plan.records, {"truth": [[1.0, 0.0]] * 5})["reward_models"]["truth"]["subsets"]
    assert {name: part["records"] for name, part in found.items()} == {"1": 2, "2": 1, "true": 1, "x": 1}


def test_the_embedded_worlds_truth_knows_that_world_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, write(tmp_path, [{"prompt": "What is a neutrino?", "response": "Small."}]))
    with pytest.raises(
        UserError, match=r"records\.jsonl:1: the reward model toy knows the embedded world alone: not a"
    ):
        scored(plan)


def test_the_key_that_scores_alone_have_tells_them() -> None:
    file = Path(__file__).resolve().parents[2] / "configs/score-toy.yaml"
    assert isinstance(load_any(file), ScoreConfig)


def test_other_tools_are_another_question(tmp_path: Path) -> None:
    from orpo_ray.data import toyworld

    [pair, *_] = toyworld.records("toy-test")
    asked = {"prompt": user(pair["prompt"]), "responses": [assistant(pair["chosen"])]}
    tools = [[{"type": "function", "function": {"name": name}}] for name in ("one", "two")]
    for each in (None, *tools):
        plan = planned(tmp_path, write(tmp_path, [{**asked, "tools": each}]))
        assert not plan.judges["truth"].rewards.has(0)
        scored(plan)
        assert plan.judges["truth"].rewards.has(0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompts.format=promts", "test: prompts.format: should be 'auto', 'hh-rlhf'"),
        ("reward_models={a b: toy}", "test: reward_models.a b: should be letters, digits"),
        ("reward_models={}", "test: reward_models: should not be empty"),
    ],
)
def test_mistakes_are_told_by_their_key(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        planned(tmp_path, "toy-test", override)
    assert str(told.value).startswith(message)


def test_pieces_follow_from_what_is_scored(tmp_path: Path) -> None:
    def place(*overrides: str, source: str = "toy-test") -> str:
        return planned(tmp_path, source, "prompts.limit=9", *overrides).judges["truth"].rewards.names[0]

    assert place() == place("name=other", "scaling.scorers=2", "subset=kind")
    assert place() != place("prompts.limit=8") != place(source="toy")


def test_rewards_that_are_not_finite_count_as_such(tmp_path: Path) -> None:
    """Infinite ones made an accuracy of infinite margins, and NaN the mean of all."""
    nan, inf = float("nan"), float("inf")
    records = [{"prompt": f"Q{i}", "chosen": "a", "rejected": "b", "subset": "s"} for i in range(7)]
    plan = planned(tmp_path, write(tmp_path, records))
    rewards: list[list[float | None]] = [
        [1.0, 0.0], [inf, 0.0], [1.0, -inf], [nan, 0.0], [inf, inf], [None, 0.0], [0.0, 1.0],
    ]  # fmt: skip
    found = summary(plan.config, plan, plan.records, {"truth": rewards})
    model = found["reward_models"]["truth"]
    assert model["not_scored"] == {"too long": 1, "not finite": 5}
    assert (model["accuracy"]["records"], model["accuracy"]["correct"]) == (2, 1)
    assert model["rewards"]["mean"] == pytest.approx(3 / 8)
    assert "5 responses have no finite reward from truth; their records count nowhere." in found["notes"]
    assert "1 responses are too long for the reward model truth; their records count nowhere." in found["notes"]
    json.dumps(found, allow_nan=False)
    table = scores_table(plan.records, plan.own, {"truth": rewards}).to_pylist()
    assert [row["reward:truth"] for row in table[2:4]] == [inf, 0.0]
