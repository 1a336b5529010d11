"""The figures of the paper remade: every seed is drawn, with the numbers that its run left; what is missing is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_run import add_judges, change, make_evaluation
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imread
from paper_folders import finish, paper_stages
from test_report import ATTACK, make_run
from test_sweep_results import STEPS, write_run

from orpo_ray.config import SweepConfig
from orpo_ray.errors import UserError
from orpo_ray.paper.figure_curves import MOST_PANELS, contrast_drawing, lambda_drawing, lambdas
from orpo_ray.paper.figure_drawing import LINES, MARKS, Drawing, Look
from orpo_ray.paper.figure_rewards import rewards_drawing
from orpo_ray.paper.figures import Figure, paper_figures
from orpo_ray.paper.outcomes import Outcomes, read_outcomes
from orpo_ray.paper.stages import PaperStages, Place
from orpo_ray.report.figures import CHOSEN, REJECTED, smoothed
from orpo_ray.report.runs import read_run
from orpo_ray.report.sweep_folder import read_sweep
from orpo_ray.statistics.seeds import of_means
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.results import summary, write_results, write_summary

SEEDS = (1, 2, 3)
NAMES = ["figure-3", "figure-5", "figure-6", "figure-7", "figure-8", "figure-9", "figure-10", "figure-11"]
SWEEP: dict[str, Any] = {
    "space": {"objective.lambda": "grid(0.1, 0.5, 1.0)"}, "searcher": "grid", "scheduler": "none",
    "metric": "eval_reward_accuracy",
}  # fmt: skip
BENCH = {
    "benchmark": "mt-bench", "judges": {"rater": {"kind": "openai", "model": "big", "base_url": "http://127.0.0.1:1/v1"}}
}  # fmt: skip


def stages_of(folder: Path, **changes: Any) -> PaperStages:
    """With a probability ratio, a sweep of λ and an MT-Bench beside what `paper_folders` has."""
    plain = paper_stages(folder).config.model_dump(exclude_unset=True)
    methods = plain["methods"] | {
        "probability_ratio": {
            "model": {"name_or_path": "<base>"}, "objective": {"name": "probability_ratio", "lambda": 1.0},
        }
    }  # fmt: skip
    more = {
        "methods": methods,
        "sweep": SWEEP,
        "benchmarks": {"chat": {"data": "world", "size": "large", "evaluation": BENCH}},
    }
    return paper_stages(folder, **(more | changes))


def train(stages: PaperStages, method: str, seed: int, **changes: Any) -> Path:
    """A finished run of the place that figures are of, a little apart from that of another seed."""
    place = stages.find(method, "world", "large", seed)
    assert place
    folder = make_run(stages.folder_of(place), objective="sft" if method == "sft" else "orpo", **changes)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for key in line:
            if "logps" in key or "odds_ratio" in key:
                line[key] += seed / 50 * (1 + line["step"] / 120)
            if "logps_rejected" in key and method == "probability_ratio":
                line[key] -= (2 + seed / 10) * line["step"] / 120
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(stages.configs[place].to_yaml())
    return folder


def sweep(stages: PaperStages, *, scores: bool = False) -> Path:
    """A finished sweep; `scores`: with what each trial's model gave each pair."""
    place = stages.find("sweep", "world", "large")
    assert place
    own = stages.configs[place]
    assert isinstance(own, SweepConfig)
    folder = SweepFolder(own)
    folder.open_for(own)
    ledger = Ledger(own, folder, STEPS)
    for index, weight in enumerate((0.1, 0.5, 1.0)):
        trial = folder.trial(index)
        write_run(trial.path, {"objective.lambda": weight, "optim.lr": 1e-3})
        ledger.begin({"objective.lambda": weight})
        if scores:
            noise = np.random.default_rng(index).normal(0, 0.1, 50)
            columns = {
                "record": np.arange(50),
                **dict.fromkeys(("prompt_tokens", "chosen_tokens", "rejected_tokens"), [2] * 50),
            }
            given = {"chosen": 2 * (noise - 0.5 - weight / 10), "rejected": 2 * (noise**2 - 0.6 - weight)}
            pq.write_table(pa.table(columns | given), trial.eval_scores)
    write_results(folder, ledger)
    write_summary(folder, summary(own, ledger, STEPS, None, []) | {"seconds": 9.0, "finished": own.to_yaml()})
    return folder.path


