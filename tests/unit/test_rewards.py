"""What scores the responses of the policy in training: reward models, functions and the embedded world's truth."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import FAMILIES, SLOW, family
from test_evaluation_models import save_toy
from test_foreign_judges import make_tokenizer, save_judge
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from orpo_ray.config import parse_config
from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.config.objectives import DpoConfig, OnlineConfig
from orpo_ray.config.rollouts import RolloutsConfig
from orpo_ray.data import toyworld
from orpo_ray.data.formats import Message
from orpo_ray.data.prompts import Prompt, Question, read_prompts
from orpo_ray.data.templates import NAMED_TEMPLATES, Renderer
from orpo_ray.errors import UserError
from orpo_ray.inference.critic import critic_of, require_reference_tokens
from orpo_ray.inference.drawn import answer_of
from orpo_ray.inference.models import Answer, Speaker
from orpo_ray.inference.reward_functions import RewardFunction
from orpo_ray.inference.rewards import (
    Rewards,
    RewardSource,
    Scored,
    find_rewards,
    listeners,
    look_at,
    reward_metrics,
)
from orpo_ray.modeling.reward import ensure_pad_token

EOS = 2
TEXT = Prompt("here:1", *[Question("Ada asks: What is one plus two?", ())] * 2)
ASKED = [Message(role="user", content="Say one"), Message(role="assistant", content="one"),
         Message(role="user", content="Say two")]  # fmt: skip
CHAT = Prompt("here:2", *[Question(ASKED, ())] * 2)


def found(rewards: dict[str, Any]) -> list[RewardSource]:
    return find_rewards(RolloutsConfig.model_validate({"rewards": rewards}))


def scores(rewards: dict[str, Any], prompt: Prompt, *answers: Answer) -> list[Scored]:
    [scored] = Rewards(found(rewards)).score([(prompt, answers)])
    return scored


def said(*texts: str, cut: bool = False) -> list[Answer]:
    return [Answer(text, cut, is_text=True) for text in texts]


def plain(folder: Path, ids: Sequence[int]) -> float:
    """The logit at the last of `ids`, by Hugging Face's own forward."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return float(model(torch.tensor([list(ids)])).logits[0, 0])


def function(folder: Path, body: str, name: str = "rule", arguments: str = "prompts, responses") -> str:
    """A file with one function; the path of that."""
    file = folder / f"{name}.py"
    file.write_text(f"import math\nimport numpy\nimport torch\n\ndef {name}({arguments}):\n    {body}\n")
    return f"{file}:{name}"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("judge"), labels=1)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_judge(tmp_path_factory.mktemp("stranger"), "qwen")


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


