"""Whole evaluations that make AlpacaEval's, MT-Bench's and IFEval's numbers, of answers that are there and a real
server that judges: what the files of the benchmark give is what stands in the results and on the page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from judge_server import JudgeServer

from orpo_ray.config import EvaluationConfig, parse_as, read_yaml
from orpo_ray.data.prompts import Prompt, Question
from orpo_ray.errors import UserError
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.judged import judged
from orpo_ray.evaluation.leaderboards import Leaderboards
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.judging.places import Answered, Place
from orpo_ray.judging.verdict import REFUSED, Verdict
from orpo_ray.leaderboards.verdicts import Files, aggregate
from orpo_ray.report import write_evaluation_report
from orpo_ray.report.evaluation_folder import read_evaluation
from orpo_ray.status.evaluation import evaluation_status
from orpo_ray.terminal import Console

MODELS = {"ours": 0, "base": 1}
INSTRUCTIONS = ["punctuation:no_comma", "startend:quotation"]


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def questions(folder: Path, count: int = 8) -> tuple[str, dict[str, str]]:
    """Of MT-Bench's kind, and both models' answers."""
    asked = [
        {"question_id": 81 + i, "category": ["math", "coding", "stem"][i % 3], "turns": [f"What is {i}?", f"Why, {i}?"]}
        for i in range(count)
    ]
    answers = {
        model: lines(folder / f"{model}.jsonl", [
            {"question_id": each["question_id"], "choices": [{"index": 0, "turns": [f"{model} {i}", f"so {model}"]}]}
            for i, each in enumerate(asked)
        ])
        for model in MODELS
    }  # fmt: skip
    return lines(folder / "questions.jsonl", asked), answers


def instructions(folder: Path, count: int = 12) -> tuple[str, dict[str, str]]:
    """Of AlpacaEval's kind; the models give the same answer to the fourth."""
    outputs = {
        model: [{"instruction": f"Do {i}.", "output": "same" if i == 3 else f"{model} does {i}" + "!" * (i % 5),
                 "generator": model} for i in range(count)]
        for model in MODELS
    }  # fmt: skip
    return lines(folder / "asked.jsonl", [{"instruction": f"Do {i}."} for i in range(count)]), {
        model: lines(folder / f"{model}.jsonl", rows) for model, rows in outputs.items()
    }


def config_of(folder: Path, source: str, models: dict[str, str], server: JudgeServer, **more: Any) -> EvaluationConfig:
    mapping = {
        "name": "board", "models": models, "prompts": {"source": source, **more.pop("prompts", {})}, "embedder": None,
        "judges": {"big": {"kind": "openai", "base_url": server.url, "model": "big"}},
        "storage": {"path": str(folder / "runs")}, **more,
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, [], "test")


def run(config: EvaluationConfig) -> dict[str, Any]:
    folder = evaluate(config, Console(file=io.StringIO()))
    found: dict[str, Any] = json.loads(folder.winrates.read_text())
    return found


def mt_bench(folder: Path, server: JudgeServer, **judging: Any) -> EvaluationConfig:
    source, answers = questions(folder)
    return config_of(
        folder, source, answers, server, benchmark="mt-bench", judging={"references": None, **judging},
    )  # fmt: skip


