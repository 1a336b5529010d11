"""The page of an evaluation: it says what the folder says, and is safe with any text."""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_run import change, make_evaluation, numbers
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_report import Page, headings, make_run

from orpo_ray.errors import UserError
from orpo_ray.report import evaluation_browser, write_evaluation_report
from orpo_ray.report.evaluation_answer import comparisons, rankings, trained_by_orpo
from orpo_ray.report.evaluation_browser import entries, to_json
from orpo_ray.report.evaluation_figures import MODELS, _bars, _densities, colours, draw_forest, rewards
from orpo_ray.report.evaluation_folder import Numbers, read_evaluation
from orpo_ray.report.evaluation_tables import training
from orpo_ray.report.runs import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("evaluation") / "toy-winrate")


@pytest.fixture(scope="module")
def page(run) -> Path:
    return write_evaluation_report(run)


def tables(path: Path) -> list[list[list[str]]]:
    """The text of every cell: tables of rows of cells."""
    source = path.read_text(encoding="utf-8")
    return [
        [
            [html.unescape(re.sub(r"<[^>]*>", " ", cell)).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            for row in re.findall(r"<tr[ >].*?</tr>", table, re.DOTALL)
        ]
        for table in re.findall(r"<table.*?</table>", source, re.DOTALL)
    ]


def visible(path: Path) -> str:
    """The page's text without its styles, its script and the responses that the script shows."""
    return html.unescape(
        re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    )


def share(value: float) -> str:
    return f"{100 * value:.1f}%"


def test_the_headline_is_the_best_rated_model_against_each_other_one(run, page):
    said = numbers(run)
    best = said["ratings"]["truth"][0]["model"]
    sentences = [html.unescape(s) for s in re.findall(r'<p class="headline">(.*?)</p>', page.read_text())]
    assert [s.split(":")[0] for s in sentences] == [f"{best} over {r['model']}" for r in said["ratings"]["truth"][1:]]
    for sentence, rated in zip(sentences, said["ratings"]["truth"][1:], strict=True):
        pair = next(
            p for p in said["pairs"]
            if (p["model"], p["against"], p["reward_model"]) == (best, rated["model"], "truth")
        )  # fmt: skip
        low, high = pair["ci95"]
        holm = f"{pair['p_holm']:.2f}" if pair["p_holm"] >= 0.1 else "< 0.0001"
        verdict = "above" if pair["p_holm"] < 0.05 else "not told apart from"
        rate, controlled = share(pair["win_rate"]), share(pair["length_controlled"])
        even_low, even_high = pair["length_controlled_ci95"]
        further = ", at equal lengths too" if verdict == "above" and even_low > 0.5 else ""
        assert sentence.replace("\u00a0", " ") == (
            f"{best} over {rated['model']}: win-rate {rate}, 95% interval {share(low)} to {share(high)} "
            f"(p {holm}, Holm), length-controlled {controlled} ({share(even_low)} to {share(even_high)}): {verdict} "
            f"an even 50%{further}."
        )


NO = "not told apart from an even 50%"


@pytest.mark.parametrize(
    ("rate", "holm", "even", "interval", "words"),
    [
        (0.606, 0.0003, 0.56, (0.52, 0.6), "(p\u00a00.0003, Holm), length-controlled 56.0% (52.0% to 60.0%): above an "
         "even 50%, at equal lengths too."),
        (0.606, 0.0003, 0.52, (0.49, 0.55), "above an even 50%, but not told apart from it at equal lengths."),
        (0.56, 0.01, 0.44, (0.41, 0.47), "44.0% (41.0% to 47.0%): preferred more often, but less often at equal "
         "lengths."),
        (0.56, 0.01, 0.49, (0.46, 0.52), ": preferred more often, but not so at equal lengths."),
        (0.394, 1e-9, 0.55, (0.51, 0.6), "(p\u00a0&lt; 0.0001, Holm), length-controlled 55.0% (51.0% to 60.0%): "
         "preferred less often, but more often at equal lengths."),
        (0.394, 1e-9, 0.45, (0.41, 0.49), "below an even 50%, at equal lengths too."),
        (0.606, 0.0501, 0.51, (0.47, 0.55), f"(p\u00a00.0501, Holm), length-controlled 51.0% (47.0% to 55.0%): {NO}."),
        (0.506, 0.5, 0.45, (0.41, 0.49), f": {NO}; at equal lengths its interval lies below that."),
        (0.606, None, 0.51, (0.47, 0.55), f"to 62.0%, length-controlled 51.0% (47.0% to 55.0%): {NO}."),
        (0.606, 0.001, None, None, "Holm): above an even 50%; at equal lengths it cannot be told: nobody knows."),
    ],
)  # fmt: skip
def test_the_verdict_follows_the_adjusted_p_value_and_what_lengths_leave_of_it(
    tmp_path, rate, holm, even, interval, words
):
    run = make_evaluation(tmp_path / "run", prompts=8)

    def edit(content):
        best = content["ratings"]["truth"][0]["model"]
        for pair in content["pairs"]:
            if pair["model"] == best:
                pair |= {
                    "win_rate": rate, "p_holm": holm, "ci95": [0.38, 0.62], "length_controlled": even,
                    "length_controlled_ci95": interval,
                    "length_controlled_unknown": "nobody knows" if even is None else None,
                }  # fmt: skip

    change(run, edit)
    source = write_evaluation_report(run).read_text()
    sentences = re.findall(r'<p class="headline">(.*?)</p>', source)
    assert len(sentences) == 2 and all(words in sentence for sentence in sentences), sentences
    opposed = even is not None and (even - 0.5) * (rate - 0.5) < 0
    assert (f"<small>{100 * (even or 0):.1f} at equal lengths</small>" in source) == opposed


@pytest.mark.parametrize(("other", "holm", "told"), [(0.45, 0.01, "told"), (0.45, 0.6, "not told"), (0.55, 0.6, None)])
def test_reward_models_that_disagree_on_who_wins_are_said_first(tmp_path, other, holm, told):
    run = make_evaluation(tmp_path / "run", models=("a", "b"), prompts=8)

    def edit(content):
        for pair in content["pairs"]:
            rate, p = (0.65, 0.001) if pair["reward_model"] == "truth" else (other, holm)
            pair |= {"win_rate": rate if pair["model"] == "a" else 1 - rate, "p_holm": p}

    change(run, edit)
    best, worst = (entry["model"] for entry in numbers(run)["ratings"]["truth"])
    rates = [share(rate if best == "a" else 1 - rate) for rate in (0.65, other)]
    text = visible(write_evaluation_report(run))
    sentence = (
        f"The reward models disagree on who wins, {best} or {worst}: {best} has {rates[0]} by truth (told apart from "
        f"50%), {rates[1]} by opt-1.3b ({told} apart from 50%)."
    )
    assert (sentence in text) == (told is not None)
    assert told is None or text.index(sentence) < text.index(f"{best} over {worst}: win-rate")


@pytest.mark.parametrize(("low", "known"), [(0.4721, True), (0.5, True), (0.5001, True), (0.4721, False)])
def test_a_reward_model_that_is_not_told_from_a_coin_is_said_first(tmp_path, low, known):
    run = make_evaluation(tmp_path / "run", models=("a", "b"), prompts=8)
    own = {"accuracy": 0.57, "ci95": [low, 0.6627], "pairs": 100} if known else None
    change(run, lambda found: found["reward_models"]["opt-1.3b"].update(data_accuracy=own))
    sentence = (
        "Nothing tells opt-1.3b from a coin: of 100 pairs of the data it puts the chosen response first in 57.0% "
        f"({100 * low:.1f}% to 66.3%). Win-rates by opt-1.3b say what it likes, and not who is better."
    )
    text = visible(write_evaluation_report(run))
    assert (sentence in text) == (known and low <= 0.5)
    assert "from a coin" not in text.replace(sentence, "") and text.find(sentence) < text.index(": win-rate ")


@pytest.mark.parametrize("many", [True, False])
def test_many_cut_responses_and_what_they_are_given_are_said_first(tmp_path, many):
    run = make_evaluation(tmp_path / "run", models=("a", "b"), prompts=40)
    rows = pq.read_table(run / "results.parquet").to_pylist()
    of_a = [row for row in rows if row["model"] == "a"]
    for place, row in enumerate(row for row in rows if row["model"] in {"a", "b"}):
        row["ended"] = "length" if row["model"] == "a" and place % 5 == 0 and many else "stop"
    cut = [row for row in of_a if row["ended"] == "length"]
    for row in cut[:3]:
        row["reward:opt-1.3b"] = None  # too long for it
    schema = pq.read_schema(run / "results.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), run / "results.parquet")

    def edit(content):
        content["models"]["a"]["cut"], content["models"]["b"]["cut"] = len(cut), 0

    change(run, edit)
    text = visible(write_evaluation_report(run))
    if not many:
        assert "cut responses of" not in text
        return

    def mean(judge: str, own) -> str:
        given = [row[f"reward:{judge}"] for row in own if row[f"reward:{judge}"] is not None]
        return f"{sum(given) / len(given):.2f}".replace("-", "−")

    others = [row for row in of_a if row["ended"] == "stop"]
    by = [f"{j} gives those {mean(j, cut)} on average, and the others {mean(j, others)}" for j in ("truth", "opt-1.3b")]
    limit = numbers(run)["sampling"]["max_tokens"]
    sentence = f"sampling.max_tokens={limit} cut responses of a ({100 * len(cut) / len(of_a):.0f}%); {'; '.join(by)}."
    assert sentence in text and text.index(sentence) < text.index(": win-rate ")


def test_lengths_of_conversations_are_called_that_and_none_was_cut_at_the_limit_of_a_turn(tmp_path):
    run = make_evaluation(tmp_path / "run", models=("a", "b"), prompts=8)
    rows = pq.read_table(run / "results.parquet").to_pylist()
    next(row for row in rows if row["model"] == "a")["tokens"] = 48  # all that a turn may have
    schema = pq.read_schema(run / "results.parquet").append(pa.field("turn", pa.int64()))
    both = [row | {"turn": turn} for row in rows for turn in (1, 2)]
    for turns, told in ((both, True), ([row for row in both if row["turn"] == 1], False)):
        pq.write_table(pa.Table.from_pylist(turns, schema), run / "results.parquet")
        evaluation = read_evaluation(run)
        own = evaluation.responses.tokens[evaluation.responses.models == "a"]
        expected = [row["tokens"] * (2 if told else 1) for row in rows if row["model"] == "a"]
        assert own.tolist() == expected
        text = visible(write_evaluation_report(run))
        assert ("The answers of 2 turns together, each of at most 48 tokens." in text) == told
        assert ("tokens in a conversation's answers" in text) == told
        assert ("cut here" in text) == ("a longer response is cut there" in text) == (not told)


def test_many_disagreements_are_counted(tmp_path):
    run = make_evaluation(tmp_path / "run", models=("a", "b", "c", "d"), prompts=8)

    def edit(content):
        for pair in content["pairs"]:
            ahead = (pair["model"] < pair["against"]) == (pair["reward_model"] == "truth")
            pair |= {"win_rate": 0.6 if ahead else 0.4, "p_holm": 0.001}

    change(run, edit)
    text = visible(write_evaluation_report(run))
    assert text.count("The reward models disagree on who wins") == 3
    assert "So they do on 3 more pairs of models." in text


def test_one_round_has_no_deviation(tmp_path):
    run = make_evaluation(tmp_path / "run", prompts=8, rounds=1)
    for value in (None, 0.0):  # as it is written, and as earlier versions wrote it
        change(run, lambda content, value=value: [pair.update(sd=value) for pair in content["pairs"]])
        path = write_evaluation_report(run)
        rows = [dict(zip(t[0], row, strict=True)) for t in tables(path) if "p (Holm)" in t[0] for row in t[1:]]
        assert {row["sd over rounds"] for row in rows} == {"–"}
        assert "sd over rounds –" in path.read_text()


def test_what_a_category_is_drawn_by_is_said(tmp_path):
    folder = make_evaluation(tmp_path / "e", prompts=12)
    own = {"<math>": {"temperature": 0.25, "top_p": None, "max_tokens": None}}
    change(folder, lambda content: content["sampling"].update(by_category=own))
    page = write_evaluation_report(folder).read_text()
    assert "otherwise in &lt;math&gt;" in page
    assert "<dt>temperature of &lt;math&gt;</dt><dd>0.25</dd>" in page and "top p of" not in page


def test_an_earlier_versions_folder_gives_a_page_that_says_what_it_lacks(tmp_path):
    run = make_evaluation(tmp_path / "run", prompts=8)

    def edit(content):
        del content["statistics"]
        for pair in content["pairs"]:
            del pair["length_controlled_ci95"], pair["length_controlled_unknown"]
            pair["length_controlled"] = 0.123
        for model in content["models"].values():
            del model["mean_characters"]
        del content["agreement"][0]["ties"]

    assert "of an earlier version" not in visible(write_evaluation_report(run))
    change(run, edit)
    text = visible(write_evaluation_report(run))
    assert "These numbers are of an earlier version" in text
    assert "12.3%" not in text and "left out" in text


def test_every_number_of_a_pair_is_on_the_page(run, page):
    said = numbers(run)
    shown = {tuple(row[:2]): row for t in tables(page) if "p (Holm)" in t[0] for row in t[1:]}
    details = [t for t in tables(page) if "p (Holm)" in t[0]]
    matrices = [t for t in tables(page) if t[0][0] == "↓ over →"]
    assert len(shown) == 6 and len(details) == len(matrices) == 2
    probability = lambda p: "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"  # noqa: E731
    for judge, table, matrix in zip(("truth", "opt-1.3b"), details, matrices, strict=True):
        rows = {(row[0], row[1]): row[2:] for row in table[1:]}
        assert matrix[0][1:] == [row[0] for row in matrix[1:]] == [r["model"] for r in said["ratings"][judge]]
        cells = {
            (row[0], column): cell for row in matrix[1:] for column, cell in zip(matrix[0][1:], row[1:], strict=True)
        }
        for pair in said["pairs"]:
            if pair["reward_model"] != judge:
                continue
            low, high = map(share, pair["ci95"])
            controlled = pair["length_controlled"]
            assert rows[pair["model"], pair["against"]] == [
                share(pair["win_rate"]), f"{low} to {high}",
                "cannot be told" if controlled is None else
                f"{share(controlled)} ({' to '.join(map(share, pair['length_controlled_ci95']))})",
                probability(pair["p_value"]), probability(pair["p_holm"]), f"{100 * pair['sd']:.1f} points",
                str(pair["wins"]), str(pair["ties"]), str(pair["losses"]), str(pair["prompts"]),
                ", ".join(map(share, pair["rounds"])),
            ]  # fmt: skip
            cell = cells[pair["model"], pair["against"]].split()
            assert cell == [share(pair["win_rate"]), low[:-1], "to", high[:-1]]
        assert all(cells[model, model] == "–" for model in said["models"])


def test_the_matrix_is_coloured_by_side_and_distance(tmp_path):
    run = make_evaluation(tmp_path / "run", models=("a", "b"), prompts=8)

    def edit(content):
        for pair in content["pairs"]:
            pair |= {"win_rate": 0.65 if pair["model"] == "a" else 0.35, "p_holm": 0.001}

    change(run, edit)
    source = write_evaluation_report(run).read_text()
    assert re.findall(r'<td class="(above|below)" style="--strength: ([\d.]+)"', source) == 2 * [
        ("above", "0.275"), ("below", "0.275"),
    ]  # fmt: skip
    assert source.count("<b>65.0%</b>") == source.count("<b>35.0%</b>") == 2
    assert "sd over rounds" in re.findall(r'<td[^>]*title="(.*?)"', source)[0]


def test_models_and_reward_models_are_described(run, page):
    said = numbers(run)
    found = {row[0]: dict(zip(t[0], row, strict=True)) for t in tables(page) for row in t[1:] if "mean tokens" in t[0]}
    for label, model in said["models"].items():
        row, truth = found[label], said["rewards"]["truth"][label]
        assert row["mean truth (sd)"] == f"{truth['mean']:.2f} ({truth['sd']:.2f})"
        assert row["mean tokens"] == f"{model['mean_tokens']:.1f}"
        assert row["p90 tokens"] == f"{model['lengths']['p90']:.0f}"
        assert row["cut at 48"].split()[0] == str(model["cut"])
        assert row["empty"] == ("1 (0.6%)" if label == "orpo" else "0")
    text = visible(page)
    for words in (
        "91.2%", "87.6% to 94.3%", "3 too long", "0.812", "0.078", "81.0%", "truth and opt-1.3b", "87.6%", "0.75",
        "321 and 0", "1,234", "orpo: 1 of 180 responses is empty", "ab12cd34ab12cd34", "runs/toy-dpo",
        "all-MiniLM-L6-v2", "with the data's chosen and rejected", "of 540 asked for, in 3 rounds",
    ):  # fmt: skip
        assert words in text, words


def test_figures_of_each_judge_and_curves_on_one_axis(tmp_path):
    run = make_evaluation(tmp_path / "run", prompts=12)
    runs = {"SFT": make_run(tmp_path / "sft", objective="sft"), "ORPO": make_run(tmp_path / "orpo")}
    plain = headings(write_evaluation_report(run))
    assert plain == [
        "By truth", "Win-rates", "Ratings", "By opt-1.3b", "Win-rates", "Ratings", "Rewards by truth",
        "Rewards by opt-1.3b", "Response lengths",
    ]  # fmt: skip
    path = write_evaluation_report(run, runs)
    assert headings(path) == [*plain, "SFT", "ORPO"]
    svgs = re.findall(r"<svg.*?</svg>", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    ticks = [re.findall(r">(−[\d.]+)</text>", svg) for svg in svgs[-2:]]
    assert ticks[0] and ticks[0] == ticks[1]
    assert "rejected −0.63 → −1.63 (falls)" in visible(path)
    assert len(set(Page(path).ids)) == len(Page(path).ids)
    assert not [colour for colour in MODELS if colour in "".join(svgs)], "every model's colour is a variable"


def test_the_base_of_what_is_compared_does_not_flatten_its_curves(tmp_path):
    base = make_run(tmp_path / "base")
    lines = [json.dumps({"step": 0, "eval_loss": 5.2, "eval_logps_chosen": -5.25, "eval_logps_rejected": -5.0})]
    (base / "metrics.jsonl").write_text("\n".join([*lines, *(base / "metrics.jsonl").read_text().splitlines()[1:], ""]))
    runs = {"base": base, "SFT": make_run(tmp_path / "sft", objective="sft"), "ORPO": make_run(tmp_path / "orpo")}
    run = make_evaluation(tmp_path / "run", models=("sft", "orpo"), prompts=6)

    def edit(content):
        for name, folder in (("sft", tmp_path / "sft" / "model"), ("orpo", tmp_path / "orpo")):
            content["models"][name]["path"] = str(folder)

    assert "One y axis for all log-probs." in visible(write_evaluation_report(run, runs)), (
        "none is known to be compared"
    )
    change(run, edit)
    path = write_evaluation_report(run, runs)
    svgs = re.findall(r"<svg.*?</svg>", path.read_text(encoding="utf-8"), flags=re.DOTALL)[-3:]
    lowest = [min(-float(tick) for tick in re.findall(r">−([\d.]+)</text>", svg)) for svg in svgs]
    assert lowest[0] <= -5 and lowest[1] == lowest[2] > -2
    said = "One y axis for the log-probs of the models compared (SFT, ORPO); each other run has its own."
    assert said in visible(path)


def test_kl_is_of_runs_on_rollouts_alone(tmp_path):
    """DPO's `eval_kl` is of a token of the data's responses."""
    dpo, ppo = make_run(tmp_path / "dpo"), make_run(tmp_path / "ppo", rollouts={"max_tokens": 8})
    for run, step in ((dpo, 120), (ppo, 120)):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "eval_loss": 0.7, "eval_reward": 6.0, "eval_kl": 0.72}) + "\n")
    rows = training({"dpo": read_run(dpo), "ppo": read_run(ppo)})
    assert [(row["eval reward"], row["KL, nats"]) for row in rows] == [("–", "–"), ("6.000", "0.72")]


