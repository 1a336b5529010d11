"""Tables of the paper remade: the folders' numbers, the paper's beside them, and nothing where nothing was run."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from evaluation_run import change
from paper_folders import METHODS, SETTINGS, finish, finish_all, paper_stages
from test_report import make_run

from orpo_ray.config import load_any
from orpo_ray.errors import UserError
from orpo_ray.paper.benchmark_tables import alpaca_table, ifeval_table, mt_bench_table
from orpo_ray.paper.further_tables import diversity_table, reward_table
from orpo_ray.paper.outcomes import AGAINST, Outcomes, read_outcomes
from orpo_ray.paper.stages import PaperStages, Place
from orpo_ray.paper.table import Cell, Number, Table
from orpo_ray.paper.tables import paper_tables, seeds_table, win_rate_table
from orpo_ray.statistics.seeds import of_means, over_seeds

SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> PaperStages:
    return finish_all(paper_stages(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def outcomes(finished) -> Outcomes:
    return read_outcomes(finished)


@pytest.fixture
def begun(tmp_path) -> PaperStages:
    """Nothing has run yet."""
    return paper_stages(tmp_path)


def winrate(size: str, seed: int) -> Place:
    return Place("winrate", "world", size, seed)


def parsed(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.csv())))


def write(outcomes: Outcomes, folder: Path) -> list[Path]:
    folder.mkdir()
    return [file for table in paper_tables(outcomes) for file in table.write(folder)]


def won(stages: PaperStages, size: str, seed: int, against: str, judge: str = "judge") -> list[list[float]]:
    """By prompt ORPO's outcomes, counted from the rows of `results.parquet` one by one."""
    rows = pq.read_table(stages.folder_of(winrate(size, seed)) / "results.parquet").to_pylist()
    reward = {(row["model"], row["prompt"], row["round"]): row[f"reward:{judge}"] for row in rows}
    found: list[list[float]] = []
    for prompt in range(40):
        found.append([])
        for round in range(3):
            ours, theirs = (reward[model, prompt, round] for model in ("orpo", against))
            if ours is None or theirs is None:
                found[-1].append(float("nan"))
            else:
                found[-1].append(0.5 if abs(ours - theirs) <= 1e-4 else float(ours > theirs))
    return found


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("against", AGAINST)
@pytest.mark.parametrize("judge", ["judge", "truth"])
def test_a_contest_is_what_the_rewards_of_each_seed_say(finished, outcomes, size, against, judge):
    contest = outcomes.contest("world", size, against, judge)
    assert list(contest.seeds) == list(SEEDS) and not contest.missing and not contest.why_not
    for seed, own in contest.seeds.items():
        counted = won(finished, size, seed, against, judge)
        decided = [value for row in counted for value in row if value == value]
        assert own.win_rate == pytest.approx(fmean(decided))
        by_round = [fmean(row[i] for row in counted if row[i] == row[i]) for i in range(3)]
        assert own.by_round == pytest.approx(by_round) and own.sd == pytest.approx(stdev(by_round))
        assert own.low < own.win_rate < own.high
        assert own.prompts == sum(any(value == value for value in row) for row in counted)
    every = [np.array(won(finished, size, seed, against, judge)) for seed in SEEDS]
    assert contest.overall == over_seeds(every)
    assert contest.overall.mean == pytest.approx(fmean(own.win_rate for own in contest.seeds.values()))
    assert contest.sd == pytest.approx(fmean(own.sd for own in contest.seeds.values()))


