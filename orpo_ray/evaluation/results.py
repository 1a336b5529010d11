"""From the pieces of an evaluation to its tables and `winrates.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.data.prompts import readable
from orpo_ray.evaluation import comparisons
from orpo_ray.evaluation.given import GivenWork
from orpo_ray.evaluation.judge_results import AtLengths, judge_numbers, judged_outcomes, of_what_was_judged
from orpo_ray.evaluation.judged import Judged
from orpo_ray.evaluation.plan import TOO_LONG, EvaluationPlan, JudgeWork, PolicyWork
from orpo_ray.evaluation.thinking import Thought
from orpo_ray.inference.scoring import NOT_FINITE
from orpo_ray.objectives.reliability import accuracy
from orpo_ray.objectives.terms import log_odds
from orpo_ray.statistics.diversity import diversity, lengths
from orpo_ray.statistics.winrate import TIE

Floats = NDArray[np.float64]
Row = dict[str, Any]
Embed = Callable[[Sequence[str]], NDArray[np.float32]]

STATISTICS = 3
"""Raised by one whenever the same responses and rewards would give other numbers: they are then made anew."""
DIVERSITY_PROMPTS = 160
"""Prompts whose responses are embedded, evenly spaced: as many as the paper's Table 4 takes."""


class Tables:
    """All that was generated and judged, read back from the pieces."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self.plan = plan
        shape = (len(plan.prompts), plan.rounds)
        blocks = range(len(plan.blocks))
        self.thoughts: dict[str, Counter[Thought]] = {label: Counter() for label in plan.answering}
        """By policy, of how many answers thoughts were cut (`answers.strip_thinking`)."""
        self.turns: list[dict[str, list[list[Row]]]] = [self._rows(each) for each in (*plan.earlier, plan)]
        """Of each turn by policy, prompt and round."""
        self.responses = self.turns[-1]
        """Of the last turn, which is the one that is judged."""
        self.rewards: dict[str, dict[str, Floats]] = {}
        """By reward model and policy: `(prompts, rounds)`; of `chosen` and `rejected` `(prompts, 1)`. NaN: none."""
        self.not_finite: dict[str, dict[tuple[int, str, int], float]] = {}
        """By reward model: prompt, label and round of each reward that is infinite or not a number, and what it is."""
        for name, judge in plan.judges.items():
            tables = {label: np.full(shape, np.nan) for label in plan.answering}
            if plan.pairs:
                tables |= {label: np.full((shape[0], 1), np.nan) for label in DATA_LABELS}
            odd: dict[tuple[int, str, int], float] = {}
            for row in (row for block in blocks for row in judge.rewards.read(block)):
                if row["reward"] is None:
                    continue
                if not np.isfinite(row["reward"]):
                    odd[row["prompt"], row["model"], row["round"]] = row["reward"]
                else:
                    tables[row["model"]][row["prompt"], row["round"]] = row["reward"]
            self.rewards[name] = tables
            self.not_finite[name] = odd

    def _rows(self, plan: EvaluationPlan) -> dict[str, list[list[Row]]]:
        found = {}
        for label, work in plan.answering.items():
            blocks = range(len(plan.blocks))
            rows = sorted((row for block in blocks for row in work.responses.read(block)), key=_position)
            if plan.config.answers.strip_thinking:
                rows = [self._answered(plan, work, row) for row in rows]
            found[label] = [rows[i * work.rounds : (i + 1) * work.rounds] for i in range(len(plan.prompts))]
        return found

    def _answered(self, plan: EvaluationPlan, work: PolicyWork | GivenWork, row: Row) -> Row:
        """A row whose text is what was judged."""
        if row["text"] is None:
            return row
        answer, thought = work.thought(plan.prompts[row["prompt"]], row)
        self.thoughts[work.label][thought] += 1
        return {**row, "text": answer.text if thought else row["text"]}

    def all_turns(self, label: str) -> list[list[Row]]:
        """Those to each prompt in each turn, by round."""
        return [rows for of_turn in self.turns for rows in of_turn[label]]

    def characters(self, label: str) -> Floats:
        """Of the last turn, `(prompts, rounds)`, NaN where there is no response: a length that no tokenizer decides."""
        texts = [[row["text"] for row in rows] for rows in self.responses[label]]
        counts = [[np.nan if text is None else len(text) for text in given] for given in texts]
        return self._in_every_round(label, np.array(counts, dtype=np.float64))

    def scores(self, reward_model: str) -> dict[str, Floats]:
        """By policy its rewards as they are compared, `(prompts, rounds)`."""
        return {label: self._in_every_round(label, self.rewards[reward_model][label]) for label in self.plan.answering}

    def _in_every_round(self, label: str, values: Floats) -> Floats:
        """The values of answers from elsewhere, of which there is one to a prompt, against each round of the others."""
        if self.plan.answering[label].rounds == self.plan.rounds:
            return values
        return np.repeat(values[:, :1], self.plan.rounds, axis=1)


def prompts_table(plan: EvaluationPlan) -> pa.Table:
    """`prompts.parquet`: what was asked, and the data set's own responses. Where there are any, categories, what is
    asked in further turns, and MT-Bench's numbers."""
    own: list[list[str | None]] = [
        [readable(turns) for turns in prompt.as_found.completions] or [None, None] for prompt in plan.prompts
    ]
    return pa.table(
        {
            "prompt": pa.array(range(len(plan.prompts)), pa.int64()),
            "text": [readable(prompt.as_found.prompt) for prompt in plan.prompts],
            "chosen": pa.array([chosen for chosen, _ in own], pa.string()),
            "rejected": pa.array([rejected for _, rejected in own], pa.string()),
            **_more_of_prompts(plan),
        }
    )


