"""Ranks as plain processes of one thread over gloo, without Ray, that run the trainer's own loop on made-up pairs."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from orpo_ray.training.loop import Sink
from orpo_ray.training.source import PairSource

PAIR = (96, 80, 80)
"""Tokens of prompt, chosen and rejected in every pair."""
Rows = list[dict[str, Any]]


def on_ranks(work: Callable[..., Rows], ranks: int, *arguments: Any) -> Rows:
    """What `work(*arguments)` returns on rank 0 of `ranks`."""
    from torch.multiprocessing.spawn import spawn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        spawn(_rank, (work, arguments, environment, result), nprocs=ranks)  # type: ignore[no-untyped-call]
        rows: Rows = json.loads(result.read_text())
    return rows


def _rank(rank: int, work: Callable[..., Rows], arguments: Any, environment: dict[str, str], result: Path) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    import torch

    torch.set_num_threads(1)
    if environment["WORLD_SIZE"] != "1":
        torch.distributed.init_process_group("gloo")
    rows = work(*arguments)
    if rank == 0:
        result.write_text(json.dumps(rows))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Lines(Sink):
    """Keeps the training lines, and what `look` saw at each."""

    def __init__(self, look: Callable[[], Any] = lambda: None) -> None:
        self.training: Rows = []
        self.seen: list[Any] = []
        self._look = look

    def metrics(self, line: dict[str, Any]) -> None:
        if "loss" in line:
            self.training.append(line)
            self.seen.append(self._look())


def config_of(batch: int, budget: int, steps: int, stage: int, dtype: str, thresholds: dict[str, int]) -> Any:
    from orpo_ray.config import parse_config

    return parse_config(
        {
            "name": "scaling",
            "model": {"name_or_path": "unused", "dtype": dtype},
            "data": {"train": "unused"},
            "train": {
                "global_batch_size": batch, "tokens_per_microbatch": budget, "max_steps": steps, "epochs": 1,
                "zero_stage": stage, "deepspeed": {"zero_optimization": thresholds} if stage else {},
            },
        },
        [],
        "benchmark",
    )  # fmt: skip


def run_steps(engine: Any, config: Any, vocabulary: int, look: Callable[[], Any] = lambda: None) -> Lines:
    from orpo_ray.data.dataset import PairDataset
    from orpo_ray.training.loop import State, run

    pairs = config.train.global_batch_size * config.train.max_steps
    ends = np.tile(PAIR, pairs).cumsum().reshape(-1, 3)
    tokens = np.random.default_rng(0).integers(3, vocabulary, ends[-1, 2]).astype(np.int32)
    data = PairDataset(tokens, np.c_[np.r_[0, ends[:-1, 2]], ends], np.arange(pairs))
    lines = Lines(look)
    run(engine, config, PairSource(engine, config, data, data.subset(np.arange(1))), lines, State())
    return lines


@contextmanager
def counting() -> Iterator[Callable[[], tuple[float, float, int, int]]]:
    """Counts what DeepSpeed sends: yields a function that tells (bytes all-reduced, bytes gathered or reduce-scattered,
    all-reduces, other collectives) so far.
    """
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
