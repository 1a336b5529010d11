"""The models of an evaluation: where their files are, what identifies them, and how they are spoken to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from orpo_ray.atomic import new_folder
from orpo_ray.config import ModelConfig
from orpo_ray.data.prompts import Prompt, Question
from orpo_ray.data.templates import Renderer, Turns, read_text_rule, write_text_rule
from orpo_ray.data.tokenization import token_ids, tokenizer_digest
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_config, load_tokenizer

TRUTH = "toy"
"""As a reward model: the embedded world's own scorer."""

_STORED: dict[str, Literal["float32", "bfloat16", "float16"]] = {"bfloat16": "bfloat16", "float16": "float16"}
_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_ADAPTER = "adapter_config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SAMPLES = 64  # stretches of a weight file that its digest reads
_STRETCH = 1 << 16


@dataclass(frozen=True)
class EvaluatedModel:
    """A policy or a reward model, found and checked."""

    label: str
    name: str
    """As the configuration names it."""
    folder: Path
    """Hugging Face files; of an adapter, those of the merged model."""
    digest: str
    """Of weights, configuration and tokenizer."""
    stored_dtype: Literal["float32", "bfloat16", "float16"]
    """What its weights are kept in, and vLLM computes in."""
    dtype: Literal["float32", "bfloat16"]
    """What the packed forward computes in: `stored_dtype` unless asked otherwise, float32 for float16."""
    context: int | None
    """Positions that the model has; None: no limit."""
    trust_remote_code: bool

    @property
    def settings(self) -> ModelConfig:
        return ModelConfig(name_or_path=str(self.folder), dtype=self.dtype, trust_remote_code=self.trust_remote_code)


def find_policy(label: str, name: str, cache: Path, *, trust_remote_code: bool = False) -> EvaluatedModel:
    """The policy that a label of `models` names. `cache`: where a merged adapter goes.

    Raises `UserError`, naming label and folder, where it is not there, lacks weights or tokenizer, or is no
    causal language model.
    """
    key = f"models.{label}"
    folder = _folder(key, name)
    if (folder / _ADAPTER).is_file():
        folder = _merged(key, folder, cache, trust_remote_code)
    model = _describe(key, label, name, folder, "auto", trust_remote_code)
    architectures = load_config(model.settings).architectures or []
    if any("ForSequenceClassification" in architecture for architecture in architectures):
        raise UserError(f"{key}: {name} is a classifier, which writes no text; name it under reward_models")
    return model


def find_reward_model(
    label: str, name: str, dtype: Literal["auto", "float32", "bfloat16"], *, trust_remote_code: bool = False
) -> EvaluatedModel:
    """The reward model that a label of `reward_models` names; raises `UserError` where it is none of one label."""
    key = f"reward_models.{label}"
    folder = _folder(key, name)
    if (folder / _ADAPTER).is_file():
        raise UserError(f"{key}: {name} is an adapter; name the merged model, which its run keeps in model/")
    model = _describe(key, label, name, folder, dtype, trust_remote_code)
    config = load_config(model.settings)
    if not any("ForSequenceClassification" in architecture for architecture in config.architectures or []):
        raise UserError(f"{key}: {name} is no reward model: it has no score head (train one with objective reward)")
    if config.num_labels != 1:
        raise UserError(f"{key}: {name} is a classifier of {config.num_labels} labels, but a reward model has one")
    return model


class Speaker:
    """How a model is spoken to: its tokenizer, its chat template, one BOS, one EOS, as in its training."""

    def __init__(self, model: EvaluatedModel, chat_template: str | None) -> None:
        """`chat_template`: `prompts.chat_template`, which overrides the model's own."""
        self.tokenizer = load_tokenizer(model.settings)
        through_template = chat_template is not None or read_text_rule(model.folder)
        self.renderer = Renderer(self.tokenizer, chat_template, overrides_text=through_template)
        self.wants_messages: bool = through_template
        """Whether text, too, reaches it as messages."""
        self.bos: int | None = self.tokenizer.bos_token_id
        self.eos: int = self.tokenizer.eos_token_id

    @property
    def template(self) -> str:
        """The template in a word: `none` for text as it stands, else the beginning of its digest."""
        if self.renderer.template is None:
            return "none"
        return hashlib.blake2b(self.renderer.template.encode(), digest_size=6).hexdigest()

    def question(self, prompt: Prompt) -> Question:
        """The prompt, and the data set's completions, in the form that this model takes them in."""
        return prompt.form(self.wants_messages)

    def rows(self, prompt: Turns, completions: Sequence[Completion] = ()) -> list[list[int]]:
        """Token ids of the prompt, BOS first, and of each completion, EOS last unless it was cut.

        Raises `BadRecord` or `UserError` where the template does not fit the prompt.
        """
        texts = self.renderer.rendered(prompt, [completion.turns for completion in completions])
        ids, *endings = token_ids(self.tokenizer, texts)
        start = [] if self.bos is None else [self.bos]
        ends: list[list[int]] = [[] if completion.cut else [self.eos] for completion in completions]
        return [start + ids, *(ids + end for ids, end in zip(endings, ends, strict=True))]

    def answer(self, prompt: Prompt, text: str, *, cut: bool) -> Answer:
        """What this model said when it generated `text`: a message goes without its template's closing mark."""
        is_text = isinstance(self.question(prompt).prompt, str)
        return Answer(text if is_text else text.removesuffix(self.renderer.turn_end), cut, is_text)

    def completion(self, prompt: Prompt, answer: Answer) -> Completion:
        """Another model's answer in the form that this one takes it in.

        Text that continues `Assistant:` begins with a space, a message does not.
        """
        question = self.question(prompt).prompt
        text = answer.text
        if not isinstance(question, str):
            return Completion([{"role": "assistant", "content": text.strip() if answer.is_text else text}], answer.cut)
        apart = answer.is_text or not text or text[0].isspace() or question[-1].isspace()
        return Completion(text if apart else f" {text}", answer.cut)


