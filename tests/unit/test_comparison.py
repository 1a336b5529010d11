"""Several runs on one page: what may lie over each other does, what may not is said, and differences have intervals."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rollout_run import make_rollout_run
from test_report import ATTACK, Page, assert_self_contained, headings, make_run

from orpo_ray.config.identity import differing
from orpo_ray.errors import UserError
from orpo_ray.report import comparison as aspects
from orpo_ray.report import comparison_tables as tables
from orpo_ray.report import write_comparison
from orpo_ray.report.comparison import grouped, labels, read_runs
from orpo_ray.report.comparison_figures import Lines, held_out_curves, loop_curves, training_curves
from orpo_ray.report.comparison_page import apart as drawn_apart
from orpo_ray.report.comparison_page import remarks
from orpo_ray.report.comparison_scores import contrast, read_scores, summary
from orpo_ray.statistics.paired import difference, mean
from orpo_ray.storage.driver_lock import only_driver
from orpo_ray.terminal import Console

PAIRS = 200


def score(run: Path, gain: float, *, pairs: int = PAIRS, tokens: int = 0, **changed) -> Path:
    """Scores of the run's kept model: summed log-probs whose margin is `gain` a token, beside noise that all share."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 30, (pairs, 3)) + tokens
    margin = rng.normal(0, 0.5, pairs) + gain
    columns = {
        "record": np.arange(pairs), "prompt_tokens": lengths[:, 0], "chosen_tokens": lengths[:, 1],
        "rejected_tokens": lengths[:, 2], "chosen": -0.5 * lengths[:, 1], "rejected": (-0.5 - margin) * lengths[:, 2],
    }  # fmt: skip
    pq.write_table(pa.table(columns | changed), run / "eval_scores.parquet")
    return run


def train(**changed) -> dict:
    return {"max_steps": 120, "global_batch_size": 32} | changed


def curves(folders, kind=held_out_curves) -> dict[str, list[list[str]]]:
    """By title, the groups of labels that share axes."""
    runs = read_runs(folders)
    found: dict[str, list[list[str]]] = {}
    for each in kind(runs, Lines(runs)):
        found.setdefault(each.title, []).append(each.runs)
    return found


def notice(folders) -> str:
    runs = read_runs(folders)
    return drawn_apart(held_out_curves(runs, Lines(runs)), training_curves(runs, Lines(runs)))


def said_of(folders) -> list[str]:
    runs = read_runs(folders)
    return remarks(runs, Lines(runs))


def contrasted(folders) -> tuple[list[str], list[str]]:
    """The two runs of each row, and who is not compared."""
    rows, not_compared = tables.contrasts(read_runs(folders))
    return [row["runs"] for row in rows], not_compared


