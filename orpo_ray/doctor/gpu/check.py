"""What the stages have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from orpo_ray.doctor.gpu.device import Device
from orpo_ray.doctor.gpu.sizes import Sizes

Fields = dict[str, Any]
"""Of one line."""


@dataclass
class Check:
    device: Device
    sizes: Sizes
    peaks: dict[str, float] = field(default_factory=dict)
    """FLOP/s that matrix products reached, by dtype: what MFU is of. Empty until they are measured."""


@dataclass(frozen=True)
class Stage:
    name: str
    needs: float
    """Seconds; with fewer left it is not begun."""
    about: Fields
    """What all of its lines say."""
    run: Callable[[Check], Iterator[Fields]]
    """The lines, as they are found."""
