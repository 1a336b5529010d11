"""The process that holds this machine's cluster says in a line why there is none."""

from __future__ import annotations

import pytest

from orpo_ray.cluster.head import Head
from orpo_ray.errors import UserError


def test_what_ray_refuses_is_told_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    head = Head(-1)
    try:
        with pytest.raises(UserError, match=r"^Ray could not be started on this machine: .*nonnegative.*'CPU'"):
            pytest.fail(head.address)
    finally:
        head.stop()
    assert "Traceback" not in capfd.readouterr().err
