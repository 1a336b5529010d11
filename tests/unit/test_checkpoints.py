"""Checkpoints: their files, which of them are whole, which are kept, and what a storage that fails does to a run."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from families import FAMILIES, build, random_pairs
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as parse
from safetensors.torch import load_file

from orpo_ray.config import OptimConfig, TrainConfig, parse_config
from orpo_ray.errors import UserError
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.storage import patience
from orpo_ray.storage.checkpoint_files import FileSum, read_header, read_into, sum_up, write_vectors
from orpo_ray.storage.checkpoints import Checkpoints, Manifest, open_filesystem
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training.alarm import Alarm
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.loop import Line, Sink, State, Wanted, run
from orpo_ray.training.saving import Copy, Saver, choose, load
from orpo_ray.training.source import PairSource
from orpo_ray.training.watchdog import Pulse, diagnosis


def config(*overrides: str) -> TrainConfig:
    mapping = {
        "name": "unit", "model": {"name_or_path": "toy", "dtype": "float32"}, "data": {"train": "toy"},
        "optim": {"lr": 1e-3, "warmup_steps": 0},
        "train": {"global_batch_size": 4, "epochs": 3, "checkpoint_every_steps": 2},
    }  # fmt: skip
    return parse_config(mapping, list(overrides), "test")


def engine(seed: int = 0) -> TorchEngine:
    torch.manual_seed(seed)
    return TorchEngine(PackedPolicy(build(FAMILIES["opt-pre-norm"], NAME)).train(), OptimConfig(lr=1e-3))


def manifest(step: int, eval_loss: float | None = None) -> Manifest:
    return Manifest(step, asdict(State(step=step)), step, "settings", "pairs", eval_loss, {})


class TestFiles:
    @given(st.lists(st.lists(st.floats(width=32), min_size=1, max_size=50), min_size=1, max_size=5))
    def test_any_safetensors_reader_opens_them(self, values: list[list[float]]) -> None:
        vectors = {f"model.layer{i}@{i}/weight": torch.tensor(v) for i, v in enumerate(values)}
        stream = io.BytesIO()
        total = write_vectors(stream, vectors)
        data = stream.getvalue()
        assert total == sum_up(io.BytesIO(data)) == FileSum(len(data), total.sha256)
        read = parse(data)
        assert read.keys() == vectors.keys()
        for name, vector in vectors.items():
            assert vector.numpy().tobytes() == read[name].numpy().tobytes(), name

    def test_ranges_are_read_from_their_place(self) -> None:
        vectors = {"a@0/weight": torch.arange(7.0), "b@3/weight": torch.arange(100.0, 110.0)}
        stream = io.BytesIO()
        write_vectors(stream, vectors)
        file = pa.BufferReader(stream.getvalue())
        header = read_header(file)
        target = torch.zeros(4)
        read_into(target, file, header["b@3/weight"], 5)
        assert target.tolist() == [105.0, 106.0, 107.0, 108.0]


class TestFolder:
    @pytest.mark.parametrize("scheme", ["", "file://", "local://"])
    def test_any_filesystem(self, tmp_path: Path, scheme: str) -> None:
        """A folder, pyarrow's own and one of fsspec's."""
        checkpoints = Checkpoints(f"{scheme}{tmp_path}/run")
        assert checkpoints.steps() == []
        checkpoints.open(3)
        assert checkpoints.manifest(3) is None
        checkpoints.commit(manifest(3, 0.5))
        assert checkpoints.steps() == [3]
        assert checkpoints.manifest(3) == manifest(3, 0.5)
        checkpoints.open(3)
        assert checkpoints.manifest(3) is None, "a checkpoint that is written anew is none meanwhile"

    def test_an_unknown_scheme_is_told(self) -> None:
        with pytest.raises(UserError, match=r"storage: nosuch://x"):
            open_filesystem("nosuch://x")

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("s3://b?colour=red", "storage: s3://b?colour=red: Unexpected query parameter"),
            ("hdfs://nowhere/x", "storage: hdfs://nowhere/x: cannot be reached: "),  # no Hadoop is installed
        ],
    )
    def test_what_its_filesystem_refuses_is_told_in_a_line(self, url: str, message: str) -> None:
        with pytest.raises(UserError) as error:
            open_filesystem(url)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)

    def test_the_newest_and_the_best_are_kept(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(str(tmp_path))
        losses = {1: 0.9, 2: 0.4, 3: None, 4: 0.6, 5: 0.7, 6: None}
        for step, loss in losses.items():
            checkpoints.open(step)
            checkpoints.commit(manifest(step, loss))
        checkpoints.open(7)  # never finished
        checkpoints.retain(newest=2, best=2)
        assert checkpoints.steps() == [6, 5, 4, 2]

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "files": 3}', "\x00", "null"])
    def test_what_is_no_manifest_is_told(self, text: str) -> None:
        with pytest.raises(ValueError):
            Manifest.from_json(text.encode())


def saved(folder: Path, trained: TorchEngine, steps: list[int]) -> Checkpoints:
    checkpoints = Checkpoints(str(folder))
    saver = Saver(checkpoints, trained, newest=9, best=0, warn=pytest.fail)
    for step in steps:
        saver.begin(manifest(step))
    saver.finish()
    return checkpoints


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "another content": lambda step: flip(step / "rank-00000.safetensors"),
    "another size": lambda step: cut(step / "rank-00000.safetensors"),
    "cannot be read": lambda step: (step / "rank-00000.safetensors").unlink(),
    "never finished": lambda step: (step / "manifest.json").unlink(),
    "manifest.json": lambda step: (step / "manifest.json").write_text("{"),
}


class TestChoice:
    @pytest.mark.parametrize("kind", DAMAGE)
    def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(self, tmp_path: Path, kind: str) -> None:
        trained, warnings = engine(), []
        checkpoints = saved(tmp_path, trained, [1, 2])
        DAMAGE[kind](tmp_path / "step-00000002")
        chosen = choose(checkpoints, trained, warnings.append)
        assert chosen is not None and chosen.step == 1
        assert len(warnings) == 1 and "step 2 is passed over" in warnings[0] and kind in warnings[0]

    def test_none_whole_is_an_error_and_none_finished_a_beginning(self, tmp_path: Path) -> None:
        trained, warnings = engine(), []
        checkpoints = saved(tmp_path, trained, [1, 2])
        for step in (1, 2):
            DAMAGE["another content"](tmp_path / f"step-0000000{step}")
        with pytest.raises(UserError, match=r"none of the checkpoints is whole.*from the start"):
            choose(checkpoints, trained, warnings.append)
        for step in (1, 2):
            DAMAGE["never finished"](tmp_path / f"step-0000000{step}")
        assert choose(checkpoints, trained, warnings.append) is None
        assert choose(Checkpoints(str(tmp_path / "other")), trained, pytest.fail) is None

    def test_another_network_is_refused(self, tmp_path: Path) -> None:
        checkpoints = saved(tmp_path, engine(), [1])
        other = TorchEngine(PackedPolicy(build(FAMILIES["llama-grouped-query"], NAME)).train(), OptimConfig())
        held = checkpoints.manifest(1)
        assert held is not None
        with pytest.raises(UserError, match="step-00000001: does not hold elements 0 to"):
            load(other, checkpoints, held)


class SlowStorage:
    """Opens files that take a while, or fail."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(str(folder))
        self.real, self.checkpoints.filesystem = self.checkpoints.filesystem, self
        self.seconds, self.failures = 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def open_output_stream(self, path: str) -> Any:
        time.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        return self.real.open_output_stream(path)


