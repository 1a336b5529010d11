"""What the best of several trials is worth: intervals after a choice, luck, and where a search learns from failures."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_sweep_results import config as sweep_config
from test_sweep_search import config

from orpo_ray.config import EvaluationConfig, SweepConfig, parse_as
from orpo_ray.config.evaluation import on_held_out
from orpo_ray.data import toyworld
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.data.prompts import read_prompts
from orpo_ray.errors import UserError
from orpo_ray.report import write_sweep_report
from orpo_ray.statistics.winrate import prompt_interval
from orpo_ray.storage.run_folder import write_table
from orpo_ray.terminal import Console
from orpo_ray.tuning.board import board
from orpo_ray.tuning.comparable import lengths, require_known
from orpo_ray.tuning.finalists import unseen_records
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.points import Ending, searcher_of
from orpo_ray.tuning.results import summary, write_results, write_summary
from orpo_ray.tuning.selection import flattery, simultaneous_intervals
from orpo_ray.tuning.stopping import Curve, early_stops, rule_of


def won(generator: np.random.Generator, candidates: int, prompts: int, truth: float, alike: bool) -> Any:
    """Outcomes of equal candidates `(candidates, prompts, 2)`; `alike`: easy prompts are easy for all of them."""
    easy = generator.beta(truth, 1 - truth, size=prompts) if alike else np.full(prompts, truth)
    return (generator.random((candidates, prompts, 2)) < easy[None, :, None]).astype(float)


@pytest.mark.parametrize(("prompts", "truth", "alike"), [(120, 0.5, True), (60, 0.9, False)])
@pytest.mark.parametrize("candidates", [2, 8, 24])
def test_the_winners_interval_holds(candidates: int, prompts: int, truth: float, alike: bool) -> None:
    """In 95 of 100 simulated choices or more, whichever candidate is chosen."""
    generator, held, sims = np.random.default_rng(candidates), 0, 150
    for _ in range(sims):
        outcomes = won(generator, candidates, prompts, truth, alike)
        best = int(outcomes.mean(axis=(1, 2)).argmax())
        low, high = simultaneous_intervals(outcomes, resamples=400)[best]
        held += low <= truth <= high
    assert held / sims >= 0.93


def test_an_interval_of_its_own_does_not_hold_for_the_best_of_eight() -> None:
    generator, held, sims = np.random.default_rng(0), 0, 150
    for _ in range(sims):
        outcomes = won(generator, 8, 200, 0.5, False)
        best = outcomes[int(outcomes.mean(axis=(1, 2)).argmax())]
        low, high = prompt_interval(best.sum(axis=1), np.full(200, 2.0), 500, 0)
        held += low <= 0.5 <= high
    assert held / sims < 0.9


def test_candidates_that_go_together_pay_less_than_bonferroni() -> None:
    """The same outcomes eight times are one candidate: its interval is as wide as alone."""
    outcomes = won(np.random.default_rng(0), 1, 200, 0.6, True)
    alone = simultaneous_intervals(outcomes)[0]
    assert simultaneous_intervals(np.repeat(outcomes, 8, axis=0)) == [pytest.approx(alone)] * 8


def test_missing_comparisons_and_one_sided_ones() -> None:
    outcomes = won(np.random.default_rng(0), 3, 50, 0.6, True)
    outcomes[0, :40] = math.nan
    outcomes[1] = 1.0
    intervals = simultaneous_intervals(outcomes)
    assert intervals[1][1] == 1 and 0.85 < intervals[1][0] < 0.95
    assert intervals[0][1] - intervals[0][0] > intervals[2][1] - intervals[2][0]
    assert all(0 <= low < high <= 1 for low, high in intervals)


def test_luck_of_the_best_of_24_equal_trials() -> None:
    """It reads .928 where .900 is true; pairs that chose nothing read .900, and what it owes to the choice is told."""
    generator, ranked, unseen, luck = np.random.default_rng(0), [], [], []
    for _ in range(400):
        a, b = generator.binomial(400, 0.9, size=(2, 24)) / 400
        best = int(a.argmax())
        ranked.append(a[best])
        unseen.append(b[best])
        luck.append(flattery(a.tolist(), b.tolist(), best))
    assert np.mean(ranked) == pytest.approx(0.928, abs=0.002)
    assert np.mean(unseen) == pytest.approx(0.9, abs=0.002)
    assert np.mean(luck) == pytest.approx(0.028, abs=0.002)


# What a trial is known by --------------------------------------------------------------------------------------------


SETTINGS = {"objective.lambda": 1.0, "optim.lr": 1e-3, "optim.schedule": "cosine"}


def begin(
    folder: SweepFolder,
    ledger: Ledger,
    values: list[float | None],
    unseen: float = 0.5,
    settings: dict[str, Any] | None = None,
) -> None:
    """A finished trial with these values of the metric at steps 8, 16, …"""
    run = folder.trial(len(ledger.trials))
    run.path.mkdir(parents=True)
    with run.metrics.open("w") as file:
        for place, value in enumerate(values, start=1):
            apart = {"eval_unseen_reward_accuracy": unseen + place / 100}
            line = {"step": 8 * place, "eval_reward_accuracy": value, "eval_nll": place, **apart}
            file.write(json.dumps(line) + "\n")
            file.write(json.dumps({"step": 8 * place, "loss": 1.0}) + "\n")
    run.summary.write_text("{}")
    ledger.begin(settings or SETTINGS)


def opened(tmp_path: Path, *overrides: str) -> tuple[SweepConfig, SweepFolder, Ledger]:
    own = sweep_config(tmp_path, "scheduler=none", *overrides)
    folder = SweepFolder(own)
    folder.open_for(own)
    return own, folder, Ledger(own, folder, 24)


def test_trials_rank_by_the_step_whose_model_they_keep(tmp_path: Path) -> None:
    """By their last evaluations the second would win, with a model that is worth less than the first's."""
    own, folder, ledger = opened(tmp_path, "trade_off={eval_nll: min}")
    begin(folder, ledger, [0.6, 0.9, 0.7])
    begin(folder, ledger, [0.6, 0.7, 0.8])
    begin(folder, ledger, [0.5, 0.5, None])
    assert [ledger.kept(trial) for trial in ledger.trials] == [16, 24, 8]
    assert [ledger.value(trial) for trial in ledger.trials] == [0.9, 0.8, 0.5]
    assert ledger.outcome(ledger.trials[0]) == {"eval_reward_accuracy": 0.9, "eval_nll": 2}
    said = io.StringIO()
    with board(own, ledger, Console(file=said, width=200)) as show:
        show()
    assert "trial 000 finished at step 24: eval_reward_accuracy 0.9  eval_nll 2 (step 16)" in said.getvalue()
    assert [ledger.unseen(trial) for trial in ledger.trials] == pytest.approx([0.52, 0.53, 0.51])
    found = summary(own, ledger, 24, ledger.ranking()[0], [])
    assert (found["winner"], found["trials"][0]["kept"], found["trials"][0]["unseen"]) == (0, 16, 0.52)
    assert found["flattered"] == pytest.approx(0.38 - (0.38 + 0.27 - 0.01) / 3)
    run = folder.training(0, ledger.trials[0].settings)
    assert (run.train.keep_by, run.train.keep_mode, run.train.keep) == ("eval_reward_accuracy", "max", "best")


