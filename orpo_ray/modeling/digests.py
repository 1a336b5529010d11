"""What a model is known by: all bytes of its files, or all numbers of a network that is loaded.

A thread hashes a stretch, and a digest is that of the stretches' digests: as many cores as the process computes with
take part, whether a model is one file or many.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

_VERSION = "2"
"""Of what is hashed, and how: what was kept under an earlier one's digests is not found."""
_STRETCH = 1 << 25  # bytes
_BUFFER = 1 << 18
_WAITING = 64  # stretches that are to be hashed, or are hashed and next
_SETTLED = 2 * 10**9  # ns: a file system's clock may tick so slowly that a change sooner leaves the times as they are
_known: dict[tuple[str, int, int, int, int, int], bytes] = {}
"""Digests that this process has taken, by path, device, inode, size and times."""


def files_digest(files: Iterable[Path]) -> str:
    """Of the files' names and of all that is in them, in this order."""
    digest = _begun()
    for path in files:
        digest.update(f"{path.name}\n".encode() + _file(path))
    return digest.hexdigest()


def _file(path: Path) -> bytes:
    """Read anew where anything but its content may have shown a change."""
    found = path.stat()
    key = (str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key in _known:
        return _known[key]

    with _threads() as pool:
        parts = pool.map(partial(_stretch_of, path), range(0, found.st_size, _STRETCH))
        digest = hashlib.sha256(b"".join(parts)).digest()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED:
        _known[key] = digest
    return digest


def _stretch_of(path: Path, start: int) -> bytes:
    """Through a buffer that stays in a core's cache: whole stretches would take twice as long."""
    digest, buffer, left = hashlib.sha256(), memoryview(bytearray(_BUFFER)), _STRETCH
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (read := file.readinto(buffer[:left])):
            digest.update(buffer[:read])
            left -= read
    return digest.digest()


def network_digest(network: PreTrainedModel, tensors: Mapping[str, Tensor]) -> str:
    """Of what `network` computes with `tensors`, its own or some of them: their names, shapes, types and all of their
    bytes, and its configuration but for what changes where it is moved or loaded by another transformers."""
    settings = network.config.to_diff_dict()
    for key in ("transformers_version", "_name_or_path"):
        settings.pop(key, None)
    names = sorted(tensors)
    described = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = _begun()
    digest.update(json.dumps([settings, described], sort_keys=True, default=str).encode())
    with _threads() as pool:
        waiting: deque[Future[bytes]] = deque()
        for part in _stretches(tensors[name] for name in names):
            waiting.append(pool.submit(_sum, part))
            if len(waiting) > _WAITING:  # of a model on a device only so much is on the host
                digest.update(waiting.popleft().result())
        for hashed in waiting:
            digest.update(hashed.result())
    return digest.hexdigest()


def _sum(part: memoryview) -> bytes:
    return hashlib.sha256(part).digest()


def frozen_digest(network: PreTrainedModel) -> str | None:
    """`network_digest` of the weights that training leaves alone, which no checkpoint holds; None: there are none."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    if all(parameter.requires_grad for parameter in network.parameters()):
        return None
    return network_digest(network, {name: w for name, w in network.state_dict().items() if name not in trained})


def _stretches(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), _STRETCH):
            yield data[start : start + _STRETCH]


def _begun() -> hashlib.blake2b:
    return hashlib.blake2b(_VERSION.encode(), digest_size=16)


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads())