class TestSaver:
    def test_the_state_is_that_of_its_step(self, tmp_path: Path) -> None:
        """Training goes on while a slow storage writes; the checkpoint does not see it."""
        trained, storage = engine(), SlowStorage(tmp_path)
        storage.seconds = 0.5
        saver = Saver(storage.checkpoints, trained, newest=2, best=0, warn=pytest.fail)
        before = Copy(trained).vectors
        saver.begin(manifest(1))
        with torch.no_grad():
            for piece in trained.pieces():
                piece.weight.add_(1)
        assert saver.signals() == {"written": 0.0}
        saver.finish()
        held = load_file(tmp_path / "step-00000001" / "rank-00000.safetensors")
        assert held.keys() == before.keys()
        assert all(torch.equal(held[name], vector) for name, vector in before.items())

    @pytest.mark.parametrize("failures", [1, 2])
    def test_a_full_disk_costs_a_checkpoint_and_not_the_run(self, tmp_path: Path, failures: int) -> None:
        """The first failure is that of a file; the second, of two, that of the manifest of the checkpoint after."""
        trained, storage, warnings = engine(), SlowStorage(tmp_path), []
        saver = Saver(storage.checkpoints, trained, newest=9, best=0, warn=warnings.append)
        storage.failures = 1
        saver.begin(manifest(1))
        saver.finish()
        if failures == 2:
            saver.begin(manifest(2))
            saver._pending.written.result()
            storage.failures = 1
            saver.finish()
        saver.begin(manifest(3))
        saver.finish()
        assert [("No space left" in warning and "was not saved" in warning) for warning in warnings] == [
            True
        ] * failures
        assert storage.checkpoints.steps() == [3]

    def test_a_resumed_run_ends_in_the_same_bits(self, tmp_path: Path) -> None:
        """Through the loop, from a checkpoint in the middle of an epoch; metrics of every step once."""

        class Saving(Sink):
            def __init__(self, trained: TorchEngine, folder: Path) -> None:
                self.saver = Saver(Checkpoints(str(folder)), trained, newest=9, best=0, warn=pytest.fail)
                self.lines: list[Line] = []

            def metrics(self, line: Line) -> None:
                self.lines.append(line)

            def checkpoint(self, engine: Any, state: State, line: Line) -> None:
                self.saver.begin(Manifest(state.step, asdict(state), engine.updates, "", "", None, {}))

            def signals(self) -> dict[str, float]:
                return self.saver.signals()

            def heard(self, signals: dict[str, float]) -> Wanted:
                self.saver.heard(signals)
                return Wanted.NOTHING

        pairs, settings = random_pairs(14), config()
        whole, again = engine(), engine(seed=1)
        first = Saving(whole, tmp_path / "whole")
        run(whole, settings, PairSource(whole, settings, pairs, pairs), first, State())
        first.saver.finish()
        checkpoints = Checkpoints(str(tmp_path / "whole"))
        assert checkpoints.steps() == [12, 10, 8, 6, 4, 2]
        middle = checkpoints.manifest(6)
        assert middle is not None
        load(again, checkpoints, middle)
        second = Saving(again, tmp_path / "again")
        run(again, settings, PairSource(again, settings, pairs, pairs), second, State(**middle.state))
        second.saver.finish()
        assert [line["step"] for line in second.lines if "loss" in line] == list(range(7, 13))
        losses = [line["loss"] for line in first.lines if "loss" in line]
        assert [line["loss"] for line in second.lines if "loss" in line] == losses[6:]
        for left, right in zip(Copy(whole).vectors.items(), Copy(again).vectors.items(), strict=True):
            assert left[0] == right[0] and torch.equal(left[1], right[1])