# --- functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [len(text) for text in responses]", [5, 0]),
        ("return [text.startswith(' ') for text in responses]", [1, 0]),
        ("return (0.5 for _ in responses).__class__ and (0.5, -2)", [0.5, -2]),
        ("return numpy.array([1, 2], dtype='float32')", [1, 2]),
        ("return numpy.array([True, False])", [1, 0]),
        ("return [numpy.float32(0.25), numpy.int8(3)]", [0.25, 3]),
        ("return torch.tensor([0.5, 0.25], requires_grad=True)", [0.5, 0.25]),
        ("print('said', flush=True); return [prompts[0].endswith('two?'), len(prompts)]", [1, 2]),
        ("responses.clear(); prompts.clear(); return [1, 2]", [1, 2]),
    ],
)
def test_numbers_of_a_function(body: str, expected: list[float], tmp_path: Path) -> None:
    assert [each.score for each in scores({"f": function(tmp_path, body)}, TEXT, *said(" four", ""))] == expected


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return [1]", "returned 1 numbers for 2 responses"),
        ("return [1, 2, 3]", "returned 3 numbers for 2 responses"),
        ("return 1", "returned int, and should return a list of 2 numbers"),
        ("return None", "returned NoneType, and should return a list of 2 numbers"),
        ("return '12'", "returned str, and should return a list of 2 numbers"),
        ("return {0: 1, 1: 2}", "returned dict, and should return a list of 2 numbers"),
        ("return (1 for _ in responses)", "returned generator, and should return a list of 2 numbers"),
        ("return [1, None]", "returned None for response 1 of 2, which is no number"),
        ("return ['1', 2]", "returned '1' for response 0 of 2, which is no number"),
        ("return [1j, 2]", "returned 1j for response 0 of 2, which is no number"),
        ("return [[1], [2]]", "returned [1] for response 0 of 2, which is no number"),
        ("raise ValueError('first line\\nsecond line')", "raised ValueError: first line"),
        ("raise KeyError", "raised KeyError: KeyError"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    ],
)
def test_what_is_no_number_for_each_is_told_in_one_line(body: str, told: str, tmp_path: Path) -> None:
    path = function(tmp_path, body)
    with pytest.raises(UserError) as raised:
        scores({"f": path}, TEXT, *said(" a", " b"))
    assert str(raised.value) == f"rollouts.rewards.f: {path} {told}"


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        (None, "f", "{file}: no such file"),
        ("", "f", "{file} has no function f"),
        ("", "", "{file}: names no function; write it as FILE.py:FUNCTION"),
        ("", "a.b", "{file}:a.b names no function; write it as FILE.py:FUNCTION"),
        ("f = 3", "f", "{file}:f is int, and cannot be called"),
        ("def f(:", "f", "{file}, line 1: invalid syntax"),
        ("import nowhere_at_all", "f", "{file} cannot be run: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise SystemExit('no')", "f", "{file} cannot be run: SystemExit: no"),
        ("async def f(prompts, responses): ...", "f", "{file}:f is async function; it should return a list"),
        ("def f(prompts, responses): yield 1", "f", "{file}:f is a generator function; it should return a list"),
        ("async def f(prompts, responses): yield 1", "f", "{file}:f is an async generator function; it should"),
        ("class F:\n    async def __call__(self, prompts, responses): ...\nf = F()", "f", "{file}:f is async function"),
        ("def f(prompts): ...", "f", "{file}:f cannot be called with prompts and responses: got an unexpected keyword"),
        ("def f(prompts, responses, gold): ...", "f", "prompts and responses: missing a required argument: 'gold'"),
    ],
)
def test_functions_that_are_none_are_told_in_one_line(
    content: str | None, name: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "rules.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as raised:
        found({"f": f"{file}:{name}"})
    line = str(raised.value)
    assert line.startswith("rollouts.rewards.f: ") and "\n" not in line
    assert told.replace("{file}", str(file)).replace(": names", ": names") in line


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (
            "rules.txt:score",
            r"^rollouts\.rewards\.x: rules\.txt:score: no such folder .*; a function is FILE\.py:FUNCTION, ",
        ),
        ("./nowhere", r"^rollouts\.rewards\.x: \./nowhere: no such folder .*; a function is FILE\.py:FUNCTION, "),
        ("rules.py", r"^rollouts\.rewards\.x: rules\.py names no function; write it as FILE\.py:FUNCTION$"),
    ],
)
def test_a_path_that_is_neither_a_model_nor_a_function(path: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        found({"x": path})


def test_reward_models_that_are_none_are_told_by_the_key_of_rollouts(tmp_path: Path) -> None:
    policy, two = save_toy(tmp_path / "policy"), save_toy(tmp_path / "two", labels=2)
    for folder, told in ((policy, "is no reward model"), (two, "is a classifier of 2 labels")):
        with pytest.raises(UserError, match=rf"^rollouts\.rewards\.r: .* {told}"):
            found({"r": str(folder)})
    with pytest.raises(UserError, match=r"^rollouts\.rewards: every weight is 0"):
        found({"t": {"path": "toy", "weight": 0}})


def test_a_file_is_run_once_and_sees_what_lies_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "counted_beside.py").write_text("runs = []\n")
    (tmp_path / "both.py").write_text(
        "import counted_beside\nfrom dataclasses import dataclass\ncounted_beside.runs.append(1)\nprint('run')\n"
        "@dataclass\nclass Held:\n    value: 'int'\n"
        "def runs(prompts, responses): return [len(counted_beside.runs)] * len(responses)\n"
        "def more(prompts, responses): return [Held(7).value] * len(responses)\n"
    )
    sources = found({"a": f"{tmp_path}/both.py:runs", "b": f"{tmp_path}/both.py:more"})
    assert capsys.readouterr() == ("", ""), "what it prints is not the command's"
    [[scored]] = Rewards(sources).score([(TEXT, said(" a"))])
    assert scored.rewards == {"a": 1, "b": 7}
    assert not (tmp_path / "__pycache__/both.cpython-311.pyc").exists()


