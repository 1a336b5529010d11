"""Whether nodes reach each other as training will: a collective of torch.distributed over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from orpo_ray.doctor.finding import Finding

TIMEOUT = 30.0  # seconds


def all_reduce(backend: str, rank: int, ranks: int, address: str, port: int) -> str:
    """Take part in adding up the ranks' numbers; returns what went wrong, in one line, or nothing."""
    import torch
    import torch.distributed as dist

    from orpo_ray.cluster.interface import listen_where_the_cluster_does
    from orpo_ray.cluster.store import listen_where_told

    if address != "127.0.0.1":
        listen_where_the_cluster_does()
    listen_where_told()
    try:
        dist.init_process_group(
            backend, init_method=f"tcp://{address}:{port}", rank=rank, world_size=ranks,
            timeout=timedelta(seconds=TIMEOUT),
        )  # fmt: skip
        numbers = torch.full((4,), float(rank), device="cuda" if backend == "nccl" else "cpu")
        dist.all_reduce(numbers)
        right = numbers.tolist() == [ranks * (ranks - 1) / 2] * 4
    except (RuntimeError, ValueError) as error:  # DistError is a RuntimeError
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return "" if right else f"the sum of ranks came out as {numbers.tolist()}"


def judge(backend: str, problems: Mapping[str, str]) -> Finding:
    """`problems`: by node what `all_reduce` returned, or why it did not."""
    ranks = f"{backend} between {len(problems)} processes"
    told = [f"{node}: {problem}" for node, problem in problems.items() if problem]
    if not told:
        return Finding("OK", "network", f"{ranks} works ({', '.join(problems)})")
    fix = (
        "open all TCP ports between the nodes, and name the interface that joins them in "
        f"{'NCCL' if backend == 'nccl' else 'GLOO'}_SOCKET_IFNAME on every node"
    )
    return Finding("FAIL", "network", f"{ranks} fails: {'; '.join(told)}", fix)
