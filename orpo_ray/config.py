"""The typed configuration of a training run: YAML plus dotted `key=value` overrides.

Every key is declared here once, with its default and its meaning. An unknown key, a value of the wrong
type or out of range is a `UserError` of one line that names the file and the key.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orpo_ray.errors import UserError


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


class ModelConfig(Section):
    name_or_path: str
    """Hub id, folder, the folder of an earlier run, or `toy` (the embedded OPT-shaped model)."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random`: the architecture of `name_or_path` with fresh weights drawn from `seed`."""
    tokenizer: str | None = None
    """Hub id or folder; default: the model's own."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the network computes in. Master weights, losses and optimizer states are float32 either way."""
    keep_dropout: bool = False
    """Train with the dropout that the model ships with (OPT: 0.1), as the authors' code does; TRL's turns it off."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources you trust."""


class DataConfig(Section):
    train: str
    """Hub id, file, folder or fsspec URL of preference pairs; `toy` is the embedded world."""
    train_split: str = "train"
    eval: str | None = None
    """Held-out pairs; default: `eval_fraction` of `train`, chosen by `seed`, whole prompts at a time."""
    eval_split: str = "test"
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    format: Literal["auto", "hh-rlhf", "ultrafeedback", "argilla", "plain", "conversational"] = "auto"
    """The shape of a record; `auto` recognises it by content."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Tokens of prompt plus one response; each response is cut by its own room."""
    max_prompt_length: Annotated[int, Field(ge=1)] = 768
    """Tokens of prompt; longer ones keep their end."""
    drop_prompts_over: Annotated[int, Field(ge=1)] | None = None
    """Drop pairs whose prompt has more tokens than this (the paper: 1,024) rather than cut it."""
    chat_template: str | None = None
    """A named template, a Jinja text, or null: the tokenizer's own for message lists, none for plain text."""
    on_bad_record: Literal["error", "quarantine"] = "error"
    """`quarantine`: set unreadable records aside in `quarantine.jsonl`, with the reason, and go on."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Read only so many records of `train`."""

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> DataConfig:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) must be below max_length ({self.max_length}), "
                "or no response token fits"
            )
        return self


class OrpoConfig(Section):
    """ORPO: `L_SFT + lambda * L_OR` (arXiv 2403.07691, Eq. 6)."""

    name: Literal["orpo"] = "orpo"
    lambda_: Annotated[float, Field(ge=0, alias="lambda")] = 0.1
    """Weight of the odds-ratio term; `beta` in TRL, `alpha` in the authors' code."""
    nll_tokens: Literal["prompt_and_chosen", "chosen"] = "prompt_and_chosen"
    """Which tokens the NLL term counts: the authors' and TRL's choice, or the response alone."""


class SftConfig(Section):
    """Supervised fine-tuning on the chosen responses."""

    name: Literal["sft"] = "sft"
    nll_tokens: Literal["prompt_and_chosen", "chosen"] = "prompt_and_chosen"


ObjectiveConfig = Annotated[OrpoConfig | SftConfig, Field(discriminator="name")]


class OptimConfig(Section):
    lr: Annotated[float, Field(gt=0)] = 8.0e-6
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt"] = "cosine"
    warmup_steps: Annotated[float, Field(ge=0)] = 100
    """Steps of linear warm-up; below 1: a fraction of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW decay of matrices; biases and norms are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0


class LoopConfig(Section):
    epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many optimizer steps, whatever `epochs` says; schedules end there too."""
    global_batch_size: Annotated[int, Field(ge=1)] = 64
    """Pairs in one optimizer step, over all workers."""
    tokens_per_microbatch: Annotated[int, Field(ge=1)] = 8192
    """Packed tokens that one worker computes at once; changes memory and speed, not the result."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    """Keep optimizer states in host memory (ZeRO 1 to 3)."""
    gradient_checkpointing: bool = False
    eval_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Default: at each epoch's end."""
    checkpoint_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Default: at each epoch's end."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints kept on disk; the best model by eval loss is kept in `model/` apart from them."""