def test_table_2_has_the_papers_layout_and_its_numbers_beside(outcomes):
    table = win_rate_table(outcomes, "world", "judge")
    assert table.name == "table-2" and table.columns == ("Size", "vs SFT", "vs SFT+DPO", "vs SFT+PPO")
    assert [row[0].text for row in table.rows] == ["small", "large"]
    assert [row[0].details for row in table.rows] == [("the paper's OPT-125M",), ("the paper's OPT-350M",)]
    contest = outcomes.contest("world", "small", "sft")
    cell = table.rows[0][1]
    assert cell.text == f"{100 * contest.overall.mean:.1f} ({100 * contest.sd:.2f})" and cell.numeric
    interval = f"{100 * contest.overall.low:.1f} to {100 * contest.overall.high:.1f}"
    assert cell.details == (interval, "paper 84.0 (0.62), not in it")
    assert cell.verdict == "agrees" and "both above 50%" in cell.why
    assert table.rows[0][2].details[1] == "paper 41.7 (0.77), not in it" and table.rows[0][2].verdict == "differs"
    assert table.rows[1][2].verdict == "cannot tell", "the paper leaves it open, and so do so few prompts"
    assert [(each.label, each.folder) for each in cell.sources] == [
        (f"seed {seed}", f"../stages/world-small-winrate-{seed}") for seed in SEEDS
    ]


def test_the_csv_has_every_number_in_full_and_the_seeds_beside_their_mean(finished, outcomes):
    rows = parsed(win_rate_table(outcomes, "world", "judge"))
    assert [(row["size"], row["against"], row["seed"]) for row in rows] == [
        (size, against, seed) for size in ("small", "large") for against in AGAINST for seed in ("all", "1", "2", "3")
    ]
    for row in rows:
        contest = outcomes.contest("world", row["size"], row["against"])
        if row["seed"] == "all":
            expected = (contest.overall.mean, contest.sd, contest.overall.low, contest.overall.high)
            assert row["holds_paper"] in ("yes", "no") and row["verdict"]
        else:
            own = contest.seeds[int(row["seed"])]
            expected = (own.win_rate, own.sd, own.low, own.high)
            assert row["folder"] == f"../stages/world-{row['size']}-winrate-{row['seed']}"
            assert row["paper"] == row["verdict"] == "", "the paper's number is held against the mean"
        assert tuple(float(row[name]) for name in ("value", "sd", "low", "high")) == expected, "to the last digit"
        assert row["rounds"] == "3" and row["judge"] == "judge" and row["quantity"] == "win_rate"
    assert (rows[0]["paper"], rows[0]["paper_sd"]) == ("0.84", "0.0062")
    assert parsed(seeds_table(outcomes, "world", "judge")) == [
        row | {"paper": "", "paper_sd": "", "holds_paper": ""} for row in rows if row["seed"] != "all"
    ]


def test_another_judge_has_tables_of_its_own_without_the_papers_numbers(outcomes):
    assert list(outcomes.stages.judges["world"]) == ["judge", "truth"]
    table = win_rate_table(outcomes, "world", "truth")
    assert table.name == "table-2-by-truth" and "Table 2" not in table.title and "judged by truth" in table.title
    assert not any(cell.verdict or "paper" in "".join(cell.details) for row in table.rows for cell in row)
    assert all(row["paper"] == row["verdict"] == "" for row in parsed(table))


def test_all_tables_are_three_files_each_whose_bytes_are_the_same_however_often(finished, outcomes, tmp_path):
    """By a reader that asks in another order, too, and of folders that lie elsewhere."""
    first = write(outcomes, tmp_path / "first")
    names = ["table-1", "table-2", "table-2-seeds", "table-2-by-truth", "table-2-by-truth-seeds", "rewards-world",
             "table-4", "table-6", "mt-bench"]  # fmt: skip
    assert [file.name for file in first] == [f"{name}{kind}" for name in names for kind in (".csv", ".md", ".tex")]
    shutil.copytree(finished.folder, tmp_path / "moved" / finished.folder.name)
    other = read_outcomes(paper_stages(tmp_path / "moved"))
    for size in ("large", "small"):
        for against in reversed(AGAINST):
            other.contest("world", size, against, "truth")
    second = write(other, tmp_path / "second")
    for one, another in zip(first, second, strict=True):
        assert one.read_bytes() == another.read_bytes()
    everything = b"".join(file.read_bytes() for file in first)
    assert str(finished.folder).encode() not in everything and b"/tmp/" not in everything
    assert not list((tmp_path / "first").glob(".*")), "nothing half written is left"


