"""Agreement of two reward models: counted by hand, and under what must not matter."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr

from orpo_ray.statistics.agreement import agreement, agreement_of_outcomes

NAN = float("nan")


def two_models(verdicts):
    """Scores of models x and y under a reward model that prefers x where `verdicts` is positive."""
    verdicts = np.array(verdicts, dtype=float)[:, None]
    return {"x": verdicts, "y": np.zeros_like(verdicts)}


def test_counted_by_hand():
    # Both for x: 4, both for y: 3, a for x alone: 2, b for x alone: 1.
    a = two_models([1] * 4 + [-1] * 3 + [1] * 2 + [-1])
    b = two_models([1] * 4 + [-1] * 3 + [-1] * 2 + [1])
    result = agreement(a, b)
    assert result is not None
    assert result.comparisons == 10
    assert result.agree == 0.7
    chance = 0.6 * 0.5 + 0.4 * 0.5
    assert result.kappa == pytest.approx((0.7 - chance) / (1 - chance))


def test_missing_scores_are_no_comparison_and_a_tie_beside_a_winner_is_half_agreement():
    a = two_models([1, 1, 1, NAN, 1, -1, 0.00005])
    b = two_models([1, 0, NAN, 1, -1, -1, 1])
    result = agreement(a, b)
    assert result is not None
    assert (result.comparisons, result.ties) == (5, (1, 1))
    assert result.agree == pytest.approx((1 + 0.5 + 0 + 1 + 0.5) / 5)
    exact = agreement(a, b, tie=0)
    assert exact is not None
    assert (exact.ties, exact.agree) == ((0, 1), pytest.approx(3.5 / 5))


def test_a_judge_that_mostly_ties_does_not_agree_because_of_the_rest():
    """Left out, 90 ties of b would leave ten comparisons, of which both tell the same story."""
    rng = np.random.default_rng(0)
    verdicts = rng.choice([-1.0, 1.0], 100)
    result = agreement(two_models(verdicts), two_models(np.where(np.arange(100) < 10, verdicts, 0)))
    assert result is not None
    assert (result.comparisons, result.ties, result.agree) == (100, (0, 90), pytest.approx(0.55))
    assert result.kappa < 0.2


def test_kappa_with_ties_by_hand():
    # By rows a's verdict for y, tie, for x; by columns b's. Linear weights: a tie is half way.
    table = np.array([[5, 1, 0], [2, 4, 2], [1, 3, 7]])
    a = two_models(np.repeat([-1.0, 0, 1], table.sum(axis=1)))
    b = two_models(np.concatenate([np.repeat([-1.0, 0, 1], row) for row in table]))
    result = agreement(a, b)
    assert result is not None
    credit = 1 - np.abs(np.subtract.outer([0, 0.5, 1], [0, 0.5, 1]))
    seen = (table * credit).sum() / 25
    chance = (np.outer(table.sum(axis=1), table.sum(axis=0)) * credit).sum() / 625
    assert result.agree == pytest.approx(seen)
    assert result.kappa == pytest.approx((seen - chance) / (1 - chance))


def test_probabilities_agree_by_their_side_whichever_model_is_named_first():
    a = {("x", "y"): np.array([[0.9], [0.4], [0.5], [0.7]])}
    b = {("x", "y"): np.array([[0.6], [0.1], [0.8], [0.2]])}
    result = agreement_of_outcomes(a, b)
    assert result is not None
    assert (result.agree, result.comparisons, result.ties) == (0.625, 4, (1, 0))
    assert result.spearman is None
    assert agreement_of_outcomes(a, {("y", "x"): 1 - b["x", "y"]}) == result
    with pytest.raises(ValueError, match="from 0 to 1"):
        agreement_of_outcomes(a, {("x", "y"): 2 * b["x", "y"]})


def test_spearman_is_over_responses_that_both_have_scored():
    rng = np.random.default_rng(0)
    quality = {m: rng.normal(size=(50, 2)) for m in "xyz"}
    a = {m: q + rng.normal(size=q.shape) for m, q in quality.items()}
    b = {m: np.exp(q + rng.normal(size=q.shape)) for m, q in quality.items()}
    a["x"][3, 1] = b["y"][4, 0] = NAN
    result = agreement(a, b)
    assert result is not None
    flat_a, flat_b = (np.concatenate([s[m].ravel() for m in "xyz"]) for s in (a, b))
    seen = ~np.isnan(flat_a + flat_b)
    assert seen.sum() == 298
    assert result.spearman == pytest.approx(spearmanr(flat_a[seen], flat_b[seen]).statistic)


def test_any_rising_transform_agrees_fully_and_its_opposite_not_at_all():
    rng = np.random.default_rng(1)
    a = {m: rng.normal(size=(40, 3)) for m in "xyz"}
    same, opposite = (agreement(a, {m: sign * 5 * np.exp(s) for m, s in a.items()}) for sign in (1, -1))
    assert same is not None and opposite is not None
    assert (same.agree, same.kappa, same.comparisons) == (1.0, pytest.approx(1.0), 360)
    assert same.spearman == pytest.approx(1)
    assert opposite.agree == 0.0
    assert opposite.kappa < -0.9
    assert opposite.spearman == pytest.approx(-1)


def test_judges_that_only_know_the_better_model_have_no_kappa():
    # Independent verdicts, both for the better model of each two in 80 %: they agree in 68 %, all of it by chance.
    rng = np.random.default_rng(2)
    verdicts = [np.where(rng.random((5000, 1)) < 0.8, 1.0, -1.0) for _ in range(4)]
    a = {"x": verdicts[0], "y": np.zeros((5000, 1)), "z": np.full((5000, 1), NAN)}
    b = {"x": verdicts[1], "y": np.zeros((5000, 1)), "z": np.full((5000, 1), NAN)}
    result = agreement(a, b)
    assert result is not None
    assert result.agree == pytest.approx(0.68, abs=0.02)
    assert result.kappa == pytest.approx(0, abs=0.03)


def test_neither_the_names_of_models_nor_their_order_change_anything():
    rng = np.random.default_rng(3)
    quality = {m: rng.normal(shift, 1, (60, 2)) for m, shift in {"x": 0.0, "y": 0.8, "z": -0.6}.items()}
    a, b = ({m: q + rng.normal(0, 1, q.shape) for m, q in quality.items()} for _ in range(2))
    expected = agreement(a, b)
    assert expected is not None
    assert expected.kappa < 2 * expected.agree - 1  # chance is above one half
    for names in permutations("xyz"):
        renamed = agreement(*({new: s[old] for new, old in zip("xyz", names, strict=True)} for s in (a, b)))
        assert renamed is not None
        assert (renamed.agree, renamed.comparisons) == (expected.agree, expected.comparisons)
        assert renamed.kappa == pytest.approx(expected.kappa, abs=1e-12)
        assert renamed.spearman == pytest.approx(expected.spearman, abs=1e-12)
        assert agreement({m: a[m] for m in names}, {m: b[m] for m in names}) == expected
    swapped = agreement(b, a)
    assert swapped is not None
    assert (swapped.agree, swapped.comparisons) == (expected.agree, expected.comparisons)
    assert (swapped.kappa, swapped.spearman) == pytest.approx((expected.kappa, expected.spearman), abs=1e-12)


@pytest.mark.parametrize(("a", "b", "agree"), [([1, 1], [1, 1], 1), ([1, 1], [-1, -1], 0), ([1, 1], [1, -1], 0.5)])
def test_constant_verdicts_show_nothing_beyond_chance(a, b, agree):
    result = agreement(two_models(a), two_models(b))
    assert result is not None
    assert result.agree == agree
    assert result.kappa == 0.0


def test_nothing_to_compare():
    assert agreement(two_models([0, NAN]), two_models([NAN, 1])) is None
    assert agreement({"x": np.ones((2, 1))}, {"x": np.ones((2, 1))}) is None
    assert agreement(two_models([1]), {"x": np.ones((1, 1)), "z": np.zeros((1, 1))}) is None
    assert agreement({}, {}) is None


def test_scores_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        agreement(two_models([1, 2]), two_models([1, 2, 3]))
