"""The page of a run with rollouts: what stands on it, from folders sound, odd, hostile and damaged."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_run import make_evaluation
from fuzzing import assert_one_line, cases, odd_values
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rollout_run import PROMPTS, configuration, evaluation_line, make_rollout_run, sample_lines, step_line, write_lines
from test_hostile_pages import HOSTILE, Elements
from test_report import Page, assert_self_contained, headings, make_run

from orpo_ray.config.metrics import spoken
from orpo_ray.errors import UserError
from orpo_ray.report import figures, write_evaluation_report, write_report
from orpo_ray.report.page import _facts, run_page
from orpo_ray.report.rollout_figures import _clip_caption, _from_zero, _of_rounds, _reward, _update_rate
from orpo_ray.report.rollout_frontier import _side, frontier, frontier_caption
from orpo_ray.report.rollout_samples import MOST_CHARACTERS, MOST_PROMPTS, NEWEST, Samples, read_samples
from orpo_ray.report.rollout_words import learned_otherwise, shortened
from orpo_ray.report.runs import read_run
from orpo_ray.telemetry.trackers import scalars

FIGURES = [
    "Reward", "Reward against KL", "Reward by source", "KL to the reference", "KL coefficient", "Entropy",
    "Response length", "Responses cut", "Loss", "Value loss", "Explained variance", "Clip fraction",
    "Probability ratio", "KL of the updates", "Mismatch of engine and trainer", "Throughput", "Learning rate",
]  # fmt: skip


def words(page: Path) -> str:
    return re.sub(r"\s+", " ", " ".join(Elements(page).texts))


def aria(page: Path) -> dict[str, str]:
    """The figures of a page, by their labels for screen readers."""
    return {
        m[1]: m[0] for m in re.finditer(r'<svg role="img" aria-label="(.*?)".*?</svg>', page.read_text(), re.DOTALL)
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rollout_run(tmp_path_factory.mktemp("run") / "toy-ppo")


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return write_report(run)


class TestWhatStandsOnIt:
    def test_figures_facts_and_words(self, page: Path) -> None:
        assert headings(page) == FIGURES
        assert_self_contained(page)
        text = words(page)
        for said in (
            "PPO β = 0.1", "Best eval_reward 1.339 at step 160",
            "10.00 nats a response; coefficient 0.1 at first, now 0.",
            "target 6", "46.0 tokens; 10.0% cut at 64 tokens", "6,400 in 25 rounds; in all 6 min 35 s", "6,000 prompts",
            "The kept model is the one with the highest eval_reward.",
            "Scored by judge (runs/reward, weight 1), brief (rules.py:brief, weight 0.5).",
            "Responses without a score: 1 (reward not finite), 2 (too long to be scored).",
            "Held-out: reward −0.45 at 0.00 nats → 1.39 at 12.50 nats.", "At most 3e−05 nats.",
            "scoring 6,000, updates 2,", "tokens a second. A round, in the mean: writing 10.0 s, scoring 2.0 s.",
            "Evaluations (11)",
        ):  # fmt: skip
            assert said in text, said
        assert "Log-probs" not in text and "Pairs per second" not in text

    def test_the_table_of_evaluations_has_each_source(self, page: Path) -> None:
        heads = re.findall(r"<th>(.*?)</th>", page.read_text())
        assert heads[:8] == [
            "step", "reward", "judge", "brief", "KL, nats a response", "entropy, nats a token", "response tokens",
            "share cut",
        ]  # fmt: skip

    def test_what_a_run_does_not_have_is_not_drawn(self, tmp_path: Path) -> None:
        """RLOO with one source and a fixed coefficient, at its first step."""
        objective = {"name": "rloo", "kl_coefficient": 0.05, "kl_target": None}
        own = make_rollout_run(tmp_path / "r", steps=1, finished=False, objective=objective)
        gone = re.compile(r'"(eval_)?(reward/\w+|value_\w+|explained_variance)": [^,}]*(, )?')
        (own / "metrics.jsonl").write_text(gone.sub("", (own / "metrics.jsonl").read_text()))
        (own / "samples.jsonl").unlink()
        page = write_report(own)
        assert [name for name in FIGURES if name not in headings(page)] == [
            "Reward by source", "KL coefficient", "Value loss", "Explained variance",
        ]  # fmt: skip
        text = words(page)
        assert "coefficient 0.05, fixed" in text and "256 in 1 round" in text and "Samples over time" not in text

    def test_online_pairs_have_no_penalty(self, tmp_path: Path) -> None:
        own = make_rollout_run(tmp_path / "r", steps=1, objective={"name": "online", "pairs": {"name": "dpo"}})
        assert "nats a response; no penalty" in words(write_report(own))

    def test_rollouts_stand_at_the_step_whose_policy_wrote_them(self, run: Path) -> None:
        steps, values = _of_rounds(read_run(run), "reward")
        assert steps.tolist() == list(range(0, 200, 8)) and np.isfinite(values).all()

    def test_the_frontier_marks_steps_and_the_kept_one(self, run: Path) -> None:
        svg = frontier(read_run(run))
        assert svg is not None
        labels = [label.strip() for label in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
        assert {"rollouts", "held-out", "kept", "step 160", "0", "100"} <= set(labels)
        assert len(set(re.findall(r"fill-opacity: ([\d.]+)", svg))) > 10, "the later, the darker"

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"clip_scores": 5.0, "cut_penalty": 0.5},
             "Rollouts: as learned from, held within 5 of 0 and less 0.5 where max_tokens cut. Held-out: as given."),
            ({"cut_penalty": 1}, "Rollouts: as learned from, less 1 where max_tokens cut. Held-out: as given."),
            ({"clip_scores": None, "cut_penalty": 0.0}, ""),
        ],
    )  # fmt: skip
    def test_two_kinds_of_reward_on_one_axis_are_told_apart(self, run: Path, asked: dict[str, Any], said: str) -> None:
        found = read_run(run)
        found.config["rollouts"] |= asked
        assert learned_otherwise(found) == said and said in frontier_caption(found)
        for drawn in (_reward(found), frontier(found)):
            labels = {label.strip() for label in re.findall(r"<text[^>]*>([^<]*)</text>", str(drawn))}
            assert {"rollouts, as learned from", "held-out, as given"} <= labels if said else "rollouts" in labels

    def test_no_mark_is_cut_by_the_top_of_an_axis_from_zero(self) -> None:
        """Entropies of 0.39 to 0.42: 5 % of their range above them are none of the axis'."""
        axes = Figure(figsize=figures.SIZE).subplots()
        axes.plot([0, 8, 16], [0.42, 0.4, 0.39], marker="o")
        _from_zero(axes)
        low, high = axes.get_ylim()
        assert low == 0 and high >= 0.42 * 1.03

    @pytest.mark.parametrize(
        "labels", [["a" * 40 + "1", "a" * 40 + "2"], ["x" + "-" * 40 + "z", "x" + "-" * 30 + "z"], ["é\x00", "é\x01"]]
    )
    def test_no_two_sources_are_called_alike(self, labels: list[str]) -> None:
        assert len({*shortened(labels)}) == len(labels) and all(len(label) < 32 for label in shortened(labels))

    def test_the_same_run_gives_the_same_page(self, run: Path, page: Path) -> None:
        held = page.read_bytes()
        assert write_report(run).read_bytes() == held

    def test_no_mismatch_at_all_is_drawn_too(self, tmp_path: Path) -> None:
        own = make_rollout_run(tmp_path / "r", steps=1)  # both compute alike in the first round
        page = write_report(own)
        assert "Mismatch of engine and trainer" in headings(page) and "At most 0 nats." in Page(page).text

    def test_zero_is_on_the_log_axis_of_mismatch(self, page: Path) -> None:
        drawn = aria(page)["Difference of the log-probs of engine and trainer over steps"]
        assert re.search(r">0</text>|>\$\\mathdefault\{0\}\$<|<tspan[^>]*>0</tspan>", drawn)

    def test_rates_of_updates_are_of_the_time_that_whole_rounds_took(self, tmp_path: Path) -> None:
        """128 responses of 30 tokens: seven steps in a second each, one in nine, then half a round."""
        own = make_rollout_run(tmp_path / "r", steps=1)
        rates = [128.0] * 7 + [128 / 9] + [128.0] * 4
        lines = [{"step": i, "loss": 1.0, "pairs_per_second": rate} for i, rate in enumerate(rates, 1)]
        for first in (lines[0], lines[8]):
            first |= {"round": 0, "response_tokens": 30.0}
        write_lines(own / "metrics.jsonl", lines)
        steps, found = _update_rate(read_run(own))
        assert steps.tolist() == [8] and found.tolist() == pytest.approx([8 * 128 * 30 / 16])

    def test_last_rather_than_best(self, tmp_path: Path) -> None:
        train = {**configuration("r")["train"], "keep": "last"}
        read = read_run(make_rollout_run(tmp_path / "r", train=train))
        assert (read.best_step, read.kept_step) == (160, 200)
        assert {what: value for what, value, _ in _facts(read)}["KL to the reference"] == "12.50"

    def test_words_of_the_metric(self) -> None:
        assert spoken("eval_reward", "max") == "highest eval_reward"
        assert spoken("eval_reward/judge", "max") == "highest eval_reward/judge"

    def test_an_evaluation_compares_reward_and_kl_of_the_runs_behind_it(self, run: Path, tmp_path: Path) -> None:
        folder = make_evaluation(tmp_path / "e", ("sft", "orpo"), prompts=5, rounds=1)
        text = words(write_evaluation_report(folder, {"ppo": run, "orpo": make_run(tmp_path / "orpo")}))
        assert "eval reward KL, nats" in text and "1.339 10.00" in text
        assert "Reward against KL. Held-out: reward −0.45" in text
        text = words(write_evaluation_report(folder, {"orpo": tmp_path / "orpo"}))
        assert "KL, nats" not in text