def test_mt_bench_is_what_its_own_files_give(tmp_path: Path) -> None:
    with JudgeServer(says="Fine. Rating: [[7.5]]") as server:
        found = run(mt_bench(tmp_path, server))
        assert server.answered.total() == 2 * 8 * 2  # models, questions, turns
        second = next(body for body in server.bodies if "Why, 0?" in str(body))
        assert "What is 0?" in str(second) and "ours 0" in str(second)  # with the first turn in view
    folder = tmp_path / "runs/board"
    board = found["leaderboards"]["mt-bench"]
    own = aggregate("mt-bench", Files(
        folder / "leaderboards/mt-bench/big_single.jsonl", prompts=folder / "leaderboards/mt-bench/question.jsonl",
    ))["results"]  # fmt: skip
    assert [{key: row[key] for key in own[0]} for row in board["rows"]] == json.loads(json.dumps(own))
    assert [row["score"]["mean"] for row in board["rows"]] == [7.5, 7.5]
    assert list(board["rows"][0]["categories"]) == ["math", "coding", "stem"]
    assert found["judges"]["big"]["rated"]["ours"]["score"] == board["rows"][0]["score"]
    assert found["judges"]["big"]["rated"]["ours"]["categories"]["stem"]["questions"] == 2
    assert found["judges"]["big"]["described"]["model"] == "big"
    assert found["pairs"][0]["win_rate"] == 0.5  # all alike: ratings compare as rewards do
    assert not found["reward_models"] and not found["rewards"]
    status = evaluation_status(folder, read_yaml(folder / "config.yaml"), "")
    assert status.brief == "mt-bench: ours 7.50 by big; base 7.50 by big"
    assert ("scores", status.brief) in status.rows and (
        "no winner",
        "not told apart by big: ours and base (50.0% for ours)",
    ) in status.rows
    assert status.facts["winners"] == {"big": None}
    assert status.facts["leaderboards"]["mt-bench"][1] == {"model": "base", "judge": "big", "round": 0, "score": 7.5}
    del board["rows"][1]["score"]["mean"]
    (folder / "winrates.json").write_text(json.dumps(found))
    status = evaluation_status(folder, read_yaml(folder / "config.yaml"), "")
    unread = f"cannot be read: {folder}/winrates.json: leaderboards.mt-bench.rows: score.mean: Field required"
    assert (
        ("scores", unread) in status.rows and status.state == "finished" and status.brief.startswith("not told apart")
    )