def _more_of_prompts(plan: EvaluationPlan) -> dict[str, Any]:
    """Columns that the prompts of most evaluations do not have."""
    found: dict[str, Any] = {}
    if plan.config.prompts.category is not None:
        found["category"] = [prompt.category for prompt in plan.prompts]
    if plan.config.prompts.turns > 1:
        found["further"] = [list(prompt.as_found.further) for prompt in plan.prompts]
    if found and all(prompt.question_id is not None for prompt in plan.prompts):
        found["question_id"] = [prompt.question_id for prompt in plan.prompts]
    return found


def results_table(tables: Tables) -> pa.Table:
    """`results.parquet`: a row for every response, the data set's own included, with its rewards.

    Null is a reward that was not given; one that is not finite stands there as it is. Where there are several turns,
    each response says of which it is.
    """
    rows: list[Row] = []
    several = len(tables.turns) > 1
    for prompt, asked in enumerate(tables.plan.prompts):
        for label, turns in zip(DATA_LABELS, asked.as_found.completions, strict=False):
            row = {"prompt": prompt, "round": 0, "text": readable(turns), "tokens": None, "ended": "data"}
            rows.append(_with_rewards(tables, row, label))
        for label in tables.responses:
            for turn, responses in enumerate(tables.turns[:-1], start=1):
                rows += [{**row, "model": label, "turn": turn} for row in responses[label][prompt]]
            rows += [_with_rewards(tables, row, label) for row in tables.responses[label][prompt]]
    kinds = {"prompt": pa.int64(), "model": pa.string(), "round": pa.int64(), "text": pa.string(),
             "tokens": pa.int64(), "ended": pa.string(), **({"turn": pa.int64()} if several else {})}  # fmt: skip
    kinds |= {f"reward:{name}": pa.float64() for name in tables.rewards}
    return pa.Table.from_pylist(rows, pa.schema(kinds.items()))