def test_few_whole_rewards_are_bars_and_others_densities():
    whole = {"a": np.array([0.0, 1, 1, 3]), "b": np.array([3.0, 3, 3, 3])}
    figure = Figure()
    axes = figure.subplots()
    _bars(axes, whole, {"chosen": np.array([2.0])}, np.arange(4.0), colours(["a", "b"]))
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [
        [0.25, 0.5, 0, 0.25], [0, 0, 0, 1], [0, 0, 1, 0],
    ]  # fmt: skip
    assert [bars[0].get_fill() for bars in axes.containers] == [True, True, False]
    rng = np.random.default_rng(0)
    axes = figure.subplots()
    smooth = {"a": rng.normal(0, 1, 500), "b": np.full(20, 1.5)}
    _densities(axes, smooth, {"chosen": rng.normal(1, 1, 90)}, np.concatenate([*smooth.values()]), colours(["a", "b"]))
    curves = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert list(curves) == ["a", "b", "chosen (data)"]
    assert np.trapezoid(curves["a"][:, 1], curves["a"][:, 0]) == pytest.approx(1, abs=0.02)
    assert np.isnan(curves["b"][:, 1]).all(), "one value has no density; its histogram is drawn"
    assert "share of responses" in rewards(whole, {}, "truth")
    assert "density" in rewards(smooth, {}, "judge")
    assert "density" in rewards({"a": np.arange(40.0)}, {}, "judge"), "too many whole numbers for bars"
    assert rewards({"a": np.zeros(0)}, {}, "truth") is None


