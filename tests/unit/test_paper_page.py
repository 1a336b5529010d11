"""The page of the paper remade: from folders as stages leave them, all of them, some, and none."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_run import change
from paper_folders import finish, finish_all, paper_stages
from test_report import Page

from orpo_ray.config.schema import ModelConfig
from orpo_ray.paper.figures import paper_figures
from orpo_ray.paper.other_judges import disagreements
from orpo_ray.paper.outcomes import Contest, Outcomes, read_outcomes
from orpo_ray.paper.page import write_paper
from orpo_ray.paper.page_parts import Line, grouped, lines_of, plot_of, table_view, tally
from orpo_ray.paper.scale import Model, Scale, parameters, scale_of, short_count
from orpo_ray.paper.stages import PaperStages
from orpo_ray.paper.table import ALL, Number
from orpo_ray.paper.tables import win_rate_table
from orpo_ray.statistics.accuracy import wilson
from orpo_ray.statistics.seeds import Interval

WHY = "CUDA out of memory <b>at</b> step 12"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> PaperStages:
    return finish_all(paper_stages(tmp_path_factory.mktemp("all")))


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory) -> dict[str, Path]:
    """Of a paper all of whose stages have finished; of one of which some have, and one has failed; of one that has not
    begun."""
    some = paper_stages(tmp_path_factory.mktemp("some"))
    finish(some, *(place for place in some.configs if place.seed != 3 and place.size != "large"))
    judges = {"reward_models": {"of-seeds": "toy"}}
    none = paper_stages(tmp_path_factory.mktemp("none"), evaluation={"sampling": {"max_tokens": 48}, **judges})
    return {
        "all": write_paper(finished, {}), "some": write_paper(some, {"world-large-ppo-1": WHY}),
        "none": write_paper(none, {}),
    }  # fmt: skip


def links(page: Path) -> list[str]:
    return re.findall(r'<a href="([^"]*)"', page.read_text(encoding="utf-8"))


def words(page: Path) -> dict[str, int]:
    """How many have each verdict, as the page counts them."""
    head = page.read_text(encoding="utf-8").partition("</header>")[0]
    return {word: int(count) for count, word in re.findall(r'<span>(\d+) <span class="[^"]*">([^<]*)</span>', head)}


@pytest.mark.parametrize("state", ["all", "some", "none"])
def test_every_link_leads_somewhere_that_is_there_and_nothing_is_loaded(pages, state):
    page = Page(pages[state])
    found = links(pages[state])
    assert page.loads, "the page links to its files"
    for link in found:
        if link.startswith("#"):
            assert page.ids.count(link[1:]) == 1, link
        else:
            assert not link.startswith("/") and ":" not in link
            assert (pages[state].parent / link).exists(), link
    assert {load for load in page.loads if not load.startswith("#")} <= set(found)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    source = pages[state].read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#|&quot;#)", source) and "@import" not in source


def test_what_an_earlier_configuration_drew_is_gone(tmp_path):
    stages = paper_stages(tmp_path)
    folder = stages.folder / "paper"
    folder.mkdir(parents=True)
    stale = [
        "table-3.csv", "table-2-by-old.tex", "table-2-by-old-seeds.md", "win-rates-other.csv", "rewards-old.png",
        "rewards-old.csv", "figure-3.svg",
    ]  # fmt: skip
    kept = ["my notes.md", "rewards.xlsx", "slides.png"]
    for name in (*stale, *kept):
        (folder / name).write_text("old")
    write_paper(stages, {})
    there = {file.name for file in folder.iterdir()}
    assert not there & set(stale) and set(kept) <= there
    assert {"table-2.csv", "mt-bench.tex", "rewards-world.csv", "figure-6.png"} <= there


def test_a_judge_called_as_tables_of_seeds_are_has_its_own_table(pages):
    assert {"table-2", "table-2-by-of-seeds"} <= set(Page(pages["none"]).ids)


def test_every_table_and_figure_is_written_and_linked(pages):
    folder = pages["all"].parent
    found = {link for link in links(pages["all"]) if "/" not in link and not link.startswith("#")}
    assert found == {file.name for file in folder.iterdir() if file.name != "index.html"}
    for name in ("table-1", "table-2", "table-4", "table-6"):
        assert {f"{name}.csv", f"{name}.md", f"{name}.tex"} <= found
    for name in ("figure-3", "figure-6", "figure-7", "figure-11"):
        assert {f"{name}.svg", f"{name}.png"} <= found


def test_a_claim_says_who_wins_with_interval_count_paper_and_verdict(finished, pages):
    outcomes = read_outcomes(finished)
    contest = outcomes.contest("world", "small", "sft")
    ours = contest.overall
    text = " ".join(Page(pages["all"]).text.split())
    assert ours is not None and ours.low > 0.5, "what the made-up folders hold"
    said = re.search(r"small: ORPO beats SFT (\S+) \(\S+\) (\S+) to (\S+); paper (\S+) \(0.62\).*?; (\S+) seeds", text)
    assert said is not None
    expected = [f"{100 * value:.1f}" for value in (ours.mean, ours.low, ours.high, 0.84)]
    assert list(said.groups()) == [*expected, "3"]


def test_verdicts_are_counted_as_they_are_shown(pages):
    assert set(words(pages["all"])) > {"agrees", "not run"}
    assert set(words(pages["none"])) == {"agrees", "not run"}, "Figure 6 needs no run"
    assert words(pages["none"])["agrees"] == 1
    assert sum(words(pages["all"]).values()) == sum(words(pages["none"]).values())


def decided(intervals: dict[tuple[str, str, str], tuple[float, float]]):
    """In place of `Outcomes.contest`: intervals by judge, size and opponent; all others were not run."""

    def contest(self, data: str, size: str, against: str, judge: str = "judge") -> Contest:
        found = intervals.get((judge, size, against))
        overall = None if found is None else Interval(sum(found) / 2, *found, (0.5, 0.5, 0.5), 40)
        return Contest(
            data, size, against, judge, {}, dict.fromkeys((1, 2, 3), "not begun"), overall, "" if found else "not begun"
        )

    return contest


def test_another_judge_who_contradicts_the_first_is_on_the_first_screen(tmp_path, monkeypatch):
    told = {
        ("judge", "small", "sft"): (0.6, 0.7), ("truth", "small", "sft"): (0.52, 0.56),  # the same winner
        ("judge", "small", "dpo"): (0.6, 0.7), ("truth", "small", "dpo"): (0.44, 0.52),  # none by the other
        ("judge", "small", "ppo"): (0.4, 0.52), ("truth", "small", "ppo"): (0.4, 0.48),  # none by the first
        ("judge", "large", "sft"): (0.6, 0.7),
        ("judge", "large", "dpo"): (0.545, 0.674), ("truth", "large", "dpo"): (0.408, 0.498),  # another winner
    }  # fmt: skip
    monkeypatch.setattr(Outcomes, "contest", decided(told))
    head = write_paper(paper_stages(tmp_path), {}).read_text(encoding="utf-8").partition("</header>")[0]
    assert (
        '<p class="notice">Verdicts go by the reward model of size large, which tells a winner in 3 of the 4 '
        "comparisons that truth decided as well: of these 3, truth tells another winner in 1 and none in 1. ORPO "
        "against SFT+DPO (The toy world, large): 61.0% (54.5% to 67.4%) by the reward model of size large, 45.3% "
        "(40.8% to 49.8%) by truth.</p>"
    ) in head


@pytest.mark.parametrize(("pairs", "right", "of_a_coin"), [(100, 57, True), (100, 61, False)])
def test_a_judge_who_is_not_told_from_a_coin_decides_nothing(tmp_path, pages, pairs, right, of_a_coin):
    """Six verdicts of Table 2 went by a reward model that put the chosen response of 57 in 100 pairs first."""
    stages = finish_all(paper_stages(tmp_path))
    low, high = wilson(right / pairs, pairs)
    own = {"pairs": pairs, "accuracy": right / pairs, "ci95": [low, high]}
    for place in stages.configs:
        if place.kind == "winrate":
            change(stages.folder_of(place), lambda found: found["reward_models"]["judge"].update(data_accuracy=own))
    page = write_paper(stages, {})
    head = page.read_text(encoding="utf-8").partition("</header>")[0]
    said = (
        f"Nothing tells the reward model of size large from a coin: of {pairs} pairs of the data it puts the chosen "
        f"response first in {100 * right / pairs:.1f}% ({100 * low:.1f}% to {100 * high:.1f}%)."
    )
    assert (f'<p class="notice">The toy world: {said} So no verdict goes by it.</p>' in head) == of_a_coin
    by_judge = [number for number in win_rate_table(read_outcomes(stages), "world", "judge").numbers if number.verdict]
    words_of = {number.verdict for number in by_judge}
    assert (words_of == {"cannot tell"}) == of_a_coin and len(by_judge) == 6
    rewards = next(figure for figure in paper_figures(read_outcomes(stages)) if figure.name == "figure-11")
    assert ({claim.verdict.word for claim in rewards.claims} == {"cannot tell"}) == of_a_coin
    if of_a_coin:  # and the numbers stand there as before
        assert said in Page(page).text and words(page)["agrees"] < words(pages["all"])["agrees"]
    else:
        assert words(page) == words(pages["all"])


def test_judges_who_tell_the_same_winners_are_no_notice(tmp_path, monkeypatch):
    outcomes = read_outcomes(paper_stages(tmp_path))
    told = {("judge", "small", "sft"): (0.6, 0.7), ("truth", "small", "sft"): (0.52, 0.56)}
    for intervals in ({}, told, {("truth", "small", "sft"): (0.2, 0.3)}):
        monkeypatch.setattr(Outcomes, "contest", decided(intervals))
        assert disagreements(outcomes) == []


def test_more_contradictions_than_a_notice_holds_are_counted(tmp_path, monkeypatch):
    outcomes = read_outcomes(
        paper_stages(
            tmp_path, data={"world": {"title": "The toy world", "evaluation": {"prompts": {"source": "toy-test"}}}}
        )
    )
    places = [(size, against) for size in ("small", "large") for against in ("sft", "dpo", "ppo")]
    by_both = {("judge", *place): (0.6, 0.7) for place in places} | {("truth", *place): (0.1, 0.2) for place in places}
    monkeypatch.setattr(Outcomes, "contest", decided(by_both))
    (said,) = disagreements(outcomes)
    assert said.startswith("The first judge is the reward model of size large, which tells a winner in 6 of the 6")
    assert said.count("ORPO against") == 3 and said.endswith("So it is in 3 more.")


def test_what_was_not_run_says_so_once_in_its_cell(pages):
    for page in pages.values():
        cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page.read_text(encoding="utf-8"), re.DOTALL)
        assert max(cell.count("not run") for cell in cells) == 1
    assert 'class="verdict not-run" title="not begun">not run</span>' in pages["none"].read_text(encoding="utf-8")


def test_every_seed_is_on_the_line_of_its_contest(finished):
    outcomes = read_outcomes(finished)
    view = table_view(win_rate_table(outcomes, "world", "judge"), [], outcomes.page_folder)
    for row, size in zip(view.rows, ("small", "large"), strict=True):
        for cell, against in zip(row[1:], ("sft", "dpo", "ppo"), strict=True):
            contest = outcomes.contest("world", size, against)
            assert cell.plot is not None and contest.overall is not None
            assert cell.plot.seeds == tuple(100 * each.win_rate for each in contest.seeds.values())
            assert cell.plot.low <= min(100 * contest.overall.mean, 100) <= cell.plot.high
            assert [link.label for link in cell.links] == ["seed 1", "seed 2", "seed 3"]
            assert all("orpo-ray" in link.command for link in cell.links)


def test_numbers_that_do_not_lie_as_cells_do_are_not_drawn_as_theirs(finished):
    outcomes = read_outcomes(finished)
    table = win_rate_table(outcomes, "world", "judge")
    turned = replace(table, rows=table.rows[::-1])
    view = table_view(turned, [], outcomes.page_folder)
    assert not view.has_plots
    assert lines_of(view)[0].what == "large: vs SFT"


def test_a_model_nearly_of_the_papers_size_has_a_share_and_no_one_in_one():
    model = Model("a", "a", 100_000_000, "OPT-125M", 0.8)
    assert "at most 80% of the size" in Scale([model], [], (1,), "").notices[0]
    assert "at most 1/3 of the size" in Scale([replace(model, share=0.3)], [], (1,), "").notices[0]


def test_a_plot_stays_within_its_line_and_needs_an_interval():
    number = Number("win_rate", size="s", against="sft", seed=ALL, value=0.99, low=0.9, high=1.2, paper=0.84)
    plot = plot_of([number, replace(number, seed="1", value=1.0)])
    assert plot is not None
    assert (plot.low, plot.high, plot.seeds, plot.paper) == (90.0, 100.0, (100.0,), 84.0)
    assert plot_of([replace(number, low=None)]) is None
    assert plot_of([]) is None


def test_what_has_failed_and_what_waits_for_it_say_why(pages):
    page = pages["some"]
    text = " ".join(Page(page).text.split())
    assert WHY in text and "<b>at</b>" not in page.read_text(encoding="utf-8"), "escaped"
    assert f"failed: {WHY}" in text
    assert "world-large-ppo-1, which it needs, has failed" in text
    assert re.search(r"\d+ of 32 stages had finished when this page was drawn; 1 had failed", text)
    assert "had finished when this page was drawn" not in Page(pages["all"]).text


def test_nothing_run_shows_no_number_of_ours(pages):
    page = Page(pages["none"])
    assert "Table 2" in page.text and "not begun" in page.text
    assert "beats" not in page.text and "loses to" not in page.text
    assert 'class="dots"' not in pages["none"].read_text(encoding="utf-8")
    assert "0 of 32" in page.text


def test_a_toy_is_not_taken_for_a_replication(finished, pages):
    for page in pages.values():
        head = page.read_text(encoding="utf-8").partition("</header>")[0]
        assert "Not at the paper&#39;s scale: models of 1.0M and 1.0M parameters in place of OPT-125M and" in head
        assert "at most 1/122 of the size" in head
        assert "invented world of requests (toy) in place of Anthropic HH-RLHF" in head
    scale = scale_of(read_outcomes(finished))
    assert [model.parameters for model in scale.models] == [1_028_736] * 2
    assert scale.models[0].share == pytest.approx(0.00823, abs=1e-5)
    assert scale.data[0].pairs == 6000
    large = replace(scale, models=[replace(model, share=1.0) for model in scale.models], data=[])
    assert large.notices == []


def test_parameters_are_counted_of_what_is_here_alone(tmp_path):
    assert parameters(ModelConfig(name_or_path="toy")) == 1_028_736
    configs = Path(__file__).parents[2] / "configs/models"
    assert parameters(ModelConfig(name_or_path=str(configs / "opt-125m"), init="random")) == 125_239_296
    assert parameters(ModelConfig(name_or_path="no/such-model")) is None
    (tmp_path / "config.json").write_text('{"model_type": "no-such"}')
    assert parameters(ModelConfig(name_or_path=str(tmp_path))) is None
    assert [short_count(n) for n in (None, 1_028_736, 125_239_296, 999_900_000, 1_315_758_080)] == [
        "–", "1.0M", "125M", "1.0B", "1.3B",
    ]  # fmt: skip


def test_groups_of_which_nothing_was_run_are_a_line_each():
    ran = Line("s: ORPO beats SFT", "70.0", (), "agrees", "why", "table-2")
    not_run = replace(ran, ours="", verdict="not run", why="not begun")
    groups = grouped([("A", [ran, not_run]), ("B", [not_run, not_run]), ("C", [])])
    assert [title for title, _ in groups] == ["A", "Not run"]
    assert groups[0][1] == [ran, not_run]
    assert groups[1][1] == [replace(not_run, what="B", beside=("2 numbers",))]
    assert tally([not_run, ran, ran]) == [("agrees", 2), ("not run", 1)]


def test_the_page_is_the_same_whenever_it_is_made(finished, pages):
    before = {file.name: file.read_bytes() for file in pages["all"].parent.iterdir()}
    write_paper(finished, {})
    assert {file.name: file.read_bytes() for file in pages["all"].parent.iterdir()} == before


@pytest.mark.parametrize("state", ["all", "some", "none"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_phone_and_desk(browser, pages, state, width, dark):
    browser.open(pages[state], width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert browser.complaints() == []
    # All of Table 2 at once: its cells need no scrolling, not on a phone either.
    assert browser.run("(t => t.scrollWidth <= t.clientWidth)(document.querySelector('#table-2 .scroll'))")
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 24, 29)" if dark else "rgb(246, 247, 249)")
