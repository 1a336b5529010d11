"""Messages reach the chat template whole: calls, thoughts, tools; or one line says what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from preference_records import turns
from test_data_prepare import account_of, config, write
from test_data_tokenization import bytes_tokenizer

from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.config.records import RecordsConfig
from orpo_ray.data.formats import PreferencePair, RecordReader, require_short
from orpo_ray.data.formats.comparison import has_text
from orpo_ray.data.formats.messages import CARRIED, MOST_NESTED, readable, size, tool_list
from orpo_ray.data.prepare import prepare
from orpo_ray.data.prompts import read_prompts
from orpo_ray.data.records import Account, BadRecord
from orpo_ray.data.responses import read_responses
from orpo_ray.data.sources import read_records
from orpo_ray.data.summary import summarize
from orpo_ray.data.templates import Renderer, Segment
from orpo_ray.data.written import require_written
from orpo_ray.errors import UserError

TOKENIZER = bytes_tokenizer()
# In the manner of Qwen's and DeepSeek's: schemas first, thoughts before the text, calls behind it.
TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}\n{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["town"]}}}]


def call(town: str, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"town": town}}, **more}


def asked(chosen: dict[str, Any], rejected: dict[str, Any], **columns: Any) -> dict[str, Any]:
    answers = [{"role": "assistant", "content": "", **fields} for fields in (chosen, rejected)]
    return {"prompt": turns("Where?"), "chosen": answers[:1], "rejected": answers[1:], **columns}


def read(value: dict[str, Any], account: Account | None = None) -> PreferencePair:
    return RecordReader(RecordsConfig(), "auto", account or Account(), as_messages=False).comparison(value).pair()


def texts(pair: PreferencePair, template: str = TEMPLATE) -> list[str]:
    rendered = Renderer(TOKENIZER, template).rendered(pair.prompt, [pair.chosen, pair.rejected], tools=pair.tools)
    parts = [rendered.prompt, *(response.segments for response in rendered.responses)]
    return ["".join(segment.text for segment in part).removesuffix("</s>") for part in parts]


def test_calls_and_tools_reach_the_template(tmp_path: Path) -> None:
    """Of Parquet too, whose structs have every key of every row."""
    history = [*turns("Where?"), {"role": "assistant", "content": None, "tool_calls": [call("Ulm")]},
               {"role": "tool", "content": "0 degrees", "name": "weather", "tool_call_id": "c1"}]  # fmt: skip
    answers = [{"role": "assistant", "content": None, "tool_calls": [call("Bonn")]},
               {"role": "assistant", "content": "No idea.", "tool_calls": None}]  # fmt: skip
    value = {"tools": TOOLS, "prompt": history, "chosen": answers[:1], "rejected": answers[1:]}
    same = {"tools": json.dumps(TOOLS), "chosen": [*history, answers[0]], "rejected": [*history, answers[1]]}
    as_text = {name: json.dumps(value[name]) for name in value}
    pq.write_table(pa.Table.from_pylist([value]), tmp_path / "x.parquet")
    [from_parquet] = pq.read_table(tmp_path / "x.parquet").to_pylist()
    for each in (value, same, as_text, from_parquet):
        prompt, chosen, rejected = texts(read(each))
        assert prompt.startswith("<|system|>" + json.dumps(TOOLS) + "\n<|user|>Where?")
        assert '<call>{"name": "weather", "arguments": {"town": "Ulm"}}</call></s>\n<|tool|>0 degrees' in prompt
        assert (chosen, rejected) == ('<call>{"name": "weather", "arguments": {"town": "Bonn"}}</call>', "No idea.")


@pytest.mark.parametrize("field", [name for name in CARRIED if name not in ("name", "tool_call_id")])
def test_answers_that_differ_in_a_field_alone_are_a_pair(field: str, tmp_path: Path) -> None:
    calls = field == "tool_calls"
    values = [[call(name)] if calls else f"{name}" for name in ("Ulm", "Bonn")]
    record = asked({field: values[0], "content": None}, {field: values[1]})
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.get(field) or '' }}{% endfor %}"
    template = template.replace("field", f"'{field}'") + "{% if add_generation_prompt %}<assistant>{% endif %}"
    file = write(tmp_path / "a.jsonl", [record, {**record, "prompt": turns("And?")}])
    settings = config(tmp_path, file, chat_template=template, eval_fraction=0.5)
    assert account_of(prepare(settings, TOKENIZER)).kept == 2
    for shown in summarize(settings, TOKENIZER).examples:
        assert shown.names == ("chosen", "rejected")
        assert "Ulm" in shown.responses[0] and "Bonn" in shown.responses[1]
    for part in ("chosen", "rejected"):
        assert has_text(getattr(read(record), part))
        with_none = {**record, part: [{"role": "assistant", "content": " ", field: [] if calls else " "}]}
        assert not has_text(getattr(read(with_none), part))


UNWRITTEN = [
    (asked({"content": "a"}, {"content": "b"}, tools=TOOLS), "tools"),
    (asked({"tool_calls": [call("Ulm")]}, {"content": "b"}), "tool_calls of chosen"),
    (asked({"content": "a"}, {"content": "b", "thinking": "Hm."}), "thinking of rejected"),
    (asked({"content": "a"}, {"content": "b"}, prompt=[*turns("x", "y"), {"role": "user", "content": "z",
     "function_call": {"name": "f"}}]), "function_call of the prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "what"), UNWRITTEN)
def test_what_the_template_does_not_write_is_refused(record: dict[str, Any], what: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [record])
    with pytest.raises(UserError, match=rf"a\.jsonl:1: not written by the chat template: {what}; mend"):
        prepare(config(tmp_path, file, chat_template="orpo"), TOKENIZER)


def test_what_templates_leave_out_as_a_rule_is_counted(tmp_path: Path) -> None:
    earlier = [*turns("a"), {"role": "assistant", "content": "b", "thinking": "Hm."},
               {"role": "user", "content": "c", "name": "Ada"}]  # fmt: skip
    file = write(tmp_path / "a.jsonl", [asked({"content": text}, {"content": "n"}, prompt=earlier) for text in "xy"])
    held = write(tmp_path / "b.jsonl", [asked({"content": "x"}, {"content": "n"})])
    prepared = prepare(config(tmp_path, file, chat_template="orpo", eval=str(held)), TOKENIZER)
    assert [remark.partition(": ")[2] for remark in prepared.remarks] == [
        "2 of 2 records have name in the prompt, not written by the template",
        "2 of 2 records have thinking in the prompt, not written by the template",
    ]


def test_a_template_that_cannot_do_without_a_field_reads_it() -> None:
    template = "{% for m in messages %}{{ m.content }}{{ m.name.lower() if m.role == 'user' }}{% endfor %}"
    prompt: Any = [{"role": "user", "content": "q", "name": "Ada"}]
    account = Account()
    require_written(Renderer(TOKENIZER, template), prompt, [], None, account)
    assert not account.noted


# At any depth ----------------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), max_size=4)
nested: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=6,
)


def with_nulls(value: Any, key: str) -> Any:
    """`value` as Parquet gives it: further keys in every struct, all null."""
    if isinstance(value, dict):
        return {**{name: with_nulls(inner, key) for name, inner in value.items()}, f"{key}\ue005": None}
    return [with_nulls(inner, key) for inner in value] if isinstance(value, list) else value


@given(nested, nested, words)
def test_keys_that_are_null_are_absent(first: Any, second: Any, key: str) -> None:
    record = asked({"content": "a", "tool_calls": [first]}, {"content": "b", "function_call": second},
                   tools=[{"a": first}])  # fmt: skip
    account = Account()
    assert read(with_nulls(record, key), account) == read(record)
    assert not account.unread


@given(st.dictionaries(words, nested, max_size=3), st.lists(st.integers(0, 9), max_size=2))
@example({"</s>": ["</s>", {"<s>": "x</s>"}]}, [0])
def test_special_tokens_stay_text_at_any_depth(arguments: dict[str, Any], at: list[int]) -> None:
    """Wherever the data hold one, the template's output holds it as text; what the template writes is its own."""
    held: Any = {"<s></s>": [arguments, *("</s>" + str(i) for i in at)]}
    pair = read(asked({"tool_calls": [{"function": held}]}, {"content": "no"}, tools=[held]))
    for template in (TEMPLATE, TEMPLATE.replace("tojson", "tojson(ensure_ascii=True)")):
        rendered = Renderer(TOKENIZER, template).rendered(pair.prompt, [pair.chosen, pair.rejected], tools=pair.tools)
        chosen = rendered.responses[0].segments
        for part in (rendered.prompt, chosen):
            controls = "".join(segment.text for segment in part if segment.control)
            assert "</s>0" not in controls and "<s></s>" not in controls
            assert Segment("</s>", control=False) in part
        text = "".join(segment.text for segment in chosen).split("<call>")[1].removesuffix("</call></s>")
        assert json.loads(text) == held
        plain = Renderer(TOKENIZER, template)
        whole = plain._render([*pair.prompt, *pair.chosen], False, pair.tools)  # type: ignore[misc]
        assert "".join(s.text for s in [*rendered.prompt, *chosen]) + "\n" == whole


