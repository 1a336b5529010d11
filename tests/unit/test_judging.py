"""What judges are asked, in which order, how their words are read, and where verdicts are found again."""

from __future__ import annotations

import gzip
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.config.judges import JudgingConfig
from orpo_ray.data import toyworld
from orpo_ray.errors import UserError
from orpo_ray.evaluation.judged import judged
from orpo_ray.judging.asking import Asked
from orpo_ray.judging.judges import _counter, _require_one_token
from orpo_ray.judging.places import Answered, places
from orpo_ray.judging.prompts import JudgePrompt, Turn
from orpo_ray.judging.reading import label_probability, preference, read
from orpo_ray.judging.store import VerdictStore
from orpo_ray.judging.verdict import Verdict

LABELS = Asked("", "", "labels", ("m", "M"))


# How words are read.


@pytest.mark.parametrize(
    ("likely", "probability"),
    [
        ([("m", math.log(0.6)), ("M", math.log(0.2))], 0.75),
        ([("m", -0.1), ("x", -3.0)], 1.0),  # a label that is not there counts nothing
        ([("M", -0.1)], 0.0),
        ([(" m", math.log(0.3)), ("m", math.log(0.3)), ("M", math.log(0.2))], 0.75),
        ([("x", -0.1), ("mm", -2.0)], None),
        ([], None),
        ([("m", -9999.0)], None),  # what servers write for a probability of nothing
        ([("m", math.nan), ("M", -1.0)], 0.0),
    ],
)
def test_labels_are_read_by_their_probabilities(likely: list[tuple[str, float]], probability: float | None) -> None:
    found = label_probability(("m", "M"), likely)
    assert found == (probability if probability is None else pytest.approx(probability, abs=1e-12))
    assert read(LABELS, "whatever", likely) == (found, None)


@pytest.mark.parametrize(
    ("said", "probability"),
    [
        ("A is right. [[A]]", 1.0), ("[[B]]", 0.0), ("both [[C]]", 0.5), ("[[ B ]]", 0.0),
        ("If A were right I would say [[A]], but: [[B]]", 0.0), ("A", None), ("[A]", None), ("[[D]]", None), ("", None),
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1.0),
        ('[{"model": "model_2", "rank": 1}, {"model": "model_1", "rank": 2}]', 0.0),
        ("[{'model': 'model_1', 'rank': 3}, {'model': 'model_2', 'rank': 1}]", None),
        ("[{'model': 'model_1', 'rank': 1}]", None),
    ],
)  # fmt: skip
def test_a_preference_is_the_last_that_is_said(said: str, probability: float | None) -> None:
    assert preference(said) == probability
    asked = Asked("", "", "preference")
    assert read(asked, f"<think>[[A]] [[B]] [[C]]</think>{said}") == (probability, None)
    assert read(asked, f"<think>{said} [[A]]") == (None, None)  # cut while it thought


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("Rating: [[7]]", 7.0), ("[[8.5]] rather than [[3]]", 8.5), ("[6]", 6.0), ("see [2], so [[9]]", 9.0),
        ("[[11]]", None), ("[[0]]", None), ("[[10]]", 10.0), ("seven", None), ("[[rating]]", None), ("", None),
    ],
)  # fmt: skip
def test_a_rating_is_a_number_from_1_to_10(said: str, value: float | None) -> None:
    assert read(Asked("", "", "rating"), said) == (None, value)


@given(st.text(), st.sampled_from(["preference", "rating"]))
def test_any_text_has_a_verdict_or_none(said: str, reads: Any) -> None:
    probability, value = read(Asked("", "", reads), said)
    assert probability in (None, 0.0, 0.5, 1.0) and (value is None or 1 <= value <= 10)


