"""A stranger's folder makes pages of texts alone: none of them becomes markup, a script, a load or a way elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from chromium import Chromium
from evaluation_run import make_evaluation
from fuzzing import FACTOR
from paper_folders import finish, paper_stages
from test_report import make_run
from test_sweep_results import STEPS, config, write_run

import orpo_ray
from orpo_ray.paper.page import write_paper
from orpo_ray.report import write_comparison, write_evaluation_report, write_report, write_sweep_report
from orpo_ray.report.figures import svg
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.points import searcher_of
from orpo_ray.tuning.results import summary, write_results

PACKAGE = Path(orpo_ray.__file__).parent
TEMPLATES = PACKAGE / "report" / "templates"
ELSEWHERE = "\"><meta http-equiv=refresh content='0;url=about:blank'>"
HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", ELSEWHERE, "' onmouseover='alert(1)",
    "\" autofocus onfocus=\"alert(1)", "</title><svg onload=alert(1)>",
    "$\\undefined{$", " xmlns=\"", "<!--<script>", "</script><script>alert(1)</script>", "]]>", "{{ 7 * 7 }}",
    "</style><script>alert(1)</script>", "</text></svg><script>alert(1)</script>",
    "<base href='https://elsewhere.invalid/'><form action='https://elsewhere.invalid/'><button autofocus>go</button>",
]  # fmt: skip


def hostile(value: Any, text: str) -> Any:
    """`value` with every text in it made hostile."""
    if isinstance(value, dict):
        return {key: hostile(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, text) for inner in value]
    return f"{value}{text}" if isinstance(value, str) else value


def rename(table: pa.Table, names: dict[str, str]) -> pa.Table:
    return table.rename_columns([names.get(name, name) for name in table.column_names])


def page_of_a_run(folder: Path, text: str) -> Path:
    run = make_run(folder, steps=4, name=text, model={"name_or_path": text, "dtype": text}, note=text)
    (run / "metrics.jsonl").open("a").write(json.dumps({"step": 5, text: text, "eval_loss": text}) + "\n")
    (run / "events.jsonl").write_text(json.dumps({"time": text, "event": text}) + "\n")
    (run / "summary.json").write_text(json.dumps(hostile(json.loads((run / "summary.json").read_text()), text)))
    return write_report(run)


def page_of_an_evaluation(folder: Path, text: str) -> Path:
    make_evaluation(folder, ("sft", "orpo"), prompts=9, rounds=1)
    raw = (folder / "winrates.json").read_text()
    for label in ("sft", "truth", "opt-1.3b"):  # labels are keys, too
        raw = raw.replace(json.dumps(label), json.dumps(label + text))
    models = hostile(json.loads(raw)["models"], text)
    (folder / "winrates.json").write_text(json.dumps({**json.loads(raw), "models": models, "name": text}))
    results = pq.read_table(folder / "results.parquet")
    results = rename(results, {name: name + text for name in results.column_names if name.startswith("reward:")})
    asked = [model + text * (model == "sft") for model in results.column("model").to_pylist()]
    results = results.set_column(results.column_names.index("model"), "model", pa.array(asked))
    pq.write_table(results, folder / "results.parquet")
    return write_evaluation_report(folder, {text: make_run(folder / "run", steps=4)})


def page_of_a_sweep(folder: Path, text: str) -> Path:
    """Whose metrics, keys, choices and reasons are hostile. λ keeps its name, for the figure that is of it alone."""
    own = config(folder, "scheduler=none", "trade_off={eval_logps_chosen: max}")
    sweep, searcher = SweepFolder(own), searcher_of(own)
    sweep.open_for(own)
    ledger = Ledger(own, sweep, STEPS)
    for index in range(own.number_of_trials):
        write_run(sweep.trial(index).path, searcher.settings(index, []), until=16 if index == 5 else STEPS)
        if index == 5:
            sweep.fail(index, f"crashed: {text}")
        ledger.begin(searcher.settings(index, []))
    write_results(sweep, ledger)
    found = summary(own, ledger, STEPS, ledger.ranking()[0], []) | {"seconds": 1.0, "finished": text, "name": text}
    names = {key: key + text for key in ("optim.lr", "optim.schedule", own.metric, *own.trade_off)}
    found |= {
        key: {names.get(name, name): value for name, value in found[key].items()} for key in ("space", "trade_off")
    }
    found["space"][names["optim.schedule"]] = f"choice({json.dumps('cosine' + text)}, linear)"
    for trial in found["trials"]:
        settings = {key: value + text if value == "cosine" else value for key, value in trial["settings"].items()}
        trial["settings"] = {names.get(key, key): value for key, value in settings.items()}
    sweep.summary.write_text(json.dumps(found | {"metric": names[own.metric]}))
    pq.write_table(rename(pq.read_table(sweep.results_parquet), names), sweep.results_parquet)
    sweep.config.write_text(yaml.safe_dump(hostile(yaml.safe_load(sweep.config.read_text()), text)))
    return write_sweep_report(sweep.path)


def page_of_runs(folder: Path, text: str) -> Path:
    """Whose names, which are labels, are hostile too."""
    name = text.replace("/", "")[:60]
    runs = [make_run(folder / f"{name}{i}", steps=2, model={"name_or_path": f"{text}{i}"}) for i in range(2)]
    for i, run in enumerate(runs):
        settings = hostile(yaml.safe_load((run / "config.yaml").read_text()), f"{text}{i}")
        settings["train"] = {text: i, "keep_by": f"eval_loss{text}"}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return write_comparison(runs)


def page_of_a_paper(folder: Path, text: str) -> Path:
    """Whose data set, base model and failures are hostile."""
    world = {"paper": "hh", "title": text, "evaluation": {"prompts": {"source": "toy-test"}}}
    sizes = {"small": {"base": text, "paper": "125M"}}
    stages = paper_stages(
        folder, seeds=[1, 2], sizes=sizes, data={"world": world}, judge="small",
        figures={"data": "world", "size": "small"},
    )  # fmt: skip
    finish(stages, *(place for place in stages.configs if place.seed in (None, 1)))
    return write_paper(stages, {"world-small-ppo-2": text})


PAGES: dict[str, Callable[[Path, str], Path]] = {
    "run.html": page_of_a_run, "evaluation.html": page_of_an_evaluation, "sweep.html": page_of_a_sweep,
    "comparison.html": page_of_runs, "paper.html": page_of_a_paper,
}  # fmt: skip
"""By template: draws a page all of whose texts are hostile."""


def together(texts: list[str]) -> list[str]:
    """Four texts in one: a way out of where a text stands is one wherever in the text it is. `make test-all` tries each
    alone."""
    groups = len(texts) if FACTOR >= 1 else -(-len(texts) // 4)
    return ["".join(texts[first::groups]) for first in range(groups)]


TRIED = {
    "run.html": together(HOSTILE),
    "evaluation.html": together(HOSTILE[:6]),
    "sweep.html": together(HOSTILE[:8]),
    "comparison.html": together(HOSTILE),
    "paper.html": together(HOSTILE),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By template and text."""
    place = tmp_path_factory.mktemp("pages")
    return {
        (kind, text): draw(place / f"{kind}-{i}", text)
        for kind, draw in PAGES.items() for i, text in enumerate(TRIED[kind])
    }  # fmt: skip


