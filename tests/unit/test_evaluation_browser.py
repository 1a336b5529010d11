"""An evaluation's page in a real browser: it fits, runs nothing but its own script, and its responses can be read."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chromium import Chromium
from evaluation_run import NASTY, add_judges, change, make_evaluation, numbers

from orpo_ray.report import write_evaluation_report
from orpo_ray.report.evaluation_browser import entries
from orpo_ray.report.evaluation_folder import read_evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("evaluation") / "toy-winrate")


@pytest.fixture(scope="module")
def page(run) -> Path:
    return write_evaluation_report(run)


def set_control(browser: Chromium, **values) -> None:
    """Set controls of the responses' browser as a reader does; models and reward models by name."""
    for name, value in values.items():
        event = "input" if name == "text" else "change"
        browser.run(f"""(() => {{
            const control = document.getElementById("browser-{name}");
            const option = [...(control.options ?? [])].find((each) => each.text === {json.dumps(value)});
            control.value = option ? option.value : {json.dumps(value)};
            control.dispatchEvent(new Event("{event}", {{bubbles: true}}));
        }})()""")
    if "text" in values:
        browser.run("new Promise((done) => setTimeout(done, 200))")


def listed(browser: Chromium) -> list[int]:
    return [int(text.split()[1]) for text in content(browser, "#browser-list .margin")]


def listed_on_all_pages(browser: Chromium) -> list[int]:
    found = listed(browser)
    while not browser.run("document.getElementById('browser-next').disabled"):
        browser.run("document.getElementById('browser-next').click()")
        found += listed(browser)
    return found


def content(browser: Chromium, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)")


def margins(run: Path, a: str, b: str, judge: str, turn: int) -> np.ndarray:
    rows = pq.read_table(run / "results.parquet").to_pylist()
    found = {(r["prompt"], r["model"]): r[f"reward:{judge}"] for r in rows if r["round"] == turn}
    value = lambda i, m: np.nan if found[i, m] is None else found[i, m]  # noqa: E731
    return np.array([value(i, a) - value(i, b) for i in range(60)])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_phone_and_desk_and_reports_no_error(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    assert browser.complaints() == []
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.run("new Promise((done) => setTimeout(done, 50))")  # what opens fills itself first
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert browser.complaints() == []
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 24, 29)" if dark else "rgb(246, 247, 249)")
    assert browser.run("[...document.querySelectorAll('select, input')].every((each) => each.labels.length === 1)")


def test_nine_models_with_long_names_fit_a_phone(browser, tmp_path):
    models = ("sft", "orpo", "kto-pair-with-a-long-name-indeed", "a" * 40, "e", "f", "g", "h", "i")
    run = make_evaluation(tmp_path / "run", models=models, prompts=12, rounds=1)
    change(run, lambda content: content["notes"].append("n" * 200))
    browser.open(write_evaluation_report(run), 390)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints() == []
    swatches = "document.querySelector('.matrix:not(.of-orpo)').querySelectorAll('.swatch')"
    drawn = browser.run(f"[...{swatches}].map((each) => getComputedStyle(each).backgroundColor)")
    assert len(drawn) == 9 and len(set(drawn)) == 8, "the ninth model takes the first colour again"
    torn = browser.run("""[...document.querySelectorAll('.rankings b')].filter((each) => {
        const range = document.createRange();
        range.selectNodeContents(each.lastChild);
        const [name, swatch] = [range.getClientRects()[0], each.firstChild.getBoundingClientRect()];
        return swatch.bottom <= name.top || swatch.top >= name.bottom || swatch.right > name.left;
    }).map((each) => each.textContent)""")
    assert torn == [], "a colour stands on another line than its name"
    assert browser.run("(dt => dt.offsetWidth === dt.parentNode.clientWidth)(document.querySelector('.rankings dt'))")


def test_what_a_model_wrote_does_not_run_and_is_shown_as_it_is(browser, page):
    browser.open(page)
    assert browser.run("[document.scripts.length, document.images.length]") == [2, 0]
    browser.run("document.querySelectorAll('#browser-list details').forEach((each) => { each.open = true; })")
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run("[document.scripts.length, document.images.length]") == [2, 0]
    shown = content(browser, "#browser-list > li > .answers > div:first-child p")
    assert shown[:7] == [*(text.strip("\ufeff \u2028\u2029") for text in NASTY[:6]), "(empty)"]
    own = content(browser, "#browser-list > li > details > .answers > div:first-child p")
    assert own[:2] == NASTY[:2]
    assert browser.complaints() == []
    # The policy is in force: it refuses a script that somehow got in.
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert browser.run("window.ran") is None
    assert "Content Security Policy" in "".join(browser.complaints())