class ScalingConfig(Section):
    num_workers: Annotated[int, Field(ge=1)] = 1
    use_gpu: bool | Literal["auto"] = "auto"
    """`auto`: GPUs where the cluster has enough of them."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Times the worker group is restarted from the last checkpoint after a worker is lost."""


class StorageConfig(Section):
    path: str = "runs"
    """Folder of run folders; on several nodes it must be shared by all of them."""
    cache: str | None = None
    """Folder of tokenised data; default: `.cache` in `path`."""


class TrainConfig(Section):
    """A training run. Its folder is `storage.path/name`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig = OrpoConfig()
    optim: OptimConfig = OptimConfig()
    train: LoopConfig = LoopConfig()
    scaling: ScalingConfig = ScalingConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="before")
    @classmethod
    def _orpo_is_the_default_objective(cls, mapping: Any) -> Any:
        if isinstance(mapping, dict) and isinstance(mapping.get("objective"), dict):
            return {**mapping, "objective": {"name": "orpo", **mapping["objective"]}}
        return mapping

    @property
    def run_dir(self) -> Path:
        return Path(self.storage.path).expanduser().resolve() / self.name

    @property
    def cache_dir(self) -> Path:
        if self.storage.cache is not None:
            return Path(self.storage.cache).expanduser().resolve()
        return Path(self.storage.path).expanduser().resolve() / ".cache"

    def to_yaml(self) -> str:
        """The complete configuration, defaults included, in the order of this file."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a training configuration from YAML and apply dotted overrides such as `optim.lr=1e-5`.

    Raises `UserError`, naming the file and the key, for anything that is not a valid configuration.
    """
    return parse_config(read_yaml(path), overrides or [], origin=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """One YAML mapping from a file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        mapping = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, RecursionError) as error:  # e.g. a date such as 2024-13-45
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: expected a mapping of keys at the top, found {type(mapping).__name__}")
    return mapping


def parse_config(mapping: dict[str, Any], overrides: list[str], origin: str) -> TrainConfig:
    """Validate a mapping with overrides applied; `origin` is the name that errors carry."""
    for override in overrides:
        mapping = _with_override(mapping, override)
    try:
        return TrainConfig.model_validate(mapping)
    except ValidationError as error:
        raise UserError(f"{origin}: {_describe(error)}") from None


def _with_override(mapping: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"override {override!r}: expected dotted.key=value, such as optim.lr=1e-5")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from None
    return _set(mapping, key.split("."), value, override)


def _set(mapping: dict[str, Any], path: list[str], value: Any, override: str) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {**mapping, head: value}
    child = mapping.get(head)
    if child is not None and not isinstance(child, dict):
        raise UserError(f"override {override!r}: {head} is a single value, it has no key {rest[0]!r}")
    return {**mapping, head: _set(child or {}, rest, value, override)}


def _describe(error: ValidationError) -> str:
    """The first problem in one line, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    # A discriminated union puts its tag ("orpo") into the location; it is no key of the file.
    location = [str(part) for part in first["loc"]]
    if len(location) > 1 and location[0] == "objective" and location[1] in {"orpo", "sft"}:
        del location[1]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        message = f"unknown key {key}{_nearest(first['loc'])}"
    elif first["type"] == "missing":
        message = f"{key} is missing"
    else:
        message = f"{key}: {first['msg'].removeprefix('Value error, ')}"
        if first["type"] != "value_error":
            message += f" (got {first.get('input')!r:.60})"
    more = len(problems) - 1
    return message + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _nearest(location: tuple[str | int, ...]) -> str:
    """`; did you mean optim.lr?` for the valid key nearest to the last part of `location`."""
    section: Any = TrainConfig
    path: list[str] = []
    for part in location[:-1]:
        if part in {"orpo", "sft"}:
            section = {"orpo": OrpoConfig, "sft": SftConfig}[str(part)]
            continue
        path.append(str(part))
        if part != "objective":
            section = section.model_fields[str(part)].annotation
    names = [field.alias or name for name, field in section.model_fields.items()]
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.0)
    suggestion = ".".join([*path, close[0]]) if close else None
    return f"; did you mean {suggestion}?" if suggestion else ""
