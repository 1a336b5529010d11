"""Each public source's record: recognised, its winner told, ties counted, and every column read or named."""

from __future__ import annotations

import copy
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preference_records import PAGE, SOURCES, Source, page_with, said, table, turns
from pydantic import ValidationError
from rich.console import Console
from test_data_prepare import account_of, config, write
from test_data_tokenization import bytes_tokenizer

from orpo_ray.config.evaluation import PromptsConfig, WinRateConfig, on_held_out
from orpo_ray.config.identity import differences
from orpo_ray.config.records import PairFormat, RecordsConfig
from orpo_ray.data.formats import NoPreference, PreferencePair, RecordReader
from orpo_ray.data.formats.columns import PARTS, SYSTEM, with_messages_as_lists
from orpo_ray.data.formats.messages import readable
from orpo_ray.data.formats.shapes import PAIRS, recognise
from orpo_ray.data.prepare import prepare
from orpo_ray.data.prompts import read_prompts
from orpo_ray.data.records import Account, BadRecord
from orpo_ray.data.responses import read_responses
from orpo_ray.data.summary import print_summary
from orpo_ray.errors import UserError
from orpo_ray.evaluation.notes import of_records

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


def read(value: dict[str, Any], account: Account | None = None, **settings: Any) -> PreferencePair:
    reader = RecordReader(RecordsConfig(**settings), "auto", account or Account(), as_messages=True)
    return reader.comparison(value).pair()


def test_the_page_is_what_the_shapes_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with(table(), page), "run tests/unit/preference_records.py"


def test_every_shape_has_a_source_and_can_be_named() -> None:
    names = [shape.name for shape in PAIRS]
    assert {source.format for source in SOURCES} == set(names) - {"labelled"}, "which holds no pairs"
    assert {"auto", *names} == set(get_args(PairFormat)) and len(set(names)) == len(names)


@each_source
def test_the_better_answer_wins_whichever_it_is(source: Source) -> None:
    answers = {"Because.": turns("", "Because.")[1:], "No": turns("", "No")[1:]}
    assert recognise(with_messages_as_lists(source.win)).name == source.format
    pair = read(source.win, **source.settings)
    assert pair == PreferencePair(source.prompt, answers["Because."], answers["No"])  # type: ignore[arg-type]
    swapped = read({**source.win, **source.reversed}, **source.settings)
    assert (swapped.chosen, swapped.rejected) == (pair.rejected, pair.chosen)
    assert swapped.prompt == pair.prompt
    if source.tie:
        with pytest.raises(NoPreference) as none:
            read({**source.win, **source.tie}, **source.settings)
        assert none.value.reason == source.dropped


@each_source
def test_the_summary_accounts_for_every_record_and_column(source: Source, tmp_path: Path) -> None:
    records = [source.win, {**source.win, **source.reversed}, *([{**source.win, **source.tie}] if source.tie else [])]
    bad = {**source.win, "image": {"bytes": "x"}}
    file = write(tmp_path / "pairs.jsonl", [*records, bad, *({**record, "source_": "x"} for record in records)])
    held = write(tmp_path / "held.jsonl", [source.win])
    settings = config(
        tmp_path, file, eval=str(held), chat_template="orpo", on_bad_record="quarantine", **source.settings
    )
    account = account_of(prepare(settings, bytes_tokenizer()))
    ties = 2 * bool(source.tie)
    assert (account.read, account.kept, account.dropped.total()) == (2 * len(records) + 1, 4, ties)
    assert dict(account.quarantined) == {"image": 1}
    shape = recognise(with_messages_as_lists(source.win))
    roots = {column.partition(".")[0] for column in (*shape.columns, *shape.also)}
    named = {column for column, value in source.win.items() if value not in (None, "", [], {})}
    assert named - roots - {"system"} <= set(account.unread)
    assert account.unread["source_"] == len(records)

    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    print_summary(settings, console, bytes_tokenizer())
    printed = " ".join(console.export_text().split())
    assert f"columns that are not read: {', '.join(sorted(account.unread)[:1])}" in printed
    assert f"source_ (of {len(records)} records)" in printed


