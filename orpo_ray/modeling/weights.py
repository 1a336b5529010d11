"""Which files a model's weights are opened from: safetensors of its own folder, and nothing else.

The libraries that open them follow what comes with a model: an index names files of any kind and place, a configuration
another file of weights, an adapter another model. A name that ends in `.safetensors` they never unpickle.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from orpo_ray.errors import UserError
from orpo_ray.parsing import member, read_object

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SUFFIX = ".safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def has_tokenizer(folder: Path) -> bool:
    """Whether there is one in `folder`; transformers makes an empty one up where there is none."""
    return any((folder / name).is_file() for name in _TOKENIZER)


def require_safetensors(location: str, config: PretrainedConfig, revision: str = "main") -> str:
    """The revision at which `location`, a folder or a Hub id, may be loaded with its `config` of `revision`: the commit
    that was looked at, where that matters.

    Raises `UserError` where weights would come from anywhere else than its own safetensors, or these are not whole. Of
    a Hub id, whose files are not here yet, the names are looked at.
    """
    parts = [getattr(config, name, None) for name in config.sub_configs]  # of which transformers may load the text's
    for part in (config, *parts):
        if getattr(part, "transformers_weights", None) is not None:
            raise UserError(
                f"{location}: its config.json names a file of weights (transformers_weights), which is not supported; "
                f"call that file {WEIGHTS}"
            )
    if not os.path.isdir(location):
        return _require_safe_names_on_the_hub(location, revision)
    folder = Path(location)
    if (folder / ADAPTER).is_file():  # transformers would load it without a word
        raise UserError(f"{folder}: holds an adapter ({ADAPTER}); name its merged model, or its base")
    for file in weight_files(folder):
        require_readable(file)
    return revision


def weight_files(folder: Path) -> list[Path]:
    """The files that loaders open in a model's folder. Raises `UserError` where there are none, or an index names what
    is none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: holds no weights in safetensors (no {WEIGHTS})")
    return files_of_index(folder / INDEX)


def files_of_index(index: Path) -> list[Path]:
    """The files that an index names. Raises `UserError` where one is not in safetensors or not beside the index."""
    found = read_object(index)
    try:
        member(found, "metadata", dict)
        names = list(member(found, "weight_map", dict).values())
        if not names:
            raise ValueError("weight_map names no file")
        for name in names:
            _require_own(name)
    except ValueError as error:
        raise UserError(f"{index}: {error}") from None
    return [index.parent / name for name in sorted(set(names))]


def _require_own(name: object) -> None:
    """Raises `ValueError` where an index names what is not in safetensors, or not beside it."""
    if not isinstance(name, str) or not name.endswith(SUFFIX):
        raise ValueError(f"weight_map names {name!r:.80}, which is not in safetensors; a pickle can hold any program")
    if Path(name).name != name or "\0" in name:
        raise ValueError(f"weight_map names {name!r:.80}, which is no file of its own folder")


def require_readable(file: Path) -> None:
    """Raises `UserError` where `file` is no whole safetensors file, by its header and its size."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except FileNotFoundError:
        raise UserError(f"{file}: no such file of weights") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file}: not a whole safetensors file: {error}") from None


def adapter_base(folder: Path) -> str:
    """The model that the LoRA adapter in `folder` belongs to, a Hub id with its revision behind it. Raises `UserError`
    where its files are no such adapter's, or not in safetensors."""
    config = folder / ADAPTER
    found = read_object(config)
    try:
        base: str = member(found, "base_model_name_or_path", str)
        if (of_type := member(found, "peft_type", str)) != "LORA":  # others may load more files than these two
            raise ValueError(f"peft_type is {of_type!r:.40}, and only LORA is supported")
        revision = member({"revision": None, **found}, "revision", str, type(None))
    except ValueError as error:
        raise UserError(f"{config}: {error}") from None
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():  # peft would take pickled ones, which can hold any program
        raise UserError(f"the adapter {folder} holds no weights in safetensors (no {weights.name})")
    require_readable(weights)
    return base if revision is None or os.path.isdir(base) else f"{base}@{revision}"


def _require_safe_names_on_the_hub(name: str, revision: str) -> str:
    """The commit whose index was looked at; `revision` where the weights are one file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    found = {}
    for file in (ADAPTER, INDEX):
        try:
            found[file] = Path(hf_hub_download(name, file, revision=revision))
        except EntryNotFoundError:  # or it is not in the cache and the Hub not in reach: the loader will say so
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise UserError(f"{name}: the Hub does not give {file}: {str(error).strip().splitlines()[0]}") from error
    if ADAPTER in found:
        raise UserError(f"{name}: holds an adapter ({ADAPTER}); name its merged model, or its base")
    if INDEX not in found:
        return revision
    files_of_index(found[INDEX])
    return found[INDEX].parent.name