def bench(stages: PaperStages) -> None:
    place = next(place for place in stages.configs if place.kind == "benchmark")
    folder = add_judges(make_evaluation(stages.folder_of(place), ("sft", "dpo", "ppo", "orpo"), prompts=24, rounds=1))
    change(
        folder,
        lambda content: content.update(leaderboards={"mt-bench": {"ranked_by": "score", "rows": [], "published": []}}),
    )
    (folder / "config.yaml").write_text(stages.configs[place].to_yaml())


def everything(folder: Path) -> PaperStages:
    stages = stages_of(folder)
    for seed in SEEDS:
        for method in ("sft", "orpo", "probability_ratio"):
            train(stages, method, seed)
    finish(stages, *(place for place in stages.configs if place.kind == "winrate"))
    sweep(stages, scores=True)
    bench(stages)
    return stages


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, dict[str, Figure]]:
    outcomes = read_outcomes(everything(tmp_path_factory.mktemp("paper")))
    return outcomes, drawn(outcomes)


def drawn(outcomes: Outcomes) -> dict[str, Figure]:
    return {figure.name: figure for figure in paper_figures(outcomes)}


def panels(drawing: Drawing | None) -> list[Axes]:
    assert drawing
    canvas = Canvas()
    drawing.paint(canvas, 1)
    return canvas.axes


def held_out(axes: Axes, colour: str) -> list[tuple[list[float], list[float]]]:
    """Steps and values of each marked line of a colour."""
    return [
        (list(line.get_xdata()), list(line.get_ydata()))  # type: ignore[arg-type]
        for line in axes.lines if line.get_color() == colour and line.get_marker() in MARKS
    ]  # fmt: skip


def written(stages: PaperStages, method: str, key: str) -> list[tuple[list[float], list[float]]]:
    """The same, of each seed, as its metrics.jsonl has it."""
    found = []
    for seed in SEEDS:
        place = stages.find(method, "world", "large", seed)
        assert place
        lines = map(json.loads, (stages.folder_of(place) / "metrics.jsonl").read_text().splitlines())
        own = [(line["step"], line[key]) for line in lines if key in line]
        found.append(([step for step, _ in own], [value for _, value in own]))
    return found


def test_every_figure_is_there_whole(whole: tuple[Outcomes, dict[str, Figure]]) -> None:
    _, figures = whole
    assert list(figures) == NAMES
    for name, figure in figures.items():
        assert figure.verdict
        if name == "figure-5":  # no data set stands for UltraFeedback
            assert figure.svg is None and figure.verdict.word == "not run" and figure.verdict.why == figure.missing
            assert figure.missing == "no data set of the configuration stands for UltraFeedback"
        else:
            assert figure.svg is not None and figure.svg.startswith("<svg") and not figure.missing, figure.missing
            assert "Missing" not in figure.caption and "Not drawn" not in figure.caption
    words = {name: str(figure.verdict.word) for name, figure in figures.items() if figure.verdict}
    assert (
        words["figure-3"]
        == words["figure-6"]
        == words["figure-7"]
        == words["figure-8"]
        == words["figure-9"]
        == "agrees"
    )
    assert words["figure-10"] == "cannot tell"


