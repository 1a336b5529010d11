"""Steps measured on this machine's CPU, and the cost model fitted to them; see scaling.py."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scaling_model import OPTIMIZER_BYTES, Load, Network, build
from scaling_ranks import PAIR, as_rank, config_of, counting, engine_of, on_ranks, run_steps

TERMS = (
    "flops / peak", "activation bytes / memory bandwidth", "logit bytes / memory bandwidth",
    "bytes sent / link bandwidth", "collectives", "layers x micro-batches", "optimizer bytes / memory bandwidth",
)  # fmt: skip
FITTED = {
    "narrow": dict(hidden_size=128, ffn_dim=512, num_hidden_layers=4, vocab_size=1024, num_attention_heads=2),
    "vocabulary": dict(hidden_size=256, ffn_dim=1024, num_hidden_layers=4, vocab_size=8192, num_attention_heads=4),
    "wide": dict(hidden_size=512, ffn_dim=2048, num_hidden_layers=2, vocab_size=2048, num_attention_heads=8),
    "deep": dict(hidden_size=256, ffn_dim=1024, num_hidden_layers=8, vocab_size=2048, num_attention_heads=4),
}
HELD_OUT = {
    "held out": dict(hidden_size=384, ffn_dim=1536, num_hidden_layers=6, vocab_size=4096, num_attention_heads=6),
}
SETTINGS = ((2, 1), (8, 1), (8, 4))
"""(pairs a rank, micro-batches) of a step."""
_ENGINES = {1: (None,), 2: (2, 3)}  # ranks: TorchEngine, or ZeRO stages
_STEPS = 5  # the first warms up


def timed(ranks: int) -> list[dict[str, Any]]:
    """Every shape, engine and setting on this rank; one row of seconds and of the model's terms each."""
    import torch

    machine = _machine(ranks)
    # Matrices are partitioned, as they are at full size; a bucket holds any of these networks.
    thresholds = {"stage3_param_persistence_threshold": 4096, "reduce_bucket_size": 50_000_000}
    rows = []
    for (shape, sizes), stage in itertools.product({**FITTED, **HELD_OUT}.items(), _ENGINES[ranks]):
        torch.manual_seed(0)
        policy = build("OPT-1.3B", max_position_embeddings=512, **sizes)
        net = Network.of(policy)
        engine = engine_of(policy, config_of(ranks, 10**6, 1, stage or 0, "float32", thresholds), stage)
        for pairs, micro_batches in SETTINGS:
            budget = sum(PAIR) * pairs // micro_batches
            short, long = (
                config_of(pairs * ranks, budget, steps, stage or 0, "float32", thresholds) for steps in (2, _STEPS)
            )
            lines = run_steps(engine, long, net.vocabulary).training[1:]
            with counting(stage) as counts:
                seen = run_steps(engine, short, net.vocabulary, counts).seen
            row = {
                "shape": shape,
                "engine": "one process" if stage is None else f"ZeRO-{stage}, {ranks} ranks",
                "pairs": pairs,
                "micro_batches": micro_batches,
                "seconds": statistics.median(pairs * ranks / line["pairs_per_second"] for line in lines),
                "terms": _terms(net, machine, ranks, pairs, micro_batches, np.subtract(seen[1], seen[0])),
                "machine": machine,
            }
            rows.append(row)
    return rows


def _terms(
    net: Network, machine: dict[str, float], ranks: int, pairs: int, micro_batches: int, sent: npt.NDArray[np.float64]
) -> list[float]:
    """In the order of `TERMS`; `sent` is what `counting` counted."""
    load = Load.of(np.tile(PAIR, (pairs, 1)))
    reduced, moved, reductions, others = sent.tolist()
    crossing = (2 * reduced + moved) * (ranks - 1) / ranks
    return [
        load.flops(net) / machine["peak"],
        4 * load.tokens * net.layers * net.width / machine["memory_bandwidth"],
        4 * load.predictions * net.vocabulary / machine["memory_bandwidth"],
        crossing / machine["link_bandwidth"] if crossing else 0.0,
        reductions + others,
        float(net.layers * micro_batches),
        OPTIMIZER_BYTES * net.parameters / ranks / machine["memory_bandwidth"],
    ]


def _machine(ranks: int) -> dict[str, float]:
    """This rank's rates while all ranks work: matrix products, memory, the link between ranks."""
    import torch

    from orpo_ray.modeling.flops import measured_peak

    def best(work: Callable[[], object], repeats: int) -> float:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    large = torch.ones(16 << 20)  # 64 MiB
    target = torch.empty_like(large)
    rates = {
        "peak": measured_peak(torch.device("cpu"), torch.float32, 1.0),
        "memory_bandwidth": 2 * large.nbytes / best(lambda: target.copy_(large), 10),
    }
    if ranks > 1:
        crossing = 2 * large.nbytes * (ranks - 1) / ranks
        rates["link_bandwidth"] = crossing / best(lambda: torch.distributed.all_reduce(large), 5)
    return rates


def fit(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Least squares of relative errors with coefficients that are not negative; the held-out shape takes no part."""
    from scipy.optimize import lsq_linear

    terms = np.array([row["terms"] for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    out = np.array([row["shape"] in HELD_OUT for row in rows])
    solution = lsq_linear(terms[~out] / seconds[~out, None], np.ones((~out).sum()), bounds=(0, np.inf))
    predicted = terms @ solution.x
    return {
        "coefficients": dict(zip(TERMS, solution.x.tolist(), strict=True)),
        "r2": _r2(seconds[~out], predicted[~out]),
        "r2_held_out": _r2(seconds[out], predicted[out]),
        "median_relative_error": float(np.median(np.abs(predicted / seconds - 1)[~out])),
        "worst_relative_error": float(np.abs(predicted / seconds - 1)[~out].max()),
        "held_out": [
            {**{name: row[name] for name in ("engine", "pairs", "micro_batches", "seconds")}, "predicted": float(value)}
            for row, value in zip(rows, predicted, strict=True)
            if row["shape"] in HELD_OUT
        ],
        "predicted": predicted.tolist(),
    }


def _r2(seconds: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> float:
    return float(1 - ((seconds - predicted) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum())


def measure() -> dict[str, Any]:
    rows = [row for ranks in _ENGINES for row in on_ranks(__file__, ranks)]
    fitted = fit(rows)
    print(f"fit: R2 {fitted['r2']:.4f}, held out {fitted['r2_held_out']:.4f}")
    for name, value in fitted["coefficients"].items():
        print(f"  {name}: {value:.3g}")
    for row in fitted["held_out"]:
        print(
            f"  held out, {row['engine']}, {row['pairs']} pairs in {row['micro_batches']}: "
            f"{row['seconds']:.3f} s, predicted {row['predicted']:.3f} ({row['predicted'] / row['seconds'] - 1:+.1%})"
        )
    return {"measured": rows, **fitted}


if __name__ == "__main__":
    as_rank(lambda: timed(int(os.environ["WORLD_SIZE"])))