class Completion(NamedTuple):
    """A completion of a prompt, as one model takes it in."""

    turns: Turns
    cut: bool
    """Whether `max_tokens` ended it, so that no EOS follows."""


class Answer(NamedTuple):
    """What a policy answered."""

    text: str
    cut: bool
    is_text: bool
    """Written as the continuation of plain text, not as a message."""


def _folder(key: str, name: str) -> Path:
    """The local folder of a run, a folder or a Hub id."""
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # `Path.is_dir` raises where a name is too long
        if (path / "model" / "config.json").is_file():
            path = path / "model"
        elif not (path / "config.json").is_file() and not (path / _ADAPTER).is_file():
            is_run = (path / "metrics.jsonl").is_file()
            hint = "the run has none yet; train it further" if is_run else "give a run folder or its model/ folder"
            raise UserError(f"{key}: {name} holds no model (no config.json): {hint}")
        return path.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{key}: {name}: no such folder (a model is a run folder, a folder, or a Hub id)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{key}: {name} is no folder here, and the Hub does not give it: {reason}") from error


def _describe(
    key: str, label: str, name: str, folder: Path, dtype: Literal["auto", "float32", "bfloat16"], trust: bool
) -> EvaluatedModel:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{key}: {folder} holds no weights in safetensors (no *.safetensors file)")
    if not any((folder / name).is_file() for name in _TOKENIZER):  # transformers would make an empty one up
        raise UserError(f"{key}: {folder} holds no tokenizer (no tokenizer.json)")
    settings = ModelConfig(name_or_path=str(folder), trust_remote_code=trust)
    try:
        config, tokenizer = load_config(settings), load_tokenizer(settings)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    stored = _STORED.get(str(getattr(config, "dtype", None)).removeprefix("torch."), "float32")
    computed: Literal["float32", "bfloat16"] = "bfloat16" if stored == "bfloat16" else "float32"
    digest = hashlib.blake2b(tokenizer_digest(tokenizer).encode(), digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    digest.update(json.dumps([tokenizer.chat_template, read_text_rule(folder)]).encode())
    for file in weights:
        _update(digest, file)
    return EvaluatedModel(
        label=label, name=name, folder=folder, digest=digest.hexdigest(),
        stored_dtype=stored, dtype=computed if dtype == "auto" else dtype,
        context=getattr(config, "max_position_embeddings", None), trust_remote_code=trust,
    )  # fmt: skip


def _update(digest: hashlib.blake2b, file: Path) -> None:
    """Add a weight file: its size and evenly spaced stretches, header included. Training moves every weight."""
    size = file.stat().st_size
    digest.update(f"{file.name} {size}".encode())
    with file.open("rb") as content:
        for i in range(_SAMPLES):
            content.seek(i * max(0, size - _STRETCH) // (_SAMPLES - 1))
            digest.update(content.read(_STRETCH))


def _merged(key: str, adapter: Path, cache: Path, trust: bool) -> Path:
    """A LoRA adapter merged into its base, kept in `cache` by the adapter's content."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    digest = hashlib.blake2b((adapter / _ADAPTER).read_bytes(), digest_size=16)
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():  # peft would take pickled ones, which can hold any program
        raise UserError(f"{key}: the adapter {adapter} holds no weights in safetensors (no {weights.name})")
    _update(digest, weights)
    target = cache / "merged" / digest.hexdigest()
    if (target / "config.json").is_file():
        return target
    base = str(json.loads((adapter / _ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path"))
    try:
        model = AutoPeftModelForCausalLM.from_pretrained(
            str(adapter), dtype="auto", use_safetensors=True, trust_remote_code=trust
        ).merge_and_unload()
        own = (adapter / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(str(adapter) if own else base, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{key}: the adapter {adapter} cannot be merged into its base {base}: {reason}") from error
    with new_folder(target) as new:
        model.save_pretrained(new, safe_serialization=True)
        tokenizer.save_pretrained(new)
        write_text_rule(new, read_text_rule(adapter if own else Path(base)))
    return target