@given(nested, st.integers(0, 5))
def test_every_character_that_may_be_rendered_counts(value: Any, shift: int) -> None:
    record = asked({"content": "a", "tool_calls": [value]}, {"content": "b"}, tools=[{"x": value}])
    pair = read(record)
    written = [json.dumps(part, ensure_ascii=False) for part in (pair.prompt, pair.chosen, pair.rejected, pair.tools)]
    total = sum(size(part) for part in (pair.prompt, pair.chosen, pair.rejected, pair.tools))
    strings = sum(len(text) for text in _strings([pair.chosen, pair.tools]))
    assert strings <= total + len("role") + len("content") and total <= sum(map(len, written))
    require_short(total, pair.prompt, pair.chosen, pair.rejected, pair.tools)
    with pytest.raises(BadRecord, match="too many characters"):
        require_short(total - 1 - shift, pair.prompt, pair.chosen, pair.rejected, pair.tools)


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in [key, *_strings(inner)]]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner)]
    return [value] if isinstance(value, str) else []


def test_a_huge_call_is_a_bad_record(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [asked({"tool_calls": [call("x" * 3000)]}, {"content": "b"})])
    with pytest.raises(UserError, match="too many characters"):
        prepare(config(tmp_path, file, chat_template=TEMPLATE, max_record_characters=2000), TOKENIZER)


