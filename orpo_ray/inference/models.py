"""The models of an evaluation: where their files are, and what identifies them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from orpo_ray.config import ModelConfig
from orpo_ray.config.evaluation import AskedModel
from orpo_ray.config.paths import expanded
from orpo_ray.data.templates import TEXT_RULE, read_text_rule
from orpo_ray.data.tokenization import tokenizer_digest
from orpo_ray.errors import UserError
from orpo_ray.inference.node_files import FoundFile, glance
from orpo_ray.modeling.adapters import merged_adapter
from orpo_ray.modeling.digests import files_digest
from orpo_ray.modeling.loading import (
    hub_id,
    load_config,
    load_tokenizer,
    load_weights,
    log_warning,
    model_folder,
    require_weights,
)
from orpo_ray.modeling.reward import require_head
from orpo_ray.modeling.weights import (
    ADAPTER,
    INDEX,
    SUFFIX,
    files_of_index,
    has_tokenizer,
    require_readable,
    require_safetensors,
    weight_files,
)
from orpo_ray.parsing import read_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TRUTH = "toy"
"""As a reward model: the embedded world's own scorer."""

Precision = Literal["float32", "bfloat16", "float16"]

_STORED: dict[str, Precision] = {"bfloat16": "bfloat16", "float16": "float16"}
_SETTINGS = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class EvaluatedModel:
    """A policy or a reward model, found and checked."""

    label: str
    name: str
    """As the configuration names it."""
    folder: Path
    """Hugging Face files; of an adapter, those of the merged model."""
    digest: str
    """Of weights, configuration, what ends a generation, and tokenizer."""
    generation_dtype: Precision
    """What it generates in: as its weights are stored, unless asked otherwise."""
    dtype: Literal["float32", "bfloat16"]
    """What the packed forward computes in: as it is stored unless asked otherwise, float32 for float16."""
    context: int | None
    """Positions that the model has; None: no limit."""
    trust_remote_code: bool
    trained_here: bool = True
    """Its folder says so; a reward model from elsewhere is asked as its own recipe does (`evaluation.listening`)."""
    embeddings: int | None = None
    """Token ids that it has an embedding for; None: not known."""
    eos_ids: tuple[int, ...] = ()
    """That end a generation by `generation_config.json`, whatever the tokenizer calls its own."""
    key: str = ""
    """Of the configuration, which names it."""
    files: tuple[FoundFile, ...] = ()
    """Of weights and settings, as the driver's node has them."""
    content: str = ""
    """Digest of their bytes."""
    hub: str = ""
    """`org/name@commit`, where it comes from the Hub."""
    chat_template: str | None = None
    """Its own in this evaluation alone, which goes before `prompts.chat_template`."""

    @property
    def settings(self) -> ModelConfig:
        return ModelConfig(name_or_path=str(self.folder), dtype=self.dtype, trust_remote_code=self.trust_remote_code)


def find_policy(
    label: str, asked: AskedModel | str, cache: Path, *, section: str = "models", trust_remote_code: bool = False
) -> EvaluatedModel:
    """The policy that a label of `section` names. `cache`: where a merged adapter goes.

    Raises `UserError`, naming label and folder, where it is not there, lacks weights or tokenizer, or is no
    causal language model.
    """
    asked = AskedModel(path=asked) if isinstance(asked, str) else asked
    key, name = f"{section}.{label}", asked.path
    folder = _folder(key, name)
    if (folder / ADAPTER).is_file():
        try:
            folder = merged_adapter(folder, cache, trust_remote_code=trust_remote_code)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    model = _describe(key, label, name, folder, asked.dtype, trust_remote_code)
    model = replace(model, chat_template=asked.chat_template)
    architectures = load_config(model.settings).architectures or []
    if any("ForSequenceClassification" in architecture for architecture in architectures):
        raise UserError(f"{key}: {name} is a classifier, which writes no text; name it under reward_models")
    _require_whole(key, model, "AutoModelForCausalLM")
    return model


def find_reward_model(
    label: str,
    name: str,
    dtype: Literal["auto", "float32", "bfloat16"],
    *,
    section: str = "reward_models",
    trust_remote_code: bool = False,
) -> EvaluatedModel:
    """The reward model that a label of `section` names; raises `UserError` where it is none of one label, or reads its
    score elsewhere than at the last token of a text."""
    key = f"{section}.{label}"
    folder = _folder(key, name)
    if (folder / ADAPTER).is_file():
        raise UserError(f"{key}: {name} is an adapter; name the merged model, which its run keeps in model/")
    _require_classifier(key, name, folder, trust_remote_code)
    model = _describe(key, label, name, folder, dtype, trust_remote_code)
    _require_whole(key, model, "AutoModelForSequenceClassification")
    return model


def _require_classifier(key: str, name: str, folder: Path, trust: bool) -> None:
    """Raises `UserError` where the configuration in `folder` is of no reward model. Nothing else of it is read."""
    from transformers import AutoModelForSequenceClassification

    try:
        config = load_config(ModelConfig(name_or_path=str(folder), trust_remote_code=trust))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if not any("ForSequenceClassification" in architecture for architecture in config.architectures or []):
        raise UserError(f"{key}: {name} is no reward model: it has no score head (train one with objective reward)")
    if config.num_labels != 1:
        raise UserError(f"{key}: {name} is a classifier of {config.num_labels} labels, but a reward model has one")
    network = _built(key, name, config, AutoModelForSequenceClassification, trust)
    require_head(f"{key}: {name}", network)


