"""Predictions for nodes of eight H100 by the cost model, and what fits on which card; see scaling.py."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from scaling_measured import Measured
from scaling_model import (
    FAMILIES,
    Collectives,
    Step,
    StepTime,
    activation_bytes,
    held_bytes,
    network,
    step_time,
    steps_of,
)  # fmt: skip
from scaling_ranks import Rows

from orpo_ray.costs.cluster import Cluster
from orpo_ray.costs.step import Lengths, Load
from orpo_ray.modeling.memory import LEVELS, Recomputation

BUDGETS = {"OPT-1.3B": 16384, "Mistral-7B": 8192}
"""`train.tokens_per_microbatch` of the configurations in configs/."""
STAGES = (1, 2, 3)
GPUS = (8, 64, 512)
PAIRS_A_GPU, PAIRS_A_STEP = 8, 512
CARDS = {"24 GB": 24e9, "40 GB": 40e9, "80 GB": 80e9, "141 GB": 141e9}
MARGIN = 0.9
"""ASSUMED: of a card; the rest is CUDA's context, NCCL's buffers and fragmentation."""
GBITS = (400, 200, 100, 25)
"""Of network for each GPU."""
GB = 1e9

Setting = tuple[int, Recomputation]
"""ZeRO stage and `train.memory`."""


class Predictions:
    """`lengths`: of real pairs, by data set; `prepared`: seconds of a step's input by (GPUs, pairs); `traffic`: rows of
    `scaling_traffic.py`.
    """

    def __init__(
        self,
        lengths: dict[str, Lengths],
        prepared: dict[tuple[int, int], float],
        traffic: Rows,
        measured: Measured | None = None,
    ) -> None:
        self.lengths, self.prepared, self.measured = lengths, prepared, measured or Measured()
        self.nets = {family: network(family) for family in FAMILIES}
        self.activations = {family: activation_bytes(family, BUDGETS[family]) for family in FAMILIES}
        self.collectives = {}
        for row in traffic:
            deeper = self.nets[row["network"]].layers / row["layers"]  # than the network in which they were counted
            number = (row["collectives"][name] * deeper for name in ("of_step", "of_micro_batch"))
            self.collectives[row["network"], row["stage"]] = Collectives(*number)
        self._dealt = cache(self._deal)

    def _deal(self, family: str, data: str, pairs: int, gpus: int) -> list[Step]:
        return steps_of(self.lengths[data], pairs, gpus, BUDGETS[family], max(1, 4096 // pairs))

    def cluster(self, family: str, level: Recomputation) -> tuple[Cluster, str]:
        """And the device whose utilisation it has; empty: it is assumed."""
        return self.measured.cluster(family, level, self.nets[family], self.lengths["UltraFeedback"])

    def time(self, family: str, data: str, gpus: int, pairs: int, setting: Setting, gbits: int = 400) -> StepTime:
        """`gbits`: of network for each GPU."""
        stage, level = setting
        cluster = replace(self.cluster(family, level)[0], network=gbits / 8 * 1e9)
        dealt = self._dealt(family, data, pairs, gpus)
        return step_time(
            self.nets[family], dealt, self.collectives[family, stage], cluster, self.prepared[gpus, pairs], stage, level
        )

    def bytes(self, family: str, gpus: int, setting: Setting) -> float:
        stage, level = setting
        return sum(held_bytes(stage, self.nets[family].parameters, gpus).values()) + self.activations[family][level]

    def fitting(self, family: str, gpus: int, card: float) -> list[Setting]:
        settings = itertools.product(STAGES, LEVELS)
        return [one for one in settings if self.bytes(family, gpus, one) <= MARGIN * card]

    def steps(self) -> Rows:
        """For every family, data set, number of GPUs, batch and stage; the least recomputation that 80 GB allow."""
        rows = []
        for family, data, gpus, stage in itertools.product(FAMILIES, self.lengths, GPUS, STAGES):
            fitting = [one for one in self.fitting(family, gpus, CARDS["80 GB"]) if one[0] == stage]
            for setting, pairs in itertools.product(fitting[:1], dict.fromkeys((PAIRS_A_GPU * gpus, PAIRS_A_STEP))):
                time = self.time(family, data, gpus, pairs, setting)
                cluster, device = self.cluster(family, setting[1])
                row = {
                    "network": family, "data": data, "gpus": gpus, "pairs": pairs, "stage": stage, "memory": setting[1],
                    **asdict(time), "limit": time.limit, "best": time.best, "worst": time.worst,
                    "utilisation": cluster.utilisation, "measured_on": device,
                }  # fmt: skip
                rows.append(row)
        return rows

    def limits(self) -> Rows:
        """Tokens a GPU in a step of one micro-batch, below which communication takes longer than computation."""
        rows = []
        for family, gpus, stage, gbits in itertools.product(FAMILIES, GPUS, STAGES, GBITS):
            cluster, _ = self.cluster(family, "none")
            pairs = PAIRS_A_GPU * gpus
            time = self.time(family, "UltraFeedback", gpus, pairs, (stage, "none"), gbits)
            mean = Load.of(self.lengths["UltraFeedback"])
            a_token = mean.flops(self.nets[family]) / mean.tokens / (cluster.peak * cluster.utilisation)
            row = {
                "network": family, "gpus": gpus, "stage": stage, "gbits_a_gpu": gbits,
                "communication": time.beside + time.in_turn, "tokens_a_gpu": (time.beside + time.in_turn) / a_token,
            }  # fmt: skip
            rows.append(row)
        return rows

    def sizing(self) -> Rows:
        """The setting that is fastest among those that fit, at eight pairs of UltraFeedback a GPU."""
        rows = []
        for family, gpus, (card, size) in itertools.product(FAMILIES, (1, *GPUS), CARDS.items()):

            def seconds(setting: Setting, family: str = family, gpus: int = gpus) -> float:
                return self.time(family, "UltraFeedback", gpus, PAIRS_A_GPU * gpus, setting).worst

            best = min(self.fitting(family, gpus, size), key=seconds, default=None)
            row: dict[str, Any] = {"network": family, "gpus": gpus, "card": card, "setting": None}
            if best is not None:
                row["setting"] = {
                    "stage": best[0], "memory": best[1], "gigabytes": self.bytes(family, gpus, best) / GB,
                }  # fmt: skip
            rows.append(row)
        return rows

    def all(self) -> dict[str, Any]:
        return {
            "assumed": {**asdict(Cluster()), "card_margin": MARGIN},
            "measured_on": self.measured.device,
            "networks": {family: asdict(net) for family, net in self.nets.items()},
            "tokens_a_micro_batch": BUDGETS,
            "mean_tokens_a_pair": {data: float(one.sum(axis=1).mean()) for data, one in self.lengths.items()},
            "activation_gigabytes": {
                family: {level: size / GB for level, size in of.items()} for family, of in self.activations.items()
            },
            "held_gigabytes": [
                {"network": family, "gpus": gpus, "stage": stage,
                 **{name: size / GB for name, size in held_bytes(stage, self.nets[family].parameters, gpus).items()}}
                for family, gpus, stage in itertools.product(FAMILIES, GPUS, STAGES)
            ],
            "steps": self.steps(), "limits": self.limits(), "sizing": self.sizing(),
        }  # fmt: skip