def _with_rewards(tables: Tables, row: Row, label: str) -> Row:
    place = row["prompt"], row["round"]
    given = {name: None if np.isnan(by_label[label][place]) else float(by_label[label][place])
             for name, by_label in tables.rewards.items()}  # fmt: skip
    return {**row, "model": label, "turn": len(tables.turns)} | {
        f"reward:{name}": tables.not_finite[name].get((row["prompt"], label, row["round"]), value)
        for name, value in given.items()
    }


def winrates(
    tables: Tables,
    embed: Embed | None,
    key: str,
    judged: Judged | None = None,
    described: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """`winrates.json`: a function of responses, rewards and verdicts alone, with neither time nor machine in it.

    `judged`: by judges in words, `described` by label.
    """
    plan = tables.plan
    config = plan.config
    models = {label: _model(tables, work, embed) for label, work in plan.answering.items()}
    reward_models = {name: _reward_model(tables, judge) for name, judge in plan.judges.items()}
    rewards = {name: tables.scores(name) for name in plan.judges}
    compared = comparisons.by_rewards(rewards, list(models))
    in_words: dict[str, Row] = {}
    at_lengths: dict[str, dict[tuple[str, str], AtLengths]] = {}
    if judged is not None:
        at_lengths = of_what_was_judged(judged, list(models))
        compared |= judged_outcomes(judged, at_lengths)
        categories = [prompt.category or None for prompt in plan.prompts]
        in_words = judge_numbers(judged, described, list(models), categories)
    return {
        "name": config.name,
        "key": key,
        "statistics": STATISTICS,
        "prompts": len(plan.prompts),
        "rounds": plan.rounds,
        "tie": TIE,
        "sampling": config.sampling.model_dump(mode="json"),
        "models": models,
        "reward_models": reward_models,
        "judges": in_words,
        "pairs": comparisons.pairs(compared, {label: tables.characters(label) for label in models}, at_lengths),
        "ratings": comparisons.ratings(compared) if len(models) > 1 else {},
        "rewards": {
            name: {label: _summary(values) for label, values in by_label.items()}
            for name, by_label in tables.rewards.items()
        },
        "agreement": comparisons.agreements(compared, rewards),
        "notes": [*plan.notes, *_notes(tables, models, reward_models)],
    }  # fmt: skip


def _model(tables: Tables, work: PolicyWork | GivenWork, embed: Embed | None) -> Row:
    """Of its answers in all turns."""
    label = work.label
    by_prompt = tables.all_turns(label)
    texts = [[row["text"] for row in rows] for rows in by_prompt]
    rows = [row for rows in by_prompt for row in rows]
    given = [row for row in rows if row["text"] is not None]
    spaced = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), DIVERSITY_PROMPTS)).round().astype(int))
    embedded = diversity([texts[i] for i in spaced], embed)
    whole = diversity(texts, None)
    name = getattr(embed, "name", None)
    tokens = [[np.nan if row["tokens"] is None else row["tokens"] for row in rows] for rows in by_prompt]
    measured = lengths(np.array(tokens, dtype=np.float64))
    thoughts = {"thinking": dict(sorted((str(kind), count) for kind, count in tables.thoughts[label].items() if kind))}
    return {
        **work.origin,
        "asked": len(rows),
        "responses": len(given),
        "not_generated": {work.missing: len(rows) - len(given)},
        **(thoughts if tables.plan.config.answers.strip_thinking else {}),
        "empty": sum(not row["text"].strip() for row in given),
        "cut": sum(row["ended"] == "length" for row in given),
        "mean_tokens": measured and measured.mean,
        "mean_characters": float(np.mean([len(row["text"]) for row in given])) if given else None,
        "lengths": measured and {name: getattr(measured, name) for name in ("p10", "median", "p90", "max")},
        "odds": _odds(tables.plan, work),
        "diversity": asdict(whole) | {
            "per_input_cosine": embedded.per_input_cosine, "across_input_cosine": embedded.across_input_cosine,
            "embedder": name,
        },
    }  # fmt: skip


