"""Every test that docs/rlhf.md names beside a bug that others shipped is there."""

from __future__ import annotations

import ast
import re

import pytest
from documented import ROOT

SECTION = re.compile(r"^## Bugs that others shipped\n(.*?)^## ", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`([\w/]+\.py)::([\w:]+)`")


def rows() -> list[str]:
    found = SECTION.search((ROOT / "docs" / "rlhf.md").read_text(encoding="utf-8"))
    assert found is not None
    return [line for line in found[1].splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize(("path", "name"), sorted({named for row in rows() for named in NAMED.findall(row)}))
def test_a_test_that_is_named_is_there(path: str, name: str) -> None:
    scope: ast.Module | ast.ClassDef = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    *classes, function = name.split("::")
    for each in classes:
        [scope] = [node for node in scope.body if isinstance(node, ast.ClassDef) and node.name == each]
    assert [node for node in scope.body if isinstance(node, ast.FunctionDef) and node.name == function]


def test_every_bug_has_one() -> None:
    assert len(rows()) == 18
    assert all(NAMED.search(row) for row in rows())
