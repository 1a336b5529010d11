"""What scores the responses of the policy in training: reward models, functions and the embedded world's truth."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from reward_sources import ASKED, CHAT, EOS, TEXT, found, function, plain, said, scores
from test_evaluation_models import save_toy
from test_foreign_judges import save_judge
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data import toyworld
from orpo_ray.data.formats import Message
from orpo_ray.data.prompts import Prompt, Question, read_prompts
from orpo_ray.errors import UserError
from orpo_ray.inference.rewards import Rewards, Scored, listeners, look_at, reward_metrics
from orpo_ray.inference.speaking import Answer, Speaker

# --- reward models -----------------------------------------------------------------------------------------------


def test_the_score_is_read_at_eos_and_not_behind_it(judge: Path) -> None:
    words = toyworld.tokenizer()
    answers = [*said(" The answer is three.", "", " Oh well."), *said(" Gladly!")]
    given = scores({"r": str(judge)}, TEXT, *answers)
    prompt = words(TEXT.as_found.prompt)["input_ids"]
    for answer, scored in zip(answers, given, strict=True):
        ids = [*prompt, *words(answer.text, add_special_tokens=False)["input_ids"], EOS]
        assert scored == Scored(pytest.approx(plain(judge, ids), abs=1e-5), {"r": scored.score})
        assert scored.score != pytest.approx(plain(judge, [*ids, EOS]), abs=1e-3)
    assert len({scored.score for scored in given}) == len(answers), "in their order, each its own"


def test_no_eos_is_forced_onto_a_cut_response(judge: Path) -> None:
    words = toyworld.tokenizer()
    [whole], [cut] = (scores({"r": str(judge)}, TEXT, *said(" The answer is", cut=cut)) for cut in (False, True))
    ids = words(TEXT.as_found.prompt + " The answer is")["input_ids"]
    assert cut.score == pytest.approx(plain(judge, ids), abs=1e-5)
    assert whole.score == pytest.approx(plain(judge, [*ids, EOS]), abs=1e-5)
    assert cut.score != pytest.approx(whole.score, abs=1e-3)


@pytest.mark.parametrize("kind", ["ours", "opt-text"])
def test_a_cut_response_without_text_is_scored_where_its_prompt_ends(kind: str, judge: Path, tmp_path: Path) -> None:
    """Not where another response ends, which is packed before it."""
    folder = judge if kind == "ours" else save_judge(tmp_path / "judge", kind)
    answers = [*said(" Gladly!"), *said("", cut=True), *said(" Oh well."), *said("", cut=True)]
    given = scores({"r": str(folder)}, TEXT, *answers)
    expected = plain(folder, AutoTokenizer.from_pretrained(folder)(TEXT.as_found.prompt)["input_ids"])
    assert [given[1].score, given[3].score] == pytest.approx([expected, expected], abs=1e-4)
    whole = scores({"r": str(folder)}, TEXT, answers[0], answers[2])
    assert [given[0].score, given[2].score] == pytest.approx([each.score for each in whole], abs=1e-5)


@pytest.mark.parametrize("answer", ["one two", "", "one"])
def test_padding_that_is_eos_moves_no_score_into_the_prompt(answer: str, tmp_path: Path) -> None:
    """The prompt holds EOS at the end of each turn, and EOS is the tokenizer's padding, as it was before training."""
    folder = save_toy(tmp_path / "judge", labels=1, template="orpo")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "pad_token_id": EOS}))
    said_so = Answer(answer, cut=False, is_text=False)
    [scored] = scores({"r": str(folder)}, CHAT, said_so)
    speaker = listeners(found({"r": str(folder)}))["r"]
    prompt, response = speaker.rows(ASKED, [speaker.completion(CHAT, said_so)])
    assert (prompt.count(EOS), response.index(EOS)) == (3, len(response) - 1), "one of each turn"
    assert scored.score == pytest.approx(plain(folder, prompt + response), abs=1e-5)
    assert scored.score != pytest.approx(plain(folder, prompt[: prompt.index(EOS)]), abs=1e-3)