def test_where_a_model_could_not_be_kept_its_trial_is_known_by_the_one_that_was(tmp_path: Path) -> None:
    _, folder, ledger = opened(tmp_path)
    begin(folder, ledger, [0.6, 0.9, 0.7])
    folder.trial(0).summary.write_text('{"best_step": 8}')
    ledger.refresh(0)
    assert (ledger.kept(ledger.trials[0]), ledger.value(ledger.trials[0])) == (8, 0.6)


@pytest.mark.parametrize("by", ["keep", "win-rate"])
def test_trials_that_keep_their_last_models_rank_by_them(tmp_path: Path, by: str) -> None:
    win_rate = "train.eval={win_rate: {against: x, reward_model: toy}}"
    asked = ("train.train={keep: last}",) if by == "keep" else (win_rate, "trade_off={eval_win_rate: max}")
    own, folder, ledger = opened(tmp_path, *asked)
    begin(folder, ledger, [0.6, 0.9, 0.7])
    if by == "win-rate":
        assert ledger.value(ledger.trials[0]) is None, "it is not known yet"
        with folder.trial(0).metrics.open("a") as file:
            for step in (16, 24):
                rate = {"eval_win_rate": 0.5, "eval_win_rate_low": 0.4, "eval_win_rate_high": 0.6}
                file.write(json.dumps({"step": step, **rate}) + "\n")
        ledger.refresh(0)
    assert (ledger.kept(ledger.trials[0]), ledger.value(ledger.trials[0])) == (24, 0.7)
    assert folder.training(0, own.first_point).train.keep == "last"


