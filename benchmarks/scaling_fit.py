"""Steps measured on this machine's CPU and the cost model fitted to them; and what DeepSpeed sends and holds, counted.

Ranks are plain processes over gloo with one thread each, started without Ray; see scaling.py.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from scaling_model import FAMILIES, OPTIMIZER_BYTES, Load, Network, build

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
PAIR = (96, 80, 80)
"""Tokens of prompt, chosen and rejected in every pair."""
_ENGINES = {1: (None,), 2: (2, 3)}  # ranks: TorchEngine, or ZeRO stages
_STEPS = 5  # the first warms up
_SMALL = 1 / 256  # of a real network's weights, and of DeepSpeed's thresholds, in what is counted


class _Lines:
    """The loop's sink: keeps the training lines, and what `look` saw at each."""

    def __init__(self, look: Callable[[], Any] = lambda: None) -> None:
        self.training: list[dict[str, Any]] = []
        self.seen: list[Any] = []
        self._look = look

    def metrics(self, line: dict[str, Any]) -> None:
        if "loss" in line:
            self.training.append(line)
            self.seen.append(self._look())

    def best_model(self, *_: Any) -> None:
        pass

    def checkpoint(self, *_: Any) -> None:
        pass


def _pairs(number: int, vocabulary: int) -> Any:
    from orpo_ray.data.dataset import PairDataset

    ends = np.tile(PAIR, number).cumsum().reshape(-1, 3)
    tokens = np.random.default_rng(0).integers(3, vocabulary, ends[-1, 2]).astype(np.int32)
    return PairDataset(tokens, np.c_[np.r_[0, ends[:-1, 2]], ends], np.arange(number))


def _config(batch: int, budget: int, steps: int, stage: int, dtype: str, thresholds: dict[str, int]) -> Any:
    from orpo_ray.config import parse_config

    return parse_config(
        {
            "name": "scaling",
            "model": {"name_or_path": "unused", "dtype": dtype},
            "data": {"train": "unused"},
            "train": {
                "global_batch_size": batch, "tokens_per_microbatch": budget, "max_steps": steps, "epochs": 1,
                "zero_stage": stage, "deepspeed": {"zero_optimization": thresholds},
            },
        },
        [],
        "benchmark",
    )  # fmt: skip


def _run(engine: Any, config: Any, vocabulary: int, look: Callable[[], Any] = lambda: None) -> _Lines:
    from orpo_ray.training.loop import State, run

    lines = _Lines(look)
    data = _pairs(config.train.global_batch_size * config.train.max_steps, vocabulary)
    run(engine, config, data, data.subset(np.arange(1)), lines, State())
    return lines


def _engine(policy: Any, config: Any, stage: int | None) -> Any:
    import torch

    from orpo_ray.training.engine import DeepSpeedEngine, TorchEngine

    return TorchEngine(policy, config.optim) if stage is None else DeepSpeedEngine(policy, config, torch.device("cpu"))


def timed(ranks: int) -> list[dict[str, Any]]:
    """Every shape, engine and setting on this rank; one row of seconds and of the model's terms each."""
    import torch

    machine = _machine(ranks)
    rows = []
    for shape, sizes in {**FITTED, **HELD_OUT}.items():
        for stage in _ENGINES[ranks]:
            torch.manual_seed(0)
            policy = build("OPT-1.3B", max_position_embeddings=512, **sizes)
            net = Network.of(policy)
            # Matrices are partitioned, as they are at full size; a bucket holds any of these networks.
            thresholds = {"stage3_param_persistence_threshold": 4096, "reduce_bucket_size": 50_000_000}
            first = _config(ranks, 10**6, 1, stage or 0, "float32", thresholds)
            engine = _engine(policy, first, stage)
            for pairs, micro_batches in SETTINGS:
                budget = sum(PAIR) * pairs // micro_batches
                config = _config(pairs * ranks, budget, _STEPS, stage or 0, "float32", thresholds)
                lines = _run(engine, config, net.vocabulary).training[1:]
                seconds = statistics.median(pairs * ranks / line["pairs_per_second"] for line in lines)
                with _counting(stage) as counts:
                    seen = _run(engine, config.model_copy(update={"train": config.train.model_copy(
                        update={"max_steps": 2})}), net.vocabulary, counts).seen  # fmt: skip
                reduced, moved, reductions, others = np.subtract(seen[1], seen[0])
                load = Load.of(np.tile(PAIR, (pairs, 1)))
                terms = (
                    load.flops(net) / machine["peak"],
                    4 * load.tokens * net.layers * net.width / machine["memory_bandwidth"],
                    4 * load.predictions * net.vocabulary / machine["memory_bandwidth"],
                    (2 * reduced + moved) * (ranks - 1) / ranks / machine["link_bandwidth"],
                    reductions + others,
                    net.layers * micro_batches,
                    OPTIMIZER_BYTES * net.parameters / ranks / machine["memory_bandwidth"],
                )
                engine_name = "one process" if stage is None else f"ZeRO-{stage}, 2 ranks"
                rows.append(
                    {
                        "shape": shape, "engine": engine_name, "pairs": pairs, "micro_batches": micro_batches,
                        "seconds": seconds, "terms": [float(term) for term in terms],
                    }
                )  # fmt: skip
    return [{**row, "machine": machine} for row in rows]


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
        "link_bandwidth": float("inf"),
    }
    if ranks > 1:
        crossing = 2 * large.nbytes * (ranks - 1) / ranks
        rates["link_bandwidth"] = crossing / best(lambda: torch.distributed.all_reduce(large), 5)
    return rates


