"""What each token of a rollout was worth: rewards, advantages and returns, and how far engine and trainer are apart.

All in float64 numpy, on the host, over one round of rollouts. Arrays are flat: `(tokens,)` holds the response tokens of
all samples behind each other, without padding, and `lengths (samples,)` how many each has; samples of one prompt follow
each other, K each. There is no padding, so none can be averaged, discounted or bootstrapped from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orpo_ray.config.objectives import KL_STEP

Floats = NDArray[np.float64]

_NO_SPREAD = 1e-4  # beside the standard deviation of a group; TRL's
_NO_VARIANCE = 1e-8  # beside the variance that is whitened; TRL's


def token_rewards(scores: ArrayLike, kl: ArrayLike, lengths: ArrayLike, coefficient: float) -> Floats:
    """`(tokens,)`: `-coefficient * kl`, and the score of a sample beside it at the sample's last token.

    `scores (samples,)`; `kl (tokens,)`: `log pi_old - log pi_ref` at the token drawn, in nats ("k1": of either sign,
    its mean over draws is the KL). A response that was cut has its score at its last token too. arXiv 2009.01325.
    """
    counts = _counts(lengths)
    rewards = -coefficient * _finite("kl", kl, counts.sum())
    rewards[counts.cumsum() - 1] += _finite("scores", scores, len(counts))
    return rewards


def response_totals(rewards: ArrayLike, lengths: ArrayLike) -> Floats:
    """`(samples,)`: sums of `rewards (tokens,)` over each response, where that is one action."""
    counts = _counts(lengths)
    return np.add.reduceat(_finite("rewards", rewards, counts.sum()), counts.cumsum() - counts)


def gae(rewards: ArrayLike, values: ArrayLike, lengths: ArrayLike, *, gamma: float, lambda_: float) -> Floats:
    """Generalised advantages `(tokens,)`: `A_t = d_t + gamma * lambda * A_(t+1)`, with
    `d_t = r_t + gamma * V_(t+1) - V_t` (arXiv 1506.02438, Eq. 16).

    `values (tokens,)`: the critic's, before each token is drawn. Behind the last token of a response value and
    advantage are 0, whether it ended or was cut: what it scored is all it gets. Returns, which the critic learns, are
    `advantages + values`, of these advantages and not of whitened ones.
    """
    counts = _counts(lengths)
    rewards, values = (_finite(name, of, counts.sum()) for name, of in (("rewards", rewards), ("values", values)))
    advantages = np.empty_like(rewards)
    ends, next_value, following = counts.cumsum(), np.zeros(len(counts)), np.zeros(len(counts))
    for back in range(1, counts.max(initial=0) + 1):  # all samples at a time, each from its own end
        still = counts >= back
        at = ends[still] - back
        following[still] = rewards[at] + gamma * next_value[still] - values[at] + gamma * lambda_ * following[still]
        next_value[still], advantages[at] = values[at], following[still]
    return advantages


def whitened(advantages: ArrayLike) -> Floats:
    """`(tokens,)` with mean 0 and variance 1 over all of them, which are those of a whole round; zeros where they are
    all alike."""
    advantages = _finite("advantages", advantages)
    centred = advantages - advantages.mean()
    scaled: Floats = centred / np.sqrt(np.square(centred).mean() + _NO_VARIANCE)
    return scaled


def leave_one_out(totals: ArrayLike, samples: int) -> Floats:
    """`(samples,)`: each total less the mean of the prompt's other K - 1 (arXiv 2402.14740).

    The baseline does not depend on the sample, so the gradient is unbiased. Raises `ValueError` where K is 1.
    """
    return (_centred(totals, samples) * (samples / (samples - 1))).ravel()


def group_relative(totals: ArrayLike, samples: int, *, scale: bool) -> Floats:
    """`(samples,)`: each total less the mean of the prompt's K, itself among them (arXiv 2402.03300, Sec. 4.1.2).

    `scale`: over their standard deviation, that of a sample (K - 1), with 1e-4 added to it, as TRL does: what parts
    scores that should be equal is not blown up. Without it this is Dr. GRPO (arXiv 2503.20783), K - 1 K-ths of
    `leave_one_out`. Zeros where all K are equal, either way. Raises `ValueError` where K is 1.
    """
    centred = _centred(totals, samples)
    if scale:
        centred /= np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / (samples - 1)) + _NO_SPREAD
    return centred.ravel()


def adapted(coefficient: float, kl_of_responses: float, target: float, horizon: float, responses: int) -> float:
    """The next round's KL coefficient: `coefficient * (1 + clip(kl / target - 1, ±0.2) * responses / horizon)`
    (arXiv 1909.08593, Sec. 2.2).

    `kl_of_responses`: the mean over the round's `responses` of their KL, a sum over tokens in nats. Raises `ValueError`
    where a round has so many responses that one step could take the coefficient to 0 or below.
    """
    if KL_STEP * responses >= horizon:
        raise ValueError(f"a KL horizon of {horizon:g} responses is too short for rounds of {responses}")
    error = float(np.clip(kl_of_responses / target - 1, -KL_STEP, KL_STEP))
    return coefficient * (1 + error * responses / horizon)


def importance(
    old_logps: ArrayLike, engine_logps: ArrayLike, cap: float | None, lengths: ArrayLike | None = None
) -> Floats:
    """What each token weighs `(tokens,)`, since another program drew it: `min(pi_old / mu, cap)`, truncated importance
    sampling, of the trainer's and the engine's log-probs of the tokens drawn. Ones where `cap` is None.

    With `lengths` a response is one action: its tokens all have the product over the response, truncated as a whole. A
    product of truncated weights would be at most `cap ** tokens`, which truncates nothing, and low all the same.
    """
    apart = _apart(old_logps, engine_logps)
    if cap is None:
        return np.ones_like(apart)
    if lengths is not None:
        apart = response_totals(apart, lengths).repeat(_counts(lengths))
    weights: Floats = np.exp(np.minimum(apart, np.log(cap)))
    return weights


def mismatch(old_logps: ArrayLike, engine_logps: ArrayLike) -> dict[str, float]:
    """How far the trainer's log-probs are from the engine's of the same tokens by the same weights, in nats: mean and
    largest distance, and `mean(e^x - x - 1)` with `x = log pi_old - log mu`, which estimates KL(mu, pi_old) per token
    and is never negative ("k3")."""
    apart = _apart(old_logps, engine_logps)
    with np.errstate(over="ignore"):  # beyond e^709 it is infinite, which tells enough
        estimate = float((np.expm1(apart) - apart).mean())
    distance = np.abs(apart)
    return {"mismatch_mean": float(distance.mean()), "mismatch_max": float(distance.max()), "mismatch_k3": estimate}


def explained_variance(values: ArrayLike, returns: ArrayLike) -> float:
    """`1 - Var(returns - values) / Var(returns)`: 1 of a critic that knows, 0 of one that says the same of all tokens,
    negative of one that is worse. NaN where all returns are equal."""
    returns = _finite("returns", returns)
    values = _finite("values", values, len(returns))
    spread = float(returns.var())
    return 1 - float((returns - values).var()) / spread if spread else float("nan")


def _centred(totals: ArrayLike, samples: int) -> Floats:
    """`(prompts, K)` less the mean of each row; zeros, and not what is left of rounding, where a row is all equal."""
    if samples < 2:
        raise ValueError("responses to one prompt are compared with each other, so there have to be at least 2")
    rows = _finite("totals", totals).reshape(-1, samples)
    rows = rows - rows[:, :1]
    centred: Floats = rows - rows.mean(axis=1, keepdims=True)
    return centred


def _apart(old_logps: ArrayLike, engine_logps: ArrayLike) -> Floats:
    old = _finite("old_logps", old_logps)
    return old - _finite("engine_logps", engine_logps, len(old))


def _counts(lengths: ArrayLike) -> NDArray[np.int64]:
    """Raises `ValueError` of a sample without tokens: what would be its last one is its neighbour's."""
    counts = np.asarray(lengths, dtype=np.int64)
    if counts.ndim != 1 or (counts < 1).any():
        raise ValueError("lengths must be of one dimension, each at least 1")
    return counts


def _finite(name: str, given: ArrayLike, expected: int | None = None) -> Floats:
    """Raises `ValueError` of numbers that are not finite: one would be in every mean."""
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 1 or expected not in (None, len(values)) or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite and of one dimension" + (f", {expected} long" if expected else ""))
    return values