def test_the_policy_allows_one_script_and_it_is_the_one_on_the_page(page):
    source = page.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', source).group(1)
    (inlined,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    found = Page(page)
    assert all(load.startswith("#") for load in found.loads)
    assert not {"link", "iframe", "img", "object", "base", "form"} & set(found.tags)
    assert found.tags.count("script") == source.count("<script") == source.count("</script") == 2


def test_no_text_of_a_model_becomes_markup_and_none_is_lost(run, page):
    source = page.read_text(encoding="utf-8")
    for text in ("<script>alert", "<img", "onerror=alert(1)>", "<!--"):
        assert text not in source, text
    embedded = re.search(r'<script type="application/json" id="browser-data">(.*?)</script>', source, re.DOTALL).group(
        1
    )
    assert not set("<>&\u2028\u2029") & set(embedded)
    data = json.loads(embedded)
    rows = pq.read_table(run / "results.parquet").to_pylist()
    assert len(rows) == 60 * (3 * 3 + 2)
    for row in rows:
        entry = data["prompts"][row["prompt"]]
        if row["model"] in ("chosen", "rejected"):
            response = entry["data"][row["model"] == "rejected"]
        else:
            response = entry["responses"][data["models"].index(row["model"])][row["round"]]
        assert (response["text"], response["tokens"], response["ended"]) == (row["text"], row["tokens"], row["ended"])
        assert response["rewards"] == [row["reward:truth"], row["reward:opt-1.3b"]]


@given(st.recursive(st.text(st.characters()), lambda inner: st.lists(inner, max_size=4), max_leaves=8))
def test_json_in_a_script_is_ascii_without_angle_brackets_and_keeps_its_value(value):
    text = str(to_json(value))
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text) == value


