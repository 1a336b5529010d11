"""Conversations of several turns, and categories of prompts that are answered each in its own way."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from offline_evaluation import answer, complete
from test_evaluation_options import plan as plan_of
from test_evaluation_options import save
from transformers import AutoModelForSequenceClassification

from orpo_ray.config import EvaluationConfig, ScoreConfig, parse_as
from orpo_ray.config.evaluation import PromptsConfig, SamplingConfig
from orpo_ray.data import toyworld
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.prompts import read_prompts
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.export import export_outputs
from orpo_ray.evaluation.plan import TOO_LONG, make_plan
from orpo_ray.evaluation.store import content_key
from orpo_ray.evaluation.turns import furthest, next_turn
from orpo_ray.inference.generation import Request
from orpo_ray.inference.plain_generation import Waiting
from orpo_ray.leaderboards.files import read_answers
from orpo_ray.report import write_evaluation_report
from orpo_ray.status.evaluation import evaluation_status
from orpo_ray.terminal import Console

ASKED = [record["prompt"].strip() for record in list(toyworld.records("toy-test"))[:8]]
QUESTIONS = [
    {"question_id": 81 + i, "category": ["math", "writing"][i % 2], "turns": [ASKED[2 * i], ASKED[2 * i + 1]]}
    for i in range(4)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    config = toyworld.model_config()
    config.num_hidden_layers, config.num_labels, config.pad_token_id = 1, 1, 1
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "judge")
    tokenizer = toyworld.tokenizer()
    template, tokenizer.chat_template = tokenizer.chat_template, NAMED_TEMPLATES["chatml"]
    tokenizer.save_pretrained(folder / "judge")
    tokenizer.chat_template = template
    write_text_rule(folder / "judge", through_template=True)
    return {
        "chat": save(folder / "chat", NAMED_TEMPLATES["chatml"]),
        "short": save(folder / "short", NAMED_TEMPLATES["chatml"], max_position_embeddings=104),
        "judge": str(folder / "judge"),
    }


@pytest.fixture
def source(tmp_path: Path) -> str:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return str(file)


def config_of(storage: Path, source: str, models: dict[str, Any], judge: str, *overrides: str) -> EvaluationConfig:
    mapping = {
        "name": "e", "models": models, "prompts": {"source": source, "turns": 2}, "reward_models": {"r": judge},
        "sampling": {"max_tokens": 8, "rounds": 2}, "embedder": None, "storage": {"path": str(storage / "runs")},
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, list(overrides), "test")


def says(label: str, turn: int, request: Request) -> str:
    return f" {ASKED[(request.prompt + request.round + turn) % 8]}"


def test_the_second_question_is_asked_behind_the_model_s_own_answer(
    models: dict[str, str], source: str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, source, {"a": models["chat"], "b": models["chat"]}, models["judge"])
    first = make_plan(config)
    assert not first.last and first.judges == {} and furthest(first) is first
    assert not any("further turns" in note for note in first.notes)
    answer(first, says)
    second = furthest(make_plan(config))
    assert second.turn == 2 and second.last and list(second.judges) == ["r"]
    work = second.policies["a"]
    for prompt, of_prompt in enumerate(work.conversations or []):
        for round, asked in enumerate(of_prompt):
            assert asked is not None
            told = says("a", 1, Request(prompt, round, [], 0))
            expected = [("user", ASKED[2 * prompt]), ("assistant", told), ("user", ASKED[2 * prompt + 1])]
            messages = [{"role": role, "content": text} for role, text in expected]
            assert asked.as_found.prompt == messages
            rendered = work.speaker.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            ids = rendered["input_ids"] if hasattr(rendered, "keys") else rendered
            assert work.asked(prompt, round) == list(ids)[-len(work.asked(prompt, round) or []) :]
    requests = [request for block in range(len(second.blocks)) for request in second.requests("a", block)]
    assert len(requests) == 8 and len({tuple(request.ids) for request in requests}) == 8
    assert {request.seed for request in requests}.isdisjoint(seed for of_prompt in first.seeds for seed in of_prompt)


def test_other_first_answers_are_another_second_turn(models: dict[str, str], source: str, tmp_path: Path) -> None:
    folders = []
    for storage, told in (("one", says), ("two", says), ("three", lambda *_: " hello")):
        config = config_of(tmp_path / storage, source, {"a": models["chat"]}, models["judge"])
        first = make_plan(config)
        answer(first, told)
        second = next_turn(first)
        folders.append((second.policies["a"].responses.folder.name, second.judges["r"].rewards.names))
    assert folders[0] == folders[1] != folders[2]
    assert folders[0][1] != folders[2][1]


def test_reward_models_judge_the_last_turn_with_the_conversation_in_view(
    models: dict[str, str], source: str, tmp_path: Path
) -> None:
    """And the results, the page, its status and MT-Bench's own file have both turns."""
    outputs = tmp_path / "gpt.jsonl"
    answers = [{"question_id": 81 + i, "choices": [{"index": 0, "turns": [ASKED[i], " Yes."]}]} for i in range(3)]
    outputs.write_text("".join(json.dumps(each) + "\n" for each in answers))
    config = config_of(tmp_path, source, {"a": models["chat"], "gpt": str(outputs)}, models["judge"])
    last = complete(config, says)
    folder = evaluate(config, Console(file=io.StringIO()))
    rows = pq.read_table(folder.results).to_pylist()
    assert Counter((row["model"], row["turn"]) for row in rows) == {
        ("a", 1): 8, ("a", 2): 8, ("gpt", 1): 4, ("gpt", 2): 4,
    }  # fmt: skip
    assert all(row["reward:r"] is None for row in rows if row["turn"] == 1 or row["text"] is None)
    network = AutoModelForSequenceClassification.from_pretrained(models["judge"]).eval()
    speaker = last.listeners["r"]
    for row in (row for row in rows if row["turn"] == 2 and row["text"] is not None):
        before = next(r for r in rows if (r["model"], r["prompt"], r["round"], r["turn"])
                      == (row["model"], row["prompt"], row["round"], 1))  # fmt: skip
        texts = [ASKED[2 * row["prompt"]], before["text"], ASKED[2 * row["prompt"] + 1], row["text"]]
        messages = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(texts)]
        written = speaker.tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=NAMED_TEMPLATES["chatml"]
        )
        ids = speaker.tokenizer(written, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            reward = network(torch.tensor([[*ids, speaker.tokenizer.eos_token_id]])).logits.item()
        assert row["reward:r"] == pytest.approx(reward, abs=1e-4), row
    found = json.loads(folder.winrates.read_text())
    model = found["models"]["a"]
    assert (model["asked"], model["responses"]) == (16, 16)
    assert found["models"]["gpt"]["not_generated"] == {"not in the file": 2}
    assert "Reward models judge the answers of turn 2, with the conversation in view." in found["notes"]
    prompts = pq.read_table(folder.prompts).to_pylist()
    assert [(row["text"], row["further"]) for row in prompts] == [(q["turns"][0], q["turns"][1:]) for q in QUESTIONS]
    page = write_evaluation_report(folder.path).read_text()
    assert "[turn 2: " in page
    status = evaluation_status(folder.path, config.for_a_file(), "")
    assert status.state == "finished"
    [(mine, none), (theirs, lacking)] = export_outputs(folder.path, "mt-bench")
    assert (none, lacking) == (0, 1)
    assert read_answers(theirs)[0].choices == ((ASKED[0], " Yes."),)
    assert [each.question_id for each in read_answers(mine)] == [81, 82, 83, 84]
    assert [len(each.choices) for each in read_answers(mine)] == [2] * 4
    with pytest.raises(UserError, match="several turns, for which ifeval has no place"):
        export_outputs(folder.path, "ifeval")
    before_again = folder.winrates.read_bytes()
    said = io.StringIO()
    evaluate(config, Console(file=said))
    assert "already finished" in said.getvalue() and folder.winrates.read_bytes() == before_again


def test_a_conversation_that_does_not_fit_is_counted(models: dict[str, str], source: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, source, {"a": models["short"]}, models["judge"])
    long = f" {' '.join(ASKED[:3])}"
    last = complete(config, lambda label, turn, request: long if request.prompt == 1 and turn == 1 else says(
        label, turn, request
    ))  # fmt: skip
    [note] = [note for note in last.notes if "was not asked turn 2" in note]
    assert note.startswith("a was not asked turn 2 in 2 conversations: they do not fit its context of 104 tokens")
    folder = evaluate(config, Console(file=io.StringIO()))
    rows = [row for row in pq.read_table(folder.results).to_pylist() if row["turn"] == 2]
    assert [(row["prompt"], row["ended"]) for row in rows if row["text"] is None] == [(1, TOO_LONG)] * 2
    model = json.loads(folder.winrates.read_text())["models"]["a"]
    assert (model["asked"], model["responses"], model["not_generated"]) == (16, 14, {TOO_LONG: 2})


def test_thoughts_are_not_told_to_the_model_again(models: dict[str, str], source: str, tmp_path: Path) -> None:
    config = config_of(
        tmp_path, source, {"a": models["chat"]}, models["judge"], "answers.strip_thinking=true", "sampling.rounds=1"
    )
    first = make_plan(config)
    answer(first, lambda *_: "<think>Hm</think>\n\nhello")
    conversations = next_turn(first).policies["a"].conversations
    assert conversations is not None
    assert {each.as_found.prompt[1]["content"] for [each] in conversations if each} == {"hello"}  # type: ignore[index]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_what_has_too_few_turns_is_a_bad_record(source: str, tmp_path: Path) -> None:
    for turns, count in ((1, 1), (2, 1)):
        prompts, account = read_prompts(PromptsConfig(source=source, turns=turns), with_messages=True)
        assert len(prompts) == 4 and [len(prompt.as_found.further) for prompt in prompts] == [turns - 1] * 4
        assert (account.noted.total() > 0) == (turns == count)
    with pytest.raises(UserError, match=r"questions\.jsonl:1: too few turns: 2, where prompts\.turns asks 3; mend"):
        read_prompts(PromptsConfig(source=source, turns=3), with_messages=False)
    with pytest.raises(UserError, match=r"too few turns: 1"):
        read_prompts(PromptsConfig(source="toy-test", turns=2), with_messages=False)


def test_mt_bench_on_the_hub_has_its_turns_under_prompt(source: str, tmp_path: Path) -> None:
    file = tmp_path / "hub.jsonl"
    file.write_text("".join(json.dumps({"prompt": q["turns"], "category": q["category"]}) + "\n" for q in QUESTIONS))
    here, there = (
        read_prompts(PromptsConfig(source=path, turns=2), with_messages=True)[0] for path in (source, str(file))
    )
    assert [prompt.as_found for prompt in here] == [prompt.as_found for prompt in there]


def test_a_category_is_a_text_or_a_number_of_every_record(source: str) -> None:
    prompts, account = read_prompts(PromptsConfig(source=source, category="category"), with_messages=False)
    assert [prompt.category for prompt in prompts] == ["math", "writing"] * 2
    assert "category" not in account.unread
    numbers, _ = read_prompts(PromptsConfig(source=source, category="question_id"), with_messages=False)
    assert [prompt.category for prompt in numbers] == ["81", "82", "83", "84"]
    with pytest.raises(UserError, match=r"questions\.jsonl:1: no category: kind \(prompts\.category\) is no text"):
        read_prompts(PromptsConfig(source=source, category="kind"), with_messages=False)


def test_scores_have_neither(tmp_path: Path) -> None:
    mapping = {"name": "s", "reward_models": {"r": "toy"}, "prompts": {"source": "toy-test"}}
    for override, told in (("prompts.turns=2", "turns: nothing is asked"), ("prompts.category=c", "category: is of")):
        with pytest.raises(UserError, match=rf"^test: prompts: {told}"):
            parse_as(ScoreConfig, mapping, [override], "test")


# --- categories ------------------------------------------------------------------------------------------------------


BY_CATEGORY = (
    "prompts.turns=1",
    "prompts.category=category",
    "sampling.by_category={math: {temperature: 0, max_tokens: 30}, poems: {top_p: 0.5}}",
)


def test_each_category_is_answered_in_its_own_way(models: dict[str, str], source: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, source, {"a": models["chat"]}, models["judge"], *BY_CATEGORY)
    found = make_plan(config)
    requests = [request for block in range(len(found.blocks)) for request in found.requests("a", block)]
    assert Counter(request.category for request in requests) == {"math": 4, "writing": 4}
    drawn = {name: config.sampling.of(name) for name in ("math", "writing")}
    assert (drawn["math"].temperature, drawn["math"].max_tokens) == (0, 30)
    assert (drawn["writing"].temperature, drawn["writing"].max_tokens) == (1, 8)
    longest = max(len(ids) + drawn[prompt.category].max_tokens for ids, prompt in zip(
        found.policies["a"].ids, found.prompts, strict=True
    ))  # fmt: skip
    assert found.policies["a"].max_length == longest
    assert "No prompt is of the category poems (sampling.by_category)." in found.notes
    without = make_plan(config_of(tmp_path, source, {"a": models["chat"]}, models["judge"], *BY_CATEGORY[:2]))
    assert without.policies["a"].responses.folder != found.policies["a"].responses.folder


def test_requests_of_one_category_are_computed_together() -> None:
    together: list[list[str]] = []

    def compute(requests: Any) -> list[Any]:
        together.append([request.category for request in requests])
        return list(requests)

    waiting = Waiting(compute)
    asked = [Request(i, 0, [1, 2], i, ["math", "writing", ""][i % 3]) for i in range(9)]
    found = waiting.advance(asked)
    while more := waiting.advance([]):
        found += more
    assert sorted(found) == asked
    assert [set(each) for each in together] == [{"math"}, {"writing"}, {""}]


def test_what_came_later_changes_no_key_of_what_was_there(models: dict[str, str], tmp_path: Path) -> None:
    """Pieces of earlier versions are found: their keys were made of these values."""
    found = plan_of(tmp_path, {"a": models["chat"]})
    work, judge = found.policies["a"], found.judges["r"]
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8, "rounds": 3, "seed": 0, "stop": ()}
    assert SamplingConfig(max_tokens=8).model_dump() == sampling
    stop = {"stop": work.stop_ids} if work.stop_ids else {}
    responses = content_key(
        model=[work.model.digest, work.model.generation_dtype], ids=work.ids, blocks=found.blocks, sampling=sampling,
        prompts=[prompt.as_found.prompt for prompt in found.prompts], **stop,
    )  # fmt: skip
    assert work.responses.folder.name == f"a-{responses[:12]}"
    contents = [[prompt.as_found.prompt, prompt.as_found.completions] for prompt in found.prompts]
    asked = content_key(prompts=contents, blocks=found.blocks)
    said = [work.speaker.template, work.speaker.wants_messages]
    rewards = content_key(model="toy", template=None, asked=asked, responses=f"a-{responses[:12]}", said=said)
    assert judge.rewards.parts["a"].folder.name == f"r-a-{rewards[:12]}"
