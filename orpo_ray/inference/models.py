"""The models of an evaluation: where their files are, what identifies them, and how they are spoken to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from safetensors import SafetensorError

from orpo_ray.config import ModelConfig
from orpo_ray.config.evaluation import AskedModel
from orpo_ray.data.encoding import Encoder
from orpo_ray.data.formats import Message, Tools, Turns
from orpo_ray.data.prompts import Prompt, Question, readable
from orpo_ray.data.records import BadRecord
from orpo_ray.data.round_trip import CHARACTERS_COMPARED, ROUND_TRIPS, lost_in_tokens
from orpo_ray.data.templates import TEXT_RULE, Renderer, read_text_rule, trained_as_served
from orpo_ray.data.tokenization import tokenizer_digest
from orpo_ray.data.written import require_written
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
    no_embedding,
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


class Speaker:
    """How a model is spoken to: its tokenizer and its chat template, as in its training."""

    def __init__(self, model: EvaluatedModel, chat_template: str | None) -> None:
        """`chat_template`: `prompts.chat_template`, which overrides the model's own. Raises `UserError`, naming the
        key, for an unknown one."""
        self.key = "prompts.chat_template"
        """Of the configuration, where its template is set, or can be; in training a reward model has its own alone."""
        if model.key.startswith("rollouts."):
            self.key = f"the chat template of {model.key} in its tokenizer"
        elif model.chat_template or (chat_template is None and model.key.startswith(("models.", "judges."))):
            self.key = f"{model.key}.chat_template"
        chat_template = model.chat_template or chat_template
        self.tokenizer = load_tokenizer(model.settings)
        through_template = chat_template is not None or read_text_rule(model.folder)
        self._as_before = chat_template is None and not trained_as_served(model.folder)
        try:
            self.renderer = Renderer(self.tokenizer, chat_template, overrides_text=through_template)
        except UserError as error:
            raise UserError(self.in_its_words(error)) from None
        if self._as_before and self.renderer.template is not None and not self.renderer.writes_bos:
            first = "{{ bos_token }}" + self.renderer.template
            self.renderer = Renderer(self.tokenizer, first, overrides_text=through_template)
        self.wants_messages: bool = through_template
        """Whether text, too, reaches it as messages."""
        self.encode = Encoder(self.tokenizer)
        if self._as_before and self.tokenizer.bos_token_id is not None:
            self.encode.start = [self.tokenizer.bos_token_id]
        self.remarks: list[str] = []
        """What tokenizer and template do to the prompts that a person may not expect."""
        self._model = model

    def in_its_words(self, error: Exception) -> str:
        """What `error` says, of the key that sets a template in an evaluation: in training it is another."""
        return str(error).replace("data.chat_template", self.key)

    @property
    def template(self) -> str:
        """The template in a word: `none` for text as it stands, else the beginning of its digest."""
        if self.renderer.template is None:
            return "none"
        return hashlib.blake2b(self.renderer.template.encode(), digest_size=6).hexdigest()

    @cached_property
    def bos(self) -> int | None:
        """BOS, where what this model reads begins with it."""
        bos: int | None = self.tokenizer.bos_token_id
        if not self.wants_messages:
            return bos if self.encode.start[:1] == [bos] else None
        try:
            begins = self.rows([Message(role="user", content="question")])[0][:1]
        except BadRecord:  # the template wants other messages; an evaluation has some
            return None
        return bos if begins == [bos] else None

    def look_at(self, prompts: Sequence[Prompt]) -> None:
        """Have `remarks` say what becomes of the first prompts. Raises `UserError` where the tokenizer does not give
        their text back."""
        for prompt in prompts[:ROUND_TRIPS]:
            try:
                lost = lost_in_tokens(self.tokenizer, readable(self.question(prompt).prompt)[-CHARACTERS_COMPARED:])
            except UserError as error:
                raise UserError(f"{prompt.location}: {error}") from None
            self.remarks += [lost] if lost and lost not in self.remarks else []
        if any(not isinstance(self.question(prompt).prompt, str) for prompt in prompts):
            self.remarks += self.renderer.remarks

    def question(self, prompt: Prompt) -> Question:
        """The prompt, and the data set's completions, in the form that this model takes them in."""
        return prompt.form(self.wants_messages)

    def rows(
        self, prompt: Turns, completions: Sequence[Completion] = (), tools: Tools | None = None
    ) -> list[list[int]]:
        """Token ids of the prompt, as a server asks it, and of each completion, through its end of turn unless it was
        cut.

        Raises `BadRecord` or `UserError` where the template does not fit the prompt, or the model has no embedding for
        a token.
        """
        turns, cut = [completion.turns for completion in completions], [completion.cut for completion in completions]
        [encoded] = self.encode([self.renderer.rendered(prompt, turns, cut, tools)])
        rows = [encoded.prompt, *encoded.responses]
        if self._as_before:
            eos = self.tokenizer.eos_token_id
            rows[1:] = [
                ids if is_cut or ids[-1:] == [eos] else [*ids, eos] for ids, is_cut in zip(rows[1:], cut, strict=True)
            ]
        highest = max(map(max, filter(None, rows)), default=0)
        if self._model.embeddings is not None and highest >= self._model.embeddings:
            raise UserError(no_embedding(self.tokenizer, highest, self._model.name, self._model.embeddings))
        return rows

    def stop_ids(self, prompts: Sequence[Prompt]) -> tuple[int, ...]:
        """Tokens, beside the tokenizer's EOS, that end an answer: what the template ends one with, and every EOS of
        `generation_config.json`."""
        return self.ends(messages=any(not isinstance(self.question(prompt).prompt, str) for prompt in prompts))

    def ends(self, *, messages: bool) -> tuple[int, ...]:
        """See `stop_ids`. `messages`: whether it is asked in any."""
        ids = {*self._model.eos_ids, *(self.renderer.end_ids if messages else ())}
        return tuple(sorted(ids - {self.tokenizer.eos_token_id}))

    def answer(self, prompt: Prompt, text: str, *, cut: bool) -> Answer:
        """What this model said when it generated `text`: a message goes without what its template writes around it."""
        is_text = isinstance(self.question(prompt).prompt, str)
        return Answer(text if is_text else self.renderer.said(text), cut, is_text)

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


def prompt_ids(speaker: Speaker, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Of every prompt, as a model is asked it. Raises `UserError`, naming the record, where that cannot be."""
    speaker.look_at(prompts)
    return [ids_of(speaker, prompt) for prompt in prompts]


def ids_of(speaker: Speaker, prompt: Prompt) -> list[int]:
    """Of one prompt. Raises as `prompt_ids` does."""
    try:
        question = speaker.question(prompt)
        require_written(speaker.renderer, question.prompt, question.completions, question.tools)
        return speaker.rows(question.prompt, tools=question.tools)[0]
    except (BadRecord, UserError) as error:
        raise UserError(f"{prompt.location}: {speaker.in_its_words(error)}") from None


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
        if os.path.isdir(os.path.expanduser(name)) or folder.parent.name != "snapshots"
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
