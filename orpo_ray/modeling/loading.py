"""Loading tokenizers and policies: from a Hub id, a folder, an earlier run's folder, or the embedded world."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from orpo_ray.config import ModelConfig
from orpo_ray.config.paths import expanded
from orpo_ray.data import toyworld
from orpo_ray.data.prepare import Highest
from orpo_ray.errors import UserError
from orpo_ray.hub import unreachable
from orpo_ray.masking import masked
from orpo_ray.modeling import experts, lora
from orpo_ray.modeling.parity import Wrapper, choose_way
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.weights import ADAPTER, adapter_base, has_tokenizer, require_safetensors
from orpo_ray.parsing import read_object
from orpo_ray.telemetry.logs import log

Warn = Callable[[str], None]
"""Is told, in one line, what loading survives and a person should know of."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

CPU = torch.device("cpu")
_OBJECTS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
"""Files of a model that loaders take to be JSON objects."""
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
"""Those that a model consists of."""
_DROPOUT = ("dropout", "layerdrop", "layer_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop")
# A policy made of a reward model, and a reward model made of a policy, leave the other's head in the files.
_OTHER_HEADS = ("lm_head.", "score.")
_NAMED = 3  # weights that a line names


def log_warning(text: str) -> None:
    log(text, logging.WARNING)


def load_tokenizer(model: ModelConfig) -> Tokenizer:
    """The tokenizer that `model` names, or its own. Raises `UserError` where there is none."""
    name = model.tokenizer or model.name_or_path
    if name == "toy":
        return toyworld.tokenizer()
    if is_adapter(name) and not has_tokenizer(Path(locate(name)[0])):
        name = adapter_base(Path(locate(name)[0]))
    tokenizer: Tokenizer = _from_hub_or_folder(AutoTokenizer.from_pretrained, name, "tokenizer", model)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer has no EOS token, so a response could never end")
    return tokenizer


def load_policy(model: ModelConfig, *, seed: int, device: torch.device = CPU, warn: Warn = log_warning) -> PackedPolicy:
    """The policy on `device`, in the configured dtype, in training mode; with `model.lora`, frozen but for adapters.

    Random weights are drawn from `seed`, the same on every rank. It is packed where that was found to be exact (see
    `parity.choose_way`), or `warn` is told why not. Raises `UserError` for a model that is not there, is not in
    safetensors, lacks weights, or whose log-probs nothing here computes.
    """
    config = load_config(model)
    if model.float32_logits:
        config.head_dtype = "float32"
    network, missing = build_network(AutoModelForCausalLM, config, model, seed, warn)
    require_weights(model.name_or_path, missing)
    alone = make_ready(network, PackedPolicy, model, seed, device, warn)
    if alone and model.float32_logits:
        raise UserError(
            f"model.float32_logits: {model.name_or_path} is asked a text at a time, with its own output layer: {alone}"
        )
    return PackedPolicy(network, alone=alone).train()


def make_ready(
    network: PreTrainedModel, wrapper: Wrapper, model: ModelConfig, seed: int, device: torch.device, warn: Warn
) -> str:
    """Take a whole network to `device`, find out whether it may be packed, and put adapters on it, in place.

    Returns why `wrapper` is to ask it a text at a time (see `parity.choose_way`).
    """
    network.to(device)
    alone = choose_way(network, wrapper, model, warn)
    if model.lora is not None:
        lora.add_adapters(network, model.lora, seed)
    adapters = [] if model.lora is None else lora.remarks(network, model.lora)
    for remark in (*adapters, *experts.remarks(network)):
        warn(f"{model.name_or_path}: {remark}")
    return alone


def check_fit(model: ModelConfig, max_length: int) -> None:
    """Raises `UserError` where the model has no place for a position that the data may hold."""
    config = load_config(model)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise UserError(
            f"data.max_length is {max_length}, but {model.name_or_path} has positions for {positions} tokens; "
            f"set data.max_length={positions} or less"
        )


def require_embeddings(model: ModelConfig, tokenizer: Tokenizer, highest: Iterable[Highest]) -> None:
    """Raises `UserError` where the model has no embedding for the `highest` token ids of the data. A tokenizer may name
    more tokens than a model embeds, as Gemma 3's does, as long as no text becomes them."""
    embedded = load_config(model).get_text_config().vocab_size
    for source, id, record in highest:
        if id >= embedded:
            told = no_embedding(tokenizer, id, model.name_or_path, embedded)
            raise UserError(f"{masked(source)}[record {record}]: {told}")


def no_embedding(tokenizer: Tokenizer, id: int, name: str, embedded: int) -> str:
    """What is said of a token that the model `name` cannot read."""
    return (
        f"holds the token {tokenizer.convert_ids_to_tokens(id)!r} ({id}), but {name} has embeddings for {embedded} "
        f"tokens, its tokenizer {len(tokenizer)} tokens; they do not belong together, or that one was never embedded"
    )


def load_config(model: ModelConfig) -> PretrainedConfig:
    """The configuration of the model that `model` names, as it ships. Raises `UserError` where there is none."""
    if model.name_or_path == "toy":
        return toyworld.model_config()
    if is_adapter(model.name_or_path) and not os.path.isfile(
        os.path.join(locate(model.name_or_path)[0], "config.json")
    ):
        raise UserError(f"{model.name_or_path}: holds an adapter ({ADAPTER}); name its merged model, or its base")
    config: PretrainedConfig = _from_hub_or_folder(AutoConfig.from_pretrained, model.name_or_path, "model", model)
    names = config.architectures
    if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
        raise UserError(f"{model.name_or_path}: config.json: architectures should be a list of names")
    return config


def build_network(
    auto: Any, config: PretrainedConfig, model: ModelConfig, seed: int, warn: Warn = log_warning
) -> tuple[PreTrainedModel, set[str]]:
    """The network of `auto`, one of transformers' AutoModels, and which of its weights its files lack.

    Those are drawn anew, unseeded: see `require_weights`. `warn` is told of weights that the model does not take.
    Raises `UserError` where files hold a weight in another shape.
    """
    if not model.keep_dropout:
        _turn_dropout_off(config)
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        config._attn_implementation = "eager"  # transformers' sdpa leaves the cap out, and says nothing
    if model.has_weights:
        loaded: tuple[PreTrainedModel, set[str]] = _from_hub_or_folder(
            partial(load_weights, auto, warn=warn), model.name_or_path, "model", model, config=config,
            dtype=DTYPES[model.dtype],
        )  # fmt: skip
        return loaded
    torch.manual_seed(seed)
    try:
        network = auto.from_config(config, trust_remote_code=model.trust_remote_code)
    except ValueError as error:  # there is no such class for this architecture
        raise UserError(f"{model.name_or_path}: the model cannot be built: {str(error).splitlines()[0]}") from error
    return network.to(DTYPES[model.dtype]), set()