def test_the_page_tells_what_the_winner_is_worth_and_who_is_not_done(tmp_path: Path) -> None:
    own, folder, ledger = opened(tmp_path)
    begin(folder, ledger, [0.6, 0.9, 0.7])
    begin(folder, ledger, [0.6, 0.6, 0.6])
    begin(folder, ledger, [0.6])
    folder.trial(2).summary.unlink()
    ledger.refresh(2)
    write_results(folder, ledger)
    found = summary(own, ledger, 24, ledger.ranking()[0], [])
    write_summary(folder, found | {"seconds": 1.0, "finished": own.to_yaml()})
    page = write_sweep_report(folder.path).read_text()
    assert (
        "On the held-out pairs that ranked the trials it has 0.900, on those that chose nothing 0.520: the first less "
        "the second is 0.380, and 0.235 at the mean of the 2 trials that finished. The 0.145 between is what the best "
        "of 2 owes to having been chosen."
    ) in page
    assert "On unseen pairs" in page
    assert "known by, its best one. Chosen" not in page and "its best one so far" not in page, "it has finished"
    assert '<th scope="col">eval_unseen_reward_accuracy</th><th scope="col">at step</th><th scope="col">steps' in page
    assert "<td>0.9000</td><td>0.5200</td><td>16</td><td>24</td>" in page
    assert "<td>unfinished, at step 8 of 24</td>" in page


def test_the_page_says_how_few_the_accuracies_of_trials_are_of(tmp_path: Path) -> None:
    own, folder, ledger = opened(tmp_path, "trade_off={eval_nll: min}")
    begin(folder, ledger, [0.6, 0.8])
    begin(folder, ledger, [0.6, 0.6])
    for trial in ledger.trials:
        run = folder.trial(trial.index)
        write_table(run.eval_scores, pa.table({"record": [*range(20)]}))
        run.summary.write_text('{"unseen_pairs": 10}')
    write_results(folder, ledger)
    found = summary(own, ledger, 24, ledger.ranking()[0], [])
    write_summary(folder, found | {"seconds": 1.0, "finished": own.to_yaml()})
    page = write_sweep_report(folder.path).read_text()
    assert "higher is better, of 20 held-out pairs, 95% interval 58.4% to 91.9%" in page
    assert "of 10 held-out records that choose nothing, 95% interval" in page
    assert "<td>0.8000 (0.5840 to 0.9193)</td><td>2</td>" in page, "a loss has no such interval"
    assert (
        "Behind an accuracy: its 95% interval (Wilson), of 20 held-out pairs and 10 held-out records that choose "
        "nothing."
    ) in page
    assert "the same, of 10 held-out records that choose nothing" in page


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (0.6, "not told apart from trial 000 (their 95% intervals overlap)"),
        (0.1, "told apart from trial 000 (their 95% intervals lie apart)"),
    ],
)
def test_the_headline_says_whether_the_best_is_told_apart_from_the_second(
    tmp_path: Path, second: float, told: str
) -> None:
    own, folder, ledger = opened(tmp_path, "space={objective.lambda: 'loguniform(0.1, 2)'}")
    for weight, value in ((0.5, second), (1.0, 0.8)):
        begin(folder, ledger, [value], settings={"objective.lambda": weight})
        write_table(folder.trial(len(ledger.trials) - 1).eval_scores, pa.table({"record": [*range(20)]}))
    write_results(folder, ledger)
    found = summary(own, ledger, 24, ledger.ranking()[0], [])
    write_summary(folder, found | {"seconds": 1.0, "finished": own.to_yaml()})
    page = write_sweep_report(folder.path).read_text()
    assert f"Trial 001 is the best: λ = 1, {told}." in page
    assert "Each trial at the step that it is known by, its best one. Bars: 95% intervals." in page


# What a search learns from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{}, {"scheduler": "none", "trade_off": {"eval_nll": "min"}}])
def test_optuna_learns_from_trials_that_diverge(keys: dict[str, Any]) -> None:
    """Half of the space diverges, and more: told as errors, 30 of 40 trials go there, as before there was a search."""
    pytest.importorskip("optuna")

    def diverged(told: Ending) -> int:
        own = config(searcher="optuna", space={"optim.lr": "loguniform(1e-6, 1)"}, seed=1, **keys)
        searcher, outcomes, count = searcher_of(own), [], 0
        for index in range(40):
            lr = searcher.settings(index, outcomes)["optim.lr"]
            count += lr > 2e-4
            off = abs(math.log(lr / 1e-4))
            good = {metric: off if mode == "min" else -off for metric, mode in own.directions.items()}
            outcomes.append(told if lr > 2e-4 else good)
        return count

    lost, known = diverged("lost"), diverged("diverged")
    assert lost >= 28 and known <= 20


