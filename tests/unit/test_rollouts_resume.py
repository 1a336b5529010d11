"""Runs on rollouts that are killed, stopped, moved or hindered, and go on to the same bits (issue 19)."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rollout_runs import InProcess, Saving, Trained, settings

from orpo_ray.config import TrainConfig
from orpo_ray.data.dataset import Prompts
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Sample
from orpo_ray.inference.rewards import RewardSource, Scored
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import StateDict
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training import rollouts
from orpo_ray.training.engine import Engine
from orpo_ray.training.loop import Line, State, Wanted
from orpo_ray.training.rollout_files import RolloutFiles

STEPS, ROUND = 18, 8
RUN = (f"train.max_steps={STEPS}", "objective.kl_target=0.001", "objective.kl_horizon=20")
"""Three rounds, the last of them cut; a checkpoint each three steps."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run that nothing disturbs."""
    return Trained(settings(tmp_path_factory.mktemp("whole"), *RUN))


def newest(config: TrainConfig) -> int:
    finished = Checkpoints(str(config.run_dir / "checkpoints")).finished()
    return finished[0].step if finished else 0


def goes_on(config: TrainConfig, whole: Trained, **how: Any) -> Trained:
    """The same command again, which ends as `whole`."""
    again = Trained(config, begin=newest(config), **how)
    assert again.weights() == whole.weights()
    assert (again.state.step, again.state.source) == (STEPS, whole.state.source)
    losses = [line["loss"] for line in whole.lines]
    assert [line["loss"] for line in again.lines] == losses[STEPS - len(again.lines) :]
    return again


# Killed --------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As a process that is no more: nothing catches it."""


class Dying(InProcess):
    """Dies at a seeded moment of drawing, scoring or taking weights, in the round that begins at `step`."""

    def __init__(
        self,
        config: TrainConfig,
        policy: PackedPolicy,
        rewards: Sequence[RewardSource],
        moment: str,
        step: int,
        rng: random.Random,
    ) -> None:
        super().__init__(config, policy, rewards)
        self._moment, self._step, self._rng, self._now = moment, step, rng, -1

    def load(self, weights: StateDict, step: int) -> str:
        self._now = step
        self._die("sync")
        return super().load(weights, step)

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
        left = self._rng.randrange(1, 8)
        for found in super().draw(requests):
            for sample in found:
                yield [sample]
                left -= 1
                if not left and len(requests) == 8:  # not an evaluation
                    self._die("rollout")

    def score(self, data: Prompts, records: NDArray[np.int64], samples: Sequence[Sample]) -> list[Scored]:
        if len(samples) == 8:
            self._die("scoring")
        return super().score(data, records, samples)

    def _die(self, moment: str) -> None:
        if (moment, self._step) == (self._moment, self._now):
            raise Killed


class DyingSaver(Saving):
    """Dies after an update, or as a checkpoint has all its files but no manifest."""

    moment, step = "", -1

    def metrics(self, line: Line) -> None:
        super().metrics(line)
        if self.moment == "update" and line["step"] == self.step and "loss" in line:
            raise Killed

    def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
        if self.moment == "checkpoint" and state.step >= self.step:
            self.saver._checkpoints.commit = self._dies  # type: ignore[method-assign]
        super().checkpoint(engine, state, line)

    def _dies(self, manifest: Manifest) -> None:
        raise Killed