@each_source
def test_evaluations_ask_the_same(source: Source, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", [source.win, *([{**source.win, **source.tie}] if source.tie else [])])
    [prompt], account = read_prompts(PromptsConfig(source=str(file), **source.settings), with_messages=True)
    assert prompt.as_messages is not None
    assert prompt.as_messages.prompt == source.prompt
    assert [readable(turns) for turns in prompt.as_messages.completions] == ["Because.", "No"]
    assert dict(account.dropped) == ({source.dropped: 1} if source.tie else {})


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a record there is text."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] if isinstance(value, str) else [leaf for key, inner in items for leaf in leaves(inner, (*path, key))]


@each_source
def test_each_text_of_a_record_is_read_or_named_or_decides(source: Source) -> None:
    """A word put anywhere stands in what is read, or the place is named as unread, or the record is no longer sound."""
    for *path, last in leaves(source.win):
        record = copy.deepcopy(source.win)
        holder: Any = record
        for key in path:
            holder = holder[key]
        holder[last] = "Zanzibar"
        account = Account()
        reader = RecordReader(RecordsConfig(**source.settings), "auto", account, as_messages=True)
        try:
            comparison = reader.comparison(record)
        except (BadRecord, NoPreference, UserError):
            continue
        said = [readable(comparison.prompt), *(readable(answer.turns) for answer in comparison.answers)]
        roots = {name.replace("[]", "").partition(".")[0] for name in account.unread}
        decides = last in ("status", "role", "from") or path[1:] == [3]  # PRISM's later turn
        assert any("Zanzibar" in text for text in said) or (path or [last])[0] in roots or decides, (*path, last)


def test_more_than_two_answers_are_all_read(tmp_path: Path) -> None:
    ranked = next(source for source in SOURCES if source.format == "nectar").win
    prepared = prepare(config(tmp_path, write(tmp_path / "a.jsonl", [ranked, {**ranked, "prompt": "Other?"}]),
                              eval_fraction=0.5), bytes_tokenizer())  # fmt: skip
    assert prepared.train.counts().tolist() == prepared.eval.counts().tolist() == [len(ranked["answers"])]
    again = prepare(config(tmp_path, tmp_path / "a.jsonl", eval_fraction=0.5), bytes_tokenizer(), pytest.fail)
    assert again.remarks == prepared.remarks  # from the cache


# Labels ----------------------------------------------------------------------------------------------------------


def of(format: str, **changes: Any) -> dict[str, Any]:
    return {**next(source for source in SOURCES if source.format == format).win, **changes}


def test_pku_asks_which_label_counts() -> None:
    disagrees = of("pku-saferlhf", safer_response_id=1)
    with pytest.raises(UserError, match=r"set prefer, beside format, to better, safer or both"):
        read(disagrees)
    account = Account(read=2)
    assert readable(read(disagrees, account, prefer="better").chosen) == "Because."
    assert readable(read(disagrees, account, prefer="safer").chosen) == "No"
    assert sum(account.noted.values()) == 2
    read(of("shp"), account, prefer="safer")
    assert "1 of 2 records have no labels for prefer to choose between" in account.remarks()


BAD_LABELS = [
    (of("shp", labels=2), "unknown label: labels is 2"),
    (of("shp", labels=True), "not a number: labels is True"),
    (of("webgpt", score_0=float("nan")), "not a number: score_0 is nan"),
    (of("webgpt", score_1=10**400), "not a number: score_1 is 1000"),
    (of("helpsteer2", preference_strength=-100), "unknown label: preference_strength"),
    (of("helpsteer3", overall_preference="much"), "not a number: overall_preference"),
    (of("arena", winner="model_c"), "unknown label: winner is 'model_c'"),
    (of("arena-55k", winner_model_b="1"), "unknown label: not one of"),
    (of("arena-55k", response_a='["a", "b"]'), "not a dialogue: .* different lengths"),
    (of("arena-55k", response_a="[null]"), r"not text: response_a\[0\] is null"),
    (of("nectar", answers=[{"answer": "a", "rank": 1}]), "not ranked answers"),
    (of("prism", conversation_history=[{"turn": 0, "role": "user", "content": "q"}]), "no answers to compare"),
    (of("rewardbench2", rejected=["a", 3]), r"not text: rejected\[1\] is int"),
    (of("orca", input="Where?"), "column not read: both question and input"),
    (of("helpsteer2", prompt="a\n<extra_id_1>Agent\nb"), "not a dialogue: <extra_id_1>"),
]


@pytest.mark.parametrize(("value", "message"), BAD_LABELS)
def test_labels_that_say_nothing_known_are_refused(value: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecord, match=message):
        read(value)


def test_earlier_turns_in_a_prompt_of_helpsteer2_are_turns() -> None:
    asked = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nWhy?\n"
    assert read(of("helpsteer2", prompt=asked)).prompt == turns("Hi", "Hello", "Why?\n")
    assert read(of("helpsteer2", prompt=f"{asked}\n<extra_id_1>Assistant\n")).prompt == turns("Hi", "Hello", "Why?\n")


def test_equal_and_reversed_ratings_are_said() -> None:
    account = Account()
    read(of("ultrafeedback", score_chosen=4.0), account)
    read(of("argilla", **{"chosen-rating": 1.0}), account)
    assert set(account.noted) == {
        "rate both answers alike (score_chosen, score_rejected); chosen counts as the better one",
        "rate rejected above chosen (chosen-rating, rejected-rating); chosen counts as the better one",
    }


# Columns ---------------------------------------------------------------------------------------------------------


PLAIN = {"prompt": "Is 7 even?", "chosen": "No.", "rejected": "That depends."}
ASKED, YES, NO = turns("Is 7 even?"), turns("", "No.")[1:], turns("", "That depends.")[1:]


def test_a_system_column_is_a_system_turn() -> None:
    spoken = [{"role": "system", "content": "One word."}, *ASKED]
    for record in ({**PLAIN, "system": "One word."}, {**PLAIN, "system_prompt": "One word.", "system": None}):
        assert read(record) == PreferencePair(spoken, YES, NO)  # type: ignore[arg-type]
    assert read(PLAIN, system="One word.").prompt == spoken
    assert read({**PLAIN, "system": "Two."}, system="One word.").prompt[0]["content"] == "Two."  # type: ignore[index]
    twice = {"system": "One word.", "chosen": [*spoken, *YES], "rejected": [*spoken, *NO]}
    assert read(twice).prompt == read({**twice, "system": None}, system="Another.").prompt == spoken
    with pytest.raises(BadRecord, match="two system turns"):
        read({**twice, "system": "Another."})


def test_a_system_turn_is_not_lost_between_texts() -> None:
    """Without a template text has no place for it, and records of one source are written alike."""
    reader = RecordReader(RecordsConfig(), "auto", Account(), as_messages=False)
    assert reader.comparison({**PLAIN, "system": ""}).prompt == "Is 7 even?"
    with pytest.raises(BadRecord, match=r"a system turn beside text: .*set chat_template"):
        reader.comparison({**PLAIN, "system": "One word."})
    reader = RecordReader(RecordsConfig(), "auto", Account(), as_messages=False)
    assert reader.comparison({**PLAIN, "system": "One word."}).prompt[1:] == ASKED
    assert reader.comparison(PLAIN).prompt == ASKED


@pytest.mark.parametrize("column", PARTS)
def test_what_is_part_of_the_question_is_refused_by_name(column: str) -> None:
    media = column.rstrip("s") in ("image", "audio", "video")
    with pytest.raises(BadRecord, match=f"{column} may be part of what is asked") as refused:
        read({**PLAIN, column: "seven is the number"})
    assert refused.value.reason == (column if media else "column not read")
    for empty in (None, "", [], {}):
        read({**PLAIN, column: empty})
    account = Account(read=1)
    assert read({**PLAIN, column: "x"}, account, unread=[column]).prompt == ASKED
    assert account.remarks() == [f"columns that are not read: {column}"]
    read({**PLAIN, column: " Is 7 even? "})  # is the prompt
    with pytest.raises(BadRecord):
        read({**PLAIN, column: "7"})  # is in the prompt by chance, perhaps


def test_alpaca_in_training_and_evaluation(tmp_path: Path) -> None:
    asked = turns("Give the plural.\n\nhen")
    record = {"instruction": "Give the plural.", "input": "hen"}
    assert read({**record, "chosen": "hens", "rejected": "hen"}).prompt == asked
    chat = read({**record, "history": [["Hi", "Hello"]], "chosen": "a", "rejected": "b"})
    assert chat.prompt == [*turns("Hi", "Hello"), *asked]
    file = write(tmp_path / "ask.json", [{**record, "output": "hens"}, {"instruction": "Alone", "input": ""}])
    prompts, account = read_prompts(PromptsConfig(source=str(file)), with_messages=False)
    assert [prompt.as_found.prompt for prompt in prompts] == [asked, turns("Alone")]
    assert account.remarks() == ["columns that are not read: output (of 1 records)"]


def test_prompts_keep_to_the_same_rules(tmp_path: Path) -> None:
    records = [
        {"prompt": "Why?", "system": "One word.", "tools": [{"name": "f"}]},
        {"turns": ["Why?", "And?"], "category": "x"},
        {"prompt": "Why?", "context": "a letter"},
    ]
    file = write(tmp_path / "ask.jsonl", records)
    config = PromptsConfig(source=str(file), on_bad_record="quarantine")
    prompts, account = read_prompts(config, with_messages=True)
    assert prompts[0].as_found.prompt == [{"role": "system", "content": "One word."}, *turns("Why?")]
    assert prompts[0].as_found.tools == [{"name": "f"}]
    assert dict(account.quarantined) == {"column not read": 1}
    assert account.remarks() == [
        "1 of 3 records have further turns, which are not asked",
        "columns that are not read: category (of 1 records)",
    ]


def test_prompts_beside_training_are_read_as_its_records(tmp_path: Path) -> None:
    settings = {
        "columns": {"prompt": "q"},
        "roles": {"a": "user"},
        "system": "s",
        "prefer": "both",
        "unread": ["input"],
    }
    run = config(tmp_path, "toy", eval="toy-test", **settings)
    asked = WinRateConfig(against="x", reward_model="toy")
    prompts = on_held_out(run, asked, {"policy": "y"}, "e", tmp_path, 0).prompts
    assert {key: getattr(prompts, key) for key in RecordsConfig.model_fields} == settings
    assert set(settings) == set(RecordsConfig.model_fields)


def test_runs_of_before_are_continued(tmp_path: Path) -> None:
    """Their configuration lacks the keys that came since."""
    run = config(tmp_path, "toy").for_a_file()
    before = {**run, "data": {key: run["data"][key] for key in run["data"].keys() - RecordsConfig.model_fields.keys()}}
    assert differences(before, run) == []
    assert differences(before, config(tmp_path, "toy", system="s").for_a_file()) == ["data.system"]


def test_an_evaluation_says_what_it_left_out() -> None:
    account = Account(read=9, kept=7, dropped=Counter({"tie": 2}), unread=Counter({"score": 9}))
    assert of_records(account) == [
        "2 of 9 records prefer neither answer and were left out: tie 2.",
        "Of the prompts: columns that are not read: score.",
    ]


names = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=6)