class TestSamples:
    def read(self, folder: Path) -> Samples:
        found = read_samples(read_run(folder))
        assert found is not None
        return found

    def test_first_kept_and_newest_are_side_by_side(self, run: Path, page: Path) -> None:
        samples = self.read(run)
        assert [step.step for step in samples.steps] == [0, 140, 160, 180, 200] and NEWEST == 4
        assert [step.name for step in samples.steps][::2] == ["step 0, before training", "step 160, kept", "step 200"]
        assert [prompt for prompt, _ in samples.prompts] == list(PROMPTS)
        first = samples.prompts[1][1][0]
        assert first is not None and (first.text, first.reward, first.cut) == ("Answer 1 of step 0. ", "−1.00", True)
        assert samples.remark == "6 evaluations between them are in samples.jsonl."
        text = words(page)
        assert "Samples over time" in text and "step 160, kept 1.60 Answer 0 of step 160." in text
        assert page.read_text().count('<span class="badge">cut</span>') == 5

    def test_the_kept_step_is_shown_however_old(self, tmp_path: Path) -> None:
        own = make_rollout_run(tmp_path / "r")
        summary = json.loads((own / "summary.json").read_text())
        (own / "summary.json").write_text(json.dumps(summary | {"best_step": 40}))
        assert [step.step for step in self.read(own).steps] == [0, 40, 140, 160, 180, 200]

    def test_lines_that_are_damaged_are_counted(self, tmp_path: Path) -> None:
        own = make_rollout_run(tmp_path / "r", steps=20)
        good = (own / "samples.jsonl").read_text().splitlines(keepends=True)
        odd = ['{"step": 20, "pro{"step": 20}\n', "[]\n", '{"step": "x"}\n', "\n",
               json.dumps({**sample_lines(20)[0], "step": True}) + "\n",
               json.dumps({**sample_lines(20)[0], "reward": "1"}) + "\n", '\xff\n']  # fmt: skip
        (own / "samples.jsonl").write_bytes("".join([*good, *odd, '{"step": 20, "prompt"']).encode("latin-1"))
        samples = self.read(own)
        assert samples.remark == "6 lines of samples.jsonl cannot be read, and are left out."
        assert len(samples.prompts) == 3 and all(answer for _, answers in samples.prompts for answer in answers)

    def test_nothing_that_can_be_read_is_no_section(self, tmp_path: Path) -> None:
        own = make_rollout_run(tmp_path / "r", steps=20)
        (own / "samples.jsonl").write_text('{"step": 0, "prom')
        assert "Samples over time" not in run_page(read_run(own), [])

    def test_of_a_step_that_was_repeated_the_last_counts(self, tmp_path: Path) -> None:
        """A run that goes on from a checkpoint; what is of steps to come is not yet."""
        own = make_rollout_run(tmp_path / "r", steps=20, finished=False)
        again = {**sample_lines(20)[0], "response": "the second"}
        later = sample_lines(40)
        lines = [*sample_lines(0), *sample_lines(20)[:2], *later, again, *sample_lines(20)[1:]]
        write_lines(own / "samples.jsonl", lines)
        samples = self.read(own)
        assert [step.step for step in samples.steps] == [0, 20] and samples.remark == ""
        last = samples.prompts[0][1][1]
        assert last is not None and last.text == "the second"

    def test_many_and_long_ones_keep_a_page_small(self, tmp_path: Path) -> None:
        own = make_rollout_run(tmp_path / "r", steps=20)
        long = [
            {"step": step, "prompt": f"{i} " + "p" * 50_000, "response": "r" * 50_000, "reward": None, "ended": "stop"}
            for step in range(20) for i in range(12)
        ]  # fmt: skip
        write_lines(own / "samples.jsonl", long)
        samples = self.read(own)
        assert len(samples.prompts) == MOST_PROMPTS and len(samples.steps) == NEWEST + 1
        answer = samples.prompts[0][1][0]
        assert answer is not None and answer.reward == "–"
        assert answer.text == "r" * MOST_CHARACTERS + " … (46,000 more characters)"
        assert len(run_page(read_run(own), [])) < 1_000_000

    def test_a_prompt_that_is_not_there_at_a_step(self, tmp_path: Path) -> None:
        own = make_rollout_run(tmp_path / "r", steps=20)
        write_lines(own / "samples.jsonl", [*sample_lines(0)[:1], *sample_lines(20)])
        assert [answers[0] is None for _, answers in self.read(own).prompts] == [False, True, True]
        write_report(own)