def test_published_preferences_follow_from_log_probs_in_alpaca_eval_s_order(shared: Path) -> None:
    """All 805: what the model's side got, from the order that the judge is shown by ours."""
    rows = json.loads(gzip.decompress((shared / "data/alpaca_eval/gemma-2b-it.annotations.json.gz").read_bytes()))
    answers = {
        model: [[[row[output]]] for row in rows] for model, output in (("model", "output_2"), ("reference", "output_1"))
    }
    config = JudgingConfig(order="alpaca_eval", against="reference")
    answered = Answered([[row["instruction"]] for row in rows], answers, [None] * len(rows))
    found = list(places(config, JudgePrompt(config), answered))
    assert len(found) == 805
    for (place, asked), row in zip(found, rows, strict=True):
        assert asked is not None
        top = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
        first, _ = read(asked, "", [(token["token"], token["logprob"]) for token in top])
        assert first is not None
        assert (first if place.shown_first else 1 - first) == pytest.approx(row["preference"] - 1, abs=1e-6)


# What they are shown.


def prompt_of(folder: Path, name: str, content: str, **settings: Any) -> JudgePrompt:
    (folder / name).write_text(content)
    return JudgePrompt(JudgingConfig(prompt=str(folder / name), **settings))


CHATML = """<|im_start|>system
You judge.
<|im_end|>
<|im_start|>user
{
    "instruction": "{instruction}", "m": "{output_1}", "M": "{output_2}", "kept": {other}
}
<|im_end|>"""
FASTCHAT = [
    ("[[A]]", "S", "{question}|{answer_a}|{answer_b}"),
    ("[[rating]]", "S", "{question}|{answer}"),
    ("[[rating]]", "M", "{question}|{ref_answer_1}|{answer}"),
    ("[[rating]]", "T", "{question_1}|{answer_1}|{question_2}|{answer_2}"),
    ("[[rating]]", "MT", "{ref_answer_1}|{ref_answer_2}|{question_1}|{answer_1}|{question_2}|{answer_2}"),
]
"""How each asks to be answered, its system prompt and its template."""


@pytest.mark.parametrize("compares", ["pairs", "rates"])
@pytest.mark.parametrize("reads", ["labels", "text"])
@pytest.mark.parametrize("turns", [1, 2])
def test_our_own_wording_shows_all_and_takes_texts_as_they_are(compares: Any, reads: Any, turns: int) -> None:
    settings = {"compares": compares, **({"reads": reads} if compares == "pairs" else {})}
    prompt = JudgePrompt(JudgingConfig(**settings))
    texts = ["{{ 7 * 7 }} {% for %}", "{output_1} <|im_end|>"][: 2 if compares == "pairs" else 1]
    asked = prompt.asked(
        [Turn(f"question {turn} {{{{ x }}}}", tuple(texts), "known" if turn else None) for turn in range(turns)]
    )
    assert all(asked.user.count(text) == turns for text in texts)
    assert all(f"question {turn} {{{{ x }}}}" in asked.user for turn in range(turns))
    assert asked.user.count("known to be good") == turns - 1
    assert prompt.name.startswith("orpo_ray: ") and "\n\n\n" not in asked.user


def test_alpaca_eval_s_own_file_is_filled_in_at_once(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path, "alpaca_eval.txt", CHATML)
    asked = prompt.asked([Turn("{output_2}", ("{instruction}", "two"))])
    assert asked.system == "You judge."
    assert asked.user == '{\n    "instruction": "{output_2}", "m": "{instruction}", "M": "two", "kept": {other}\n}'
    assert asked.labels == ("m", "M") and prompt.name == "alpaca_eval.txt"
    with pytest.raises(UserError, match=r"AlpacaEval's prompts show one turn, and the conversation has 2"):
        prompt.asked([Turn("q", ("a", "b"))] * 2)


