"""Bad data: never a traceback, a hang, or a record lost without account."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fuzzing import assert_one_line, cases, damaged, damages, odd_texts, odd_values
from hypothesis import example, given
from hypothesis import strategies as st
from preference_records import SOURCES, Source, turns
from test_data_sources import COMPRESSED, CONTAINERS, FOREIGN, PARTED
from test_data_tokenization import bytes_tokenizer

from orpo_ray.config import DataConfig
from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data import templates
from orpo_ray.data.cache import CacheWriter
from orpo_ray.data.formats import PreferencePair
from orpo_ray.data.formats.messages import readable
from orpo_ray.data.formats.texts import ASSISTANT_TURN
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.passes import PairPass
from orpo_ray.data.prompts import read_prompts
from orpo_ray.data.readers import read_file
from orpo_ray.data.records import Account, BadRecord, Record
from orpo_ray.data.sources import FileSource, open_source
from orpo_ray.data.templates import Renderer
from orpo_ray.errors import UserError

TOKENIZER = bytes_tokenizer()
FILES = {
    (name, compression): compress(content)
    for name, content in CONTAINERS.items()
    for compression, compress in (COMPRESSED | PARTED).items()
    if len(compress(content)) < 1 << 16  # not a million zeros behind each
}
NAMES = [
    "x.jsonl", "x.json", "x.csv", "x.tsv", "x.parquet", "x.arrow", "x.jsonl.gz", "x.json.zst", "x.csv.bz2", "x.tsv.xz",
    "x.lzma", "x",
]  # fmt: skip


# Bytes of every kind -------------------------------------------------------------------------------------------------


def read(content: bytes, name: str, most: int = 1 << 24) -> list[Record]:
    """All records of a file, each with its text as `quarantine.jsonl` would keep it; none of one of another kind.
    `most`: bytes of a record."""
    try:
        records = list(read_file(io.BytesIO(content), name, itertools.count(), most))
    except UserError as error:
        assert_one_line(error, name)
        return []
    for i, record in enumerate(records):
        assert record.index == i
        assert (record.value is None) == (record.error is not None)
        assert record.location.startswith(name)
        assert len(record.raw_text().encode()) <= 4 * 4096
        assert "\n" not in str(record.error)
    return records


@given(st.sampled_from(sorted(FILES)), damages)
@cases(2500)
def test_damaged_files(file: tuple[str, str], changes: list[tuple[str, int, int]]) -> None:
    name = file[0] + file[1].partition(" ")[0]
    records = read(damaged(FILES[file], changes), name)
    if not changes:
        assert len(records) == 7
        assert all(record.error is None for record in records)


@given(st.binary(max_size=60), st.sampled_from(NAMES))
@example(b'{"a": 1}\n' * 2, "x.parquet")
@example(b"PAR1PAR1", "x")
@example(b"ARROW1\0\0", "x")
@example(b"\x1f\x8b", "x")
@example(b"\xef\xbb\xbf", "x.jsonl")
@example("{}\n{}".encode("utf-16"), "x.jsonl")
@example(b"a,b\n1,2", "x")
@example(b"\x50\x2a\x4d\x18\xff\xff\xff\xff", "x")
@cases(500)
def test_random_bytes(content: bytes, name: str) -> None:
    read(content, name)


@given(st.sampled_from(sorted(FOREIGN)), damages, st.sampled_from(NAMES))
@cases(300)
def test_other_kinds_of_file(kind: str, changes: list[tuple[str, int, int]], name: str) -> None:
    records = read(damaged(FOREIGN[kind][0], changes), name)
    assert changes or not records or kind == "twice"  # which is gzip alone here


@given(st.sampled_from(["", "[", "{", '{"data": [', '{"a": ', "[1, 2]\n", "\n", "\ufeff"]), odd_values, odd_texts)
@cases(500)
def test_json_of_every_shape(before: str, value: Any, after: str) -> None:
    read(f"{before}{json.dumps(value)}{after}".encode("utf-8", "backslashreplace"), "x.json")


def test_offsets_of_an_arrow_file_are_not_followed_out_of_it() -> None:
    """pyarrow reads an IPC file's buffers as they are: an offset past the text was a segmentation fault."""
    sink = pa.BufferOutputStream()
    table = pa.table({"prompt": ["p" * 4321], "chosen": [["a", "b"]]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    sound = (0).to_bytes(4, "little") + (4321).to_bytes(4, "little")
    at = content.rindex(sound) + 4  # before it, in the metadata, the same numbers are an offset and a length
    (record,) = read(content[:at] + (2**31 - 1).to_bytes(4, "little") + content[at + 4 :], "x.arrow")
    assert record.error is not None
    assert record.error.reason == "unreadable file"


def test_a_line_that_is_no_record_does_not_take_the_others_with_it() -> None:
    """A first line that begins as a whole file of JSON may begin."""
    for first in (b"[1, 2]", b"[]", b'{"data": [1]}'):
        records = read(first + b'\n\n{"a": 1}\n{"a": 2}\n', "x.json")
        assert [record.value for record in records[1:]] == [{"a": 1}, {"a": 2}], first


def test_a_key_that_stands_twice_is_told() -> None:
    twice = b'{"prompt": "p", "chosen": "c", "chosen": "d"}'
    whole, in_array = read(twice + b"\n", "x.jsonl"), read(b"[" + twice + b', {"a": 1}]', "x.json")
    for record in (whole[0], in_array[0]):
        assert str(record.error) == "malformed JSON: the key 'chosen' occurs twice"
    assert in_array[1].value == {"a": 1}
    read(b'{"a\\nb": 1, "a\\nb": 2}\n{"\\ud800": 1, "\\ud800": 2}', "x.jsonl")  # keys that are no one line


def test_a_column_that_stands_twice_and_dates_that_python_lacks() -> None:
    def content(table: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    (record,) = read(content(pa.table([pa.array([1]), pa.array([2])], names=["chosen", "chosen"])), "x.arrow")
    assert "the column 'chosen' occurs twice" in str(record.error)
    times = pa.array([0, 2**62], pa.int64()).view(pa.timestamp("s"))
    sound, odd = read(content(pa.table({"chosen": ["a", "b"], "at": times})), "x.arrow")
    assert sound.value is not None
    assert odd.error is not None and odd.error.reason == "no value"
    assert json.loads(odd.raw_text())["chosen"] == "b"


def test_nesting_at_python_s_own_limit(tmp_path: Path) -> None:
    """A depth that can be read in one place and not be written in another."""
    for depth in range(900, 1010, 3):
        for line in (b'{"a": ' + b"[" * depth + b"]" * depth + b"}", b"[" * depth + b"]" * depth):
            read(b"1\n" + line, "x.jsonl")


# Records of every kind -----------------------------------------------------------------------------------------------

LINES: list[dict[str, Any]] = [
    {"prompt": "Warum?", "chosen": "Darum ✓", "rejected": "Nein"},
    {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Because.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No",
    },
    {
        "prompt": "Why?",
        "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}],
        "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No"}],
        "score": 3,
    },
    {
        "tools": [{"name": "f", "parameters": {"type": "object"}}],
        "system": "Be brief.",
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "Why?"}], "name": "Ada"}],
        "chosen": [
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
        ],
        "rejected": [{"role": "assistant", "content": "No", "reasoning_content": "Hm."}],
    },
]
PLACES = [
    "prompt",
    "chosen",
    "rejected",
    "chosen.0",
    "chosen.1",
    "chosen.1.content",
    "chosen.0.role",
    "rejected.1.role",
    "tools",
    "tools.0",
    "tools.0.parameters.type",
    "system",
    "prompt.0.content.0",
    "prompt.0.content.0.text",
    "prompt.0.name",
    "chosen.0.tool_calls",
    "chosen.0.tool_calls.0.function.arguments",
    "rejected.0.reasoning_content",
    "input",
    "images",
]
changes_of_a_record = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "delete", "add"]), odd_values), max_size=2
)
SETTINGS = [
    {"chat_template": "orpo"},
    {"chat_template": None},
    {"chat_template": "hh-rlhf", "format": "hh-rlhf"},
    {"chat_template": None, "format": "plain"},
    {"chat_template": "{{ messages[0]['content'] }}", "format": "conversational"},
    {"chat_template": "{{ tools }}{% for m in messages %}{{ m }}{% endfor %}"},
    {
        "chat_template": "orpo",
        "system": "Be kind.",
        "roles": {"user": "assistant", "role": "user"},
        "unread": ["input"],
    },
    {"chat_template": "orpo", "columns": {"prompt": ["system", "prompt"], "chosen": "chosen.0", "tools": "x.y"}},
]
DATA = [
    DataConfig(train="x", max_length=10**6, max_prompt_length=10**5, on_bad_record="quarantine", **s) for s in SETTINGS
]


