"""Answers that were made elsewhere, as a policy: read, joined to the prompts, judged, counted and written again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from offline_evaluation import complete
from test_evaluation_options import save

from orpo_ray.cli import app
from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.data import toyworld
from orpo_ray.errors import UserError
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.export import export_outputs
from orpo_ray.evaluation.given import NOT_GIVEN
from orpo_ray.evaluation.plan import make_plan
from orpo_ray.leaderboards.files import read_answers, read_outputs, read_responses
from orpo_ray.report import write_evaluation_report
from orpo_ray.status.evaluation import evaluation_status
from orpo_ray.terminal import Console

RECORDS = list(toyworld.records("toy-test"))[:4]
PROMPTS = [record["prompt"] for record in RECORDS]


def lines(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def asked(tmp_path: Path) -> str:
    records = [{"question_id": 81 + i, "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    return lines(tmp_path / "asked.jsonl", *records)


def config_of(storage: Path, source: str, models: dict[str, Any], *overrides: str) -> EvaluationConfig:
    mapping = {
        "name": "e", "models": models, "prompts": {"source": source}, "reward_models": {"truth": "toy"},
        "sampling": {"max_tokens": 8, "rounds": 1}, "embedder": None, "storage": {"path": str(storage / "runs")},
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, list(overrides), "test")


def given(storage: Path, source: str, file: str, *overrides: str) -> Any:
    """The policy that a file is."""
    return make_plan(config_of(storage, source, {"a": {"outputs": file}}, *overrides)).given["a"]


SHAPES: dict[str, Any] = {
    "alpaca eval": lambda i: {"instruction": PROMPTS[i], "output": f"answer {i}", "generator": "m", "dataset": "d"},
    "ifeval": lambda i: {"prompt": PROMPTS[i], "response": f"answer {i}"},
    "lm-eval's samples": lambda i: {"doc_id": i, "doc": {"key": i, "prompt": PROMPTS[i]}, "resps": [[f" answer {i}"]],
                                    "filtered_resps": [f"answer {i}"], "filter": "none", "target": "0"},
    "several": lambda i: {"prompt": PROMPTS[i], "responses": [f"answer {i}", f"other {i}"]},
    "messages": lambda i: {"prompt": [{"role": "user", "content": PROMPTS[i]}],
                           "response": [{"role": "assistant", "content": f"answer {i}"}]},
    "mt-bench": lambda i: {"question_id": 81 + i, "model_id": "m", "answer_id": "x", "tstamp": 1.5,
                           "choices": [{"index": 0, "turns": [f"answer {i}", f"more {i}"]},
                                       {"index": 1, "turns": [f"other {i}"]}]},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_found_by_what_they_answer_in_any_order(shape: str, asked: str, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *(SHAPES[shape](i) for i in (2, 0, 3, 1)))
    work = given(tmp_path, asked, file)
    assert work.answers == [[(f"answer {i}",)] for i in range(4)]
    array = tmp_path / "a.json"
    array.write_text(json.dumps([SHAPES[shape](i) for i in range(4)]))
    again = given(tmp_path, asked, str(array))
    assert again.digest == work.digest and again.responses.folder == work.responses.folder
    several = given(tmp_path, asked, file, "sampling.rounds=2")
    if shape in ("several", "mt-bench"):
        assert several.answers[3] == [("answer 3",), ("other 3",)] and several.rounds == 2
    else:
        assert several.rounds == 1 and not several.remarks


def test_what_has_no_partner_is_counted_and_named(asked: str, tmp_path: Path) -> None:
    other = {"prompt": "Who are you?", "response": "Me."}
    file = lines(tmp_path / "a.jsonl", other, *(SHAPES["ifeval"](i) for i in (0, 2)))
    work = given(tmp_path, asked, file)
    assert work.answers == [[("answer 0",)], [], [("answer 2",)], []]
    none, unasked = work.remarks
    assert f"no answer to 2 of 4 prompts ({asked}:2, {asked}:4): what is missing counts in none" in none
    assert f"has 1 answers to what is not asked here, which are left out ({file}:1)" in unasked


def test_alike_prompts_take_their_answers_in_order(tmp_path: Path) -> None:
    source = lines(tmp_path / "asked.jsonl", *({"prompt": PROMPTS[0]} for _ in range(2)))
    answers = [{"prompt": f" {PROMPTS[0]}\n", "response": text} for text in ("one", "two", "three")]
    assert given(tmp_path, source, lines(tmp_path / "a.jsonl", *answers[:2])).answers == [[("one",)], [("two",)]]
    with pytest.raises(UserError, match=r"^models\.a: .*a\.jsonl:3: answers what .*a\.jsonl:1 answers, so which"):
        given(tmp_path, source, lines(tmp_path / "a.jsonl", *answers))


REFUSED = {
    "twice": ([SHAPES["mt-bench"](0), SHAPES["mt-bench"](0)], r"a\.jsonl:2: answers what .*:1 answers"),
    "in two ways": ([SHAPES["mt-bench"](0), SHAPES["ifeval"](0)], r"a\.jsonl:2: answers .*asked\.jsonl:1, as"),
    "none of them": ([{"prompt": "Hm?", "response": "x"}], r"answers none of the 4 prompts; its first prompt is 'Hm"),
    "no question_id": ([{"choices": [{"turns": ["x"]}]}], r"a\.jsonl:1: no question_id"),
    "no turns": ([{"question_id": 81, "choices": [{"index": 0}]}], r"a\.jsonl:1: no answer: choices\[0\] has no turns"),
    "no text": ([{"question_id": 81, "choices": [{"turns": [3]}]}], r"a\.jsonl:1: not text: choices\[0\]\.turns\[0\]"),
    "samples of another kind": ([{"doc": {"question": "?"}, "filtered_resps": ["x"]}],
                                r"a\.jsonl:1: no answer: doc: has no prompt"),
    "pairs": ([RECORDS[0]], r"a\.jsonl:1: ranked answers"),
    "prompts alone": ([{"prompt": PROMPTS[0]}], r"a\.jsonl:1: no response"),
    "a conversation": ([{"prompt": PROMPTS[0], "response": [{"role": "assistant", "content": "x"}] * 2}],
                       r"a\.jsonl:1: more than an answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_says_something_else_is_refused(name: str, asked: str, tmp_path: Path) -> None:
    records, told = REFUSED[name]
    with pytest.raises(UserError, match=rf"^models\.a: .*{told}"):
        given(tmp_path, asked, lines(tmp_path / "a.jsonl", *records))


def test_a_secret_of_a_url_is_in_no_result(asked: str, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl?X-Amz-Signature=abc0123456789", SHAPES["ifeval"](0))
    work = given(tmp_path, asked, file)
    assert work.name.endswith("=***") and work.remarks and "abc0123456789" not in "".join(work.remarks)


def test_prompts_without_question_ids_have_no_answers_by_them(tmp_path: Path) -> None:
    source = lines(tmp_path / "asked.jsonl", {"prompt": PROMPTS[0]})
    with pytest.raises(UserError, match=r"its first question_id is '81', theirs None"):
        given(tmp_path, source, lines(tmp_path / "a.jsonl", SHAPES["mt-bench"](0)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("base"))


def test_such_a_policy_is_judged_compared_and_shown_like_others(base: str, tmp_path: Path) -> None:
    """The truth scores its answers as it scores the data's own; a model beside it has three rounds."""
    best = [{"instruction": record["prompt"], "output": record["chosen"], "generator": "m"} for record in RECORDS]
    file = tmp_path / "best.json"
    file.write_text(json.dumps(best[:3]))
    models = {"best": str(file), "a": base}
    config = config_of(tmp_path, "toy-test", models, "prompts.limit=4", "sampling.rounds=3")
    plan = complete(config, lambda label, turn, request: " hello")
    folder = evaluate(config, Console(file=io.StringIO()))
    rows = [row for row in pq.read_table(folder.results).to_pylist() if row["model"] in ("best", "chosen")]
    rewards = {(row["model"], row["prompt"]): row["reward:truth"] for row in rows}
    assert [rewards["best", i] for i in range(3)] == [rewards["chosen", i] for i in range(3)]
    assert rewards["best", 3] is None
    assert [row["ended"] for row in rows if row["model"] == "best"] == ["given"] * 3 + [NOT_GIVEN]
    found = json.loads(folder.winrates.read_text())
    assert list(found["models"]) == ["best", "a"] == list(plan.answering)
    model = found["models"]["best"]
    assert (model["path"], model["asked"], model["responses"]) == (str(file), 4, 3)
    assert model["not_generated"] == {NOT_GIVEN: 1}
    assert model["odds"] is None and model["lengths"] is None and model["template"] is None
    assert found["models"]["a"]["odds"]["pairs"] == 4
    pair = next(pair for pair in found["pairs"] if pair["model"] == "best")
    assert (pair["wins"], pair["ties"], pair["losses"]) == (9, 0, 0), "one answer against each of three rounds"
    assert found["rounds"] == 3
    assert "The file of best has one answer to a prompt, which stands in each of 3 rounds." in found["notes"]
    assert any("has no answer to 1 of 4 prompts" in note for note in found["notes"])
    page = write_evaluation_report(folder.path).read_text()
    assert str(file) in page and f"1 {NOT_GIVEN}" in page
    status = evaluation_status(folder.path, config.for_a_file(), "")
    assert status.state == "finished"


