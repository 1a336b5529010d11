"""What ranks find out each by itself and have to agree on: that there is no mistake, and that they hold the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from orpo_ray.cluster.hosts import this_host
from orpo_ray.errors import UserError
from orpo_ray.training.engine import gather

_Result = TypeVar("_Result")

_SAMPLES = 64  # elements of a parameter


def on_all(work: Callable[[], _Result]) -> _Result:
    """What `work` returns on this rank. Every rank must call it; `work` itself calls no other rank.

    Raises `UserError` on all ranks where it does so on any. Else those it holds for would end, and the others wait for
    them. One that does not hold for all of them names the host.
    """
    mistake, found = "", []
    try:
        found.append(work())
    except UserError as error:
        mistake = str(error)
    told = gather((this_host(), mistake))
    if any(mistake for _, mistake in told):
        raise UserError(first_mistake(told))
    return found[0]


def first_mistake(told: list[tuple[str, str]]) -> str:
    """`told`: by rank its host, and its mistake in a line or nothing. Not all are nothing."""
    host, mistake = next((host, mistake) for host, mistake in told if mistake)
    everywhere = all(other == mistake for _, other in told)
    return mistake if everywhere or host in mistake else f"on {host}: {mistake}"


def require_same(what: str, value: str) -> None:
    """Every rank must call it. Raises `UserError` on all of them where they do not have the same `value` for `what`."""
    told = gather((this_host(), value))
    first, held = told[0]
    other = next((host for host, found in told if found != held), None)
    if other is not None:
        raise UserError(
            f"{what}: not the same on {first} and on {other}; what is named by a path has to be the same on every host"
        )


def sampled_digest(network: nn.Module) -> str:
    """Of some elements of each parameter, evenly spaced: tells a network from one that was trained further."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in network.named_parameters():
        elements = parameter.detach().flatten()
        some = elements[:: max(1, len(elements) // _SAMPLES)].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()