def require_forward(model: EvaluatedModel, hint: str) -> None:
    """Raises `UserError`, which ends with `hint`, where transformers has no language model for what `model` is: vLLM
    may have one."""
    from transformers import AutoModelForCausalLM

    try:
        _built(model.key, model.name, load_config(model.settings), AutoModelForCausalLM, model.trust_remote_code)
    except UserError as error:
        raise UserError(f"{error}; {hint}") from None


def _built(key: str, name: str, config: PretrainedConfig, auto: Any, trust: bool) -> PreTrainedModel:
    """The network of `config`, without memory for its weights. Raises `UserError` where there is none."""
    import torch

    try:
        with torch.device("meta"):
            network: PreTrainedModel = auto.from_config(config, trust_remote_code=trust)
    except (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{key}: {name}: transformers cannot build it: {_first_line(error)}") from None
    return network


def _folder(key: str, name: str) -> Path:
    try:
        return model_folder(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _describe(
    key: str, label: str, name: str, folder: Path, dtype: Literal["auto"] | Precision, trust: bool
) -> EvaluatedModel:
    if not has_tokenizer(folder):  # transformers would make an empty one up
        raise UserError(f"{key}: {folder} holds no tokenizer (no tokenizer.json)")
    settings = ModelConfig(name_or_path=str(folder), trust_remote_code=trust)
    try:
        weights = _opened(folder)
        config, tokenizer = load_config(settings), load_tokenizer(settings)
        require_safetensors(str(folder), config)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    stored = _STORED.get(str(getattr(config, "dtype", None)).removeprefix("torch."), "float32")
    generates = stored if dtype == "auto" else dtype
    computes: Literal["float32", "bfloat16"] = "bfloat16" if generates == "bfloat16" else "float32"
    digest = hashlib.blake2b(tokenizer_digest(tokenizer).encode(), digest_size=16)
    digest.update(json.dumps([tokenizer.chat_template, read_text_rule(folder)]).encode())
    # A generation ends at any EOS that generation_config.json lists, whatever the tokenizer calls its own.
    settings_files = [file for name in _SETTINGS if (file := folder / name).is_file()]
    content = files_digest(files := [*settings_files, *weights])
    digest.update(content.encode())
    return EvaluatedModel(
        key=key, files=glance(files), content=content, hub=_hub(name, folder),
        label=label, name=name, folder=folder, digest=digest.hexdigest(),
        generation_dtype=generates, dtype=computes,
        context=getattr(config, "max_position_embeddings", None), trust_remote_code=trust,
        trained_here=(folder / TEXT_RULE).is_file() or hasattr(config, "reward_offset"),
        embeddings=getattr(config.get_text_config(), "vocab_size", None), eos_ids=_eos_ids(folder),
    )  # fmt: skip


def _hub(name: str, folder: Path) -> str:
    """`org/name@commit` of a snapshot in the Hub's cache; empty where `name` is a folder, or `folder` was made here."""
    return (
        ""
        if os.path.isdir(expanded(name)) or folder.parent.name != "snapshots"
        else (f"{hub_id(name)[0]}@{folder.name}")
    )


def _eos_ids(folder: Path) -> tuple[int, ...]:
    """Those of `generation_config.json`. Raises `UserError` where the file cannot be read."""
    file = folder / "generation_config.json"
    found = read_object(file).get("eos_token_id") if file.is_file() else None
    listed = found if isinstance(found, list) else [found]
    return tuple(each for each in listed if isinstance(each, int) and not isinstance(each, bool))


def _opened(folder: Path) -> list[Path]:
    """All weight files that any of the loaders opens: transformers one or those of an index, vLLM all that there are,
    and the index in any case. Raises `UserError` where one is not in safetensors."""
    files = {*weight_files(folder), *folder.glob(f"*{SUFFIX}")}
    if (folder / INDEX).is_file():
        files.update(files_of_index(folder / INDEX))
    for file in files:
        require_readable(file)
    return sorted(files)


def _require_whole(key: str, model: EvaluatedModel, auto: str) -> None:
    """Raises `UserError` where the files lack weights: vLLM goes on with whatever was in the memory of such tensors."""
    import transformers

    location = str(model.folder)
    try:
        # The names alone: of each weight nothing is read.
        _, missing = load_weights(
            getattr(transformers, auto), location, config=load_config(model.settings), warn=log_warning,
            device_map="meta", trust_remote_code=model.trust_remote_code,
        )  # fmt: skip
        require_weights(location, missing)
    except (OSError, SafetensorError, UserError) as error:
        raise UserError(f"{key}: {_first_line(error)}") from None
    except (AttributeError, ImportError, LookupError, NotImplementedError, TypeError, ValueError):
        return  # transformers has no such class: whether it is whole is the engine's to know


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