def test_the_digest_is_of_the_function_that_is_run(tmp_path: Path, judge: Path) -> None:
    file = tmp_path / "rules.py"
    text = "def f(prompts, responses): return [{}] * len(responses)\ng = f\n"
    file.write_text(text.format(1))
    [first, other, model, truth] = found({"f": f"{file}:f", "g": f"{file}:g", "r": str(judge), "t": "toy"})
    assert len({first.digest, other.digest, model.digest, truth.digest}) == 4
    file.write_text(text.format(2))  # as long as before, in the same second perhaps
    with pytest.raises(UserError, match=r"^rollouts\.rewards\.f: on \S+: .*rules\.py is another file than when"):
        Rewards([first])
    [changed] = found({"f": f"{file}:f"})
    assert changed.digest != first.digest
    assert Rewards([changed]).score([(TEXT, said(" a"))])[0][0].score == 2
    file.unlink()
    with pytest.raises(UserError, match=r"^rollouts\.rewards\.f: on \S+: .* cannot be read: No such file"):
        Rewards([changed])
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/rules.py").write_text(text.format(1))
    assert found({"f": f"{tmp_path}/moved/rules.py:f"})[0].digest == first.digest, "content counts, not the place"


def test_a_run_names_its_function_from_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function(tmp_path, "return [1] * len(responses)")
    monkeypatch.chdir(tmp_path)
    config = run_config({"f": "rule.py:rule", "g": {"path": "rule.py:rule", "weight": 2}, "t": "toy"})
    path = f"{tmp_path}/rule.py:rule"
    absolute = config.with_absolute_paths().rollouts
    assert absolute is not None and [each.path for each in absolute.rewards.values()] == [path, path, "toy"]
    assert config.local_paths() == {"rollouts.rewards.f": path, "rollouts.rewards.g": path}
    [source] = found({"f": "rule.py:rule"})
    assert isinstance(source.judge, RewardFunction) and source.judge.name == path


# --- what the policy said ----------------------------------------------------------------------------------------


def test_eos_is_not_searched_in_the_prompt() -> None:
    """The prompt holds EOS, the response none: it was cut, and is whole in the text."""
    tokenizer = copy.deepcopy(toyworld.tokenizer())
    tokenizer.chat_template = NAMED_TEMPLATES["orpo"]
    renderer = Renderer(tokenizer, None)
    asked = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert EOS in asked
    drawn = tokenizer("The answer is three.", add_special_tokens=False)["input_ids"]
    text = " The answer is three."
    assert answer_of(CHAT, asked, drawn, "length", renderer) == Answer(text, cut=True, is_text=False)
    assert answer_of(CHAT, asked, [*drawn, EOS], "stop", renderer) == Answer(text, cut=False, is_text=False)
    assert answer_of(CHAT, asked, [EOS], "stop", renderer) == Answer("", False, is_text=False)


@pytest.mark.parametrize("name", [*FAMILIES, SLOW])
def test_text_goes_on_behind_the_prompt_as_engines_decode_it(name: str) -> None:
    """SentencePiece's first space stands where there is one."""
    tokenizer = family(name).tokenizer
    renderer = Renderer(tokenizer, None, overrides_text=False)
    asked = tokenizer("Human: Hi\n\nAssistant:")["input_ids"]
    for text in (" sat on the mat.", "s sat", " où est le café? 猫", " ", ""):
        whole = tokenizer("Human: Hi\n\nAssistant:" + text)["input_ids"]
        if whole[: len(asked)] == asked:  # no token holds the end of one and the beginning of the other
            drawn = whole[len(asked) :]
            ended = answer_of(TEXT, asked, [*drawn, tokenizer.eos_token_id], "stop", renderer)
            assert ended == Answer(text, False, is_text=True)
            assert answer_of(TEXT, asked, drawn, "length", renderer) == Answer(text, True, is_text=True)


