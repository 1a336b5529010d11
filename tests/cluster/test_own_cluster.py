"""The cluster that `orpo-ray` starts by itself, where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import psutil
from orpo_ray.training.cluster import connect
connect()
import ray
ray.get(ray.remote(lambda: None).remote())
own = psutil.Process()
for process in (own, *own.children(recursive=True)):
    for connection in process.net_connections(kind="inet"):
        if connection.status == "LISTEN":
            print(connection.laddr.ip.removeprefix("::ffff:"))
"""


def test_it_listens_on_loopback_alone() -> None:
    settings = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(done.stdout.split()) == {"127.0.0.1"}
