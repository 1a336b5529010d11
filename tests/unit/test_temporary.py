"""Temporary folders are nobody else's, and those of killed processes go."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpo_ray.cluster.temporary import make_folder
from orpo_ray.errors import UserError


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="p-") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_a_folder_is_mine_alone_while_i_hold_it(place: Path) -> None:
    first, held = make_folder()
    assert first.parent == place and first.stat().st_mode & 0o777 == 0o700
    second, other = make_folder()
    assert first.is_dir() and second.is_dir()
    os.close(held)
    os.close(other)
    third, held = make_folder()
    assert [path.name for path in place.iterdir()] == [third.name]
    os.close(held)


def test_a_child_that_lives_on_holds_it(place: Path) -> None:
    first, held = make_folder()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(held,))
    os.close(held)
    _, other = make_folder()
    assert first.is_dir()
    child.communicate()
    os.close(other)
    os.close(make_folder()[1])
    assert not first.is_dir()


def test_what_is_none_of_ours_stays(place: Path) -> None:
    (place / "orpo-ray-of-somebody").mkdir()
    (outside := place / "outside").mkdir()
    (outside / ".lock").touch()
    (place / "orpo-ray-link").symlink_to(outside)
    os.close(make_folder()[1])
    assert (place / "orpo-ray-of-somebody").is_dir() and (outside / ".lock").is_file()


def test_a_place_that_is_too_long_or_not_there_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "a" * 30)
    with pytest.raises(UserError, match=r"RAY_TMPDIR=/tmp/a+: is longer than 21 characters"):
        make_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/not-there")
    with pytest.raises(UserError, match="/tmp/not-there: No such file or directory; RAY_TMPDIR names another folder"):
        make_folder()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "b" * 60)
    folder, held = make_folder()
    assert folder.parent == Path("/tmp")
    folder.joinpath(".lock").unlink()
    folder.rmdir()
    os.close(held)
