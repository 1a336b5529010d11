"""The stages of the paper remade: what its configuration stands for, and what decides each."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any

from orpo_ray.config import EvaluationConfig, StorageConfig, SweepConfig, TrainConfig, parse_as
from orpo_ray.config.data import BUILT_IN
from orpo_ray.config.evaluation import OutputsConfig
from orpo_ray.config.identity import identity
from orpo_ray.config.overlays import laid_over
from orpo_ray.config.paper import DONE, METHODS, Method, PaperConfig, PaperData, PaperSize, load_paper
from orpo_ray.config.paths import STAGES, expanded
from orpo_ray.config.schema import folder_in
from orpo_ray.data.sources import open_source
from orpo_ray.errors import UserError
from orpo_ray.paper.published import TABLES
from orpo_ray.stages.graph import Graph, StageConfig, folder_of

_OF_A_SIZE, _OF_A_DATA_SET = ("base",), ("reward", "judge")
_PARENT = ("base", "sft", "dpo", "ppo", "orpo", "reward", "judge")
"""Methods whose runs others may name."""
JUDGE = "judge"
"""What evaluations call the paper's own reward model."""
SEEDS = "-seeds"
"""What the name of a table ends in that has each seed's numbers of another."""
_HALF_OPEN = re.compile(r"(<\w+|\w+>)\Z")
"""What was to be `<…>`, a bracket forgotten."""
_TRAINS_BY = {"reward": "reward", "judge": "reward", "base": None}
"""The objective of a method that is not called so; None: any."""
_DIGITS = 8
"""Of a folder's suffix, in base 16: two stages of one label share it once in four thousand million."""


@dataclass(frozen=True)
class Place:
    """Where a stage stands in the paper."""

    kind: str
    """A method, or `winrate`, `sweep`, `benchmark`."""
    data: str = ""
    size: str = ""
    seed: int | None = None
    name: str = ""
    """Of a benchmark."""

    @property
    def label(self) -> str:
        seed = "" if self.seed is None else str(self.seed)
        return "-".join(part for part in (self.data, self.size, self.name or self.kind, seed) if part)