def test_rewards_and_diversity_are_the_evaluations_own(finished, outcomes):
    said = json.loads((finished.folder_of(winrate("small", 2)) / "winrates.json").read_text())
    table = reward_table(outcomes, "world")
    assert table.columns == ("Judge", "Size", "Seed", "SFT", "SFT+DPO", "SFT+PPO", "ORPO")
    row = next(row for row in table.rows if [cell.text for cell in row[:3]] == ["judge", "small", "2"])
    assert [cell.text for cell in row[3:]] == [f"{said['rewards']['judge'][m]['mean']:.3f}" for m in METHODS]
    numbers = [one for one in table.numbers if (one.judge, one.size, one.seed) == ("truth", "small", "2")]
    assert [one.value for one in numbers] == [said["rewards"]["truth"][method]["mean"] for method in METHODS]

    table = diversity_table(outcomes)
    row = next(row for row in table.rows if row[0].text == "The toy world, small, ORPO")
    assert row[1].text == "0.8320" and row[1].details == ("0.8310, 0.8320, 0.8330",)
    own = [
        one
        for one in table.numbers
        if (one.quantity, one.size, one.method, one.against) == ("per_input_cosine", "small", "orpo", "")
    ]
    assert [(one.seed, one.value) for one in own] == [
        ("all", pytest.approx(0.832)),
        ("1", pytest.approx(0.831)),
        ("2", pytest.approx(0.832)),
        ("3", pytest.approx(0.833)),
    ]


def test_rows_without_cosines_are_a_line_for_each_reason(tmp_path):
    """In the words of the rows, with the key that says so."""
    some = paper_stages(
        tmp_path,
        evaluation={"embedder": None, "sampling": {"max_tokens": 48}, "reward_models": {"truth": "toy"}},
        sizes={
            "small": {"base": "toy"}, "large": {"base": "toy", "evaluation": {"embedder": None}},
            "whole": {"base": "toy", "evaluation": {"embedder": "all-MiniLM-L6-v2"}},
        },
    )  # fmt: skip
    places = [Place("winrate", "world", size, 1) for size in ("small", "large")]
    finish(some, *places, prompts=6)

    def edit(content):
        for model in content["models"].values():
            model["diversity"] |= {"embedder": None, "per_input_cosine": None, "across_input_cosine": None}

    for place in places:
        change(some.folder_of(place), edit)
    assert diversity_table(read_outcomes(some)).notes[1:] == (
        "Not run: The toy world, small: the evaluation embeds no answers (evaluation.embedder).",
        "Not run: The toy world, large: the evaluation embeds no answers (sizes.large.evaluation.embedder).",
        "Not run: The toy world, whole: not begun.",
    )


def test_a_reward_below_zero_has_a_true_minus_sign_and_its_csv_a_number(tmp_path):
    some = paper_stages(tmp_path)
    place = winrate("small", 1)
    finish(some, place, prompts=6)
    change(some.folder_of(place), lambda content: content["rewards"]["truth"]["sft"].update(mean=-2.5241))
    table = reward_table(read_outcomes(some), "world")
    assert "−2.524" in [cell.text for row in table.rows for cell in row]
    assert "-2.5241" in [row["value"] for row in parsed(table)]


def test_a_command_is_that_of_the_stages_own_folder(finished, outcomes, monkeypatch, tmp_path):
    """What it names reads as the very configuration of the stage, from where the paper's command was typed."""
    for place, config in finished.configs.items():
        program, command, file = shlex.split(outcomes.command(place))
        assert (program, command) == ("orpo-ray", "evaluate" if place.kind == "winrate" else "train")
        assert Path(file).parent == finished.folder_of(place)
        assert load_any(file) == config
    monkeypatch.chdir(tmp_path)
    here = paper_stages(Path("runs"))
    finish(here, winrate("small", 1))
    assert read_outcomes(here).command(winrate("small", 1)) == (
        "orpo-ray evaluate runs/toy-paper/stages/world-small-winrate-1/config.yaml"
    )
    assert read_outcomes(here).command(winrate("small", 2)) == "", "there is no folder yet"


# What is not there


