"""The process that holds this machine's own cluster: apart from the driver, which imports while Ray starts.

    python -m orpo_ray.cluster.head CPUS FOLDER

prints the cluster's address, and ends the cluster when its standard input ends. Ray's files, logs and sockets, and what
its workers put into temporary files, lie in FOLDER, which is removed then.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from orpo_ray.cluster import setup_worker
from orpo_ray.cluster.temporary import make_folder, remove_folder
from orpo_ray.errors import UserError

_WHY_NOT = "not started: "
"""What stands before the reason, in the place of an address."""


class Head:
    """That process, as the one that starts it sees it."""

    def __init__(self, cpus: int) -> None:
        """Raises `UserError` where this machine has no place for its files."""
        self._folder, lock = make_folder()
        command = [sys.executable, "-m", "orpo_ray.cluster.head", str(cpus), str(self._folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(lock,)
        )
        os.close(lock)

    @property
    def ready(self) -> bool:
        """Whether the cluster is there, or never will be."""
        assert self._process.stdout is not None
        return "address" in vars(self) or bool(select.select([self._process.stdout], [], [], 0)[0])

    @cached_property
    def address(self) -> str:
        """Of the cluster, once it is there. Raises `UserError`, with what Ray says, where it cannot be started."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        address, _, why = said.partition(_WHY_NOT)
        if not address:
            raise UserError(f"Ray could not be started on this machine: {why or 'its process was ended'}")
        return address

    def stop(self) -> None:
        """End the cluster. Returns when its processes are gone."""
        if "address" not in vars(self):  # still starting, for nothing: Ray's own reaper ends what there is of it
            self._process.kill()
        self._process.communicate()
        remove_folder(self._folder)


def _hold(cpus: int, folder: Path) -> None:
    os.setsid()  # Ctrl-C in a terminal is for the driver, which ends this process when it is done
    (temporary := folder / "tmp").mkdir()
    os.environ["TMPDIR"] = str(temporary)  # vLLM leaves a file there for each engine
    import ray
    from ray._private import ray_constants

    ray_constants.SETUP_WORKER_FILENAME = setup_worker.__file__
    try:
        context = ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder / "ray"),  # which Ray lets everybody write to
        )
    except Exception as error:  # a slow machine, a full disk: the driver says it, if it still wants a cluster
        print(f"{_WHY_NOT}{' '.join(str(error).split()) or type(error).__name__}", flush=True)
        sys.exit(1)
    print(context.address_info["gcs_address"], flush=True)
    sys.stdin.read()
    ray.shutdown(wait_for_processes=True)
    remove_folder(folder)
    os._exit(0)  # Ray's own way out waits for half a second


if __name__ == "__main__":
    _hold(int(sys.argv[1]), Path(sys.argv[2]))
