"""What objectives that compare rewards share: log-ratios to a reference model, and the metrics of a margin.

The conventions are those of `terms`. A *reward* is whatever an objective compares: an implicit one
(`beta` times a log-ratio or a log-prob) or a reward model's scalar.
"""

from __future__ import annotations

from torch import Tensor

from orpo_ray.objectives.terms import Metrics, Totals, mean_logps, nll_share, preference_metrics


def log_ratios(sums: Tensor, reference: Tensor) -> Tensor:
    """`log pi(y|x) - log pi_ref(y|x)` `(pairs, 2)` of chosen and rejected: sums over tokens, in nats.

    `reference (pairs, 2)`: summed log-probs of the same responses under the reference model.
    """
    return sums[:, 1:] - reference


def margin_metrics(rewards: Tensor, totals: Totals) -> Metrics:
    """Shares of the means of `rewards (pairs, 2)`, of their margin, and of how often chosen wins (a tie: half)."""
    chosen, rejected = rewards.detach().unbind(dim=1)
    margin = chosen - rejected
    return {
        "rewards_chosen": chosen.sum() / totals.pairs,
        "rewards_rejected": rejected.sum() / totals.pairs,
        "reward_margin": margin.sum() / totals.pairs,
        "reward_accuracy": ((margin.sign() + 1) / 2).sum() / totals.pairs,
    }


def implicit_reward_metrics(sums: Tensor, lengths: Tensor, totals: Totals, rewards: Tensor) -> Metrics:
    """The metrics of an objective on log-probs whose implicit rewards are `rewards (pairs, 2)`.

    `reward_accuracy` is by those rewards, not by mean log-probs as in SFT and ORPO.
    """
    return {
        "nll": nll_share(sums, totals).detach(),
        **preference_metrics(mean_logps(sums, lengths), totals),
        **margin_metrics(rewards, totals),
    }


def reference_metrics(sums: Tensor, lengths: Tensor, totals: Totals, reference: Tensor, *, beta: float) -> Metrics:
    """The metrics of an objective with a reference model: implicit rewards `beta * log-ratio`, and `kl`.

    `kl` is the log-ratio of the chosen response per token, in nats, averaged over pairs. It would be the
    unbiased (k1) estimate of a response's KL(pi || pi_ref) per token if the responses were drawn from pi.
    They are the data's, so it is an indicator of drift towards them: zero at the start, negative where pi
    finds chosen less likely than the reference did, and no bound on the KL. The non-negative k3 estimate
    needs every token's ratio, which sums do not hold.
    """
    ratios = log_ratios(sums, reference).detach()
    drift = ratios[:, 0] / lengths[:, 1]
    return {
        **implicit_reward_metrics(sums, lengths, totals, beta * ratios),
        "kl": drift.sum() / totals.pairs,
    }
