"""How a model is spoken to: what it reads as a prompt and as an answer, and what of its tokens it said."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from orpo_ray.data.encoding import Encoder
from orpo_ray.data.formats import Message, Tools, Turns
from orpo_ray.data.prompts import Prompt, Question, readable
from orpo_ray.data.records import BadRecord
from orpo_ray.data.round_trip import CHARACTERS_COMPARED, ROUND_TRIPS, lost_in_tokens
from orpo_ray.data.templates import Renderer, read_text_rule, trained_as_served
from orpo_ray.data.written import require_written
from orpo_ray.errors import UserError
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.modeling.loading import load_tokenizer, no_embedding


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