@given(st.permutations(["prompt", "chosen", "rejected"]), st.lists(names, min_size=6, max_size=6, unique=True))
def test_columns_of_any_name_and_depth(order: list[str], words: list[str]) -> None:
    """The same pair, wherever in a record its parts stand."""
    record: dict[str, Any] = {words[0]: {words[1]: [None, {words[2]: PLAIN[order[0]]}]}, words[3]: PLAIN[order[1]],
                              words[4]: [PLAIN[order[2]], 5], words[5]: 3}  # fmt: skip
    columns = dict(zip(order, [f"{words[0]}.{words[1]}.1.{words[2]}", words[3], f"{words[4]}.0"], strict=True))
    account = Account()
    if not set(words) & {*PARTS, *SYSTEM, "tools"}:
        assert read(record, account, columns=columns) == read(PLAIN)
        assert len(account.unread) == 2  # the last, and what else the list holds: the struct is read whole


def test_columns_that_are_not_there_are_named() -> None:
    with pytest.raises(BadRecord, match=r"missing field: answers\.7 \(columns\.chosen\) \(it has q, answers\)"):
        read({"q": "x", "answers": ["a"]}, columns={"prompt": "q", "chosen": "answers.7"})
    with pytest.raises(BadRecord, match=r"missing field: chosen \(it has text\); the key columns says where \(cho"):
        read({"text": "x"})
    account = Account(read=1)
    read(PLAIN, account, columns={"system": "persona"})
    assert account.remarks() == ["1 of 1 records have no persona (columns.system)"]
    read({**PLAIN, "question": "Is 8 even?"}, account, columns={"prompt": "question"})
    assert account.unread == {"prompt": 1}
    with pytest.raises(ValueError, match="should say where any of prompt, chosen, rejected, system, tools are"):
        RecordsConfig(columns={"answer": "x"})
    with pytest.raises(ValueError, match="prompt:q wants a space behind its colon"):
        RecordsConfig(columns={"prompt:q": None})