def test_turns_are_counted_from_1_in_every_table_and_older_ones_are_read_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever joins answers and verdicts has each verdict beside the answer that it is on."""
    with JudgeServer(says="[[4]]") as server:
        config = mt_bench(tmp_path, server)
        monkeypatch.setattr("orpo_ray.evaluation.evaluate.TABLE", 1)
        run(config)
        folder, asked = tmp_path / "runs/board", server.answered.total()
        table, page = folder / "verdicts.parquet", read_evaluation(folder)
        assert {each.turn for each in page.verdicts} == {1, 2}
        answers, verdicts = (pq.read_table(path).to_pylist() for path in (folder / "results.parquet", table))
        places = [{tuple(row[key] for key in ("prompt", "round", "model", "turn")) for row in rows}
                  for rows in (answers, verdicts)]  # fmt: skip
        assert places[0] == places[1] and {place[-1] for place in places[0]} == {1, 2}
        now = pq.read_table(table)
        at = now.column_names.index("turn")
        pq.write_table(now.set_column(at, "turn", pc.subtract(now["turn"], 1)), table)
        assert read_evaluation(folder).verdicts == page.verdicts
        monkeypatch.undo()
        run(config)
        assert server.answered.total() == asked
        assert pq.read_table(table).equals(now)


def test_what_cannot_be_read_is_named_as_the_benchmark_names_it(tmp_path: Path) -> None:
    """By question and turn, where prompts have a question_id; else by the number that the page and the tables have."""
    with JudgeServer() as server:
        server.says = "no"
        [note] = [note for note in run(mt_bench(tmp_path, server))["notes"] if "cannot be read" in note]
    assert "32 of 32 verdicts of the judge big cannot be read (the first: question_id 81, turn 1, ours: 'no');" in note
    with JudgeServer(lambda body, _: "400" if "so ours" in str(body) and "What is 3?" in str(body) else None,
                     says="[[4]]") as server:  # fmt: skip
        (tmp_path / "refused").mkdir()
        found = run(mt_bench(tmp_path / "refused", server))
    [note] = [note for note in found["notes"] if "were refused" in note]
    assert "1 of 32 verdicts were refused" in note and "(the first: question_id 84, turn 2, ours: '[refused" in note


def test_another_judging_asks_for_what_is_missing_alone(tmp_path: Path) -> None:
    with JudgeServer(says="[[4]]") as server:
        run(mt_bench(tmp_path, server))
        before = server.answered.total()
        table = tmp_path / "runs/board/verdicts.parquet"
        said = table.read_bytes()
        table.unlink()
        run(mt_bench(tmp_path, server))  # all is there: nothing is asked
        assert server.answered.total() == before and table.read_bytes() == said
        folder = table.parent
        status = evaluation_status(folder, read_yaml(folder / "config.yaml"), "")
        assert ("verdicts", f"{before} by big") in status.rows and status.state == "finished"
        assert not any(name == "judged" for name, _ in status.rows), "no reward model is asked"
        found = run(mt_bench(tmp_path, server, repeats=2))
        assert server.answered.total() == 2 * before
        assert found["judges"]["big"]["counts"]["asked"] == 2 * before
        assert found["leaderboards"]["mt-bench"]["rows"][0]["noise"]["answers"] == 16
        config = mt_bench(tmp_path, server, repeats=2).for_a_file()
        config["judges"] = {"renamed": config["judges"]["big"]}
        renamed = run(parse_as(EvaluationConfig, config, [], "test"))  # is asked nothing, and named everywhere
        assert server.answered.total() == 2 * before
    assert renamed["judges"] == {"renamed": found["judges"]["big"]}
    assert {row["judge"] for row in renamed["leaderboards"]["mt-bench"]["rows"]} == {"renamed"}
    assert set(pq.read_table(table).column("judge").to_pylist()) == {"renamed"}
    assert sorted(each.name for each in folder.glob("leaderboards/mt-bench/*")) == [
        "question.jsonl", "renamed_single.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("benchmark", ["alpaca-eval-2", "mt-bench"])
def test_what_was_too_long_for_a_judge_is_no_unreadable_row(benchmark: str, served: bool, tmp_path: Path) -> None:
    """Two of five: one in an order of two, one altogether; and one that the judge said nothing sensible of."""
    pairs = benchmark == "alpaca-eval-2"
    judging = {"order": "both", "against": "b"} if pairs else {"compares": "rates"}
    mapping = {
        "name": "e", "models": {"a": "a.json", "b": "b.json"}, "prompts": {"source": "asked.jsonl"},
        "judges": {"j": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}},
        "judging": judging, "measures": [benchmark],
    }  # fmt: skip
    config = parse_as(EvaluationConfig, mapping, [], "test")
    prompts = [Prompt(f"p:{i}", Question(f"Do {i}.", ()), None, "math", {"question_id": 81 + i}) for i in range(5)]
    there = Answered(
        [[f"Do {i}."] for i in range(5)], {m: [[[f"{m} {i}"]] for i in range(5)] for m in "ab"}, [None] * 5
    )
    found, verdicts = [], list[Verdict | None]()
    for i in range(5):
        for first in (True, False) if pairs else (None,):
            found.append((Place("a", "b" if pairs else None, i, 0, 1, first, 0), False))
            read = (None, None) if i == 2 else (0.75, None) if pairs else (None, 5.0)
            too_long = i == 0 or (i == 1 and first is not True)
            refused = Verdict(f"{i} {first}", None, None, f"{REFUSED}prompt too long]") if served else None
            verdicts.append(refused if too_long else Verdict(f"{i} {first}", *read, "well"))
    said = judged(found, {"j": verdicts}, there, 1)
    [row] = Leaderboards(config, EvaluationFolder(tmp_path), prompts, there, said).measured()[benchmark]["rows"]
    left_out = "2 were too long for the judge, or refused by its server, and are left out"
    assert row["unjudged"] == 2 and row["remarks"][-1] == left_out
    if pairs:
        assert (row["n"], row["unreadable"]) == (2, 1)
    else:
        assert [place["question_id"] for place in row["unreadable"]] == [83]
        assert [place["question_id"] for place in row["missing"]] == [81, 82] and row["score"]["ratings"] == 2


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (3, 2)])
def test_references_are_shown_where_there_are_any(count: int, shown: int, tmp_path: Path) -> None:
    """A benchmark's file of them has no answer to most prompts, and maybe to none of the first few."""
    references = lines(tmp_path / "references.jsonl", [
        {"question_id": 87 + 30 * (not count) + i, "choices": [{"index": 0, "turns": [f"known {i}", "and why"]}]}
        for i in range(3)
    ])  # fmt: skip
    with JudgeServer(says="[[4]]") as server:
        found = run(mt_bench(tmp_path, server, references=references))
        with_one = [body for body in server.bodies if "An answer that is known to be good" in str(body)]
        assert len(with_one) == 2 * 2 * shown and all("known " in str(body) for body in with_one)
    assert any(f"a reference answer to {shown} of 8 prompts" in note for note in found["notes"])
    assert any(f"has {3 - shown} answers to what is not asked" in note for note in found["notes"])


