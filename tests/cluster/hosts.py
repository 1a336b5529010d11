"""Hosts of a cluster as namespaces of this one: own network, processes, name, /etc/hosts, /tmp, /dev/shm, disk, home.

They stand on one switch and share one folder. Nothing has a name in the system, and each host lives by a pipe that this
process holds: when it ends, in whatever way, hosts, their processes, networks and mounts are gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_NETWORK = "10.83.7"
_PORT = 6379
_TOOLS = ("ip", "unshare", "nsenter", "mount")
# By these a host that cannot be reached counts as lost after a third of a minute, not after more than one.
_HEALTH = {
    "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}  # fmt: skip
_KEPT = ("PATH", "LANG", "LC_ALL", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "LD_LIBRARY_PATH")
# Process 1 of a host: it is told in a line when its network is there, and ends with its input.
_LIFE = "echo ready; read -r line; {set_up}; echo ready; cat >/dev/null"


class Impossible(Exception):
    """This machine does not allow it; says why."""


class _Namespaces:
    """Process 1 of namespaces of its own; all that is in them ends with it."""

    def __init__(self, which: tuple[str, ...], set_up: str) -> None:
        # Within a PID namespace, `unshare` stays outside as the parent of process 1.
        self._life = subprocess.Popen(
            ["unshare", *which, "bash", "-ec", _LIFE.format(set_up=set_up)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self._expect_ready()
        forked = f"/proc/{self._life.pid}/task/{self._life.pid}/children"
        self.pid = int(Path(forked).read_text()) if "--fork" in which else self._life.pid

    def begin(self) -> None:
        assert self._life.stdin is not None
        self._life.stdin.write("\n")
        self._life.stdin.flush()
        self._expect_ready()

    def _expect_ready(self) -> None:
        assert self._life.stdout is not None
        line = self._life.stdout.readline().strip()
        if line != "ready":
            self.end()
            raise Impossible(line or "unshare is not permitted")

    def ip(self, *words: str) -> None:
        _run("nsenter", "-t", str(self.pid), "-n", "ip", *words)

    def end(self) -> None:
        for stream in (self._life.stdin, self._life.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self._life.wait(5)
        except subprocess.TimeoutExpired:
            self._life.kill()
            self._life.wait()


class Host:
    """One of them. `local`: its own disk, at the same path as on the others; `shared`: the same on all."""

    def __init__(self, root: Path, number: int, names: Mapping[int, str], *, debian: bool) -> None:
        """`debian`: its own name is mapped to 127.0.1.1, as the installers of Debian and Ubuntu do."""
        self.name = names[number]
        self.address = f"{_NETWORK}.{number}"
        self.local, self.shared = root / "local", root / "shared"
        self._own = root / str(number)
        for folder in ("local/home", "tmp"):
            (self._own / folder).mkdir(parents=True)
        (self._own / "tmp").chmod(0o1777)
        lines = ["127.0.0.1 localhost", *(["127.0.1.1 " + self.name] if debian else [])]
        lines += [f"{_NETWORK}.{n} {name}" for n, name in names.items() if not (debian and n == number)]
        (self._own / "hosts").write_text("\n".join(lines) + "\n")
        set_up = (
            f"echo {self.name} > /proc/sys/kernel/hostname; mount --make-rprivate /; "
            f"mount --bind {self._own}/local {self.local}; mount --bind {self._own}/hosts /etc/hosts; "
            f"mount --bind {self._own}/tmp /tmp; mount -t tmpfs -o size=2g tmpfs /dev/shm"
        )
        which = ("--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._namespaces = _Namespaces(which, set_up)

    def join(self, switch: _Namespaces) -> None:
        """Put its cable into the switch."""
        pid, port = str(self._namespaces.pid), self.name
        switch.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pid)
        switch.ip("link", "set", port, "master", "br0", "up")
        self._namespaces.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            self._namespaces.ip("link", "set", link, "up")
        self._namespaces.begin()

    def on_disk(self, path: Path) -> Path:
        """Where a path of its own disk is found from outside."""
        return self._own / "local" / path.relative_to(self.local)

    def start(self, *command: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """A command as a person types it there, in the repository."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        home = self.local / "home"
        own = {
            "HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": "/tmp", "PYTHONPATH": str(REPOSITORY),
            "RAY_ADDRESS": f"{_NETWORK}.1:{_PORT}", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        enter = ["nsenter", "-t", str(self._namespaces.pid), "--net", "--mount", "--uts", "--pid"]
        output = subprocess.PIPE if log is None else log.open("ab")
        return subprocess.Popen(
            [*enter, f"--wd={REPOSITORY}", *command], env={**kept, **own, **environment}, text=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @staticmethod
    def stop(process: subprocess.Popen[str]) -> None:
        """End a command and `nsenter`, its parent."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if process.poll() is None:
            for child in children.read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
        process.wait()

    def run(self, *command: str, seconds: float = 180, **environment: str) -> tuple[int, str]:
        """Exit code, and what was said. Raises `TimeoutExpired`."""
        process = self.start(*command, **environment)
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException:
            self.stop(process)
            raise
        return process.returncode, said

    def orpo_ray(self, *words: str, seconds: float = 180, **environment: str) -> tuple[int, str]:
        return self.run(sys.executable, "-m", "orpo_ray.cli", *words, seconds=seconds, **environment)

    def ray_start(self, cpus: int) -> None:
        """As a node of the cluster, whose head is on the first host."""
        head = ["--head", f"--port={_PORT}", "--include-dashboard=false"]
        where = head if self.address.endswith(".1") else [f"--address={_NETWORK}.1:{_PORT}"]
        code, said = self.run(
            str(Path(sys.executable).with_name("ray")), "start", *where, f"--node-ip-address={self.address}",
            f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats", RAY_ADDRESS="",
            **_HEALTH,
        )  # fmt: skip
        assert code == 0, said

    def end(self) -> None:
        self._namespaces.end()


class Hosts:
    """Some hosts, the first of which is the head of a Ray cluster."""

    def __init__(self, count: int = 2, *, debian: bool = False, cpus: int = 1) -> None:
        """`cpus`: of each in the cluster. Raises `Impossible` where this machine does not allow it."""
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if sys.platform != "linux" or os.geteuid() != 0 or missing:
            raise Impossible(f"needs Linux, root, iproute2 and util-linux (missing: {', '.join(missing) or 'none'})")
        # Not in /tmp, in whose place each host has its own.
        self.root = Path(tempfile.mkdtemp(prefix="orpo-", dir="/var/tmp"))
        self.hosts: list[Host] = []
        self._switch: _Namespaces | None = None
        try:
            self._build(count, debian=debian)
            for host in self.hosts:
                host.ray_start(cpus)
        except BaseException:
            self.end()
            raise

    def _build(self, count: int, *, debian: bool) -> None:
        for folder in ("local", "shared"):
            (self.root / folder).mkdir()
        self._switch = _Namespaces(("--net",), ":")
        self._switch.ip("link", "add", "br0", "type", "bridge")
        self._switch.ip("link", "set", "br0", "up")
        names = {number: f"orpo-{number}" for number in range(1, count + 1)}
        for number in names:
            self.hosts.append(Host(self.root, number, names, debian=debian))
            self.hosts[-1].join(self._switch)

    @property
    def shared(self) -> Path:
        return self.root / "shared"

    def cut(self, host: Host) -> None:
        """Pull its cable out."""
        assert self._switch is not None
        self._switch.ip("link", "set", host.name, "down")

    def mend(self, host: Host) -> None:
        assert self._switch is not None
        self._switch.ip("link", "set", host.name, "up")

    def end(self) -> None:
        for each in (*self.hosts, self._switch):
            if each is not None:
                each.end()
        shutil.rmtree(self.root, ignore_errors=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Impossible(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