@contextmanager
def _counting(stage: int | None) -> Iterator[Callable[[], tuple[float, float, int, int]]]:
    """Counts what DeepSpeed sends: yields a function that tells (bytes all-reduced, bytes gathered or reduce-scattered,
    all-reduces, other collectives) so far.
    """
    if stage is None:
        yield lambda: (0.0, 0.0, 0, 0)
        return
    import deepspeed.comm
    from deepspeed.comm.comm import comms_logger

    ranks = deepspeed.comm.get_world_size()

    def counts() -> tuple[float, float, int, int]:
        reduced = moved = 0.0
        reductions = others = 0
        for operation, sizes in comms_logger.comms_dict.items():
            for size, (times, *_) in sizes.items():
                if operation == "all_reduce":
                    reduced, reductions = reduced + size * times, reductions + times
                else:  # a gather is logged by what one rank gives
                    whole = size * ranks if operation.startswith("all_gather") else size
                    moved, others = moved + whole * times, others + times
        return reduced, moved, reductions, others

    deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False, debug=False)
    try:
        yield counts
    finally:
        comms_logger.enabled = False


def traffic() -> list[dict[str, Any]]:
    """What DeepSpeed sends in a step and holds on a rank, for each network and ZeRO stage, in bfloat16 on two ranks.

    The networks have a 256th of the weights and a quarter of the layers, DeepSpeed's thresholds a 256th of their
    defaults, so buckets and prefetching work as at full size; a step of one micro-batch and one of two tell apart what
    is sent once. Bytes are for each parameter.
    """
    import torch

    rows = []
    for family in FAMILIES:
        for stage in (0, 1, 2, 3):
            sizes = _small(family)
            thresholds = {
                name: int(size * _SMALL) // 64 * 64  # DeepSpeed aligns them
                for name, size in {
                    "reduce_bucket_size": 5e8, "allgather_bucket_size": 5e8, "stage3_prefetch_bucket_size": 5e7,
                    "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
                }.items()
            } | {"stage3_param_persistence_threshold": 1000}  # fmt: skip
            before = _tensor_bytes()
            torch.manual_seed(0)
            policy = build(family, **sizes).to(torch.bfloat16)
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            net = Network.of(policy)
            config = _config(4, 2 * sum(PAIR), 3, stage, "bfloat16", thresholds)
            engine = _engine(policy, config, stage)
            held: dict[str, float] = {}
            with _watching_update(engine, held, before, net.parameters):
                sent = []
                for pairs in (2, 4):  # one micro-batch of a rank, or two
                    own = config.train.model_copy(
                        update={"tokens_per_microbatch": sum(PAIR), "global_batch_size": pairs}
                    )
                    with _counting(stage) as counts:
                        seen = _run(engine, config.model_copy(update={"train": own}), net.vocabulary, counts).seen
                    sent.append(np.subtract(seen[2], seen[1]))
            each = sent[1] - sent[0]  # of a micro-batch
            per = np.array([net.parameters, net.parameters, 1, 1])
            rows.append(
                {
                    "network": family, "stage": stage, "parameters": net.parameters, "layers": net.layers,
                    "of_a_step": ((sent[0] - each) / per).tolist(), "of_a_micro_batch": (each / per).tolist(),
                    "held_bytes": held,
                }
            )  # fmt: skip
    return rows