def test_nesting_ends() -> None:
    value: Any = "deep"
    for _ in range(MOST_NESTED):
        value = [value]
    with pytest.raises(BadRecord, match=f"nested too deeply: .*more than {MOST_NESTED} levels"):
        read(asked({"tool_calls": [value]}, {"content": "b"}))
    with pytest.raises(BadRecord, match=r"invalid Unicode: half of a surrogate pair in chosen\[0\]\.tool_calls"):
        read(asked({"tool_calls": [{"x": "\ud800"}]}, {"content": "b"}))


# Content ---------------------------------------------------------------------------------------------------------


@given(st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_parts_of_text_are_their_text(first: list[str], second: list[str]) -> None:
    def answer(parts: list[str], kind: bool) -> dict[str, Any]:
        with_type = {"type": "text", "image": None} if kind else {}
        return {"content": [{**with_type, "text": part} for part in parts]}

    pair = read(asked(answer(first, True), answer(second, False)))
    assert [readable(turns) for turns in (pair.chosen, pair.rejected)] == ["".join(first), "".join(second)]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"type": "image"}, "image"),
        ({"type": "image_url", "image_url": {"url": "x"}}, "image"),
        ({"type": "input_audio", "input_audio": {}}, "audio"),
        ({"type": "video", "text": None}, "video"),
        ({"type": "tool_use", "input": {}}, "part of another kind than text"),
        ({"type": "text", "text": 3}, "part of another kind than text"),
    ],
)
def test_other_parts_are_refused_by_name(part: dict[str, Any], name: str) -> None:
    with pytest.raises(BadRecord, match=r"chosen\[0\]\.content\[1\] is no text") as refused:
        read(asked({"content": [{"type": "text", "text": "a"}, part]}, {"content": "b"}))
    assert refused.value.reason == name
    with pytest.raises(BadRecord, match=r"images: chosen\[0\] has images"):
        read(asked({"content": "a", "images": ["x"]}, {"content": "b"}))


def test_fields_of_a_message_that_nobody_reads_are_named() -> None:
    account = Account(read=1)
    read(asked({"content": "a", "weight": 1, "train": None}, {"content": "b", "ts": 5}), account)
    assert account.remarks() == ["columns that are not read: chosen[].weight, rejected[].ts"]


@given(st.lists(words, min_size=2, max_size=2, unique=True), words)
def test_messages_as_json_text_are_messages(answers: list[str], question: str) -> None:
    lists = {name: [*turns(question, text)] for name, text in zip(("chosen", "rejected"), answers, strict=True)}
    for more in ({}, {"prompt": turns(question)}, {"prompt": question}):
        record = {**more, **lists}
        as_text = {name: json.dumps(value) if isinstance(value, list) else value for name, value in record.items()}
        assert read(as_text) == read(record)