def changed(record: dict[str, Any], changes: list[tuple[str, str, Any]]) -> dict[str, Any]:
    record = json.loads(json.dumps(record))
    for place, what, value in changes:
        *path, last = (int(part) if part.isdigit() else part for part in place.split("."))
        holder: Any = record
        try:
            for part in path:
                holder = holder[part]
            if what == "set":
                holder[last] = value
            elif what == "delete":
                del holder[last]
            else:
                holder["role" if isinstance(holder, list) else f"{last}2"] = value
        except (TypeError, LookupError):
            pass
    return record


class Given:
    """A source of lines at hand."""

    def __init__(self, lines: list[bytes]) -> None:
        self.content = b"\n".join(lines)

    def records(self) -> Iterator[Record]:
        return read_file(io.BytesIO(self.content), "x.jsonl", itertools.count(), 1 << 24)

    def fingerprint(self) -> str:
        return ""


def tokenized(data: DataConfig, lines: list[bytes], folder: Path) -> tuple[Account, dict[int, tuple[str, str, str]]]:
    """The account, and by index of the record the text of prompt, chosen and rejected."""
    writer = CacheWriter(folder)
    try:
        asked, reading = data.train_sources[0], "best_against_worst"
        account = PairPass(data, asked, TOKENIZER, Renderer(TOKENIZER, data.chat_template), writer, reading).run(
            Given(lines), None, None
        )
    finally:
        writer.close()
    ids = np.fromfile(folder / "tokens.bin", np.int32)
    bounds = np.fromfile(folder / "bounds.bin", np.int64).reshape(-1, 4)
    indices = np.fromfile(folder / "record_ids.bin", np.int64).tolist()
    texts = [tuple(TOKENIZER.decode(ids[a:b]) for a, b in itertools.pairwise(row)) for row in bounds]
    quarantined = [
        json.loads(line) for line in (folder / "quarantine.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert len(quarantined) == account.quarantined.total()
    assert all(line["location"].startswith("x.jsonl") for line in quarantined)
    return account, dict(zip(indices, texts, strict=True))


@given(
    st.lists(
        st.tuples(st.sampled_from(LINES), changes_of_a_record, st.booleans(), damages | st.just([])),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(DATA),
    st.sampled_from([b"", b"\r", b"\n\n"]),
)
@cases(2000)
def test_every_record_is_accounted_for_and_kept_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], data: DataConfig, ending: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "tokens"
    folder.mkdir(exist_ok=True)
    lines = []
    for record, changes, ascii_only, damage in records:
        text = json.dumps(changed(record, changes), ensure_ascii=ascii_only)
        line = damaged(text.encode("utf-8", "surrogatepass"), damage).replace(b"\n", b" ")
        lines.append(line + ending)
    try:
        account, kept = tokenized(data, lines, folder)
    except UserError as error:  # of the run, not of a record: no template for message lists, one that does not fit
        assert_one_line(error, "x.jsonl:", "template")
        return
    account.check()
    assert all(len(remark) < 4000 and remark.isprintable() for remark in account.remarks())
    given_lines = [line for line in b"\n".join(lines).removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    if not given_lines[:1] or not given_lines[0].lstrip().startswith(b"["):  # else a JSON array, perhaps
        assert account.read == len(given_lines)
        for index, texts in kept.items():
            assert_kept_as_it_is(json.loads(given_lines[index]), texts, data)


def assert_kept_as_it_is(value: dict[str, Any], texts: tuple[str, str, str], data: DataConfig) -> None:
    prompt, chosen, rejected = texts
    if data.chat_template is None or data.chat_template in NAMED_TEMPLATES:
        assert prompt.startswith("<s>")
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        assert response.endswith("</s>")
        whole = prompt.removeprefix("<s>") + response.removesuffix("</s>")
        if data.chat_template is not None:
            continue  # else it is text: no message can be written
        if isinstance(value["chosen"], str):
            assert whole in (value[name], f"{value.get('prompt')}{value[name]}")
            assert prompt.endswith(ASSISTANT_TURN) or prompt == f"<s>{value['prompt']}"


@given(st.sampled_from(LINES), changes_of_a_record, st.sampled_from([LINES[0], None]))
@cases(500)
def test_by_default_the_first_bad_record_is_named(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any], changes: Any, first: dict[str, Any] | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "tokens"
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(line).encode() for line in (first, changed(record, changes)) if line is not None]
    try:
        account, _ = tokenized(DATA[0].model_copy(update={"on_bad_record": "error"}), lines, folder)
        assert not account.quarantined
    except UserError as error:
        assert_one_line(error, f"x.jsonl:{len(lines)}: ")


def places(value: Any, path: str = "") -> list[str]:
    """Everything in a record, by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in (f"{path}{key}", *places(inner, f"{path}{key}."))]


@st.composite
def changed_sources(draw: st.DrawFn) -> tuple[Source, dict[str, Any]]:
    """A record of a public source, some of its parts changed into whatever."""
    source = draw(st.sampled_from(SOURCES))
    record = source.win | draw(st.sampled_from([{}, source.reversed, source.tie]))
    what = st.sampled_from(["set", "delete", "add"])
    return source, changed(
        record, draw(st.lists(st.tuples(st.sampled_from(places(record)), what, odd_values), max_size=2))
    )


@given(st.lists(changed_sources(), min_size=1, max_size=4), st.booleans(), st.booleans())
@cases(2500)
def test_shapes_of_public_sources(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[Source, dict[str, Any]]], named: bool, whole: bool
) -> None:
    """Every record is accounted for; what is kept asks with the record's own words, and what wins is no guess."""
    folder = tmp_path_factory.getbasetemp() / "tokens"
    folder.mkdir(exist_ok=True)
    first = records[0][0]
    mine = [first.win, *(record for source, record in records if whole or source.format == first.format)]
    data = DataConfig(
        train="x", max_length=10**6, max_prompt_length=10**5, on_bad_record="quarantine", chat_template="orpo",
        format=first.format if named else "auto", **first.settings,
    )  # fmt: skip
    account, kept = tokenized(data, [json.dumps(record).encode() for record in mine], folder)
    account.check()
    assert account.read == len(mine)
    assert kept[0][0].endswith("<|assistant|>\n") and "Why?" in kept[0][0]
    assert (kept[0][1].removesuffix("</s>"), kept[0][2].removesuffix("</s>")) == ("Because.", "No")
    assert all(len(remark) < 4000 and remark.isprintable() for remark in account.remarks())


# Prompts of an evaluation --------------------------------------------------------------------------------------------

QUESTIONS: list[dict[str, Any]] = [
    *LINES,
    {"prompt": "Why?"},
    {"prompt": [{"role": "user", "content": "Why?"}]},
    {"instruction": "Say why.", "dataset": "helpful_base"},
    {"instruction": "Say why.", "input": "Rain", "history": [["Hi", "Hello"]]},
    {"prompt": turns("Why?"), "tools": '[{"name": "f"}]', "system_prompt": "Be brief."},
    *(source.win for source in SOURCES if not source.settings),
    {"question_id": 81, "turns": ["Write.", "Again."], "category": "writing"},
]
PLACES_OF_A_QUESTION = sorted({"prompt.0", "input", *PLACES, *(place for each in QUESTIONS for place in places(each))})
changes_of_a_question = st.lists(
    st.tuples(st.sampled_from(PLACES_OF_A_QUESTION), st.sampled_from(["set", "delete"]), odd_values), max_size=2
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(QUESTIONS),
            changes_of_a_question,
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["auto", "prompts", "hh-rlhf", "plain"]),
    st.booleans(),
    st.sampled_from(["error", "quarantine"]),
)
@example([(QUESTIONS[-1], [("turns.0", "set", "\ud800")])], "auto", False, "error")  # met the tokenizer
@cases(1200)
def test_prompts(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], format: Any, messages: bool, on_bad: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(changed(record, changes)) for record, changes in records))
    config = PromptsConfig(source=str(file), format=format, on_bad_record=on_bad)
    try:
        prompts, account = read_prompts(config, with_messages=messages)
    except UserError as error:
        assert_one_line(error, str(file))
        return
    account.check()
    assert account.read == len(records)
    assert account.kept == len(prompts)
    for prompt in prompts:
        for question in filter(None, (prompt.as_found, prompt.as_messages)):
            for each in (question.prompt, *question.completions):
                assert readable(each).encode() is not None


