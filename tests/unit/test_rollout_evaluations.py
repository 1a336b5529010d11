"""Evaluations of rollouts that a stop, or a notice, comes into: what is saved, and what is made again (issue 19)."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest
from families import FAMILIES, build
from rollout_runs import Trained, settings
from rollout_stops import Asked, asking, slow_at

from orpo_ray.config import OptimConfig
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.storage.checkpoints import Checkpoints
from orpo_ray.training import rollouts, run_sink
from orpo_ray.training.alarm import Alarm
from orpo_ray.training.engine import Engine, TorchEngine
from orpo_ray.training.loop import Line, State, Wanted
from orpo_ray.training.run_sink import RunSink
from orpo_ray.training.saving import Saver

STEPS, EVERY = 10, 5
RUN = (f"train.max_steps={STEPS}", f"train.eval_every_steps={EVERY}", "train.checkpoint_every_steps=4")
"""A round and a part of one; evaluations at 0, 5 and 10."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run that nothing disturbs."""
    return Trained(settings(tmp_path_factory.mktemp("whole"), *RUN))


def asked(folder: Path, at: int, wish: Wanted, monkeypatch: pytest.MonkeyPatch, kind: type[Asked] = Asked) -> Trained:
    monkeypatch.setattr(rollouts, "_PATIENCE", 0.02)
    return Trained(settings(folder, *RUN), writers=slow_at(at), sink=asking(wish, kind))


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(str(folder / "run" / "checkpoints"))


@pytest.mark.parametrize("at", [0, EVERY, STEPS])
def test_a_stop_is_heard_in_an_evaluation_which_is_made_again(
    at: int, whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked(tmp_path, at, Wanted.LAST_CHECKPOINT, monkeypatch)
    assert first.state.step == at and first.writers.answered < 4  # type: ignore[attr-defined]
    assert [line["step"] for line in first.evaluations] == [step for step in (0, EVERY, STEPS) if step < at]
    if at:
        assert first.state.evaluation_due
        manifest = checkpoints(tmp_path).finished()[0]
        assert manifest.step == at and State.from_json(manifest.state).evaluation_due
    again = Trained(settings(tmp_path, *RUN), begin=at)
    assert again.weights() == whole.weights()
    assert asdict(again.state) == asdict(whole.state)
    assert [line["loss"] for line in again.lines] == [line["loss"] for line in whole.lines][at:]
    assert again.evaluations == [line for line in whole.evaluations if line["step"] >= at]


def test_a_notice_saves_in_an_evaluation_and_the_clock_behind_it(
    whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the evaluation a checkpoint is none of the best; a machine that goes away is not waited for."""

    class Keeping(Asked):
        def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
            saved.append((state.step, state.evaluation_due))
            super().checkpoint(engine, state, line)

    saved: list[tuple[int, bool]] = []
    trained = asked(tmp_path / "notice", EVERY, Wanted.CHECKPOINT_AT_ONCE, monkeypatch, Keeping)
    assert saved == [(4, False), (EVERY, True), (8, False), (STEPS, False)]
    assert trained.evaluations == whole.evaluations and trained.weights() == whole.weights()
    again = Trained(settings(tmp_path / "notice", *RUN), begin=EVERY)
    assert again.weights() == whole.weights() and asdict(again.state) == asdict(whole.state)
    saved.clear()
    trained = asked(tmp_path / "clock", EVERY, Wanted.CHECKPOINT, monkeypatch, Keeping)
    assert saved == [(4, False), (8, False), (STEPS, False)]


def test_what_is_stopped_begins_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a model is made good for before the loop, which then asks once more."""
    source = Trained(settings(tmp_path, "train.max_steps=1")).source
    monkeypatch.setattr(rollouts, "_PATIENCE", 0.0)
    assert source.evaluate(1, lambda: True) is None
    assert source.evaluate(1, lambda: False) is None


@pytest.mark.parametrize(
    ("signal", "wanted"),
    [
        (None, Wanted.NOTHING), ("due", Wanted.CHECKPOINT), ("ask", Wanted.CHECKPOINT_AT_ONCE),
        ("stop", Wanted.LAST_CHECKPOINT),
    ],
)  # fmt: skip
def test_what_is_heard_says_how_soon(
    signal: str | None, wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock; a notice that is found by asking; a person."""
    monkeypatch.setattr(run_sink, "_seconds_left", lambda: 60.0)
    engine = TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)), OptimConfig())
    saver = Saver(Checkpoints(str(tmp_path)), engine, newest=1, best=0, warn=pytest.fail)
    given = dict.fromkeys((field.name for field in fields(RunSink)), None) | {"saver": saver, "alarm": Alarm(10)}
    signals = {"written": 0.0, "due": 0.0, "ask": 0.0, "stop": 0.0}
    assert RunSink(**given).heard(signals | ({} if signal is None else {signal: 1.0})) == wanted  # type: ignore[arg-type]
