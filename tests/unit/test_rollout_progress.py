"""What `orpo-ray status` and the progress bar say of a run with rollouts, between and in its steps."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rollout_run import RESPONSES, ROUNDS, STEPS, configuration, draw_responses, make_rollout_run
from test_report import make_run
from test_status import age, driven, told

from orpo_ray.config.objectives import OBJECTIVES
from orpo_ray.status.read import as_json, read_status
from orpo_ray.storage.rounds import Drawn, Rounds, RoundWatch
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.terminal import Console
from orpo_ray.training import progress
from orpo_ray.training.progress import progress_bar

EACH = Rounds(RESPONSES, 4, STEPS)


def begun(tmp_path: Path, steps: int) -> Path:
    return make_rollout_run(
        tmp_path / "runs" / "ppo", steps=steps, finished=False, storage={"path": str(tmp_path / "runs")}
    )


class TestRounds:
    def test_they_follow_from_the_configuration(self) -> None:
        assert Rounds.of(configuration("r")) == EACH, "ppo goes four times over each"
        for objective in OBJECTIVES:
            name = objective.model_fields["name"].default
            found = Rounds.of(configuration("r", objective={"name": name}))
            assert found is not None and found.steps == 2 * objective.epochs_of_rollouts, name
        short = {"rewards": {"judge": "toy"}, "prompts": 32, "epochs": 3}
        assert Rounds.of(configuration("r", rollouts=short)) == Rounds(32, 1, 3)

    @pytest.mark.parametrize("rollouts", [None, {}, [], "x", {"prompts": "many"}, {"prompts": 33}, {"samples": 0},
                                          {"samples": True}, {"epochs": 2.5}])  # fmt: skip
    def test_what_could_not_be_has_none(self, rollouts: Any) -> None:
        assert Rounds.of(configuration("r", rollouts=rollouts)) is None
        assert Rounds.of({"rollouts": rollouts, "train": 3, "objective": None}) is None

    @pytest.mark.parametrize(
        ("drawn", "step", "total", "goes_on", "said"),
        [
            (Drawn(2, 120), 16, 400, True, "round 3 of 50: writing 120 of 256 responses"),
            (Drawn(2, 120), 16, 400, False, "round 3 of 50: 120 of 256 responses written"),
            (Drawn(2, 256), 16, None, True, "round 3: 256 responses written, scoring"),
            (Drawn(2, 256), 16, 401, False, "round 3 of 51: 256 responses written"),
            (None, 16, 400, True, "round 3 of 50: 0 of 8 updates done"),
            (None, 21, 400, True, "round 3 of 50: 5 of 8 updates done"),
            (None, 400, 400, True, "50 rounds done"),
            (None, 8, 8, False, "1 round done"),
        ],
    )
    def test_where_it_is_in_words(
        self, drawn: Drawn | None, step: int, total: int | None, goes_on: bool, said: str
    ) -> None:
        assert EACH.told(drawn, step, total, goes_on=goes_on) == said


class TestWatch:
    def test_it_counts_what_comes_and_reads_nothing_twice(self, tmp_path: Path) -> None:
        watch = RoundWatch(tmp_path)
        assert watch.drawn() is None
        file = draw_responses(tmp_path, 0, 3)
        assert watch.drawn() == Drawn(0, 3)
        with file.open("a") as more:
            more.write('{"prompt": 1}\n{"prom')
        assert watch.drawn() == Drawn(0, 4), "the last is still being written"
        assert watch._offset == file.stat().st_size
        with file.open("a") as more:
            more.write('pt": 1}\n')
        assert watch.drawn() == Drawn(0, 5)
        draw_responses(tmp_path, 12, 1)
        (file.parent / "000013.safetensors").touch()
        (file.parent / "readme.jsonl").touch()
        assert watch.drawn() == Drawn(12, 1)

    def test_a_file_that_is_begun_anew_is_counted_anew(self, tmp_path: Path) -> None:
        """As where a run goes on: another file takes its place."""
        watch, file = RoundWatch(tmp_path), draw_responses(tmp_path, 3, 9)
        assert watch.drawn() == Drawn(3, 9)
        file.rename(tmp_path / "gone")
        draw_responses(tmp_path, 3, 12)
        assert watch.drawn() == Drawn(3, 12)
        draw_responses(tmp_path, 3, 2)
        assert watch.drawn() == Drawn(3, 2)

    def test_after_a_line_of_metrics_nothing_is_being_drawn(self, tmp_path: Path) -> None:
        watch, file, metrics = RoundWatch(tmp_path), draw_responses(tmp_path, 0, 3), tmp_path / "metrics.jsonl"
        metrics.touch()
        age(file, 5)
        assert watch.drawn() is None
        age(metrics, 10)
        assert watch.drawn() == Drawn(0, 3)


class TestStatus:
    def test_while_responses_are_written(self, tmp_path: Path) -> None:
        folder = begun(tmp_path, 16)
        age(folder / "metrics.jsonl", 100)
        draw_responses(folder, 2, 120)
        with driven(folder):
            status, text = read_status(folder), told(folder)
        assert "rollouts   round 3 of 25: writing 120 of 256 responses\n" in text
        assert "step       16 of 200" in text
        assert re.search(r"reward     reward -?0\.\d+  KL 0\.\d+  coefficient 0\.10\d+\n", text)
        assert re.search(r"held out   step 0: reward -0\.45  KL 0  tokens 30  cut 0\.02  entropy 1\.5", text)
        assert "responses/s in updates, " in text and "pairs/s" not in text
        assert status.brief == "step 16 of 200, eval reward -0.45, eval KL 0"
        facts = json.loads(as_json(status))
        assert (facts["round"], facts["rounds"]) == (3, 25)
        assert (facts["responses_drawn"], facts["responses"]) == (120, 256)
        assert facts["evaluation"]["reward"] == pytest.approx(-0.45)
        assert status.age is not None and status.age < 50, "what is written is a sign of work"

    def test_one_that_was_interrupted_says_what_is_kept(self, tmp_path: Path) -> None:
        folder = begun(tmp_path, 16)
        age(folder / "metrics.jsonl", 100)
        draw_responses(folder, 2, 120)
        assert read_status(folder).state == "interrupted"
        assert "round 3 of 25: 120 of 256 responses written\n" in told(folder)

    def test_in_updates_and_at_the_end(self, tmp_path: Path) -> None:
        folder = begun(tmp_path, 43)
        age(draw_responses(folder, 5, 256), 100)
        assert "round 6 of 25: 3 of 8 updates done\n" in told(folder)
        done = make_rollout_run(tmp_path / "runs" / "done")
        assert "rollouts   25 rounds done\n" in told(done)
        facts = read_status(done).facts
        assert (facts["round"], facts["rounds"], facts["best_step"], facts["keep_by"]) == (25, 25, 160, "eval_reward")
        assert "best at step 160" in told(done), "by the reward, as goes without saying"

    def test_the_time_left_counts_what_comes_between_the_updates(self, tmp_path: Path) -> None:
        """A round: 12 s for 256 responses and their scores, and 8 updates of 128 responses at 50 a second."""
        facts = read_status(begun(tmp_path, 40)).facts
        rate = facts["pairs_per_second"]
        assert rate == pytest.approx(50, abs=1.5)
        assert facts["seconds_left"] == pytest.approx(20 * (12 + 8 * 128 / rate))

    def test_a_long_round_explains_a_silence(self, tmp_path: Path) -> None:
        from test_status import driven_elsewhere

        folder = begun(tmp_path, 40)
        driven_elsewhere(folder)
        age(folder / "metrics.jsonl", 200)
        assert read_status(folder).state == "running"
        age(folder / "metrics.jsonl", 500)
        assert read_status(folder).state == "silent"
        draw_responses(folder, 5, 1)
        assert read_status(folder).state == "running"

    def test_odd_values_end_nothing(self, tmp_path: Path) -> None:
        folder = begun(tmp_path, 20)
        with (folder / "metrics.jsonl").open("a") as file:
            odd = {"round": None, "reward": None, "kl": "x", "rollout_seconds": [1], "scoring_seconds": 1e400}
            file.write(json.dumps({"step": 21, "loss": None, **odd}) + "\n")
            file.write(json.dumps({"step": 22, "eval_reward": None, "eval_kl": {}}) + "\n")
        (folder / "config.yaml").write_text(yaml.safe_dump(configuration("r", rollouts={"prompts": "many"})))
        (folder / "rollouts").write_text("no folder")
        assert "none yet" in told(folder)

    def test_a_run_of_pairs_has_none_of_it(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "pairs")
        before = set(read_status(folder).facts)
        draw_responses(folder, 0, 3)
        assert set(read_status(folder).facts) == before and not {"round", "reward", "kl"} & before
        assert "rollouts" not in told(folder)


def followed(tmp_path: Path, lines: list[dict[str, Any]], *, terminal: bool, drawn: int = 0) -> str:
    """What is said while a run writes these lines of metrics, then draws so many responses."""
    folder, out = RunFolder(tmp_path), io.StringIO()
    folder.config.write_text(yaml.safe_dump(configuration("unit")))
    console = Console(file=out, width=240, force_terminal=terminal)
    with progress_bar(folder, "unit", STEPS * ROUNDS, console):
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if drawn:
            time.sleep(0.01)
            draw_responses(tmp_path, 2, drawn)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue())


class TestProgress:
    FIRST = {"step": 9, "loss": 0.5, "round": 1.0, "reward": 1.25, "kl": 3.5, "pairs_per_second": 50.0}  # noqa: RUF012
    NEXT = {"step": 10, "loss": 0.25, "pairs_per_second": 40.0}  # noqa: RUF012
    EVALUATION = {"step": 10, "eval_reward": 1.5, "eval_kl": 4.0, "eval_share_cut": 0.1}  # noqa: RUF012

    def test_steps_say_reward_and_kl_of_their_round(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
        text = followed(tmp_path, [self.FIRST, self.NEXT, self.EVALUATION], terminal=False, drawn=120)
        assert "unit: step 9/200 loss 0.5000 reward 1.25 KL 3.5 50.0 responses/s\n" in text
        assert "unit: step 10/200 loss 0.2500 reward 1.25 KL 3.5 40.0 responses/s\n" in text
        assert "unit: step 10: held-out reward 1.5  KL 4  cut 0.1\n" in text
        assert "unit: round 3 of 25: writing 120 of 256 responses\n" in text

    def test_the_bar_says_what_is_being_drawn(self, tmp_path: Path) -> None:
        text = followed(tmp_path, [self.FIRST], terminal=True, drawn=120)
        assert "round 3 of 25: writing 120 of 256 responses" in text

    def test_values_that_are_not_finite_are_left_out(self, tmp_path: Path) -> None:
        text = followed(tmp_path, [{**self.FIRST, "reward": None, "kl": "x"}], terminal=False)
        assert "unit: step 9/200 loss 0.5000 50.0 responses/s\n" in text

    def test_time_left_is_by_whole_rounds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """100 s of writing, then 8 updates of a second: not 192 seconds are left after the first updates."""
        folder = RunFolder(tmp_path)
        folder.config.write_text(yaml.safe_dump(configuration("unit")))
        now = [1000.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        told = progress._Told(folder, STEPS * ROUNDS)
        for step in range(1, 4 * STEPS + 1):
            first = step % STEPS == 1
            assert told.left() == "-:--:--" or step > STEPS + 1
            now[0] += 101 if first else 1
            told.line({**self.NEXT, "step": step, **({"round": step // STEPS} if first else {})})
        now[0] += 50
        rounds = (STEPS * ROUNDS - 25) / STEPS  # from the first step of the fourth on
        assert told.left() == str(progress.timedelta(seconds=round(rounds * 108 - 7 - 50)))


def test_a_run_that_went_back_is_in_an_earlier_round(tmp_path: Path) -> None:
    """Its newest checkpoints were damaged: files of later rounds are of before."""
    for number in (3, 4, 5):
        age(draw_responses(tmp_path, number, 9), 100 - number)
    assert RoundWatch(tmp_path).drawn() == Drawn(5, 9)
    draw_responses(tmp_path, 4, 2)
    assert RoundWatch(tmp_path).drawn() == Drawn(4, 2)


def test_the_newest_file_is_by_number(tmp_path: Path) -> None:
    draw_responses(tmp_path, 999_999, 1)
    draw_responses(tmp_path, 1_000_000, 2)
    assert RoundWatch(tmp_path).drawn() == Drawn(1_000_000, 2)
    os.remove(tmp_path / "rollouts" / "1000000.jsonl")
    assert RoundWatch(tmp_path).drawn() == Drawn(999_999, 1)