def test_text_that_is_json_of_another_kind_stays_text() -> None:
    for text in ("[1, 2]", "[]", '[{"a": 1}]', "[ ", '{"role": "x"}'):
        assert read({"prompt": "p", "chosen": text, "rejected": "r"}).chosen == text
    with pytest.raises(BadRecord, match="one of chosen and rejected is text"):
        read({"prompt": "p", "chosen": json.dumps(turns("p", "a")), "rejected": "r"})


def test_a_question_with_tools_is_asked_with_them(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"prompt": turns("Where?"), "tools": TOOLS}])
    [prompt], _ = read_prompts(PromptsConfig(source=str(file)), with_messages=True)
    question = prompt.form(True)
    assert question.content == [turns("Where?"), (), TOOLS]
    [segment] = Renderer(TOKENIZER, TEMPLATE).rendered(question.prompt, [], tools=question.tools).prompt
    assert segment.text.startswith('<|system|>[{"type"')
    assert readable([{"role": "assistant", "content": "", "tool_calls": [call("Ulm")]}]).startswith(
        'tool_calls: [{"id"'
    )


SPOILT = {
    "as Python prints it": str(turns("p", "a")),
    "as pandas prints an array": str(turns("p", "a")).replace("}, {", "}\n {"),
    "ShareGPT's, as Python prints it": "[{'from': 'human', 'value': 'p'}, {'from': 'gpt', 'value': 'a'}]",
    "a key twice": '[{"role": "user", "content": "p"}, {"role": "assistant", "content": "a", "content": "b"}]',
    "not all of them messages": '[{"role": "user", "content": "p"}, {"content": "a"}]',
}


@pytest.mark.parametrize("how", SPOILT)
def test_messages_as_text_that_is_no_json_are_refused(how: str) -> None:
    for more in ({"prompt": "p"}, {"prompt": json.dumps(turns("p"))}, {}):
        with pytest.raises(
            BadRecord, match="not messages: chosen is text that begins as a list of messages, and is none"
        ):
            read({**more, "chosen": SPOILT[how], "rejected": SPOILT[how].replace("a", "e")})


def test_a_key_twice_is_refused_at_any_depth(tmp_path: Path) -> None:
    """Else one of the two, or what is said of them, would be read as the value."""
    inner = '{"at": 1, "at": 2}'
    shapes = [
        f'[{{"role": "assistant", "content": "a", "tool_calls": [{inner}]}}]', f'[{{"role": {inner}, "content": "a"}}]',
    ]  # fmt: skip
    for chosen in shapes:
        file = tmp_path / "pairs.jsonl"
        file.write_text(f'{{"prompt": "p", "chosen": {chosen}, "rejected": [{{"role": "assistant", "content": "b"}}]}}')
        [record] = read_records(str(file), "train")
        assert str(record.error) == "malformed JSON: the key 'at' occurs twice"
    with pytest.raises(BadRecord, match=r"tools is text that is no JSON \(malformed JSON: the key 'at' occurs twice"):
        tool_list(f"[{inner}]")


def test_lists_of_texts_as_python_prints_them_are_refused() -> None:
    record = {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0, "response_a": '["a"]', "response_b": '["b"]'}
    with pytest.raises(BadRecord, match="prompt is text that begins as a list of texts, and is none: malformed JSON"):
        read({**record, "prompt": "['p']"})
    assert read({**record, "prompt": "[p]"}).prompt == turns("[p]")