def test_every_seed_is_a_line_of_its_own_numbers(whole: tuple[Outcomes, dict[str, Figure]]) -> None:
    outcomes, figures = whole
    stages = outcomes.stages
    (sft,) = panels(figures["figure-3"].drawing)
    log_probs, odds = panels(figures["figure-7"].drawing)
    ratio, orpo = panels(figures["figure-8"].drawing)
    for axes, method in ((sft, "sft"), (log_probs, "orpo"), (ratio, "probability_ratio"), (orpo, "orpo")):
        for side, colour in (("chosen", CHOSEN), ("rejected", REJECTED)):
            assert held_out(axes, colour) == written(stages, method, f"eval_logps_{side}")
    assert len(sft.lines) == 9, "three seeds: two sides held out, and chosen in training, of which SFT has no more"
    assert len(log_probs.lines) == len(orpo.lines) == 12
    ink = [line for line in odds.lines if line.get_marker() in MARKS]
    assert [list(line.get_ydata()) for line in ink] == [
        values for _, values in written(stages, "orpo", "eval_log_odds_ratio")
    ]  # type: ignore[arg-type]
    assert len({line.get_marker() for line in ink}) == 3, "seeds are told apart without colour"
    pale = [line for line in odds.lines if line.get_alpha() is not None]
    run = outcomes.run(stages.places["world-large-orpo-1"])
    assert run
    np.testing.assert_array_equal(pale[0].get_ydata(), smoothed(run.series("log_odds_ratio"))[1])
    assert ratio.get_ylim() == orpo.get_ylim() and ratio.get_xlim() == orpo.get_xlim()


def test_ends_stand_beside_the_papers(whole: tuple[Outcomes, dict[str, Figure]]) -> None:
    outcomes, figures = whole
    courses = [
        f"{values[0]:.2f} → {values[-1]:.2f}".replace("-", "−")
        for _, values in written(outcomes.stages, "sft", "eval_logps_rejected")
    ]
    caption = figures["figure-3"].caption
    assert f"rejected {', '.join(courses)}" in caption and "(seeds 1, 2, 3)" in caption
    assert "In the paper (OPT-350M on HH-RLHF): chosen −2.51 → −2.16, rejected −2.54 → −2.17." in caption
    assert "log odds ratio 0.17 → 0.08 → 1.44" in figures["figure-7"].caption
    assert "large on The toy world" in caption


def test_rewards_are_those_of_the_judge(whole: tuple[Outcomes, dict[str, Figure]]) -> None:
    outcomes, figures = whole
    small, large = panels(figures["figure-11"].drawing)
    assert (small.get_title(loc="left"), large.get_title(loc="left")) == ("small", "large")
    assert len(small.lines) == len(large.lines) == 12, "a density for each of four methods and three seeds"
    given = outcomes.scores("world", "large", 2, "orpo")
    assert given is not None and given.shape == (40, 3)
    table = pq.read_table(
        outcomes.stages.folder_of(outcomes.stages.places["world-large-winrate-2"]) / "results.parquet"
    )
    own = [row["reward:judge"] for row in table.to_pylist() if row["model"] == "orpo"]
    assert sorted(given.ravel()) == sorted(own)
    x, density = (np.asarray(data) for data in (large.lines[-2].get_xdata(), large.lines[-2].get_ydata()))
    assert np.trapezoid(density, x) == pytest.approx(1, abs=0.03)
    assert np.trapezoid(density * x, x) == pytest.approx(np.nanmean(given), abs=0.1), "the second seed's, of ORPO"
    claims = [claim.text for claim in figures["figure-11"].claims]
    assert claims[0] == "small: ORPO's mean reward is above SFT's." and len(claims) == 6
    assert (
        "by judge" in figures["figure-11"].caption
        and "in the place of Anthropic HH-RLHF" in figures["figure-11"].caption
    )


def test_rewards_of_seeds_that_were_asked_unlike_prompts_are_told_by_their_means(tmp_path: Path) -> None:
    """Such as of a data set on the Hub that has changed between."""
    stages = paper_stages(tmp_path)
    for seed in SEEDS:
        finish(stages, Place("winrate", "world", "small", seed), prompts=30 + seed)
    outcomes = read_outcomes(stages)
    claim = {figure.name: figure for figure in paper_figures(outcomes)}["figure-11"].claims[0]
    orpo, sft = ([outcomes.scores("world", "small", seed, method) for seed in SEEDS] for method in ("orpo", "sft"))
    apart = [float(np.nanmean(one - other)) for one, other in zip(orpo, sft, strict=True)]  # type: ignore[operator]
    assert claim.ours == of_means(apart)


