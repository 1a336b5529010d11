"""Connecting to Ray, where that fails."""

from __future__ import annotations

import socket
import time

import pytest

from orpo_ray.cluster.connection import connect
from orpo_ray.errors import UserError


def test_an_address_where_nobody_listens_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there"):
        connect()
    assert time.monotonic() - started < 30  # Ray's own import included; Ray itself would try for minutes
