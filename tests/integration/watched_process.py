"""One rank of `test_watchdog.py`: trains until it is stopped, watched."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from orpo_ray.config import OptimConfig
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.watchdog import Watchdog


def main(out: Path) -> None:
    torch.distributed.init_process_group("gloo")
    engine = TorchEngine(nn.Linear(1, 1), OptimConfig(lr=1e-3))  # type: ignore[arg-type]
    rank = engine.rank

    def tell(text: str) -> None:
        (out / f"told-by-{rank}").write_text(text)

    watched = Watchdog(engine, timeout=2.0, tell=tell).engine
    while True:
        watched.all_sum(torch.ones(1))
        (out / f"rank-{rank}").write_text(str(os.getpid()))
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