# Chat templates ------------------------------------------------------------------------------------------------------

PAIR = PreferencePair(
    [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]
)
PIECES = [
    "{% for message in messages %}", "{% endfor %}", "{{ message['content'] }}", "{{ messages }}", "{% if x %}",
    "{% else %}", "{% endif %}", "{{ 1 / 0 }}", "{{ messages[9] }}", "{{ x.y.z }}", "{{ raise_exception('no') }}", "a",
    "{{ eos_token }}", "\n", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages.clear() }}",
    "{% set x = messages %}", "{{ range(10**9) }}", "{{ strftime_now('%Y') }}", "{% generation %}", "{{ x | tojson }}",
    "{% include 'a' %}", "{{ 'é' * 3 }}", "{{ cycler.__init__ }}", "{% macro f() %}", "{% endmacro %}", "{{ f() }}",
    "{{ message.role }}", "{{", "%}", "{#", "{{ ''.format.__globals__ }}",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
@cases(500)
def test_chat_templates(template: str) -> None:
    try:
        rendered = Renderer(TOKENIZER, template).rendered(PAIR.prompt, [PAIR.chosen, PAIR.rejected])
    except (UserError, BadRecord) as error:
        assert_one_line(error)
        return
    parts = (rendered.prompt, *(response.segments for response in rendered.responses))
    text = "".join(segment.text for part in parts for segment in part)
    assert "<class" not in text
    assert "__builtins__" not in text


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "access to attribute '__init__'"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{ 'a' * 10**15 }}", "MemoryError"),
    ],
)
def test_a_template_that_reaches_too_far_is_a_record_s_error(template: str, told: str) -> None:
    with pytest.raises(BadRecord, match=f"refused by the chat template: .*{told}"):
        Renderer(TOKENIZER, template).rendered(PAIR.prompt, [PAIR.chosen, PAIR.rejected])


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 10 ** (10 ** 10) }}"],
)
def test_a_template_that_does_not_end_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "RENDER_SECONDS", 0.3)
    with pytest.raises(UserError, match=r"data\.chat_template: takes over 0\.3 seconds to write one record"):
        Renderer(TOKENIZER, template).rendered(PAIR.prompt, [PAIR.chosen, PAIR.rejected])


# Names ---------------------------------------------------------------------------------------------------------------

ROOTS = ["", "/tmp/", "file://", "memory://", "./", "~", "zip://", "foo://"]


@given(st.builds("{}{}".format, st.sampled_from(ROOTS), odd_texts.filter(str.isprintable)))
@example("file:///tmp/a\0b")
@example("~nobody-of-this-name/x.jsonl")
@example("zip://../../x.jsonl::/nowhere.zip")
@cases(300)
def test_names_of_sources(name: str) -> None:
    if name in ROOTS or "/." in name:
        return  # real folders
    with contextlib.suppress(UserError):
        source = open_source(name, "train")
        if isinstance(source, FileSource):
            list(source.records())
