"""The typed configuration of a training run: YAML plus dotted `key=value` overrides.

Every key is declared here once, with its default and its meaning. An unknown key, a value of the wrong
type or out of range is a `UserError` of one line that names the file and the key.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from orpo_ray.errors import UserError


def _no_boolean(value: Any) -> Any:
    """pydantic reads `lr: on` as 1.0; here it is a mistake."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number (got {value}, which YAML also reads from yes, no, on and off)")
    return value


Integer = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Count = Annotated[Integer, Field(ge=1, le=10**12)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section: unknown keys and numbers that are not finite are refused, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, protected_namespaces=()
    )


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
    """Train with the dropout that the model ships with (OPT: 0.1): the authors' code does, TRL does not."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources you trust."""


class DataConfig(Section):
    train: str
    """Hub id, file, folder or fsspec URL of preference pairs; `toy` is the embedded world."""
    train_split: str = "train"
    eval: str | None = None
    """Held-out pairs; default: `eval_fraction` of `train`, chosen by `seed`, whole prompts at a time."""
    eval_split: str = "test"
    eval_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    format: Literal["auto", "hh-rlhf", "ultrafeedback", "argilla", "plain", "conversational"] = "auto"
    """The shape of a record; `auto` recognises it by content."""
    max_length: Annotated[Integer, Field(ge=2, le=10**12)] = 1024
    """Tokens of prompt plus one response; each response is cut by its own room."""
    max_prompt_length: Count = 768
    """Tokens of prompt; longer ones keep their end."""
    drop_prompts_over: Count | None = None
    """Drop pairs whose prompt has more tokens than this (the paper: 1,024) rather than cut it."""
    chat_template: str | None = None
    """A named template, a Jinja text, or null: the tokenizer's own for message lists, none for plain text."""
    on_bad_record: Literal["error", "quarantine"] = "error"
    """`quarantine`: set unreadable records aside in `quarantine.jsonl`, with the reason, and go on."""
    limit: Count | None = None
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
    lambda_: Annotated[Number, Field(ge=0, alias="lambda")] = 0.1
    """Weight of the odds-ratio term; `beta` in TRL, `alpha` in the authors' code."""
    nll_tokens: Literal["prompt_and_chosen", "chosen"] = "prompt_and_chosen"
    """Which tokens the NLL term counts: the authors' and TRL's choice, or the response alone."""


class SftConfig(Section):
    """Supervised fine-tuning on the chosen responses."""

    name: Literal["sft"] = "sft"
    nll_tokens: Literal["prompt_and_chosen", "chosen"] = "prompt_and_chosen"


ObjectiveConfig = Annotated[OrpoConfig | SftConfig, Field(discriminator="name")]


class OptimConfig(Section):
    lr: Annotated[Number, Field(gt=0)] = 8.0e-6
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt"] = "cosine"
    warmup_steps: Annotated[Number, Field(ge=0)] = 100
    """Steps of linear warm-up; below 1: a fraction of all steps."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """AdamW decay of matrices; biases and norms are never decayed."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[Number, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[Number, Field(gt=0)] | None = 1.0


class LoopConfig(Section):
    epochs: Count = 1
    max_steps: Count | None = None
    """Stop after so many optimizer steps, whatever `epochs` says; schedules end there too."""
    global_batch_size: Count = 64
    """Pairs in one optimizer step, over all workers."""
    tokens_per_microbatch: Count = 8192
    """Packed tokens that one worker computes at once; changes memory and speed, not the result."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    deepspeed: dict[str, Any] = {}
    """DeepSpeed settings of your own, merged over those made from this file (bucket sizes, overlap, …)."""
    offload_optimizer: bool = False
    """Keep optimizer states in host memory (ZeRO 1 to 3)."""
    gradient_checkpointing: bool = False
    eval_every_steps: Count | None = None
    """Default: at each epoch's end."""
    checkpoint_every_steps: Count | None = None
    """Default: at each epoch's end."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept on disk; the best model by eval loss is kept in `model/` apart from them."""


class ScalingConfig(Section):
    num_workers: Count = 1
    use_gpu: Literal[True, False, "auto"] = "auto"
    """`auto`: GPUs where the cluster has enough of them."""
    cpus_per_worker: Annotated[Number, Field(gt=0)] = 1
    max_failures: Annotated[Integer, Field(ge=0, le=10**6)] = 3
    """Times the worker group is restarted from the last checkpoint after a worker is lost."""


class StorageConfig(Section):
    path: str = "runs"
    """Folder of run folders; on several nodes it must be shared by all of them."""
    cache: str | None = None
    """Folder of tokenised data; default: `.cache` in `path`."""