ODD_TEXTS = ["\ud800", "a\0b", "\u202e reversed", "\x1b[2J", "_hidden", "", "x" * 300, "$\\frac{$"]


@pytest.mark.parametrize("texts", [HOSTILE[:8], HOSTILE[8:], ODD_TEXTS], ids=["hostile", "more", "odd"])
def test_no_text_becomes_markup(texts: list[str], tmp_path: Path) -> None:
    """As labels and paths of rewards, prompts, responses and how these ended."""
    own = make_rollout_run(tmp_path / "r", steps=1)
    in_yaml = [text for text in texts if "\0" not in text and "\ud800" not in text]
    rewards = {text: {"path": text, "weight": text} for text in in_yaml}
    asked = {**configuration("r")["rollouts"], "rewards": rewards}
    (own / "config.yaml").write_text(json.dumps(configuration("r", rollouts=asked)))
    given = {f"reward/{text}": float(i) for i, text in enumerate(texts)}
    lines = [
        step_line(1, np.random.default_rng(0)) | given,
        evaluation_line(0) | {f"eval_{key}": value for key, value in given.items()},
    ]
    write_lines(own / "metrics.jsonl", lines)
    write_lines(own / "samples.jsonl", [
        {"step": step, "prompt": f"asked {text}", "response": f"so {text}", "reward": 1.0, "ended": text}
        for step in (0, 1) for text in texts
    ])  # fmt: skip
    page = write_report(own)
    elements = Elements(page)
    assert elements.brought_in == []
    assert not [tag for tag, _ in elements.found if tag == "script"]
    for text in texts:
        if text.isprintable():
            assert elements.texts.count(f"so {text}") == 2 and f"asked {text}" in elements.texts