def test_a_panel_for_each_lambda(whole: tuple[Outcomes, dict[str, Figure]]) -> None:
    _, figures = whole
    found = panels(figures["figure-9"].drawing)
    assert [axes.get_title(loc="left") for axes in found] == ["λ = 0.1", "λ = 0.5", "λ = 1"]
    for axes, weight in zip(found, (0.1, 0.5, 1.0), strict=True):
        ((steps, values),) = held_out(axes, REJECTED)
        assert steps == list(range(0, STEPS + 1, 8)) and values == [-0.6 - weight] * 10
    assert "λ = 0.5: chosen −0.55 → −0.55, rejected −1.10 → −1.10" in figures["figure-9"].caption
    assert "λ = 0.1: chosen −2.07 → −0.81, rejected −2.13 → −1.16" in figures["figure-9"].caption
    assert [str(claim.verdict.word) for claim in figures["figure-9"].claims] == ["agrees", "agrees"], (
        "by pairs' own values"
    )


def test_one_run_of_means_at_three_lambdas_tells_nothing(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    folder = sweep(stages)
    figure = drawn(read_outcomes(stages))["figure-9"]
    assert figure.verdict and figure.verdict.word == "cannot tell" and "Kendall" in figure.verdict.why
    content = json.loads((folder / "sweep.json").read_text())
    many = np.linspace(0.1, 2, 20).tolist()
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    content["space"] = {"objective.lambda": "loguniform(0.05, 4)"}
    first = content["trials"][0]
    content["trials"] = [{**first, "trial": i, "settings": {"objective.lambda": each}} for i, each in enumerate(many)]
    (folder / "sweep.json").write_text(json.dumps(content))
    pq.write_table(
        pa.Table.from_pylist([{**row, "trial": i} for i in range(20) for row in rows if row["trial"] == 0]),
        folder / "results.parquet",
    )
    read = read_sweep(folder)
    assert lambdas(read) == many
    titles = [axes.get_title(loc="left") for axes in panels(lambda_drawing(read))]
    assert len(titles) == MOST_PANELS and titles[0] == "λ = 0.1" and titles[-1] == "λ = 2"
    assert f"There are 20 λ, of which {MOST_PANELS} are drawn." in drawn(read_outcomes(stages))["figure-9"].caption


def test_files_stand_alone_and_are_the_same_bytes(whole: tuple[Outcomes, dict[str, Figure]], tmp_path: Path) -> None:
    outcomes, figures = whole
    again = drawn(read_outcomes(outcomes.stages))
    for name, figure in figures.items():
        files = figure.write(tmp_path)
        assert [file.name for file in files] == ([] if figure.drawing is None else [f"{name}.svg", f"{name}.png"])
        if not files:
            continue
        vector, picture = files
        root = ElementTree.parse(vector).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.attrib["width"].removesuffix("pt")) > 300
        text = vector.read_text()
        assert "var(--" not in text and "<dc:date>" not in text and "<text" not in text, "letters are outlines"
        pixels = imread(picture)
        assert pixels.shape[0] > 400 and pixels.shape[1] > 700 and (pixels[0, 0, :3] == 1).all(), "white"
        assert pixels[..., :3].min() < 0.9, "and something on it"
        if name in ("figure-3", "figure-11"):
            before = [file.read_bytes() for file in files]
            assert [file.read_bytes() for file in again[name].write(tmp_path)] == before
            assert again[name].svg == figure.svg
        assert figure.svg is not None
        assert "var(--ink)" in figure.svg and "#0072b2" not in figure.svg and "#009e74" not in figure.svg
    gone = dataclasses.replace(figures["figure-7"], drawing=None)
    assert (
        gone.write(tmp_path) == []
        and not (tmp_path / "figure-7.svg").exists()
        and not (tmp_path / "figure-7.png").exists()
    )


def test_a_folder_that_cannot_be_written_to_is_told(whole: tuple[Outcomes, dict[str, Figure]], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="figures cannot be written: Not a directory"):
        whole[1]["figure-6"].write(tmp_path / "taken")


