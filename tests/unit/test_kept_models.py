"""A run that has come to its end is finished with its metrics and models, and not without."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orpo_ray.errors import UserError
from orpo_ray.storage.run_folder import STEP_OF_MODEL, RunFolder, require_kept

ALL = ("metrics.jsonl", f"model/{STEP_OF_MODEL}", f"model-last/{STEP_OF_MODEL}")
NEEDED = {"best": ALL[:2], "last": ALL[:2], "both": ALL}


@pytest.mark.parametrize(("keep", "absent"), [(keep, file) for keep, needed in NEEDED.items() for file in needed])
def test_what_is_missing_is_named(keep: str, absent: str, tmp_path: Path) -> None:
    for file in NEEDED[keep]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    require_kept(RunFolder(tmp_path), keep)
    (tmp_path / absent).unlink()
    with pytest.raises(UserError, match=f"left no {absent}, so the run is not finished"):
        require_kept(RunFolder(tmp_path), keep)


def test_what_another_host_wrote_may_come_late(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "model").mkdir()
    late = threading.Timer(0.2, (tmp_path / "model" / STEP_OF_MODEL).touch)
    late.start()
    require_kept(RunFolder(tmp_path), "best", patience=30)
    late.join()
