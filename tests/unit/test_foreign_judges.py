"""Reward models from elsewhere give what plain Hugging Face makes of whole conversations, as templates write them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    Gemma2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from orpo_ray.config import ModelConfig
from orpo_ray.config.evaluation import PromptsConfig, ScoringConfig
from orpo_ray.data.prompts import read_prompts
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.inference.listening import Listener, listener, scored_length
from orpo_ray.inference.models import EvaluatedModel, find_reward_model
from orpo_ray.inference.scoring import Judged, PackedJudge, Scorer
from orpo_ray.inference.speaking import Answer, Speaker, prompt_ids
from orpo_ray.modeling.reward import ForeignRewardModel, load_foreign_reward_model
from orpo_ray.modeling.scorer import packed_scores
from orpo_ray.statistics.winrate import TIE

_SMALL: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=48, max_position_embeddings=256,
)  # fmt: skip
_OPT: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, max_position_embeddings=256,
    word_embed_proj_dim=32, dropout=0.0,
)  # fmt: skip

# Templates in the shape of real ones, with what they write behind an answer.
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
_MARKS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>",
          "<|eot_id|>"]  # fmt: skip

# Family: configuration, template, special tokens of the tokenizer, the configuration's padding.
FAMILIES: dict[str, tuple[Any, str | None, dict[str, str], str | None]] = {
    "qwen": (Qwen3Config(**_SMALL), _CHATML, {"eos_token": "<|im_end|>", "pad_token": "<pad>"}, "<pad>"),
    "gemma": (
        Gemma2Config(**_SMALL, sliding_window=24, query_pre_attn_scalar=16, attn_logit_softcapping=20.0), _GEMMA,
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, "<pad>",
    ),
    "llama3": (LlamaConfig(**_SMALL), _LLAMA3, {"bos_token": "<s>", "eos_token": "<|eot_id|>"}, None),
    "llama3-pad-is-eos": (
        LlamaConfig(**_SMALL), _LLAMA3, {"bos_token": "<s>", "eos_token": "<|eot_id|>", "pad_token": "<|eot_id|>"},
        "<|eot_id|>",
    ),
    "opt": (OPTConfig(**_OPT), _PLAIN, {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}, "<pad>"),
    "opt-text": (OPTConfig(**_OPT), None, {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}, "<pad>"),
}  # fmt: skip


def make_tokenizer(template: str | None, **special: str) -> PreTrainedTokenizerFast:
    """Bytes, and the marks of all templates. Without merges, but tokenised whole all the same."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *_MARKS, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, [], fuse_unk=False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=_MARKS, **special)
    tokenizer.chat_template = template
    return tokenizer