def test_several_columns_are_one_prompt() -> None:
    record = {**PLAIN, "input": "7", "prompt": "Is it even?"}
    assert read(record, columns={"prompt": ["prompt", "input"]}).prompt == turns("Is it even?\n\n7")
    assert read({**record, "input": None}, columns={"prompt": ["prompt", "input"]}).prompt == turns("Is it even?")


def test_a_repeated_prompt_is_read_once() -> None:
    prompt = "Is the number seven even? "
    repeating = {"prompt": prompt, "chosen": f"{prompt}No.", "rejected": f"{prompt}Yes."}
    account = Account()
    reader = RecordReader(RecordsConfig(), "auto", account, as_messages=False)
    assert reader.comparison(repeating).pair() == PreferencePair(prompt, "No.", "Yes.")
    with pytest.raises(BadRecord, match="prompts differ: chosen and rejected do not repeat prompt, as those of the"):
        reader.comparison(PLAIN)
    other = RecordReader(RecordsConfig(), "auto", account, as_messages=False)
    short = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi!"}
    assert other.comparison(short).pair() == PreferencePair("Hi", "Hi there", "Hi!")
    assert other.comparison(repeating).pair().chosen == f"{prompt}No."
    assert set(account.noted) == {"repeat their prompt in both answers; it is read once",
                                  "repeat their prompt in both answers, and are read as they stand"}  # fmt: skip