def _odds(plan: EvaluationPlan, work: PolicyWork | GivenWork) -> Row | None:
    """How much likelier, in odds, the policy finds the data set's chosen than its rejected responses (Eqs. 3, 4)."""
    if work.log_probs is None:
        return None
    rows = [row for block in range(len(plan.blocks)) for row in work.log_probs.read(block)]
    given = [row for row in rows if row["chosen"] is not None]
    finite = [row for row in given if np.isfinite([row[name] for name in DATA_LABELS]).all()]
    kept = sorted(finite, key=lambda row: int(row["prompt"]))
    if not kept:
        return None
    means = torch.tensor(
        [[row[name] / row[f"{name}_tokens"] for name in DATA_LABELS] for row in kept], dtype=torch.float64
    )
    odds = log_odds(means)
    margins = means[:, 0] - means[:, 1]
    return {
        "log_odds_ratio": float((odds[:, 0] - odds[:, 1]).mean()),
        "chosen_likelier": float(((margins.sign() + 1) / 2).mean()),
        "logps_chosen": float(means[:, 0].mean()),
        "logps_rejected": float(means[:, 1].mean()),
        "pairs": len(kept),
        "not_finite": len(given) - len(kept),
    }


def _reward_model(tables: Tables, judge: JudgeWork) -> Row:
    by_label = tables.rewards[judge.label]
    given = {label: sum(row["text"] is not None for rows in tables.responses[label] for row in rows)
             for label in tables.responses}  # fmt: skip
    scored = sum(int(np.isfinite(by_label[label]).sum()) for label in given)
    odd = sum(label in given for _, label, _ in tables.not_finite[judge.label])
    own = None
    if tables.plan.pairs:
        margins = by_label["chosen"][:, 0] - by_label["rejected"][:, 0]
        margins = margins[np.isfinite(margins)]
        if margins.size:
            own = asdict(accuracy(margins))
    return {
        "path": judge.name,
        "digest": judge.model.digest if judge.model else None,
        "template": judge.template,
        "trained_here": judge.model is None or judge.model.trained_here,
        "not_scored": {TOO_LONG: sum(given.values()) - scored - odd, NOT_FINITE: odd},
        "data_accuracy": own,
    }


def _summary(values: Floats) -> Row:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return {"mean": None, "sd": None, "median": None}
    return {"mean": float(finite.mean()), "sd": float(finite.std()), "median": float(np.median(finite))}


def _notes(tables: Tables, models: dict[str, Row], reward_models: dict[str, Row]) -> list[str]:
    notes = []
    for label, model in models.items():
        if model["empty"]:
            notes.append(
                f"{model['empty']:,} of {model['responses']:,} responses of {label} are empty; they are judged as they "
                "are."
            )
        if thoughts := model.get("thinking"):
            unclosed = thoughts.get("unclosed", 0)
            notes.append(
                f"Thoughts of {label} were cut from {sum(thoughts.values())} of {model['responses']} responses; "
                f"{unclosed} of them had not ended, so that no answer follows."
            )
        if model["odds"] and model["odds"]["not_finite"]:
            notes.append(
                f"{label} gives {model['odds']['not_finite']} of the data's pairs log-probs that are not finite; they "
                "are left out of its odds."
            )
    for name, reward_model in reward_models.items():
        missing = reward_model["not_scored"][TOO_LONG]
        if missing:
            notes.append(
                f"{missing} responses are too long for the reward model {name} and count in none of its comparisons."
            )
        if odd := tables.not_finite[name]:
            (prompt, label, turn), value = min(odd.items(), key=lambda item: item[0])
            notes.append(
                f"The reward model {name} gave {len(odd)} responses a reward that is not finite (the first: {value} to "
                f"{label}, prompt {prompt}, round {turn}); they count in none of its comparisons."
            )
    return notes


def _position(row: Row) -> tuple[int, int]:
    return row["prompt"], row["round"]
