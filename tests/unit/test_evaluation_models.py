"""How the models of an evaluation are found, judged and dealt out, without a cluster."""

from __future__ import annotations

import copy
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.config.evaluation import ScoringConfig
from orpo_ray.data import toyworld
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.evaluation.evaluate import _is_finished
from orpo_ray.evaluation.plan import make_plan
from orpo_ray.evaluation.store import RESPONSES, EvaluationFolder, Pieces
from orpo_ray.inference.generation import request_seed
from orpo_ray.inference.models import find_policy, find_reward_model
from orpo_ray.inference.scoring import Judged, Scorer
from orpo_ray.inference.speaking import Answer


def save_toy(folder: Path, *, labels: int | None = None, template: str | None = None) -> Path:
    """A small policy, or a classifier of `labels`, in the embedded world's vocabulary, as one that was trained here."""
    config = toyworld.model_config()
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    if labels is None:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    else:
        config.num_labels, config.pad_token_id = labels, 1
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = copy.deepcopy(toyworld.tokenizer())  # there is one for all tests
    tokenizer.chat_template = template and NAMED_TEMPLATES[template]
    tokenizer.save_pretrained(folder)
    write_text_rule(folder, through_template=False)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("judge"), labels=1)


def config(tmp_path: Path, policy: Path, judge: Path | str, *overrides: str) -> EvaluationConfig:
    mapping = {
        "name": "e", "models": {"a": str(policy)}, "prompts": {"source": "toy-test", "limit": 50},
        "reward_models": {"r": str(judge)}, "sampling": {"max_tokens": 12}, "storage": {"path": str(tmp_path)},
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, list(overrides), "test")


# --- found and checked -------------------------------------------------------------------------------------------


def test_a_run_folder_stands_for_its_model(policy: Path, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path / "run" / "model")
    found, plain = (find_policy("a", str(folder), tmp_path) for folder in (tmp_path / "run", policy))
    assert found.folder == tmp_path / "run" / "model"
    assert found.digest == plain.digest
    assert (found.dtype, found.context) == ("float32", toyworld.model_config().max_position_embeddings)


def test_the_digest_follows_weights_template_and_text_rule(policy: Path, tmp_path: Path) -> None:
    def digest(change: Any) -> str:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(policy, folder)
        change(folder)
        return find_policy("a", str(folder), tmp_path).digest

    def weights(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.model.decoder.final_layer_norm.bias.data[0] += 1
        model.save_pretrained(folder)

    def template(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = "{{ messages }}"
        tokenizer.save_pretrained(folder)

    changes = [lambda folder: None, weights, template, lambda folder: write_text_rule(folder, True)]
    digests = [digest(change) for change in changes]
    assert len(set(digests)) == 4
    assert digests[0] == find_policy("a", str(policy), tmp_path).digest


def without(source: Path, target: Path, pattern: str) -> Path:
    shutil.copytree(source, target)
    for file in target.glob(pattern):
        file.unlink()
    return target


def test_models_that_are_none_are_told_in_one_line(policy: Path, judge: Path, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "metrics.jsonl").touch()
    two = save_toy(tmp_path / "two", labels=2)
    cases = [
        (find_policy, "./nowhere", r"models\.x: \./nowhere: no such folder"),
        (find_policy, str(tmp_path), r"models\.x: .* holds no model \(no config\.json\)"),
        (find_policy, str(tmp_path / "unfinished"), r"the run has none yet; train it further"),
        (find_policy, str(without(policy, tmp_path / "w", "*.safetensors")), r"models\.x: .*holds no weights"),
        (find_policy, str(without(policy, tmp_path / "t", "token*")), r"models\.x: .*tokenizer"),
        (find_policy, str(judge), r"models\.x: .* is a classifier, which writes no text"),
    ]
    for find, name, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            find("x", name, tmp_path)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"reward_models\.r: .* is no reward model"):
        find_reward_model("r", str(policy), "auto")
    with pytest.raises(UserError, match=r"reward_models\.r: .* is a classifier of 2 labels"):
        find_reward_model("r", str(two), "auto")


def test_an_adapter_is_merged_into_its_base(policy: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(policy)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(policy)
    adapted.save_pretrained(tmp_path / "adapter")
    found = find_policy("a", str(tmp_path / "adapter"), tmp_path / "cache")
    merged = AutoModelForCausalLM.from_pretrained(found.folder).eval()
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted.eval()(ids).logits, atol=1e-5, rtol=1e-5)
    assert found.digest != find_policy("a", str(policy), tmp_path).digest
    assert find_policy("a", str(tmp_path / "adapter"), tmp_path / "cache") == found


# --- judged ------------------------------------------------------------------------------------------------------


def test_packed_rewards_are_plain_forwards_whatever_the_number_of_answers(family: PretrainedConfig) -> None:
    """Prompts with 2 to 6 completions, some too long for the context, in one block; all families."""
    from orpo_ray.inference.scoring import fitted
    from orpo_ray.modeling.reward import PackedRewardModel
    from orpo_ray.modeling.scorer import packed_scores

    config = copy.deepcopy(family)
    config.num_labels = 1
    torch.manual_seed(0)
    plain, packed = (
        AutoModelForSequenceClassification.from_config(copy.deepcopy(config), attn_implementation=attention).eval()
        for attention in ("eager", "shared_prefix")
    )
    packed.load_state_dict(plain.state_dict())
    rng = np.random.default_rng(0)
    rows = [[rng.integers(3, 97, rng.integers(1, 40)).tolist() for _ in range(rng.integers(3, 8))] for _ in range(9)]
    rows[3][2] = rng.integers(3, 97, 128).tolist()  # with its prompt past the context of 128
    fits, kept = fitted(rows, 128)
    assert [fit.count(False) for fit in fits] == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    scores = packed_scores(PackedRewardModel(packed).eval(), kept, budget=300)
    for (prompt, *endings), values in zip(kept, scores, strict=True):
        plain.config.pad_token_id = None  # one unpadded text: its last token is its end
        for ending, value in zip(endings, values, strict=True):
            ids = torch.tensor([prompt + ending])
            with torch.no_grad():
                assert plain(input_ids=ids).logits.item() == pytest.approx(value, abs=1e-4)


def test_the_scorer_judges_by_every_reward_model(policy: Path, judge: Path, tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, policy, judge))
    models = {"r": plan.judges["r"].model, "truth": None}
    scorer = Scorer(models, None, ScoringConfig())
    answer = Answer(" Gladly! Ask me anything else.", cut=False, is_text=True)
    block = [Judged(prompt, (answer,)) for prompt in plan.prompts[:5]]
    rewards = scorer.rewards(["r", "truth"], block)
    assert [len(values) for values in rewards["r"]] == [3] * 5  # chosen, rejected, the answer
    assert all(chosen > rejected for chosen, rejected, _ in rewards["truth"])
    assert {values[2] for values in rewards["truth"]} == {2.0}  # courteous and helpful, no fact


