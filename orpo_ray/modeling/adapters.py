"""LoRA adapters as models to begin with: merged into their base, once, and kept in the cache as whole models.

What is merged is what peft makes of both, but that nothing in it is drawn anew, left out or cut unsaid. Left out:
adapters of other kinds than LoRA, and those that peft itself cannot merge; they are refused.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from orpo_ray.atomic import new_folder
from orpo_ray.config import ModelConfig
from orpo_ray.data.templates import TEXT_RULE
from orpo_ray.errors import UserError
from orpo_ray.hub import unreachable
from orpo_ray.modeling.digests import files_digest
from orpo_ray.modeling.loading import (
    MODEL_FILES,
    Warn,
    load_config,
    load_weights,
    locate,
    log_warning,
    model_folder,
    require_objects,
    require_weights,
    some,
)
from orpo_ray.modeling.weights import ADAPTER, ADAPTER_WEIGHTS, adapter_base, has_tokenizer
from orpo_ray.parsing import read_object

_VERSION = "2"
"""Of how an adapter is merged: what an earlier one made is not found."""
_PREFIX = "base_model.model."
_SAID = 400  # characters of another library's reason
# Where the files of an adapter hold something of every token, by what it is called behind the layer's name, and which
# axis of it the tokens are.
_TOKENS = {"weight": 0, "base_layer.weight": 0, "lora_embedding_A": 1}


def adapter_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder of the adapter that `name` is, a folder or a Hub id; None: it is none, or not there."""
    location, of = locate(name, revision)
    if os.path.isdir(location):
        return Path(location) if (Path(location) / ADAPTER).is_file() else None
    if name.startswith((".", "/", "~")) or location.count("/") != 1:
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    unreachable()
    try:
        hf_hub_download(location, ADAPTER, revision=of or "main")
    except (HfHubHTTPError, OSError, ValueError):  # there is none, or the Hub is not in reach: the loader will say so
        return None
    return model_folder(location if of is None else f"{location}@{of}")


def merged_adapter(
    adapter: Path,
    cache: Path,
    *,
    kind: Literal["policy", "reward"] = "policy",
    trust_remote_code: bool = False,
    warn: Warn = log_warning,
) -> Path:
    """The folder of the whole model that `adapter` makes of its base, kept in `cache` by the content of both.

    Tokenizer and text rule are the adapter's where it has a tokenizer, else the base's; weights are of the base's
    dtype. A language model's adapter may begin a reward model. `warn` is told of what is merged and a person should
    know of. Raises `UserError` where the files of either are not such that they may be opened or lack weights, where
    they do not fit each other, or peft cannot merge them.
    """
    base, described = _base(adapter), read_object(adapter / ADAPTER)
    task = described.get("task_type")
    found = [file for folder in (adapter, base) for pattern in MODEL_FILES for file in sorted(folder.glob(pattern))]
    try:
        if task not in (None, "CAUSAL_LM", *(["SEQ_CLS"] if kind == "reward" else [])):
            raise UserError(f"it is one for the task {task}, not for a language model")
        if described.get("layer_replication"):
            raise UserError("it repeats layers of its base (layer_replication), which is not supported")
        target = cache / "merged" / f"{_VERSION}-{files_digest(file for file in found if file.is_file())}"
        if (target / "config.json").is_file():
            return target
        from transformers import AutoTokenizer

        config = load_config(ModelConfig(name_or_path=str(base), trust_remote_code=trust_remote_code))
        own = has_tokenizer(adapter)
        spoken = adapter if own else base
        tokenizer = AutoTokenizer.from_pretrained(str(spoken), trust_remote_code=trust_remote_code)
        tokens = len(tokenizer) if own else 0
        model = _merge(adapter, base, config, task == "SEQ_CLS", tokens, trust_remote_code, warn)
        with new_folder(target) as new:
            model.save_pretrained(new, safe_serialization=True)
            tokenizer.save_pretrained(new)
            if (rule := spoken / TEXT_RULE).is_file():  # else it is from elsewhere
                shutil.copyfile(rule, new / TEXT_RULE)
    except Exception as error:  # what files of strangers bring about is of every kind
        reason = " ".join(str(error).split())[:_SAID] or type(error).__name__
        raise UserError(f"the adapter {adapter} cannot be merged into its base {base}: {reason}") from error
    return target


def _base(adapter: Path) -> Path:
    """The folder of the model that an adapter was trained on."""
    name = adapter_base(adapter)
    require_objects(str(adapter))
    try:
        return model_folder(name)
    except UserError as error:
        raise UserError(f"{error}; it is the base of the adapter {adapter}") from None