def load_weights(
    auto: Any, location: str, *, config: PretrainedConfig, warn: Warn, revision: str = "main", **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """`auto.from_pretrained`, and which weights the files lack but for those tied to others; see `build_network`.

    Raises `UserError` where they would come from anywhere else than safetensors of `location`.
    """
    revision = require_safetensors(location, config, revision)
    with _quiet():
        # A shape that differs is told by transformers in a report of many lines, which it raises an error about.
        network, info = auto.from_pretrained(
            location,
            config=config,
            revision=revision,
            **options,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    for weight, held, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{location}: its files hold {weight} in the shape {list(held)}, and its config.json says {list(wanted)}"
        )
    unused = {weight for weight in info["unexpected_keys"] if not weight.startswith(_OTHER_HEADS)}
    if unused:
        warn(f"{location}: its files hold weights that the model does not take, such as {some(unused)}")
    return network, info["missing_keys"]


def require_weights(name: str, missing: set[str]) -> None:
    """Raises `UserError` where there are `missing` weights in the files of `name`."""
    if missing:
        raise UserError(f"{name}: its files lack weights of the model, such as {some(missing)}")


def some(weights: Collection[str]) -> str:
    """The first names, and how many there are."""
    named = ", ".join(sorted(weights)[:_NAMED])
    return named if len(weights) <= _NAMED else f"{named} ({len(weights)} in all)"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from a bar, and from a table of weights that are new or not used: what matters of it is said in
    one line."""

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger, bars = logging.getLogger("transformers.modeling_utils"), is_progress_bar_enabled()
    logger.addFilter(keep)
    disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(keep)
        if bars:
            enable_progress_bar()


def locate(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """The folder that `name` stands for (of a run: its `model/`), absolute; or a Hub id, and of what revision, which
    stands behind it or is `revision`."""
    path = expanded(name)
    if os.path.isfile(path / "model" / "config.json"):  # `Path.is_file` raises where a name is too long
        path = path / "model"
    if os.path.isdir(path):
        return str(path.resolve()), None
    plain, own = hub_id(name)
    return plain, own or revision


def model_folder(name: str) -> Path:
    """The folder of a run's model, a folder's own, or that of a Hub id in its cache, which it is brought to.

    Raises `UserError` where there is neither a model nor an adapter.
    """
    path = expanded(name)
    if os.path.isdir(path):  # `Path.is_dir` raises where a name is too long
        if (path / "model" / "config.json").is_file():
            path = path / "model"
        elif not (path / "config.json").is_file() and not (path / ADAPTER).is_file():
            is_run = (path / "metrics.jsonl").is_file()
            hint = "the run has none yet; train it further" if is_run else "give a run folder or its model/ folder"
            raise UserError(f"{name} holds no model (no config.json): {hint}")
        return path.resolve()
    repository, revision = hub_id(name)
    if name.startswith((".", "/", "~")) or repository.count("/") != 1:
        raise UserError(f"{name}: no such folder (a model is a run folder, a folder, or a Hub id)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    lost = unreachable()
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=MODEL_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = lost or str(error).strip().splitlines()[0]
        raise UserError(f"{name} is no folder here, and the Hub does not give it: {reason}") from error


def is_adapter(name: str) -> bool:
    """Whether `name` is the folder of an adapter."""
    return os.path.isfile(os.path.join(locate(name)[0], ADAPTER))


def hub_id(name: str) -> tuple[str, str | None]:
    """`org/name@revision` in its parts; None: the revision is not said, and so `main`."""
    plain, _, revision = name.partition("@")
    return plain, revision or None


def _from_hub_or_folder(load: Any, name: str, what: str, model: ModelConfig, **options: Any) -> Any:
    """Call a transformers loader; what goes wrong with `name` is the user's to mend."""
    revision = model.revision if name == model.name_or_path else None
    location, revision_there = locate(name, revision)
    lost = ""
    if os.path.isdir(location):
        if revision is not None:
            raise UserError(f"model.revision: {name} is a folder, which has no revisions")
    elif name.startswith((".", "/", "~")) or location.count("/") > 1:
        raise UserError(
            f"{name}: no such folder (a {what} is a folder, a run folder, or a Hub id such as facebook/opt-125m)"
        )
    else:
        lost = unreachable()
    name = name if revision is None else f"{name}@{revision}"
    require_objects(location)
    try:
        return load(location, revision=revision_there or "main", trust_remote_code=model.trust_remote_code, **options)
    except UserError:
        raise
    except Exception as error:  # what files of strangers bring about is of every kind
        if "contains custom code" in str(error):
            raise UserError(
                f"{name}: the {what} comes with Python code of its own, which is not run; set "
                "model.trust_remote_code=true (in an evaluation: trust_remote_code=true) if you trust its source"
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: the {what} cannot be loaded: {lost or reason}") from error


def require_objects(location: str) -> None:
    """Raises `UserError`, naming the file, where a model's folder (a Hub id: nothing is looked at) has a file that is
    not the JSON object that loaders take it for."""
    for name in _OBJECTS:
        if os.path.isfile(file := os.path.join(location, name)):
            read_object(Path(file))


def _turn_dropout_off(config: PretrainedConfig) -> None:
    """Of parts of a composite too, and of what a router's choice is disturbed by."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _turn_dropout_off(value)
        elif name in _DROPOUT or name.endswith(("_dropout", "_jitter_noise")):
            setattr(config, name, 0 if isinstance(value, int) else 0.0)  # some take no other type than they have