def test_divergence_is_told_from_a_lost_worker(tmp_path: Path) -> None:
    """By what the driver has written down, or where a trial came to its end by evaluations that are not finite."""
    _, folder, ledger = opened(tmp_path)
    begin(folder, ledger, [0.6, 0.7])
    begin(folder, ledger, [None, None])
    for reason, diverged in (("step 3: the loss is nan", True), ("crashed: a worker was lost", False)):
        folder.fail(len(ledger.trials), reason, diverged=diverged)
        ledger.begin(ledger.trials[0].settings)
    again = Ledger(opened(tmp_path)[0], folder, 24)  # as a sweep that goes on reads them
    for trial in ledger.trials:
        again.begin(trial.settings)
    for each in (ledger, again):
        assert each.outcomes(4) == [{"eval_reward_accuracy": 0.7}, "diverged", "diverged", "lost"]
        assert [each.status(trial) for trial in each.trials[2:]] == ["failed", "failed"]


def test_a_rule_is_kinder_to_early_trials_within_bounds() -> None:
    """Of 16 trials of which rungs tell much, not all: the first comes to its end always, and wins 2.2 times as often as
    an even chance would have it; no other wins twice as often. So what comes first is the run as it stands, or drawn.
    """
    own, generator, trials, sims = config(grace_steps=8), np.random.default_rng(0), 16, 200
    rule, finished, wins = rule_of(own, 72), np.zeros(trials), np.zeros(trials)
    for _ in range(sims):
        worth = generator.normal(size=(trials, 1)) * math.sqrt(0.7) + generator.normal(size=(trials, 3)) * math.sqrt(
            0.3
        )
        curves = [Curve(list(zip((8, 24, 72), values, strict=True)), over=True) for values in worth.tolist()]
        ended = [index for index, stop in enumerate(early_stops(curves, rule(), 72)) if stop is None]
        finished[ended] += 1
        wins[max(ended, key=lambda index: worth[index, -1])] += 1
    finished, wins = finished / sims, wins / sims
    assert finished[0] == 1 and (finished[1:] <= 0.45).all() and finished[8:].mean() == pytest.approx(0.18, abs=0.05)
    assert wins[0] <= 2.6 / trials and (wins[1:] <= 2 / trials).all()


# Trials of unlike length or data -------------------------------------------------------------------------------------


