"""The sections of a training run's configuration: every key, its default and its meaning, declared once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orpo_ray.config.data import DataConfig, Reading
from orpo_ray.config.identity import digest
from orpo_ray.config.loop import LoopConfig, OptimConfig
from orpo_ray.config.metrics import REWARD
from orpo_ray.config.objectives import ObjectiveConfig, OrpoConfig
from orpo_ray.config.paths import Place, expanded, named_paths
from orpo_ray.config.rollouts import VLLM_TEMPERATURES, RolloutsConfig, require_suited
from orpo_ray.config.section import Count, Fraction, Integer, Number, RunName, Section


class LoraConfig(Section):
    """Low-rank adapters on a frozen model (arXiv 2106.09685): a layer computes `W x + alpha / rank * B A x`."""

    rank: Count = 16
    """Rows of `A`, columns of `B`."""
    alpha: Annotated[Number, Field(gt=0)] = 32
    """The adapters' share is scaled by `alpha / rank`."""
    dropout: Fraction = 0.0
    """Of what the adapters read, in training; drawn from `seed` and the step."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Linear layers that get adapters, such as [q_proj, v_proj], and weights of experts ([experts.gate_up_proj]);
    `all-linear`: all but the output layer, experts of a mixture included where there is no dropout."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _are_names(cls, value: Any) -> Any:
        if value == "all-linear" or (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            return value
        raise ValueError(f"should be all-linear or a list of layers such as [q_proj, v_proj] (got {value!r:.80})")


class ModelConfig(Section):
    """What is trained, and how it is loaded."""

    name_or_path: Place
    """Hub id, folder, the folder of an earlier run, or `toy` (the embedded OPT-shaped model)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id, for its configuration, tokenizer and weights; default: `main`. Wherever else a
    Hub id may stand, the revision stands behind it: `org/name@revision`."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random`: the architecture of `name_or_path` with fresh weights drawn from `seed`."""
    tokenizer: Place | None = None
    """Hub id or folder; default: the model's own."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the network computes in. Master weights, losses and optimizer states are float32 either way."""
    float32_logits: bool = False
    """Of a bfloat16 policy: have its logits in float32, not rounded to 8 bits before their softmax, so that a trainer's
    and an engine's log-probs agree. Written into the model's configuration (`head_dtype`), which vLLM reads too. Takes
    three times the memory of logits."""
    keep_dropout: bool = False
    """Train with the dropout that the model ships with (OPT: 0.1): the authors' code does, TRL does not."""
    packing: Literal["auto", "shared_prefix", "off"] = "auto"
    """How texts are computed: each prompt once for all of its responses (`shared_prefix`), or a text at a time (`off`).
    `auto`: packed where that is found to give this model's own numbers when it loads, else a text at a time."""
    lora: LoraConfig | None = None
    """Train adapters instead of the model's own weights; null: train all weights."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources you trust."""

    @field_validator("packing", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # as YAML reads it without quotation marks

    @model_validator(mode="after")
    def _one_revision_of_a_hub_id(self) -> ModelConfig:
        if self.revision is not None and self.name_or_path == "toy":
            raise ValueError("revision: the embedded model has none")
        if self.revision is not None and "@" in self.name_or_path:
            raise ValueError(f"revision: name_or_path ({self.name_or_path}) names one too")
        return self

    @property
    def has_weights(self) -> bool:
        """Whether there are weights to start from: files that others can load too."""
        return self.init == "pretrained" and self.name_or_path != "toy"


class ResumeConfig(Section):
    """How a run goes on that has begun."""

    allow_changes: list[str] = Field(default_factory=list)
    """Keys, such as optim.lr, or data.train, that may differ from those the run began with."""


class WinRateConfig(Section):
    """A small evaluation of every checkpoint that comes by the number of steps, beside training."""

    against: Place
    """Run folder, folder or Hub id of the model to win against."""
    reward_model: Place
    """Run folder, folder or Hub id of the judge; `toy` is the embedded world's ground truth."""
    prompts: Count = 128
    """The first so many of `data.eval`."""
    temperature: Annotated[Number, Field(ge=0, le=100)] = 1.0
    """0 takes the likeliest token each time."""
    max_tokens: Count = 256
    """Of a response."""
    rounds: Annotated[Integer, Field(ge=1, le=1000)] = 1
    """Responses of each model to each prompt."""

    @field_validator("temperature")
    @classmethod
    def _vllm_draws_at_it(cls, temperature: float) -> float:
        least, most = VLLM_TEMPERATURES
        if temperature and not least <= temperature <= most:
            raise ValueError(f"vLLM draws at 0 and at {least:g} to {most:g} (got {temperature:g})")
        return temperature


class EvalConfig(Section):
    """What of a checkpoint is measured beside training."""

    win_rate: WinRateConfig | None = None
    """Needs resources beside those of the workers, and a CPU or GPU for vLLM. Training does not wait for it."""


class ScalingConfig(Section):
    """On how much a run is spread, and what it does when some of that is lost."""

    num_workers: Count | tuple[Count, Count] = 1
    """Or [fewest, most]: as many as the cluster has room for, changing while it runs. The result does not change."""
    use_gpu: Literal[True, False, "auto"] = "auto"
    """`auto`: GPUs where the cluster has enough of them."""
    cpus_per_worker: Annotated[Number, Field(gt=0)] | Literal["auto"] = "auto"
    """Of which a worker without a GPU computes with as many threads. `auto`: the cores of each node shared out among
    the workers it has, beside a GPU up to 4; in a sweep among those of the trials that run at a time."""
    gpus_per_worker: Annotated[Number, Field(gt=0, le=1)] = 1
    """Below 1, runs of one worker share a GPU: several trials of a sweep, where its memory holds them."""
    max_failures: Annotated[Integer, Field(ge=0, le=10**6)] = 3
    """Times the worker group is restarted from the last checkpoint after a worker is lost."""
    hang_timeout: Annotated[Number, Field(gt=0)] = 1800
    """Seconds without progress after which a worker group is given up and restarted, the worker at fault named."""
    resize_interval: Annotated[Number, Field(gt=0)] = 60
    """With [fewest, most] workers: seconds between looks at whether the cluster has room for more."""

    @property
    def least_cpus_per_worker(self) -> float:
        """What a worker takes on a cluster that has no more."""
        return 1 if self.cpus_per_worker == "auto" else self.cpus_per_worker

    @property
    def fewest_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _fewest_comes_first(self) -> ScalingConfig:
        if self.gpus_per_worker < 1 and self.most_workers > 1:
            raise ValueError("gpus_per_worker: below 1 it is for runs of one worker, for NCCL needs a GPU for each")
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"num_workers: [fewest, most] should be in that order (got {list(self.num_workers)})")  # type: ignore[arg-type]
        return self