def test_bytes_that_are_not_text_do_not_stop_the_page(tmp_path):
    run = make_evaluation(tmp_path / "run", prompts=8)
    table = pq.read_table(run / "results.parquet")
    raw = [b"lone \xed\xa0\x80 surrogate" if i == 0 else t.encode() for i, t in enumerate(table["text"].to_pylist())]
    offsets = np.cumsum([0, *map(len, raw)]).astype(np.int32)
    broken = pa.StringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(b"".join(raw)))
    pq.write_table(table.set_column(table.column_names.index("text"), "text", broken), run / "results.parquet")
    assert "lone ���" in write_evaluation_report(run).read_text(encoding="utf-8")


def test_too_many_prompts_are_thinned_evenly_and_said(tmp_path, monkeypatch):
    run = make_evaluation(tmp_path / "run", prompts=50)
    evaluation = read_evaluation(run)
    every = entries(evaluation)
    assert [entry["prompt"] for entry in every] == list(range(50))
    limit = len(to_json(every)) // 2
    kept = entries(evaluation, limit)
    numbers = [entry["prompt"] for entry in kept]
    assert numbers[0] == 0 and numbers[-1] == 49 and 15 <= len(kept) < 30
    assert set(np.diff(numbers)) <= {49 // (len(kept) - 1), 49 // (len(kept) - 1) + 1}
    assert len(to_json(kept)) <= limit + 200
    assert len(entries(evaluation, 1)) == 1
    monkeypatch.setattr(evaluation_browser, "entries", lambda e: entries(e, limit))
    path = write_evaluation_report(run)
    assert f"This page holds {len(kept)} of the 50 prompts, evenly spaced" in visible(path)
    assert path.stat().st_size > limit


def test_one_model_and_no_data_still_give_a_page(tmp_path):
    run = make_evaluation(tmp_path / "run", models=("orpo",), prompts=8, rounds=1, data=False)
    change(run, lambda content: content.update(agreement=[], ratings={}))
    path = write_evaluation_report(run)
    text = visible(path)
    assert "win-rate of" not in text and "Who wins" not in text and "Odds of" not in text
    assert headings(path) == ["Rewards by truth", "Rewards by opt-1.3b", "Response lengths"]
    assert "Every model was asked every prompt 1 time," in text


def test_the_same_folder_gives_the_same_page(run, page):
    before = page.read_bytes()
    assert write_evaluation_report(run).read_bytes() == before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("winrates.json", None, "winrates.json: cannot be read: No such file"),
        ("winrates.json", b"{", "winrates.json: Invalid JSON"),
        ("winrates.json", b"[]", "winrates.json: Input should be an object"),
        ("winrates.json", lambda c: c["pairs"][1].pop("ci95"), "winrates.json: pairs.1.ci95: Field required"),
        ("winrates.json", lambda c: c["models"]["sft"].update(cut="x"), "winrates.json: models.sft.cut: Input"),
        ("winrates.json", lambda c: c.update(models={}), "winrates.json: models: Dictionary should have"),
        ("winrates.json", lambda c: c["reward_models"].update(new=c["reward_models"]["truth"]),
         "results.parquet: has no column reward:new"),
        ("config.yaml", None, "config.yaml: no such file"),
        ("config.yaml", b"a: [", "config.yaml, line 1: not valid YAML"),
        ("prompts.parquet", None, "prompts.parquet: cannot be read: No such file"),
        ("results.parquet", b"PAR1", "results.parquet: cannot be read: "),
    ],
)  # fmt: skip
def test_an_unreadable_folder_is_the_users_to_mend(tmp_path, file, content, message):
    run = make_evaluation(tmp_path / "run", prompts=8)
    if content is None:
        (run / file).unlink()
    elif callable(content):
        change(run, content)
    else:
        (run / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        write_evaluation_report(run)
    assert str(raised.value).startswith(str(run)) and "\n" not in str(raised.value)
    assert not (run / "report.html").exists()


# The answer at the top -----------------------------------------------------------------------------------------------


def compared(pairs, ratings=None, models=None):
    """What `winrates.json` holds of `{(model, against, judge): (win-rate, Holm's p, length-controlled with interval)}`,
    read as the page does."""
    judges = list(dict.fromkeys(judge for _, _, judge in pairs))
    labels = list(dict.fromkeys(label for model, against, _ in pairs for label in (model, against)))
    both = {**pairs, **{(b, a, j): (1 - rate, p, None) for (a, b, j), (rate, p, _) in pairs.items()}}
    plain = {"digest": None, "template": None, "bos": True, "asked": 1, "responses": 1, "not_generated": {}, "empty": 0,
             "cut": 0, "mean_tokens": None, "lengths": None, "odds": None, "diversity": dict.fromkeys(
                 ("per_input_cosine", "across_input_cosine", "embedder", "distinct_1", "distinct_2", "self_bleu",
                  "repetition"))}  # fmt: skip
    return Numbers.model_validate({
        "name": "e", "prompts": 9, "rounds": 1, "tie": 0, "statistics": 2, "rewards": {}, "agreement": [], "notes": [],
        "sampling": {"temperature": 1, "top_p": 1, "max_tokens": 9, "rounds": 1, "seed": 0},
        "models": {label: {"path": (models or {}).get(label, "nowhere"), **plain} for label in labels},
        "reward_models": {judge: {"path": "x", "not_scored": {}, "data_accuracy": None} for judge in judges},
        "pairs": [
            {"model": a, "against": b, "reward_model": j, "prompts": 9, "wins": 1, "ties": 1, "losses": 1,
             "win_rate": rate, "sd": None, "ci95": [rate - 0.02, rate + 0.02], "p_value": p, "p_holm": p,
             "length_controlled": even and even[0], "length_controlled_ci95": even and even[1], "rounds": [rate]}
            for (a, b, j), (rate, p, even) in both.items()
        ],
        "ratings": ratings or {j: [{"model": m, "rating": -i, "ci95": [0, 1]} for i, m in enumerate(labels)]
                               for j in judges},
    })  # fmt: skip


APART, EVEN = 0.001, 0.4


@pytest.mark.parametrize(
    ("pairs", "line", "told"),
    [
        ({("a", "b", "j"): (0.6, APART, None)}, "a > b", "told apart"),
        ({("a", "b", "j"): (0.6, EVEN, None)}, "a ≈ b", "not told apart"),
        ({("a", "b", "j"): (0.6, APART, (0.45, (0.4, 0.49)))}, "a > b", "told apart; at equal lengths not so"),
        ({("a", "b", "j"): (0.6, APART, (0.55, (0.51, 0.6)))}, "a > b", "told apart"),
        ({("a", "b", "j"): (0.4, APART, None)}, "a < b", "told apart"),
        ({("a", "b", "j"): (0.6, APART, None), ("a", "c", "j"): (0.7, APART, None), ("b", "c", "j"): (0.5, EVEN, None)},
         "a > b ≈ c", "all told apart but b and c"),
        ({("a", "b", "j"): (0.5, EVEN, None), ("a", "c", "j"): (0.7, APART, (0.5, (0.4, 0.6))),
          ("b", "c", "j"): (0.5, EVEN, None)}, "a ≈ b ≈ c",
         "told apart: a over c alone; at equal lengths not so: a over c"),
        ({("a", "b", "j"): (0.5, EVEN, None), ("a", "c", "j"): (0.5, EVEN, None), ("b", "c", "j"): (0.5, EVEN, None)},
         "a ≈ b ≈ c", "none told apart"),
        ({("a", "b", "j"): (0.6, APART, None), ("a", "c", "j"): (0.7, APART, None)}, "a > b · c", "all told apart"),
    ],
)  # fmt: skip
def test_a_ranking_says_who_is_told_apart(pairs, line, told):
    [ranking] = rankings(compared(pairs))
    assert " ".join(word for place in ranking.places for word in (place.sign, place.model) if word) == line
    assert (ranking.judge, ranking.told) == ("j", told)


def test_many_pairs_are_counted_and_one_judge_may_have_no_ratings():
    names = "abcdef"
    every = {(a, b, "j"): (0.6, APART if a < "c" else EVEN, None) for i, a in enumerate(names) for b in names[i + 1 :]}
    assert [r.told for r in rankings(compared(every))] == ["9 of 15 pairs told apart"]
    two = {("a", "b", judge): (0.6, APART, None) for judge in ("j", "k")}
    rated = {"k": [{"model": m, "rating": 0, "ci95": [0, 1]} for m in "ba"]}
    assert [(r.judge, [p.model for p in r.places]) for r in rankings(compared(two, rated))] == [("k", ["b", "a"])]


def test_the_models_of_orpo_are_known_by_name_or_by_their_runs_configuration(tmp_path):
    for name, objective in (("mine", "orpo"), ("other", "dpo"), ("broken", None)):
        run = make_run(tmp_path / name, objective=objective or "orpo")
        (run / "model").mkdir()
        if objective is None:
            (run / "config.yaml").write_text("a: [")
    paths = {"x": f"{tmp_path}/mine/model", "y": f"{tmp_path}/other/model", "z": f"{tmp_path}/broken"}
    paths |= {"ORPO-7b": "hub/one", "corporate": "hub/two", "v": f"{tmp_path}/mine"}
    names = list(paths)
    every = {(a, b, "j"): (0.6, APART, None) for i, a in enumerate(names) for b in names[i + 1 :]}
    found = compared(every, models=paths)
    assert trained_by_orpo(found) == ["x", "ORPO-7b", "v"]
    rows = comparisons(found, ["x", "ORPO-7b", "v"])
    assert [who for who, _ in rows] == [f"{a} over {b}" for a in ("x", "ORPO-7b", "v") for b in ("y", "z", "corporate")]
    assert rows[3][1][0]["rate"] == "40.0%" and rows[0][1][0]["told_apart"]
    assert comparisons(found, []) == []


def test_the_answer_stands_before_any_sentence(run, page):
    source = page.read_text(encoding="utf-8")
    header = re.search(r"<header>(.*?)</header>", source, re.DOTALL).group(1)
    assert "<p" not in header and source.index("</header>") < source.index('<p class="')
    said = numbers(run)
    lines = [html.unescape(re.sub(r"<[^>]*>", "", found)) for found in re.findall(r"<dt>.*?</div>", header)]
    for line, (judge, rated) in zip(lines, said["ratings"].items(), strict=True):
        assert re.split(" [>≈<] ", line.split("told")[0].removeprefix(judge))[:2] == [r["model"] for r in rated[:2]]
    [table] = [t for t in tables(page) if t[0][0] == "ORPO's win-rate"]
    assert [row[0] for row in table] == ["ORPO's win-rate", "orpo over sft", "orpo over dpo"]
    for row in table[1:]:
        for judge, found in zip(table[0][1:], row[1:], strict=True):
            [pair] = [p for p in said["pairs"] if p["reward_model"] == judge
                      and f"{p['model']} over {p['against']}" == row[0]]  # fmt: skip
            assert found.startswith(share(pair["win_rate"])) and "told apart" in found
            assert ("not told apart" in found) == (pair["p_holm"] >= 0.05)
            assert ("cannot be told" in found) == (pair["length_controlled"] is None)


@pytest.mark.parametrize("even", [True, False])
def test_a_forest_plot_has_both_win_rates_and_nothing_on_the_even_mark(even):
    rates = {"a": 0.5, "b": 0.51, "c": 0.6}
    found = compared({
        (label, "a-model-of-a-very-long-name", "j"): (rate, APART, (rate - 0.01, (rate - 0.03, rate + 0.01)) if even
                                                      else None)
        for label, rate in rates.items()
    })  # fmt: skip
    pairs = [found.pair(label, "a-model-of-a-very-long-name", "j") for label in rates]
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    draw_forest(figure, pairs)
    FigureCanvasAgg(figure).draw()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["win-rate, ties half", "length-controlled"][
        : 1 + even
    ]
    texts = [text for axes in figure.axes for text in axes.texts]
    said = [text.get_text() for text in texts]
    assert "51.0% (49.0 to 53.0)" in said and ("50.0% (48.0 to 52.0)" in said)
    for axes in figure.axes:
        [marks] = axes.collections
        for segment in marks.get_segments():
            (x, bottom), (_, top) = axes.transData.transform(segment)
            for text in texts:
                box = text.get_window_extent()
                assert not (box.x0 <= x <= box.x1 and box.y0 < max(top, bottom) and box.y1 > min(top, bottom)), text
    assert len(figure.axes[0].get_lines()) == 2 * len(pairs)
