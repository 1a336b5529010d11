"""Reading a configuration: YAML plus dotted `key=value` overrides, and one plain line for each mistake."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import yaml
from pydantic import ValidationError

from orpo_ray.config.data import SOURCES
from orpo_ray.config.objectives import OBJECTIVES
from orpo_ray.config.schema import TrainConfig
from orpo_ray.config.section import ANSWERED_BY, NAME, PathSection, Section
from orpo_ray.errors import UserError
from orpo_ray.masking import holds_mask
from orpo_ray.visible import visible

MAX_CHARACTERS = 1 << 20
MAX_VALUES = 100_000
"""Of a configuration with every alias written out."""
MAX_DEPTH = 50

Root = TypeVar("Root", bound=Section)


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a training configuration from YAML and apply dotted overrides such as `optim.lr=1e-5`.

    Raises `UserError`, naming the file and the key, for anything that is not a valid configuration.
    """
    return load_as(TrainConfig, path, overrides)


def load_as(schema: type[Root], path: str | Path, overrides: list[str] | None = None) -> Root:
    """As `load_config`, of any kind of configuration."""
    return parse_as(schema, read_yaml(path), overrides or [], origin=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """One YAML mapping from a file. Raises `UserError`, naming the file and the line, where there is none."""
    path = Path(path)
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


def parse_config(mapping: dict[str, Any], overrides: list[str], origin: str) -> TrainConfig:
    """Validate a mapping with overrides applied; `origin` is the name that errors carry."""
    return parse_as(TrainConfig, mapping, overrides, origin)


def parse_as(schema: type[Root], mapping: dict[str, Any], overrides: list[str], origin: str) -> Root:
    """As `parse_config`, of any kind of configuration."""
    for override in overrides:
        mapping = _with_override(mapping, override, schema)
    mapping = schema.completed(mapping, origin)
    for key, text in _texts(mapping):
        if holds_mask(text):
            raise UserError(f"{origin}: {_printable(key)}: its secret was masked when this was written; give it again")
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        raise UserError(f"{origin}: {_describe(error, schema)}") from None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a mapping with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else f"{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def _with_override(mapping: dict[str, Any], override: str, schema: type[Section]) -> dict[str, Any]:
    """`mapping` with one `dotted.key=value` applied; the value is YAML. A path that stands for a section becomes it."""
    origin = f"override {_shown(override)}"
    key, equals, text = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise UserError(f"{origin}: expected dotted.key=value, such as optim.lr=1e-5")
    mapping = dict(mapping)
    section: dict[str, Any] | list[Any] = mapping
    for depth, part in enumerate(path[:-1], start=1):
        place = _place(section, part, ".".join(path[: depth - 1]), origin)
        child = section.get(part) if isinstance(section, dict) else section[place]
        if isinstance(child, str) and any(issubclass(one, PathSection) for one in _sections_at(path[:depth], schema)):
            child = {"path": child}
        if child is not None and not isinstance(child, dict | list):
            raise UserError(f"{origin}: {'.'.join(path[:depth])} is a single value, it has no keys below it")
        child = section[place] = list(child) if isinstance(child, list) else dict(child or {})
        section = child
    section[_place(section, path[-1], ".".join(path[:-1]), origin)] = parse_yaml(text, origin)
    return mapping


def _place(section: dict[str, Any] | list[Any], part: str, above: str, origin: str) -> Any:
    """What part of a dotted key is called in what lies above it: a name, or in a list a number from 0."""
    if isinstance(section, dict):
        return part
    if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(section)):
        raise UserError(f"{origin}: {above} is a list of {len(section)}, whose parts are called {above}.0 and so on")
    return int(part)


_WORDS = {
    "string_type": "should be a text",
    "dict_type": "should be a mapping of keys",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "too_short": "should not be empty",
    NAME: "should be letters, digits, dots, dashes and underscores, a letter or a digit first",
}
"""In the place of pydantic's, by its kind of problem, or by the pattern that a text does not match."""


_TAGS = (*SOURCES.values(), *ANSWERED_BY.values(), "[key]")
"""What pydantic puts into a location that is no key."""