def test_before_anything_has_run_every_cell_says_so(begun):
    outcomes = read_outcomes(begun)
    assert {outcomes.missing(place) for place in begun.configs} == {"not begun"}
    tables = paper_tables(outcomes)
    table = next(each for each in tables if each.name == "table-2")
    cells = [cell for row in table.rows for cell in row[1:]]
    assert {(cell.text, cell.verdict, cell.why) for cell in cells} == {("not run", "not run", "not begun")}
    assert [cell.details for cell in table.rows[0][1:]] == [
        ("paper 84.0 (0.62)",), ("paper 41.7 (0.77)",), ("paper 66.1 (0.26)",),
    ]  # fmt: skip
    assert [row["seed"] for row in parsed(table)] == ["all"] * 6, "no seed has a number"
    assert all(row["value"] == "" and row["verdict"] == "not run" and row["paper"] for row in parsed(table))
    assert all(each.csv() and each.markdown() and each.latex() for each in tables)
    for name in ("table-2", "table-4"):
        (note,) = (each.notes[0] for each in tables if each.name == name)
        assert "ean over training seeds, none of which has a number yet, and" in note


def test_a_seed_that_is_missing_is_said_and_the_mean_is_of_the_others(begun):
    finish(begun, winrate("small", 1), winrate("small", 3))
    outcomes = read_outcomes(begun, {"world-small-dpo-2": "CUDA out of memory"})
    contest = outcomes.contest("world", "small", "sft")
    assert list(contest.seeds) == [1, 3] and contest.overall.seeds == 2
    why = "not begun, since world-small-dpo-2, which it needs, has failed"
    assert contest.missing == {2: why}
    assert outcomes.missing(Place("dpo", "world", "small", 2)) == "failed: CUDA out of memory"
    table = win_rate_table(outcomes, "world", "judge")
    assert table.rows[0][1].numeric and table.rows[1][1].text == "not run"
    assert [source.label for source in table.rows[0][1].sources] == ["seed 1", "seed 3"]
    assert table.notes[1:] == (f"Not run: small, seed 2: {why}.", "Not run: large, seeds 1, 2, 3: not begun.")
    for note in (table.notes[0], diversity_table(outcomes).notes[0]):
        assert "ean over 2 training seeds (1, 3), and" in note, "no other was run"
    seeds = seeds_table(outcomes, "world", "judge")
    assert [row[2].text == "not run" for row in seeds.rows] == [False, True, False, True, True, True]
    assert seeds.rows[1][2].why == why


def test_sizes_of_unlike_seeds_say_so(begun):
    finish(begun, winrate("small", 1), winrate("small", 3), winrate("large", 1))
    outcomes = read_outcomes(begun)
    for table in (win_rate_table(outcomes, "world", "judge"), diversity_table(outcomes)):
        assert "ean over 2 training seeds (1, 3), or those of them that have a number, and" in table.notes[0]


def test_one_seed_has_the_evaluations_own_interval_over_prompts(begun):
    finish(begun, winrate("small", 1))
    contest = read_outcomes(begun).contest("world", "small", "dpo")
    assert contest.overall.one_run and contest.overall.mean == pytest.approx(contest.seeds[1].win_rate)


def test_what_is_unfinished_says_how_far_it_is(begun):
    orpo, sft = Place("orpo", "world", "small", 1), Place("sft", "world", "small", 1)
    make_run(begun.folder_of(orpo), steps=50, finished=False)
    (begun.folder_of(orpo) / "config.yaml").write_text(begun.configs[orpo].to_yaml())
    outcomes = read_outcomes(begun)
    assert outcomes.missing(orpo).startswith("not finished: step 50 of 120")
    assert outcomes.run(orpo).last_step == 50, "whose curves are there all the same"
    assert outcomes.run(sft) is None and outcomes.missing(sft) == "not begun"
    finish(begun, sft, *(Place(kind, "world", "small", 1) for kind in ("dpo", "ppo")))
    finish(begun, Place("judge", "world", "large"), Place("reward", "world", "small"))
    why = read_outcomes(begun).missing(winrate("small", 1))
    assert why.startswith("not begun: it needs world-small-orpo-1, not finished: step 50 of 120")