def test_an_answer_that_breaks_off_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails now and then is asked again; a file that is not there is not waited for."""
    slept: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    checkpoints = saved(tmp_path, engine(), [1])
    manifest = checkpoints.manifest(1)
    assert manifest is not None

    class Breaking:
        def __init__(self, filesystem: Any) -> None:
            self._filesystem, self.failures = filesystem, 2

        def open_input_stream(self, path: str) -> Any:
            self.failures -= 1
            if self.failures >= 0:
                raise OSError("failed to flush the response stream")
            return self._filesystem.open_input_stream(path)

    checkpoints.filesystem = Breaking(checkpoints.filesystem)
    assert checkpoints.damage(manifest, manifest.files) is None
    assert slept == [2, 4]
    checkpoints.filesystem = Breaking(checkpoints.filesystem._filesystem)
    checkpoints.filesystem.failures = 99
    assert "cannot be read (failed to flush" in str(checkpoints.damage(manifest, manifest.files))
    checkpoints.filesystem = checkpoints.filesystem._filesystem
    slept.clear()
    assert "is not there" in str(checkpoints.damage(manifest, ["rank-00009.safetensors"])) and not slept


class TestSkippedSteps:
    def test_a_step_that_is_not_finite_updates_nothing_and_is_told(self) -> None:
        """One pair's log-probs overflow in one step: only that pair is named, and training goes on without the step."""
        trained, pairs, faulty = engine(), random_pairs(12), 5
        settings = config("train.tokens_per_microbatch=1", "train.epochs=2", "train.max_skipped_steps=1")  # a pair each
        row, forward, poisoned = np.concatenate(pairs.pair(faulty)).tolist(), trained.forward, []

        def overflowing(batch: Any, *, by_token: bool = False) -> torch.Tensor:
            sums = forward(batch, by_token=by_token)
            if trained.policy.training and not poisoned and batch.input_ids.flatten().tolist() == row:
                poisoned.append(True)
                return sums * float("inf")
            return sums

        trained.forward = overflowing  # type: ignore[method-assign]
        weights: list[torch.Tensor] = []

        class Watch(Sink):
            def __init__(self) -> None:
                self.lines: list[Line] = []

            def metrics(self, line: Line) -> None:
                self.lines.append(line)
                weights.append(next(iter(trained.policy.parameters())).detach().clone())

        watch = Watch()
        run(trained, settings, PairSource(trained, settings, pairs, pairs), watch, State())
        [(position, line)] = [(i, line) for i, line in enumerate(watch.lines) if "skipped" in line]
        assert line["skipped"] == [faulty]
        assert not np.isfinite(line["loss"]) and not np.isfinite(line["grad_norm"])
        assert torch.equal(weights[position], weights[position - 1]), "nothing was updated"
        assert trained.updates == 5, "of six steps"
        assert all(np.isfinite(line["loss"]) for i, line in enumerate(watch.lines) if "loss" in line and i != position)