def _describe(error: ValidationError, schema: type[Section]) -> str:
    """The first problem in one line (unknown keys before all else), and how many more there are."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    kind, value, context = problems[0]["type"], problems[0]["input"], problems[0].get("ctx", {})
    location = [str(part) for part in problems[0]["loc"] if part not in _TAGS]
    objective = None
    if location[:1] == ["objective"] and len(location) > 1:  # pydantic puts the objective's name in between
        objective = location.pop(1)
    elif location[:1] == ["judges"] and len(location) > 2:  # and so it does with a judge's kind
        location.pop(2)
    key = _printable(".".join(location))
    if kind == "extra_forbidden" and objective and key in _valid_keys(schema):
        message = f"{key} is no key of the objective {objective}"
    elif kind == "extra_forbidden":
        message = f"unknown key {_shown(key)[1:-1]}; {_nearest_key(location, schema)}"
    elif kind == "missing":
        message = f"{key} is missing"
    elif kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        message = f"{key}.{tag}: should be one of {context['expected_tags']} (got {_shown(context['tag'])})"
    elif kind == "value_error":
        message = f"{key}: {context['error']}" if key else str(context["error"])
    elif kind == "union_tag_not_found" and context["discriminator"] == "'kind'":
        message = f"{key}.kind is missing" if isinstance(value, dict) else f"{key}: should be a mapping of keys"
    elif kind == "union_tag_not_found":
        message = f"{key}: should be a text, or a list (got {_shown(value)})"
    elif kind in {"model_type", "model_attributes_type"}:
        message = f"{key}: should be a mapping of keys (got {_shown(value)})"
    else:
        told = _WORDS.get(context.get("pattern", kind)) or problems[0]["msg"].removeprefix("Input ")
        message = f"{key}: {told} (got {_shown(value)})"
    more = len(problems) - 1
    return message + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _valid_keys(section: type[Section], prefix: str = "") -> dict[str, str]:
    """Every dotted key there is, sections included, with its last part."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        last = field.alias or name
        keys[prefix + last] = last
        children = (field.annotation, *get_args(field.annotation))  # a section, or a section or null
        for child in OBJECTIVES if name == "objective" else children:
            if isinstance(child, type) and issubclass(child, Section):
                keys |= _valid_keys(child, f"{prefix}{last}.")
    return keys


def _nearest_key(location: list[str], schema: type[Section]) -> str:
    """Names the valid key most like an unknown one, in its section or anywhere, else all of its section."""
    *above, unknown = location
    everywhere = _valid_keys(schema)
    beside = {".".join([*above, last]): last for last in _keys_at(above, schema)}
    for keys, cutoff in ((beside, 0.6), (everywhere, 0.7)):
        close = difflib.get_close_matches(unknown, keys.values(), n=1, cutoff=cutoff)
        if close:
            return f"did you mean {next(key for key, last in keys.items() if last == close[0])}?"
    return f"{'.'.join(above) or 'the top level'} has {', '.join(beside.values())}"


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a value of this type may be, or hold in a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def _sections_at(location: list[str], schema: type[Section]) -> list[type[Section]]:
    """What the section at `location` may be, which may be in a list or a mapping of sections."""
    sections = [schema]
    for part in location:
        fields = [(name, field) for section in sections for name, field in section.model_fields.items()]
        found = [field for name, field in fields if (field.alias or name) == part]
        if found:  # else an index, or a name in a mapping
            sections = [inner for field in found for inner in _sections_in(field.annotation)]
    return sections


def _keys_at(location: list[str], schema: type[Section]) -> list[str]:
    """The keys of the section at `location`."""
    sections = _sections_at(location, schema)
    return [field.alias or name for section in sections for name, field in section.model_fields.items()]


def _printable(key: str) -> str:
    """A dotted key, cut to fit a line, with what a terminal would obey written out."""
    return visible(key[:200])


def _shown(value: Any) -> str:
    """`value` as Python writes it, cut to fit a line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    try:
        return short.repr(value)
    except ValueError:  # Python refuses to write out an integer of thousands of digits
        return "a number too long to show"
