"""`cluster.yaml` and `deploy/`: valid where Ray, KubeRay and Kueue say so, closed to strangers, as the locks say."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_rules import ELASTIC, QUEUE, kuberay_refusals, kueue_refusals, nodes, schema_errors

from orpo_ray.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
KUBERNETES: dict[str, list[dict[str, Any]]] = {
    path.stem: list(yaml.safe_load_all(path.read_text())) for path in (ROOT / "deploy").glob("kuberay-*.yaml")
}
(VOLUME,), (JOB,), (RAY_CLUSTER,) = (KUBERNETES[f"kuberay-{name}"] for name in ("volume", "job", "cluster"))
SPECS = {"job": JOB["spec"]["rayClusterSpec"], "cluster": RAY_CLUSTER["spec"]}
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
    python = next(i for i, command in enumerate(CLUSTER["setup_commands"]) if "python3.11-venv" in command)
    assert any("ppa:deadsnakes/ppa" in command for command in CLUSTER["setup_commands"][:python])
    assert f"boto3=={pinned('gpu', 'boto3')}" in CLUSTER["head_setup_commands"][0]


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


def pods(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def gpus(spec: dict[str, Any]) -> int:
    """Of a node, the same in requests and limits, as Kubernetes asks of what is no CPU and no memory."""
    (group,) = spec["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    (number,) = {kind["nvidia.com/gpu"] for kind in container["resources"].values()}
    return int(number)


def test_kuberay_and_kueue_take_the_files() -> None:
    assert set(KUBERNETES) == {"kuberay-volume", "kuberay-job", "kuberay-cluster"}
    for document in (VOLUME, JOB, RAY_CLUSTER):
        assert schema_errors(document) == []
    for document in (JOB, RAY_CLUSTER):
        assert kuberay_refusals(document) == kueue_refusals(document) == []


def test_a_queue_takes_what_is_of_a_fixed_size_and_what_grows_has_no_queue() -> None:
    assert JOB["kind"] == "RayJob" and JOB["metadata"]["labels"][QUEUE]
    assert RAY_CLUSTER["kind"] == "RayCluster" and "labels" not in RAY_CLUSTER["metadata"]
    assert "enableInTreeAutoscaling" not in SPECS["job"] and SPECS["cluster"]["enableInTreeAutoscaling"]
    (fixed,), (growing,) = (SPECS[name]["workerGroupSpecs"] for name in ("job", "cluster"))
    assert fixed["minReplicas"] == fixed["replicas"] == fixed["maxReplicas"]
    assert growing["minReplicas"] == growing["replicas"] == 0 < growing["maxReplicas"]
    run = load_config(ROOT / "configs/mistral-7b-orpo-beta.yaml", shlex.split(JOB["spec"]["entrypoint"])[3:])
    assert run.scaling.num_workers == nodes(fixed) * gpus(SPECS["job"])


def test_rays_autoscaler_reads_the_cluster() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    given = copy.deepcopy(RAY_CLUSTER)
    given["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(given)
    validate_config(config)
    types = config["available_node_types"]
    assert config["idle_timeout_minutes"] == 10
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    workers = types["gpu"]
    assert (workers["min_workers"], workers["max_workers"]) == (0, 4)
    assert workers["resources"]["GPU"] == gpus(SPECS["cluster"]) == 8


Change = Callable[[dict[str, Any]], Any]


def group_of(document: dict[str, Any]) -> dict[str, Any]:
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    (group,) = cluster["workerGroupSpecs"]
    return group  # type: ignore[no-any-return]


def scaling(document: dict[str, Any]) -> None:
    document["spec"].get("rayClusterSpec", document["spec"])["enableInTreeAutoscaling"] = True


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (scaling, "autoscaling of what is no elastic job"),
        (lambda job: job["spec"].pop("shutdownAfterJobFinishes"), "a managed job deletes its cluster"),
        (lambda job: job["metadata"]["labels"].update({QUEUE: "GPUs"}), "the queue's name is no DNS subdomain"),
        (lambda job: group_of(job).update(groupName="head"), "a group named head"),
        (lambda job: job["spec"]["rayClusterSpec"].update(workerGroupSpecs=[group_of(job)] * 18), "more than 18 pod"),
    ],
)  # fmt: skip
def test_what_kueue_refuses_is_noticed(change: Change, refusal: str) -> None:
    """The first is the file as it once was."""
    job = copy.deepcopy(JOB)
    change(job)
    (found,) = kueue_refusals(job)
    assert found.startswith(refusal)
    job["metadata"].pop("labels")
    assert kueue_refusals(job) == []


def test_an_elastic_job_may_grow_and_a_cluster_in_a_queue_may_not() -> None:
    job, cluster = copy.deepcopy(JOB), copy.deepcopy(RAY_CLUSTER)
    scaling(job)
    job["metadata"]["annotations"] = {ELASTIC: "true"}
    assert kueue_refusals(job) == []
    cluster["metadata"]["labels"] = {QUEUE: "gpus"}
    assert kueue_refusals(cluster) == ["autoscaling of what is no elastic job"]


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda job: job["metadata"].update(name="a" * 48), "a name of at most 47 characters"),
        (lambda job: job["metadata"].update(name="7b-orpo"), "a name of at most 47 characters that begins with"),
        (lambda job: job["spec"].update(shutdownAfterJobFinishes=False), "suspend and ttlSecondsAfterFinished ask for"),
        (lambda job: job["spec"].update(submissionMode="InteractiveMode"), "backoffLimit is incompatible"),
        (lambda job: job["spec"]["rayClusterSpec"].pop("rayVersion"), "a token asks for a rayVersion"),
        (lambda job: job["spec"]["rayClusterSpec"].update(rayVersion="2.51.1"), "a token asks for a rayVersion"),
        (lambda job: group_of(job).pop("maxReplicas"), "without autoscaling a group has minReplicas and maxReplicas"),
        (lambda job: group_of(job).update(minReplicas=2), "minReplicas greater than maxReplicas"),
        (lambda job: group_of(job).update(replicas=0, minReplicas=0), "without autoscaling a group of no replicas"),
    ],
)  # fmt: skip
def test_what_kuberay_refuses_or_leaves_without_workers_is_noticed(change: Change, refusal: str) -> None:
    job = copy.deepcopy(JOB)
    change(job)
    (found,) = kuberay_refusals(job)
    assert found.startswith(refusal)


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job["spec"].update(submissionmode="HTTPMode"),
        lambda job: job["spec"].update(backoffLimit="3"),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="password"),
        lambda job: group_of(job).update(replicas=-1),
        lambda job: group_of(job).pop("groupName"),
        lambda job: group_of(job)["template"]["spec"]["containers"][0].update(volumes=[]),
        lambda job: group_of(job)["template"]["spec"]["containers"][0]["resources"]["limits"].update(memory="64 GB"),
        lambda job: group_of(job)["template"]["spec"]["containers"][0]["env"][0].update(value="both"),
        lambda job: group_of(job)["template"]["spec"]["containers"][0]["env"][1].update(value=8),
        lambda job: job.update(apiVersion="ray.io/v1alpha1"),
    ],
)
def test_what_is_not_of_the_schema_is_noticed(change: Change) -> None:
    job = copy.deepcopy(JOB)
    change(job)
    assert schema_errors(job)


def test_runs_outlive_what_is_deleted_beside_them() -> None:
    """`kubectl delete -f` deletes what a file holds, so the volume of the runs has a file of its own."""
    held = {name: [one["kind"] for one in documents] for name, documents in KUBERNETES.items()}
    assert held == {
        "kuberay-volume": ["PersistentVolumeClaim"], "kuberay-job": ["RayJob"], "kuberay-cluster": ["RayCluster"],
    }  # fmt: skip
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in (pod for spec in SPECS.values() for pod in pods(spec)):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["runs"]["persistentVolumeClaim"] == {"claimName": VOLUME["metadata"]["name"]}
        for container in pod["containers"]:
            assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
                "runs": "/shared", "shm": "/dev/shm",
            }  # fmt: skip
            assert {one["name"]: one.get("value") for one in container["env"]}["HF_HOME"].startswith("/shared/")


@pytest.mark.parametrize("name", SPECS)
def test_the_token_comes_from_the_secret_and_none_is_written_down(name: str) -> None:
    """KubeRay gives it to heads, workers, the autoscaler and itself, once `authOptions` names the secret."""
    spec = SPECS[name]
    assert spec["authOptions"] == {"mode": "token", "secretName": SECRET}
    assert spec["rayVersion"] == pinned("gpu", "ray") == pinned("cpu", "ray")
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for container in (container for pod in pods(spec) for container in pod["containers"]):
        for one in container["env"]:
            assert ("TOKEN" in one["name"]) == ("valueFrom" in one)
            assert one["name"] not in {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}  # they would take the place of KubeRay's
    assert all(pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 1000 for pod in pods(spec))


def test_the_job_is_one_that_the_image_holds() -> None:
    images = {container["image"] for spec in SPECS.values() for pod in pods(spec) for container in pod["containers"]}
    assert len(images) == 1 and next(iter(images)).endswith("/orpo-ray:gpu")
    assert "-t orpo-ray:gpu " in IMAGES["gpu"].read_text().splitlines()[0]
    _, script, config, *overrides = shlex.split(JOB["spec"]["entrypoint"])
    assert (ROOT / script).is_file()
    run = load_config(ROOT / config, overrides)
    assert run.name == JOB["metadata"]["name"]
    assert run.storage.path == "/shared/runs"
