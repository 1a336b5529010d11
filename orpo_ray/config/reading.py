"""Reading YAML: one mapping from a file, of bounded size, no key twice."""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from orpo_ray.errors import UserError

MAX_CHARACTERS = 1 << 20
MAX_VALUES = 100_000
"""Of a configuration with every alias written out."""
MAX_DEPTH = 50
_DATA = {".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst"}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """One YAML mapping from a file. Raises `UserError`, naming the file and the line, where there is none."""
    path = Path(path)
    if path.suffix in _DATA and path.is_file():
        raise UserError(f"{path}: is data, expected a YAML file; behind one, data.train={path} names the pairs")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_near_file(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{path}: longer than {MAX_CHARACTERS:,} characters, so it is no configuration")
    mapping = parse_yaml(text, origin=str(path))
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: expected a mapping of keys at the top, found {type(mapping).__name__}")
    return mapping


def _near_file(path: Path) -> str:
    """`; did you mean configs/toy-orpo.yaml?` for a YAML file there or in `configs/`."""
    folders = dict.fromkeys([path.parent, Path("configs")])
    files = {str(file): file.name for folder in folders for file in sorted(folder.glob("*.y*ml"))}
    close = difflib.get_close_matches(path.name, files.values(), n=1)
    return next((f"; did you mean {file}?" for file, name in files.items() if [name] == close), "")


class _Loader(yaml.SafeLoader):
    """YAML whose mappings have no key twice: PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, origin: str) -> Any:
    """Of bounded size, no key twice. Raises `UserError`, naming `origin` and the line, where `text` is no such YAML."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_small(node, 1, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}, line {mark.line + 1}" if mark else origin
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{where}: not valid YAML: {problem}") from None
    except Exception as error:  # a date such as 2024-13-45, deep nesting, `!!bool x`: each leaks its own kind
        raise UserError(f"{origin}: not valid YAML: {error or type(error).__name__}") from None


def _require_small(node: yaml.Node, depth: int, met: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values `node` stands for, and in how many levels, every alias written out.

    Raises `ConstructorError` where it is endless or enormous. `met`: the same of nodes that were met before; None of
    those that hold this one.
    """

    def refuse(problem: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    if id(node) in met:
        known = met[id(node)]
        if known is None:
            refuse("an alias stands for what holds it")
        size, levels = known
    else:
        met[id(node)] = None
        size, levels = 1, 1
        if isinstance(node, yaml.ScalarNode):
            if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
                refuse("a text holds NUL or half of a surrogate pair")
        elif depth < MAX_DEPTH:
            for child in node.value:
                for part in child if isinstance(child, tuple) else (child,):
                    inner, below = _require_small(part, depth + 1, met)
                    size, levels = size + inner, max(levels, below + 1)
        elif node.value:
            levels = MAX_DEPTH
    if depth + levels > MAX_DEPTH + 1:
        refuse(f"nested deeper than {MAX_DEPTH} levels")
    if size > MAX_VALUES:
        refuse(f"holds more than {MAX_VALUES:,} values")
    met[id(node)] = size, levels
    return size, levels