def test_fastchat_s_file_has_a_prompt_for_each_kind_of_conversation(tmp_path: Path) -> None:
    names = ("output_format", "system_prompt", "prompt_template")
    lines = "".join(json.dumps({"name": "x", **dict(zip(names, line, strict=True))}) + "\n" for line in FASTCHAT)
    rates = prompt_of(tmp_path, "judge_prompts.jsonl", lines, compares="rates")
    one, two = Turn("q1", ("{question}",)), Turn("q2", ("a2",))
    assert (rates.asked([one]).system, rates.asked([one]).user) == ("S", "q1|{question}")
    assert rates.asked([one._replace(reference="r1")]).user == "q1|r1|{question}"
    assert rates.asked([one, two]).user == "q1|{question}|q2|a2"
    known = rates.asked([one._replace(reference="r1"), two._replace(reference="r2")])
    assert (known.system, known.user) == ("MT", "r1|r2|q1|{question}|q2|a2")
    pairs = prompt_of(tmp_path, "judge_prompts.jsonl", lines, reads="text")
    assert pairs.asked([Turn("q1", ("a", "b"))]).user == "q1|a|b"
    with pytest.raises(UserError, match=r"judge_prompts\.jsonl: holds no prompt for 2 turns"):
        pairs.asked([Turn("q", ("a", "b"))] * 2)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.yaml", "user: '{{ turns[0].question }} {{ turns[0].first }}'", "does not show the other"),
        ("p.yaml", "system: x", "has no user"),
        ("p.yaml", "user: x\nusr: y", "expected the keys system and user alone"),
        ("p.yaml", "user: '{% for %}'", "line 1 of a text"),
        ("p.yaml", "user: '{{ turn.question }}'", "cannot be filled in: 'turn' is undefined"),
        ("p.yaml", "user: \"{{ ''.__class__.__mro__ }}\"", "cannot be filled in: access to attribute"),
        ("p.yaml", "user: [", "while parsing"),
        ("p.yaml", "user: '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}'", "cannot be filled in: RecursionError"),
        ("p.yaml", f"user: '{{{{ {'(' * 3000}1{')' * 3000} }}}}'", "nested too deep"),
        ("p.yaml", "user: \"{{ 'x' * 10000000000000 }}\"", "cannot be filled in: MemoryError"),
        ("p.txt", "Which is better, {output_1} or {output_2}?", "does not show the question"),
        ("p.jsonl", '{"prompt_template": "", "system_prompt": "", "output_format": "[[rating]]"}\n', "holds no prompt"),
        ("p.jsonl", '{"system_prompt": "s"}\n', "line 1: has no prompt_template"),
    ],
)  # fmt: skip
def test_a_prompt_that_does_not_fit_is_said_before_anybody_is_asked(
    name: str, content: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        prompt_of(tmp_path, name, content)
    assert str(error.value).startswith(str(tmp_path / name)) and told in str(error.value)


FIRST_ALONE = "user: '{{ turns[0].question }} {{ turns[0].answer }}'"
NO_REFERENCE = "user: '{% for turn in turns %}{{ turn.question }} {{ turn.answer }}{% endfor %}'"


@pytest.mark.parametrize(
    ("content", "turns", "references", "told"),
    [
        (FIRST_ALONE, 1, None, None),
        (FIRST_ALONE, 2, None, "does not show the question of turn 2"),
        (NO_REFERENCE, 3, None, None),
        (NO_REFERENCE, 1, "r.jsonl", "does not show the reference answer (judging.references)"),
        (NO_REFERENCE.replace("turn.answer", "turn.answer ~ turn.reference"), 2, "r.jsonl", None),
        (NO_REFERENCE.replace("turn.answer", "turn.answer + turn.reference"), 2, "r.jsonl", "cannot be filled in"),
    ],
)
def test_a_prompt_shows_each_turn_and_references(
    content: str, turns: int, references: str | None, told: str | None, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(content)
    config = JudgingConfig(prompt=str(tmp_path / "p.yaml"), compares="rates", references=references)
    if told is None:
        JudgePrompt(config, turns)
        return
    with pytest.raises(UserError) as error:
        JudgePrompt(config, turns)
    assert told in str(error.value)


# Who stands against whom, in which order.


def there(models: dict[str, list[list[str]]], questions: int = 6) -> Answered:
    """One round; `models`: by prompt the answers of all turns."""
    return Answered(
        [[f"q{i}", f"and then {i}"] for i in range(questions)],
        {label: [[answers] for answers in given] for label, given in models.items()}, [None] * questions,
    )  # fmt: skip


TWO = {"one": [[f"a{i}", f"a2{i}"] for i in range(6)], "two": [[f"b{i}", f"b2{i}"] for i in range(6)]}


def keys(config: JudgingConfig, answered: Answered) -> list[str]:
    return sorted(asked.key({}) for _, asked in places(config, JudgePrompt(config), answered) if asked is not None)


@pytest.mark.parametrize("settings", [{}, {"seed": 3}, {"order": "both"}, {"repeats": 2}, {"reads": "text"}])
def test_a_verdict_is_found_again_whatever_models_are_called_and_in_which_order(settings: dict[str, Any]) -> None:
    config = JudgingConfig(**settings)
    renamed = {"zwei": TWO["two"], "eins": TWO["one"]}
    assert keys(config, there(TWO)) == keys(config, there(renamed))
    more = keys(config, there({**TWO, "three": [["c", "d"]] * 6}))
    assert set(keys(config, there(TWO))) < set(more)


def test_the_order_is_drawn_evenly_and_by_the_seed() -> None:
    many = {"one": [[f"a{i}"] for i in range(400)], "two": [[f"b{i}"] for i in range(400)]}
    shown = {
        seed: [place.shown_first for place, _ in places(c, JudgePrompt(c), there(many, 400))]
        for seed in range(3)
        for c in [JudgingConfig(seed=seed)]
    }
    assert all(160 < sum(map(bool, each)) < 240 for each in shown.values())
    assert len({tuple(each) for each in shown.values()}) == 3


def test_every_turn_is_judged_with_those_before_it_in_view() -> None:
    config = JudgingConfig(order="both", repeats=2, labels=("m", "M"))
    found = list(places(config, JudgePrompt(config), there(TWO)))
    assert len(found) == 6 * 2 * 2 * 2
    place, asked = next((place, asked) for place, asked in found if place.turn == 2 and place.shown_first is False)
    assert asked is not None and asked.user.index("b0") < asked.user.index("a0") < asked.user.index("b20")
    first = next(asked for place, asked in found if place.turn == 1)
    assert first is not None and "a20" not in first.user
    assert len({asked.key({}) for _, asked in found if asked is not None}) == len(found)
    assert place.model == "one" and place.against == "two"


def test_answers_that_are_the_same_tie_without_asking_and_missing_ones_are_left_out() -> None:
    same = {**TWO, "two": [TWO["one"][0], ["a1", "other"], *TWO["two"][2:]]}
    answered = there(same)
    answered.answers["two"][5] = [None]
    config = JudgingConfig()
    found = list(places(config, JudgePrompt(config), answered))
    tied = [(place.prompt, place.turn) for place, asked in found if asked is None]
    assert tied == [(0, 1), (0, 2), (1, 1)]
    assert len(found) == 5 * 2
    result = judged(
        [(place, asked is None) for place, asked in found],
        {"j": [None if asked is None else Verdict("k", 0.9, None, "m") for _, asked in found]}, answered, 1,
    )  # fmt: skip
    assert result.counts["j"].same == 3 and result.counts["j"].asked == 7
    first, asked_at, unjudged = result.of_pair("j", "one", "two", turn=1)
    assert not unjudged.any()
    assert first.shape == (6, 1, 2, 1) and first[0, 0, 0, 0] == 0.5 and not asked_at[0].any()
    assert (first[asked_at] == 0.9).all() and np.isnan(first[5]).all()
    other, asked_other, _ = result.of_pair("j", "two", "one", turn=1)
    np.testing.assert_array_equal(other[2:], first[2:, :, ::-1])
    np.testing.assert_array_equal(asked_other[2:], asked_at[2:, :, ::-1])


def test_single_answers_are_rated_turn_by_turn() -> None:
    config = JudgingConfig(compares="rates", repeats=2)
    found = list(places(config, JudgePrompt(config), there(TWO)))
    assert len(found) == 2 * 6 * 2 * 2 and all(place.shown_first is None for place, _ in found)
    verdicts = [Verdict(str(number), None, 1 + number % 9, "w", 10, 3) for number in range(len(found))]
    verdicts[3] = Verdict("3", None, None, "I   cannot\nsay")
    given_all: list[Verdict | None] = [*verdicts[:-1], None]
    result = judged([(place, False) for place, _ in found], {"j": given_all}, there(TWO), 2)
    ratings, asked, unjudged = result.ratings("j", "one")
    assert not unjudged.any() and np.argwhere(result.ratings("j", "two")[2]).tolist() == [[5, 0, 1, 1]]
    assert ratings.shape == (6, 1, 2, 2) and asked.all() and ratings[0, 0, 0].tolist() == [1.0, 2.0]
    assert math.isnan(ratings[0, 0, 1, 1])
    assert (result.counts["j"].unreadable, result.counts["j"].too_long) == (1, 1)
    assert result.notes() == [
        "1 of 48 verdicts of the judge j cannot be read (the first: prompt 0, turn 2, one: 'I cannot say'); they count "
        "in none of its numbers.",
        "1 of 48 judgements are too long for the judge j, and count in none of its numbers.",
    ]
    assert result.table().num_rows == 48


def test_one_answer_stands_against_each_round() -> None:
    answered = Answered([["q"]], {"one": [[["a"], ["b"], None]], "file": [[["c"]]]}, [None])
    config = JudgingConfig(against="file", order="both")
    found = [place for place, _ in places(config, JudgePrompt(config), answered)]
    assert [(place.round, place.shown_first) for place in found] == [(0, True), (0, False), (1, True), (1, False)]
    with pytest.raises(UserError, match=r"^judging\.against: no model is called gpt; there are one, file$"):
        list(places(JudgingConfig(against="gpt"), JudgePrompt(config), answered))


def test_a_reference_is_shown_with_its_turn() -> None:
    config = JudgingConfig(compares="rates")
    answered = Answered([["q", "r"]], {"one": [[["a", "b"]]]}, [["known", "sure"]])
    first, second = (asked for _, asked in places(config, JudgePrompt(config), answered))
    assert first is not None and second is not None
    assert "known" in first.user and "sure" not in first.user and "sure" in second.user


# Where they are kept.


def test_verdicts_are_found_again_and_a_torn_line_is_none(tmp_path: Path) -> None:
    store = VerdictStore(tmp_path)
    verdicts = [Verdict(str(i), i / 4, None, f"wörter\n{i} \u2028", i, None) for i in range(4)]
    for verdict in verdicts:
        store.keep("j", verdict)
    path = store.path("j")
    path.write_bytes(path.read_bytes()[:-7])
    again = VerdictStore(tmp_path)
    assert list(again.found.values()) == verdicts[:-1]
    again.keep("j", verdicts[-1])
    assert VerdictStore(tmp_path).found == store.found


LINE = (
    '{"probability": %s, "key": "a", "rating": null, "words": "", "prompt_tokens": 1, "tokens": 1, "served_by": null}'
)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"key": 1}', "key should be text"), ("{", "not valid JSON"), ("[]", "expected a JSON object"),
        (LINE % "2", "from 0 to 1, and is 2"), (LINE % "NaN", "from 0 to 1, and is nan"),
    ],
)  # fmt: skip
def test_a_damaged_verdict_is_named(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text(line + "\n")
    with pytest.raises(UserError) as error:
        VerdictStore(tmp_path).keep("other", Verdict("b", None, None, ""))
    assert str(error.value).startswith(f"{tmp_path / 'j.jsonl'}, line 1: ") and told in str(error.value)


# What a configuration may say.

EVALUATION = {
    "name": "e", "models": {"a": "x"}, "prompts": {"source": "toy"}, "reward_models": {"truth": "toy"},
}  # fmt: skip
SERVER = {"kind": "openai", "base_url": "https://api.example.com/v1", "model": "m", "api_key_env": "JUDGE_KEY"}


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        ({**SERVER, "kind": "grpc"}, "judges.vllm.kind: should be one of 'vllm', 'openai' (got 'grpc')"),
        ({"model": "m"}, "judges.vllm.kind is missing"),
        ("path", "judges.vllm: should be a mapping of keys"),
        ({"kind": "vllm"}, "judges.vllm.model is missing"),
        ({**SERVER, "api_key": "sk-1"}, "unknown key judges.vllm.api_key; did you mean judges.vllm.api_key_env?"),
        ({**SERVER, "concurency": 1}, "unknown key judges.vllm.concurency; did you mean judges.vllm.concurrency?"),
        ({**SERVER, "api_key_env": "sk-proj-SECRET"}, "should be the name of an environment variable in capitals"),
        ({**SERVER, "base_url": "http://api.example.com/v1"}, "http would send the key of api_key_env readable"),
        ({**SERVER, "base_url": "https://me:SECRET@example.com/v1"}, "should hold neither credentials nor parameters"),
        ({**SERVER, "base_url": "https://example.com/v1?api-key=SECRET"}, "should hold neither credentials nor"),
        ({**SERVER, "base_url": "example.com/v1"}, "should be a web address such as"),
        ({**SERVER, "base_url": "https://[::1/v1"}, "should be a web address"),
        ({"kind": "vllm", "model": "m", "temperature": 0.001}, "vLLM draws at 0 and at 0.01 to 2"),
        ({"kind": "vllm", "model": "m", "base_url": "x"}, "unknown key judges.vllm.base_url"),
    ],
)
def test_a_judge_that_cannot_be_meant_is_refused_without_showing_secrets(judge: Any, told: str) -> None:
    with pytest.raises(UserError) as error:
        parse_as(EvaluationConfig, {**EVALUATION, "judges": {"vllm": judge}}, [], "f.yaml")
    assert told in str(error.value) and "SECRET" not in str(error.value)


