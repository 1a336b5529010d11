"""How long a training step takes, what limits it, and what fits where: measured here, and predicted for H100 nodes.

    python benchmarks/scaling.py --ultrafeedback ../shared/data/ultrafeedback/train-1000.jsonl \
        --hh ../shared/data/hh_rlhf/helpful-base-test.jsonl.gz --tokenizer ../shared/tokenizers/opt

Four parts, each a minute or two of two CPU cores; `--parts` picks some, the others' results stay in `--out`.

- input: the schedule of a step at up to 4,096 ranks over up to ten million pairs, with the trainer's own code, and the
  memory it takes (scaling_input.py).
- fit: steps of small networks on this CPU, in one process and through ZeRO-2 and ZeRO-3 on two ranks, and the cost
  model's coefficients fitted to them (scaling_fit.py).
- traffic: what DeepSpeed sends and holds, counted (scaling_traffic.py).
- predict: the same model with published figures of 8 x H100 nodes (scaling_model.py), and the figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scaling_model import FAMILIES, Node, network, step_time, steps_of

PARTS = ("input", "fit", "traffic", "predict")
BUDGETS = {"OPT-1.3B": 16384, "Mistral-7B": 8192}
"""`train.tokens_per_microbatch` of the configurations in configs/."""
STAGES = (2, 3)
GPUS = (8, 64, 512, 4096)
REGIMES = {"8 pairs a GPU": lambda gpus: 8 * gpus, "512 pairs a step": lambda gpus: 512}
CARDS = (24, 48, 80, 141)  # GiB
MARGIN = 0.9  # of a card: the rest is CUDA's context, NCCL's buffers and fragmentation
SAMPLES = 10


def predict(results: dict[str, Any], lengths: dict[str, npt.NDArray[np.int64]], figure: Path) -> dict[str, Any]:
    node = Node()
    nets = {family: network(family) for family in FAMILIES}
    sent = {(row["network"], row["stage"]): _at_full_size(row, nets) for row in results["traffic"]["traffic"]}
    largest = max(results["input"]["processes"], key=lambda one: (one["pairs"], not one["held_out"], not one["cold"]))
    prepared = {(step["ranks"], step["batch"]): step["plan_seconds"] + step["pack_seconds"] for step in largest["steps"]}
    rows: list[dict[str, Any]] = []
    for source, drawn_from in lengths.items():
        for family, net in nets.items():
            for regime, pairs in REGIMES.items():
                for gpus in GPUS:
                    if pairs(gpus) < gpus:
                        continue
                    steps = steps_of(drawn_from, pairs(gpus), gpus, BUDGETS[family], max(1, SAMPLES * 512 // pairs(gpus)))
                    for stage in STAGES:
                        time = step_time(net, steps, sent[family, stage], node, prepared[gpus, pairs(gpus)], stage)
                        rows.append({"data": source, "network": family, "stage": stage, "regime": regime, "gpus": gpus,
                                     **_told(time, pairs(gpus))})  # fmt: skip
    limits = [
        {"network": family, "stage": stage, "gpus": gpus, "tokens": _break_even(nets[family], sent[family, stage], node, gpus)}
        for family in FAMILIES for stage in (1, 2, 3) for gpus in GPUS[:3]
    ]  # fmt: skip
    _draw(rows, figure)
    return {
        "node": vars(node), "networks": {family: vars(net) for family, net in nets.items()}, "steps": rows,
        "tokens_where_communication_equals_compute": limits,
        "memory": _sizes(nets, results["traffic"]["saved_bytes"]),
    }  # fmt: skip