@given(st.dictionaries(names, st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)))
def test_no_column_is_passed_over_in_silence(extra: dict[str, Any]) -> None:
    account = Account()
    record = {**extra, **PLAIN}
    try:
        read(record, account)
    except BadRecord:
        return
    holding = {name for name, value in extra.items() if value not in (None, "", []) and name not in PLAIN}
    assert account.unread.total() == len(holding - {*SYSTEM, "tools"})


def test_of_any_number_of_columns_some_are_kept() -> None:
    account = Account(read=1)
    for i in range(10_000):
        account.note_unread(f"{i}\x1b\u202e" + "x" * 10_000)
    assert len(account.unread) == 201 and max(map(len, account.unread)) < 120
    [line] = account.remarks()
    assert "\x1b" not in line and line.endswith("and 171 more") and len(line) < 5000
    assert Account.from_json(json.loads(json.dumps(vars(account)))) == account


def test_roles_of_other_names() -> None:
    record = {"conversations": said(("customer", "Why?")), "chosen": said(("agent", "Because.")),
              "rejected": said(("agent", "No"))}  # fmt: skip
    with pytest.raises(BadRecord, match=r"message 0, where .* but of the role 'agent'; the key roles names others"):
        read(record)
    assert read(record, roles={"customer": "user", "agent": "assistant"}).prompt == turns("Why?")
    for asks, answers in (("human", "gpt"), ("Human", "Assistant"), ("user", "model"), ("prompter", "bot")):
        named = [{"role": asks, "content": "Why?"}], [{"role": answers, "content": "No"}]
        pair = read(
            {"chosen": named[0] + [{"role": answers, "content": "Because."}], "rejected": [*named[0], *named[1]]}
        )
        assert (pair.prompt, pair.rejected) == (turns("Why?"), turns("", "No")[1:])
    with pytest.raises(ValidationError, match=r"customer should be one of user, assistant, .* \(got 'usr'\)"):
        RecordsConfig(roles={"customer": "usr"})