def test_the_clock_rings_once_and_a_notice_until_it_is_over() -> None:
    now = 0.0
    alarm = Alarm(minutes=2, clock=lambda: now)
    rung, asked = [], []

    def seconds_left() -> float | None:
        asked.append(now)
        return 120.0 - now if 20 < now < 110 else None

    for now in np.arange(1.0, 300.0):
        if alarm.rings(alarm.signals(leads=True), seconds_left):
            rung.append((now, alarm.urgent))
            alarm.reset()
    soon = [(25.0, True), (73.0, False), (97.0, False), (109.0, False)]
    assert rung[:4] == soon, "training waits for the first; each next one comes when half of what was left has passed"
    assert rung[4:] == [(229.0, False)], "the clock starts anew with each checkpoint"
    assert np.diff(asked).min() >= 5
    assert alarm.signals(leads=False) == {"due": 0.0, "ask": 0.0, "stop": 0.0}


def test_whoever_is_asked_to_stop_saves_at_once_and_no_more() -> None:
    asked = False
    alarm = Alarm(minutes=None, clock=lambda: 0.0, asked_to_stop=lambda: asked)
    assert not alarm.rings(alarm.signals(leads=True), lambda: None)
    asked = True
    assert not alarm.rings(alarm.signals(leads=False), lambda: None), "only rank 0 is asked"
    assert alarm.rings(alarm.signals(leads=True), lambda: None)
    assert alarm.urgent and alarm.stops