def test_trials_of_other_batch_sizes_are_stopped_at_the_same_pairs_seen() -> None:
    """A trial of half the batch has twice the steps: its step 16 is another's step 8, and it is stopped there."""
    own = config(grace_steps=8)
    rule = rule_of(own, 72)
    full = [Curve([(step, value) for step in range(8, 73, 8)], over=True) for value in (0.5, 0.4)]
    half = [Curve([(2 * step, value) for step in range(8, 73, 8)], over=True, length=144) for value in (0.5, 0.4)]
    assert early_stops(full, rule(), 72) == [None, 8]
    assert early_stops([full[0], half[1]], rule(), 72) == [None, 16]
    assert early_stops([half[0], full[1]], rule(), 72) == [None, 8]
    # As if alike, a trial that is ahead by the step and not by the pairs would stop the other.
    rising = [Curve([(s, s / n) for s in range(n // 9, n + 1, n // 9)], over=True, length=n) for n in (72, 144)]
    assert early_stops(rising, rule(), 72) == [None, None]


@pytest.mark.parametrize(
    ("key", "values", "keys", "told"),
    [
        ("data.eval", "choice(toy, toy-test)", {}, "decides the held-out pairs, so trials could not be compared"),
        ("data.max_length", "choice(96, 128)", {}, "decides the held-out pairs"),
        ("data.comparisons", "choice(every_pair, best_against_worst)", {}, "decides the held-out pairs"),
        ("data.train", "choice(toy, toy-base)", {"train.data.eval": None}, "could not be compared; set data.eval"),
        ("seed", "choice(1, 2)", {"train.data.eval": None}, "could not be compared; set data.eval"),
        ("train.max_steps", "choice(10, 20)", {}, "would differ in how many pairs they see"),
        ("train.epochs", "choice(1, 2)", {}, "would differ in how many pairs they see"),
        ("train.global_batch_size", "choice(8, 16)", {"train.train.max_steps": 9},
         "at that length; leave out train.max_steps, or set scheduler: none"),
        ("data.train", "choice(toy, toy-base)", {}, "at that length; set train.max_steps, or set scheduler: none"),
        ("train.keep_by", "choice(eval_loss, eval_nll)", {}, "follows from the sweep's metric"),
        ("data.unseen_fraction", "choice(0.2, 0.5)", {}, "follows from the sweep's metric and unseen_fraction"),
        ("objective.name", "choice(orpo, kto)", {}, "kto takes other comparisons"),
    ],
)  # fmt: skip
def test_trials_that_cannot_be_compared_are_refused(key: str, values: str, keys: dict[str, Any], told: str) -> None:
    overrides = [f"{name}={json.dumps(value)}" for name, value in keys.items()]
    with pytest.raises(UserError) as error:
        config(*overrides, space={key: values})
    assert f"space.{key}: " in str(error.value) and told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "values", "overrides"),
    [
        ("train.global_batch_size", "choice(8, 16)", []),
        ("train.epochs", "choice(1, 2)", ["scheduler=none"]),
        ("data.train", "choice(toy, toy-base)", ["train.train.max_steps=9"]),
        ("data.limit", "choice(100, 200)", ["scheduler=none"]),
        ("seed", "choice(1, 2)", []),
    ],
)
def test_what_can_be_compared_is_not_refused(key: str, values: str, overrides: list[str]) -> None:
    assert config(*overrides, space={key: values}).space == {key: values}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"train.train.keep_by": "eval_nll"}, "train.keep_by: eval_nll is not the sweep's metric"),
        ({"train.data.unseen_fraction": 0.1}, "train.data.unseen_fraction: is the sweep's unseen_fraction"),
        ({"metric": "eval_unseen_nll"}, "metric: eval_unseen_nll is of the pairs that choose nothing"),
    ],
)
def test_a_run_of_other_wishes_is_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        config(*(f"{name}={json.dumps(value)}" for name, value in keys.items()))
    assert told in str(error.value)


# Finalists -----------------------------------------------------------------------------------------------------------

FINALISTS = "finalists={against: x, reward_model: toy, prompts: 60, count: 2}"


def data_of(own: SweepConfig) -> PreparedData:
    return prepare(own.training(own.first_point, "any", own.storage), toyworld.tokenizer())


def test_finalists_answer_prompts_that_have_ranked_none_of_them(tmp_path: Path) -> None:
    own = sweep_config(tmp_path, FINALISTS, "train.data.limit=40")
    data = data_of(own)
    records = unseen_records(own, data)
    assert len(records) == 60 and not {*records} & {*data.eval.record_ids.tolist()}
    assert own.finalists is not None
    run = own.training(own.first_point, "any", own.storage)
    evaluation = on_held_out(run, own.finalists, {"a": "x"}, "finalists", tmp_path, 0, records)
    prompts, account = read_prompts(evaluation.prompts, with_messages=False)
    assert (len(prompts), account.read) == (60, 60)
    ranked = {tuple(data.eval.pair(i)[0].tolist()) for i in range(len(data.eval))}
    first = {i: tuple(data.unseen.pair(i)[0].tolist()) for i in range(60)} if data.unseen is not None else {}
    assert not {*first.values()} & ranked
    # In the order of the source, the same prompts as the tokens say.
    tokenizer = toyworld.tokenizer()
    assert [tokenizer.decode(first[i], skip_special_tokens=True).split() for i in (0, 59)] == [
        str(prompts[i].as_found.prompt).split() for i in (0, 59)
    ]


def test_where_win_rates_rank_their_prompts_are_left_out(tmp_path: Path) -> None:
    win_rate = "train.eval={win_rate: {against: x, reward_model: toy, prompts: %d}}"
    asked = (FINALISTS, "train.data.limit=40", "metric=eval_win_rate")
    own = sweep_config(tmp_path, *asked, win_rate % 300)
    assert min(unseen_records(own, data_of(own))) >= 300
    own = sweep_config(tmp_path, *asked, win_rate % 400)
    with pytest.raises(UserError, match=r"finalists: of the prompts of data\.eval none is left that ranks no trial"):
        unseen_records(own, data_of(own))


