"""docs/keys.md: it is what the configuration's classes say, with every key and its meaning, and its links lead on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field

from orpo_ray.config import (
    BenchmarkConfig,
    EvaluationBenchmarkConfig,
    EvaluationConfig,
    ScoreConfig,
    SweepConfig,
    TrainConfig,
)
from orpo_ray.config.metrics import Metric
from orpo_ray.config.mistakes import sections_at
from orpo_ray.config.paper import PaperConfig
from orpo_ray.config.pipeline import PipelineConfig
from orpo_ray.config.reference import anchor, in_words, page, texts_of
from orpo_ray.config.schema import LoraConfig
from orpo_ray.config.section import Count, CountOrAuto, Fraction, FreeForm, Integer, Number, RunName, Section

PAGE = Path(__file__).resolve().parents[2] / "docs" / "keys.md"
ROW = re.compile(r"^\| `([\w.]+)` \| (.+?) \| (.*?) \| (.+) \|$", re.MULTILINE)


def test_the_page_is_what_the_classes_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make reference"


def test_links_lead_to_one_heading_each() -> None:
    text = PAGE.read_text(encoding="utf-8")
    headings = [anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    assert len(set(headings)) == len(headings)
    linked = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert "train-modellora" in linked and linked <= set(headings)


def test_every_section_has_a_table_of_all_its_keys() -> None:
    text = PAGE.read_text(encoding="utf-8")
    tables = [
        re.findall(r"^\| `(?:[\w.]+\.)?(\w+)` ", table, re.MULTILINE) for table in text.split("|---|---|---|---|")
    ]
    todo: list[type[Section]] = [TrainConfig, EvaluationConfig, ScoreConfig, SweepConfig, PipelineConfig, PaperConfig]
    todo += [BenchmarkConfig, *get_args(EvaluationBenchmarkConfig)]
    seen: set[type[Section]] = set()
    while todo:
        section = todo.pop()
        keys = [field.alias or name for name, field in section.model_fields.items()]
        assert keys in tables, section
        seen.add(section)
        todo += [inner for key in keys for inner in sections_at([key], section) if inner not in seen]
    assert len(seen) > 50 and LoraConfig in seen


def test_every_row_is_whole() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    rows = [ROW.match(line) for line in lines]
    assert len(rows) > 300 and all(rows)
    found = {row[1]: row.groups()[1:] for row in rows if row}
    assert found["optim.lr"] == (
        "number, above 0",
        "`8.0e-06`",
        "The highest learning rate, at the end of the warm-up.",
    )
    assert found["scaling.hang_timeout"][:2] == ("number, above 0", "`1800`")
    assert found["data.train"][1] == ""  # it has to be given
    assert found["objective.pairs"][1] == "`{name: dpo}`"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Count, "whole number, at least 1"), (Fraction, "number, at least 0, below 1"), (RunName, "name"),
        (Annotated[Integer, Field(ge=1, le=1000)], "whole number, at least 1, at most 1,000"),
        (CountOrAuto, "whole number, at least 1, or `auto`"),
        (CountOrAuto | None, "whole number, at least 1, or `auto`, or `null`"),
        (Literal[True, False, "auto"], "`true`, `false` or `auto`"), (bool, "`true` or `false`"), (FreeForm, "mapping"),
        (str | list[str], "text, or list of: text"),
        (Metric | None, "metric of an evaluation, such as `eval_loss`, or `null`"),
        (tuple[Fraction, Fraction], "list of 2, each: number, at least 0, below 1"), (tuple[str, ...], "list of: text"),
        (Annotated[dict[RunName, Number], Field(min_length=1)], "mapping of names to: number (not empty)"),
        (LoraConfig | None, "section, see [train: model.lora](#train-modellora), or `null`"),
        (dict[str, LoraConfig], "mapping of names to: section, see [train: model.lora](#train-modellora)"),
    ],
)  # fmt: skip
def test_types_are_told_in_plain_words(annotation: Any, words: str) -> None:
    assert in_words(annotation, {(LoraConfig,): "train: model.lora"}) == words


def test_what_stands_below_a_key_is_its_meaning() -> None:
    said = texts_of(LoraConfig)
    assert said["alpha"] == "The adapters' share is scaled by `alpha / rank`."
    assert said["target_modules"].endswith("experts of a mixture included where there is no dropout.")