def test_a_run_before_its_first_whole_line_has_no_curves(begun):
    orpo = Place("orpo", "world", "small", 1)
    folder = begun.folder_of(orpo)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(begun.configs[orpo].to_yaml())
    for torn in ("", '{"step": 1, "lo'):
        (folder / "metrics.jsonl").write_text(torn)
        outcomes = read_outcomes(begun)
        assert outcomes.run(orpo) is None and outcomes.missing(orpo) == "not finished: no step yet"


def test_results_of_other_settings_are_not_taken_for_these(begun, tmp_path):
    """An evaluation's folder keeps its name; what is in it before it is made anew is of models that are no more."""
    finish(begun, winrate("small", 1))
    assert read_outcomes(begun).missing(winrate("small", 1)) == ""
    settings = yaml.safe_load(SETTINGS)["methods"]
    settings["dpo"]["optim"] = {"lr": 1e-6}
    changed = read_outcomes(paper_stages(tmp_path, methods=settings))
    assert "models.dpo" in changed.missing(winrate("small", 1))
    assert changed.contest("world", "small", "sft").overall is None


def test_results_that_were_once_done_by_other_data_are_not_taken_for_these(begun):
    """Of which the settings say nothing: the record has a digest of the files too."""
    place = winrate("small", 1)
    finish(begun, place)
    (begun.folder / "done").mkdir()
    for record, there in ((begun.digests[place], True), ("0000aaaa", False), ("", False)):
        (begun.folder / "done" / place.label).write_text(record)
        outcomes = read_outcomes(begun)
        assert (outcomes.missing(place) == "") == there, record
        assert (outcomes.evaluation(place) is not None) == there


def test_a_method_that_the_configuration_lacks_keeps_its_column(tmp_path):
    methods = {name: own for name, own in yaml.safe_load(SETTINGS)["methods"].items() if name not in ("ppo", "reward")}
    stages = paper_stages(tmp_path, methods=methods, reward=None)
    finish(stages, winrate("small", 1))
    table = win_rate_table(read_outcomes(stages), "world", "judge")
    assert table.columns[-1] == "vs SFT+PPO"
    assert table.rows[0][3].text == "not run" and "the configuration has no ppo" in table.rows[0][3].why
    assert table.rows[0][3].details == ("paper 66.1 (0.26)",)
    assert "Not run: small vs SFT+PPO, seeds 1, 2, 3; large vs SFT+PPO, seeds 1, 2, 3: the" in " ".join(table.notes)


def test_seeds_that_were_asked_unlike_prompts_are_told_by_their_means(begun):
    finish(begun, *(winrate("small", seed) for seed in SEEDS))
    file = begun.folder_of(winrate("small", 2)) / "prompts.parquet"
    prompts = pq.read_table(file).to_pylist()
    prompts[0]["text"] = "Another question."
    pq.write_table(pa.Table.from_pylist(prompts), file)
    contest = read_outcomes(begun).contest("world", "small", "sft")
    assert contest.overall == of_means([own.win_rate for own in contest.seeds.values()])


def test_means_of_seeds_that_are_alike_tell_all_that_a_win_rate_may_be(begun):
    """Student's interval of them has no end, or one above 100 %."""
    finish(begun, winrate("small", 1))
    folder = begun.folder_of(winrate("small", 2))
    shutil.copytree(begun.folder_of(winrate("small", 1)), folder)
    (folder / "config.yaml").write_text(begun.configs[winrate("small", 2)].to_yaml())
    prompts = pq.read_table(folder / "prompts.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([prompts[0] | {"text": "Another."}, *prompts[1:]]), folder / "prompts.parquet")
    outcomes = read_outcomes(begun)
    overall = outcomes.contest("world", "small", "sft").overall
    assert overall is not None and (overall.low, overall.high) == (0, 1)
    assert "0.0 to 100.0" in win_rate_table(outcomes, "world", "judge").rows[0][1].details


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("winrates.json", b"{}", "winrates.json: "),
        ("winrates.json", b"\xff\x00", "winrates.json: "),
        ("results.parquet", b"PAR1", "results.parquet: cannot be read"),
        ("prompts.parquet", b"", "prompts.parquet: cannot be read"),
        ("config.yaml", b"name: [", "config.yaml"),
    ],
)
def test_a_damaged_file_is_named(begun, file, content, said):
    finish(begun, winrate("small", 1))
    (begun.folder_of(winrate("small", 1)) / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(said)):
        read_outcomes(begun).contest("world", "small", "sft")