OWN_LINK = re.compile(r"#[\w-]+|[\w-]+\.(csv|md|tex|svg|png)|\.\./stages/[\w-]+/(report\.html)?")
"""What the page of a paper links to: places on it, its files, its stages."""


class Elements(HTMLParser):
    """The elements of a page and the policy that it states."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def brought_in(self) -> list[tuple[str, dict[str, str | None]]]:
        """What no template and no figure has."""
        return [
            (tag, attributes)
            for tag, attributes in self.found
            if tag in {"img", "iframe", "object", "base", "form"}
            or (tag == "a" and not OWN_LINK.fullmatch(attributes.get("href") or ""))
            or any(name.startswith("on") or name == "autofocus" for name in attributes)
            or attributes.get("http-equiv") == "refresh"
        ]

    @property
    def policies(self) -> list[str | None]:
        return [a.get("content") for _, a in self.found if a.get("http-equiv") == "Content-Security-Policy"]


def test_every_kind_of_page_is_tried() -> None:
    """Whoever adds a template that is a page adds to `PAGES` how a stranger's folder gets there."""
    templates = {file.name: file.read_text(encoding="utf-8") for file in TEMPLATES.glob("*.html")}
    included = {name for text in templates.values() for name in re.findall(r'{% include "(.+?)" %}', text)}
    whole = {name for name, text in templates.items() if "<html" in text}
    assert whole == {"base.html"}, "the one place of the policy"
    assert set(templates) - included - whole == set(PAGES)
    assert all(templates[name].startswith('{% extends "base.html" %}') for name in PAGES)
    assert not [name for name, text in templates.items() if re.search(r"\|\s*safe\b|autoescape", text)]


