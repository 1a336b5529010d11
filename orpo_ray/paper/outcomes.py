"""What the stages of a paper left in their folders: curves, rewards, win-rates, numbers of benchmarks, or why not.

A stage that has not begun, has not finished or has failed is missing for a reason; a file that is there and is damaged
raises `UserError`, which names it. Everything is read once, when it is first asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orpo_ray.config import EvaluationConfig, SweepConfig, TrainConfig
from orpo_ray.config.paper import COMPARED
from orpo_ray.errors import UserError
from orpo_ray.paper.done import is_of_others, settings_of_others
from orpo_ray.paper.stages import JUDGE, PaperStages, Place
from orpo_ray.report.evaluation_folder import DataAccuracy, Diversity, Evaluation, Rewards, read_evaluation
from orpo_ray.report.leaderboard_tables import BenchmarkRow, benchmark_rows
from orpo_ray.report.runs import Run, read_run
from orpo_ray.report.sweep_folder import Sweep, read_sweep
from orpo_ray.statistics.seeds import Interval, of_means, over_seeds
from orpo_ray.statistics.winrate import outcomes
from orpo_ray.status.read import read_status
from orpo_ray.status.status import again

Floats = NDArray[np.float64]

ORPO = "orpo"
AGAINST = tuple(method for method in COMPARED if method != ORPO)
"""Whom ORPO is compared with, in the order of the paper's columns."""
_AS_WRITTEN = 1e-6
"""As near as the win-rate of `results.parquet` comes to that of `winrates.json`, if both are of the same evaluation."""
_COMMANDS = {TrainConfig: "train", SweepConfig: "sweep", EvaluationConfig: "evaluate"}


@dataclass(frozen=True)
class SeedContest:
    """ORPO against a method, both trained with one seed; win-rates are fractions from 0 to 1."""

    place: Place
    """The evaluation that says so."""
    win_rate: float
    sd: float | None
    """Of the rounds' win-rates (ddof 1), as in the paper's tables; None with one round."""
    low: float
    high: float
    """95 % interval over prompts, of this seed's models."""
    prompts: int
    by_round: tuple[float, ...]
    """The win-rate of each round that has a comparison."""
    outcomes: Floats | None = field(compare=False, repr=False)
    """`(prompts asked, rounds)`: 1 where ORPO has the greater reward, 0.5 for a tie, 0, and NaN where nothing was
    compared. None of judges in words, who give no rewards."""

    @property
    def rounds(self) -> int:
        return len(self.by_round)


@dataclass(frozen=True)
class Contest:
    """ORPO against a method at one size on one data set, by one judge."""

    data: str
    size: str
    against: str
    judge: str
    seeds: Mapping[int, SeedContest]
    """Those that have a number, in the order of the configuration."""
    missing: Mapping[int, str]
    """Why the others have none."""
    overall: Interval | None
    """The mean of the seeds' win-rates, over seeds and prompts; with one seed over prompts alone."""
    why_not: str
    """Why there is no `overall`; empty where there is."""

    @property
    def sd(self) -> float | None:
        """The mean of the seeds' sd over rounds: what the paper has in brackets."""
        found = [each.sd for each in self.seeds.values() if each.sd is not None]
        return float(np.mean(found)) if found else None

    @property
    def rounds(self) -> int:
        """Of a seed."""
        return max((each.rounds for each in self.seeds.values()), default=0)