@pytest.mark.parametrize("evaluated", [False, True])
def test_nothing_is_trained_behind_the_last_checkpoint_that_is_wanted(evaluated: bool) -> None:
    """And a run that continues there makes the same lines, with what is evaluated at that step made before it."""
    pairs, settings = random_pairs(14), config(f"train.eval_every_steps={3 if evaluated else 2}")

    class Stopping(Sink):
        def __init__(self) -> None:
            self.lines: list[Line] = []
            self.saved: list[int] = []

        def metrics(self, line: Line) -> None:
            self.lines.append(line)

        def checkpoint(self, engine: Any, state: State, line: Line) -> None:
            self.saved.append(state.step)

        def heard(self, signals: dict[str, float]) -> Wanted:
            return Wanted.LAST_CHECKPOINT if self.lines[-1]["step"] == 3 else Wanted.NOTHING

    sink = Stopping()
    trained = engine()
    state = run(trained, settings, PairSource(trained, settings, pairs, pairs), sink, State())
    assert (state.step, sink.saved[-1], sink.lines[-1]["step"]) == (3, 3, 3)
    assert ("eval_loss" in sink.lines[-1]) == evaluated


def test_a_run_whose_checkpoints_are_gone_knows_of_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.last_checkpoint is None
    folder.note_checkpoint(8, "s3://key:secret@bucket/run")
    assert folder.last_checkpoint == {"step": 8, "location": "s3://key:***@bucket/run"}
    next(tmp_path.glob("last_*")).write_text("{")
    with pytest.raises(UserError, match="was changed by something else"):
        assert folder.last_checkpoint


class TestDiagnosis:
    def pulse(self, beats: int, calls: int, place: str = "batches.py:1 packed") -> Pulse:
        return Pulse(beats, calls, place, "node, process 7")

    def test_a_rank_without_a_sign_is_named(self) -> None:
        first = [self.pulse(5, 10), self.pulse(5, 10, "engine.py:9 backward")]
        second = [self.pulse(8, 10), self.pulse(5, 10, "engine.py:9 backward")]
        text = diagnosis(first, second, alive=[0])
        assert text == "rank 1 gives no sign of life (node, process 7), last seen in engine.py:9 backward"
        assert diagnosis([self.pulse(1, 1), None], [self.pulse(2, 1), None], [0]) == "rank 1 gives no sign of life"

    def test_a_rank_that_others_wait_for_is_named(self) -> None:
        first = second = [self.pulse(5, 11, "engine.py:1 all_sum"), self.pulse(5, 10), self.pulse(5, 11)]
        assert diagnosis(first, second, [0, 1, 2]) == "rank 1 is stuck in batches.py:1 packed (node, process 7)"


def test_manifest_is_plain_json() -> None:
    whole = Manifest(**{**vars(manifest(4, 0.25)), "files": {"rank-00000.safetensors": FileSum(9, "ab")}})
    held = json.loads(whole.to_json())
    assert held["files"] == {"rank-00000.safetensors": {"size": 9, "sha256": "ab"}}
    assert Manifest.from_json(whole.to_json().encode()) == whole


def test_a_checkpoint_that_is_committed_while_it_is_looked_for_is_not_there_yet(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    checkpoints.open(4)
    asked = checkpoints.filesystem

    class Slow:
        """Of storage where it comes to be between opening and asking."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asked, name)

        def get_file_info(self, path: Any) -> Any:
            if str(path).endswith("manifest.json"):
                (tmp_path / "checkpoints/step-00000004/manifest.json").write_text("{}")
            return asked.get_file_info(path)

    checkpoints.filesystem = Slow()  # type: ignore[assignment]
    assert checkpoints.manifest(4) is None