@pytest.mark.parametrize("moment", ["rollout", "scoring", "sync", "update", "checkpoint"])
def test_killed_at_a_seeded_moment_it_ends_in_the_same_bits(moment: str, whole: Trained, tmp_path: Path) -> None:
    rng = random.Random(moment)
    config = settings(tmp_path, *RUN)
    begins = ROUND * rng.randrange(3)  # 0 is before any checkpoint
    writers: list[Dying] = []

    def dying(config: TrainConfig, policy: PackedPolicy, rewards: Sequence[RewardSource]) -> Dying:
        writers.append(Dying(config, policy, rewards, moment, begins, rng))
        return writers[0]

    def sink(*given: Any) -> Saving:
        found = DyingSaver(*given)
        found.moment, found.step = moment, rng.randrange(1, STEPS)
        return found

    with pytest.raises(Killed):
        Trained(config, writers=dying, sink=sink)
    left = [path for path in (config.run_dir / "checkpoints").glob("step-*") if not (path / "manifest.json").exists()]
    assert moment != "checkpoint" or left
    held = config.run_dir / "rollouts" / f"{begins // ROUND:06d}.jsonl"
    drawn = len(held.read_text().splitlines()) - 1 if moment in ("rollout", "scoring") else 0
    assert moment != "scoring" or drawn == 8
    again = goes_on(config, whole)
    if drawn:
        asked = [len({(one.prompt, one.round) for one in calls}) for calls in again.writers.calls if len(calls) > 4]
        later = [8] * (2 - begins // ROUND)
        assert asked == ([8 - drawn] if 8 - drawn > 4 else []) + later, "what was drawn is not drawn again"


def test_a_checkpoint_is_committed_while_the_next_round_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill in a long rollout would cost the round before it, too."""
    monkeypatch.setattr(rollouts, "_PATIENCE", 0.05)

    class Slow(InProcess):
        committed = False

        def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
            for found in super().draw(requests):
                yield found
                deadline = time.monotonic() + 10
                while self.step == ROUND and not self.committed and time.monotonic() < deadline:
                    time.sleep(0.02)
                    self.committed = newest(config) == ROUND

    config = settings(tmp_path, *RUN, "train.max_steps=9", f"train.checkpoint_every_steps={ROUND}")
    trained = Trained(config, writers=Slow)
    assert isinstance(trained.writers, Slow) and trained.writers.committed


# Stopped -------------------------------------------------------------------------------------------------------------


class Stopped(Saving):
    """Asked to stop by `ask`, of steps done and whether a round is being drawn."""

    ask: Callable[[int], bool]

    def heard(self, signals: dict[str, float]) -> Wanted:
        super().heard(signals)
        return Wanted.LAST_CHECKPOINT if self.ask() else Wanted.NOTHING


@pytest.mark.parametrize("every", [3, ROUND], ids=["since the last checkpoint", "with one just made"])
def test_a_run_that_is_stopped_in_a_rollout_saves_and_ends_at_once(
    every: int, whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "_PATIENCE", 0.02)

    class Endless(InProcess):
        asked = gone = False

        def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
            for found in super().draw(requests):
                for sample in found:
                    yield [sample]
                    self.asked = self.step == ROUND
                    if self.asked:
                        time.sleep(0.2)
            self.gone = self.step == ROUND

    config = settings(tmp_path, *RUN, f"train.checkpoint_every_steps={every}")
    saved: list[int] = []

    class Asked(Stopped):
        def ask(self) -> bool:  # type: ignore[override]
            return self.source._writers.asked  # type: ignore[union-attr]

        def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
            saved.append(state.step)
            super().checkpoint(engine, state, line)

    first = Trained(config, writers=Endless, sink=Asked)
    assert first.state.step == ROUND == newest(config)
    assert saved == [*range(every, ROUND, every), ROUND], "once, whatever the step number asks for"
    first.source._thread.shutdown()
    assert not first.writers.gone, "rank 0 stops asking, too"  # type: ignore[attr-defined]
    held = (config.run_dir / "rollouts" / "000001.jsonl").read_text().splitlines()
    again = goes_on(config, whole)
    assert 0 < len(held) - 1 < 8
    assert sum(len(calls) for calls in again.writers.calls) == 8 - (len(held) - 1) + 8 + 4


# Moved, and changed --------------------------------------------------------------------------------------------------


def test_a_checkpoint_in_the_middle_of_a_round_needs_nothing_beside_it(whole: Trained, tmp_path: Path) -> None:
    """The run's folder may be of another machine by now, or what is in it of another try."""
    config = settings(tmp_path, *RUN)
    Trained(config, stop_after=10)
    checkpoint = config.run_dir / "checkpoints" / "step-00000010"
    assert (checkpoint / "source.safetensors").is_file()
    assert not (config.run_dir / "checkpoints" / "step-00000008" / "source.safetensors").exists()
    shutil.rmtree(config.run_dir / "rollouts")
    again = goes_on(config, whole)
    assert [len(calls) for calls in again.writers.calls] == [8, 4]
    checkpoints = Checkpoints(str(config.run_dir / "checkpoints"))
    manifest = checkpoints.manifest(10)
    assert manifest is not None and checkpoints.damage(manifest, manifest.files) is None
    with (checkpoint / "source.safetensors").open("r+b") as file:
        file.seek(200)
        file.write(b"x")
    assert "source.safetensors has another content" in (checkpoints.damage(manifest, sorted(manifest.files)) or "")


def test_rounds_may_change_between_two_of_them_alone(tmp_path: Path) -> None:
    run = (*RUN, "train.checkpoint_every_steps=2")
    Trained(settings(tmp_path, *run), stop_after=10)
    for step, *other in (
        (10, "rollouts.epochs=3"), (10, "train.global_batch_size=2"), (10, "rollouts.prompts=16"),
        (2, "rollouts.prompts=16", "rollouts.epochs=2"),  # the first round begins at step 0 with any settings
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"^the checkpoint of step {step} is in the middle of a round, and with"):
            Trained(settings(tmp_path, *run, *other), begin=step)
    shorter = settings(tmp_path, *run, "rollouts.epochs=2", "train.max_steps=9")
    assert Trained(shorter, begin=ROUND).source.schedule.steps_per_round == ROUND // 2


def test_nothing_that_was_drawn_by_other_settings_is_taken(tmp_path: Path) -> None:
    """The policy of step 0 is the same whatever is asked of it."""
    overrides = ("train.max_steps=1", "rollouts.eval_prompts=1")
    first = settings(tmp_path, *overrides)
    Trained(first)
    held = shutil.copytree(first.run_dir / "rollouts", tmp_path / "held")
    for other, calls in {
        "seed=7": [1, 8, 1], "rollouts.temperature=0.5": [1, 8, 1], "rollouts.max_tokens=11": [1, 8, 1],
        "data.train=toy-test": [1, 8, 1], "name=run": [1, 0, 1],
    }.items():  # fmt: skip
        shutil.copytree(held, first.run_dir / "rollouts", dirs_exist_ok=True)
        found = Trained(settings(tmp_path, *overrides, other)).writers.calls
        assert [len(asked) for asked in found] == calls, other


def test_a_run_that_has_not_begun_leaves_no_rollouts_to_another(tmp_path: Path) -> None:
    config = settings(tmp_path)
    folder = RunFolder(config.run_dir)
    folder.open_for(config)
    files = RolloutFiles(config.run_dir, pytest.fail)
    files.begin(0, "a", [])
    folder.samples.write_text("{}\n")
    folder.append_metrics({"step": 0, "eval_reward": 1.0})
    folder.open_for(config)
    assert folder.rollouts.exists() and folder.samples.exists(), "the same run goes on"
    folder.open_for(settings(tmp_path, "seed=9"))
    assert not folder.rollouts.exists() and not folder.samples.exists()


def test_a_finished_run_goes_on_in_the_middle_of_its_last_round(whole: Trained, tmp_path: Path) -> None:
    config = settings(tmp_path, *RUN)
    Trained(settings(tmp_path, *RUN, "train.max_steps=13"))
    assert newest(config) == 13
    goes_on(config, whole)


# Hindered ------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fails_costs_no_more_than_drawing_again(whole: Trained, tmp_path: Path) -> None:
    config = settings(tmp_path, *RUN)

    class Hindered(InProcess):
        """Something is where the second round's responses are to be."""

        def load(self, weights: StateDict, step: int) -> str:
            if step == ROUND:
                (config.run_dir / "rollouts" / "000001.jsonl").mkdir(exist_ok=True)
            return super().load(weights, step)

    trained = goes_on(config, whole, writers=Hindered)
    assert len([note for note in trained.notes if "would draw this round again" in note]) == 1


def test_storage_that_does_not_say_what_is_in_it_ends_no_run(tmp_path: Path) -> None:
    def fails() -> int:
        raise OSError("storage is away")

    trained = Trained(settings(tmp_path, "train.max_steps=1"), oldest=fails)
    assert trained.state.step == 1
    assert [note for note in trained.notes if note.endswith("storage is away")]


SAMPLE = {"prompt": 0, "sample": 0, "ids": [5, 6], "logps": [-1.0, -2], "ended": "stop", "step": 3}
DAMAGED: dict[str, str] = {
    "no JSON": "\x00\x00", "a list": "[]", "other lengths": json.dumps({**SAMPLE, "ids": [5]}),
    "no tokens": json.dumps({**SAMPLE, "ids": [], "logps": []}),
    "tokens that are none": json.dumps({**SAMPLE, "ids": [5, True]}),
    "log-probs that are none": json.dumps({**SAMPLE, "logps": [-1.0, "x"]}),
    "another end": json.dumps({**SAMPLE, "ended": "abort"}), "no place": json.dumps({**SAMPLE, "prompt": None}),
    "two lines in one": json.dumps(SAMPLE)[:20] + json.dumps(SAMPLE),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_lines_are_told_and_drawn_again(kind: str, tmp_path: Path) -> None:
    notes: list[str] = []
    files = RolloutFiles(tmp_path, notes.append)
    sample = Sample(**SAMPLE)  # type: ignore[arg-type]
    files.begin(4, "me", [sample])
    with (tmp_path / "rollouts" / "000004.jsonl").open("a") as file:
        file.write(DAMAGED[kind] + "\n")
    files.append(4, [sample._replace(prompt=1)])
    with (tmp_path / "rollouts" / "000004.jsonl").open("a") as file:
        file.write(json.dumps(SAMPLE))  # its end has not come
    assert files.samples(4, "me") == [sample, sample._replace(prompt=1)]
    assert len(notes) == 1 and "1 lines are damaged" in notes[0]
    assert files.samples(4, "another") == files.samples(5, "me") == []
    for head in (b"", b"\xff\xfe", b"[]\n", b"{}\n"):
        (tmp_path / "rollouts" / "000004.jsonl").write_bytes(head)
        assert files.samples(4, "me") == []