class PaperStages:
    """Every stage, by its place, behind those that it needs.

    A stage's digest is of what decides it: its settings, the files and folders of data that it reads, and the digests
    of what it needs. A run's or sweep's folder has it behind its label: where a setting changes, what depends on it
    gets other folders, and nothing else does. An evaluation's folder has its label alone: of models that are the same
    it keeps what it has. A model that is named by folder or Hub id is taken to stay what it was.
    """

    def __init__(self, config: PaperConfig, origin: str = "") -> None:
        """Raises `UserError`, naming `origin` and the stage, where a stage's configuration is not valid."""
        self.config = config
        self._origin = origin or config.name
        self._storage = _within(config.storage, config.name)
        self.folder = config.storage.run_dir(config.name)
        self._names: dict[Place, str] = {}
        self.digests: dict[Place, str] = {}
        self._require_left_out()
        made: dict[Place, StageConfig] = {}
        for place in self._policies_and_rewards():
            made[place] = self._training(place)
        for place, make in self._others():
            made[place] = make(place)
        self.configs = {place: made[place] for place in sorted(made, key=self._rank)}
        labels = [place.label for place in made]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise UserError(f"{self._origin}: two stages would be called {twice}; rename a size, data set or benchmark")
        self.graph = Graph({place.label: config for place, config in self.configs.items()})
        self.places = {place.label: place for place in self.configs}
        self.judges = {data: self._judges(data) for data in config.data}
        names = [each for own in self.judges.values() for name in own.values() for each in (name, f"{name}{SEEDS}")]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{self._origin}: two tables would be called {twice}; rename a judge or data set")

    def first_judge(self, data: str) -> str:
        """The one whose word verdicts go by; empty where none judges."""
        return next(iter(self.judges[data]), "")

    def _judges(self, data: str) -> dict[str, str]:
        """Whoever says on `data` which of two answers is better, at any size: reward models, the paper's own (`JUDGE`)
        first where there is one, then judges in words; and what the table of win-rates by each is called. The first
        one's word is that of Tables 2 and 3."""
        found: dict[str, None] = {}
        for place, own in self.configs.items():
            if place.kind == "winrate" and place.data == data and isinstance(own, EvaluationConfig):
                found |= dict.fromkeys([*own.reward_models, *own.judges])
        paper = self.config.data[data].paper
        name = f"win-rates-{data}" if paper is None else TABLES[paper]
        judges = sorted(found, key=lambda label: label != JUDGE)
        return {judge: name if judge == judges[0] else f"{name}-by-{judge}" for judge in judges}

    def _rank(self, place: Place) -> tuple[int, ...]:
        """The first seed of all first, and an evaluation behind what it compares, so that there are results early."""
        seed = 0 if place.seed is None else self.config.seeds.index(place.seed)
        data, sizes = list(self.config.data), list(self.config.sizes)
        return (
            seed, data.index(place.data) if place.data else 0, sizes.index(place.size), place.kind not in METHODS,
        )  # fmt: skip

    def folder_of(self, place: Place) -> Path:
        return folder_of(self.configs[place])

    def find(self, kind: str, data: str = "", size: str = "", seed: int | None = None) -> Place | None:
        """The stage there; None where the configuration has none."""
        place = Place(kind, data, size, seed)
        return place if place in self.configs else None

    # Which there are

    def _policies_and_rewards(self) -> Iterator[Place]:
        """Runs behind those that they may name."""
        config, first = self.config, self.config.seeds[0]
        for size in config.sizes if "base" in config.methods else ():
            yield Place("base", size=size)
        for data in config.data:
            sizes = {size for size in (config.reward, config.judge) if size is not None}
            for method in ("sft", "reward", "judge"):  # reward models may begin from the first seed's SFT
                if method == "sft":
                    yield from (Place("sft", data, size, first) for size in config.sizes if size in sizes)
                elif method in config.methods:
                    yield Place(method, data, getattr(config, method))
            for size in config.sizes:
                for seed in config.seeds:
                    for method in config.compared:
                        if (method, seed) != ("sft", first) or size not in sizes:
                            yield Place(method, data, size, seed)
        if "probability_ratio" in config.methods:
            for seed in config.seeds:
                yield Place("probability_ratio", config.figures.data, config.figures.size, seed)

    def _others(self) -> Iterator[tuple[Place, Callable[[Place], StageConfig]]]:
        config = self.config
        for data in config.data:
            for size in config.sizes:
                for seed in config.seeds:
                    yield Place("winrate", data, size, seed), self._evaluation
        if config.sweep is not None:
            yield Place("sweep", config.figures.data, config.figures.size), self._sweep
        for name, benchmark in config.benchmarks.items():
            yield Place("benchmark", benchmark.data, benchmark.size, name=name), self._benchmark

    # What each is

    def _require_left_out(self) -> None:
        """Raises `UserError` where settings say what follows from the paper, and would be passed over."""
        config = self.config
        parts: dict[str, PaperConfig | PaperSize | PaperData] = {"": config}
        parts |= {f"sizes.{label}.": size for label, size in config.sizes.items()}
        parts |= {f"data.{label}.": data for label, data in config.data.items()}
        for name, part in parts.items():
            self._refuse(f"{name}run", part.run, "name", "seed", "storage")
            for method, settings in part.methods.items():
                self._refuse(f"{name}methods.{method}", settings, "name", "seed", "storage")
            self._refuse(f"{name}evaluation", part.evaluation, "models", "name", "storage")
        for label, benchmark in config.benchmarks.items():
            self._refuse(f"benchmarks.{label}.evaluation", benchmark.evaluation, "name", "storage")
        sweep = config.sweep or {}
        self._refuse("sweep", sweep, "name", "train", "storage")
        if isinstance(space := sweep.get("space"), dict):
            self._refuse("sweep.space", space, "objective.name")

    def _refuse(self, section: str, settings: Mapping[str, Any], *keys: str) -> None:
        if taken := next((key for key in keys if key in settings), None):
            why = "are the methods" if taken == "models" else "is the paper's to say"
            raise UserError(f"{self._origin}: {section}.{taken}: {why}; leave it out")

    def _training(self, place: Place) -> TrainConfig:
        mapping = self._mapping(place)
        known = self._parsed(place, mapping, by_name=True)
        self._require_objective(place, known)
        name = self._known_by(place, {"run": identity(known.for_a_file()), "files": _files(known)})
        self._names[place] = name
        return self._parsed(place, {**mapping, "name": name}, by_name=False)

    def _require_objective(self, place: Place, run: TrainConfig) -> None:
        """Raises `UserError` where a method trains by another objective than tables and figures would say of it."""
        wanted, found = _TRAINS_BY.get(place.kind, place.kind), run.objective.name
        if wanted not in (None, found):
            raise UserError(
                f"{self._origin}: {place.label}: objective.name: is {found}; methods.{place.kind} trains by {wanted}"
            )

    def _known_by(self, place: Place, decides: dict[str, Any]) -> str:
        """The name of the folder of a stage that `decides` decides."""
        text = json.dumps(decides, sort_keys=True)
        self.digests[place] = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        return f"{place.label}-{self.digests[place]}"

    def _mapping(self, place: Place, method: Method | None = None) -> dict[str, Any]:
        """What its method's, data set's and size's settings come to; `<…>` as it stands."""
        config, kind = self.config, method or place.kind
        about = [each for each in (config.data.get(place.data), config.sizes.get(place.size)) if each is not None]
        overlays = [config.run, *(each.run for each in about)]
        overlays += [config.methods[kind], *(each.methods.get(kind, {}) for each in about)]  # type: ignore[index,call-overload]
        seed = config.seeds[0] if place.seed is None else place.seed
        settings: dict[str, Any] = reduce(laid_over, overlays, {})
        return {**settings, "seed": seed, "name": place.label, "storage": self._storage.model_dump()}

    def _parsed(self, place: Place, mapping: dict[str, Any], *, by_name: bool) -> TrainConfig:
        filled = self._filled(place, mapping, by_name=by_name)
        return parse_as(TrainConfig, filled, [], f"{self._origin}: {place.label}")

    def _sweep(self, place: Place) -> SweepConfig:
        settings = self.config.sweep or {}
        train = self._mapping(place, "orpo")
        known = self._parsed(place, train, by_name=True)
        decides = {key: value for key, value in settings.items() if key != "concurrency"}
        name = self._known_by(place, {"sweep": decides, "run": identity(known.for_a_file()), "files": _files(known)})
        mapping = {**settings, "name": name, "storage": self._storage.model_dump()}
        mapping |= {"train": self._filled(place, train, by_name=False)}
        return parse_as(SweepConfig, mapping, [], f"{self._origin}: sweep")

    def _evaluation(self, place: Place) -> EvaluationConfig:
        config = self.config
        overlays = [config.evaluation, config.data[place.data].evaluation, config.sizes[place.size].evaluation]
        mapping: dict[str, Any] = reduce(laid_over, overlays, {})
        if "judge" in config.methods:
            own = mapping.get("reward_models") or {}
            if not isinstance(own, dict):
                raise UserError(f"{self._origin}: {place.label}: reward_models: should be a mapping of keys")
            mapping["reward_models"] = {JUDGE: "<judge>", **own}
        return self._evaluating(place, mapping, place.seed)

    def _benchmark(self, place: Place) -> EvaluationConfig:
        mapping = dict(self.config.benchmarks[place.name].evaluation)
        return self._evaluating(place, mapping, self.config.seeds[0])

    def _evaluating(self, place: Place, mapping: dict[str, Any], seed: int | None) -> EvaluationConfig:
        models = {method: f"<{method}>" for method in self.config.compared}
        if not isinstance(mapping.get("models", {}), dict):
            raise UserError(f"{self._origin}: {place.label}: models: should be a mapping of keys")
        mapping |= {"models": models | mapping.get("models", {}), "name": place.label}
        mapping |= {"storage": self._storage.model_dump()}
        where, origin = Place(place.kind, place.data, place.size, seed), f"{self._origin}: {place.label}"
        known = parse_as(EvaluationConfig, self._filled(where, mapping, by_name=True), [], origin)
        decides = {key: value for key, value in known.for_a_file().items() if key not in ("scaling", "storage")}
        self._known_by(place, {"evaluation": decides, "files": _files_of_evaluation(known)})
        return parse_as(EvaluationConfig, self._filled(where, mapping, by_name=False), [], origin)

    # Whose folders it names

    def _filled(self, place: Place, value: Any, *, by_name: bool) -> Any:
        """`value` with the folder of a stage where its `<…>` stands; `by_name`: its name alone, so that a digest does
        not know where the paper lies."""
        fill = partial(self._filled, place, by_name=by_name)
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
            return self._named(place, value[1:-1], by_name=by_name)
        if isinstance(value, str) and _HALF_OPEN.match(value):
            kind = value.strip("<>")
            raise UserError(f"{self._origin}: {place.label}: {value}: lacks a bracket; the stage's folder is <{kind}>")
        return value

    def _named(self, place: Place, kind: str, *, by_name: bool) -> str:
        size = self.config.sizes.get(place.size)
        if kind == "base" and (place.kind == "base" or "base" not in self.config.methods):
            if size is None or size.base is None:
                raise UserError(f"{self._origin}: {place.label}: <base>: sizes.{place.size}.base does not say which")
            return size.base
        seed = self.config.seeds[0] if place.seed is None else place.seed
        if kind in _OF_A_SIZE:
            parent = Place(kind, size=place.size)
        elif kind in _OF_A_DATA_SET:
            parent = Place(kind, place.data, getattr(self.config, kind) or "")
        else:
            parent = Place(kind, place.data, place.size, seed)
        if parent not in self._names:
            there = ", ".join(f"<{method}>" for method in _PARENT if method in self.config.methods)
            raise UserError(
                f"{self._origin}: {place.label}: <{kind}> is no stage that comes before it; the methods are {there}"
            )
        name = self._names[parent]
        return name if by_name else f"{self._storage.path}/{name}"