def test_a_column_to_leave_unread_that_no_record_has_is_said(tmp_path: Path) -> None:
    """It is a typo more often than not."""
    records = [PLAIN | {"input": "x"}, PLAIN | {"contxt": "x"}, PLAIN | {"prompt": "Is 8 even?"}]
    source = write(tmp_path / "a.jsonl", records)
    account = account_of(
        prepare(config(tmp_path, source, chat_template="orpo", unread=["input", "context"]), bytes_tokenizer())
    )
    assert account.said == ["unread: none has a column context"]
    for prompts in (read_prompts, read_responses):
        _, account = prompts(PromptsConfig(source=str(source), unread=["input", "context"]), with_messages=True)
        assert account.said == ["unread: none has a column context"]


MESSAGES = {"chosen": turns("Why?", "Because."), "rejected": turns("Why?", "No")}


@pytest.mark.parametrize(
    ("record", "left_out"),
    [
        ({"instruction": "Why?", "input": "Aside", "chosen": "Because.", "rejected": "No"}, "input"),
        ({"prompt": "Another", **MESSAGES}, "prompt"),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No", "system": "S"}, "system"),
        ({"question": "Why?", "input": "Aside", "chosen": "Because.", "rejected": "No"}, "input"),
        ({"prompt": "Why?", "responses": ["Because.", "No"], "ranks": [1, 2], "scores": [1, 2]}, "scores"),
    ],
)
def test_what_unread_names_is_not_read_whatever_the_shape(record: dict[str, Any], left_out: str) -> None:
    account = Account(read=1)
    assert read(record, account, unread=[left_out]) == PreferencePair(
        turns("Why?"), turns("", "Because.")[1:], turns("", "No")[1:]
    )
    assert account.unread == {left_out: 1}
    mapped = {"prompt": "Another", "title": "Why?", "chosen": "Because.", "rejected": "No"}
    assert read(mapped, columns={"prompt": "title"}, unread=["prompt"]).prompt == turns("Why?")


def test_what_is_read_is_not_said_to_be_unread_and_what_is_not_is_said() -> None:
    account = Account(read=1)
    read({"question": "Why?", "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": -1}, account)
    assert account.remarks() == []
    reader = RecordReader(RecordsConfig(), "auto", account, as_messages=True)
    reader.comparison({"prompt": "Why?", "completion": "Because.", "response": "No", "label": True, "": "7"})
    assert account.remarks() == ["columns that are not read: (one without a name), response"]


@pytest.mark.parametrize("names", [("rating_chosen", "rating_rejected"), ("chosen_rating", "rejected_rating")])
def test_ratings_that_say_otherwise_are_counted(names: tuple[str, str]) -> None:
    account = Account(read=2)
    for ratings in ((3, 4), (4, 4)):
        read({**MESSAGES, **dict(zip(names, ratings, strict=True))}, account)
    assert [sentence.partition(" (")[0] for sentence in account.noted] == [
        "rate rejected above chosen",
        "rate both answers alike",
    ]