def test_of_some_runs_what_there_is(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    train(stages, "orpo", 1)
    train(stages, "orpo", 2, steps=60, finished=False)
    figures = drawn(read_outcomes(stages, {"world-large-orpo-3": "the loss is nan"}))
    seven, eight = figures["figure-7"], figures["figure-8"]
    assert len(held_out(panels(seven.drawing)[0], CHOSEN)) == 2, "the unfinished one as far as it is"
    assert (
        "world-large-orpo-3: failed: the loss is nan" in seven.missing
        and "world-large-orpo-2: not finished" in seven.missing
    )
    assert seven.caption.endswith(f"Missing: {seven.missing}.")
    assert "(seed 1)" in seven.caption, "an unfinished run has no end"
    assert seven.verdict and seven.verdict.word == "cannot tell", "one run's means tell no interval"
    assert eight.svg is None and "world-large-probability_ratio-1" in eight.missing
    assert eight.verdict and eight.verdict.word == "not run"


def test_of_no_run_a_reason_each(tmp_path: Path) -> None:
    figures = drawn(read_outcomes(paper_stages(tmp_path)))
    for name, figure in figures.items():
        if name == "figure-6":
            assert figure.svg is not None
            continue
        assert figure.svg is None and figure.missing and figure.caption.endswith(f"Not drawn: {figure.missing}.")
        assert figure.verdict and figure.verdict.word == "not run", name
    rewards = figures["figure-11"]
    for size in ("small", "large"):
        own = ", ".join(f"world-{size}-winrate-{seed}" for seed in (1, 2, 3))
        said = [claim.verdict.why for claim in rewards.claims if claim.text.startswith(f"{size}: ")]
        assert said == [f"{size}: {own}: not begun"] * 3
        assert rewards.verdict and rewards.verdict.why.count(own) == 1
    assert figures["figure-8"].missing.startswith("the configuration has no probability_ratio; ")
    assert figures["figure-9"].missing == "the configuration has no sweep"
    assert figures["figure-10"].missing == "no benchmark of the configuration measures MT-Bench"
    assert figures["figure-3"].missing == "world-large-sft-1, world-large-sft-2, world-large-sft-3: not begun"


def test_data_that_stand_for_none_of_the_papers_have_a_figure_and_no_verdict(tmp_path: Path) -> None:
    data = {"hh": {"title": ATTACK, "evaluation": {"prompts": {"source": "toy-test"}}}}
    stages = paper_stages(tmp_path, data=data, figures={"data": "hh", "size": "large"}, seeds=[4])
    finish(stages, Place("winrate", "hh", "small", 4))
    figures = drawn(read_outcomes(stages))
    figure = figures["rewards-hh"]
    assert figures["figure-11"].svg is None, "called so, it is not the paper's"
    assert figure.verdict is None and figure.svg is not None and "<script>" not in figure.svg
    (axes,) = panels(figure.drawing)
    assert len(axes.lines) == 4 and "hh-large-winrate-4: not begun" in figure.missing


def test_looks_of_many_seeds_differ() -> None:
    assert len({(look.line, look.mark) for look in map(Look.at, range(2 * len(LINES)))}) == 2 * len(LINES)


def test_a_seed_looks_the_same_in_both_panels(tmp_path: Path) -> None:
    stages = stages_of(tmp_path)
    ratio = {2: read_run(train(stages, "probability_ratio", 2))}
    orpo = {seed: read_run(train(stages, "orpo", seed)) for seed in (1, 2)}
    left, right = panels(contrast_drawing(ratio, orpo))
    assert {line.get_marker() for line in left.lines if line.get_marker() in MARKS} == {MARKS[1]}
    assert {line.get_marker() for line in right.lines if line.get_marker() in MARKS} == {*MARKS[:2]}


def test_panels_of_rewards_share_an_axis_that_holds_the_highest_of_them():
    """A panel that was drawn later had its peaks cut off at the height of the first."""
    widths = {"wide": 1.0, "narrow": 0.1}
    rng = np.random.default_rng(0)
    sizes = {
        title: {1: {"orpo": rng.normal(0, by, 200), "sft": rng.normal(1, by, 200)}} for title, by in widths.items()
    }
    figure = Canvas()
    rewards_drawing(sizes).paint(figure, 2)
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_ylim()
        heights = [line.get_ydata().max() for line in axes.lines] + [patch.get_height() for patch in axes.patches]
        assert low == 0 and max(heights) < high