class StorageConfig(Section):
    """Where folders are, and copies of them."""

    path: Place = "runs"
    """Folder of run folders; on several nodes it must be shared by all of them."""
    cache: Place | None = None
    """Folder of tokenised data; default: `.cache` in `path`."""
    checkpoints: Place | None = None
    """Folder or URL (s3://, gs://, any of pyarrow's or fsspec's) where runs keep their checkpoints, each in a folder of
    its name; default: in the run's folder, or its copy's."""
    mirror: Place | None = None
    """Folder or URL where a copy of each folder in `path` is kept while a command works on it: a machine that has the
    copy alone goes on from it."""

    @field_validator("path", "cache")
    @classmethod
    def _a_folder(cls, folder: str | None) -> str | None:
        if folder is not None and "://" in folder:
            raise ValueError(f"is a folder that every node sees (got {folder}); for a URL there is storage.mirror")
        return folder

    @field_validator("checkpoints", "mirror")
    @classmethod
    def _a_place(cls, place: str | None) -> str | None:
        scheme, slashes, rest = (place or "").partition(":/")
        if slashes and scheme.isalnum() and not rest.startswith("/"):
            raise ValueError(f"is a folder or a URL, which has two slashes (got {place})")
        if slashes and not rest.partition("?")[0].strip("/"):
            raise ValueError(f"names no bucket and no folder (got {place})")
        return place

    def checkpoints_of(self, name: str) -> str:
        """Folder or URL where the run `name` keeps its checkpoints."""
        if self.checkpoints is not None:
            return folder_in(_in_full(self.checkpoints), name)
        copy = self.copy_of(name)
        return str(self.run_dir(name) / "checkpoints") if copy is None else folder_in(copy, "checkpoints")

    def copy_of(self, name: str) -> str | None:
        """Folder or URL of the copy of the folder `name`."""
        return None if self.mirror is None else folder_in(_in_full(self.mirror), name)

    def run_dir(self, name: str) -> Path:
        return expanded(self.path).resolve() / name

    @property
    def cache_dir(self) -> Path:
        folder = expanded(self.path) / ".cache" if self.cache is None else expanded(self.cache)
        return folder.resolve()


