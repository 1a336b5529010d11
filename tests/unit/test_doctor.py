"""The doctor names the fault: set-ups that are really broken, where a test can break them."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed

from orpo_ray.config import ScalingConfig, load_any
from orpo_ray.doctor import checks, reach, storage
from orpo_ray.doctor.access import access, alone
from orpo_ray.doctor.examine import _storage, print_findings
from orpo_ray.doctor.finding import Finding
from orpo_ray.doctor.nodes import ThisMachine
from orpo_ray.doctor.ports import ports
from orpo_ray.doctor.probe import NodeReport, probe
from orpo_ray.terminal import Console

HERE = ThisMachine()


@pytest.fixture(scope="module")
def report() -> NodeReport:
    """Of this machine as it is."""
    return probe([])


def verdicts(findings: list[Finding]) -> list[str]:
    return [finding.verdict for finding in findings]


def test_this_machine_is_fit(report: NodeReport, tmp_path: Path) -> None:
    reports = {"a": report, "b": report}
    found = [*checks.versions(reports), *checks.compiler(reports), *checks.gpus(reports, {"a": 0, "b": 0})]
    assert verdicts(found) == ["OK"] * 3
    assert found[1].found.startswith("all 2 nodes: ")
    assert verdicts(_storage(HERE, ["a"], str(tmp_path / "new" / "runs"))) == ["OK"]
    assert list(tmp_path.iterdir()) == [], "neither the file nor the folders made for it stay"


@pytest.mark.parametrize(
    ("address", "interface", "verdict", "told"),
    [
        ("10.0.0.2", "", "OK", "mapped to an address"),
        ("127.0.1.1", "", "WARN", "its own name, db, is mapped to 127.0.1.1, as Debian and Ubuntu do: other nodes"),
        ("", "", "WARN", "its own name, db, is mapped to no address: other nodes"),
        ("127.0.1.1", "eth0", "OK", "GLOO_SOCKET_IFNAME=eth0"),
    ],
)
def test_a_name_that_leads_to_itself(report: NodeReport, address: str, interface: str, verdict: str, told: str) -> None:
    own = replace(report, host="db", address=address, interface=interface)
    good = replace(report, address="10.0.0.1")
    finding = checks.names({"10.0.0.1": good, "10.0.0.2": own})[-1]
    assert finding.verdict == verdict and told in finding.found
    if verdict == "WARN":
        assert finding.found.startswith("10.0.0.2: ") and "give db in /etc/hosts" in finding.fix


class TestCompiler:
    def test_none_on_an_emptied_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        (finding,) = checks.compiler({"a": probe([])})
        assert finding[:3] == ("FAIL", "compiler", "no C++ compiler on the PATH")
        assert "apt-get install g++" in finding.fix

    def test_one_that_does_not_compile(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        broken = tmp_path / "g++"
        broken.write_text("#!/bin/sh\necho 'fatal error: vector: No such file or directory' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
        (finding,) = checks.compiler({"a": probe([])})
        assert finding.verdict == "FAIL" and "vector: No such file" in finding.found


class TestStorage:
    def test_a_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "runs").write_text("")
        (finding,) = _storage(HERE, ["a"], str(tmp_path / "runs" / "mine"))
        assert finding.verdict == "FAIL" and f"{tmp_path}/runs/mine cannot be written" in finding.found

    def test_a_disk_that_is_mounted_read_only(self, small_disk: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        (finding,) = _storage(HERE, ["a"], str(small_disk / "runs"))
        assert finding.verdict == "FAIL" and "Read-only file system" in finding.found

    def test_a_url_that_nothing_serves(self) -> None:
        (finding,) = _storage(HERE, ["a"], "nowhere://bucket/runs")
        assert finding.verdict == "FAIL" and "nowhere" in finding.found

    def test_a_folder_that_is_not_the_same_on_both_nodes(self, tmp_path: Path) -> None:
        """As two nodes without a shared disk have it: each its own folder at the same place."""
        own = {node: str(tmp_path / node) for node in ("a", "b")}
        for node, folder in own.items():
            assert storage.write(folder, node, "t")[1] == ""
        unseen = {node: storage.unseen(folder, own, "t") for node, folder in own.items()}
        (finding,) = storage.judge("/runs", dict.fromkeys(own, ""), unseen)
        assert finding.verdict == "FAIL" and "a does not see what b wrote; b does not see what a wrote" in finding.found

    def test_one_node_that_cannot_write_is_named(self) -> None:
        (finding,) = storage.judge("/runs", {"a": "", "b": "Permission denied"}, {})
        assert finding.found == "b: /runs cannot be written: Permission denied"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_without_room(report: NodeReport, small_disk: Path) -> None:
    (finding,) = checks.disk({"a": probe([str(small_disk / "runs" / "not" / "yet")])})
    assert finding.verdict == "FAIL" and "8 MiB free of 8 MiB" in finding.found
    gib = 2**30
    rooms = {"full": (30 * gib, 1000 * gib), "nearly": (10 * gib, 1000 * gib), "scarce": (15 * gib, 100 * gib)}
    found = checks.disk({"a": replace(report, free_bytes=rooms)})
    assert verdicts(found) == ["OK", "FAIL", "WARN"], "Ray spills nothing to a disk that is 95 % full"


class TestPorts:
    def test_one_that_is_blocked(self) -> None:
        with socket.socket() as held:
            held.bind(("", 0))
            held.listen()
            port = held.getsockname()[1]
            (finding,) = ports({port: "--dashboard-port"})
        assert finding.verdict == "WARN" and f"{port} is taken by" in finding.found
        assert str(os.getpid()) in finding.found and "--dashboard-port=ANOTHER" in finding.fix
        assert verdicts(ports({port: "--port"})) == ["OK"]


class TestNetwork:
    def test_an_interface_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch, report: NodeReport) -> None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing0")
        problem = reach.all_reduce("gloo", 0, 1, "127.0.0.1", report.free_port)
        finding = reach.judge("gloo", {"a": problem})
        assert finding.verdict == "FAIL" and "nothing0" in finding.found and "GLOO_SOCKET_IFNAME" in finding.fix
        assert not torch.distributed.is_initialized()

    def test_a_port_that_somebody_holds(self) -> None:
        with socket.socket() as held:
            held.bind(("", 0))
            held.listen()
            problem = reach.all_reduce("gloo", 0, 1, "127.0.0.1", held.getsockname()[1])
        assert reach.judge("gloo", {"a": problem, "b": ""}).verdict == "FAIL"


class TestCluster:
    def test_one_that_does_not_answer(self, report: NodeReport) -> None:
        (finding,) = access({**os.environ, "RAY_ADDRESS": f"127.0.0.1:{report.free_port}"})
        assert finding.verdict == "FAIL" and "no cluster answers at 127.0.0.1" in finding.found

    def test_a_token_file_that_is_not_there(self, tmp_path: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
        environment |= {"RAY_gcs_rpc_server_connect_timeout_s": "1"}  # what listens here does not answer
        with socket.socket() as cluster:  # whatever it is: Ray looks for its token first
            cluster.bind(("127.0.0.1", 0))
            cluster.listen()
            (finding,) = access({**environment, "RAY_ADDRESS": f"127.0.0.1:{cluster.getsockname()[1]}"})
        assert finding.verdict == "FAIL" and f"RAY_AUTH_TOKEN_PATH={tmp_path}/none cannot be read" in finding.found

    def test_without_one_the_token_is_our_own(self) -> None:
        assert alone().verdict == "OK"


class TestReports:
    """What only other machines have, in reports of this one with a value exchanged."""

    def test_versions_that_differ(self, report: NodeReport) -> None:
        other = replace(report, versions={**report.versions, "torch": "2.12.1+cu130", "ray": "2.59.0"}, code="beef")
        found = checks.versions({"head": report, "worker": other})
        assert verdicts(found) == ["FAIL"] * 3
        told = [finding.found for finding in found]
        assert told[0] == f"ray differs: {report.versions['ray']} on head; 2.59.0 on worker"
        assert "torch differs" in told[1] and "2.12.1+cu130 on worker" in told[1]
        assert told[2] == f"orpo_ray's source differs: {report.code} on head; beef on worker"

    def test_another_build_of_the_same_torch_is_none(self, report: NodeReport) -> None:
        build = report.versions["torch"].partition("+")[0] + "+cu130"
        gpu = replace(report, versions={**report.versions, "torch": build})
        assert verdicts(checks.versions({"head": report, "worker": gpu})) == ["OK"]

    def test_packages_that_are_missing(self, report: NodeReport) -> None:
        bare = replace(report, versions={**report.versions, "vllm": "", "deepspeed": ""})
        found = {finding.found: finding.verdict for finding in checks.versions({"a": bare})}
        assert found == {"vllm is not installed": "WARN", "deepspeed is not installed": "FAIL"}

    def test_gpus_that_torch_or_ray_does_not_see(self, report: NodeReport) -> None:
        blind = replace(report, gpu_devices=4)
        half, whole = replace(blind, torch_gpus=4), replace(blind, torch_gpus=4)
        found = checks.gpus({"blind": blind, "half": half, "whole": whole}, {"blind": 4, "half": 2, "whole": 4})
        assert [(f.verdict, f.found.partition(":")[0]) for f in found] == [
            ("FAIL", "blind"), ("WARN", "half"), ("OK", "whole"),
        ]  # fmt: skip
        assert "4 GPUs, of which torch" in found[0].found and "gpu.lock" in found[0].fix
        assert verdicts(checks.gpus({"a": report}, {"a": 2})) == ["FAIL"], "ray start --num-gpus=2 on a CPU machine"

    def test_a_containers_small_shared_memory(self, report: NodeReport) -> None:
        docker = replace(report, shm_bytes=64 * 2**20)
        (finding,) = checks.shared_memory({"a": docker})
        assert (finding.verdict, finding.found) == ("WARN", "/dev/shm has 64 MiB")
        assert verdicts(checks.shared_memory({"a": replace(docker, gpu_devices=8)})) == ["FAIL"]
        assert verdicts(checks.shared_memory({"a": replace(docker, shm_bytes=None)})) == ["FAIL"]

    def test_clocks(self) -> None:
        found = checks.clocks({"a": (0.3, 0.1), "b": (-7.0, 0.5), "c": (900.0, 1.0), "d": (6.0, 5.0)})
        assert [(f.verdict, f.found) for f in found] == [
            ("OK", "a, d: within 2 s of this machine's"), ("WARN", "b: 7 s behind this machine's"),
            ("FAIL", "c: 900 s ahead of this machine's"),
        ]  # fmt: skip

    def test_room(self) -> None:
        assert checks.room(ScalingConfig(num_workers=8), {"CPU": 4.0}).verdict == "FAIL"
        assert checks.room(ScalingConfig(num_workers=(2, 8)), {"CPU": 4.0}).verdict == "OK"
        assert checks.room(ScalingConfig(num_workers=2, use_gpu=True), {"CPU": 64.0, "GPU": 1.0}).verdict == "FAIL"


def test_findings_are_lines_with_what_to_do() -> None:
    out = io.StringIO()
    found = [Finding("OK", "disk", "room"), Finding("FAIL", "compiler", "none [at] all", "install g++")]
    assert print_findings(iter(found), Console(file=out, width=40)) == 1
    assert out.getvalue() == (
        "OK    disk           room\nFAIL  compiler       none [at] all\n                     -> install g++\n"
    )


def test_any_kind_of_configuration_tells_its_storage(tmp_path: Path) -> None:
    for name in ("toy-orpo", "toy-winrate", "toy-sweep"):
        file = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
        assert load_any(file, [f"storage.path={tmp_path}"]).storage.path == str(tmp_path)