def test_rewards_that_are_not_those_of_the_win_rates_are_refused(begun):
    finish(begun, winrate("small", 1))

    def edit(content):
        for pair in content["pairs"]:
            pair["win_rate"] = 0.999

    change(begun.folder_of(winrate("small", 1)), edit)
    with pytest.raises(UserError, match=r"results.parquet: its rewards by judge do not give the win-rate of orpo over"):
        read_outcomes(begun).contest("world", "small", "sft")


# Benchmarks


def benchmarked(folder: Path, leaderboards: dict) -> Outcomes:
    """A paper with an evaluation of two benchmarks, and one of MT-Bench that has not begun."""
    judged = {"judges": {"big": {"kind": "openai", "model": "big", "base_url": "http://localhost:1/v1"}}}
    rates = judged | {"measures": ["mt-bench"], "judging": {"compares": "rates"}, "prompts": {"source": "toy-test"}}
    stages = paper_stages(
        folder,
        benchmarks={
            "board": {
                "data": "world", "size": "small",
                "evaluation": {"measures": ["ifeval"], "prompts": {"source": "toy-test"},
                               "models": {"mistral-orpo-beta": "toy"}},
            },
            "talk": {"data": "world", "size": "small", "evaluation": rates},
        },
    )  # fmt: skip
    place = Place("benchmark", "world", "small", name="board")
    finish(stages, place)
    change(stages.folder_of(place), lambda content: content.update(leaderboards=leaderboards))
    return read_outcomes(stages)


def test_benchmarks_that_were_run_stand_above_the_papers_rows(tmp_path):
    rate = lambda value: {"followed": 1, "n": 541, "rate": value, "ci95": [value - 0.04, value + 0.04]}  # noqa: E731
    names = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
    rows = [
        {"model": "orpo", "round": 0, **{name: rate(0.3) for name in names}, "failures": [], "remarks": []},
        {"model": "mistral-orpo-beta", "round": 0, **{name: rate(0.55) for name in names}, "failures": [],
         "remarks": []},
    ]  # fmt: skip
    outcomes = benchmarked(tmp_path, {"ifeval": {"ranked_by": "prompt_strict", "rows": rows, "published": []}})
    table = ifeval_table(outcomes)
    assert [row[0].text for row in table.rows] == [
        "ORPO (world-small-board)", "mistral-orpo-beta (world-small-board)", "Mistral-ORPO-α (the paper's)",
        "Mistral-ORPO-β (the paper's)",
    ]  # fmt: skip
    ours, same = table.rows[:2]
    assert ours[1].text == "30.00" and ours[1].details == ("26.00 to 34.00",) and not ours[1].verdict
    assert [cell.verdict for cell in same[1:]] == ["agrees", "agrees", "differs", "differs"]
    assert same[1].details == ("51.00 to 59.00", "paper 52.87")
    own = parsed(table)[4]
    assert (own["method"], own["value"], own["paper"], own["holds_paper"]) == (
        "mistral-orpo-beta", "0.55", "0.5287", "yes",
    )  # fmt: skip
    talk = mt_bench_table(outcomes)
    assert talk.rows[0][1].text == "not run" and talk.rows[0][1].why == "not begun"
    assert talk.notes[0] == "Not run: world-small-talk: not begun."
    none = alpaca_table(outcomes)
    assert "no benchmark of the configuration measures AlpacaEval" in none.rows[0][1].why
    assert none.rows[3][1].text == "71.80", "the paper's Phi-2 ORPO"