@pytest.fixture
def three(tmp_path):
    """SFT, ORPO at two strengths: the same data, 120, 120 and 50 steps, of which the last is not finished."""
    sft = score(make_run(tmp_path / "sft", objective="sft", train=train()), 0.0)
    orpo = score(make_run(tmp_path / "orpo", train=train()), 0.5)
    weak = make_run(tmp_path / "weak", steps=50, finished=False, train=train(max_steps=150))
    settings = yaml.safe_load((weak / "config.yaml").read_text())
    settings["objective"]["lambda"] = 0.1
    (weak / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return sft, orpo, weak


def test_one_page_of_all_runs(three):
    path = write_comparison(three)
    assert path.resolve() == three[0].parent.resolve() / "compare.html"
    page = Page(path)
    for said in ("3 runs side by side", "not finished", "50 of 150", "objective.lambda", "train.max_steps",
                 "in all runs", "orpo − sft", "weak: no eval_scores.parquet", "told apart",
                 "Drawn apart, since they do not compare: loss, as the objectives differ."):  # fmt: skip
        assert said in page.text, said
    assert "data.train" not in page.text, "which does not differ"
    assert headings(path)[:3] == ["Chosen log-prob", "Rejected log-prob", "Log odds ratio"]
    assert page.tags.count("svg") == len(headings(path)) > 12
    assert len(page.ids) == len(set(page.ids))
    assert_self_contained(path)


def test_what_is_not_the_same_is_not_laid_over_each_other(three):
    found = curves(three)
    assert found["Chosen log-prob"] == [["sft", "orpo", "weak"]]
    assert found["Loss"] == [["sft"], ["orpo"], ["weak"]], "another λ is another loss"
    assert found["NLL"] == [["sft", "orpo", "weak"]]
    assert found["Reward accuracy"] == [["sft", "orpo", "weak"]]
    assert curves(three, training_curves)["Rejected log-prob"] == [["orpo", "weak"]], "SFT has none"
    assert curves(three, loop_curves) == {
        "Learning rate": [["sft", "orpo", "weak"]], "Throughput": [["sft", "orpo", "weak"]],
    }  # fmt: skip
    assert notice(three) == "Drawn apart, since they do not compare: loss, as the objectives differ."


@pytest.mark.parametrize(
    ("changed", "apart", "together"),
    [
        ({"data": {"train": "toy", "eval": "other"}}, {"held_out"}, {"trained_on", "objective"}),
        ({"data": {"train": "other", "eval": "toy-test"}}, {"trained_on"}, {"held_out"}),
        ({"data": {"train": "toy", "eval": "toy-test", "limit": 50}}, set(), {"held_out", "trained_on"}),
        ({"data": {"train": "toy", "eval": None}}, {"held_out"}, {"trained_on"}),
        ({"data": {"train": "toy", "eval": "toy-test", "unseen_fraction": 0.5}}, {"held_out"}, {"trained_on"}),
        ({"data": {"train": "toy", "eval": "toy-test", "max_length": 64}}, {"tokens"}, {"held_out", "trained_on"}),
        ({"data": {"train": "toy", "eval": "toy-test", "max_length": 1024}}, set(), {"tokens"}),
        ({"model": {"name_or_path": "elsewhere"}}, {"tokens"}, {"objective", "held_out", "ranking"}),
        ({"objective": {"name": "orpo", "lambda": 0.5, "gradient_metrics": True}}, set(), {"objective", "ranking"}),
        ({"objective": {"name": "orpo", "lambda": 0.5, "nll_tokens": "prompt_and_chosen"}},
         {"nll_tokens", "objective"}, {"ranking"}),
        ({"objective": {"name": "simpo", "beta": 2.0}}, {"objective"}, {"ranking", "nll_tokens"}),
        ({"objective": {"name": "dpo", "beta": 0.1, "reference": None}}, {"objective", "ranking"}, {"held_out"}),
        ({"objective": {"name": "online", "pairs": {"name": "orpo", "lambda": 0.5}}}, {"objective"}, {"ranking"}),
        ({"objective": {"name": "kto"}}, {"objective", "ranking", "held_out", "trained_on", "unit"}, set()),
        ({"eval": {"win_rate": {"against": "runs/sft"}}}, {"comparison_run"}, {"held_out"}),
        ({"seed": 1}, set(), {"held_out", "trained_on", "objective"}),
    ],
)  # fmt: skip
def test_each_aspect_tells_runs_apart_by_what_decides_it(tmp_path, changed, apart, together):
    runs = read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b")])
    config = runs[1].run.config
    for key, value in changed.items():
        config[key] = value
    for aspect in apart | together:
        said = getattr(aspects, aspect)(*runs)
        assert bool(said) == (aspect in apart), (aspect, said)
        assert len(grouped(runs, [getattr(aspects, aspect)])) == (2 if aspect in apart else 1)


def test_pairs_held_out_of_the_training_pairs_depend_on_the_seed(tmp_path):
    data = {"train": "toy", "eval": None}
    runs = [make_run(tmp_path / name, data=data, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    assert curves(runs)["Chosen log-prob"] == [["a", "c"], ["b"]]
    assert notice(runs).endswith("log odds ratio, reward accuracy, NLL and loss, as the held-out pairs differ (seed).")
    read = read_runs(runs)
    captions = {each.caption for each in held_out_curves(read, Lines(read))}
    assert captions == {f"Without {others}: the held-out pairs differ (seed)." for others in ("b", "a, c")}


def test_scores_decide_where_they_are_there(tmp_path):
    """Equal settings may have been other records, as a file was changed; and models of other names may share tokens."""
    a = score(make_run(tmp_path / "a"), 0.0)
    other_records = score(make_run(tmp_path / "b"), 0.3, record=np.arange(PAIRS) + 1)
    other_tokens = score(make_run(tmp_path / "c"), 0.3, tokens=2)
    other_model = score(make_run(tmp_path / "d", model={"name_or_path": "elsewhere"}), 0.3)
    found = curves([a, other_records, other_tokens, other_model])
    assert found["Chosen log-prob"] == [["a", "d"], ["b"], ["c"]]
    assert found["Reward accuracy"] == [["a", "c", "d"], ["b"]], "which counts no tokens"
    assert "the tokens may differ (model.name_or_path)" in notice([a, other_records, other_tokens, other_model])
    assert contrasted([a, other_records, other_tokens, other_model]) == (
        ["c − a", "d − a", "d − c"],
        ["Not compared, as the held-out records differ (eval_scores.parquet): a and b; b and c; b and d."],
    )


def test_steps_of_unlike_sizes_are_drawn_over_pairs(tmp_path):
    small, large = (
        make_run(tmp_path / name, train=train(global_batch_size=size)) for name, size in (("s", 8), ("l", 64))
    )
    runs = read_runs([small, large])
    lines = Lines(runs)
    assert [int(lines.series(run, "loss")[0][-1]) for run in runs] == [120 * 8, 120 * 64]
    assert "over pairs seen: steps times that size" in said_of([small, large])[0]
    unknown = make_run(tmp_path / "unknown")
    assert Lines(read_runs([small, unknown])).across.word == "step"
    assert said_of([small, unknown])[0].startswith("Curves are drawn over steps: not every config.yaml")


def test_the_paired_numbers_are_those_of_the_records(tmp_path):
    a, b = (score(make_run(tmp_path / name), gain) for name, gain in (("a", 0.0), ("b", 0.5)))
    first, second = (read_scores(run / "eval_scores.parquet", rewards=False) for run in (a, b))
    table = pq.read_table(b / "eval_scores.parquet").to_pandas()
    per_token = table.chosen / table.chosen_tokens - table.rejected / table.rejected_tokens
    found = summary(second)
    assert found.accuracy.value == pytest.approx((per_token > 0).mean())
    assert found.margin.value == pytest.approx(per_token.mean())
    assert found.chosen.ci95 is None, "all are alike, and nothing bounds what was not seen"
    between = contrast(second, first)
    assert between.accuracy.value == pytest.approx(found.accuracy.value - summary(first).accuracy.value)
    assert between.margin is not None and between.margin.value == pytest.approx(0.5)
    assert between.margin.ci95 is None and between.margin.p_value < 1e-50
    low, high = between.accuracy.ci95
    assert 0 < low < between.accuracy.value < high < 1
    back = contrast(first, second)
    assert back.accuracy.value == -between.accuracy.value and back.accuracy.p_value == between.accuracy.p_value


def test_a_record_is_the_unit_of_certainty():
    """Comparisons of one record that all come out alike are one observation: four times the same is no surer."""
    rng = np.random.default_rng(0)
    a, b = (rng.random(60) < rate for rate in (0.7, 0.5))
    once = difference(a.astype(float), b.astype(float), np.arange(60), bound=1.0)
    times = difference(*(np.repeat(x.astype(float), 4) for x in (a, b)), np.repeat(np.arange(60), 4), bound=1.0)
    assert (times.value, times.ci95, times.p_value) == (once.value, once.ci95, once.p_value)
    assert (times.comparisons, times.records) == (240, 60)
    same = difference(a.astype(float), a.astype(float), np.arange(60), bound=1.0)
    assert same.value == 0 and same.p_value == 1 and same.ci95[0] < 0 < same.ci95[1]
    with pytest.raises(ValueError, match="no comparison"):
        mean(np.zeros(0), np.zeros(0, int))


def test_intervals_hold_what_they_say():
    """Of 200 pairs of models with a true difference of 0.1, about 95 % of intervals hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        a, b = (rng.random(80) < rate for rate in (0.7, 0.6))
        low, high = difference(a.astype(float), b.astype(float), np.arange(80), bound=1.0).ci95
        held += low <= 0.1 <= high
    assert 183 <= held <= 199


def test_reward_models_and_rollouts_have_their_own_curves(tmp_path):
    judges = [
        score(make_run(tmp_path / name, objective="reward"), gain) for name, gain in (("judge", 0.2), ("old", 0.1))
    ]
    policy = score(make_run(tmp_path / "orpo"), 0.2)
    ppo, rloo = (make_rollout_run(tmp_path / name) for name in ("ppo", "rloo"))
    config = yaml.safe_load((rloo / "config.yaml").read_text())
    config["objective"] = {"name": "rloo", "kl_coefficient": 0.1}
    config["rollouts"]["rewards"]["brief"]["weight"] = 1.0
    (rloo / "config.yaml").write_text(yaml.safe_dump(config))
    runs = [*judges, policy, ppo, rloo]
    found = curves(runs)
    assert found["Reward"] == [["ppo"], ["rloo"]], "rewards of other weights"
    assert found["Response length"] == found["KL to the reference"] == [["ppo", "rloo"]]
    assert ["judge", "old"] in found["Reward accuracy"] and ["orpo"] in found["Reward accuracy"]
    assert "reward and reward as learned from, as other sources score (rollouts.rewards)" in notice(runs)
    assert "loss, as some are of pairs and some of what the policy writes" in notice(runs)
    not_compared = "Not compared, as one ranks by log-probs and one by rewards: judge and orpo; old and orpo."
    assert contrasted(runs) == (["old − judge"], [not_compared])
    titles = [title for title, _ in tables.numbers(read_runs(runs))]
    assert titles == [
        f"Held-out {what}" for what in ("pairs: the model that is kept", "prompts: the model that is kept",
                                        "prompts: the last evaluation")
    ]  # fmt: skip
    assert_self_contained(write_comparison(runs[-2:]))


def test_labels_are_the_folders_names_with_as_much_before_them_as_it_takes(tmp_path):
    folders = [tmp_path / place for place in ("x/demo/orpo", "y/demo/orpo", "y/test/orpo", "y/sft")]
    assert labels(folders) == ["x/demo/orpo", "y/demo/orpo", "test/orpo", "sft"]


def test_a_run_that_has_a_driver_is_running(tmp_path):
    going, left = (make_run(tmp_path / name, steps=3, finished=False) for name in ("going", "left"))
    with only_driver(going, Console()):
        assert [row["state"] for row in tables.standings(read_runs([going, left]))] == ["running", "not finished"]


def test_of_no_setting_that_differs_it_says_so(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    assert tables.settings(read_runs(runs)) == []
    held = [
        {"name": "a", "data": {"limit": 1}},
        {"name": "b", "data": {}, "eval": {"x": 1}},
        {"model": {"revision": "x"}},
    ]
    assert differing(held) == {"data.limit": [1, None, None], "model.revision": [None, None, "x"]}
    assert differing([{"train": {"keep_by": "eval_loss"}}, {"train": {"keep_by": "eval_nll"}}, {}]) == {
        "train.keep_by": ["eval_loss", "eval_nll", "eval_loss"]
    }


def test_text_is_escaped_everywhere(tmp_path):
    names = ("<b>$a$", "b")
    runs = [make_run(tmp_path / name, steps=0, model={"name_or_path": f"{ATTACK}{name}"}) for name in names]
    path = write_comparison(runs)
    assert "<script" not in path.read_text() and "<b>$" not in path.read_text()
    assert ATTACK in Page(path).text


def test_a_diverged_run_and_one_before_its_first_evaluation(tmp_path):
    run, early = make_run(tmp_path / "run"), make_run(tmp_path / "early", finished=False)
    lines = (early / "metrics.jsonl").read_text().splitlines(keepends=True)
    (early / "metrics.jsonl").write_text("".join(lines[1:10]))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 121, "loss": None, "skipped": [3]}) + "\n")
    told = "run: the loss or the gradient was not finite at 1 steps, which were skipped."
    assert told in Page(write_comparison([run, early])).text


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ({"chosen": np.full(PAIRS, np.nan)}, "holds a score that is not finite"),
        ({"chosen_tokens": np.zeros(PAIRS, int)}, "holds a response without tokens"),
        ({"response": np.zeros(PAIRS)}, "its held-out responses have labels"),
    ],
)
def test_scores_that_say_nothing_of_comparisons_are_told(tmp_path, column, told):
    a, b = score(make_run(tmp_path / "a"), 0.1), score(make_run(tmp_path / "b"), 0.1, **column)
    said = tables.remarks_on_scores(read_runs([a, b]), compared=False)[-1]
    assert f"b: {'eval_scores.parquet ' if 'holds' in told else ''}{told}" in said
    assert contrasted([a, b]) == ([], [])


def test_more_runs_than_colours(tmp_path):
    runs = [score(make_run(tmp_path / f"r{i:02d}"), i / 20, pairs=40) for i in range(10)]
    read = read_runs(runs)
    assert contrasted(runs) == ([f"r{i:02d} − r00" for i in range(1, 10)], [])
    assert "Each of the 10 runs is compared with the first." in tables.remarks_on_scores(read, compared=True)
    looks = {(lines.colour(run), lines.style(run)) for lines in [Lines(read)] for run in read}
    assert len(looks) == 10


def _sweep(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("space: {}\ntrain: {}\n")
    return folder


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("twice", "run: is there twice"),
        ("missing", "missing: no such folder"),
        ("empty", "empty: not a folder of a run with metrics"),
        (
            "sweep",
            "sweep: is the folder of another kind (sweep), and only training runs are compared; name those of its",
        ),
        ("evaluation", "evaluation: is the folder of another kind (evaluation), and only training runs are compared"),
        ("damaged", "damaged/eval_scores.parquet: cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_the_users_to_mend(tmp_path, what, told):
    run = make_run(tmp_path / "run")
    other = tmp_path / what
    if what == "twice":
        other = tmp_path / "empty" / ".." / "run"
        (tmp_path / "empty").mkdir()
    elif what == "empty":
        other.mkdir()
    elif what == "sweep":
        _sweep(other)
    elif what == "evaluation":
        other.mkdir()
        (other / "config.yaml").write_text("models: {}\nreward_models: {}\n")
    elif what == "damaged":
        (make_run(other) / "eval_scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=re.escape(told)) as error:
        write_comparison([run, other])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "compare.html").exists()


def test_where_the_page_goes(tmp_path, monkeypatch):
    runs = [make_run(tmp_path / place, steps=0) for place in ("one/a", "two/b")]
    monkeypatch.chdir(tmp_path)
    assert write_comparison([Path("one/a"), Path("two/b")]) == Path("compare.html")
    assert write_comparison(runs, tmp_path / "new/page.html").is_file()
    with pytest.raises(UserError, match=r"metrics\.jsonl: a page is written to a file that ends in \.html"):
        write_comparison(runs, runs[0] / "metrics.jsonl")
    with pytest.raises(UserError, match="no folder but / holds all of these runs"):
        write_comparison([tmp_path / "one/a", Path("/elsewhere")])
    with pytest.raises(UserError, match="2 to 24 training runs to compare, found 25"):
        write_comparison(runs * 12 + runs[:1])
