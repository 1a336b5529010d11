"""Structured logs: what a collector of log lines is given."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.telemetry import logs


@pytest.fixture(autouse=True)
def of_no_run_afterwards() -> Iterator[None]:
    logger = logging.getLogger("orpo_ray")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logs._place.clear()
    logger.handlers, logger.level, logger.propagate = before


def test_a_line_says_whose_it_is_and_at_which_step(capsys: pytest.CaptureFixture[str]) -> None:
    logs.log_as(run="sweep", trial="003", role="trainer", rank=1)
    logs.log("training begins", pairs=3)
    logs.at_step(17)
    logs.log("worker fails", logging.ERROR, reason="ValueError('ü\nb')")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "run": "sweep", "trial": "003", "role": "trainer", "rank": 1, "event": "training begins", "level": "info",
        "pairs": 3,
    }  # fmt: skip
    assert (second["step"], second["level"], second["reason"]) == (17, "error", "ValueError('ü\nb')")


def test_secrets_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    logs.log_as(run="sweep", trial="003", role="trainer", rank=1)
    logs.log("saved to s3://key:hunter2@bucket/x", where="https://hunter2@host/a?token=hunter2", api_key="hunter2")
    assert "hunter2" not in capsys.readouterr().err


def test_an_event_is_in_the_folder_and_in_the_log(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    logs.log_as(run="sweep", trial="003", role="trainer", rank=1)
    RunFolder(tmp_path).note("a checkpoint was lost")
    event, said = json.loads((tmp_path / "events.jsonl").read_text()), json.loads(capsys.readouterr().err)
    assert (event["event"], event["trial"], event["rank"]) == ("a checkpoint was lost", "003", 1)
    assert (said["event"], said["level"]) == ("a checkpoint was lost", "warning")


def test_a_process_of_no_run_says_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    RunFolder(tmp_path).note("the driver's to tell")
    assert capsys.readouterr().err == ""
    assert set(json.loads((tmp_path / "events.jsonl").read_text())) == {"time", "event"}
