"""Steps on one GPU by the roofline of their operators, beside padded rows; see scaling.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scaling_measured import Measured
from scaling_predict import BUDGETS
from scaling_ranks import Rows
from scaling_roofline import Counts, Device, Subject

from orpo_ray.costs.step import Lengths, Load
from orpo_ray.data.schedule import deal
from orpo_ray.modeling.memory import LEVELS

PADDED_PAIRS = 8
"""Of a micro-batch of the baseline, in the order of the data."""


class Kind(NamedTuple):
    pairs: int
    """Of a step."""
    lora: bool
    """What of Mistral-7B one card holds."""


KINDS = {"OPT-1.3B": Kind(64, lora=False), "Mistral-7B": Kind(32, lora=True)}


def steps(lengths: Lengths, measured: Measured) -> Rows:
    """A step of each model with pairs drawn from `lengths`: by the trainer, at each level of `train.memory`, and of
    padded rows, with nothing and with whole layers computed again."""
    rows: Rows = []
    for family, kind in KINDS.items():
        drawn = lengths[np.random.default_rng(0).integers(0, len(lengths), kind.pairs)]
        device, subject = measured.roofline(family), Subject(family, measured.roofline(family), lora=kind.lora)
        [cuts] = deal(drawn.sum(axis=1), 1, BUDGETS[family])
        dealt = [drawn[cut] for cut in cuts]
        in_order = np.split(drawn, len(drawn) // PADDED_PAIRS)
        counted = {("orpo_ray", level): subject.packed(dealt, level) for level in LEVELS}
        counted |= {("padded", level): subject.padded(in_order, level) for level in (LEVELS[0], LEVELS[-1])}
        useful = Load.of(drawn).flops(subject.network)
        for (who, level), counts in counted.items():
            row = {"network": family, "lora": kind.lora, "who": who, "memory": level, "pairs": kind.pairs}
            row |= _described(counts, device, useful, kind.pairs)
            line = measured.steps.get((family, level)) if who == "orpo_ray" else None
            row["measured_mfu"] = None if line is None else line["useful_tflop"] / line["ms"] * 1e15 / device.peak
            rows.append(row)
    return rows


def _described(counts: Counts, device: Device, useful: float, pairs: int) -> dict[str, object]:
    seconds = counts.step(device)
    return {
        "operators": counts.operators, "tflop": counts.flops / 1e12, "useful_tflop": useful / 1e12,
        "gigabytes": counts.bytes / 1e9, "milliseconds": {kind: 1e3 * each for kind, each in counts.seconds.items()},
        "host_milliseconds": 1e3 * counts.operators * device.launch, "step_milliseconds": 1e3 * seconds,
        "mfu": useful / seconds / device.peak, "pairs_a_second": pairs / seconds,
    }  # fmt: skip
