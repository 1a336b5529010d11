"""Published numbers, as their tables have them."""

import json
from pathlib import Path

import pytest

from orpo_ray.errors import UserError
from orpo_ray.leaderboards.published import Entry, ranked, read_published

ALPACA_EVAL_2 = "length_controlled_winrate", "win_rate", "standard_error"
# As AlpacaEval has them: no heading above the names, and cells that are left empty.
TABLE = """,win_rate,standard_error,n_total,mode,length_controlled_winrate,lc_standard_error
small,12.5,0.9,805,community,14.75,
large,50.0,0.0,805,verified,,
"""
SMALL = Entry("small", {"length_controlled_winrate": 14.75, "win_rate": 12.5, "standard_error": 0.9})
LARGE = Entry("large", {"win_rate": 50.0, "standard_error": 0.0})


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_alpaca_evals_own_table_is_read_as_it_is(tmp_path):
    assert read_published(written(tmp_path / "leaderboard.csv", TABLE), ALPACA_EVAL_2) == [SMALL, LARGE]


def test_a_list_of_ones_own_is_read_by_the_names_that_it_may_use(tmp_path):
    rows = [
        {"name": "small", "win_rate": "12.5", "length_controlled": 14.75, "standard_error": 0.9, "note": "a paper's"},
        {"model": "large", "win_rate": 50, "length_controlled_win_rate": None, "standard_error": 0},
        {"name": "without", "win_rate": None},
    ]
    array = written(tmp_path / "published.json", json.dumps(rows))
    lines = written(tmp_path / "published.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_published(array, ALPACA_EVAL_2) == read_published(lines, ALPACA_EVAL_2) == [SMALL, LARGE]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"win_rate": 1.0}], r"published\.json\[record 0\]: has no name"),
        ([{"name": " ", "win_rate": 1.0}], r"\[record 0\]: has no name"),
        (
            [{"name": "a", "win_rate": 1.0}, {"name": "b", "win_rate": "high"}],
            r"\[record 1\]: win_rate should be a num",
        ),
        ([{"name": "a", "win_rate": [1]}], r"\[record 0\]: win_rate should be a number"),
        ([{"name": "a", "score": 1.0}], r"published\.json: no record has win_rate or standard_error"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(tmp_path, rows, why):
    path = written(tmp_path / "published.json", json.dumps(rows))
    with pytest.raises(UserError, match=why):
        read_published(path, ("win_rate", "standard_error"))


def test_they_stand_in_order_of_one_number():
    twice = Entry("small", {"length_controlled_winrate": 30.0})
    assert ranked([LARGE, SMALL, twice], by="length_controlled_winrate") == [twice, SMALL, LARGE]
    assert ranked([SMALL, LARGE, twice], by="win_rate") == [LARGE, SMALL, twice]
    assert [entry.name for entry in ranked([Entry("b", {}), Entry("a", {})], by="score")] == ["a", "b"]