def test_alpaca_eval_and_mt_bench_rows(tmp_path):
    alpaca = {"model": "dpo", "judge": "big", "round": 0, "n": 805, "win_rate": 8.25, "standard_error": 0.9,
              "ci95": [6.5, 10.1], "unreadable": 0, "identical": None, "length_controlled_winrate": None,
              "length_controlled": None, "length_controlled_here": {"win_rate": None, "ci95": None, "unknown": None},
              "remarks": []}  # fmt: skip
    talk = {"model": "orpo", "judge": "big", "round": 1, "score": {"mean": 6.5, "ci95": [6.1, 6.9]}, "turns": {},
            "categories": {"math": {"mean": 3.0, "ci95": [2.0, 4.0]}}, "unreadable": [], "remarks": []}  # fmt: skip
    outcomes = benchmarked(tmp_path, {
        "alpaca-eval-2": {"ranked_by": "win_rate", "rows": [alpaca], "published": []},
        "mt-bench": {"ranked_by": "score", "rows": [talk], "published": []},
    })  # fmt: skip
    found = outcomes.benchmark(Place("benchmark", "world", "small", name="board"))
    assert found["mt-bench"][0].categories["math"].mean == 3.0
    assert found["alpaca-eval-2"][0].standard_error == 0.9
    change(
        outcomes.stages.folder_of(outcomes.benchmarks[0]),
        lambda content: content["leaderboards"]["mt-bench"]["rows"][0].pop("turns"),
    )
    with pytest.raises(UserError, match=r"winrates.json: leaderboards.mt-bench.rows: turns"):
        read_outcomes(outcomes.stages).benchmark(outcomes.benchmarks[0])


# How it is written


HARD = r"50% & <b> #1_a {x} ~ ^ \\ | $5 `c` *d* [e](f) – − ± λ α 'q' " + '"q"'


def test_latex_has_no_character_of_its_own_left():
    table = Table("t", HARD, ("a", HARD), ((Cell(HARD, details=(HARD,)), Cell("1", numeric=True)),), (), (HARD,))
    text = table.latex()
    plain = re.sub(r"\\(?:[A-Za-z]+(?:\{\})?|[{}&%$#_])", "", re.sub(r"\$(?:[-±]|\\[a-z]+)\$", "", text))
    body = "\n".join(plain.splitlines()[2:-2])
    assert not re.search(r"[%#_^<>|\"\\]", body.replace(r"\\", "")), body
    assert "\\%" in text and r"\textbackslash{}" in text and r"$\lambda$" in text and r"$-$" in text
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == 1, "as many cells as columns"
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_a_judge_in_words_has_no_row_of_rewards_before_it_has_judged(tmp_path):
    words = {"big": {"kind": "openai", "model": "big", "base_url": "http://localhost:1/v1"}}
    evaluation = yaml.safe_load(SETTINGS)["evaluation"] | {"judges": words}
    table = reward_table(read_outcomes(paper_stages(tmp_path, evaluation=evaluation)), "world")
    assert {row[0].text for row in table.rows} == {"judge", "truth"}


def test_a_row_of_latex_begins_with_no_option_of_the_row_before():
    rows = ((Cell("[1cm] first"), Cell("a")), (Cell("*second", details=("[3]",)), Cell("b")))
    lines = Table("t", "t", ("[a]", "b"), rows, ()).latex().splitlines()
    for before, line in pairwise(lines):
        assert not (before.endswith((r"\\", "rule")) and line.startswith(("[", "*"))), line


def test_markdown_keeps_its_columns_whatever_a_cell_says():
    table = Table("t", HARD, ("a", HARD), ((Cell(HARD, details=(HARD, "x\ny")), Cell("1", numeric=True)),), (), ())
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 3 and lines[1] == "| :-- | --: |"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert "<b>" not in table.markdown() and r"\<b\>" in table.markdown()


def test_a_number_is_read_back_from_the_csv_as_it_was():
    number = Number("win_rate", data='a "quoted", name', value=1 / 3, low=1e-17, prompts=3, holds_paper=True)
    table = Table("t", "t", (), (), (number, replace(number, value=None, holds_paper=None)))
    first, second = parsed(table)
    assert float(first["value"]) == 1 / 3 and float(first["low"]) == 1e-17 and first["prompts"] == "3"
    assert first["data"] == 'a "quoted", name' and first["holds_paper"] == "yes"
    assert second["value"] == second["holds_paper"] == second["high"] == ""
    assert "\r" not in table.csv()
