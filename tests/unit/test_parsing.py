"""JSON that others have written: what is read of it, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_ray.errors import UserError
from orpo_ray.parsing import NUMBER, from_json, member, object_from_json, read_lines, read_member, read_object

ENDLESS = "[" * 100_000


@pytest.mark.parametrize("text", ["", "{", ENDLESS, '{"a": ' * 100_000, "9" * 5000, b"\xff", "nul"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="not valid JSON: "):
        from_json(text)


@pytest.mark.parametrize(("text", "found"), [("[]", "a list"), ("3", "a whole number"), ("null", "null")])
def test_what_is_no_object_is_told(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"expected a JSON object, found {found}"):
        object_from_json(text)


@pytest.mark.parametrize(
    ("value", "kinds", "told"),
    [
        ("abc", (int,), "step should be a whole number, and is text"),
        (True, (int,), "step should be a whole number, and is true or false"),
        (None, NUMBER, "step should be a number, and is null"),
        ([], (*NUMBER, type(None)), "step should be a number or null, and is a list"),
        (3.0, (int, str), "step should be a whole number or text, and is a number"),
    ],
)
def test_a_member_of_another_type_is_told(value: Any, kinds: tuple[type, ...], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        member({"step": value}, "step", *kinds)
    assert str(caught.value) == told
    with pytest.raises(ValueError, match="has no step"):
        member({}, "step", *kinds)
    assert member({"step": 3}, "step", *NUMBER) == 3


def test_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    for content, told in ((ENDLESS.encode(), "not valid JSON: "), (b"\xff", "cannot be read: not UTF-8 text"),
                          (b"[]", "expected a JSON object, found a list"), (None, "cannot be read: ")):  # fmt: skip
        file.unlink() if content is None else file.write_bytes(content)
        for read in (read_object, lambda file: read_member(file, "step", int)):
            with pytest.raises(UserError) as caught:
                read(file)
            assert str(caught.value).startswith(f"{file}: {told}")
    file.write_text('{"step": "abc"}')
    with pytest.raises(UserError, match=r"some\.json: step should be a whole number, and is text"):
        read_member(file, "step", int)


def test_a_last_line_without_its_end_is_still_being_written(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"a": 1}\n\n{"a": "\u2028"}\n{"a": ')
    assert read_lines(file) == {1: {"a": 1}, 3: {"a": "\u2028"}}
    for line in ("[]", ENDLESS, json.dumps("x")):
        file.write_text('{"a": 1}\n' + line + "\n")
        with pytest.raises(UserError, match=r"some\.jsonl, line 2: "):
            read_lines(file)