def read_stages(folder: Path) -> PaperStages:
    """Those of the paper that lies in `folder`, wherever it was begun.

    Raises `UserError` where what was made there has other names by its configuration as it is read from here.
    """
    file = folder / "config.yaml"
    config = load_paper(file)
    stages = PaperStages(config, str(file))
    here = folder.resolve()
    if stages.folder.resolve() == here:
        return stages
    storage = config.storage.model_copy(update={"path": str(here.parent)})
    stages = PaperStages(config.model_copy(update={"name": here.name, "storage": storage}), str(file))
    known = {place.label: stages.folder_of(place) for place in stages.configs}
    made = [record.name for record in (here / DONE).glob("*") if record.name in known]
    if lost := next((label for label in sorted(made) if not known[label].is_dir()), None):
        raise UserError(
            f"{folder}: {lost} was made of files that are not the same from here; go to the folder where the paper was "
            "begun, from which its configuration names them"
        )
    return stages


def _files(config: TrainConfig) -> list[str]:
    """Of the data that a run reads."""
    sources = [*config.data.train_sources, *config.data.eval_sources]
    return _hashes((one.source, str(one.split)) for one in sources)


def _files_of_evaluation(config: EvaluationConfig) -> list[str]:
    """Of its prompts, of answers from elsewhere, and of what benchmarks and judges are given."""
    answered = [model for model in config.models.values() if isinstance(model, OutputsConfig)]
    beside = [config.leaderboard.difficulty, config.leaderboard.published, config.judging.prompt]
    return _hashes(
        [
            (config.prompts.source, config.prompts.split), *((model.outputs, model.split) for model in answered),
            *((place, "") for place in (*beside, config.judging.references) if place is not None),
        ]
    )  # fmt: skip


