"""Steps measured on this machine's CPU, and the cost model fitted to them; see scaling.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scaling_model import build
from scaling_ranks import PAIR, Rows, config_of, counting, on_ranks, run_steps

from orpo_ray.costs.cluster import bytes_sent
from orpo_ray.costs.step import FP32, OPTIMIZER_BYTES, Load, Network

TERMS = (
    "FLOPs / matmul peak", "activation bytes / memory bandwidth", "logit bytes / memory bandwidth",
    "optimizer bytes / memory bandwidth", "bytes sent / link bandwidth", "collectives", "layers x micro-batches",
)  # fmt: skip
"""All but the last two are seconds of an ideal machine: their coefficients are 1 / efficiency, and at least 1."""
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
_ENGINES: dict[int, tuple[int | None, ...]] = {1: (None,), 2: (2, 3)}  # ranks: TorchEngine, or ZeRO stages
_STEPS = 4  # the first warms up; of the others the fastest counts, since whatever else runs can only slow it
_THRESHOLDS = {
    "stage3_param_persistence_threshold": 4096,  # matrices are partitioned, as they are at full size
    "reduce_bucket_size": 50_000_000,  # a bucket holds any of these networks
}


def timed(ranks: int) -> Rows:
    """Every shape, engine and setting on this rank: seconds, and the model's terms."""
    import torch

    from orpo_ray.training.deepspeed_engine import DeepSpeedEngine
    from orpo_ray.training.engine import TorchEngine

    machine = _machine(ranks)
    rows: Rows = []
    for (shape, sizes), stage in itertools.product({**FITTED, **HELD_OUT}.items(), _ENGINES[ranks]):
        torch.manual_seed(0)
        policy = build("OPT-1.3B", max_position_embeddings=512, **sizes)
        net = Network.of(policy)
        first = config_of(ranks, 10**6, 1, stage or 0, "float32", _THRESHOLDS)
        engine: Any = (
            TorchEngine(policy, first.optim) if stage is None else DeepSpeedEngine(policy, first, torch.device("cpu"))
        )
        for pairs, micro_batches in SETTINGS:
            budget = sum(PAIR) * pairs // micro_batches
            config = config_of(pairs * ranks, budget, _STEPS, stage or 0, "float32", _THRESHOLDS)
            lines = run_steps(engine, config, net.vocabulary).training[1:]
            sent, collectives = 0.0, 0.0
            if stage is not None:
                sent = sum(bytes_sent(stage, net.parameters, micro_batches, ranks, FP32))
                config = config_of(micro_batches * ranks, sum(PAIR), 2, stage, "float32", _THRESHOLDS)
                with counting() as counts:
                    seen = run_steps(engine, config, net.vocabulary, counts).seen
                collectives = float(np.subtract(seen[1], seen[0])[2:].sum())
            load = Load.of(np.tile(PAIR, (pairs, 1)))
            terms = [
                load.flops(net) / machine["peak"],
                FP32 * load.tokens * net.layers * net.width / machine["memory_bandwidth"],
                FP32 * load.predictions * net.vocabulary / machine["memory_bandwidth"],
                OPTIMIZER_BYTES * net.parameters / ranks / machine["memory_bandwidth"],
                sent / machine["link_bandwidth"] if ranks > 1 else 0.0,
                collectives,
                float(net.layers * micro_batches),
            ]
            row = {
                "shape": shape, "engine": "one process" if stage is None else f"ZeRO-{stage}, {ranks} ranks",
                "pairs_a_rank": pairs, "micro_batches": micro_batches,
                "seconds": min(pairs * ranks / line["pairs_per_second"] for line in lines),
                "terms": terms, "machine": machine,
            }  # fmt: skip
            rows.append(row)
    return rows


def _machine(ranks: int) -> dict[str, float]:
    """This rank's rates while all ranks work: FLOP/s of matrix products; bytes a second of memory and between ranks."""
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


def fit(rows: Rows) -> dict[str, Any]:
    """Least squares of relative errors within the bounds of `TERMS`; the held-out shape takes no part."""
    from scipy.optimize import lsq_linear

    terms = np.array([row["terms"] for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    out = np.array([row["shape"] in HELD_OUT for row in rows])
    least = [1.0] * (len(TERMS) - 2) + [0.0] * 2
    solution = lsq_linear(terms[~out] / seconds[~out, None], np.ones((~out).sum()), bounds=(least, np.inf))
    predicted = terms @ solution.x
    errors = predicted / seconds - 1
    return {
        "measured": [{**row, "predicted": value} for row, value in zip(rows, predicted.tolist(), strict=True)],
        "coefficients": dict(zip(TERMS, solution.x.tolist(), strict=True)),
        "fitted": _quality(seconds[~out], predicted[~out]),
        "held_out": _quality(seconds[out], predicted[out]),
        "held_out_errors": errors[out].tolist(),
    }


def _quality(seconds: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> dict[str, float]:
    errors = np.abs(predicted / seconds - 1)
    r2 = 1 - ((seconds - predicted) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum()
    return {
        "r2": float(r2),
        "median_relative_error": float(np.median(errors)),
        "worst_relative_error": float(errors.max()),
    }


def measure() -> dict[str, Any]:
    fitted = fit([row for ranks in _ENGINES for row in on_ranks(timed, ranks, ranks)])
    for name in ("coefficients", "fitted", "held_out"):
        print(f"{name}: {fitted[name]}")
    for row in fitted["measured"]:
        print(
            f"  {row['shape']}, {row['engine']}, {row['pairs_a_rank']} pairs in {row['micro_batches']}: "
            f"{row['seconds']:.3f} s, predicted {row['predicted']:.3f} ({row['predicted'] / row['seconds'] - 1:+.1%})"
        )
    return fitted
