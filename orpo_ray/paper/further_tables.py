"""What stands beside the paper's win-rates: mean rewards, and the diversity of answers (Table 4)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from orpo_ray.paper import published
from orpo_ray.paper.cells import METHODS, seeds_in_words, source
from orpo_ray.paper.outcomes import Outcomes
from orpo_ray.paper.stages import Place
from orpo_ray.paper.table import ALL, NOT_RUN, Cell, Number, Table

_DATA_OWN = {"chosen": "chosen", "rejected": "rejected"}
"""The data set's own responses, whose rewards are known too."""


def reward_table(outcomes: Outcomes, data: str) -> Table:
    """Mean rewards on one data set: a row for each judging reward model, size and seed."""
    config = outcomes.stages.config
    columns = {method: METHODS[method] for method in config.compared} | _DATA_OWN
    rows, numbers = [], []
    for judge in outcomes.judges(data):
        for size in config.sizes:
            for seed in config.seeds:
                place = Place("winrate", data, size, seed)
                found = outcomes.rewards(data, size, seed, judge)
                if not found and not outcomes.missing(place):
                    continue  # a judge in words gives no rewards
                cells = []
                for method in columns:
                    own = found.get(method)
                    if own is None or own.mean is None:
                        why = outcomes.missing(place) or "none of its answers has a reward"
                        cells.append(Cell(NOT_RUN if outcomes.missing(place) else "–", why=why))
                        continue
                    cells.append(Cell(f"{own.mean:.3f}", True, sources=(source(outcomes, place, "evaluation"),)))
                    numbers.append(
                        Number(
                            "mean_reward", data=data, size=size, method=method, judge=judge, seed=str(seed),
                            value=own.mean, folder=outcomes.link(place),
                        )
                    )  # fmt: skip
                rows.append((Cell(judge), Cell(size), Cell(str(seed), numeric=True), *cells))
    return Table(
        f"rewards-{data}", f"Mean reward: {config.data[data].title}", ("Judge", "Size", "Seed", *columns.values()),
        tuple(rows), tuple(numbers), ("A reward's zero and unit are its reward model's own.",),
    )  # fmt: skip


def diversity_table(outcomes: Outcomes) -> Table:
    """Table 4: cosines between embeddings of answers, over all seeds, ours and the paper's."""
    config = outcomes.stages.config
    rows: list[tuple[Cell, ...]] = []
    numbers: list[Number] = []
    for data in config.data:
        for size in config.sizes:
            for method in config.compared:
                name = f"{config.data[data].title}, {size}, {METHODS[method]}"
                cells = [_cosine(outcomes, data, size, method, key, numbers) for key in _COSINES]
                rows.append((Cell(name), *cells))
    for printed in published.DIVERSITY:
        values = (printed.per_input, printed.across_input)
        rows.append((
            Cell(f"{printed.model} {METHODS[printed.method]} (the paper's)"),
            *(Cell(f"{value:.4f}", numeric=True) for value in values),
        ))  # fmt: skip
        numbers += [
            Number(key, size=printed.model, method=printed.method, paper=value)
            for key, value in zip(_COSINES, values, strict=True)
        ]
    note = (
        f"Mean pairwise cosine, lower where answers are more diverse; mean over {seeds_in_words(config.seeds)}, whose "
        "own numbers stand below. The paper draws five answers to each of 160 AlpacaEval instructions; here they are the "
        "answers that the win-rates are of."
    )
    return Table(
        "table-4", "Table 4. Diversity of answers", ("Model", *_COSINES.values()), tuple(rows), tuple(numbers), (note,)
    )


_COSINES = {"per_input_cosine": "per input", "across_input_cosine": "across inputs"}


def _cosine(outcomes: Outcomes, data: str, size: str, method: str, key: str, numbers: list[Number]) -> Cell:
    """A cell; its numbers go behind `numbers`."""
    values: dict[int, float] = {}
    why = ""
    for seed in outcomes.stages.config.seeds:
        found = outcomes.diversity(data, size, seed).get(method)
        value = None if found is None else getattr(found, key)
        if value is not None:
            values[seed] = value
        else:
            missing = outcomes.missing(Place("winrate", data, size, seed))
            no_embedder = found is not None and found.embedder is None
            why = (
                why or missing or ("nothing embeds answers (evaluation.embedder)" if no_embedder else "too few answers")
            )
    places = {seed: Place("winrate", data, size, seed) for seed in values}
    own = Number(key, data=data, size=size, method=method)
    if not values:
        numbers.append(replace(own, seed=ALL, verdict=NOT_RUN))
        return Cell(NOT_RUN, why=why)
    links = {seed: outcomes.link(place) for seed, place in places.items()}
    mean = float(np.mean(list(values.values())))
    numbers.append(replace(own, seed=ALL, value=mean, folder=" ".join(links.values())))
    numbers.extend(replace(own, seed=str(seed), value=value, folder=links[seed]) for seed, value in values.items())
    details = (", ".join(f"{value:.4f}" for value in values.values()),) if len(values) > 1 else ()
    sources = tuple(source(outcomes, place, f"seed {seed}") for seed, place in places.items())
    return Cell(f"{mean:.4f}", True, details, why=why, sources=sources)
