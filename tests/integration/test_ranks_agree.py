"""What ranks find out each by itself is told by all of them: real processes, a real process group."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

RANK = """
import os, sys, torch
from orpo_ray.errors import UserError
from orpo_ray.training.agreement import on_all, require_same
from orpo_ray.training.engine import broadcast
from orpo_ray.training.lost_workers import lost_connection

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()

def told(work):
    try:
        return work()
    except UserError as error:
        return f"refused: {error}"

def only_on_rank_1():
    if rank == 1:
        raise UserError("no such file")
    return "read"

print(on_all(lambda: rank), flush=True)
print(told(lambda: on_all(only_on_rank_1)), flush=True)
print(told(lambda: require_same("data.train", "equal")), flush=True)
print(told(lambda: require_same("data.train", f"digest {rank}")), flush=True)
print(broadcast([f"of {rank}", None]), flush=True)
if rank == 1:
    os._exit(0)
try:
    while True:
        torch.distributed.all_reduce(torch.ones(1))
except RuntimeError as error:
    print(lost_connection(error, "here"), flush=True)
"""


def test_ranks_agree_and_tell_who_has_gone() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0].splitlines() for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    for rank, own in enumerate(said):
        assert own[0] == str(rank)
        assert own[1] == f"refused: on {socket.gethostname()}: no such file", "the other rank must not go on alone"
        assert own[2] == "None" and own[3].startswith("refused: data.train: not the same on ")
        assert own[4] == "['of 0', None]"
    assert said[0][5].startswith("the connection between here and 127.0.0.1 is lost: ")
