"""Reports: drawn from run folders alone, self-contained, and safe with any text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from orpo_ray.data.dataset import PairDataset
from orpo_ray.errors import UserError
from orpo_ray.report import curves_png, write_report
from orpo_ray.report.figures import MAX_POINTS, Percent, _running_mean, binned
from orpo_ray.report.held_out import read_held_out
from orpo_ray.report.page import _facts, _kept_caption
from orpo_ray.report.reward_figures import _range
from orpo_ray.report.runs import read_run
from orpo_ray.statistics.accuracy import wilson
from orpo_ray.storage.run_folder import RunFolder, write_eval_scores, write_table

ATTACK = "<script>alert('$x$')</script>"


def make_run(folder: Path, *, objective: str = "orpo", steps: int = 120, finished: bool = True, **config) -> Path:
    """A run folder with metrics such as a real run leaves."""
    folder.mkdir(parents=True)
    settings = {"lambda": 0.5} if objective == "orpo" else {}
    resolved = {
        "name": folder.name, "seed": 0, "model": {"name_or_path": "runs/base", "dtype": "float32"},
        "data": {"train": "toy", "eval": "toy-test"}, "objective": {"name": objective, **settings},
        "train": {"max_steps": 120}, **config,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    rng = np.random.default_rng(0)
    lines = []
    for step in range(steps + 1):
        done = step / 120
        chosen = -0.62 + (0.17 * done if objective == "sft" else 0.05 * done)
        rejected = -0.63 + (0.08 * done if objective == "sft" else -1.0 * done)
        noise = lambda: float(rng.normal(0, 0.03))  # noqa: E731
        if step:
            line = {
                "step": step, "epoch": step / 60, "loss": 0.9 - 0.3 * done + noise(), "nll": 0.8 - 0.2 * done,
                "logps_chosen": chosen + noise(), "lr": 2e-3 * (1 - done), "grad_norm": 0.8, "tokens": 1500,
                "pairs_per_second": 80 + 30 * noise(), "tokens_per_second": 4000.0,
            }  # fmt: skip
            if objective == "orpo":
                line |= {
                    "odds_ratio_loss": 0.5, "log_odds_ratio": 1.2 * done + noise(),
                    "logps_rejected": rejected + noise(), "reward_accuracy": 0.5 + 0.4 * done + noise(),
                }  # fmt: skip
            lines.append(line)
        if step % 30 == 0:
            lines.append({
                "step": step, "eval_loss": 0.95 - 0.25 * done, "eval_nll": 0.8 - 0.2 * done,
                "eval_odds_ratio_loss": 0.6, "eval_log_odds_ratio": 1.1 * done, "eval_logps_chosen": chosen,
                "eval_logps_rejected": rejected, "eval_reward_accuracy": 0.5 + 0.4 * done,
            })  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        summary = {"name": folder.name, "status": "finished", "steps": steps, "best_step": steps,
                   "eval_loss": 0.7, "seconds": 95.2, "pairs": 6000, "workers": 2}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and what they would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
                self.loads.append(value)

    def handle_data(self, data):
        self.text += data


def assert_self_contained(path: Path) -> None:
    page = Page(path)
    assert all(load.startswith(("#", "data:")) for load in page.loads)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#|&quot;#)", source)
    assert "@import" not in source


def headings(path: Path) -> list[str]:
    return re.findall(r"<h3>(.*?)</h3>", path.read_text(encoding="utf-8"))


def test_an_orpo_run_gets_every_figure_and_its_key_facts(tmp_path):
    path = write_report(make_run(tmp_path / "hh-orpo"))
    assert path == tmp_path / "hh-orpo" / "report.html"
    assert headings(path) == [
        "Loss", "Log-probs of chosen and rejected", "Log odds ratio", "Reward accuracy", "Learning rate", "Throughput",
    ]  # fmt: skip
    page = Page(path)
    assert page.tags.count("svg") == 6
    for fact in ("ORPO", "λ = 0.5", "runs/base", "0.700", "at step 120", "1.060", "from 0.010 at step 0", "90.0%",
                 "6,000 pairs", "in all 1 min 35 s", "chosen −0.62 → −0.57 (rises); rejected −0.63 → −1.63 (falls)",
                 "max_steps: 120"):  # fmt: skip
        assert fact in page.text, fact
    assert "Not finished" not in page.text
    assert_self_contained(path)


def test_an_sft_run_shows_its_rejected_log_probs_from_evaluation(tmp_path):
    run = make_run(tmp_path / "sft", objective="sft")
    page = Page(write_report(run))
    assert "rejected −0.63 → −0.55 (rises)" in page.text
    assert "rejected, evaluation" in page.text, "the legend of the log-probs"
    assert "λ =" not in page.text


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("sft", "likelier per token."),
        ("dpo", "gained more over the reference&#39;s log-probs"),
        ("cpo", "likelier as a whole, not per token."),
        ("kto", "their label&#39;s side of the reference point"),
        (["dpo"], "likelier per token."),
    ],
)
def test_what_counts_as_right_is_said_as_the_objective_counts_it(objective, said, tmp_path):
    assert said in write_report(make_run(tmp_path / "run", objective=objective)).read_text()


def test_ticks_of_shares_differ_where_they_do():
    assert Percent().format_ticks([0.5, 0.505, 0.51]) == ["50.0%", "50.5%", "51.0%"]
    assert Percent().format_ticks([-0.1, 0.0, 0.1]) == ["−10%", "0%", "10%"]


def test_a_reward_model_shows_what_it_gave_each_pair(tmp_path):
    run = make_run(tmp_path / "judge", objective="reward")
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, (300, 3))
    rewards = rng.normal((0.0, 0.7, -0.7), 1.0, (300, 3))
    pairs = PairDataset(np.zeros(0, np.int32), np.c_[np.zeros(300), lengths.cumsum(1)].astype(int), np.arange(300))
    write_eval_scores(run / "eval_scores.parquet", pairs, torch.from_numpy(rewards))
    page = write_report(run)
    assert_self_contained(page)
    assert {"Rewards of chosen and rejected", "Calibration", "Accuracy by length"} <= set(headings(page))
    right = (rewards[:, 1] > rewards[:, 2]).mean()
    assert f"Accuracy {right:.1%} of 300 pairs, 95% interval " in page.read_text()
    assert "Dashed: as often right as sure. Larger dots hold more pairs." in Page(page).text
    longer, shorter = lengths[:, 1] > lengths[:, 2], lengths[:, 1] < lengths[:, 2]
    for which, word in ((longer, "longer"), (shorter, "shorter")):
        own = rewards[which, 1] > rewards[which, 2]
        assert f"{own.mean():.1%} of {own.size} pairs whose chosen response is the {word}" in Page(page).text


def test_a_reward_models_page_speaks_of_rewards(tmp_path):
    run = make_run(tmp_path / "judge", objective="reward")
    lines = [
        {"step": step, "rewards_chosen": step / 100, "rewards_rejected": -step / 50, "reward_margin": 3 * step / 100}
        for step in range(1, 121)
    ]
    lines += [
        {"step": step, "eval_loss": 0.6, "eval_rewards_chosen": 1 + step / 100, "eval_rewards_rejected": 0.5,
         "eval_reward_margin": 0.5 + step / 100, "eval_reward_accuracy": 2 / 3, "eval_calibration_error": 0.0417}
        for step in (0, 120)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"name": "judge", "status": "finished", "steps": 120, "best_step": 120}
    (run / "summary.json").write_text(json.dumps(summary))
    scores = {"chosen": [1.5] * 15, "rejected": [0.5] * 15, "chosen_tokens": [9] * 15, "rejected_tokens": [9] * 15}
    write_table(run / "eval_scores.parquet", pa.table({"record": [*range(15)], **scores}))
    page = write_report(run)
    text = Page(page).text
    for said in (
        "Eval reward margin", "1.700", "from 0.500 at step 0; chosen − rejected, in the reward's unit", "66.7%",
        "of 15 held-out pairs, 95% interval 41.7% to 84.8%", "Pairs whose chosen response has the higher reward.",
        "On held-out pairs: 0.50 → 1.70 (rises), in the reward's unit.",
        "Mean rewards on held-out pairs: chosen 1.00 → 2.20 (rises); rejected 0.50 → 0.50 (stays).",
        "calibration error", "0.042", "chosen reward",
    ):  # fmt: skip
        assert said in text, said
    assert "log-prob" not in text and "likelier" not in text
    assert headings(page)[:4] == ["Loss", "Reward accuracy", "Reward margin", "Rewards in training"]


def test_lengths_differ_from_a_number_to_a_number_with_true_signs():
    said = {(-3, -1): "−3 to −1", (-1, -1): "−1", (0, 1): "0 to +1", (2, 2): "+2", (-2, 0): "−2 to 0"}
    assert {ends: _range(*ends) for ends in said} == said


def test_an_accuracy_stands_beside_what_it_is_of(tmp_path):
    """Of 15 held-out pairs, in facts, by source and by evaluation; where the file is damaged, alone."""
    run = make_run(tmp_path / "few")
    lines = [{"step": 130, "eval_loss": 0.1, "eval_reward_accuracy": 10 / 15, "eval_loss/a": 0.1,
              "eval_reward_accuracy/a": 0.5, "eval_loss/b": 0.1, "eval_reward_accuracy/b": 1.0}]  # fmt: skip
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (run / "summary.json").write_text(json.dumps({"best_step": 130}))
    table = pa.table({"source": ["a"] * 10 + ["b"] * 5, "record": [*range(10), *range(5)]})
    write_table(run / "eval_scores.parquet", table)
    facts = {what: (value, word) for what, value, word in _facts(read_run(run))}
    assert facts["Reward accuracy"] == ("66.7%", "of 15 held-out pairs, 95% interval 41.7% to 84.8%")
    page = write_report(run).read_text()
    assert "<td>0.667 (0.417 to 0.848)</td>" in page, "the evaluation"
    assert "<td>0.500 (0.237 to 0.763)</td><td>10</td>" in page and "<td>1.000 (0.566 to 1.000)</td><td>5</td>" in page
    assert "Behind an accuracy: its 95% interval (Wilson), of 15 held-out pairs." in page

    (run / "eval_scores.parquet").write_text("no table")
    page = write_report(run).read_text()
    assert "of evaluation pairs" in page and "<td>0.667</td>" in page and "95% interval" not in page


def test_several_comparisons_of_a_record_are_one_to_an_interval(tmp_path):
    write_table(tmp_path / "eval_scores.parquet", pa.table({"record": [1, 1, 1, 4, 4, 7]}))
    found = read_held_out(tmp_path)
    assert found.interval("eval_reward_accuracy", 0.5) == wilson(0.5, 3)
    assert found.told("eval_reward_accuracy", 0.5).startswith("of 6 held-out comparisons of 3 prompts, 95% interval ")
    table = pa.table({"record": [1, 2, 3], "response": [0.5, 0.1, 0.2], "desirable": [True, True, False]})
    write_table(tmp_path / "eval_scores.parquet", table)
    assert read_held_out(tmp_path).told("eval_reward_accuracy", 1).startswith("of 3 held-out responses, ")
    for metric, value in (("eval_loss", 0.5), ("eval_reward_accuracy", 1.5), ("eval_reward_accuracy", None)):
        assert read_held_out(tmp_path).interval(metric, value) is None


def test_a_page_begins_with_what_a_small_run_gets_wrong(tmp_path):
    """Answers that were cut, said when it began; a warm-up that is most of it; a margin that falls."""
    run = make_run(tmp_path / "small", optim={"warmup_steps": 100})
    folder = RunFolder(run)
    folder.note_once("<b>9 of 10</b> chosen responses are cut", warning=True)
    folder.note_once("<b>9 of 10</b> chosen responses are cut", warning=True)
    folder.note("a remark that is none")
    lines = [{"step": 130, "eval_loss": 0.1, "eval_logps_chosen": -0.7, "eval_logps_rejected": -0.6}]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (run / "summary.json").write_text(json.dumps({"best_step": 60}))
    notices = re.findall(r'<p class="notice">(.*?)</p>', write_report(run).read_text())
    assert notices == [
        "&lt;b&gt;9 of 10&lt;/b&gt; chosen responses are cut.",
        "Warm-up is 100 of the 130 steps (optim.warmup_steps=100): at least half of the run is at less than optim.lr.",
        "The margin of held-out pairs (log-prob of chosen − rejected) fell: 0.010 at step 0, -0.100 at step 130, the "
        "last: the model parts chosen from rejected less than before.",
    ]
    assert "notice" not in re.sub(r"(?s)<style>.*?</style>", "", write_report(make_run(tmp_path / "sound")).read_text())


def test_an_unfinished_run_says_so_even_with_its_last_line_half_written(tmp_path):
    run = make_run(tmp_path / "run", steps=50, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 51, "lo')
    text = Page(write_report(run)).text
    assert "Not finished: at step 50 of 120" in text
    assert "at step 30" in text, "the best evaluation so far"


def test_a_run_before_its_first_evaluation(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[1:10]))
    assert "Best eval loss–" in Page(write_report(run)).text.replace("\n", "")


def test_a_run_behind_its_first_evaluation(tmp_path):
    """At step 0: it keeps no model yet, and has no step between two."""
    run = make_run(tmp_path / "run", objective="sft", finished=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:10]]
    lines[0] |= {
        "eval_loss/one": 0.9, "eval_loss/two": 1.0, "eval_log_odds_ratio": 0.3, "eval_reward_accuracy": 0.6,
    }  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Page(write_report(run)).text
    assert "by source" not in text and "−0.02" not in text and "step" in text


def test_a_diverged_run_is_drawn_and_said(tmp_path):
    run = make_run(tmp_path / "run", steps=40)
    with (run / "metrics.jsonl").open("a") as file:
        lost = {"loss": None, "logps_chosen": None, "grad_norm": None, "skipped": [7, 90]}
        file.writelines(json.dumps({"step": step, **lost}) + "\n" for step in (41, 42))
        file.write(json.dumps({"step": 42, "eval_loss": None}) + "\n")
    text = Page(write_report(run)).text
    assert "not finite at 2 steps, which were skipped: first at step 41, with the records 7, 90." in text


def test_events_are_listed(tmp_path):
    run = make_run(tmp_path / "run")
    assert "Events" not in Page(write_report(run)).text
    (run / "events.jsonl").write_text(json.dumps({"time": "2026-01-01T00:00:00+00:00", "event": ATTACK}) + '\n{"ti')
    page = write_report(run)
    assert "Events (1)" in Page(page).text and ATTACK in Page(page).text
    assert "<script" not in page.read_text()


def test_text_is_escaped_everywhere(tmp_path):
    run = make_run(tmp_path / "run", name=ATTACK, model={"name_or_path": ATTACK, "dtype": "float32"}, note=ATTACK)
    path = write_report(run)
    assert "<script" not in path.read_text()
    assert Page(path).text.count(ATTACK) >= 3
    curves_png(tmp_path / "c.png", {ATTACK: read_run(run)})


def test_win_rates_of_checkpoints_are_drawn_in_the_order_of_steps(tmp_path):
    run = make_run(tmp_path / "run", eval={"win_rate": {"against": "runs/sft", "reward_model": "toy"}})
    assert "Win-rate" not in headings(write_report(run))
    with (run / "metrics.jsonl").open("a") as file:
        for step, rate in ((80, 0.6), (40, 0.4)):  # they come in when they are ready
            line = {
                "step": step,
                "eval_win_rate": rate,
                "eval_win_rate_low": rate - 0.1,
                "eval_win_rate_high": rate + 0.1,
            }
            file.write(json.dumps(line) + "\n")
        file.write(json.dumps({"step": 120, "eval_win_rate": None, "eval_win_rate_failure": "no room"}) + "\n")
    path = write_report(run)
    assert "Win-rate" in headings(path)
    assert "Against runs/sft, judged by toy" in Page(path).text
    assert "45%" in path.read_text()


def test_ids_are_not_repeated_on_a_page(tmp_path):
    ids = Page(write_report(make_run(tmp_path / "run"))).ids
    assert ids
    assert len(ids) == len(set(ids))


def test_curves_picture(tmp_path):
    folders = {"SFT": make_run(tmp_path / "sft", objective="sft"), "ORPO": make_run(tmp_path / "orpo")}
    runs = {label: read_run(folder) for label, folder in folders.items()}
    path = curves_png(tmp_path / "images" / "curves.png", runs)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width > 2 * height
    assert curves_png(tmp_path / "again.png", runs).read_bytes() == data


def test_the_same_run_gives_the_same_page(tmp_path):
    run = make_run(tmp_path / "run")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", None, "no metrics.jsonl"),
        ("metrics.jsonl", "", "no metrics yet"),
        ("metrics.jsonl", '{"step": 1}\nnonsense\n{"step": 3}\n', "line 2: not valid JSON"),
        ("metrics.jsonl", "[1]\n", "line 1: expected a JSON object"),
        ("metrics.jsonl", '{"loss": 1}\n', "line 1: has no step"),
        ("config.yaml", None, "config.yaml: no such file"),
        ("config.yaml", "a: [", "not valid YAML"),
        ("summary.json", "{", "summary.json: not valid JSON"),
    ],
)
def test_an_unreadable_run_is_the_users_to_mend(tmp_path, file, content, message):
    run = make_run(tmp_path / "run")
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        write_report(run)
    with pytest.raises(UserError):
        write_report(tmp_path / "absent")


def test_long_runs_are_binned_by_means_and_keep_their_average():
    steps, values = np.arange(1, 10_001), np.random.default_rng(0).normal(3, 1, 10_000)
    fewer, means = binned((steps, values))
    assert len(fewer) == MAX_POINTS
    assert fewer[-1] == 10_000
    assert means.mean() == pytest.approx(values.mean())


def test_running_mean_is_blind_to_missing_values():
    assert _running_mean(np.array([1.0, np.nan, 3.0, 5.0]), 3).tolist() == [1, 2, 4, 4]
    assert np.isnan(_running_mean(np.array([np.nan, np.nan]), 3)).all()


def test_best_step_without_summary_is_the_lowest_eval_loss(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 121, "eval_loss": 5.0}) + "\n")
    assert read_run(run).best_step == 120


def test_pairs_per_second_are_those_of_the_time_that_steps_took(tmp_path):
    """Of steps of equal size: 32 pairs in 1 s and 32 in 4 s are 64 in 5 s."""
    run = make_run(tmp_path / "run")
    lines = [{"step": step, "loss": 1.0, "pairs_per_second": rate} for step, rate in enumerate((99, 99, 32, 8), 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {what: number for what, number, _ in _facts(read_run(run))}["Pairs per second"] == "12.8"


def test_before_the_first_step_no_model_is_the_best(tmp_path):
    """Training keeps none of then, however good its numbers."""
    run = make_run(tmp_path / "run", finished=False)
    lines = [line for line in read_run(run).lines if line["step"] > 0]
    lines.insert(0, {"step": 0, "eval_loss": 1e-3})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(run).best_step == 120
    (run / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert read_run(run).best_step is None


def test_the_numbers_of_a_run_are_those_of_the_model_that_it_keeps(tmp_path):
    """The last of these evaluations is not the best."""
    for keep, accuracy, told in (
        ("best", "90.0%", "The kept model is the one with the lowest evaluation loss."),
        ("both", "90.0%", "in model/, and the last one evaluated, in model-last/."),
        ("last", "61.0%", "The kept model is the last one evaluated."),
    ):
        run = make_run(tmp_path / keep, train={"max_steps": 130, "keep": keep})
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 130, "eval_loss": 5.0, "eval_reward_accuracy": 0.61}) + "\n")
        read = read_run(run)
        assert (read.best_step, read.kept_step) == (120, 130 if keep == "last" else 120)
        assert _kept_caption(read).endswith(told)
        assert {what: (number, word) for what, number, word in _facts(read)}["Best eval loss"][1] == "at step 120"
        assert {what: number for what, number, _ in _facts(read)}["Reward accuracy"] == accuracy
