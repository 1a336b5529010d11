"""Whatever is read of checkpoints is asked for again where storage breaks off for a moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build

from orpo_ray.config import OptimConfig
from orpo_ray.errors import UserError
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.storage import patience
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.loop import State
from orpo_ray.training.saving import Copy, Saver, choose, load, load_carried, load_weights

CARRIED = {"ids": np.arange(5)}


def engine(seed: int) -> TorchEngine:
    torch.manual_seed(seed)
    return TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)).train(), OptimConfig(lr=1e-3))


def held(checkpoints: Checkpoints) -> Manifest:
    """As it was found before storage broke off."""
    found = Checkpoints(checkpoints.location).manifest(1)
    assert found is not None
    return found


def loaded(checkpoints: Checkpoints) -> Any:
    other = engine(2)
    load(other, checkpoints, held(checkpoints))
    return {name: vector.tolist() for name, vector in Copy(other).vectors.items()}


def weights(checkpoints: Checkpoints) -> Any:
    other = engine(2).policy
    load_weights(other, checkpoints, held(checkpoints))
    return {name: parameter.tolist() for name, parameter in other.named_parameters()}


READS: dict[str, Callable[[Checkpoints], Any]] = {
    "steps": lambda checkpoints: checkpoints.steps(),
    "manifest": lambda checkpoints: checkpoints.manifest(1),
    "finished": lambda checkpoints: checkpoints.finished(),
    "damage": lambda checkpoints: checkpoints.damage(held(checkpoints), sorted(held(checkpoints).files)),
    "choose": lambda checkpoints: choose(checkpoints, engine(2), pytest.fail),
    "load": loaded,
    "weights": weights,
    "carried": lambda checkpoints: load_carried(engine(2), checkpoints, held(checkpoints))["ids"].tolist(),
}


class Breaking:
    """A filesystem, or a file of one, of which the question of one number breaks off; or gives half an answer."""

    def __init__(self, real: Any, at: list[int], how: Callable[[Any], Any]) -> None:
        self._real, self._at, self._how = real, at, how

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def asked(*arguments: Any, **more: Any) -> Any:
            found = real(*arguments, **more)
            if name in ("read", "read_at", "get_file_info") or name.startswith("open_"):
                self._at[0] -= 1
                if self._at[0] == 0 or self._at[0] < -(10**6):
                    return self._how(found)
            return Breaking(found, self._at, self._how) if name.startswith("open_") else found

        return asked

    def __enter__(self) -> Breaking:
        self._real.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._real.__exit__(*error)


def breaks_off(found: Any) -> Any:
    raise OSError("the connection was reset")


def halves(found: Any) -> Any:
    return found[: len(found) // 2] if isinstance(found, bytes) else breaks_off(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoints")
    saver = Saver(Checkpoints(str(place)), engine(1), newest=9, best=0, warn=pytest.fail)
    saver.begin(Manifest(1, asdict(State(step=1)), 1, "settings", "pairs", None, {}), CARRIED)
    saver.finish()
    return place


@pytest.mark.parametrize("what", READS)
def test_each_question_may_break_off_once(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    whole = READS[what](Checkpoints(str(folder)))
    for at in range(1, 7):  # the first are of each kind: to find it, to open it, to read it
        checkpoints, left = Checkpoints(str(folder)), [at]
        checkpoints.filesystem = Breaking(checkpoints.filesystem, left, breaks_off)
        assert READS[what](checkpoints) == whole


@pytest.mark.parametrize("what", ["load", "weights", "carried"])
def test_half_an_answer_is_none(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    whole = READS[what](Checkpoints(str(folder)))
    for at in range(1, 7):
        checkpoints = Checkpoints(str(folder))
        checkpoints.filesystem = Breaking(checkpoints.filesystem, [at], halves)
        assert READS[what](checkpoints) == whole


@pytest.mark.parametrize("what", READS)
def test_storage_that_is_away_is_not_asked_for_ever(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    checkpoints = Checkpoints(str(folder))
    checkpoints.filesystem = Breaking(checkpoints.filesystem, [-(10**6)], breaks_off)
    if what == "damage":
        assert "cannot be read (the connection was reset)" in str(READS[what](checkpoints))
    else:
        with pytest.raises((OSError, UserError), match="connection was reset"):
            READS[what](checkpoints)
    assert slept == [2, 4]
