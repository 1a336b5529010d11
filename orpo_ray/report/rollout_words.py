"""What a page says in words and tables of a run with rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orpo_ray.report.numbers import is_number, number, percent, time_taken
from orpo_ray.report.runs import Run
from orpo_ray.storage.rounds import Rounds
from orpo_ray.visible import visible

_MOST_SOURCES = 8
_LONGEST_LABEL = 24

Fact = tuple[str, str, str]


def facts_of_rollouts(run: Run) -> list[Fact]:
    """Of the headline: what each number is, the number, and a word on it."""
    kept, asked = run.kept_step, run.section("rollouts")
    most = f" at {number(asked['max_tokens'])} tokens" if is_number(asked, "max_tokens") else ""
    cut = run.value_at("eval_share_cut", kept)
    length = run.value_at("eval_response_tokens", kept)
    return [
        ("KL to the reference", number(run.value_at("eval_kl", kept), 2), f"nats a response; {kl_coefficient(run)}"),
        ("Response length", number(length, 1), "tokens" if cut is None else f"tokens; {percent(cut, 1)} cut{most}"),
        _rounds(run),
    ]


def _rounds(run: Run) -> Fact:
    begun, each = len(run.series("round")[0]), Rounds.of(run.config)
    amount = "?" if each is None else number(begun * each.responses)
    taken = time_taken(run)
    return (
        "Responses drawn",
        amount,
        f"in {number(begun)} round{'' if begun == 1 else 's'}{'; ' if taken else ''}{taken}",
    )


def kl_coefficient(run: Run) -> str:
    """Of the objective, in words; `no penalty` where it has none."""
    objective = run.section("objective")
    if not is_number(objective, "kl_coefficient"):
        return "no penalty"
    last = last_value(run, "kl_coefficient")
    begins = f"{objective['kl_coefficient']:.3g}"
    if not is_number(objective, "kl_target"):
        return f"coefficient {begins}, fixed"
    now = "" if last is None else f", now {last:.3g}"
    return f"coefficient {begins} at first{now}; target {objective['kl_target']:.3g}"


def sources_of_reward(run: Run) -> list[str]:
    """Labels of those that score, where there are several; the first few, if they are many."""
    begins = ("reward/", "eval_reward/")
    found = {key.partition("/")[2]: None for line in run.lines for key in line if key.startswith(begins)}
    return list(found)[:_MOST_SOURCES] if len(found) > 1 else []


def shortened(labels: Sequence[str]) -> list[str]:
    """Each as a legend has room for, and fonts have signs for; no two alike, as long as the labels are not."""
    shown = [_cut(visible(label)) for label in labels]
    return [f"{place}: {text}" if shown.count(text) > 1 else text for place, text in enumerate(shown, start=1)]


def _cut(text: str) -> str:
    """What is alike in long names is their middle, oftener than their ends."""
    half = _LONGEST_LABEL // 2
    return text if len(text) <= _LONGEST_LABEL else f"{text[: half - 1]}…{text[-half:]}"


def learned_otherwise(run: Run) -> str:
    """What parts the reward that rollouts are learned from, in words, from that of held-out prompts; empty: nothing."""
    asked = run.section("rollouts")
    parts = []
    if is_number(asked, "clip_scores"):
        parts.append(f"held within {asked['clip_scores']:g} of 0")
    if is_number(asked, "cut_penalty") and asked["cut_penalty"]:
        parts.append(f"less {asked['cut_penalty']:g} where max_tokens cut")
    return f"Rollouts: as learned from, {' and '.join(parts)}. Held-out: as given." if parts else ""


def scored_by(run: Run) -> str:
    """Who scores, in words."""
    asked = run.section("rollouts").get("rewards")
    if not isinstance(asked, dict) or not asked:
        return ""
    parts = [
        _source(str(label), source, weighed=len(asked) > 1) for label, source in list(asked.items())[:_MOST_SOURCES]
    ]
    more = f", and {len(asked) - len(parts)} more" if len(asked) > len(parts) else ""
    return f"Scored by {', '.join(parts)}{more}."


def _source(label: str, source: Any, *, weighed: bool) -> str:
    settings = source if isinstance(source, dict) else {"path": source}
    weight = f"{settings['weight']:g}" if is_number(settings, "weight") else settings.get("weight", 1)
    told = ", told and not learned from" if weight == "0" else f", weight {weight}" if weighed else ""
    return f"{label} ({settings.get('path')}{told})"


def columns_of_rollouts(run: Run) -> dict[str, str]:
    """Of the table of evaluations: titles, by key of an evaluation's line."""
    return {
        "eval_reward": "reward",
        **{f"eval_reward/{label}": label for label in sources_of_reward(run)},
        "eval_kl": "KL, nats a response",
        "eval_entropy": "entropy, nats a token",
        "eval_response_tokens": "response tokens",
        "eval_share_cut": "share cut",
    }


def counted(run: Run) -> str:
    """What of all rounds could not be scored; empty where there is none."""
    words = {"not_finite": "reward not finite", "too_long": "too long to be scored"}
    sums = {key: sum(value for value in run.series(key)[1] if 0 < value < 2**53) for key in words}
    said = [f"{number(int(sums[key]))} ({word})" for key, word in words.items() if sums[key]]
    return f"Responses without a score: {', '.join(said)}." if said else ""


def last_value(run: Run, key: str) -> float | None:
    """The last finite value of a metric."""
    values = [float(value) for value in run.series(key)[1] if value == value]
    return values[-1] if values else None