OWN = {
    "model": "set the judge's model", "messages": "judging.prompt", "stream": "read in one piece",
    "stream_options": "read in one piece", "n": "judging.repeats", "best_of": "judging.repeats",
    "use_beam_search": "judging.repeats", "max_tokens": "set the judge's max_tokens",
    "max_completion_tokens": "max_tokens_key", "temperature": "set the judge's temperature",
    "seed": "set the judge's seed", "logprobs": "judging.reads",
}  # fmt: skip


@pytest.mark.parametrize("key", OWN)
@pytest.mark.parametrize("value", [None, 10**9, True])
def test_a_body_of_more_neither_goes_beyond_the_budget_nor_changes_what_is_said_of_it(key: str, value: Any) -> None:
    judge = {**SERVER, "extra_body": {"top_logprobs": 5, key: value}}
    with pytest.raises(UserError) as error:
        parse_as(EvaluationConfig, {**EVALUATION, "judges": {"j": judge}}, [], "f.yaml")
    told = str(error.value)
    assert told.startswith(f"f.yaml: judges.j.extra_body: {key} cannot be set here: ") and OWN[key] in told


@pytest.mark.parametrize(
    ("judging", "told"),
    [
        ({"compares": "rates", "order": "both"}, "order: is of pairs"),
        ({"compares": "rates", "against": "a"}, "against: is of pairs"),
        ({"labels": ["m", " m"]}, "two different texts"),
    ],
)
def test_what_does_not_go_together_is_refused(judging: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_as(EvaluationConfig, {**EVALUATION, "judging": judging}, [], "f.yaml")


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1/"])
def test_a_key_may_go_to_this_machine(url: str) -> None:
    mapping = {**EVALUATION, "judges": {"j": {**SERVER, "base_url": url}}, "judging": {"compares": "rates"}}
    config = parse_as(EvaluationConfig, mapping, [], "f.yaml")
    assert parse_as(EvaluationConfig, config.for_a_file(), [], "again") == config


def test_pairs_are_of_two_models() -> None:
    mapping = {**EVALUATION, "judges": {"j": SERVER}, "reward_models": {}}
    with pytest.raises(UserError, match="models: a is alone"):
        parse_as(EvaluationConfig, mapping, [], "f.yaml")


def test_what_a_tokenizer_s_template_refuses_is_said() -> None:
    tokenizer = deepcopy(toyworld.tokenizer())  # it is everybody's
    tokenizer.chat_template = "{{ raise_exception('No system role') }}"
    with pytest.raises(UserError, match=r"judges\.j\.tokenizer: .*No system role; a prompt without `system`"):
        _counter("j", tokenizer)(Asked("s", "u", "rating"))


def test_a_label_that_is_no_token_is_named() -> None:
    tokenizer = toyworld.tokenizer()
    one = next(word for text in tokenizer.get_vocab() if (word := text.removeprefix("▁")).isalpha())
    _require_one_token("j", tokenizer, one)
    for label in (" neither of both", "foreignword"):
        with pytest.raises(
            UserError, match=rf"^judging\.labels: '{label.strip()}' is no single token of judges\.j, and"
        ):
            _require_one_token("j", tokenizer, label)
