"""What stands beside the paper's win-rates: mean rewards, and the diversity of answers (Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from orpo_ray.paper import published
from orpo_ray.paper.cells import METHODS, seeds_in_words, source
from orpo_ray.paper.outcomes import ORPO, Outcomes
from orpo_ray.paper.stages import Place
from orpo_ray.paper.table import ALL, Cell, Number, Table
from orpo_ray.paper.verdicts import Claim, Word, diversity
from orpo_ray.report.evaluation_folder import Diversity
from orpo_ray.report.numbers import number

_NOT_RUN = Word.NOT_RUN.value
_DATA_OWN = ("chosen", "rejected")
"""The data set's own responses, whose rewards are known where it has any."""
_COSINES = {"per_input_cosine": "per input", "across_input_cosine": "across inputs"}


def reward_table(outcomes: Outcomes, data: str) -> Table:
    """Mean rewards on one data set: a row for each judging reward model, size and seed."""
    config = outcomes.stages.config
    found = {
        (judge, Place("winrate", data, size, seed)): outcomes.rewards(data, size, seed, judge)
        for judge in outcomes.stages.judges[data] for size in config.sizes for seed in config.seeds
        if outcomes.gives_rewards(judge, Place("winrate", data, size, seed))
    }  # fmt: skip
    known = [name for name in _DATA_OWN if any(name in own for own in found.values())]
    columns = {method: METHODS[method] for method in config.compared} | {name: name for name in known}
    rows, numbers = [], []
    for (judge, place), own in found.items():
        cells = []
        for method in columns:
            if method not in own or own[method].mean is None:
                cells.append(Cell(_NOT_RUN, why=outcomes.missing(place) or f"{method} has no answer with a reward"))
                continue
            value = own[method].mean
            cells.append(Cell(number(value), True, sources=(source(outcomes, place, "evaluation"),)))
            numbers.append(
                Number(
                    "mean_reward", data=data, size=place.size, method=method, judge=judge, seed=str(place.seed),
                    value=value, folder=outcomes.link(place),
                )
            )  # fmt: skip
        rows.append((Cell(judge), Cell(place.size), Cell(str(place.seed), numeric=True), *cells))
    titles = ("Judge", "Size", "Seed", *columns.values())
    note = "A reward's zero and unit are its reward model's own."
    title = f"Mean reward: {config.data[data].title}"
    return Table(f"rewards-{data}", title, titles, tuple(rows), tuple(numbers), (note,))


def diversity_table(outcomes: Outcomes) -> Table:
    """Table 4: cosines between embeddings of answers, over all seeds; whether ORPO stands to DPO as in the paper."""
    config = outcomes.stages.config
    rows: list[tuple[Cell, ...]] = []
    numbers: list[Number] = []
    missing: dict[str, dict[str, list[str]]] = {}
    run: list[dict[int, float]] = []
    for data in config.data:
        for size in config.sizes:
            claims = dict(zip(_COSINES, _claims(outcomes, data, size), strict=True))
            for method in config.compared:
                cells = []
                for key, claim in claims.items():
                    values = _values(outcomes, data, size, method, key)
                    run.append(values)
                    why = "" if values else _why_not(outcomes, data, size, method)
                    own = Number(key, data=data, size=size, method=method)
                    cells.append(_cosine(outcomes, own, values, claim if method == ORPO else None, why))
                    numbers += _numbers(outcomes, own, values)
                where = f"{config.data[data].title}, {size}"
                rows.append((Cell(f"{where}, {METHODS[method]}"), *cells))
                for why in dict.fromkeys(cell.why for cell in cells if cell.text == _NOT_RUN):
                    missing.setdefault(why, {}).setdefault(where, []).append(METHODS[method])
            numbers += [_less_dpo(key, data, size, claim) for key, claim in claims.items()]
    for printed in published.DIVERSITY:
        values_of = {"per_input_cosine": printed.per_input, "across_input_cosine": printed.across_input}
        name = f"{printed.model} {METHODS[printed.method]} (the paper's)"
        rows.append((Cell(name), *(Cell(f"{value:.4f}", numeric=True) for value in values_of.values())))
        numbers += [Number(key, size=printed.model, method=printed.method, paper=v) for key, v in values_of.items()]
    seeds = seeds_in_words(config.seeds, run)
    note = (
        "Mean pairwise cosine of answers to one prompt, and to different prompts: lower where they are more diverse; "
        f"mean over {seeds}, and below it each seed's own. The paper draws five answers to each "
        "of 160 AlpacaEval instructions; these are the answers that the win-rates are of. Verdicts are on whether ORPO "
        "stands to SFT+DPO as in the paper."
    )
    titles = ("Model", *_COSINES.values())
    return Table(
        "table-4",
        "Table 4. Diversity of answers",
        titles,
        tuple(rows),
        tuple(numbers),
        (note, *_not_run(missing, len(config.compared))),
    )


