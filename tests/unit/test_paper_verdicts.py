"""Verdicts on the paper's contests and curves: every word, at its boundary, and the sentence of numbers behind it."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy.stats import kendalltau

from orpo_ray.paper import published
from orpo_ray.paper.published import RewardWinRate
from orpo_ray.paper.verdicts import (
    Claim,
    Ends,
    Verdict,
    Weighted,
    Word,
    _trend,
    contest,
    diversity,
    figure_3,
    figure_7,
    figure_8,
    figure_9,
    holds,
    interval,
    mean_reward,
    overall,
    same_number,
)
from orpo_ray.statistics.seeds import Interval

AGREES, DIFFERS, CANNOT_TELL, NOT_RUN = Word
NAN = float("nan")


def ours(low: float, high: float, seeds: int = 3) -> Interval:
    return Interval((low + high) / 2, low, high, ((low + high) / 2,) * seeds, 100)


# Contests


@pytest.mark.parametrize(
    ("low", "high", "paper", "word"),
    [
        (0.60, 0.90, (0.84, 0.006), AGREES),  # both above
        (0.10, 0.40, (0.417, 0.0077), AGREES),  # both below
        (0.10, 0.40, (0.84, 0.006), DIFFERS),
        (0.60, 0.90, (0.417, 0.0077), DIFFERS),
        (0.45, 0.55, (0.84, 0.006), CANNOT_TELL),
        (0.50, 0.90, (0.84, 0.006), CANNOT_TELL),  # an end on one half holds it
        (0.501, 0.90, (0.84, 0.006), AGREES),
        (0.10, 0.50, (0.84, 0.006), CANNOT_TELL),
        (0.499, 0.52, (0.506, 0.003), AGREES),  # the paper's is two sd from one half, not more
        (0.40, 0.60, (0.494, 0.0054), AGREES),  # open in both
        (0.39, 0.60, (0.494, 0.0054), CANNOT_TELL),  # too wide to be a draw
        (0.05, 0.95, (0.494, 0.0054), CANNOT_TELL),
        (0.5001, 0.59, (0.494, 0.0054), AGREES),  # meets 0.494 + 2 sd = 0.5048
        (0.5001, 0.80, (0.494, 0.0054), CANNOT_TELL),
        (0.505, 0.59, (0.494, 0.0054), DIFFERS),  # beyond the band and one half
        (0.30, 0.45, (0.494, 0.0054), DIFFERS),
    ],
)
def test_who_wins(low, high, paper, word):
    verdict = contest(ours(low, high), RewardWinRate(*paper))
    assert verdict.word == word, verdict.why


def test_the_sentence_of_a_contest_has_both_numbers():
    verdict = contest(ours(0.6, 0.9), published.WIN_RATES["hh", "125M", "sft"])
    assert verdict.why == (
        "Ours, 75.0% (60.0% to 90.0%, 3 seeds), and the paper's, 84.0% (sd of rounds 0.62), are both above 50%."
    )
    assert "one run" in contest(ours(0.6, 0.9, seeds=1), RewardWinRate(0.84, 0.006)).why


def test_what_was_not_run_says_why():
    paper = RewardWinRate(0.84, 0.006)
    assert contest(None, paper, "at step 40 of 200") == Verdict(NOT_RUN, "at step 40 of 200")
    assert contest(None, paper).why
    for claims in (
        figure_3(None, None, "no SFT"), figure_7(None, None, None, "no SFT"), figure_8(None, None, "no SFT"),
        figure_9([], "no SFT"), diversity(None, None, "no SFT"),
        [mean_reward(None, None, "SFT", paper, "no SFT")],
    ):  # fmt: skip
        assert overall(claims) == Verdict(NOT_RUN, "no SFT")
    assert same_number(None, 0.5, "no key").word == NOT_RUN


def test_the_papers_number_within_ours():
    assert holds(ours(0.6, 0.84), 0.84)
    assert not holds(ours(0.6, 0.839), 0.84)
    assert same_number(ours(0.11, 0.13), 0.122).word == AGREES
    verdict = same_number(ours(0.13, 0.15), 0.122)
    assert (verdict.word, verdict.why) == (
        DIFFERS, "The paper's 0.122 is outside our interval, 0.140 (0.130 to 0.150, 3 seeds).",
    )  # fmt: skip


# Curves


def ends(start: float, change: float, spread: float = 0.01, seeds: int = 3) -> Ends:
    """About `start` in every seed; changes `spread` apart."""
    return Ends([start] * seeds, [start + change + spread * (i - (seeds - 1) / 2) for i in range(seeds)])


def words(claims: tuple[Claim, ...]) -> list[Word]:
    return [claim.verdict.word for claim in claims]


def test_figure_3_both_rise():
    assert words(figure_3(ends(-2.5, 0.3), ends(-2.5, 0.2))) == [AGREES, AGREES]
    fallen = figure_3(ends(-2.5, 0.3), ends(-2.5, -0.2))
    assert words(fallen) == [AGREES, DIFFERS]
    assert overall(fallen) == fallen[1].verdict
    assert fallen[1].verdict.why == (
        "Rejected −2.50 → −2.70, a change: −0.200 (−0.225 to −0.175, 3 seeds); in the paper −2.54 → −2.17."
    )
    assert words(figure_3(ends(-2.5, 0.3), ends(-2.5, 0.2, spread=0.3))) == [AGREES, CANNOT_TELL]


def test_one_run_tells_nothing_by_its_means_and_something_by_its_pairs():
    (chosen, rejected) = figure_3(ends(-2.5, 0.3, seeds=1), ends(-2.5, 0.2, seeds=1))
    assert words((chosen, rejected)) == [CANNOT_TELL, CANNOT_TELL]
    assert chosen.ours is None
    assert "0.300 in one run" in chosen.verdict.why
    rng = np.random.default_rng(0)
    start = rng.normal(-2.5, 0.5, 80)
    start[3] = NAN
    end = start + rng.normal(0.3, 0.4, 80)
    by_pair = figure_3(Ends([start], [end]), Ends([start], [2 * start - end]))
    assert words(by_pair) == [AGREES, DIFFERS]
    assert by_pair[0].ours
    assert by_pair[0].ours.prompts == 79
    assert "one run)" in by_pair[0].verdict.why


def test_pairs_of_several_seeds_are_no_surer_than_the_seeds():
    rng = np.random.default_rng(0)
    start = rng.normal(-2.5, 0.5, (3, 500))
    end = start + rng.normal(0.1, 0.1, (3, 500)) + np.array([[-0.2], [0.0], [0.2]])
    (claim, _) = figure_3(Ends(list(start), list(end)), None)
    assert claim.verdict.word == CANNOT_TELL


def test_seeds_that_are_all_the_same_tell_nothing():
    claims = figure_3(ends(-2.5, 0.3, spread=0), ends(-2.5, 0.3, spread=0))
    assert words(claims) == [CANNOT_TELL, CANNOT_TELL]
    assert "0.300 (3 seeds, all alike, which tells no interval)" in claims[0].verdict.why


def test_figure_7_the_ratio_grows_and_the_rejected_fall():
    ratio, chosen, rejected = ends(0.2, 1.2), ends(-1.3, 0.6), ends(-1.4, -0.3)
    claims = figure_7(chosen, rejected, ratio)
    assert words(claims) == [AGREES, AGREES, AGREES]
    assert overall(claims).word == AGREES
    assert "0.17 → 0.08 → 1.44" in claims[0].verdict.why
    assert words(figure_7(rejected, chosen, ratio)) == [AGREES, DIFFERS, DIFFERS]


def test_figure_8_is_paired_by_seed():
    levels = np.array([-1.0, -2.0, -3.0])  # seeds differ far more than the two ratios do
    odds = Ends([-1.5] * 3, list(levels))
    further = Ends([-1.5] * 3, list(levels - [0.30, 0.32, 0.28]))
    assert words(figure_8(further, odds)) == [AGREES]
    assert words(figure_8(odds, further)) == [DIFFERS]
    shuffled = Ends(further.start, [further.end[i] for i in (1, 2, 0)])
    assert words(figure_8(shuffled, odds)) == [CANNOT_TELL]
    assert words(figure_8(further, None)) == [NOT_RUN]


def test_figure_9_over_seeds_compares_the_largest_weight_with_the_smallest():
    low = Weighted(0.1, chosen=ends(-2, 1.19), rejected=ends(-2, 0.8))
    assert words(figure_9([Weighted(1.0, ends(-2, 1.1), ends(-2, -1)), low])) == [CANNOT_TELL, CANNOT_TELL]  # all alike
    claims = figure_9([Weighted(1.0, ends(-2, 1.1, spread=0.05), ends(-2, -1, spread=0.02)), low])
    assert words(claims) == [AGREES, AGREES]
    assert claims[0].verdict.why.startswith("Rejected log-prob at the end, at λ = 1 less at λ = 0.1: −1.8")
    assert "−1.16 at 0.1, −2.32 at 0.5, −2.19 at 1" in claims[0].verdict.why
    assert "0.35 at 0.1, 1.20 at 0.5, 1.09 at 1" in claims[1].verdict.why


def single(weights: list[float], slope: float = -1.0) -> list[Weighted]:
    return [Weighted(w, Ends([-2.0], [-1.0]), Ends([-2.0], [-1.2 + slope * w])) for w in weights]


def test_figure_9_of_one_seed_needs_five_weights():
    assert words(figure_9(single([0.1, 0.5, 1.0, 2.0]))) == [CANNOT_TELL, CANNOT_TELL]
    assert words(figure_9(single([2.0, 0.1, 0.25, 0.5, 1.0]))) == [AGREES, AGREES]
    assert words(figure_9(single([0.1, 0.25, 0.5, 1.0, 2.0], slope=1.0))) == [DIFFERS, DIFFERS]
    assert words(figure_9(single([0.5]))) == [CANNOT_TELL, CANNOT_TELL]
    assert words(figure_9(single([0.1, 0.2, 0.3, 0.4, 0.5], slope=0.0))) == [CANNOT_TELL, CANNOT_TELL]
    assert "one run each" in figure_9(single([0.1, 0.5, 1.0, 2.0]))[0].verdict.why


@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.5, 1, 2], [0.1, 0.1, 0.1, 1, 1, 1]])
def test_a_trend_is_tested_by_all_permutations(weights):
    rng = np.random.default_rng(1)
    means = rng.normal(0, 1, len(weights)) - 2 * np.array(weights)
    tau, p = _trend(np.array(weights, dtype=float), means)
    taus = [kendalltau(order, means).statistic for order in permutations(weights)]
    assert tau == pytest.approx(kendalltau(weights, means).statistic)
    assert p == pytest.approx(np.mean(np.abs(taus) >= abs(tau) - 1e-9))


# Rewards and diversity


def test_mean_rewards_take_the_side_of_the_win_rate():
    rng = np.random.default_rng(2)
    sft = [rng.normal(0, 1, (60, 2)) for _ in range(3)]
    orpo = [rewards + rng.normal(0.5, 0.3, (60, 2)) for rewards in sft]
    orpo[0][4] = NAN
    above = mean_reward(orpo, sft, "SFT", RewardWinRate(0.84, 0.006))
    assert above.verdict.word == AGREES
    assert above.text == "ORPO's mean reward is above SFT's."
    assert mean_reward(sft, orpo, "SFT", RewardWinRate(0.84, 0.006)).verdict.word == DIFFERS
    below = mean_reward(orpo, sft, "DPO", RewardWinRate(0.417, 0.0077))
    assert (below.verdict.word, below.text) == (DIFFERS, "ORPO's mean reward is below DPO's.")
    open_ = mean_reward(orpo, sft, "DPO", RewardWinRate(0.494, 0.0054))
    assert open_.verdict.word == CANNOT_TELL and open_.ours and open_.ours.beyond(0) == 1
    assert open_.text == "The paper leaves open whether ORPO's mean reward is above or below DPO's."
    assert mean_reward(None, None, "DPO", RewardWinRate(0.494, 0.0054)).text == open_.text, "run or not"
    assert mean_reward(orpo[:1], sft[:1], "SFT", RewardWinRate(0.84, 0.006)).verdict.word == AGREES
    assert mean_reward(orpo, None, "SFT", RewardWinRate(0.84, 0.006), "no SFT").verdict.word == NOT_RUN


def test_diversity():
    more, less = [0.90, 0.91, 0.92], [0.80, 0.82, 0.81]
    claims = diversity((more, less), (less, more))
    assert words(claims) == [AGREES, AGREES]
    assert "0.090 (Phi-2) and 0.012 (Llama-2)" in claims[0].verdict.why
    assert "−0.085 (Phi-2) and −0.057 (Llama-2)" in claims[1].verdict.why
    assert words(diversity((less, more), (less[:1], more[:1]))) == [DIFFERS, CANNOT_TELL]


# What holds for all


def test_a_figure_is_as_good_as_its_worst_claim():
    def claim(word: Word) -> Claim:
        return Claim("", Verdict(word, word.value.upper()))

    ranked = [claim(word) for word in (DIFFERS, CANNOT_TELL, NOT_RUN, AGREES)]
    for worse, better in pairwise(ranked):
        assert overall([better, worse, better]) == worse.verdict
    assert overall([ranked[0], Claim("", Verdict(DIFFERS, "AND MORE"))]).why == "DIFFERS AND MORE"
    with pytest.raises(ValueError, match="no claim"):
        overall([])


def test_ends_need_a_start_and_an_end_of_each_seed():
    for start, end in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="each seed"):
            Ends(start, end)
    with pytest.raises(ValueError, match="same seeds"):
        figure_8(ends(0, 1), ends(0, 1, seeds=2))


def test_an_interval_of_means_or_of_pairs():
    assert interval([1.0]) is None
    assert interval([1.0, 2.0, 3.0]).prompts == 0
    assert interval([[1.0, 2.0], [2.0, 1.5]]).prompts == 2


# What was printed


def test_the_papers_win_rates_are_all_there():
    assert set(published.WIN_RATES) == {
        (data, size, against)
        for data in published.TABLES for size in published.SIZES for against in published.AGAINST
    }  # fmt: skip
    assert all(0.4 < rate.win_rate < 0.9 and 0.001 < rate.sd < 0.011 for rate in published.WIN_RATES.values())
    open_ = [place for place, rate in published.WIN_RATES.items() if abs(rate.win_rate - 0.5) <= 2 * rate.sd]
    assert open_ == [("hh", "350M", "dpo")]
    lost = [place for place, rate in published.WIN_RATES.items() if rate.win_rate < 0.5]
    assert lost == [("hh", "125M", "dpo"), ("hh", "350M", "dpo"), ("ultrafeedback", "125M", "dpo")]


def test_labels_of_the_papers_curves():
    assert published.FIGURE_3.label == "OPT-350M on HH-RLHF"
    assert published.FIGURE_7.label == "OPT-350M, λ = 1"
    assert [curves.label for curves in published.FIGURE_9] == [
        f"Mistral-7B on UltraFeedback, λ = {weight}" for weight in ("0.1", "0.5", "1")
    ]