def folder_in(location: str, name: str) -> str:
    """The folder `name` in a folder or URL; options behind the URL (s3://bucket?region=…) stay behind it."""
    place, options = location, ""
    if "://" in location:
        place, mark, options = location.partition("?")
        options = mark + options
    return f"{place.rstrip('/')}/{name}{options}"


def _in_full(place: str) -> str:
    """A folder made absolute; a URL as it is."""
    return place if "://" in place else str(expanded(place).resolve())


def _absolute(name: str) -> str:
    """A path that exists, made absolute, a subset (FOLDER:SUBSET) or function (FILE.py:FUNCTION) kept; anything else (a
    Hub id, a URL) as it is."""
    path = expanded(name)
    folder, colon, subset = name.rpartition(":")
    if colon and os.path.exists(expanded(folder)) and not os.path.exists(path):
        return f"{expanded(folder).resolve()}:{subset}"
    return str(path.resolve()) if os.path.exists(path) else name  # `Path.exists` raises where a name is too long


def _is_here(path: str) -> bool:
    """Whether there is such a path, or such a file or folder with a part of it named behind."""
    return os.path.exists(path) or os.path.exists(path.rpartition(":")[0])


class TrainConfig(Section):
    """A training run. Its folder is `storage.path/name`."""

    name: RunName
    """What it is called: its folder is `storage.path/name`."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Of the order of the data, fresh weights, dropout, what is held out and what is drawn."""
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig = OrpoConfig()
    """What training optimises: `name` says which objective, and what other keys there are."""
    rollouts: RolloutsConfig | None = None
    """Of objectives that train on what the policy itself writes."""
    optim: OptimConfig = OptimConfig()
    train: LoopConfig = LoopConfig()
    eval: EvalConfig = EvalConfig()
    scaling: ScalingConfig = ScalingConfig()
    storage: StorageConfig = StorageConfig()
    resume: ResumeConfig = ResumeConfig()
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where the curves go besides metrics.jsonl; addresses and tokens are in the environment variables of each."""

    @model_validator(mode="before")
    @classmethod
    def _orpo_is_the_default_objective(cls, mapping: Any) -> Any:
        if isinstance(mapping, dict) and isinstance(mapping.get("objective"), dict):
            return {**mapping, "objective": {"name": "orpo", **mapping["objective"]}}
        return mapping

    @model_validator(mode="before")
    @classmethod
    def _rollouts_are_kept_by_their_reward(cls, mapping: Any) -> Any:
        """They have no held-out loss."""
        if not isinstance(mapping, dict) or mapping.get("rollouts") is None:
            return mapping
        train = mapping.get("train", {})
        return {**mapping, "train": {"keep_by": "eval_reward", **train}} if isinstance(train, dict) else mapping

    @model_validator(mode="after")
    def _rollouts_suit_the_objective(self) -> TrainConfig:
        require_suited(self)
        return self

    @model_validator(mode="after")
    def _logits_are_a_policys(self) -> TrainConfig:
        if self.model.float32_logits and self.objective.model == "reward":
            raise ValueError("model.float32_logits: a reward model has no logits of tokens; leave it out")
        return self

    @model_validator(mode="after")
    def _win_rate_has_prompts(self) -> TrainConfig:
        if self.eval.win_rate is not None and self.data.eval is None:
            raise ValueError("eval.win_rate asks the prompts of data.eval, which is not set")
        if self.eval.win_rate is not None and not isinstance(self.data.eval, str):
            raise ValueError("eval.win_rate asks the prompts of data.eval, which has to be one source then")
        if self.eval.win_rate is not None and self.objective.model == "reward":
            raise ValueError("eval.win_rate compares what policies write, and a reward model writes nothing")
        return self

    @model_validator(mode="after")
    def _the_kept_metric_has_its_source(self) -> TrainConfig:
        try:
            self.require_source_of(self.train.keep_by)
        except ValueError as error:
            raise ValueError(f"train.keep_by: {error}") from None
        return self

    @model_validator(mode="after")
    def _comparisons_suit_the_objective(self) -> TrainConfig:
        if self.objective.judges_labels and self.data.comparisons != "every_pair":
            raise ValueError(
                f"data.comparisons ({self.data.comparisons}): {self.objective.name} judges each answer by itself"
            )
        if "choices" in self.objective.columns and self.data.comparisons == "best_against_worst":
            raise ValueError("data.comparisons: best_against_worst leaves two answers, plackett_luce reads rankings")
        return self

    def require_source_of(self, metric: str) -> None:
        """Raises `ValueError` where `metric` is one of a source of data, or of rewards, that the run does not have."""
        if self.rollouts is None:
            return self.data.require_source_of(metric)
        name, slash, label = metric.partition("/")
        if slash and name != REWARD:
            raise ValueError(f"{metric}: of rollouts only {REWARD} is told by its sources")
        if slash and label not in self.rollouts.rewards:
            raise ValueError(f"{metric}: rollouts.rewards has no {label}: there are {', '.join(self.rollouts.rewards)}")
        return None

    @property
    def reading(self) -> Reading:
        """What the objective takes of a record's answers."""
        if self.objective.rolls_out:
            return "prompts"
        return "labels" if self.objective.judges_labels else self.data.comparisons

    @property
    def epochs_of_rollouts(self) -> int:
        """Times that each batch of rollouts is trained on."""
        asked = None if self.rollouts is None else self.rollouts.epochs
        return self.objective.epochs_of_rollouts if asked is None else asked

    @property
    def run_dir(self) -> Path:
        return self.storage.run_dir(self.name)

    @property
    def cache_dir(self) -> Path:
        return self.storage.cache_dir

    @property
    def checkpoints_location(self) -> str:
        """Folder or URL of the run's checkpoints."""
        return self.storage.checkpoints_of(self.name)

    @property
    def cpus(self) -> int:
        """CPU slots that a cluster of this machine needs for the run at the least."""
        return round(self.scaling.most_workers * self.scaling.least_cpus_per_worker) + 1 + self.spare_cpus

    @property
    def spare_cpus(self) -> int:
        """Those that an engine and a scorer take beside training."""
        return 0 if self.eval.win_rate is None else 2

    def digest(self) -> str:
        """Of the settings that decide the trajectory (see `identity`)."""
        return digest(self.for_a_file())

    def local_paths(self) -> dict[str, str]:
        """Data and models that this host has, by the key that names each: absolute paths."""
        named = {key: _absolute(section[name]) for key, section, name in named_paths(self.model_dump(by_alias=True))}
        return {key: path for key, path in named.items() if os.path.isabs(path) and _is_here(path)}

    def with_absolute_paths(self) -> TrainConfig:
        """The same run for a process that stands in another folder: existing local paths made absolute."""
        mapping = self.model_dump(by_alias=True)
        for _, section, key in named_paths(mapping):
            section[key] = _absolute(section[key])
        places = (("checkpoints", self.storage.checkpoints), ("mirror", self.storage.mirror))
        elsewhere = {key: None if place is None else _in_full(place) for key, place in places}
        mapping["storage"] = {"path": str(self.run_dir.parent), "cache": str(self.cache_dir), **elsewhere}
        return TrainConfig.model_validate(mapping)