def test_numbers_and_labels_are_read_of_whatever_type_they_are_stored() -> None:
    for scores in ([1, 2], [1.5, 2.5], ["1", "2"], [Decimal("1.50"), Decimal("2.5")]):
        found = read({"prompt": "Why?", "responses": ["No", "Because."], "scores": scores})
        assert readable(found.chosen) == "Because."
    for label, good in ((True, 1.0), ("True", 1.0), ("1", 1.0), ("1.0", 1.0), (0, 0.0), ("false", 0.0), ("0", 0.0)):
        reader = RecordReader(RecordsConfig(), "auto", Account(), as_messages=True)
        [answer] = reader.comparison({"prompt": "Why?", "completion": "Because.", "label": label}).answers
        assert answer.rating == good


def test_a_system_turn_or_tools_of_nothing_are_none() -> None:
    for system in ("", " \n"):
        reader = RecordReader(RecordsConfig(system=system), "auto", Account(), as_messages=False)
        assert reader.comparison({"prompt": "Why?", "chosen": "Because.", "rejected": "No"}).prompt == "Why?"
        assert read(MESSAGES, system=system).prompt == turns("Why?")
    for nothing in ({"system": " "}, {"tools": "[]"}, {"tools": "null"}, {"tools": []}):
        reader = RecordReader(RecordsConfig(), "auto", Account(), as_messages=False)
        assert reader.comparison({"prompt": "Why?", "chosen": "a", "rejected": "b", **nothing}).prompt == "Why?"


def test_null_keys_of_ranked_answers_hold_nothing() -> None:
    account = Account(read=1)
    answers = [{"answer": "Because.", "rank": 1, "model": None}, {"answer": "No", "rank": 2, "model": None, "id": 3}]
    read({"prompt": "\n\nHuman: Why?\n\nAssistant: ", "answers": answers}, account)
    assert account.unread == {"answers[].id": 1}


@pytest.mark.parametrize("name", ["Input", "SYSTEM", "Tools", "Context"])
def test_parts_of_a_question_in_other_letters_are_refused(name: str) -> None:
    record = {"prompt": "Why?", "chosen": "a", "rejected": "b", name: "Be brief."}
    with pytest.raises(BadRecord, match=f"column not read: {name} may be part of what is asked"):
        read(record)
    assert read(record, unread=[name]).chosen == turns("", "a")[1:]


def test_a_part_of_the_question_that_an_answer_quotes_is_not_thereby_asked() -> None:
    passage = "The Pacific is the largest sea of all."
    record = {"prompt": "Which sea is it?", "context": passage, "chosen": f"{passage} So it says.", "rejected": "No"}
    with pytest.raises(BadRecord, match="column not read: context may be part"):
        read(record)
    assert read({**record, "prompt": f"Of this: {passage} Which sea is it?"}).rejected == turns("", "No")[1:]


def test_answers_that_hold_the_prompt_are_not_read_in_silence() -> None:
    question = "Why is the sky blue at noon?"
    texts = {name: f"\n\nHuman: {question}\n\nAssistant: {text}" for name, text in (("chosen", "a"), ("rejected", "b"))}
    for prompt in (question, ""):
        with pytest.raises(BadRecord, match=r"prompt within the answers: .* unread=\[prompt\]"):
            read({"prompt": prompt, **texts})
    dialogue = f"\n\nHuman: {question}\n\nAssistant:"
    assert readable(read({"prompt": dialogue, **texts}).chosen).strip() == "a"
    assert read({"prompt": question, **texts}, unread=["prompt"]) == PreferencePair(
        turns(question), turns("", "a")[1:], turns("", "b")[1:]
    )
    account = Account(read=1)
    read({"prompt": f"{question} ", "chosen": f"{question}\na", "rejected": f"\n{question} b"}, account)
    assert list(account.noted) == ["repeat their prompt in both answers, and are read as they stand"]
