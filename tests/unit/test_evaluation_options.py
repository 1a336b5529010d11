"""What an evaluation may be told of its models, and what its plan refuses before anything is generated."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, MptConfig, T5Config

from orpo_ray.config import EvaluationConfig, ModelConfig, ScoreConfig, parse_as
from orpo_ray.data import toyworld
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.evaluation.plan import EvaluationPlan, make_plan
from orpo_ray.evaluation.score import score
from orpo_ray.evaluation.work import Judgements, Responses, Task
from orpo_ray.inference.generation import Response
from orpo_ray.inference.scoring import Scorer
from orpo_ray.modeling.reward import load_foreign_reward_model

TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"


def save(folder: Path, template: str | None = None, **changes: Any) -> str:
    config = toyworld.model_config()
    config.num_hidden_layers = 1
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = copy.deepcopy(toyworld.tokenizer())
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    write_text_rule(folder, through_template=template is not None)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("chat"), NAMED_TEMPLATES["chatml"])


@pytest.fixture
def asked(tmp_path: Path) -> str:
    """Message lists of the embedded world."""
    prompts = [record["prompt"] for record in list(toyworld.records("toy-test"))[:3]]
    records = [{"prompt": [{"role": "user", "content": prompt.strip()}]} for prompt in prompts]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def plan(folder: Path, models: dict[str, Any], *overrides: str) -> EvaluationPlan:
    mapping = {
        "name": "e", "models": models, "prompts": {"source": "toy-test", "limit": 3}, "reward_models": {"r": "toy"},
        "sampling": {"max_tokens": 8}, "storage": {"path": str(folder)},
    }  # fmt: skip
    return make_plan(parse_as(EvaluationConfig, mapping, list(overrides), "test"))


# --- one model's own settings ------------------------------------------------------------------------------------


def test_a_base_model_beside_chat_models_has_a_template_of_its_own(
    base: str, chat: str, asked: str, tmp_path: Path
) -> None:
    source = f"prompts.source={asked}"
    with pytest.raises(
        UserError, match=r"asked\.jsonl:1: .*has no chat template, .*; set models\.a\.chat_template to "
    ):
        plan(tmp_path, {"a": base, "b": chat}, source)
    found = plan(tmp_path, {"b": chat, "a": {"path": base, "chat_template": TEMPLATE}}, source)
    alone = plan(tmp_path, {"b": chat}, source)
    words = toyworld.tokenizer()
    first = found.prompts[0].as_found.prompt[0]["content"]  # type: ignore[index]
    assert found.policies["a"].ids[0] == [*words(f"user: {first}")["input_ids"][1:], words.eos_token_id]
    assert found.policies["b"].ids == alone.policies["b"].ids
    assert found.policies["b"].responses.folder == alone.policies["b"].responses.folder


def test_one_model_s_template_goes_before_that_of_all(base: str, asked: str, tmp_path: Path) -> None:
    models = {"a": {"path": base, "chat_template": TEMPLATE}, "b": base}
    found = plan(tmp_path, models, f"prompts.source={asked}", "prompts.chat_template=chatml")
    both = plan(tmp_path, {"a": base, "b": base}, f"prompts.source={asked}", "prompts.chat_template=chatml")
    assert found.policies["a"].ids != both.policies["a"].ids
    assert found.policies["b"].ids == both.policies["b"].ids
    for key in ("models.a.chat_template", "prompts.chat_template"):
        with pytest.raises(UserError, match=rf"^{key}: .* is neither one of"):
            plan(tmp_path, {"a": {"path": base}}, f"{key}=chatmk")


def test_what_a_model_generates_in_is_part_of_what_its_responses_are(base: str, tmp_path: Path) -> None:
    stored, asked = (
        plan(tmp_path, {"a": {"path": base, "dtype": dtype}}).policies["a"] for dtype in ("auto", "bfloat16")
    )
    assert (stored.model.generation_dtype, stored.model.dtype) == ("float32", "float32")
    assert (asked.model.generation_dtype, asked.model.dtype) == ("bfloat16", "bfloat16")
    assert stored.responses.folder != asked.responses.folder
    assert stored.log_probs is not None and asked.log_probs is not None
    assert stored.log_probs.folder != asked.log_probs.folder


def test_a_path_alone_is_written_as_it_was(tmp_path: Path) -> None:
    given = {"a": "runs/a", "b": {"path": "runs/b", "chat_template": None, "dtype": "float16"}}
    mapping = {"name": "e", "models": {**given, "c": {"path": "runs/c"}}, "prompts": {"source": "toy"},
               "reward_models": {"r": "toy"}}  # fmt: skip
    config = parse_as(EvaluationConfig, mapping, [], "test")
    assert config.model_dump()["models"] == {**given, "c": "runs/c"}
    assert EvaluationConfig.model_validate(config.model_dump()) == config
    with pytest.raises(
        UserError, match=r"models\.a\.chat_templat; did you mean models\.a\.chat_template\?|unknown key"
    ):
        parse_as(EvaluationConfig, {**mapping, "models": {"a": {"path": "x", "chat_templat": "y"}}}, [], "test")
    for wrong in (3, None, ["x"]):
        with pytest.raises(UserError, match=r"^test: models\.a: should be a mapping of keys"):
            parse_as(EvaluationConfig, {**mapping, "models": {"a": wrong}}, [], "test")


def test_the_other_engine_says_what_it_does_not_do() -> None:
    mapping = {"name": "e", "models": {"a": "runs/a"}, "prompts": {"source": "toy"}, "reward_models": {"r": "toy"},
               "generation": {"engine": "transformers"}}  # fmt: skip
    parse_as(EvaluationConfig, mapping, [], "test")
    for override, told in (
        ("scaling.tensor_parallel=2", r"^test: scaling\.tensor_parallel: the engine transformers computes on one GPU"),
        ("models.a={path: runs/a, dtype: float16}", r"^test: models\.a\.dtype: the engine transformers computes in fl"),
    ):
        with pytest.raises(UserError, match=told):
            parse_as(EvaluationConfig, mapping, [override], "test")
    parse_as(EvaluationConfig, mapping, ["sampling.temperature=3"], "test")
    with_vllm = {**mapping, "generation": {"engine": "vllm"}}
    parse_as(EvaluationConfig, with_vllm, ["sampling.temperature=0"], "test")
    for temperature in ("3", "0.001"):
        with pytest.raises(UserError, match=rf"^test: sampling\.temperature \({temperature}\): vLLM draws at 0 and at"):
            parse_as(EvaluationConfig, with_vllm, [f"sampling.temperature={temperature}"], "test")


# --- log-probs of the data -----------------------------------------------------------------------------------------


def test_log_probs_of_the_data_can_be_left_out(base: str, tmp_path: Path) -> None:
    with_them, without = plan(tmp_path, {"a": base}), plan(tmp_path, {"a": base}, "log_probs=false")
    assert with_them.policies["a"].log_probs is not None
    assert without.policies["a"].log_probs is None
    assert without.policies["a"].responses.folder == with_them.policies["a"].responses.folder


def test_a_model_that_transformers_cannot_build_is_refused_unless_only_generated_from(
    base: str, asked: str, tmp_path: Path
) -> None:
    """It has another way to answer: vLLM's."""
    folder = Path(save(tmp_path / "other"))
    T5Config(
        vocab_size=len(toyworld.tokenizer()), d_model=16, num_layers=1, num_heads=1, dtype="float32"
    ).save_pretrained(folder)
    with pytest.raises(UserError, match=r"^models\.a: .*transformers cannot build it: .*; set log_probs=false to "):
        plan(tmp_path, {"a": str(folder)})
    plan(tmp_path, {"a": str(folder)}, "log_probs=false")
    plan(tmp_path, {"a": {"path": str(folder), "chat_template": TEMPLATE}}, f"prompts.source={asked}")