class TrainConfig(Section):
    """A training run. Its folder is `storage.path/name`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
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

    def with_absolute_paths(self) -> TrainConfig:
        """The same run for a process that stands in another folder: existing local paths made absolute."""
        local = {
            "model": {key: getattr(self.model, key) for key in ("name_or_path", "tokenizer")},
            "data": {key: getattr(self.data, key) for key in ("train", "eval")},
        }
        mapping = self.model_dump(by_alias=True)
        for section, values in local.items():
            for key, value in values.items():
                if value is not None and Path(value).expanduser().exists():
                    mapping[section][key] = str(Path(value).expanduser().resolve())
        mapping["storage"] = {"path": str(self.run_dir.parent), "cache": str(self.cache_dir)}
        return TrainConfig.model_validate(mapping)

    def to_yaml(self) -> str:
        """The complete configuration, defaults included, in the order of this file."""
        mapping = self.model_dump(mode="json", by_alias=True)
        return yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a training configuration from YAML and apply dotted overrides such as `optim.lr=1e-5`.

    Raises `UserError`, naming the file and the key, for anything that is not a valid configuration.
    """
    return parse_config(read_yaml(path), overrides or [], origin=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """One YAML mapping from a file. Raises `UserError`, naming the file and the line, where there is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_near_file(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    mapping = _parse_yaml(text, origin=str(path))
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: expected a mapping of keys at the top, found {type(mapping).__name__}")
    return mapping


def _near_file(path: Path) -> str:
    """`; did you mean configs/toy-orpo.yaml?` for a YAML file there or in `configs/`."""
    folders = dict.fromkeys([path.parent, Path("configs")])
    files = {str(file): file.name for folder in folders for file in sorted(folder.glob("*.y*ml"))}
    close = difflib.get_close_matches(path.name, files.values(), n=1)
    return next((f"; did you mean {file}?" for file, name in files.items() if [name] == close), "")


class _Loader(yaml.SafeLoader):
    """YAML whose mappings have no key twice: PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}, line {mark.line + 1}" if mark else origin
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{where}: not valid YAML: {problem}") from None
    except Exception as error:  # a date such as 2024-13-45, deep nesting, `!!bool x`: each leaks its own kind
        raise UserError(f"{origin}: not valid YAML: {error or type(error).__name__}") from None


def parse_config(mapping: dict[str, Any], overrides: list[str], origin: str) -> TrainConfig:
    """Validate a mapping with overrides applied; `origin` is the name that errors carry."""
    for override in overrides:
        mapping = _with_override(mapping, override)
    try:
        return TrainConfig.model_validate(mapping)
    except ValidationError as error:
        raise UserError(f"{origin}: {_describe(error)}") from None


def _with_override(mapping: dict[str, Any], override: str) -> dict[str, Any]:
    """`mapping` with one `dotted.key=value` applied; the value is YAML."""
    origin = f"override {_shown(override)}"
    key, equals, text = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise UserError(f"{origin}: expected dotted.key=value, such as optim.lr=1e-5")
    mapping = section = dict(mapping)
    for depth, part in enumerate(path[:-1], start=1):
        child = section.get(part)
        if child is not None and not isinstance(child, dict):
            raise UserError(f"{origin}: {'.'.join(path[:depth])} is a single value, it has no keys below it")
        child = section[part] = dict(child or {})
        section = child
    section[path[-1]] = _parse_yaml(text, origin)
    return mapping


def _describe(error: ValidationError) -> str:
    """The first problem in one line (unknown keys before all else), and how many more there are."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    kind, value, context = problems[0]["type"], problems[0]["input"], problems[0].get("ctx", {})
    location = [str(part) for part in problems[0]["loc"]]
    objective = None
    if location[0] == "objective" and len(location) > 1:  # pydantic puts the objective's name in between
        objective = location.pop(1)
    key = ".".join(location)
    if kind == "extra_forbidden" and objective and key in _valid_keys():
        message = f"{key} is no key of the objective {objective}"
    elif kind == "extra_forbidden":
        message = f"unknown key {_shown(key)[1:-1]}; {_nearest_key(location)}"
    elif kind == "missing":
        message = f"{key} is missing"
    elif kind == "union_tag_invalid":
        message = f"{key}.name: should be one of {context['expected_tags']} (got {_shown(context['tag'])})"
    elif kind == "value_error":
        message = f"{key}: {context['error']}"
    elif kind in {"model_type", "model_attributes_type"}:
        message = f"{key}: should be a mapping of keys (got {_shown(value)})"
    else:
        message = f"{key}: {problems[0]['msg'].removeprefix('Input ')} (got {_shown(value)})"
    more = len(problems) - 1
    return message + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _valid_keys(section: type[Section] = TrainConfig, prefix: str = "") -> dict[str, str]:
    """Every dotted key there is, sections included, with its last part."""
    keys: dict[str, str] = {}
    for name, field in section.model_fields.items():
        last = field.alias or name
        keys[prefix + last] = last
        for child in (OrpoConfig, SftConfig) if name == "objective" else (field.annotation,):
            if isinstance(child, type) and issubclass(child, Section):
                keys |= _valid_keys(child, f"{prefix}{last}.")
    return keys


def _nearest_key(location: list[str]) -> str:
    """Names the valid key most like an unknown one, in its section or anywhere, else all of its section."""
    *above, unknown = location
    everywhere = _valid_keys()
    beside = {key: last for key, last in everywhere.items() if key.split(".")[:-1] == above}
    for keys in (beside, everywhere):
        close = difflib.get_close_matches(unknown, keys.values(), n=1)
        if close:
            return f"did you mean {next(key for key, last in keys.items() if last == close[0])}?"
    return f"{'.'.join(above) or 'the top level'} has {', '.join(beside.values())}"


def _shown(value: Any) -> str:
    """`value` as Python writes it, cut to fit a line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    try:
        return short.repr(value)
    except ValueError:  # Python refuses to write out an integer of thousands of digits
        return "a number too long to show"