# --- planned -----------------------------------------------------------------------------------------------------


def test_prompts_past_the_context_are_counted_not_dropped(policy: Path, judge: Path, tmp_path: Path) -> None:
    lengths = sorted(
        len(toyworld.tokenizer()(r["prompt"])["input_ids"]) for r in islice(toyworld.records("toy-test"), 50)
    )
    context = toyworld.model_config().max_position_embeddings
    room = context - lengths[25]  # about half of the prompts fit beside so many tokens
    plan = make_plan(config(tmp_path, policy, judge, f"sampling.max_tokens={room}"))
    missing = plan.policies["a"].fits.count(False)
    assert 0 < missing < 50
    asked = [request for block in range(len(plan.blocks)) for request in plan.requests("a", block)]
    assert len(asked) == (50 - missing) * 3
    assert any(f"a did not answer {missing} prompts" in note for note in plan.notes)
    with pytest.raises(UserError, match=r"models\.a: no prompt fits its context"):
        make_plan(config(tmp_path, policy, judge, f"sampling.max_tokens={context}"))


def test_different_templates_are_said_aloud(policy: Path, judge: Path, tmp_path: Path) -> None:
    other = save_toy(tmp_path / "other", template="orpo")
    write_text_rule(other, True)
    plan = make_plan(config(tmp_path, policy, judge, f"models.b={other}"))
    assert any("spoken to in different ways" in note and "a: text as it stands" in note for note in plan.notes)
    assert any("reward model r reads text in another form than b" in note for note in plan.notes)
    assert plan.policies["a"].ids != plan.policies["b"].ids
    assert make_plan(config(tmp_path, policy, judge)).notes == []


def test_pieces_lie_where_their_content_says(policy: Path, judge: Path, tmp_path: Path) -> None:
    def places(*overrides: str, name: Path | str = judge) -> tuple[str, str]:
        plan = make_plan(config(tmp_path, policy, name, *overrides))
        return plan.policies["a"].responses.folder.name, plan.judges["r"].rewards.parts["a"].folder.name

    first = places()
    assert places("name=other", "scaling.generators=2", "embedder=null") == first
    for change in ("sampling.temperature=0.5", "sampling.seed=1", "sampling.rounds=2", "prompts.limit=49"):
        assert all(new != old for new, old in zip(places(change), first, strict=True)), change
    responses, rewards = places(name="toy")
    assert responses == first[0]
    assert rewards != first[1]


def test_a_repeated_prompt_has_seeds_of_its_own(policy: Path, judge: Path, tmp_path: Path) -> None:
    source = tmp_path / "ask.jsonl"
    prompt = next(iter(toyworld.records("toy-test")))["prompt"]
    source.write_text(f"{json.dumps({'prompt': prompt})}\n" * 3)
    plan = make_plan(config(tmp_path, policy, judge, f"prompts.source={source}", "prompts.limit=null"))
    assert len({seed for seeds in plan.seeds for seed in seeds}) == 9
    assert plan.seeds[0][1] == request_seed(0, prompt, 0, 1)
    assert all(0 <= seed < 2**63 for seeds in plan.seeds for seed in seeds)
    assert plan.policies["a"].log_probs is None


# --- pieces ------------------------------------------------------------------------------------------------------


def test_a_damaged_piece_is_named_and_damaged_results_are_made_again(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, "a", "0123456789ab", RESPONSES)
    pieces.write(0, [{"prompt": 0, "round": 0, "text": "x", "tokens": 1, "ended": "stop"}])
    whole = pieces.path(0).read_bytes()
    for content in (b"", b"PAR1", whole[:-9], whole[:20] + b"\xff" * 40 + whole[60:]):
        pieces.path(0).write_bytes(content)
        with pytest.raises(UserError, match=r"00000\.parquet: cannot be read: .*; remove it, and it is made again"):
            pieces.read(0)
    folder = EvaluationFolder(tmp_path)
    folder.results.touch()
    for content in (b"", b"[]", b"{}", b'{"key": "other"}', b"\xff", b'{"key": "k"'):
        folder.winrates.write_bytes(content)
        assert not _is_finished(folder, "k")
    folder.winrates.write_text('{"key": "k"}')
    assert _is_finished(folder, "k")