# --- judges --------------------------------------------------------------------------------------------------------


def test_the_embedded_world_s_truth_judges_nothing_else(base: str, tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    own = next(iter(toyworld.records("toy-test")))
    file.write_text("".join(json.dumps({**own, **other}) + "\n" for other in ({}, {"prompt": "Who are you?"})))
    told = r"mixed\.jsonl:2: the reward model toy knows the embedded world alone: not a request of the toy world"
    with pytest.raises(UserError, match=told):
        plan(tmp_path, {"a": base}, f"prompts.source={file}")
    mapping = {"name": "s", "reward_models": {"r": "toy"}, "prompts": {"source": str(file)},
               "storage": {"path": str(tmp_path)}}  # fmt: skip
    with pytest.raises(UserError, match=told):
        score(parse_as(ScoreConfig, mapping, [], "test"))


def test_a_judge_that_transformers_cannot_build_is_refused_by_the_plan(base: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "judge")
    settings = json.loads((Path(folder) / "config.json").read_text())
    other = {**settings, "model_type": "mamba", "architectures": ["MambaForSequenceClassification"], "num_labels": 1}
    (Path(folder) / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"^reward_models\.j: .*: transformers cannot build it: Unrecognized") as told:
        plan(tmp_path, {"a": base}, f"reward_models={{j: {folder}}}")
    assert "\n" not in str(told.value)


def test_a_judge_whose_dropout_is_a_whole_number_loads(tmp_path: Path) -> None:
    """MPT's configuration takes no float for it."""
    config = MptConfig(
        vocab_size=len(toyworld.tokenizer()), d_model=16, n_heads=2, n_layers=1, max_seq_len=256, num_labels=1
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    toyworld.tokenizer().save_pretrained(tmp_path)
    judge = load_foreign_reward_model(ModelConfig(name_or_path=str(tmp_path)))
    assert judge.model.config.attn_config.attn_pdrop == 0


# --- what is judged when -------------------------------------------------------------------------------------------


def test_a_model_is_judged_while_the_next_one_generates(base: str, tmp_path: Path) -> None:
    found = plan(tmp_path, {"a": base, "b": base, "c": base}, "prompts.limit=40")
    responses = Responses(found)
    judgements = Judgements(found, responses)
    in_process = Scorer({"r": None}, None, found.config.scoring)
    scorer = SimpleNamespace(rewards=SimpleNamespace(remote=in_process.rewards))

    def judge_all() -> list[Task]:
        judged = []
        while (task := judgements.next(log_probs=False)) is not None:
            judgements.receive(task, judgements.begin(scorer, task))
            judged.append(task)
        return judged

    assert judge_all() == [Task("", 0), Task("", 1)], "the data's own responses wait for nobody"
    for label in "abc":
        asked = responses.todo[label]
        responses.receive(label, [Response(each.prompt, each.round, " hello", 2, "stop") for each in asked])
        assert judge_all() == [Task(label, 0), Task(label, 1)]
    rows = [row for block in range(2) for row in found.judges["r"].rewards.read(block)]
    whose = Counter(row["model"] for row in rows)
    assert whose == {"chosen": 40, "rejected": 40, "a": 120, "b": 120, "c": 120}
    assert len({(row["prompt"], row["model"], row["round"]) for row in rows}) == len(rows)
    more = plan(tmp_path, {"a": base, "b": base, "c": base, "d": base}, "prompts.limit=40")
    assert [task.who for task in Judgements(more, Responses(more)).left] == ["d", "d"], "the others' rewards are found"


def test_a_prompt_that_a_model_does_not_answer_is_not_judged(tmp_path: Path) -> None:
    """Nor by a reward model from elsewhere, which reads whole conversations alone."""
    short = save(tmp_path / "short", max_position_embeddings=40)
    config = toyworld.model_config()
    config.num_hidden_layers, config.num_labels, config.pad_token_id = 1, 1, 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "judge")
    toyworld.tokenizer().save_pretrained(tmp_path / "judge")
    first, second = [record["prompt"] for record in list(toyworld.records("toy-test"))[:2]]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in (first, f"{second} " * 8)))
    found = plan(tmp_path, {"a": short}, f"prompts.source={file}", f"reward_models={{r: {tmp_path / 'judge'}}}")
    assert found.policies["a"].fits == [True, False]
    responses = Responses(found)
    judgements = Judgements(found, responses)
    asked = responses.todo["a"]
    responses.receive("a", [Response(each.prompt, each.round, " hello", 2, "stop") for each in asked])
    task = judgements.next(log_probs=False)
    in_process = Scorer({label: judge.model for label, judge in found.judges.items()}, None, found.config.scoring)
    scorer = SimpleNamespace(rewards=SimpleNamespace(remote=in_process.rewards))
    assert task is not None
    judgements.receive(task, judgements.begin(scorer, task))
    assert [(row["prompt"], row["round"]) for row in found.judges["r"].rewards.read(0)] == [(0, 0), (0, 1), (0, 2)]
