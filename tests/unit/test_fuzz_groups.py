"""Bad records of more, or fewer, than two answers: never a traceback, or a record lost without account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import assert_one_line, cases, odd_values
from hypothesis import example, given
from hypothesis import strategies as st
from preference_records import SOURCES
from test_data_groups import read_as
from test_fuzz_data import DATA, TOKENIZER, Given, changed

from orpo_ray.config import DataConfig
from orpo_ray.config.data import Reading
from orpo_ray.data.cache import CacheWriter, read_or_build
from orpo_ray.data.encoding import Encoder
from orpo_ray.data.formats.shapes import recognise
from orpo_ray.data.passes import PairPass, PromptPass
from orpo_ray.data.questions import PromptDataset
from orpo_ray.data.records import Account
from orpo_ray.data.templates import Renderer
from orpo_ray.errors import UserError

GROUPS: list[dict[str, Any]] = [
    {"prompt": "Why?", "responses": ["Because.", "No", "So", "No"], "ranks": [1, 3, 2, 2]},
    {"prompt": "Why?", "responses": ["Because.", "No", "So"], "scores": [0.5, -1, 0.5], "ratings": None},
    {
        "prompt": [{"role": "user", "content": "Why?"}],
        "responses": [[{"role": "assistant", "content": text}] for text in ("So", "No", "Yes")],
        "ratings": [1, 2, 3],
    },
    {"prompt": "Why?", "chosen": "Because.", "rejected": ["No", "", "Because."]},
    {"prompt": "Why?", "completion": "Darum ✓", "label": True},
    {"prompt": "Why?", "response": "Nein", "label": 0},
]
PLACES = [
    "prompt", "prompt.0", "prompt.0.role", "responses", "responses.0", "responses.1", "responses.1.0.content", "ranks",
    "ranks.0", "scores.1", "ratings.2", "chosen", "rejected", "rejected.0", "completion", "response", "label",
]  # fmt: skip
changes = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "delete", "add"]), odd_values | st.integers(0, 3)),
    max_size=2,
)
READINGS: list[Reading] = ["every_pair", "best_against_worst", "labels"]


@given(
    st.lists(st.tuples(st.sampled_from(GROUPS), changes), min_size=1, max_size=4),
    st.sampled_from(DATA),
    st.sampled_from(READINGS),
)
@example([(GROUPS[5], [("label", "set", -0.0)])], DATA[0], "labels")
@cases(1500)
def test_every_record_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], data: DataConfig, reading: Reading
) -> None:
    values = [changed(record, changed_so) for record, changed_so in records]
    source = Given([json.dumps(value).encode("utf-8", "surrogatepass") for value in values])
    data = data.model_copy(update={"format": "auto"})
    renderer = Renderer(TOKENIZER, data.chat_template)
    folder: Path = tmp_path_factory.mktemp("groups", numbered=True)
    try:
        found = read_or_build(
            folder,
            "key",
            lambda writer: PairPass(data, data.train_sources[0], TOKENIZER, renderer, writer, reading).run(
                source, None, None
            ),
        )
    except UserError as error:  # of the run, not of a record: a template that does not fit
        assert_one_line(error, "x.jsonl:", "template")
        return
    assert found.account.read == len(values)
    pairs = found.pairs
    assert len(pairs) == found.account.kept
    for i, record in enumerate(pairs.record_ids.tolist()):
        format = recognise(values[record]).name
        ranks = [rank for rank in pairs.ranks()[i].tolist() if rank >= 0]
        responses = [TOKENIZER.decode(ids, skip_special_tokens=True).strip() for ids in pairs.pair(i)[1:]]
        assert len(ranks) == len(responses) == len(set(responses))
        assert ranks == sorted(ranks)
        assert len(ranks) == 1 if format == "labelled" else set(ranks) == set(range(len(set(ranks)))) != {0}
        if format in ("ranked", "several") and data.chat_template is None:
            comparison = read_as(values[record], format, as_messages=False)
            rating = {str(answer.turns).strip(): [] for answer in comparison.answers}
            for answer in comparison.answers:
                rating[str(answer.turns).strip()].append(answer.rating)
            if isinstance(comparison.prompt, str):
                best = [max(rating[response]) for response in responses]
                assert best == sorted(best, reverse=True)


ASKING: list[dict[str, Any]] = [
    *GROUPS,
    {"prompt": [{"role": "user", "content": "Why?"}], "tools": [{"name": "clock"}]},
    {"instruction": "Why?", "input": ""},
    {"turns": ["Why?", "And?"]},
    *(source.win | source.tie for source in SOURCES),
]


@given(
    st.lists(st.tuples(st.sampled_from(ASKING), changes), min_size=1, max_size=4),
    st.sampled_from(DATA),
    st.integers(3, 40),
)
@cases(1500)
def test_every_record_asks_once_or_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], data: DataConfig, longest: int
) -> None:
    values = [changed(record, changed_so) for record, changed_so in records]
    source = Given([json.dumps(value).encode("utf-8", "surrogatepass") for value in values])
    data = data.model_copy(update={"format": "auto"})
    renderer, asked = Renderer(TOKENIZER, data.chat_template), data.train_sources[0]
    folder: Path = tmp_path_factory.mktemp("prompts", numbered=True)

    def build(writer: CacheWriter) -> Account:
        return PromptPass(data, asked, TOKENIZER, renderer, writer, longest).run(source, None, None)

    try:
        found = read_or_build(folder, "key", build)
    except UserError as error:  # of the run, not of a record: a template that does not fit
        assert_one_line(error, "x.jsonl:", "template")
        return
    assert (found.account.read, found.account.kept) == (len(values), len(found.pairs))
    asked_ids = [tuple(found.pairs.pair(i)[0].tolist()) for i in range(len(found.pairs))]
    assert len(set(asked_ids)) == len(asked_ids) and all(0 < len(ids) <= longest for ids in asked_ids)
    encode = Encoder(TOKENIZER)
    for i, ids in enumerate(asked_ids):
        assert isinstance(found.pairs, PromptDataset)
        prompt = found.pairs.question(i)
        assert prompt.as_messages is not None and not isinstance(prompt.as_messages.prompt, str)
        question = prompt.form(renderer.overrides_text)
        [again] = encode([renderer.rendered(question.prompt, (), tools=question.tools)])
        assert tuple(again.prompt) == ids