def _hashes(sources: Iterable[tuple[str, str]]) -> list[str]:
    """Of sources of data with their splits, those that are files or folders here; addresses and Hub ids have none."""
    found = []
    for source, split in sources:
        path = expanded(source)
        if source in BUILT_IN or "://" in source:
            continue
        if os.path.isfile(path):  # `Path.is_file` raises where a name is too long
            found.append(_hash(str(path.resolve()), path.stat().st_mtime_ns))
            continue
        folder = path if os.path.isdir(path) else expanded(source.rpartition(":")[0])  # with a subset behind
        if str(folder) != "." and os.path.isdir(folder):
            files = sorted(file for file in folder.resolve().rglob("*") if file.is_file())
            found.append(_hash_folder(source, split, tuple((str(file), file.stat().st_mtime_ns) for file in files)))
    return found


@cache
def _hash(path: str, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


@cache
def _hash_folder(source: str, split: str, files: tuple[tuple[str, int], ...]) -> str:
    """Of what is read of it; `files`: all that is there, and when each was changed."""
    return open_source(source, split).fingerprint()


def _within(storage: StorageConfig, name: str) -> StorageConfig:
    """Where the stages of a paper lie."""
    elsewhere = {
        key: folder_in(place, f"{name}/{STAGES}")
        for key in ("checkpoints", "mirror")
        if (place := getattr(storage, key)) is not None
    }
    return storage.model_copy(update={"path": f"{storage.path.rstrip('/')}/{name}/{STAGES}", **elsewhere})