def test_markup_is_made_in_few_places() -> None:
    """Of drawings, of the browser's script, and of JSON: who makes it elsewhere answers for what is in it."""
    sources = {file.relative_to(PACKAGE).as_posix(): file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")}
    assert {name for name, text in sources.items() if "Markup(" in text} == {
        "report/figures.py", "report/page.py", "report/evaluation_browser.py",
    }  # fmt: skip
    written = re.compile(r"(?<!`)<(!doctype|html|body|script|div|table)\b", re.IGNORECASE)
    assert [name for name, text in sources.items() if written.search(text)] == []


@pytest.mark.parametrize("kind", PAGES)
def test_no_text_of_a_folder_becomes_markup(kind: str, pages: dict[tuple[str, str], Path]) -> None:
    for text in TRIED[kind]:
        page = Elements(pages[kind, text])
        assert page.brought_in == [], text
        scripts = [attributes for tag, attributes in page.found if tag == "script"]
        assert len([each for each in scripts if each.get("type") != "application/json"]) == (kind == "evaluation.html")


def test_all_pages_state_the_same_policy(pages: dict[tuple[str, str], Path]) -> None:
    (policy,) = {tuple(Elements(page).policies) for page in pages.values()}
    assert len(policy) == 1 and policy[0] is not None
    said = dict(part.strip().split(maxsplit=1) for part in policy[0].split(";"))
    assert said["script-src"].startswith("'sha256-") and " " not in said["script-src"]
    assert {name: value for name, value in said.items() if name != "script-src"} == {
        "default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip
    for page in pages.values():
        head = page.read_text(encoding="utf-8").partition("Content-Security-Policy")[0]
        assert not any(text in head for text in HOSTILE), "what comes before a policy is not bound by it"


@pytest.mark.parametrize("text", ["a$\\undefined{$", 'a xmlns="b" #20262e', 'url(#x) id="y" href="#z', "<b> & --"])
def test_a_figure_shows_a_label_as_it_is(text: str, tmp_path: Path) -> None:
    """Neither is it a formula, nor is it rewritten as the tags around it are."""

    def draw(axes: Any) -> None:
        axes.plot([1e-6, 1], [0, 1], label=text)
        axes.set(xscale="log", ylabel=text, title=text)
        axes.set_yticks([0, 1], [text, "end"])
        axes.text(0.5, 0.5, text)
        axes.legend()

    (tmp_path / "page.html").write_text(svg(draw, text, (4, 3)), encoding="utf-8")
    figure = Elements(tmp_path / "page.html")
    assert figure.texts.count(text) == 5
    assert figure.found[0][1]["aria-label"] == text
    assert not any("$" in each for each in figure.texts if text not in each), "powers of ten are drawn as such"


BROUGHT_IN = f"""(element) => [...element.attributes].some((each) => each.name.startsWith("on"))
    || ["IMG", "IFRAME", "OBJECT", "BASE", "FORM"].includes(element.tagName)
    || element.tagName === "A"
        && !new RegExp({json.dumps(f"^({OWN_LINK.pattern})$")}).test(element.getAttribute("href"))"""


@pytest.mark.parametrize("kind", PAGES)
def test_no_text_of_a_folder_becomes_script(kind: str, pages: dict[tuple[str, str], Path], browser: Chromium) -> None:
    """In a real browser, which stays where it is."""
    for text in TRIED[kind]:
        page = pages[kind, text]
        browser.open(page)  # a dialogue fails the test
        assert browser.run("new Promise((done) => setTimeout(() => done(location.href), 50))") == page.as_uri(), text
        assert browser.run("[...document.scripts].filter(s => s.type != 'application/json').length") == (
            kind == "evaluation.html"
        )
        assert browser.run(f"[...document.querySelectorAll('*')].filter({BROUGHT_IN}).length") == 0, text
        assert browser.complaints() == [], page


def test_the_policy_holds_where_escaping_would_not(tmp_path: Path, browser: Chromium) -> None:
    """A script, an image, a base and a form that somehow got into a page: none of them does anything."""
    page = page_of_a_run(tmp_path / "run", "plain")
    beacon = "https://elsewhere.invalid/"
    brought = (
        f"<script>window.ran = 1</script><img src='{beacon}' onerror='window.ran = 2'><base href='{beacon}'>"
        "<form action='other.html'><button>go</button></form><a href='#there'>there</a>"
    )
    page.write_text(page.read_text(encoding="utf-8").replace("<footer>", f"{brought}<footer>"), encoding="utf-8")
    browser.open(page)
    browser.run("document.forms[0].submit()")
    assert browser.run("new Promise((done) => setTimeout(() => done(location.href), 100))") == page.as_uri()
    assert browser.run("window.ran") is None
    assert browser.run("document.querySelector('a').href").startswith(page.as_uri()), "no base counts"
    refused = " ".join(browser.complaints())
    assert all(name in refused for name in ("script-src", "img-src", "base-uri", "form-action"))
