"""What Ray's autoscaler does with the node types of `cluster.yaml`, tried with nodes that are processes here."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import free_ports, reachable, wait_for
from documented import lines

CLUSTER = yaml.safe_load((Path(__file__).resolve().parents[2] / "cluster.yaml").read_text())
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
FAKE_HEAD = "ray.head.default"  # what that provider calls it


class Node:
    """`ray start` in the foreground, and all that it has started."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                ["ray", "start", "--block", *arguments], stdout=file, stderr=file, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip
        self._log = log

    def check(self) -> None:
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-4000:]

    def processes(self) -> list[psutil.Process]:
        """Every process of the node: `ray start`, its children, and what those have started."""
        return [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]

    def stop(self) -> None:
        """End them all, whatever they are at."""
        if self._process.poll() is None:
            for process in self.processes():
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        self._process.wait()


@pytest.fixture
def address(temporary: Path) -> Iterator[str]:
    """A head whose autoscaler has the file's node types; their GPUs are numbers."""
    from ray.autoscaler._private.util import prepare_config

    port, dashboard, client = free_ports(3)
    address = f"127.0.0.1:{port}"
    types = {name: {**kind, "node_config": {}} for name, kind in CLUSTER["available_node_types"].items()}
    head = types.pop(CLUSTER["head_node_type"])
    config = {
        **prepare_config(CLUSTER), "idle_timeout_minutes": 0.05, "file_mounts": {},
        "provider": {
            "type": "external", "module": PROVIDER, "gcs_address": address, "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "head_node_type": FAKE_HEAD, "available_node_types": {FAKE_HEAD: {**head, "max_workers": 0}, **types},
    }  # fmt: skip
    file = temporary / "autoscaling.json"
    file.write_text(json.dumps(config))
    node = Node(
        temporary / "head.log", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--autoscaling-config={file}",
        f"--temp-dir={temporary}", AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_FAKE_CLUSTER="1",
        RAY_OVERRIDE_NODE_ID_FOR_TESTING="fffffffffffffffffffffffffffffffffffffffffffffffffff00000",
    )  # fmt: skip
    try:
        wait_for(lambda: node.check() or reachable(port), "the head to answer")
        yield address
    finally:
        node.stop()


def test_workers_come_when_a_run_asks_for_them_and_go_when_it_is_over(address: str) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    ray.init(address=address, log_to_driver=False)
    try:
        gpus = CLUSTER["available_node_types"]["gpu-spot"]["resources"]["GPU"]
        assert "GPU" not in ray.cluster_resources()
        workers = placement_group([{"CPU": 1, "GPU": 1}] * (gpus + 1))  # as Ray Train asks: one more than a node has
        wait_for(lambda: ray.cluster_resources().get("GPU") == 2 * gpus, "two nodes with GPUs", 40)
        assert workers.wait(20)
        remove_placement_group(workers)
        wait_for(lambda: "GPU" not in ray.cluster_resources(), "idle nodes to go", 40)
    finally:
        ray.shutdown()


def test_nodes_that_are_asked_for_as_the_guide_says_come_and_stay(address: str) -> None:
    import ray

    (line,) = (line for _, line in lines() if "request_resources" in line)
    _, _, entrypoint = line.partition(" -- python -c ")
    (program,) = shlex.split(entrypoint)
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "RAY_ADDRESS": address}, timeout=60, check=True)
    ray.init(address=address, log_to_driver=False)
    try:
        wait_for(lambda: ray.cluster_resources().get("GPU") == 8, "a node of eight GPUs", 40)
        time.sleep(6)  # twice what an idle node is left
        assert ray.cluster_resources().get("GPU") == 8
    finally:
        ray.shutdown()
