"""GPUs of a process that was killed are given back to its job, by a Ray that declares some: there are none here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import json, os, signal, time, ray
from orpo_ray.cluster.owned_groups import _is_lost, make_group, remove_lost_groups

ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)

@ray.remote(num_cpus=0, max_retries=0)
def lost():
    ray.get(make_group([{"GPU": 1.0}, {"GPU": 1.0}], "STRICT_PACK").ready())
    os.kill(os.getpid(), signal.SIGKILL)

try:
    ray.get(lost.remote())
except ray.exceptions.WorkerCrashedError:
    pass
[row] = ray.util.placement_group_table().values()
while not _is_lost(row["name"]):  # Ray tells of it as its sockets close
    time.sleep(0.1)
states = lambda: sorted(row["state"] for row in ray.util.placement_group_table().values())
found = [states()]
mine = make_group([{"GPU": 2.0}], "PACK")
ray.get(mine.ready(), timeout=60)
remove_lost_groups()  # not what is alive
found.append(states())
print(json.dumps(found))
"""


def test_what_a_killed_task_held_is_there_for_the_next() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CUDA_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**environment, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kept, then = json.loads(done.stdout.splitlines()[-1])
    assert kept == ["CREATED"], "Ray itself gives it back: this module is needed no more"
    assert then == ["CREATED", "REMOVED"]
