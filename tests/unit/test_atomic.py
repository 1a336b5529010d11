"""Several processes that make the same file or folder at once, on one machine or on several that share it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from families import FAMILIES, build, random_pairs
from transformers import AutoModelForCausalLM

from orpo_ray import atomic
from orpo_ray.atomic import new_file, new_folder, next_folder
from orpo_ray.data import toyworld
from orpo_ray.data.split import split_by_prompt
from orpo_ray.inference.models import find_policy
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.report.page import write_page
from orpo_ray.storage.run_folder import write_atomically, write_table
from orpo_ray.training import reference
from orpo_ray.training.reference import with_reference

FORK = multiprocessing.get_context("fork")
Work = Callable[[], object]


def at_once(work: Work, processes: int = 2) -> None:
    """Processes that all do `work`, and meet before each file or folder is moved to its place."""
    meeting = FORK.Barrier(processes)
    started = [FORK.Process(target=_meeting, args=(work, meeting)) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * processes


def _meeting(work: Work, meeting: Any) -> None:
    torch.set_num_threads(1)  # others do not live through a fork
    for name in ("rename", "replace"):
        move = getattr(Path, name)

        def meet(self: Path, target: Path, move: Callable[[Path, Path], Path] = move) -> Path:
            meeting.wait(30)
            return move(self, target)

        setattr(Path, name, meet)
    work()


def one_number(work: Work) -> Work:
    """`work` in containers of several machines, where all processes have the same number."""

    def numbered() -> None:
        os.getpid = lambda: 7  # in a process of its own
        atomic.pids_of = lambda: None  # type: ignore[attr-defined]
        work()

    return numbered


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_several_runs_compute_one_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_PIECE", 3)
    pairs, model = random_pairs(10, 1), PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME))

    def compute() -> np.ndarray[Any, Any] | None:
        shared = {"weights": "x", "rank": 0, "ranks": 1, "budget": 60}
        return with_reference(pairs, model, tmp_path, **shared, barrier=lambda: None).reference

    at_once(compute, processes=3)
    (cache,) = tmp_path.iterdir()
    assert visible(cache) == [f"{piece:06d}.npy" for piece in range(4)]
    found = compute()
    for file in cache.iterdir():
        file.unlink()
    alone = compute()
    assert found is not None and alone is not None
    np.testing.assert_array_equal(found, alone)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    folder, config = tmp_path_factory.mktemp("adapted"), toyworld.model_config()
    config.num_hidden_layers = 1
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(folder / "base")
    toyworld.tokenizer().save_pretrained(folder / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_several_evaluations_merge_one_adapter(adapter: Path, tmp_path: Path) -> None:
    at_once(lambda: find_policy("a", str(adapter), tmp_path), processes=3)
    (merged,) = (tmp_path / "merged").iterdir()
    assert find_policy("a", str(adapter), tmp_path).folder == merged
    assert AutoModelForCausalLM.from_pretrained(merged).config.num_hidden_layers == 1


def test_several_machines_draw_one_split(tmp_path: Path) -> None:
    hashes = np.arange(100, dtype=np.uint64)

    def draw() -> int:
        return len(split_by_prompt(hashes, 0.1, 0, "here", tmp_path)[1])

    at_once(one_number(draw))
    assert (draw(), len(visible(tmp_path))) == (10, 1)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, "text"),
        lambda path: write_table(path, pa.table({"column": [1]})),
        lambda path: write_page(path, "<html>"),
    ],
    ids=["text", "table", "page"],
)
def test_several_machines_write_one_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    at_once(one_number(lambda: write(tmp_path / "file")))
    assert visible(tmp_path) == ["file"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    (tmp_path / "folder").mkdir()
    for making, path in ((new_file, "file"), (new_folder, "folder"), (next_folder, "folder")):
        with pytest.raises(OSError, match="full"), making(tmp_path / path):
            raise OSError("the disk is full")
    assert visible(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "before"


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with next_folder(tmp_path / "model") as new:
            (new / text).touch()
    assert visible(tmp_path) == ["model"] and visible(tmp_path / "model") == ["second"]


def leave_a_half(path: Path) -> None:
    """By a process that is killed while it makes the folder `path`."""

    def die() -> None:
        with new_folder(path):
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(visible(path.parent)) == 1


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    leave_a_half(tmp_path / "entry")
    with new_folder(tmp_path / "entry"):
        assert len(visible(tmp_path)) == 1, "that of the dead one is gone"
    assert visible(tmp_path) == ["entry"]


def test_what_others_are_at_work_on_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_folder(tmp_path / "entry") as alive:
        monkeypatch.setattr(atomic, "pids_of", lambda: "another machine")
        with new_folder(tmp_path / "entry"):
            assert alive.exists()
            os.utime(alive, (0, 0))
        with new_folder(tmp_path / "entry.other"):
            assert alive.exists(), "it is of another folder"
        with next_folder(tmp_path / "entry"):
            assert not alive.exists(), "nobody has touched it for a day"