def _small(family: str) -> dict[str, int]:
    common = dict(max_position_embeddings=512, vocab_size=2000)
    if family == "OPT-1.3B":
        return dict(**common, hidden_size=128, ffn_dim=512, num_hidden_layers=24, num_attention_heads=2)
    return dict(
        **common, hidden_size=256, intermediate_size=896, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2,
    )  # fmt: skip


@contextmanager
def _watching_update(engine: Any, held: dict[str, float], before: int, parameters: int) -> Iterator[None]:
    """Fills `held`: bytes of tensors for each parameter when backward is done, and when AdamW updates."""
    import torch

    step, update = engine.step, torch.optim.AdamW.step

    def engine_step(lr: float) -> float:
        held["after backward"] = (_tensor_bytes() - before) / parameters
        norm: float = step(lr)
        return norm

    def adamw_step(self: Any, *arguments: Any, **options: Any) -> Any:
        held["in the update"] = max(held.get("in the update", 0.0), (_tensor_bytes() - before) / parameters)
        return update(self, *arguments, **options)

    engine.step, torch.optim.AdamW.step = engine_step, adamw_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.optim.AdamW.step = update  # type: ignore[method-assign]


def _tensor_bytes() -> int:
    """Bytes of all tensors in this process, each storage once."""
    import torch

    gc.collect()
    storages = {}
    for tensor in [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]:
        for one in (tensor, tensor.grad if tensor.is_leaf else None, getattr(tensor, "ds_tensor", None)):
            if one is not None:
                storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


def saved_bytes(family: str) -> float:
    """Bytes that a layer keeps for backward without checkpointing, a token and unit of width, in bfloat16.

    Counted on the small network as the difference that a layer makes; masks, which CUDA's kernel does not take, left
    out.
    """
    import torch

    from orpo_ray.data.packing import pack

    def kept(layers: int) -> tuple[int, int]:
        policy = build(family, **{**_small(family), "num_hidden_layers": layers}).to(torch.bfloat16)
        own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and tensor.dtype is not torch.bool:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        data = _pairs(4, 2000)
        batch = pack([data.pair(pair) for pair in range(4)], score_prompts=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sums = policy(batch)
        del sums
        return sum(storages.values()), batch.tokens

    (three, tokens), (two, _) = kept(3), kept(2)
    return (three - two) / tokens / _small(family)["hidden_size"]


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
    rows = [row for ranks in _ENGINES for row in _on_ranks("timed", ranks)]
    fitted = fit(rows)
    print(f"fit: R2 {fitted['r2']:.4f}, held out {fitted['r2_held_out']:.4f}")
    for name, value in fitted["coefficients"].items():
        print(f"  {name}: {value:.3g}")
    for row in fitted["held_out"]:
        print(
            f"  held out, {row['engine']}, {row['pairs']} pairs in {row['micro_batches']}: "
            f"{row['seconds']:.3f} s, predicted {row['predicted']:.3f} ({row['predicted'] / row['seconds'] - 1:+.1%})"
        )
    counted = _on_ranks("traffic", 2)
    for row in counted:
        print(
            f"{row['network']} ZeRO-{row['stage']}: {row['of_a_step']} + {row['of_a_micro_batch']}, {row['held_bytes']}"
        )
    saved = {family: saved_bytes(family) for family in FAMILIES}
    print(f"saved for backward, bytes a layer, token and unit of width: {saved}")
    return {"measured": rows, **fitted, "traffic": counted, "saved_bytes": saved}


def _on_ranks(what: str, ranks: int) -> list[dict[str, Any]]:
    """`what` in `ranks` processes of one thread; the rows of rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, what], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        output = processes[0].communicate(timeout=600)[0]
        if any(process.wait(timeout=60) for process in processes):
            raise RuntimeError(f"{what} on {ranks} ranks failed")
    finally:
        for process in processes:
            process.kill()
    rows: list[dict[str, Any]] = json.loads(output.splitlines()[-1])
    return rows


def _main(what: str) -> None:
    import torch

    ranks = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    rows = timed(ranks) if what == "timed" else traffic()
    print(json.dumps(rows))
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1])