def alpaca_eval(folder: Path, server: JudgeServer, **more: Any) -> EvaluationConfig:
    source, outputs = instructions(folder)
    judging = {"against": "base", "order": "alpaca_eval", **more.pop("judging", {})}
    return config_of(folder, source, outputs, server, measures=["alpaca-eval-2"], judging=judging, **more)


def test_alpaca_eval_is_what_its_own_files_give(tmp_path: Path) -> None:
    difficulty = tmp_path / "difficulty.json"
    lines(difficulty, [{"instruction": f"Do {i}.", "difficulty": i / 10 - 0.5} for i in range(12)])
    published = tmp_path / "published.json"
    published.write_text(json.dumps([{"name": "elsewhere", "win_rate": 12.5, "length_controlled_winrate": 10.25}]))
    leaderboard = {"published": str(published), "difficulty": str(difficulty)}
    with JudgeServer() as server:
        found = run(alpaca_eval(tmp_path, server, leaderboard=leaderboard))
        assert server.answered.total() == 11  # none of the answers that are the same
    folder = tmp_path / "runs/board"
    [row] = found["leaderboards"]["alpaca-eval-2"]["rows"]
    [own] = aggregate("alpaca-eval-2", Files(folder / "leaderboards/alpaca-eval-2/big/ours.json", difficulty))[
        "results"
    ]
    assert row["length_controlled"]["without_gamed_rows"] is not None
    assert {key: row[key] for key in own} == json.loads(json.dumps(own))
    assert row["n"] == 12 and row["identical"] == 1
    [ahead] = [pair for pair in found["pairs"] if pair["model"] == "ours"]
    assert ahead["reward_model"] == "big"
    np.testing.assert_allclose(row["win_rate"], 100 * ahead["win_rate"], rtol=1e-12)
    verdicts = pq.read_table(folder / "verdicts.parquet").to_pylist()
    assert len(verdicts) == 12 and sum(each["words"] is None for each in verdicts) == 1
    assert found["leaderboards"]["alpaca-eval-2"]["published"][0]["name"] == "elsewhere"
    page = write_evaluation_report(folder).read_text()
    status = evaluation_status(folder, read_yaml(folder / "config.yaml"), "")
    assert status.brief == f"alpaca-eval-2: ours win-rate {row['win_rate']:.2f}% by big"
    assert "elsewhere (published)" in page and "10.25" in page and f"{row['win_rate']:.2f}" in page
    assert "The judge big" in page


def test_a_pair_that_is_shown_in_both_orders_counts_once(tmp_path: Path) -> None:
    with JudgeServer() as server:
        found = run(alpaca_eval(tmp_path, server, judging={"order": "both"}))
        assert server.answered.total() == 22
    [trust] = found["judges"]["big"]["pairs"]
    assert trust["asked"] == [11, 11] and trust["position_bias"]["prompts"] == 11
    [ahead] = [pair for pair in found["pairs"] if pair["model"] == "ours"]
    assert ahead["wins"] + ahead["ties"] + ahead["losses"] == 12


