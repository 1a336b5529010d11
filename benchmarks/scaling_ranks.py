"""Ranks as plain processes over gloo, started without Ray, that run the trainer's own loop on made-up pairs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

PAIR = (96, 80, 80)
"""Tokens of prompt, chosen and rejected in every pair."""


class Lines:
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


def pairs_of(number: int, vocabulary: int) -> Any:
    from orpo_ray.data.dataset import PairDataset

    ends = np.tile(PAIR, number).cumsum().reshape(-1, 3)
    tokens = np.random.default_rng(0).integers(3, vocabulary, ends[-1, 2]).astype(np.int32)
    return PairDataset(tokens, np.c_[np.r_[0, ends[:-1, 2]], ends], np.arange(number))


def config_of(batch: int, budget: int, steps: int, stage: int, dtype: str, thresholds: dict[str, int]) -> Any:
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


def run_steps(engine: Any, config: Any, vocabulary: int, look: Callable[[], Any] = lambda: None) -> Lines:
    from orpo_ray.training.loop import State, run

    lines = Lines(look)
    data = pairs_of(config.train.global_batch_size * config.train.max_steps, vocabulary)
    run(engine, config, data, data.subset(np.arange(1)), lines, State())
    return lines


def engine_of(policy: Any, config: Any, stage: int | None) -> Any:
    import torch

    from orpo_ray.training.engine import DeepSpeedEngine, TorchEngine

    return TorchEngine(policy, config.optim) if stage is None else DeepSpeedEngine(policy, config, torch.device("cpu"))


@contextmanager
def counting(stage: int | None) -> Iterator[Callable[[], tuple[float, float, int, int]]]:
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


def on_ranks(script: str, ranks: int, *arguments: str) -> list[dict[str, Any]]:
    """`script` in `ranks` processes of one thread; the rows of rank 0 (see `as_rank`)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, script, *arguments], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        output = processes[0].communicate(timeout=600)[0]
        if any(process.wait(timeout=60) for process in processes):
            raise RuntimeError(f"{script} on {ranks} ranks failed")
    finally:
        for process in processes:
            process.kill()
    rows: list[dict[str, Any]] = json.loads(output.splitlines()[-1])
    return rows


def as_rank(work: Callable[[], list[dict[str, Any]]]) -> None:
    """Do `work` as one of the processes of `on_ranks`."""
    import torch

    torch.set_num_threads(1)
    many = int(os.environ["WORLD_SIZE"]) > 1
    if many:
        torch.distributed.init_process_group("gloo")
    print(json.dumps(work()))
    if many:
        torch.distributed.destroy_process_group()