def test_a_cut_character_is_no_text() -> None:
    tokenizer = make_tokenizer(None, bos_token="<s>", eos_token="</s>")
    asked, drawn = (tokenizer(text)["input_ids"] for text in ("Hello", " 🦜 yes 🦜"))
    renderer = Renderer(tokenizer, None, overrides_text=False)
    assert answer_of(TEXT, asked, drawn[:-1], "length", renderer).text == " 🦜 yes "
    broken = [*drawn[:2], *drawn[5:]]  # the first byte of a bird, and words
    assert answer_of(TEXT, asked, broken, "length", renderer).text.endswith(" yes 🦜")


def test_ids_drawn_are_not_made_of_the_text_again(judge: Path) -> None:
    """Letters in place of words: another token sequence than the tokenizer's, of which the text alone is judged."""
    tokenizer = make_tokenizer(None, bos_token="<s>", eos_token="</s>")
    renderer = Renderer(tokenizer, None, overrides_text=False)
    asked = tokenizer(str(TEXT.as_found.prompt))["input_ids"]
    drawn = [*tokenizer(" Gladly!")["input_ids"], tokenizer.eos_token_id]
    before = list(drawn)
    answer = answer_of(TEXT, asked, drawn, "stop", renderer)
    assert (answer, drawn) == (Answer(" Gladly!", False, is_text=True), before)
    [scored] = scores({"r": str(judge)}, TEXT, answer)
    words = toyworld.tokenizer()
    ids = [*words(f"{TEXT.as_found.prompt} Gladly!")["input_ids"], EOS]
    assert scored.score == pytest.approx(plain(judge, ids), abs=1e-5)


@pytest.mark.parametrize("template", [None, "orpo", "chatml"])
def test_an_answer_is_what_the_policys_speaker_makes_of_the_text(
    template: str | None, judge: Path, tmp_path: Path
) -> None:
    """For policies that are trained on text as it stands, and through a template that ends turns in its own way."""
    tokenizer = make_tokenizer(template and NAMED_TEMPLATES[template], bos_token="<s>", eos_token="</s>")
    renderer = Renderer(tokenizer, None, overrides_text=template is not None)
    messages = Question([Message(role="user", content="Hello")], ())
    prompt = Prompt("here:1", Question("Hello", ()), messages)
    if template is None:
        asked, end = tokenizer("Hello")["input_ids"], "</s>"
    else:
        asked = tokenizer.apply_chat_template(messages.prompt, add_generation_prompt=True, return_dict=False)
        end = {"orpo": "</s>", "chatml": "<|im_end|>"}[template]
    drawn = [*tokenizer(" Good morning.")["input_ids"], tokenizer.convert_tokens_to_ids(end)]
    expected = Answer(" Good morning.", False, is_text=template is None)
    assert answer_of(prompt, asked, drawn, "stop", renderer) == expected
    assert answer_of(prompt, asked, drawn[:-1], "length", renderer) == expected._replace(cut=True)


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


# --- what the critic starts from ---------------------------------------------------------------------------------


def run_config(rewards: dict[str, Any], **objective: Any) -> Any:
    return parse_config(
        {"name": "r", "model": {"name_or_path": "toy"}, "data": {"train": "toy", "eval": "toy-test"},
         "objective": {"name": "ppo", **objective}, "train": {"global_batch_size": 8},
         "rollouts": {"rewards": rewards, "prompts": 8}}, [], "test",
    )  # fmt: skip