ODD = [
    "reward", "reward/judge", "kl", "kl_coefficient", "entropy", "response_tokens", "share_cut", "mismatch_mean",
    "mismatch_max", "mismatch_k3", "explained_variance", "value_loss", "clip_fraction", "ratio", "not_finite", "round",
    "too_long", "rollout_tokens_per_second", "rollout_seconds", "eval_reward", "eval_kl", "eval_reward/judge",
    "eval_share_cut", "eval_response_tokens",
]  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(ODD), st.lists(odd_values, min_size=1, max_size=3), min_size=1, max_size=4),
    st.dictionaries(
        st.sampled_from(["objective", "rollouts", "train", "eval"]),
        st.dictionaries(
            st.sampled_from(["name", "kl_coefficient", "kl_target", "rewards", "max_tokens", "keep_by", "win_rate"]),
            odd_values,
        ),
        max_size=2,
    ),
)
@example({key: [1e308, -1e308, float("inf")] for key in ODD}, {"rollouts": {"rewards": {"a": None, "b": {"path": []}}}})
@example({key: [0.0, None, 0.0] for key in ODD}, {"objective": {"kl_target": 1e299, "kl_coefficient": -0.0}})
@example({key: [5e-324, 1e-300, 1e99, -1.0] for key in ODD}, {"rollouts": {"max_tokens": 1e299}})
@cases(20)
def test_odd_values_end_no_page(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, list[Any]], sections: dict[str, dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("odd") / "r"
    make_rollout_run(folder, steps=1, finished=False)
    sound = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    asked = {"step", "loss", "round", *metrics}  # what else there is was drawn by other tests
    write_lines(folder / "metrics.jsonl", [{k: v for k, v in line.items() if k in asked} for line in sound])
    changed = {name: {**configuration("r").get(name, {}), **changes} for name, changes in sections.items()}
    (folder / "config.yaml").write_text(json.dumps({**configuration("r"), **changed}))
    with (folder / "metrics.jsonl").open("a") as file:
        for name, values in metrics.items():
            file.writelines(json.dumps({"step": 2 + i, name: value}) + "\n" for i, value in enumerate(values))
    try:
        write_report(folder)
    except UserError as error:
        assert_one_line(error, str(folder))


def test_pages_of_pairs_are_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte but for what matplotlib draws, the style sheet, the version and the policy, in which there is a
    sum of the script of evaluations; whoever changes the page of a run of pairs on purpose changes these sums."""
    monkeypatch.setattr(Figure, "savefig", lambda _, buffer, **__: buffer.write("<svg></svg>\n"))
    known = {
        "orpo": "615d51b56ca07bfa",
        "sft": "99a4f64bab56c97b",
        "kto": "67cbba85720f9c28",
        "reward": "a49c40728567125e",
    }
    for objective, expected in known.items():
        run = make_run(tmp_path / objective, objective=objective)
        write_lines(run / "samples.jsonl", sample_lines(0))
        content = write_report(run).read_bytes()
        kept = re.sub(
            rb"<svg.*?</svg>|<style>.*?</style>|<footer>.*?</footer>|<meta http-equiv.*?>",
            b"",
            content,
            flags=re.DOTALL,
        )
        assert hashlib.sha256(kept).hexdigest()[:16] == expected, objective


@pytest.mark.parametrize(
    ("objective", "said"), [("ppo", "Tokens whose ratio, or value, was held."), ("rloo", "Responses whose ratio was")]
)
def test_the_clip_fraction_is_of_what_the_objective_holds(tmp_path: Path, objective: str, said: str) -> None:
    own = make_rollout_run(tmp_path / "r", steps=8)
    lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    if objective == "rloo":
        lines = [{key: value for key, value in line.items() if key != "value_clip_fraction"} for line in lines]
    write_lines(own / "metrics.jsonl", lines)
    run = read_run(own)
    assert _clip_caption(replace(run, config=run.config | {"objective": {"name": objective}})).startswith(said)


def test_a_frontier_of_one_point_and_of_none(tmp_path: Path) -> None:
    own = make_rollout_run(tmp_path / "r", steps=1)
    write_lines(own / "metrics.jsonl", [evaluation_line(0)])
    assert frontier(read_run(own)) is not None and "Held-out" not in frontier_caption(read_run(own))
    write_lines(
        own / "metrics.jsonl", [{"step": 0, "eval_reward": 1.0}, {"step": 20, "eval_kl": None, "eval_reward": 1.0}]
    )
    assert frontier(read_run(own)) is None


def test_a_label_of_a_step_lies_where_it_covers_no_point_and_stays_inside() -> None:
    middle, below, above = (np.array(place) for place in ((0.5, 0.5), (0.54, 0.46), (0.5, 0.57)))
    free, one, two, corner = (
        _side(place, 2, np.array(marks))
        for place, marks in (
            (middle, [middle]), (middle, [middle, below]), (middle, [middle, below, above]),
            (np.array([0.99, 0.9]), [[0.0, 0.0]]),
        )
    )  # fmt: skip
    assert (free.across, free.along) == ("left", "top")
    assert (one.across, one.along) == ("center", "bottom")
    assert (two.across, two.along) == ("center", "top")
    assert corner.across == "right"


def test_trackers_take_names_of_sources() -> None:
    """MLflow and Weights & Biases make sections of what stands before a slash."""
    line = {"step": 9, "loss": 1.0, "reward": 1.0, "reward/judge.v-2_x": 2.0, "round": 1.0, "value_loss": None}
    found = scalars(line)
    assert found["train/reward/judge.v-2_x"] == 2.0 and "train/value_loss" not in found
    assert scalars({"step": 9, "eval_reward/judge": 2.0}) == {"eval/reward/judge": 2.0}
    # What MLflow takes (its utils/validation.py): these signs, and no path that is another's.
    assert all(re.fullmatch(r"[/\w.\- :]+", name) and posixpath.normpath(name) == name for name in found)