def test_ifeval_needs_no_judge(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    asked = [
        {"key": i, "prompt": f"Say {i}.", "instruction_id_list": INSTRUCTIONS, "kwargs": [{}, {}]} for i in range(4)
    ]
    answers = {"ours": ['"all fine"', '"no, thanks"', "bare", '"quiet"'], "base": ['"so be it"'] * 3}
    files = {
        model: lines(tmp_path / f"{model}.jsonl", [
            {"prompt": asked[i]["prompt"], "response": text} for i, text in enumerate(texts)
        ])
        for model, texts in answers.items()
    }  # fmt: skip
    mapping = {
        "name": "board", "models": files, "prompts": {"source": lines(tmp_path / "asked.jsonl", asked)},
        "measures": ["ifeval"], "embedder": None, "sampling": {"rounds": 1},
        "storage": {"path": str(tmp_path / "runs")},
    }  # fmt: skip
    found = run(parse_as(EvaluationConfig, mapping, [], "test"))
    ours, base = found["leaderboards"]["ifeval"]["rows"]
    assert (ours["prompt_strict"]["followed"], ours["prompt_strict"]["n"]) == (2, 4)
    assert {(each["key"], each["instruction"]) for each in ours["failures"]} == {
        (1, "punctuation:no_comma"), (2, "startend:quotation"),
    }  # fmt: skip
    assert (base["missing"], base["empty"]) == ([3], [])
    assert (base["prompt_strict"]["followed"], base["prompt_strict"]["n"]) == (3, 4)
    files = tmp_path / "runs/board/leaderboards/ifeval"
    for label, row in (("ours", ours), ("base", base)):
        [again] = aggregate("ifeval", Files(files / f"{label}.jsonl", prompts=files / "input_data.jsonl"))["results"]
        assert {key: row[key] for key in again} == json.loads(json.dumps(again))
    folder = tmp_path / "runs/board"
    status = evaluation_status(folder, read_yaml(folder / "config.yaml"), "")
    assert status.brief.startswith("ifeval: base prompts 75.0% strictly, instructions ")
    assert "; ours prompts 50.0% strictly, instructions " in status.brief and "winner" not in dict(status.rows)
    page = write_evaluation_report(folder).read_text()
    assert (
        "IFEval" in page
        and "punctuation:no_comma" in page
        and "base: 1 of 4 prompts have no response, and count as not followed: 3" in page
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"judges": {}}, "mt-bench is made of what a judge says"),
        ({"judging": {"compares": "pairs"}}, "mt-bench needs judging.compares=rates"),
        ({"reward_models": {"big": "toy"}}, "a reward model has this name"),
    ],
)
def test_what_a_benchmark_needs_is_said(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    source, answers = questions(tmp_path)
    mapping = {
        "name": "b", "models": answers, "prompts": {"source": source}, "benchmark": "mt-bench",
        "judges": {"big": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}}, **changed,
    }  # fmt: skip
    with pytest.raises(UserError, match=said):
        parse_as(EvaluationConfig, mapping, [], "test")


def test_prompts_that_are_none_of_the_benchmark_are_named(tmp_path: Path) -> None:
    source, outputs = instructions(tmp_path)
    with JudgeServer(says="[[3]]") as server, pytest.raises(UserError, match="has no question_id"):
        run(config_of(tmp_path, source, outputs, server, measures=["mt-bench"], judging={"compares": "rates"}))


