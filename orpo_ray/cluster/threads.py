"""How many threads torch computes with in a process that Ray has started."""

from __future__ import annotations

import os

import torch


def use_assigned_cpus() -> None:
    """Compute with as many threads as Ray has given CPUs to this process, or as OMP_NUM_THREADS said before.

    Ray says so by OMP_NUM_THREADS, which OpenMP reads when it is loaded; in a forked worker it is loaded before.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():
        torch.set_num_threads(int(threads))
