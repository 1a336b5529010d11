"""The tables of an evaluation's page: rows of text, each cell under its column's heading."""

from __future__ import annotations

from collections.abc import Mapping

from orpo_ray.report.evaluation_folder import Model, Numbers, Pair
from orpo_ray.report.evaluation_words import length_controlled, probability
from orpo_ray.report.numbers import number, percent
from orpo_ray.report.runs import Run

Row = dict[str, str]


def pairs(numbers: Numbers, reward_model: str) -> list[Row]:
    """Everything known of each ordered pair of models under one reward model."""
    return [_pair(pair) for pair in numbers.pairs if pair.reward_model == reward_model]


def _pair(pair: Pair) -> Row:
    low, high = pair.ci95
    return {
        "model": pair.model,
        "against": pair.against,
        "win-rate": percent(pair.win_rate, 1),
        "95% interval": f"{percent(low, 1)} to {percent(high, 1)}",
        "length-controlled": length_controlled(pair),
        "p": probability(pair.p_value),
        "p (Holm)": probability(pair.p_holm),
        "sd over rounds": deviation(pair),
        "wins": number(pair.wins),
        "ties": number(pair.ties),
        "losses": number(pair.losses),
        "prompts": number(pair.prompts),
        "each round": ", ".join(percent(rate, 1) for rate in pair.rounds),
    }


def models(numbers: Numbers) -> list[tuple[str, list[Row]]]:
    """Title and rows of each table of the models."""
    entries = numbers.models.items()
    tables = [
        ("Rewards and lengths", [_rewards(numbers, label, model) for label, model in entries]),
        ("Diversity", [_diversity(label, model) for label, model in entries]),
    ]
    if any(model.odds for model in numbers.models.values()):
        tables.append(("Odds of the data's chosen over rejected", [_odds(label, model) for label, model in entries]))
    return tables


def _rewards(numbers: Numbers, label: str, model: Model) -> Row:
    row = {"model": label}
    for reward_model, by_model in numbers.rewards.items():
        found = by_model.get(label)
        mean, sd = number(found and found.mean, 2), number(found and found.sd, 2)
        row[f"mean {reward_model} (sd)"] = f"{mean} ({sd})"
    lengths = model.lengths
    return row | {
        "mean characters": number(model.mean_characters, 1),
        "mean tokens": number(model.mean_tokens, 1),
        "p10 tokens": _tokens(lengths.p10 if lengths else None),
        "median tokens": _tokens(lengths.median if lengths else None),
        "p90 tokens": _tokens(lengths.p90 if lengths else None),
        "longest": _tokens(lengths.max if lengths else None),
        f"cut at {number(numbers.sampling.max_tokens)}": _share(model.cut, model.responses) if model.was_asked else "–",
        "empty": _share(model.empty, model.responses),
    }


def _diversity(label: str, model: Model) -> Row:
    found = model.diversity
    return {
        "model": label,
        "per-input cosine": number(found.per_input_cosine),
        "across-input cosine": number(found.across_input_cosine),
        "distinct-1": number(found.distinct_1),
        "distinct-2": number(found.distinct_2),
        "self-BLEU": number(found.self_bleu),
        "repetition": number(found.repetition),
    }


def _odds(label: str, model: Model) -> Row:
    odds = model.odds
    return {
        "model": label,
        "log odds ratio": number(odds and odds.log_odds_ratio),
        "chosen is likelier": percent(odds and odds.chosen_likelier, 1),
        "log-prob of chosen": number(odds and odds.logps_chosen),
        "log-prob of rejected": number(odds and odds.logps_rejected),
        "pairs": number(odds and odds.pairs),
    }


def reward_models(numbers: Numbers) -> list[Row]:
    """How often each reward model is right on the data's own pairs."""
    rows = []
    for label, model in numbers.reward_models.items():
        found = model.data_accuracy
        rows.append(
            {
                "reward model": label,
                "right on the data's pairs": percent(found and found.accuracy, 1),
                "95% interval": f"{percent(found.ci95[0], 1)} to {percent(found.ci95[1], 1)}" if found else "–",
                "pairs": number(found and found.pairs),
                "not scored": _reasons(model.not_scored),
                "path": model.path,
            }
        )
    return rows


def agreement(numbers: Numbers) -> list[Row]:
    """How far each two reward models agree on who wins."""
    return [
        {
            "judges" if numbers.judges else "reward models": " and ".join(entry.reward_models),
            "same verdict": percent(entry.agree, 1),
            "Cohen's κ": number(entry.kappa, 2),
            "Spearman": number(entry.spearman, 2),
            "comparisons": number(entry.comparisons),
            "ties of each": " and ".join(map(number, entry.ties)) if entry.ties else "left out",
        }
        for entry in numbers.agreement
    ]


def origins(numbers: Numbers) -> list[Row]:
    """Where the models come from and how they were asked."""
    return [
        {
            "model": label,
            "path": model.path,
            "digest": (model.digest or "–")[:16],
            "template": model.template or "–",
            "BOS": "–" if model.bos is None else "yes" if model.bos else "no",
            "not generated": _reasons(model.not_generated),
        }
        for label, model in numbers.models.items()
    ]


def training(runs: Mapping[str, Run]) -> list[Row]:
    """The training runs behind the models, at the evaluation whose model is kept. Reward and KL where one has them."""
    rows = []
    on_rollouts = any(run.rolls_out for run in runs.values())
    for label, run in runs.items():
        weight = run.section("objective").get("lambda")
        rows.append(
            {
                "run": label,
                "λ": f"{weight:g}" if isinstance(weight, (int, float)) else "–",
                "steps": number(run.last_step),
                "eval loss": number(run.value_at("eval_loss", run.kept_step)),
                "reward accuracy": percent(run.value_at("eval_reward_accuracy", run.kept_step), 1),
                **(_of_rollouts(run) if on_rollouts else {}),
            }
        )
    return rows


def _of_rollouts(run: Run) -> Row:
    """Of a response. A run on pairs may have an `eval_kl`, too, but that is of a token of the data's."""
    step = run.kept_step if run.rolls_out else None
    return {
        "eval reward": number(run.value_at("eval_reward", step)),
        "KL, nats": number(run.value_at("eval_kl", step), 2),
    }


def deviation(pair: Pair) -> str:
    """Of the rounds' win-rates, in percentage points; a dash where there is one round."""
    return "–" if pair.sd is None or len(pair.rounds) < 2 else f"{100 * pair.sd:.1f} points"


def _reasons(counts: Mapping[str, int]) -> str:
    said = [f"{number(count)} {reason}" for reason, count in counts.items() if count]
    return ", ".join(said) or "none"


def _tokens(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _share(count: int, whole: int) -> str:
    return f"{number(count)} ({percent(count / whole, 1)})" if count and whole else number(count)