class ReadOnlyOfOurs(JudgeServer):
    """Whose judge says something that is no label where the other's answer is shown first, or always."""

    never = False

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        found = super().completion(body)
        text = str(body["messages"])
        if self.never or text.index("base does") < text.index("ours does"):
            found["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [{"token": "x", "logprob": 0.0}]
        return found


def test_a_pair_of_which_one_order_was_read_has_no_preference(tmp_path: Path) -> None:
    with ReadOnlyOfOurs() as server:
        found = run(alpaca_eval(tmp_path, server, judging={"order": "both"}))
    [row] = found["leaderboards"]["alpaca-eval-2"]["rows"]
    assert (row["n"], row["unreadable"]) == (1, 11)  # the same answer is a tie without asking
    [trust] = found["judges"]["big"]["pairs"]
    assert trust["left_out"] == 11


def test_a_judge_of_which_nothing_is_read_ends_in_no_error(tmp_path: Path) -> None:
    _, outputs = instructions(tmp_path)
    asked = lines(tmp_path / "few.jsonl", [{"instruction": f"Do {i}."} for i in range(3)])
    with ReadOnlyOfOurs() as server:
        server.never = True
        config = config_of(
            tmp_path, asked, outputs, server, measures=["alpaca-eval-2"], judging={"against": "base"},
        )  # fmt: skip
        found = run(config)
    assert found["leaderboards"]["alpaca-eval-2"]["rows"] == []
    assert any("3 of 3 verdicts of the judge big cannot be read" in note for note in found["notes"])
    assert "The judge big" in write_evaluation_report(tmp_path / "runs/board").read_text()


def test_what_a_benchmark_cannot_take_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    source, outputs = instructions(tmp_path)
    twice = lines(tmp_path / "twice.jsonl", [{"instruction": "Do 1."}] * 2)
    lines(tmp_path / "few.json", [{"instruction": "Do 1.", "difficulty": 0.5}])
    (tmp_path / "gzip.json").write_bytes(b"\x1f\x8b\xff")
    tried = [
        (source, {"difficulty": str(tmp_path / "none.json")}, "none.json"),
        (source, {"difficulty": "https://localhost/d.json"}, "d.json"),
        (source, {"difficulty": str(tmp_path / "few.json")}, "no difficulty of 11 of 12"),
        (source, {"published": str(tmp_path / "gzip.json")}, "gzip.json"),
        (twice, {}, "has the instruction 'Do 1.', as"),
    ]
    with JudgeServer() as server:
        for prompts, leaderboard, said in tried:
            with pytest.raises(UserError, match=said):
                run(config_of(
                    tmp_path, prompts, outputs, server, measures=["alpaca-eval-2"], judging={"against": "base"},
                    leaderboard=leaderboard,
                ))  # fmt: skip
        assert not server.bodies


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"instruction_id_list": ["no:such"]}, "no:such: lm-eval .* has no checker"),
        ({"kwargs": [{"words": 1}]}, r"its arguments \{'words': 1\} are refused"),
        ({"key": 0}, "has the prompt 'Say 1.', as"),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused_before_anything_is_asked(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    asked = {"key": 1, "prompt": "Say 1.", "instruction_id_list": INSTRUCTIONS[:1], "kwargs": [{}]}
    mapping = {
        "name": "board", "models": {"ours": lines(tmp_path / "ours.jsonl", [{"prompt": "Say 1.", "response": "no"}])},
        "prompts": {"source": lines(tmp_path / "asked.jsonl", [asked, {**asked, **changed}])},
        "measures": ["ifeval"], "embedder": None, "storage": {"path": str(tmp_path / "runs")},
    }  # fmt: skip
    if "key" not in changed:
        lines(tmp_path / "asked.jsonl", [{**asked, **changed}])
    with pytest.raises(UserError, match=said):
        run(parse_as(EvaluationConfig, mapping, [], "test"))
    assert not (tmp_path / "runs/board").exists()


def test_results_are_made_anew_where_a_file_beside_them_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    difficulty = tmp_path / "difficulty.json"
    lines(difficulty, [{"instruction": f"Do {i}.", "difficulty": i / 10 - 0.5} for i in range(12)])
    with JudgeServer() as server:
        config = alpaca_eval(tmp_path, server, leaderboard={"difficulty": "~/difficulty.json"})
        first = run(config)
        assert run(config) == first
        lines(difficulty, [{"instruction": f"Do {i}.", "difficulty": i / 5} for i in range(12)])
        assert run(config)["key"] != first["key"]


def test_verdicts_are_read_anew_where_they_would_be_read_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with JudgeServer() as server:
        config = alpaca_eval(tmp_path, server)
        run(config)
        for module in ("orpo_ray.judging.asking", "orpo_ray.evaluation.judging"):
            monkeypatch.setattr(f"{module}.VERSION", 10**6)
        run(config)
        assert server.answered.total() == 22


def test_ifeval_is_measured_anew_where_other_instructions_go_with_the_prompts(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    files = {"ours": lines(tmp_path / "ours.jsonl", [{"prompt": "Say 1.", "response": "bare"}])}
    followed = []
    for kinds in (INSTRUCTIONS[:1], INSTRUCTIONS[1:]):
        asked = [{"key": 1, "prompt": "Say 1.", "instruction_id_list": kinds, "kwargs": [{}]}]
        mapping = {
            "name": "board", "models": files, "prompts": {"source": lines(tmp_path / "asked.jsonl", asked)},
            "measures": ["ifeval"], "embedder": None, "storage": {"path": str(tmp_path / "runs")},
        }  # fmt: skip
        found = run(parse_as(EvaluationConfig, mapping, [], "test"))
        followed.append(found["leaderboards"]["ifeval"]["rows"][0]["prompt_strict"]["followed"])
    assert followed == [1, 0]