def test_a_turn_that_the_template_leaves_out_is_refused(tmp_path: Path) -> None:
    """Such as the system's, which many templates do not know; one that they write in part, or elsewhere, is no loss."""
    shown = "{% if m.role == 'user' %}<u>{{ m.content }}{% elif m.role == 'assistant' %}<a>{{ THOUGHT }}{% endif %}"
    template = f"{{% for m in messages %}}{shown}{{% endfor %}}{{% if add_generation_prompt %}}<a>{{% endif %}}"
    template = template.replace("THOUGHT", "m.content.split('</think>')[-1]")
    renderer = Renderer(TOKENIZER, template)
    answer = turns("", "Because.")[1:]
    for at, role in enumerate(("system", "tool")):
        prompt = [*turns("Why?", "How?")[: 2 * at], *turns(f"Be brief. {TOKENIZER.eos_token}"), *turns("Why?")]
        prompt[2 * at]["role"] = role
        for messages in (prompt, [*prompt, *turns("", "It is")[1:]]):
            with pytest.raises(BadRecord, match=f"template: message {2 * at} of the prompt, of role '{role}'"):
                renderer.rendered(messages, [answer])
            with pytest.raises(BadRecord, match=f"template: message {2 * at} of the prompt, of role '{role}'"):
                renderer.conversation(messages, answer)
    thoughtful = [*turns("Why?", "<think>Hm.</think>How?"), *turns("So?")]
    [segment] = renderer.rendered(thoughtful, [answer]).prompt
    assert segment.text == "<u>Why?<a>How?<u>So?<a>"
    file = write(tmp_path / "a.jsonl", [{"prompt": "Why?", "chosen": "a", "rejected": "b", "system": "W"}])
    with pytest.raises(UserError, match=r"jsonl:1: not written by the chat template: message 0 .* role 'system'"):
        prepare(config(tmp_path, file, chat_template=template), TOKENIZER)


def test_calls_as_json_text_are_calls() -> None:
    record = asked({"tool_calls": [call("Ulm")], "content": None}, {"content": "b", "tool_calls": ""})
    as_text = json.loads(json.dumps(record))
    as_text["chosen"][-1]["tool_calls"] = json.dumps([call("Ulm")])
    assert texts(read(as_text)) == texts(read(record))
    for spoilt in ("[{'name': 'f'}]", "Ulm", "3", '[{"a": 1, "a": 2}]'):
        as_text["chosen"][-1]["tool_calls"] = spoilt
        with pytest.raises(BadRecord, match=r"chosen\[\d\]\.tool_calls is text that is no JSON of a list"):
            read(as_text)


def test_roles_that_nobody_knows_are_said() -> None:
    account = Account(read=3)
    reader = RecordReader(RecordsConfig(), "auto", account, as_messages=True)
    answers = {"chosen": turns("", "a")[1:], "rejected": turns("", "b")[1:]}
    for role in ("customer", "user", "client"):
        reader.comparison({"prompt": [{"role": role, "content": "p"}] * 2, **answers})
    assert account.remarks() == [
        "2 of 3 records have turns of roles that are not known (customer), given to the template as they stand; "
        "the key roles says what they are"
    ]


def test_thoughts_in_the_text_itself_that_the_template_takes_off_are_refused() -> None:
    """As DeepSeek R1's does, of every turn."""
    shown = "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    renderer = Renderer(TOKENIZER, f"{{% for m in messages %}}<{{{{ m.role }}}}>{shown}{{% endfor %}}<assistant>")
    kept = Renderer(TOKENIZER, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")
    thoughtful, plain = turns("", "<think>Hm.</think>Because.")[1:], turns("", "No")[1:]
    with pytest.raises(BadRecord, match="not written by the chat template: thoughts of chosen"):
        require_written(renderer, turns("Why?"), [thoughtful, plain], None)
    require_written(kept, turns("Why?"), [thoughtful, plain], None)
    require_written(renderer, turns("Why?"), [turns("", "<think>\n\n</think>\n\nBecause.")[1:], plain], None)
    account = Account(read=1)
    require_written(renderer, [*turns("Why?"), *thoughtful, *turns("So?")], [plain, plain], None, account)
    assert account.remarks() == ["1 of 1 records have thoughts in the prompt, not written by the template"]


def test_answers_of_lists_and_labels_may_be_messages_as_json_text_too(tmp_path: Path) -> None:
    one, other = (turns("", text)[1:] for text in ("a", "b"))
    for responses in ([json.dumps(one), other[0]], [one, json.dumps(other)]):
        found = read({"prompt": "p", "responses": responses, "ranks": [1, 2]})
        assert found == PreferencePair(turns("p"), one, other)  # type: ignore[arg-type]
    assert read({"prompt": "p", "chosen": json.dumps(one), "rejected": [[*other], [*other]]}).rejected == other
    reader = RecordReader(RecordsConfig(), "auto", Account(), as_messages=False)
    assert reader.comparison({"prompt": "p", "completion": json.dumps(one), "label": "1"}).answers[0].turns == one
    for field in ("response", "output"):
        file = write(tmp_path / f"{field}.jsonl", [{"prompt": "p", field: json.dumps(one)}])
        [record], _ = read_responses(PromptsConfig(source=str(file)), with_messages=True)
        assert record.prompt.as_found.completions == (one,)
