"""`cluster.yaml` and `deploy/`: valid where Ray says so, closed to strangers, and in step with the locks."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_ray.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
KUBERAY: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy/kuberay.yaml").read_text()))
IMAGES = {"gpu": ROOT / "deploy/Dockerfile", "cpu": ROOT / "deploy/Dockerfile.cpu"}
SECRET = "orpo-secrets"


def pinned(lock: str, package: str) -> str:
    text = (ROOT / f"requirements/{lock}.lock").read_text()
    return re.search(rf"^{package}==(.*)$", text, re.MULTILINE)[1]  # type: ignore[index]


def starts() -> list[str]:
    """The commands of cluster.yaml that start Ray."""
    commands = CLUSTER["head_start_ray_commands"] + CLUSTER["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_ray_accepts_the_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(CLUSTER)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "gpu-spot", "gpu-on-demand"}
    assert (ROOT / CLUSTER["file_mounts"]["~/orpo_ray"]).samefile(ROOT)


@pytest.mark.parametrize("gone", [(), ("gpu-spot",)])
def test_spot_instances_come_first_and_on_demand_where_there_are_none(gone: tuple[str, ...]) -> None:
    from ray.autoscaler._private.node_provider_availability_tracker import (
        NodeAvailabilityRecord,
        NodeAvailabilitySummary,
        UnavailableNodeInformation,
    )
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

    missing = {
        kind: NodeAvailabilityRecord(kind, False, 0.0, UnavailableNodeInformation("capacity", "none to be had"))
        for kind in gone
    }
    types = CLUSTER["available_node_types"]

    def score(*arguments: Any) -> Any:
        return _default_utilization_scorer(*arguments, node_availability_summary=NodeAvailabilitySummary(missing))

    workers = [{"CPU": 1, "GPU": 1}] * 16
    usable = {name: kind for name, kind in types.items() if name not in gone}
    nodes, unmet = get_nodes_for(usable, {}, CLUSTER["head_node_type"], CLUSTER["max_workers"], workers, score)
    assert (dict(nodes), unmet) == ({"gpu-on-demand" if gone else "gpu-spot": 2}, [])


def test_both_kinds_of_workers_are_the_same_machine() -> None:
    spot, on_demand = (
        dict(CLUSTER["available_node_types"][name]["node_config"]) for name in ("gpu-spot", "gpu-on-demand")
    )
    assert spot.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == on_demand


def test_the_cluster_is_closed_to_strangers() -> None:
    commands = starts()
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command)
        assert {"RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=~/.ray/auth_token"} <= set(words)
    assert "~/.ray/auth_token" in CLUSTER["file_mounts"]
    (head,) = (command for command in commands if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in shlex.split(head)
    # What is not said has Ray's default: the nodes' own ports, on which they want the token.
    said = {word for command in commands for word in shlex.split(command) if word.startswith("--")}
    assert {word.partition("=")[0] for word in said} == {
        "--head", "--port", "--dashboard-host", "--autoscaling-config", "--address",
    }  # fmt: skip


def test_start_commands_are_rays() -> None:
    from ray.scripts.scripts import start

    for command in starts():
        words = shlex.split(command)
        start.make_context("ray start", words[words.index("start") + 1 :])


def test_setup_installs_the_lock_as_the_makefile_does() -> None:
    assert "make -C ~/orpo_ray venv LOCK=requirements/gpu.lock" in CLUSTER["setup_commands"]
    rsynced = CLUSTER["rsync_exclude"]
    assert {".venv", "runs", ".git"} <= set(rsynced)


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, each with its text in one line."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]  # type: ignore[misc]


def pip_lines(text: str, lock: str) -> list[str]:
    """What pip is told in a Dockerfile or the Makefile, in the words of the shell."""
    text = (
        text.replace("$(BIN)/pip", "pip").replace("'$(TORCH)'", "TORCH").replace("$(LOCK)", f"requirements/{lock}.lock")
    )
    text = text.replace(f"\"$(grep '^torch==' requirements/{lock}.lock)\"", "TORCH").replace("--no-cache-dir ", "")
    text = text.replace("$(TORCH_INDEX)", "https://download.pytorch.org/whl/cpu")
    return re.findall(r"pip install [^;&|\n]*[^;&|\n\s]", text)


@pytest.mark.parametrize("lock", IMAGES)
def test_an_image_installs_what_make_does(lock: str) -> None:
    made = pip_lines((ROOT / "Makefile").read_text().partition("$(STAMP):\n")[2], lock)
    built = pip_lines("\n".join(text for name, text in instructions(IMAGES[lock]) if name == "RUN"), lock)
    torch, from_pytorch, locked, own = made  # the second where the configured index has no CPU build
    assert built == [from_pytorch if lock == "cpu" else torch, locked, own]


@pytest.mark.parametrize("lock", IMAGES)
def test_an_image_is_of_the_locks_python_and_runs_as_nobody_special(lock: str) -> None:
    found = instructions(IMAGES[lock])
    base = found[0]
    assert base == ("FROM", "python:3.11-slim-bookworm")
    assert "sys.version_info[:2] != (3, 11)" in (ROOT / "Makefile").read_text()
    assert pinned(lock, "torch").endswith("+cpu") == (lock == "cpu")
    users = [text for name, text in found if name == "USER"]
    assert users == ["1000"]
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for text in (text for name, text in found if name == "COPY"):
        for source in text.split()[:-1]:
            assert (ROOT / source).exists() and f"!{source}" in kept
    settings = dict(setting.split("=") for name, text in found if name == "ENV" for setting in text.split())
    assert settings["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in settings


@pytest.mark.parametrize("lock", IMAGES)
def test_hadolint_finds_nothing(lock: str) -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", str(IMAGES[lock])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def containers() -> Iterator[dict[str, Any]]:
    cluster = KUBERAY[1]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield from group["template"]["spec"]["containers"]


def test_what_kubernetes_is_told() -> None:
    volume, job = KUBERAY
    assert [(one["apiVersion"], one["kind"]) for one in KUBERAY] == [
        ("v1", "PersistentVolumeClaim"),
        ("ray.io/v1", "RayJob"),
    ]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("gpu", "ray") == pinned("cpu", "ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    gpus = {kind["nvidia.com/gpu"] for kind in workers["template"]["spec"]["containers"][0]["resources"].values()}
    assert gpus == {"8"}
    claims = [
        claim["persistentVolumeClaim"]["claimName"]
        for group in (cluster["headGroupSpec"], workers)
        for claim in group["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in claim
    ]
    assert claims == [volume["metadata"]["name"]] * 2


def test_every_container_has_the_token_from_the_secret_and_none_is_written_down() -> None:
    job = KUBERAY[1]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": SECRET}
    for env in (cluster["autoscalerOptions"]["env"], *(container["env"] for container in containers())):
        values = {one["name"]: one for one in env}
        assert values["RAY_AUTH_MODE"]["value"] == "token"
        assert values["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": SECRET, "key": "auth_token"}
        for name in values:
            assert "value" not in values[name] or "TOKEN" not in name
    assert not any(one["kind"] == "Secret" for one in KUBERAY)


def test_the_job_is_one_that_the_image_holds() -> None:
    images = {container["image"] for container in containers()}
    assert len(images) == 1 and next(iter(images)).endswith("/orpo-ray:gpu")
    assert "-t orpo-ray:gpu " in IMAGES["gpu"].read_text().splitlines()[0]
    _, script, config, *overrides = shlex.split(KUBERAY[1]["spec"]["entrypoint"])
    assert (ROOT / script).is_file()
    run = load_config(ROOT / config, overrides)
    assert run.name == KUBERAY[1]["metadata"]["name"]
    mounts = {mount["mountPath"] for container in containers() for mount in container["volumeMounts"]}
    assert run.storage.path == "/shared/runs" and "/shared" in mounts
