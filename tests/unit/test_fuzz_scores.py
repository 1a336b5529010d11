"""Records to score, damaged in every way: accounted for, told in a line, and what is kept can be written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import assert_one_line, cases, odd_values
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz_data import changed

from orpo_ray.config import ScoreConfig
from orpo_ray.data.responses import Responses
from orpo_ray.errors import UserError
from orpo_ray.evaluation.score import make_score_plan
from orpo_ray.evaluation.scores import scores_table, summary

ASKED, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
RECORDS: list[dict[str, Any]] = [
    {"prompt": "Why?", "chosen": "a", "rejected": "b", "subset": "donotanswer", "id": 7},
    {"prompt": "Why?", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Math", "num_correct": 1},
    {"prompt": "Why?", "chosen": ["a", "d"], "rejected": ["b"], "subset": "Ties", "id": "tied:1"},
    {"prompt": "Why?", "chosen": "a", "rejected": ["b"], "subset": "Ties", "id": "ref:1"},
    {"chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "No."}], "record": 3},
    {"prompt": [ASKED], "responses": ["a", [SAID]]},
    {"prompt": "Why?", "response": "a", "reward:truth": 1.5},
    {"instruction": "Why?", "output": "a", "generator": "x"},
]
PLACES = [
    "prompt", "prompt.0", "prompt.0.content", "chosen", "chosen.0", "chosen.1.content", "rejected", "rejected.0",
    "responses", "responses.0", "responses.1.0.role", "response", "instruction", "output", "subset", "id", "record",
]  # fmt: skip
changes_of_a_record = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "delete", "add"]), odd_values), max_size=2
)


@given(
    st.lists(st.tuples(st.sampled_from(RECORDS), changes_of_a_record), min_size=1, max_size=5),
    st.sampled_from(["auto", "prompts", "plain"]), st.sampled_from(["error", "quarantine"]), st.randoms(),
)  # fmt: skip
@example([(RECORDS[0], [("id", "set", 10**30)]), (RECORDS[0], [("id", "set", True)])], "auto", "error", None)
@example([(RECORDS[0], [("id", "set", "\ud800")])], "auto", "quarantine", None)
@example([({**RECORDS[6], "\udfff": 1}, [])], "auto", "quarantine", None)
@cases(1200)
def test_records(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], format: Any, on_bad: Any, draw: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    file = folder / "records.jsonl"
    file.write_text("\n".join(json.dumps(changed(record, changes)) for record, changes in records))
    config = ScoreConfig.model_validate({
        "name": "s", "reward_models": {"truth": "toy"}, "storage": {"path": str(folder)},
        "prompts": {"source": str(file), "format": format, "on_bad_record": on_bad},
    })  # fmt: skip
    try:
        plan = make_score_plan(config)
    except UserError as error:
        assert_one_line(error, str(file))
        return
    plan.account.check()
    assert (plan.account.read, plan.account.kept) == (len(records), len(plan.records))
    rewards = [[_reward(draw) for _ in names] for names in plan.own]
    table = scores_table(plan.records, plan.own, {"truth": rewards})
    pq.write_table(table, pa.BufferOutputStream())
    assert table.num_rows == sum(len(_responses(record)) for record in plan.records)
    json.dumps(summary(config, plan, plan.records, {"truth": rewards}), allow_nan=False)


def _reward(draw: Any) -> float | None:
    return 0.0 if draw is None else draw.choice([None, 0.0, 1e-5, float(np.float32(0.1)), -3.0])


def _responses(record: Responses) -> tuple[Any, ...]:
    return record.prompt.as_found.completions