@pytest.mark.parametrize(("judge", "turn"), [("truth", 0), ("opt-1.3b", 2)])
def test_responses_are_ordered_by_margin(browser, run, page, judge, turn):
    browser.open(page)
    set_control(browser, a="dpo", b="sft", judge=judge, round=str(turn + 1))
    margin = margins(run, "dpo", "sft", judge, turn)
    assert np.isnan(margin[9]) and np.isfinite(np.delete(margin, 9)).all()
    keys = {"dpo ahead by most": -margin, "sft ahead by most": margin, "closest first": np.abs(margin)}
    for order, key in keys.items():
        set_control(browser, order=order)
        expected = np.argsort(key, kind="stable").tolist()  # NaN last
        assert listed_on_all_pages(browser) == expected
    set_control(browser, order="as in the data")
    assert listed_on_all_pages(browser) == list(range(60))
    wins, losses = int((margin > 1e-4).sum()), int((margin < -1e-4).sum())
    (status,) = content(browser, "#browser-status")
    assert status == (
        f"60 of 60 prompts: dpo wins {wins}, {59 - wins - losses} ties, sft wins {losses}, 1 without both rewards."
    ).replace(" 1 ties", " 1 tie")


def test_a_verdict_says_of_which_turn_it_is(browser, tmp_path):
    """Counted from 1; nothing where there is one turn alone."""
    folder = add_judges(make_evaluation(tmp_path / "e"))
    table = pq.read_table(folder / "verdicts.parquet")
    for turns in ((1,), (1, 2)):
        column = table.column_names.index("turn")
        both = [table.set_column(column, "turn", pa.array([turn] * len(table), pa.int64())) for turn in turns]
        pq.write_table(pa.concat_tables(both), folder / "verdicts.parquet")
        browser.open(write_evaluation_report(folder))
        set_control(browser, a="orpo", b="sft", judge="rater")
        browser.run("document.querySelectorAll('#browser-list details').forEach((each) => { each.open = true; })")
        browser.run("new Promise((done) => setTimeout(done, 50))")
        rated = [text for text in content(browser, "#browser-list details .margin") if "rated" in text]
        told = {found for text in rated for found in re.findall(r"turn \d", text)}
        assert rated and told == ({"turn 1", "turn 2"} if len(turns) > 1 else set())


def test_verdicts_are_counted_as_the_numbers_count_them(browser, tmp_path):
    """A comparison of which one order could not be read has no winner on the page either."""
    folder = add_judges(make_evaluation(tmp_path / "e"))
    [pair] = [
        each for each in numbers(folder)["pairs"]
        if (each["model"], each["against"], each["reward_model"]) == ("orpo", "sft", "labels")
    ]  # fmt: skip
    assert pair["wins"] + pair["ties"] + pair["losses"] < 180
    browser.open(write_evaluation_report(folder))
    counts = np.zeros(4, int)
    for turn in "123":
        set_control(browser, a="orpo", b="sft", judge="labels", round=turn)
        (status,) = content(browser, "#browser-status")
        told = re.fullmatch(
            r"60 of 60 prompts: orpo wins (\d+), (\d+) ties?, sft wins (\d+)(?:, (\d+) without a verdict)?\.", status
        )
        counts += [int(count or 0) for count in told.groups()]
    assert counts.tolist()[:3] == [pair["wins"], pair["ties"], pair["losses"]] and counts.sum() == 180


def test_each_response_shows_its_reward_the_winner_and_whether_it_was_cut(browser, run, page):
    browser.open(page)
    set_control(browser, a="orpo", b="sft", judge="opt-1.3b", round="2")
    rows = pq.read_table(run / "results.parquet").to_pylist()
    found = {(r["prompt"], r["model"]): r for r in rows if r["round"] == 1}
    margin = margins(run, "orpo", "sft", "opt-1.3b", 1)
    heads = content(browser, "#browser-list > li > .answers h4")
    assert len(heads) == 50
    cut = 0
    for i, head in enumerate(heads):
        model, prompt = ("orpo", "sft")[i % 2], i // 2
        row = found[prompt, model]
        value = "not scored" if row["reward:opt-1.3b"] is None else f"{row['reward:opt-1.3b']:.2f}".replace("-", "−")
        winner = "winner" if (margin[prompt] > 0) == (model == "orpo") and not np.isnan(margin[prompt]) else ""
        cut += row["ended"] == "length"
        tokens = f"{row['tokens']} token{'' if row['tokens'] == 1 else 's'}"
        assert head == f"{model}{value}{winner}{tokens}{'cut' if row['ended'] == 'length' else ''}"
    assert cut