class Outcomes:
    """Of the stages of one paper."""

    def __init__(self, stages: PaperStages, failed: Mapping[str, str]) -> None:
        """`failed`: why, by the label of each stage that has."""
        self.stages = stages
        self.failed = dict(failed)
        self._missing: dict[Place, str] = {}
        self._runs: dict[Place, Run | None] = {}
        self._sweeps: dict[Place, Sweep | None] = {}
        self._evaluations: dict[Place, Evaluation | None] = {}
        self._asked: dict[Place, bytes] = {}
        self._commands: dict[Place, str] = {}
        self._contests: dict[tuple[str, str, str, str], Contest] = {}

    # Where things are

    @property
    def page_folder(self) -> Path:
        """Of the page, its tables and its figures."""
        return self.stages.folder / "paper"

    def link(self, place: Place) -> str:
        """The folder of a stage, relative to the page's."""
        return Path(os.path.relpath(self.stages.folder_of(place), self.page_folder)).as_posix()

    def command(self, place: Place) -> str:
        """What carries out the stage alone. Empty where its folder holds no configuration yet: only the paper's own
        command can begin it."""
        if place not in self._commands:
            own = self.stages.configs[place]
            folder = Path(own.storage.path) / own.name  # as the paper's configuration has it, which a reader may type
            file = folder / "config.yaml"
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
            where = {"name": own.name, "storage": {"path": own.storage.path}}
            self._commands[place] = again(_COMMANDS[type(own)], folder, where, text) if text else ""
        return self._commands[place]

    # What is there

    def missing(self, place: Place) -> str:
        """Empty where the stage has finished, otherwise why not, in words that go behind "not run:"."""
        if place not in self._missing:
            self._missing[place] = self._why_missing(place)
        return self._missing[place]

    def run(self, place: Place) -> Run | None:
        """A training run, finished or not; None before its first step."""
        if place not in self._runs:
            folder = self.stages.folder_of(place)
            self._runs[place] = read_run(folder) if _has_whole_line(folder / "metrics.jsonl") else None
        return self._runs[place]

    def sweep(self, place: Place) -> Sweep | None:
        """A sweep, finished or not; None before its first trial has ended."""
        if place not in self._sweeps:
            folder = self.stages.folder_of(place)
            there = all((folder / name).is_file() for name in ("sweep.json", "results.parquet"))
            self._sweeps[place] = read_sweep(folder) if there else None
        return self._sweeps[place]

    def evaluation(self, place: Place) -> Evaluation | None:
        """A finished evaluation. All texts of responses, prompts and verdicts are empty: they may be gigabytes."""
        if place not in self._evaluations:
            found = None if self.missing(place) else read_evaluation(self.stages.folder_of(place))
            if found is not None:
                self._asked[place] = _digest(found)
                found = _without_texts(found)
            self._evaluations[place] = found
        return self._evaluations[place]

    def gives_rewards(self, judge: str, place: Place) -> bool:
        """Whether `judge` is a reward model of an evaluation; one in words gives none."""
        own = self.stages.configs[place]
        return isinstance(own, EvaluationConfig) and judge in own.reward_models

    def contest(self, data: str, size: str, against: str, judge: str = JUDGE) -> Contest:
        """ORPO against a method, all seeds."""
        key = data, size, against, judge
        if key not in self._contests:
            self._contests[key] = self._contest(*key)
        return self._contests[key]

    def rewards(self, data: str, size: str, seed: int, judge: str = JUDGE) -> Mapping[str, Rewards]:
        """By method, and of `chosen` and `rejected` where the data has them; empty where there is no evaluation."""
        evaluation = self._winrate(data, size, seed)
        return {} if evaluation is None else evaluation.numbers.rewards.get(judge, {})

    def scores(self, data: str, size: str, seed: int, method: str, judge: str = JUDGE) -> Floats | None:
        """Rewards of a method's answers, `(prompts, rounds)`, NaN where none was given; None where there is no finished
        evaluation, or `judge` is no reward model of it."""
        evaluation = self._winrate(data, size, seed)
        if (
            evaluation is None
            or judge not in evaluation.numbers.reward_models
            or method not in evaluation.numbers.models
        ):
            return None
        return _rewards(evaluation, method, judge)

    def judge_accuracy(self, data: str, judge: str = JUDGE) -> DataAccuracy | None:
        """How often `judge` puts the chosen response of a held-out pair first: by the first evaluation that has
        finished, all of which have the same pairs. None where none has, and of judges that are no reward models."""
        for size in self.stages.config.sizes:
            for seed in self.stages.config.seeds:
                evaluation = self._winrate(data, size, seed)
                if evaluation is not None and judge in evaluation.numbers.reward_models:
                    return evaluation.numbers.reward_models[judge].data_accuracy
        return None

    def asked_alike(self, places: Iterable[Place]) -> bool:
        """Whether these evaluations, all of them finished, asked the same prompts in the same order."""
        return len({self._asked[place] for place in places if self.evaluation(place)}) == 1

    def diversity(self, data: str, size: str, seed: int) -> Mapping[str, Diversity]:
        """By method; empty where there is no evaluation."""
        evaluation = self._winrate(data, size, seed)
        return {} if evaluation is None else {name: one.diversity for name, one in evaluation.numbers.models.items()}

    @cached_property
    def benchmarks(self) -> list[Place]:
        return [place for place in self.stages.configs if place.kind == "benchmark"]

    def benchmark(self, place: Place) -> Mapping[str, list[BenchmarkRow]]:
        """By benchmark the rows of a finished benchmark's evaluation; empty where it has not finished."""
        evaluation = self.evaluation(place)
        if evaluation is None:
            return {}
        return benchmark_rows(evaluation.numbers.leaderboards, self.stages.folder_of(place) / "winrates.json")

    # How it is found

    def _why_missing(self, place: Place) -> str:
        if (why := self.failed.get(place.label)) is not None:
            return f"failed: {why}"
        needed = self.stages.graph.needed_by(place.label)
        if lost := [label for label in self.failed if label in needed]:
            return f"not begun, since {lost[0]}, which it needs, has failed"
        folder = self.stages.folder_of(place)
        if not (folder / "config.yaml").is_file():
            return self._not_begun(needed)
        own = self.stages.configs[place]
        if isinstance(own, EvaluationConfig) and (others := settings_of_others(own, folder / "config.yaml")):
            return f"not begun: what is in its folder has other settings ({', '.join(others)})"
        if isinstance(own, TrainConfig) and not _has_whole_line(folder / "metrics.jsonl"):
            return "not finished: no step yet"
        status = read_status(folder)
        if status.state == "finished":
            stale = isinstance(own, EvaluationConfig) and is_of_others(self.stages, place.label)
            return "not begun: what is in its folder is of other settings or data" if stale else ""
        return self._not_begun(needed) if status.state == "not begun" else f"not finished: {status.brief}"

    def _not_begun(self, needed: set[str]) -> str:
        """With what keeps it waiting, where that has begun."""
        for label in (label for label in self.stages.graph.stages if label in needed):
            if not (why := self.missing(self.stages.places[label])):
                continue
            return "not begun" if why.startswith("not begun") else f"not begun: it needs {label}, {why}"
        return "not begun"

    def _winrate(self, data: str, size: str, seed: int) -> Evaluation | None:
        place = self.stages.find("winrate", data, size, seed)
        return None if place is None else self.evaluation(place)

    def _contest(self, data: str, size: str, against: str, judge: str) -> Contest:
        seeds: dict[int, SeedContest] = {}
        missing: dict[int, str] = {}
        for seed in self.stages.config.seeds:
            found = self._seed_contest(data, size, against, judge, seed)
            if isinstance(found, str):
                missing[seed] = found
            else:
                seeds[seed] = found
        overall, why_not = None, next(iter(missing.values()), "")
        if seeds:
            overall = _overall(list(seeds.values()), self.asked_alike([each.place for each in seeds.values()]))
            why_not = ""
        return Contest(data, size, against, judge, seeds, missing, overall, why_not)

    def _seed_contest(self, data: str, size: str, against: str, judge: str, seed: int) -> SeedContest | str:
        """Or why there is none."""
        place = self.stages.find("winrate", data, size, seed)
        if place is None or against not in self.stages.config.compared:
            return f"the configuration has no {against}"
        evaluation = self.evaluation(place)
        if evaluation is None:
            return self.missing(place)
        numbers = evaluation.numbers
        if judge not in numbers.deciders:
            return f"no {judge} judges there"
        pair = numbers.pair(ORPO, against, judge)
        if pair is None:
            return f"no answers of {ORPO} and {against} to one prompt have a score by {judge}"
        won = None
        if judge in numbers.reward_models:
            won = outcomes(*(_rewards(evaluation, model, judge) for model in (ORPO, against)), tie=numbers.tie)
            if not np.isfinite(won).any() or abs(float(np.nanmean(won)) - pair.win_rate) > _AS_WRITTEN:
                raise UserError(
                    f"{self.stages.folder_of(place) / 'results.parquet'}: its rewards by {judge} do not give the "
                    f"win-rate of {ORPO} over {against} that winrates.json has ({pair.win_rate:.6f}); remove "
                    "winrates.json, and evaluate again"
                )
        rounds = tuple(rate for rate in pair.rounds if rate is not None)
        return SeedContest(place, pair.win_rate, pair.sd, *pair.ci95, pair.prompts, rounds, won)