def test_where_all_is_there_no_cluster_starts(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    texts = {}
    for word in ("answer", "another"):
        file = lines(tmp_path / "a.jsonl", *({**SHAPES["ifeval"](i), "response": f"{word} {i}"} for i in range(4)))
        config = config_of(tmp_path, asked, {"a": file})
        complete(config, lambda *_: "")
        said = io.StringIO()
        folder = evaluate(config, Console(file=said))
        texts[word] = [row["text"] for row in pq.read_table(folder.results).to_pylist()]
        before = folder.winrates.read_bytes()
        evaluate(config, Console(file=said))
        assert folder.winrates.read_bytes() == before and "already finished" in said.getvalue()
    assert texts == {word: [f"{word} {i}" for i in range(4)] for word in texts}
    assert config.cpus == 1


def test_where_nothing_is_judged_a_measure_is_made_of_the_answers(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    fields = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    source = lines(tmp_path / "asked.jsonl", *({"key": i, "prompt": PROMPTS[i], **fields} for i in range(4)))
    file = lines(tmp_path / "a.jsonl", *({**SHAPES["ifeval"](i), "response": "a, b" if i else "ab"} for i in range(3)))
    config = config_of(tmp_path, source, {"a": file}, "reward_models={}", "measures=[ifeval]", "sampling.rounds=2")
    folder = evaluate(config, Console(file=io.StringIO()))
    [row] = json.loads(folder.winrates.read_text())["leaderboards"]["ifeval"]["rows"]
    assert (row["model"], row["missing"], row["prompt_strict"]["n"]) == ("a", [3], 4)
    page = write_evaluation_report(folder.path).read_text()
    assert "<html" in page and "all answers were made elsewhere" in page and "tokens were sampled" not in page


def test_thoughts_are_cut_before_anything_is_judged(tmp_path: Path) -> None:
    best = [{"prompt": record["prompt"], "response": f"<think>{record['rejected']}</think>\n{record['chosen']}"}
            for record in RECORDS]  # fmt: skip
    best[3]["response"] = "<think>Hm"
    models = {"a": lines(tmp_path / "a.jsonl", *best)}
    found = {}
    for strip in (False, True):
        config = config_of(
            tmp_path, "toy-test", models, "prompts.limit=4", f"answers.strip_thinking={str(strip).lower()}"
        )
        complete(config, lambda *_: "")
        folder = evaluate(config, Console(file=io.StringIO()))
        rows = [row for row in pq.read_table(folder.results).to_pylist() if row["model"] == "a"]
        numbers = json.loads(folder.winrates.read_text())
        found[strip] = rows, numbers["models"]["a"], numbers["notes"]
    rows, model, notes = found[True]
    assert [row["text"] for row in rows] == [*(record["chosen"].strip() for record in RECORDS[:3]), ""]
    assert model["thinking"] == {"closed": 3, "unclosed": 1} and model["empty"] == 1
    assert "Thoughts of a were cut from 4 of 4 responses; 1 of them had not ended, so that no answer follows." in notes
    plain, unmarked, _ = found[False]
    assert "thinking" not in unmarked and plain[3]["text"] == "<think>Hm"
    assert [row["reward:truth"] for row in plain] != [row["reward:truth"] for row in rows]
    assert len(list((tmp_path / "runs/e/responses").iterdir())) == 1, "what was answered is the same"
    assert len(list((tmp_path / "runs/e/rewards").iterdir())) > 2


@pytest.mark.parametrize("benchmark", ["alpaca-eval", "ifeval", "mt-bench"])
def test_what_is_written_for_others_is_read_again(benchmark: str, asked: str, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *(SHAPES["several"](i) for i in (0, 1, 3)))
    config = config_of(
        tmp_path, lines(tmp_path / "q.jsonl", *(
            {**json.loads(line), "kind": "x"} for line in Path(asked).read_text().splitlines()
        )), {"a": file}, "sampling.rounds=2", "prompts.category=kind",
    )  # fmt: skip
    complete(config, lambda *_: "")
    folder = evaluate(config, Console(file=io.StringIO()))
    written = export_outputs(folder.path, benchmark)
    assert all(path.is_relative_to(folder.path / "outputs" / benchmark) and lacking == 1 for path, lacking in written)
    texts: dict[str, list[Any]]
    if benchmark == "alpaca-eval":
        assert export_outputs(folder.path, "alpaca-eval-2") == written, "the name that it is evaluated by"
        texts = {path.name: [(o.instruction, o.output, o.generator) for o in read_outputs(path)] for path, _ in written}
        expected = {"a.json": [(PROMPTS[i], f"answer {i}", "a") for i in (0, 1, 3)],
                    "a+2.json": [(PROMPTS[i], f"other {i}", "a") for i in (0, 1, 3)]}  # fmt: skip
    elif benchmark == "ifeval":
        texts = {path.name: [(r.prompt, r.response) for r in read_responses(path)] for path, _ in written}
        expected = {"a.jsonl": [(PROMPTS[i], f"answer {i}") for i in (0, 1, 3)],
                    "a+2.jsonl": [(PROMPTS[i], f"other {i}") for i in (0, 1, 3)]}  # fmt: skip
    else:
        texts = {path.name: [(a.question_id, a.choices) for a in read_answers(path)] for path, _ in written}
        expected = {"a.jsonl": [(81 + i, ((f"answer {i}",), (f"other {i}",))) for i in (0, 1, 3)]}
    assert texts == expected
    again = given(tmp_path, asked, str(written[0][0]))
    assert [of_prompt[:1] for of_prompt in again.answers] == [[(f"answer {i}",)] if i != 2 else [] for i in range(4)]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    with pytest.raises(UserError, match=r"--benchmark: should be one of alpaca-eval, mt-bench, ifeval \(got 'x'\)"):
        export_outputs(tmp_path, "x")
    with pytest.raises(UserError, match=r"prompts\.parquet: no such file; is this the folder of a finished"):
        export_outputs(tmp_path, "ifeval")
    result = CliRunner().invoke(app, ["outputs", str(tmp_path), "--benchmark", "x"])
    assert isinstance(result.exception, UserError)


def test_an_answer_from_elsewhere_is_a_message_to_a_reward_model(base: str, tmp_path: Path) -> None:
    """Behind text it stands apart from that; nothing says that it was cut."""
    file = lines(tmp_path / "a.jsonl", {"prompt": PROMPTS[0], "response": "Yes."})
    plan = make_plan(config_of(tmp_path, "toy-test", {"a": file, "b": base}, "prompts.limit=1"))
    row = {"text": "Yes.", "ended": "given"}
    answer = plan.given["a"].answer(plan.prompts[0], row)
    completion = plan.policies["b"].speaker.completion(plan.prompts[0], answer)
    assert (completion.turns, completion.cut) == (" Yes.", False)
    assert np.shape(plan.seeds) == (1, 1)
