"""The files of a checkpoint: named float32 vectors in the safetensors format, written and read as streams.

Written in one pass that also sums the file up, since storage may be far away; read in ranges, since a rank of another
number of ranks wants parts of many files. Any safetensors reader opens them. They hold numbers and nothing that runs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from orpo_ray.parsing import member, object_from_json

_BLOCK = 1 << 26  # bytes read or written at once
_ITEM = 4  # bytes of a float32


class FileSum(NamedTuple):
    """What a file is checked by."""

    size: int
    sha256: str


class Vector(NamedTuple):
    """One vector in a file."""

    offset: int
    """Byte at which it begins."""
    elements: int


def write_vectors(file: Any, vectors: Mapping[str, Tensor]) -> FileSum:
    """Write `vectors`, each `(elements,)` float32 in host memory, to an opened stream."""
    header: dict[str, Any] = {}
    end = 0
    for name, vector in vectors.items():
        start, end = end, end + _ITEM * len(vector)
        header[name] = {"dtype": "F32", "shape": [len(vector)], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
    digest = hashlib.sha256()
    for block in _blocks(text, vectors):
        digest.update(block)
        file.write(block)
    return FileSum(8 + len(text) + end, digest.hexdigest())


def write_bytes(file: Any, content: bytes) -> FileSum:
    """Write what is no vector."""
    file.write(content)
    return FileSum(len(content), hashlib.sha256(content).hexdigest())


def _blocks(header: bytes, vectors: Mapping[str, Tensor]) -> Iterator[Any]:
    yield struct.pack("<Q", len(header)) + header
    for vector in vectors.values():
        data = memoryview(cast(Any, vector.numpy())).cast("B")
        for start in range(0, len(data), _BLOCK):
            yield data[start : start + _BLOCK]


def sum_up(file: Any) -> FileSum:
    """Of an opened stream, read to its end."""
    digest, size = hashlib.sha256(), 0
    while block := file.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return FileSum(size, digest.hexdigest())


def read_header(file: Any) -> dict[str, Vector]:
    """The vectors in a file that can be read at any place (`read_at(bytes, offset)`) and knows its `size()`.

    Raises `ValueError` where that is no file of `write_vectors`, or not all of one.
    """
    size = file.size()
    if size < 8:
        raise ValueError("is cut short")
    (length,) = struct.unpack("<Q", _read_at(file, 8, 0))
    begin = 8 + length
    if begin > size:
        raise ValueError("is cut short")
    header = object_from_json(bytes(_read_at(file, length, 8)))
    return {name: _vector(header, name, begin, size) for name in header if name != "__metadata__"}


def _vector(header: dict[str, Any], name: str, begin: int, size: int) -> Vector:
    """`begin`: byte of the file at which its vectors begin; `size`: its bytes."""
    entry = member(header, name, dict)
    match entry:
        case {"dtype": "F32", "shape": [int(elements)], "data_offsets": [int(start), int(end)]} if (
            start >= 0 and end - start == _ITEM * elements
        ):
            if begin + end > size:
                raise ValueError("is cut short")
            return Vector(begin + start, elements)
    raise ValueError(f"{name} is no vector of float32 numbers")


def _read_at(file: Any, length: int, offset: int) -> Any:
    """So many bytes of a file that has them. Raises `OSError` where the answer was cut short."""
    found = file.read_at(length, offset)
    if len(found) != length:
        raise OSError(f"{len(found)} of {length} bytes came")
    return found


def read_into(target: Tensor, file: Any, vector: Vector, start: int) -> None:
    """Fill `target (elements,)` with a vector's elements from `start` on."""
    for done in range(0, len(target), _BLOCK // _ITEM):
        part = target[done : done + _BLOCK // _ITEM]
        data = bytearray(_read_at(file, _ITEM * len(part), vector.offset + _ITEM * (start + done)))
        part.copy_(torch.from_numpy(np.frombuffer(data, np.float32)))
