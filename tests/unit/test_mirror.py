"""The copy of a run's folder on another storage: always what the folder was, never half a model."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from orpo_ray.config import StorageConfig
from orpo_ray.errors import UserError
from orpo_ray.storage import mirror as module
from orpo_ray.storage.mirror import Mirror, _marker, mirrored
from orpo_ray.terminal import Console

MARKER = "model/training_step.json"
QUIET = Console(quiet=True)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "mirror.json"
    }  # fmt: skip


def write(folder: Path, files: dict[str, str]) -> None:
    """Each file is a later one than before, whatever the clock's resolution."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        later = path.stat().st_mtime_ns + 10**9 if path.exists() else None
        path.write_text(text)
        if later is not None:
            os.utime(path, ns=(later, later))


@pytest.fixture
def storage(tmp_path: Path) -> StorageConfig:
    return StorageConfig(path=str(tmp_path / "runs"), mirror=str(tmp_path / "copies"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with a model, and with what is not to be copied."""
    found = tmp_path / "runs/run"
    copied = {
        "config.yaml": "name: run",
        "metrics.jsonl": "{}\n",
        "model/weights": "one",
        "model/card": "one",
        MARKER: "1",
    }
    write(found, copied)
    write(found, dict.fromkeys(["checkpoints/step/rank", "ray/state", "driver.lock", ".model.new/weights"], "x"))
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copies/run"


def test_the_copy_follows_the_folder(folder: Path, copy: Path) -> None:
    mirror = Mirror(folder, str(copy))
    mirror.begin()
    mirror.update()
    assert sorted(tree(copy)) == ["config.yaml", "metrics.jsonl", "model/card", MARKER, "model/weights"]
    write(folder, {"metrics.jsonl": "{}\n{}\n", "model/weights": "two"})
    (folder / "model/card").unlink()
    mirror.update()
    assert tree(copy)["metrics.jsonl"] == b"{}\n{}\n"
    assert {name for name in tree(copy) if name.startswith("model/")} == {"model/weights", MARKER}
    assert (copy / MARKER).read_text() == "1"


@pytest.mark.parametrize("seed", range(8))
def test_any_changes_and_any_restarts(tmp_path: Path, seed: int) -> None:
    """Files come, change and go, drivers too; the copy is the folder each time, and the folder can come from it."""
    generator = random.Random(seed)
    folder, copy = tmp_path / "runs/run", tmp_path / "copies/run"
    names = ["metrics.jsonl", "model/weights", "model/card", "trials/001/model/weights", "summary.json", MARKER]
    names += [f"trials/001/{MARKER}"]
    mirror = Mirror(folder, str(copy))
    mirror.begin()
    for turn in range(30):
        for name in generator.sample(names, k=generator.randrange(len(names))):
            path = folder / name
            if path.exists() and generator.random() < 0.3:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{turn} {name}")
                os.utime(path, ns=(10**9 * (turn + 1),) * 2)
        mirror.update()
        assert tree(copy) == tree(folder)
        if generator.random() < 0.3:
            mirror = Mirror(folder, str(copy))
            mirror.begin()
    arrived = Mirror(tmp_path / "elsewhere/run", str(copy))
    assert arrived.restore(QUIET)
    whole = {folder for folder in ("model/", "trials/001/model/") if f"{folder}training_step.json" in tree(copy)}
    expected = {n: c for n, c in tree(copy).items() if "model/" not in n or any(n.startswith(f) for f in whole)}
    assert tree(tmp_path / "elsewhere/run") == expected


def test_another_machine_goes_on_and_the_first_may_not(folder: Path, copy: Path, tmp_path: Path) -> None:
    first = Mirror(folder, str(copy))
    first.begin()
    first.update()
    second = Mirror(tmp_path / "elsewhere/run", str(copy))
    assert second.restore(QUIET) and not second.restore(QUIET)
    second.begin()
    assert tree(tmp_path / "elsewhere/run") == tree(copy)
    written = (copy / "model/weights").stat().st_mtime_ns
    second.update()
    assert (copy / "model/weights").stat().st_mtime_ns == written, "what came from the copy is not copied back"
    for refused in (first.update, Mirror(folder, str(copy)).begin):
        with pytest.raises(UserError, match="another machine has gone on"):
            refused()


def test_a_copy_that_cannot_be_fetched_leaves_nothing(quick: None, folder: Path, copy: Path, tmp_path: Path) -> None:
    class Lossy(Mirror):
        def _there(self) -> dict[str, tuple[int, int]]:
            return {**super()._there(), "model/lost": (1, 1)}

    mirror = Mirror(folder, str(copy))
    mirror.begin()
    mirror.update()
    with pytest.raises(UserError, match="cannot be read"):
        Lossy(tmp_path / "elsewhere/run", str(copy)).restore(QUIET)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_another_driver_on_the_same_folder_is_no_other_machine(folder: Path, copy: Path) -> None:
    first, second = Mirror(folder, str(copy)), Mirror(folder, str(copy))
    first.begin()
    second.begin()
    write(folder, {"metrics.jsonl": "{}\n{}\n"})
    first.update()
    second.update()
    assert (copy / "metrics.jsonl").read_text() == "{}\n{}\n"


class Failing(Mirror):
    """Storage that fails at one file, so many times."""

    file, times = "", 0

    def _write(self, name: str, content: IO[bytes]) -> None:
        if name == self.file and self.times:
            self.times -= 1
            raise OSError("the storage is full")
        super()._write(name, content)


def test_half_a_model_is_none(folder: Path, copy: Path, tmp_path: Path) -> None:
    mirror = Failing(folder, str(copy))
    mirror.begin()
    mirror.update()
    write(folder, {"model/weights": "two", "model/card": "two", MARKER: "2"})
    mirror.file, mirror.times = "model/weights", 1
    with pytest.raises(OSError, match="full"):
        mirror.update()
    assert not (copy / MARKER).exists()
    arrived = Mirror(tmp_path / "elsewhere/run", str(copy))
    assert arrived.restore(QUIET)
    assert sorted(tree(tmp_path / "elsewhere/run")) == ["config.yaml", "metrics.jsonl"]
    mirror.update()
    assert tree(copy)["model/weights"] == b"two" and (copy / MARKER).exists()


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("model/a/b", "model/training_step.json"), ("adapter/weights", "model/training_step.json"),
        ("trials/001/model-last/weights", "trials/001/model-last/training_step.json"),
        ("adapter-last/weights", "model-last/training_step.json"),
        ("model-step-20/weights", "model-step-20/training_step.json"),
        ("models/weights", None), ("model-best/weights", None), ("metrics.jsonl", None),
    ],
)  # fmt: skip
def test_each_kept_model_has_a_marker_of_its_own(name: str, marker: str | None) -> None:
    assert _marker(name) == marker


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(module, "Mirror", Failing)
    yield
    Failing.file, Failing.times = "", 0


def test_a_storage_that_fails_stops_nothing(
    quick: None, folder: Path, copy: Path, storage: StorageConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    told = threading.Event()

    class Said(Console):
        def print(self, *objects: object, **options: object) -> None:
            super().print(*objects, **options)  # type: ignore[arg-type]
            told.set()

    Failing.file, Failing.times = "config.yaml", 3
    with mirrored(storage, "run", Said(width=200)):
        assert told.wait(20)
    assert "cannot be written, and is tried again: the storage is full" in capsys.readouterr().out
    assert (copy / "config.yaml").read_text() == "name: run"


def test_a_copy_that_stays_incomplete_is_told(quick: None, folder: Path, storage: StorageConfig) -> None:
    Failing.file, Failing.times = "config.yaml", 10**6
    told = "is not complete: the storage is full; the same command completes it"
    with pytest.raises(UserError, match=told), mirrored(storage, "run", QUIET):
        pass
    with pytest.raises(KeyboardInterrupt), mirrored(storage, "run", QUIET):
        raise KeyboardInterrupt


def test_none_asked_for_none_made(folder: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    with mirrored(StorageConfig(path=str(tmp_path / "runs")), "run"):
        pass
    assert tree(tmp_path) == before


def test_where_checkpoints_go(tmp_path: Path) -> None:
    assert StorageConfig(path=str(tmp_path)).checkpoints_of("run") == str(tmp_path / "run/checkpoints")
    copied = StorageConfig(path=str(tmp_path), mirror="s3://bucket/runs?region=eu-west-1")
    assert copied.checkpoints_of("run") == "s3://bucket/runs/run/checkpoints?region=eu-west-1"
    both = copied.model_copy(update={"checkpoints": "gs://other"})
    assert both.checkpoints_of("run") == "gs://other/run"


def test_what_storage_fails_to_give_is_asked_for_again(
    quick: None, folder: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of object storage a connection may end in mid-answer, which pyarrow does not ask for again."""
    first = Mirror(folder, str(copy))
    first.begin()
    first.update()

    class Busy(Mirror):
        left = 2

        def _read(self, name: str, to: Path) -> None:
            if self.left and name == "config.yaml":
                self.left -= 1
                to.write_text("na")
                raise OSError("Failed to flush response stream")
            super()._read(name, to)

    assert Busy(tmp_path / "elsewhere/run", str(copy)).restore(QUIET)
    assert (tmp_path / "elsewhere/run/config.yaml").read_bytes() == (folder / "config.yaml").read_bytes()
    monkeypatch.setattr(Busy, "left", 3)
    with pytest.raises(UserError, match="cannot be read: Failed to flush"):
        Busy(tmp_path / "third/run", str(copy)).restore(QUIET)