def test_the_filter_finds_prompts_and_the_two_responses_shown(browser, page):
    browser.open(page)
    set_control(browser, a="orpo", b="dpo", round="2")
    status = lambda: content(browser, "#browser-status")[0].split(":")[0]  # noqa: E731
    set_control(browser, text="  DPO Says 17 ")
    assert (listed(browser), status()) == ([17], "1 of 60 prompts")
    set_control(browser, text="sft says 17")
    assert (listed(browser), status()) == ([], "0 of 60 prompts.")
    assert content(browser, "#browser-page") == ["none"]
    set_control(browser, text="question 4")
    assert (listed(browser), status()) == ([4, *range(40, 50)], "11 of 60 prompts")
    set_control(browser, text="")
    assert status() == "60 of 60 prompts"


def test_pages_turn_by_keyboard_and_focus_is_not_lost(browser, page):
    browser.open(page, 390)
    focused = lambda: browser.run("document.activeElement.id")  # noqa: E731
    browser.run("document.getElementById('browser-next').focus()")
    for first in (25, 50):
        browser.press("Enter", 13)
        assert listed(browser) == list(range(first, min(first + 25, 60)))
        assert content(browser, "#browser-page") == [f"{first + 1}–{min(first + 25, 60)} of 60"]
    assert focused() == "browser-previous", "there is no next page"
    for first in (25, 0):
        browser.press("Enter", 13)
        assert listed(browser)[0] == first
    assert focused() == "browser-next"
    browser.run("document.getElementById('browser-order').focus()")
    browser.press("ArrowDown", 40)
    assert browser.run("document.getElementById('browser-order').value") == "a"
    assert listed(browser) != list(range(25))


def test_the_same_model_twice_swaps_the_two(browser, page):
    browser.open(page)
    chosen = "['a', 'b'].map((name) => document.getElementById(`browser-${name}`).selectedOptions[0].text)"
    first, second = browser.run(chosen)
    assert first != second
    set_control(browser, a=second)
    assert browser.run(chosen) == [second, first]
    set_control(browser, b=second)
    assert browser.run(chosen) == [first, second]


def test_without_scripts_the_first_prompts_are_there(browser, page):
    browser.open(page, scripts=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)  # to look, not to run the page again
    assert browser.run("document.querySelectorAll('#browser-list > li').length") == 10
    assert "Without JavaScript these are the first 10 prompts" in browser.run("document.body.innerText")
    assert browser.run("document.getElementById('browser-controls').offsetHeight") == 0
    assert content(browser, "#browser-list .prompt")[0] == f"Question 0: what is it? {NASTY[0]}"
    assert content(browser, "#browser-list > li:first-child p")[1] == NASTY[0]


def test_a_page_of_one_model_shows_it_alone(browser, tmp_path):
    run = make_evaluation(tmp_path / "run", models=("orpo",), prompts=8, rounds=1)
    change(run, lambda content: content.update(agreement=[]))
    browser.open(write_evaluation_report(run), 390)
    assert browser.complaints() == []
    assert content(browser, "#browser-status") == ["8 of 8 prompts."]
    assert browser.run("document.querySelectorAll('#browser-list > li > .answers > div').length") == 8
    assert browser.run("document.getElementById('browser-b').offsetHeight") == 0


def test_a_response_that_was_not_generated_is_none_on_the_page(tmp_path):
    folder = make_evaluation(tmp_path / "run")
    path = folder / "results.parquet"
    rows = pq.read_table(path).to_pylist()
    lost = next(row for row in rows if row["model"] == "sft" and row["prompt"] == 7 and row["round"] == 0)
    lost |= {"text": None, "tokens": None, "ended": "too long"} | {k: None for k in lost if k.startswith("reward:")}
    pq.write_table(pa.Table.from_pylist(rows), path)
    evaluation = read_evaluation(folder)
    entry = next(entry for entry in entries(evaluation) if entry["prompt"] == 7)
    assert entry["responses"][list(evaluation.numbers.models).index("sft")][0] is None
    assert "not generated" in write_evaluation_report(folder).read_text()