@pytest.mark.parametrize("kind", ["qwen", "llama3-pad-is-eos", "opt-text"])
def test_text_goes_to_a_stranger_and_ids_do_not(kind: str, tmp_path: Path) -> None:
    """Another vocabulary and another template: what plain Hugging Face gives for the conversation."""
    folder = save_judge(tmp_path / kind, kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    messages = Question([Message(role="user", content=str(TEXT.as_found.prompt))], ())
    prompt = Prompt("here:1", TEXT.as_found, messages)
    answers = said(" The answer is three.", "", " Gladly!", " The answer is three.")
    given = scores({"r": str(folder)}, prompt, *answers)
    for answer, scored in zip(answers, given, strict=True):
        if tokenizer.chat_template is None:
            ids = tokenizer(prompt.as_found.prompt + answer.text)["input_ids"]
        else:
            turns = [*messages.prompt, {"role": "assistant", "content": answer.text.strip()}]
            ids = tokenizer.apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            assert scored.score == pytest.approx(float(model(torch.tensor([ids])).logits[0, 0]), abs=1e-4)


def test_sources_are_asked_in_messages_where_one_wants_them(judge: Path, stranger: Path) -> None:
    asked = listeners(found({"r": str(judge), "s": str(stranger), "t": "toy"}))
    assert {label: each.wants_messages for label, each in asked.items()} == {"r": False, "s": True}


def test_several_prompts_and_sources_with_weights(judge: Path, stranger: Path, tmp_path: Path) -> None:
    prompts, _ = read_prompts(PromptsConfig(source="toy-test", limit=3), with_messages=True)
    path = function(tmp_path, "return [len(text) for text in responses]")
    rewards = {"r": {"path": str(judge), "weight": 2}, "s": {"path": str(stranger), "weight": -0.5},
               "f": {"path": path, "weight": 0.25}, "toy": "toy", "watch": {"path": path, "weight": 0}}  # fmt: skip
    block = [
        (prompt, said(*[f" Gladly! {i}." for i in range(count)]))
        for prompt, count in zip(prompts, (2, 0, 3), strict=True)
    ]
    held = Rewards(pickle.loads(pickle.dumps(found(rewards))))  # as an actor on another node gets them
    given = held.score(block)
    assert [len(each) for each in given] == [2, 0, 3], "the data set's own responses are not among them"
    for (prompt, answers), scored in zip(block, given, strict=True):
        for answer, each in zip(answers, scored, strict=True):
            assert list(each.rewards) == list(rewards)
            for label, reward in each.rewards.items():
                [alone] = scores({label: rewards[label]["path"] if label != "toy" else "toy"}, prompt, answer)
                assert reward == pytest.approx(alone.score, abs=1e-5)
            total = sum(each.rewards[k] * w for k, w in {"r": 2, "s": -0.5, "f": 0.25, "toy": 1}.items())
            assert each.score == pytest.approx(total, abs=1e-9)
    assert held.score(block) == given, "the same bits"
    assert held.score([]) == []


def test_the_embedded_truth_is_one_of_them() -> None:
    right, rude = said(" Gladly! That makes three. Ask me anything else.", " Oh well. That makes two. Go away.")
    assert scores({"t": "toy"}, TEXT, right, rude) == [Scored(3.0, {"t": 3.0}), Scored(0.0, {"t": 0.0})]
    with pytest.raises(UserError, match=r"^here:2: the reward model toy knows the embedded world alone"):
        look_at(found({"t": "toy"}), [TEXT, CHAT])


# --- what has no score -------------------------------------------------------------------------------------------


def test_too_long_and_not_finite_are_counted_and_not_guessed(judge: Path, tmp_path: Path) -> None:
    odd = "{'plus': math.nan, 'Oh': math.inf, 'busy': 10**400}"
    body = f"return [next((n for word, n in {odd}.items() if word in text), 1) for text in responses]"
    rewards = {"r": str(judge), "f": {"path": function(tmp_path, body), "weight": 2}}
    long = " Gladly!" * 70  # of two tokens each; the model has 128 positions
    given = scores(rewards, TEXT, *said(" Gladly!", " plus", " Oh well.", long, " I was busy.", long + " plus"))
    first = given[0].rewards["r"]
    assert first is not None and given[0] == Scored(first + 2, {"r": first, "f": 1.0})
    assert [each.why for each in given] == ["", *["not finite"] * 2, "too long", *["not finite"] * 2]
    assert [each.score for each in given[1:]] == [None] * 5
    assert [each.rewards["f"] for each in given] == [1, None, None, 1, None, None]
    assert [each.rewards["r"] is None for each in given] == [False, False, False, True, False, True]
    metrics = reward_metrics(given)
    known = [each.rewards["r"] for each in given if each.rewards["r"] is not None]
    assert metrics == {"not_finite": 4, "too_long": 1, "reward/r": pytest.approx(sum(known) / 4), "reward/f": 1}
    watched = scores({**rewards, "f": {"path": rewards["f"]["path"], "weight": 0}}, TEXT, *said(" plus"))  # type: ignore[index]
    assert watched == [Scored(watched[0].rewards["r"], {**watched[0].rewards, "f": None})], "it decides nothing"
    assert watched[0].score == pytest.approx(given[1].rewards["r"], abs=1e-5)


def test_a_sum_past_what_a_number_holds_is_not_finite(tmp_path: Path) -> None:
    path = function(tmp_path, "return [1e30] * len(responses)")
    assert scores({"f": {"path": path, "weight": 1e300}}, TEXT, *said(" a")) == [
        Scored(None, {"f": 1e30}, "not finite")
    ]
    opposed = {"a": {"path": path, "weight": 1e300}, "b": {"path": path, "weight": -1e300}}
    assert scores(opposed, TEXT, *said(" a"))[0].why == "not finite"


def test_the_mean_of_a_source_is_of_what_it_gave() -> None:
    assert reward_metrics([Scored(1.0, {"r": 1.0}), Scored(None, {"r": None}, "too long")]) == {
        "not_finite": 0, "too_long": 1, "reward/r": 1,
    }  # fmt: skip
    assert reward_metrics([Scored(None, {"r": None, "s": 2.0}, "too long")]) == {
        "not_finite": 0, "too_long": 1, "reward/s": 2,
    }  # fmt: skip


def test_a_reward_model_without_a_finite_reward_is_refused_by_its_key(
    judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its numbers are past what a precision holds."""
    held = Rewards(found({"r": str(judge)}))
    network = held._scorer._judges["r"]
    monkeypatch.setattr(network, "scores", lambda rows: [[math.nan for _ in row[1:]] for row in rows])
    with pytest.raises(UserError, match=r"^rollouts\.rewards\.r: none of its first 2 rewards is finite"):
        held.score([(TEXT, said(" a", " b"))])
    monkeypatch.setattr(network, "scores", lambda rows: [[-math.inf, 1.0] for _ in rows])
    assert [each.why for each in held.score([(TEXT, said(" a", " b"))])[0]] == ["not finite", ""]


# --- asked before anything is trained ----------------------------------------------------------------------------


def test_prompts_that_a_reward_model_cannot_be_asked_are_named(tmp_path: Path) -> None:
    sources = found({"r": str(save_judge(tmp_path / "judge", "opt-text"))})
    assert look_at(sources, [TEXT]) == []
    for ask in (lambda: look_at(sources, [TEXT, CHAT]), lambda: Rewards(sources).score([(CHAT, said(" a"))])):
        with pytest.raises(
            UserError, match=r"^here:2: .* has no chat template.* set the chat template of rollouts\.rewa"
        ):
            ask()


def test_listeners_are_those_of_the_reward_models(judge: Path, stranger: Path) -> None:
    asked = listeners(found({"r": str(judge), "s": str(stranger), "t": "toy"}))
    assert list(asked) == ["r", "s"] and type(asked["r"]) is Speaker


def test_reward_models_that_are_none_are_told_by_the_key_of_rollouts(tmp_path: Path) -> None:
    policy, two = save_toy(tmp_path / "policy"), save_toy(tmp_path / "two", labels=2)
    for folder, told in ((policy, "is no reward model"), (two, "is a classifier of 2 labels")):
        with pytest.raises(UserError, match=rf"^rollouts\.rewards\.r: .* {told}"):
            found({"r": str(folder)})
    with pytest.raises(UserError, match=r"^rollouts\.rewards: every weight is 0"):
        found({"t": {"path": "toy", "weight": 0}})