def test_the_critic_starts_from_the_first_reward_model_with_the_policys_tokens(
    judge: Path, stranger: Path, tmp_path: Path
) -> None:
    path = function(tmp_path, "return [1] * len(responses)")
    rewards = {"f": path, "t": "toy", "s": str(stranger), "r": str(judge)}
    tokenizer = toyworld.tokenizer()
    assert critic_of(run_config(rewards), tokenizer) == str(judge.resolve())
    padded = tmp_path / "run/model"
    save_toy(padded, labels=1)
    own = AutoTokenizer.from_pretrained(padded)
    own.pad_token = own.eos_token
    ensure_pad_token(own)
    own.save_pretrained(padded)
    assert len(AutoTokenizer.from_pretrained(padded)) == len(tokenizer) + 1
    assert critic_of(run_config({**rewards, "r": str(padded.parent)}), tokenizer) == str(padded)
    policy = save_toy(tmp_path / "policy")
    assert critic_of(run_config(rewards, critic=str(policy)), tokenizer) == str(policy)
    assert critic_of(run_config(rewards, critic="toy"), tokenizer) == "toy"


@pytest.mark.parametrize("pairs", [False, True])
def test_a_reference_with_other_tokens_is_refused(pairs: bool, judge: Path, stranger: Path, tmp_path: Path) -> None:
    """Log-probs of the policy's ids by other words are a KL to nothing; ids that it has no embedding for, a crash."""
    tokenizer, key = toyworld.tokenizer(), f"objective.{'pairs.' * pairs}reference"

    def refer(reference: Path | None) -> None:
        asked = {"reference": None if reference is None else str(reference)}
        config = run_config({"r": str(judge)}, **asked)
        if pairs:
            update = {"objective": OnlineConfig(pairs=DpoConfig(**asked))}  # type: ignore[arg-type]
            config = config.model_copy(update=update)
        require_reference_tokens(config, tokenizer)

    with pytest.raises(UserError, match=rf"^{key}: .*stranger.* has other tokens than the policy: token 0 is '<s>'"):
        refer(stranger)
    model = AutoModelForCausalLM.from_pretrained(save_toy(tmp_path / "same"))
    bare, fewer = tmp_path / "bare", tmp_path / "fewer"
    model.save_pretrained(bare)
    model.resize_token_embeddings(len(tokenizer) - 1)
    model.save_pretrained(fewer)
    for fitting in (None, tmp_path / "same", bare):
        refer(fitting)
    with pytest.raises(UserError, match=rf"^{key}: .* it has embeddings for {len(tokenizer) - 1} tokens, the policy"):
        refer(fewer)


def test_a_critic_with_other_tokens_is_refused(judge: Path, stranger: Path, tmp_path: Path) -> None:
    tokenizer = toyworld.tokenizer()
    refused = r"^objective\.critic: .*stranger.* has other tokens than the policy: token 0 is '<s>', and there token 1$"
    with pytest.raises(UserError, match=refused):
        critic_of(run_config({"r": str(judge)}, critic=str(stranger)), tokenizer)
    with pytest.raises(
        UserError, match=r"^objective\.critic: no reward model .* set objective\.critic to a model with"
    ):
        critic_of(run_config({"s": str(stranger), "t": "toy"}), tokenizer)
    with pytest.raises(UserError, match=r"^objective\.critic: \./nowhere: no such folder"):
        critic_of(run_config({"r": str(judge)}, critic="./nowhere"), tokenizer)
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<|late|>"])
    with pytest.raises(UserError, match=rf"token {len(tokenizer)} is '<\|late\|>', and there none$"):
        critic_of(run_config({"r": str(judge)}, critic=str(judge)), more)
    fewer = tmp_path / "fewer"
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    model.resize_token_embeddings(len(tokenizer) - 1)
    model.save_pretrained(fewer)
    tokenizer.save_pretrained(fewer)
    told = rf"it has embeddings for {len(tokenizer) - 1} tokens, the policy for {len(tokenizer)}$"
    with pytest.raises(UserError, match=told):
        critic_of(run_config({"r": str(judge)}, critic=str(fewer)), tokenizer)