def _merge(
    adapter: Path, base: Path, config: PretrainedConfig, classifies: bool, tokens: int, trust: bool, warn: Warn
) -> PreTrainedModel:
    """What `AutoPeftModel` gives, merged. `config`: of the base. `tokens`: of the adapter's own tokenizer; 0: it has
    none."""
    import peft
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    wrapper: Any = peft.PeftModelForCausalLM
    shapes = _shapes(adapter)
    if classifies:
        auto, wrapper = transformers.AutoModelForSequenceClassification, peft.PeftModelForSequenceClassification
        config.num_labels = shapes.get("score.weight", [config.num_labels])[0]
    network, missing = load_weights(auto, str(base), config=config, warn=warn, dtype="auto", trust_remote_code=trust)
    require_weights(str(base), missing - shapes.keys())
    _make_room(network, shapes, tokens, warn)
    tied = _untie(network)
    model = wrapper.from_pretrained(network, str(adapter))
    # peft warns of what the adapter's files lack, and says it to whoever loads them himself.
    loaded = model.load_adapter(str(adapter), "default")
    require_weights(str(adapter), {*loaded.missing_keys})
    # Of embeddings that it trained and that were resized, peft writes a second copy.
    left = {key for key in loaded.unexpected_keys if not {"modules_to_save", "original_module"} & {*key.split(".")}}
    if left:
        raise UserError(f"{adapter}: its files hold what has no place in its base, such as {some(left)}")
    merged: PreTrainedModel = model.merge_and_unload()
    if tied:
        _tie_again(merged)
    return merged


def _shapes(adapter: Path) -> dict[str, list[int]]:
    """Of all that an adapter's file holds, by its name in the base."""
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        return {key.removeprefix(_PREFIX): file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


def _make_room(network: PreTrainedModel, shapes: dict[str, list[int]], tokens: int, warn: Warn) -> None:
    """Give `network` an embedding for every token that the adapter was trained with.

    Raises `UserError` where only a tokenizer could say which tokens those are, and the adapter's folder holds none.
    """
    embedded = int(network.get_input_embeddings().weight.shape[0])
    held = _rows(network, shapes)
    if held is None:
        if tokens > embedded:
            _resize(network, tokens)
            warn(
                f"the adapter's tokenizer has {tokens - embedded} tokens that neither its files nor its base hold "
                "embeddings of; they are drawn anew"
            )
    elif held != embedded:
        told = f"the adapter holds embeddings of {held} tokens, and its base has {embedded}"
        if not tokens:
            raise UserError(
                f"{told}: its vocabulary was changed before it was trained, and its folder holds no tokenizer that "
                "says how; save the tokenizer of that training there"
            )
        if tokens > held:
            raise UserError(f"{told}, but its tokenizer has {tokens}")
        _resize(network, held)


def _rows(network: PreTrainedModel, shapes: dict[str, list[int]]) -> int | None:
    """Of how many tokens the adapter holds something; None: it holds nothing of single tokens."""
    names = {id(module): name for name, module in network.named_modules()}
    into, out = network.get_input_embeddings(), network.get_output_embeddings()
    places = [
        (names[id(layer)], part, axis) for layer in (into, out) if layer is not None for part, axis in _TOKENS.items()
    ]
    if out is not None:
        places.append((names[id(out)], "lora_B.weight", 0))
    found = {shapes[key][axis] for name, part, axis in places if (key := f"{name}.{part}") in shapes}
    return max(found, default=None)


def _resize(network: PreTrainedModel, tokens: int) -> None:
    torch.manual_seed(0)  # of rows that the adapter may not hold
    network.resize_token_embeddings(tokens)


def _untie(network: PreTrainedModel) -> bool:
    """Give an output layer that is tied to the embeddings weights of its own, since an adapter may change either alone.
    Whether there is one."""
    out, into = network.get_output_embeddings(), network.get_input_embeddings()
    if out is None or out.weight is not into.weight:
        return False
    out.weight = torch.nn.Parameter(into.weight.detach().clone())
    return True


def _tie_again(network: PreTrainedModel) -> None:
    """Undo `_untie` where both are still the same; else the model says that they are not."""
    out, into, config = network.get_output_embeddings(), network.get_input_embeddings(), network.config
    tied = bool(out.weight.equal(into.weight))
    if tied:
        out.weight = into.weight
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied
