"""The reference of every key, docs/keys.md, made of the sections themselves: `make reference`.

A key's meaning is the text that stands below it in its section, read from the source: that is there in every Python,
and is found for keys that a section has from another. A section that several configurations have is written out once.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import PlainValidator
from pydantic.fields import FieldInfo

from orpo_ray.config.benchmark import SCHEMAS
from orpo_ray.config.evaluation import EvaluationConfig
from orpo_ray.config.metrics import METRIC
from orpo_ray.config.paper import PaperConfig
from orpo_ray.config.pipeline import PipelineConfig
from orpo_ray.config.schema import TrainConfig
from orpo_ray.config.score import ScoreConfig
from orpo_ray.config.section import NAME, Section
from orpo_ray.config.sweep import SweepConfig

_ENDLESS = 10**6
"""A bound from which on it is there for mistakes of typing alone, and is not told."""
_KINDS: dict[Any, str] = {
    bool: "`true` or `false`", int: "whole number", float: "number", str: "text", type(None): "`null`", Any: "any value"
}  # fmt: skip
_NAMES = {NAME: "name", METRIC: "metric of an evaluation, such as `eval_loss`"}
"""Texts, by the pattern that they match."""
_COMMANDS: tuple[tuple[str, str, tuple[type[Section], ...]], ...] = (
    ("train", "A training run: `orpo-ray train`.", (TrainConfig,)),
    ("evaluate", "An evaluation: `orpo-ray evaluate`.", (EvaluationConfig,)),
    ("score", "Rewards of responses that are there: `orpo-ray score`.", (ScoreConfig,)),
    ("sweep", "A sweep: `orpo-ray sweep`.", (SweepConfig,)),
    ("pipeline", "Training runs and the evaluation of what they made: `orpo-ray pipeline`.", (PipelineConfig,)),
    ("paper", "The paper remade: `orpo-ray paper`.", (PaperConfig,)),
    ("bench", "A benchmark: `orpo-ray bench`.", tuple(dict.fromkeys(SCHEMAS.values()))),
)
_OPENING = """# Every key

What `orpo_ray/config/` declares, written by `make reference`; a test holds this page to it. Each key can be set in the
YAML file or behind the command, as `key=value`: `train.max_steps=50`, `models.mine.path=runs/mine`. `NAME` in a key
stands for a name of your own, `N` for a place in a list. A key without a default has to be given. A name is of letters,
digits, dots, dashes and underscores.
"""


def page() -> str:
    """The whole of docs/keys.md."""
    writer = _Writer()
    for command, title, schemas in _COMMANDS:
        writer.configuration(command, title, schemas)
    contents = [f"- [{command}](#{anchor(command)}): {title}" for command, title, _ in _COMMANDS]
    return "\n".join([_OPENING, *contents, "", *writer.lines]).rstrip() + "\n"


def anchor(heading: str) -> str:
    """What GitHub's links call a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@dataclass
class _Writer:
    lines: list[str] = field(default_factory=list)
    written: dict[tuple[type[Section], ...], str] = field(default_factory=dict)
    """What may stand at a place, and the heading above its tables."""
    tables: dict[type[Section], str] = field(default_factory=dict)
    """Sections that have a table, and the heading above it."""

    def configuration(self, command: str, title: str, schemas: tuple[type[Section], ...]) -> None:
        self.lines += [f"## {command}", "", title, ""]
        self._tables(command, "", schemas)

    def _tables(self, command: str, prefix: str, sections: tuple[type[Section], ...]) -> None:
        """Those of what may stand at one place, and then of what is in them."""
        below: dict[tuple[type[Section], ...], str] = {}
        for section in sections:
            which = f"With {_which(section)}" if len(sections) > 1 else ""
            if section in self.tables:
                self.lines += [f"{which}: as in {_link(self.tables[section])}.", ""]
                continue
            self.tables[section] = f"{command}: {prefix.rstrip('.')}" if prefix else command
            said = _said_of(section) if prefix or which else None
            self.lines += [": ".join(filter(None, (which, said))), ""] if which or said else []
            self.lines += ["| key | is | default | meaning |", "|---|---|---|---|"]
            for name, one in section.model_fields.items():
                key = prefix + (one.alias or name)
                self.lines.append(self._row(command, key, section, name, one, below))
            self.lines.append("")
        for inner, where in below.items():
            self.lines += [f"### {self.written[inner]}", ""]
            self._tables(command, f"{where}.", inner)

    def _row(
        self, command: str, key: str, section: type[Section], name: str, one: FieldInfo, below: dict[Any, str]
    ) -> str:
        annotation = Annotated[one.annotation, *one.metadata] if one.metadata else one.annotation
        for place, sections in sections_of(annotation, key):
            if sections not in self.written:
                self.written[sections] = f"{command}: {place}"
                below[sections] = place
        cells = [f"`{key}`", in_words(annotation, self.written), _default(one), _meaning(section, name, annotation)]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def sections_of(annotation: Any, key: str) -> Iterator[tuple[str, tuple[type[Section], ...]]]:
    """Where below `key` there are sections, and which may be there."""
    own = tuple(part for part in _parts(annotation) if _is_section(part))
    if own:
        yield key, own
    for part in _parts(annotation):
        part, _ = _apart(part)
        if get_origin(part) in (list, tuple):
            yield from sections_of(get_args(part)[0], f"{key}.N")
        elif get_origin(part) is dict:
            yield from sections_of(get_args(part)[1], f"{key}.NAME")


def in_words(annotation: Any, written: dict[tuple[type[Section], ...], str]) -> str:
    """A type in plain words; `written`: headings of the sections' tables."""
    parts = _parts(annotation)
    sections = tuple(part for part in parts if _is_section(part))
    told = [_one_in_words(part, written) for part in parts if not _is_section(part)]
    if sections:
        told.insert(0, f"section, see {_link(written[sections])}")
    return ", or ".join(dict.fromkeys(told))


def _link(heading: str) -> str:
    return f"[{heading}](#{anchor(heading)})"


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, however deep; what narrows one of them stays with it."""
    inner, narrowed = _apart(annotation)
    if any(isinstance(each, PlainValidator) for each in narrowed):
        return [annotation]
    if get_origin(inner) in (Union, types.UnionType):
        return [part for member in get_args(inner) for part in _parts(member)]
    if get_origin(inner) is Annotated:
        return _parts(inner)
    return [inner] if _is_section(inner) else [annotation]


def _apart(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, and what narrows it."""
    if get_origin(annotation) is Annotated:
        inner, *narrowed = get_args(annotation)
        return inner, tuple(narrowed)
    return annotation, ()


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _one_in_words(annotation: Any, written: dict[tuple[type[Section], ...], str]) -> str:
    annotation, narrowed = _apart(annotation)
    for each in narrowed:
        if isinstance(each, PlainValidator):
            assert isinstance(each.func, partial)  # `CountOrAuto` and `WholeOrAuto`
            return f"whole number, at least {each.func.keywords['least']}, or `auto`"
    bounds = _bounds(narrowed)
    return _NAMES.get(bounds.pop("pattern", None)) or _unnarrowed(annotation, written) + "".join(_told(bounds))


def _unnarrowed(annotation: Any, written: dict[tuple[type[Section], ...], str]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        *first, last = [f"`{str(each).lower() if isinstance(each, bool) else each}`" for each in arguments]
        return f"{', '.join(first)} or {last}" if first else last
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"list of {len(arguments)}, each: {in_words(arguments[0], written)}"
    if origin in (list, tuple):
        return f"list of: {in_words(arguments[0], written)}"
    if origin is dict:
        value = "" if arguments[1] is Any else f" to: {in_words(arguments[1], written)}"
        names = f" ({_unnarrowed(arguments[0], written)})" if get_origin(arguments[0]) is Literal else ""
        return f"mapping of names{names}{value}" if value else "mapping"
    return _KINDS[annotation]


def _bounds(narrowed: tuple[Any, ...]) -> dict[str, Any]:
    limits = [limit for each in narrowed for limit in getattr(each, "metadata", [each])]
    names = ("ge", "gt", "le", "lt", "min_length", "pattern")
    return {name: getattr(limit, name) for limit in limits for name in names if getattr(limit, name, None) is not None}


def _told(bounds: dict[str, Any]) -> Iterator[str]:
    for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if name in bounds and (name in ("ge", "gt") or bounds[name] < _ENDLESS):
            yield f", {word} {bounds[name]:,}"
    if "min_length" in bounds:
        yield " (not empty)"


def _default(one: FieldInfo) -> str:
    if one.is_required():
        return ""
    value = one.get_default(call_default_factory=True)
    if isinstance(value, Section):
        kind = type(value)
        mapping = value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if "name" in kind.model_fields and isinstance(kind.model_fields["name"].default, str):
            mapping = {"name": kind.model_fields["name"].default, **mapping}
        return f"`{_yaml(mapping)}`" if mapping else "those of its keys"
    return f"`{_yaml(list(value) if isinstance(value, tuple) else value)}`"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()


def _which(section: type[Section]) -> str:
    """What tells one of several sections that may stand at the same place."""
    for name in ("name", "kind", "measures"):
        one = section.model_fields.get(name)
        if one is not None and get_origin(one.annotation) is Literal:
            return f"`{name}: {get_args(one.annotation)[0]}`"
    return f"`{next(iter(section.model_fields))}`"


def _said_of(section: type[Section]) -> str | None:
    """Its own docstring, in one line."""
    said = section.__dict__.get("__doc__")
    return None if said is None else " ".join(inspect.cleandoc(said).split())


def _meaning(section: type[Section], name: str, annotation: Any) -> str:
    """Raises `LookupError` for a key whose meaning is nowhere said."""
    for base in section.__mro__:
        if (said := texts_of(base).get(name)) is not None:
            return said
    if get_origin(annotation) is Literal and len(get_args(annotation)) == 1:
        return "Which it is."
    inner = next((part for part in _parts(annotation) if _is_section(part)), None)
    said = None if inner is None else _said_of(inner)
    if said is None:
        raise LookupError(
            f"{section.__module__}: {section.__name__}.{name} has no text below it that says what it means"
        )
    return said


def texts_of(section: type) -> dict[str, str]:
    """By key, what stands below it where the class itself declares it, in one line."""
    if not section.__module__.startswith("orpo_ray."):
        return {}
    found: dict[str, str] = {}
    body = _classes(section.__module__)[section.__name__].body
    for statement, after in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[statement.target.id] = " ".join(text.value.split())
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