def read_outcomes(stages: PaperStages, failed: Mapping[str, str] | None = None) -> Outcomes:
    """`failed`: why, by the label of each stage that has. Files are read when they are asked for."""
    return Outcomes(stages, failed or {})


def _overall(seeds: list[SeedContest], alike: bool) -> Interval:
    """`alike`: whether all were asked the same prompts. Where they were not, or prompts' outcomes are not known, the
    seeds' own numbers are all that tells."""
    won = [each.outcomes for each in seeds if each.outcomes is not None]
    if alike and len(won) == len(seeds):
        return over_seeds(won)
    only = seeds[0]
    own = Interval(only.win_rate, only.low, only.high, (only.win_rate,), only.prompts)
    found = of_means([each.win_rate for each in seeds])
    return own if found is None else replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _rewards(evaluation: Evaluation, model: str, judge: str) -> Floats:
    """`(prompts, rounds)` of a model's responses, NaN where none was given. Answers from elsewhere, of which there is
    one to a prompt, stand against each round of the others."""
    numbers, responses = evaluation.numbers, evaluation.responses
    own = responses.models == model
    prompts, rounds = responses.prompts[own], responses.rounds[own]
    found = np.full((numbers.prompts, numbers.rounds), np.nan)
    known = (prompts >= 0) & (prompts < numbers.prompts) & (rounds >= 0) & (rounds < numbers.rounds)
    rewards = np.where(np.isfinite(responses.rewards[judge][own]), responses.rewards[judge][own], np.nan)
    found[prompts[known], rounds[known]] = rewards[known]
    return found if numbers.models[model].was_asked else np.repeat(found[:, :1], numbers.rounds, axis=1)


def _digest(evaluation: Evaluation) -> bytes:
    """Of what was asked, in its order."""
    texts = "\0".join(prompt.text for prompt in evaluation.prompts)
    return hashlib.blake2b(texts.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _without_texts(evaluation: Evaluation) -> Evaluation:
    responses = replace(evaluation.responses, texts=[""] * len(evaluation.responses.texts))
    return replace(evaluation, prompts=[], responses=responses, verdicts=[])


def _has_whole_line(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.readline().endswith(b"\n")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