# What needs models and data to be told ------------------------------------------------------------------------------


def test_a_metric_that_some_trials_lack_is_refused_before_any_begins(tmp_path: Path) -> None:
    own = sweep_config(tmp_path, "metric=eval_reward_margin", "space={objective.name: 'choice(simpo, orpo)'}")
    with pytest.raises(UserError, match=r"eval_reward_margin: no evaluation with objective\.name=orpo gives it; there"):
        require_known(own, SweepFolder(own))


def test_trials_of_other_tokenizers_are_refused(tmp_path: Path) -> None:
    other = copy.deepcopy(toyworld.tokenizer())
    other.add_tokens(["hello there"])
    other.save_pretrained(tmp_path / "other")
    for values, refused in ((f"choice(toy, {tmp_path}/other)", True), ("choice(toy)", False)):
        own = sweep_config(tmp_path, f"space={{model.tokenizer: '{values}'}}")
        if refused:
            with pytest.raises(UserError, match=r"model\.tokenizer: toy and .*other cut texts into other tokens"):
                require_known(own, SweepFolder(own))
        else:
            require_known(own, SweepFolder(own))


def test_each_trial_has_its_own_length(tmp_path: Path) -> None:
    """By the batch size, of the data they share; by its own data, where trials train on other pairs."""
    own = sweep_config(
        tmp_path, "train.data.limit=120", "scheduler=none", "space={train.global_batch_size: 'choice(8, 16)', "
        "train.epochs: 'choice(1, 3)', data.limit: 'choice(120, 60)'}",
    )  # fmt: skip
    shared = data_of(own)
    steps = lengths(own, SweepFolder(own), shared, Console())
    pairs = {120: len(shared.train), 60: 0}
    pairs[60] = len(data_of(sweep_config(tmp_path, "train.data.limit=60")).train)
    for limit, batch, epochs in itertools.product((120, 60), (8, 16), (1, 3)):
        settings = {"train.global_batch_size": batch, "train.epochs": epochs, "data.limit": limit}
        assert steps(settings) == epochs * -(-pairs[limit] // batch)


def test_the_page_of_trials_of_unlike_lengths(tmp_path: Path) -> None:
    space = "{train.global_batch_size: 'choice(8, 16)', train.epochs: 'choice(1, 2)'}"
    own = sweep_config(tmp_path, "scheduler=none", f"space={space}")
    folder = SweepFolder(own)
    folder.open_for(own)
    ledger = Ledger(own, folder, 24, lambda settings: 24 * 16 // settings["train.global_batch_size"])
    for number, batch in enumerate((16, 8, 16, 8, 16)):
        own_settings = {"train.global_batch_size": batch, "train.epochs": 1}
        begin(folder, ledger, [0.5 + number / 100] * (3 * 16 // batch), settings=own_settings)
    write_results(folder, ledger)
    found = summary(own, ledger, 24, ledger.ranking()[0], [])
    assert found["unlike_lengths"] == ["train.epochs"]
    assert (found["steps_of_all"], found["trials"][1]["total_steps"]) == (3 * 24 + 2 * 48, 48)
    write_summary(folder, found | {"seconds": 1.0, "finished": ""})
    page = write_sweep_report(folder.path).read_text()
    assert "Trials see other numbers of pairs (train.epochs): the best may be so for that." in page
    assert "share of the trial" in page and "trials at 33% of each, the first that all of them reached" in page


def test_records_by_their_places(tmp_path: Path) -> None:
    asked = {"name": "e", "models": {"a": "toy"}, "reward_models": {"j": "toy"}}
    config_of = partial(parse_as, EvaluationConfig, overrides=[], origin="e.yaml")
    own = config_of({**asked, "prompts": {"source": "toy-test", "records": [7, 3]}})
    prompts, account = read_prompts(own.prompts, with_messages=False)
    every = read_prompts(own.prompts.model_copy(update={"records": None}), with_messages=False)[0]
    assert [prompt.as_found for prompt in prompts] == [every[3].as_found, every[7].as_found] and account.read == 2
    with pytest.raises(UserError, match="records: says which are read, and so does limit"):
        config_of({**asked, "prompts": {"source": "toy-test", "records": [7, 3], "limit": 5}})
    missing = config_of({**asked, "prompts": {"source": "toy-test", "records": [3, 400]}})
    with pytest.raises(UserError, match=r"prompts\.records: toy-test has no record 400"):
        read_prompts(missing.prompts, with_messages=False)