def _not_run(missing: Mapping[str, Mapping[str, Sequence[str]]], methods: int) -> list[str]:
    """A line for each reason, with the rows that it keeps empty; without the methods where it is all of them."""
    found = []
    for why, places in missing.items():
        rows = [where if len(own) == methods else f"{where}, {', '.join(own)}" for where, own in places.items()]
        found.append(f"Not run: {'; '.join(rows)}: {why}.")
    return found


def _claims(outcomes: Outcomes, data: str, size: str) -> tuple[Claim, Claim]:
    """Of ORPO's cosines less DPO's, per input and across inputs."""
    why = _why_not(outcomes, data, size, ORPO) or _why_not(outcomes, data, size, "dpo")
    per_input, across_input = (_of_both(outcomes, data, size, key) for key in _COSINES)
    return diversity(per_input, across_input, why)


def _of_both(outcomes: Outcomes, data: str, size: str, key: str) -> tuple[list[float], list[float]] | None:
    """ORPO's and DPO's, of the seeds that have both."""
    orpo, dpo = (_values(outcomes, data, size, method, key) for method in (ORPO, "dpo"))
    both = [seed for seed in orpo if seed in dpo]
    return ([orpo[seed] for seed in both], [dpo[seed] for seed in both]) if both else None


def _values(outcomes: Outcomes, data: str, size: str, method: str, key: str) -> dict[int, float]:
    """By seed."""
    found = {seed: _of(outcomes, data, size, method, seed) for seed in outcomes.stages.config.seeds}
    values = {seed: getattr(own, key) for seed, own in found.items() if own is not None}
    return {seed: value for seed, value in values.items() if value is not None}


def _of(outcomes: Outcomes, data: str, size: str, method: str, seed: int) -> Diversity | None:
    return outcomes.diversity(data, size, seed).get(method)


def _why_not(outcomes: Outcomes, data: str, size: str, method: str) -> str:
    """Why a method has no cosines of any seed."""
    if method not in outcomes.stages.config.compared:
        return f"the configuration has no {method}"
    first = outcomes.stages.config.seeds[0]
    if why := outcomes.missing(Place("winrate", data, size, first)):
        return why
    own = _of(outcomes, data, size, method, first)
    if own is not None and own.embedder is None:
        return f"the evaluation embeds no answers ({_key_of_embedder(outcomes, data, size)})"
    return "it has too few answers"


def _key_of_embedder(outcomes: Outcomes, data: str, size: str) -> str:
    """Where the configuration says so: of what is laid over another, the last."""
    config = outcomes.stages.config
    own = {f"sizes.{size}": config.sizes[size].evaluation, f"data.{data}": config.data[data].evaluation}
    where = next((f"{place}." for place, keys in own.items() if "embedder" in keys), "")
    return f"{where}evaluation.embedder"


def _cosine(outcomes: Outcomes, own: Number, values: dict[int, float], claim: Claim | None, why: str) -> Cell:
    """The mean over seeds; `claim`: what is said of it beside DPO's."""
    word, said = ("", why) if claim is None else (claim.verdict.word.value, claim.verdict.why)
    if not values:
        return Cell(_NOT_RUN, verdict=word, why=said)
    each = (", ".join(f"{value:.4f}" for value in values.values()),) if len(values) > 1 else ()
    sources = tuple(
        source(outcomes, Place("winrate", own.data, own.size, seed), f"seed {seed}") for seed in values
    )  # fmt: skip
    return Cell(f"{np.mean(list(values.values())):.4f}", True, each, word, said, sources)


def _numbers(outcomes: Outcomes, own: Number, values: dict[int, float]) -> list[Number]:
    """Of all seeds, then of each."""
    links = {seed: outcomes.link(Place("winrate", own.data, own.size, seed)) for seed in values}
    if not values:
        return [replace(own, seed=ALL, verdict=_NOT_RUN)]
    mean = replace(own, seed=ALL, value=float(np.mean(list(values.values()))), folder=" ".join(links.values()))
    return [mean, *(replace(own, seed=str(seed), value=values[seed], folder=links[seed]) for seed in values)]


def _less_dpo(key: str, data: str, size: str, claim: Claim) -> Number:
    """ORPO's less DPO's, by which the verdict goes."""
    found = Number(f"{key}_difference", data=data, size=size, method=ORPO, against="dpo", seed=ALL)
    found = replace(found, verdict=claim.verdict.word.value)
    ours = claim.ours
    return found if ours is None else replace(found, value=ours.mean, low=ours.low, high=ours.high)