def save_judge(folder: Path, family: str, seed: int = 0) -> Path:
    config, template, special, pad = FAMILIES[family]
    tokenizer = make_tokenizer(template, **special)
    config = type(config).from_dict({**config.to_dict(), "vocab_size": len(tokenizer), "num_labels": 1})
    config.pad_token_id = None if pad is None else tokenizer.convert_tokens_to_ids(pad)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_PAIRS = [
    ("What is one more than 0?", "It is 1.", "It is 1"),
    ("Hello", "Hello! How can I help?", "Go away."),
    ("Name a colour", "Blue", "Blue, of course, which is the colour of the sky on most days but not on all."),
    ("Say nothing", "", "Nothing"),
    ("Say it twice", "same", "same"),
]
_DRAWN = random.Random(0)
_PAIRS += [
    tuple("".join(_DRAWN.choices("abc dé\n<|>🦜", k=_DRAWN.randint(1, 60))) + end for end in "?.!") for _ in range(20)
]  # type: ignore[misc]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    records = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in _PAIRS]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def plain_rewards(folder: Path) -> list[list[float]]:
    """As a model card says: the template of the whole conversation, tokenised, and the classifier's own forward."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()

    def reward(prompt: str, response: str) -> float:
        if tokenizer.chat_template is None:
            ids = tokenizer(prompt + response, return_tensors="pt")["input_ids"]
        else:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(ids).logits[0, 0])

    return [[reward(prompt, response) for response in both] for prompt, *both in _PAIRS]


@pytest.mark.parametrize("kind", FAMILIES)
def test_rewards_and_verdicts_are_those_of_plain_hugging_face(kind: str, pairs: str, tmp_path: Path) -> None:
    folder = save_judge(tmp_path / kind, kind)
    model = find_reward_model("r", str(folder), "auto")
    assert not model.trained_here
    prompts, _ = read_prompts(PromptsConfig(source=pairs), with_messages=True)
    judged = [Judged(prompt, ()) for prompt in prompts]
    rewards = Scorer({"r": model}, None, ScoringConfig()).rewards(["r"], judged)["r"]
    expected = plain_rewards(folder)
    assert rewards == [pytest.approx(both, abs=1e-4) for both in expected]
    assert [_verdict(*both) for both in rewards] == [_verdict(*both) for both in expected]
    # As a model that was trained here would be asked, verdicts differ: the test can tell.
    own = Scorer({"r": _as_ours(model)}, None, ScoringConfig()).rewards(["r"], judged)["r"]
    assert [_verdict(*both) for both in own] != [_verdict(*both) for both in expected]


def _verdict(chosen: float | None, rejected: float | None) -> int:
    assert chosen is not None and rejected is not None
    return 0 if abs(chosen - rejected) <= TIE else 1 if chosen > rejected else -1


def _as_ours(model: EvaluatedModel) -> EvaluatedModel:
    write_text_rule(model.folder, through_template=False)
    return find_reward_model(model.label, str(model.folder), "auto")


def test_a_folder_says_whether_its_model_was_trained_here(tmp_path: Path) -> None:
    folder = save_judge(tmp_path / "judge", "qwen")
    model = find_reward_model("r", str(folder), "auto")
    assert type(listener(model, None)) is Listener
    ours = _as_ours(model)
    assert ours.trained_here and type(listener(ours, None)) is Speaker
    (folder / "orpo_ray.json").unlink()
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "reward_offset": 0.5}))
    assert find_reward_model("r", str(folder), "auto").trained_here


@pytest.mark.parametrize(
    ("ids", "pad", "expected"),
    [
        ([5, 6, 7], None, 3),
        ([5, 6, 7], 7, 2),
        ([5, 7, 7], 7, 1),
        ([7, 5, 7, 6], 7, 4),
        ([7, 7], 7, 1),
        ([0, 0, 5], 0, 3),
    ],
)
def test_the_scored_token_is_the_one_that_transformers_takes(ids: list[int], pad: int | None, expected: int) -> None:
    assert scored_length(ids, pad) == expected
    config = LlamaConfig(**_SMALL, vocab_size=11, num_labels=1)
    config.pad_token_id = pad
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        whole = model(torch.tensor([ids])).logits
        config.pad_token_id = None
        cut = model(torch.tensor([ids[:expected]])).logits
    torch.testing.assert_close(whole, cut)


def test_texts_that_begin_in_nothing_alike_are_scored_one_by_one(tmp_path: Path) -> None:
    folder = save_judge(tmp_path / "judge", "opt-text")
    judge = PackedJudge(find_reward_model("r", str(folder), "auto"), None, 1000, torch.device("cpu"))
    texts = [[5, 6, 7, 8], [9, 6, 7], [5, 6, 7]]
    together = judge.scores([[[], *texts], [texts[0][:2], texts[0][2:], texts[2][2:]]])
    assert [len(values) for values in together] == [3, 2]
    assert together[1] == pytest.approx([together[0][0], together[0][2]], abs=1e-5)
    assert isinstance(judge._network, ForeignRewardModel)
    assert together[0] == pytest.approx([judge._network.plain(ids) for ids in texts], abs=1e-5)


def test_a_model_that_is_not_packed_scores_texts_of_one_length_together(tmp_path: Path) -> None:
    """Without padding in its configuration transformers refuses two texts at once, and ours needs none."""
    folder = save_judge(tmp_path / "judge", "llama3")
    alone = load_foreign_reward_model(ModelConfig(name_or_path=str(folder), packing="off"))
    assert alone.alone
    rows = [[[5, 6, 7], [8, 9], [10, 11]], [[5, 7], [8, 9, 10], [8]]]
    expected = [[alone.plain([*prompt, *ending]) for ending in endings] for prompt, *endings in rows]
    assert packed_scores(alone, rows, 100) == [pytest.approx(values, abs=1e-5) for values in expected]


@pytest.mark.parametrize("kind", FAMILIES)
def test_in_bfloat16_rounding_is_no_other_model(kind: str, pairs: str, tmp_path: Path) -> None:
    model = find_reward_model("r", str(save_judge(tmp_path / kind, kind)), "bfloat16")
    prompts, _ = read_prompts(PromptsConfig(source=pairs), with_messages=True)
    judge = PackedJudge(model, None, 1000, torch.device("cpu"))
    judge.rewards([Judged(prompt, ()) for prompt in prompts])
    assert judge._checked


def test_a_template_that_is_missing_is_asked_for_by_the_key_of_an_evaluation(tmp_path: Path) -> None:
    source = tmp_path / "ask.jsonl"
    source.write_text(json.dumps({"prompt": [{"role": "user", "content": "Hello"}]}) + "\n")
    prompts, _ = read_prompts(PromptsConfig(source=str(source)), with_messages=True)
    speaker = listener(find_reward_model("r", str(save_judge(tmp_path / "judge", "opt-text")), "auto"), None)
    with pytest.raises(UserError, match=r"ask\.jsonl:1: .* has no chat template, .*; set prompts\.chat_template to"):
        prompt_ids(speaker, prompts)


def test_a_token_without_an_embedding_is_named(tmp_path: Path, pairs: str) -> None:
    folder = save_judge(tmp_path / "judge", "qwen")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|late|>"]})
    tokenizer.save_pretrained(folder)
    [prompt, *_], _ = read_prompts(PromptsConfig(source=pairs), with_messages=True)
    speaker = listener(find_reward_model("r", str(folder), "auto"), None)
    assert speaker.rows(speaker.question(prompt).prompt)  # nobody writes it
    tokenizer.chat_template = _CHATML + "<|late|>"
    tokenizer.save_pretrained(folder)
    speaker = listener(find_reward_model("r", str(folder), "auto"), None)
    with pytest.raises(UserError, match=r"^reward_models\.r: it has no embedding for '<\|late\|>', token \d+"):
        speaker.rows(speaker.question(prompt).prompt)


def test_an_answer_that_was_cut_is_closed_as_the_template_closes_any(tmp_path: Path, pairs: str) -> None:
    model = find_reward_model("r", str(save_judge(tmp_path / "judge", "qwen")), "auto")
    [prompt, *_], _ = read_prompts(PromptsConfig(source=pairs), with_messages=True)
    speaker = listener(model, None)
    whole, cut = (speaker.completion(prompt, Answer("It is", cut, is_text=False)) for cut in (False, True))
    question = speaker.question(prompt).prompt
    assert speaker.rows(question, [whole]) == speaker.rows(question, [cut])


def test_rewards_other_than_hugging_faces_are_refused(
    tmp_path: Path, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that pools by a rule of its own, such as code of a stranger may."""
    model = find_reward_model("r", str(save_judge(tmp_path / "judge", "qwen")), "auto")
    prompts, _ = read_prompts(PromptsConfig(source=pairs), with_messages=True)
    judge = PackedJudge(model, None, 1000, torch.device("cpu"))
    forward = judge._network.model.forward

    def shifted(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = output.logits + 1
        return output

    monkeypatch.setattr(judge._network.model, "forward", shifted)
    with pytest.raises(UserError, match=r"^reward_models\.r: its rewards are up to 1 away from .* cannot be used$"):
        judge.rewards([Judged(prompt, ()) for prompt in prompts])


def test_a_score_read_elsewhere_is_refused_before_its_tokenizer_is_looked_at(tmp_path: Path) -> None:
    config = DebertaV2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"reward_models\.r: .*DebertaV2.* has no linear score head on its last token"):
        find_reward_model("r", str(tmp_path), "auto")
