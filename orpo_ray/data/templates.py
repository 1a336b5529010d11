"""Chat templates: preference pairs to the text that is tokenised, prompt and responses apart.

Plain text is taken verbatim unless `data.chat_template` is set; message lists need a template, the
configuration's or the tokenizer's own. What a template itself writes may hold special tokens and they become
their ids; what the *data* holds never does: a `</s>` in somebody's answer is text, and must not end it.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orpo_ray.data.formats import Message
from orpo_ray.data.records import BadRecord, one_line
from orpo_ray.data.time_limit import TimeOut, limited
from orpo_ray.errors import UserError
from orpo_ray.parsing import read_member

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Layout of the authors' code for a tokenizer without a template: `<|role|>`, newline, text, EOS, newline.
_ORPO = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NAMED_TEMPLATES = {
    "orpo": _ORPO,
    # The same with a system turn first, empty where the messages have none, as Zephyr was trained.
    "zephyr": "{% if messages[0]['role'] != 'system' %}{{ '<|system|>\n' + eos_token + '\n' }}{% endif %}" + _ORPO,
    # Turns are parted, not ended, by a newline, so that a response ends with its mark.
    "chatml": (
        "{% for message in messages %}"
        "{% if not loop.first %}{{ '\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Anthropic's dialogues, as HH-RLHF stands.
    "hh-rlhf": (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] }}"
        "{% elif message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
        "{% else %}{{ message['content'] }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
    ),
}


Turns = str | list[Message]
"""A prompt or a completion: text, or messages."""

TEXT_RULE = "orpo_ray.json"
RENDER_SECONDS = 10
"""Of computing, for one record: more is a template that does not end."""


class Segment(NamedTuple):
    """A stretch of text to tokenise. `control`: special tokens written in it stand for themselves."""

    text: str
    control: bool


def resolve_template(setting: str | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The Jinja text for message lists: `data.chat_template` (a name or a text), or the tokenizer's own.

    None where neither exists. Raises `UserError` for an unknown name.
    """
    if setting is None:
        try:
            return str(tokenizer.get_chat_template())
        except ValueError:  # it has none, or several and no default
            return None
    if "{{" in setting or "{%" in setting:
        return setting
    if setting not in NAMED_TEMPLATES:
        close = difflib.get_close_matches(setting, NAMED_TEMPLATES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        names = ", ".join(NAMED_TEMPLATES)
        raise UserError(f"data.chat_template: {setting!r} is neither one of {names} nor a Jinja text{hint}")
    return NAMED_TEMPLATES[setting]


def write_text_rule(folder: Path, through_template: bool) -> None:
    """Note in a model's folder whether plain text, too, went through its chat template when it was trained."""
    (folder / TEXT_RULE).write_text(json.dumps({"chat_template_for_text": through_template}) + "\n", encoding="utf-8")


def read_text_rule(folder: Path) -> bool:
    """What `write_text_rule` noted; False for a model from elsewhere. Raises `UserError` where it cannot be read."""
    file = folder / TEXT_RULE
    if not file.is_file():
        return False
    return bool(read_member(file, "chat_template_for_text", bool))


class Renderer:
    """Renders pairs for one tokenizer and one `data.chat_template`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, setting: str | None, *, overrides_text: bool | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.template = resolve_template(setting, tokenizer)
        self.overrides_text = setting is not None if overrides_text is None else overrides_text
        """Whether plain text, too, goes through the template, as messages."""
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        longest_first = sorted(map(re.escape, special), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first) or r"(?!)")
        # Stands for a special token that the data holds while the template runs; no data can foresee it.
        self._mark = f"\ue000{secrets.token_hex(8)}:"
        self._marked = re.compile(f"{self._mark}(\\d+)\ue001")

    def rendered(self, prompt: Turns, completions: Sequence[Turns]) -> list[list[Segment]]:
        """The text of a prompt, and of each completion of it, without the first BOS and the last EOS, which are added
        as ids. Raises `BadRecord` where the template refuses the messages, `UserError` where no template fits."""
        if isinstance(prompt, str):
            return [[Segment(str(text), control=False)] for text in (prompt, *completions)]
        held: list[str] = []
        messages = self._hold(prompt, held)
        opening = self._render(messages, add_generation_prompt=True)
        texts = [self._completion(opening, messages + self._hold(turns, held)) for turns in completions]
        bos = self.tokenizer.bos_token
        shown = opening
        while bos and shown.startswith(bos):
            shown = shown.removeprefix(bos)
        return [self._segments(text, held) for text in (shown, *texts)]

    @cached_property
    def turn_end(self) -> str:
        """What the template writes after an answer's text and before its EOS: a response that a model gives ends so."""
        mark = "answer"
        question, answer = Message(role="user", content="question"), Message(role="assistant", content=mark)
        try:
            opening = self._render([question], add_generation_prompt=True)
            return self._completion(opening, [question, answer]).partition(mark)[2]
        except BadRecord as error:
            raise UserError(f"the chat template cannot write a question and an answer: {error}") from None

    def _completion(self, prompt: str, messages: list[Message]) -> str:
        """What rendering the whole adds to the rendered prompt, up to its last EOS (not included)."""
        whole = self._render(messages, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise UserError(
                "the chat template renders a prompt differently once a response follows, so the two cannot "
                "be parted; set data.chat_template to one that does not (such as chatml)"
            )
        completion = whole[len(prompt) :]
        eos = self.tokenizer.eos_token
        while eos:
            text, found, after = completion.rpartition(eos)
            if not found or after.strip():
                break
            completion = text
        return completion

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        import jinja2

        if self.template is None:
            name = self.tokenizer.name_or_path or "the tokenizer"
            raise UserError(
                f"{name}: has no chat template, and the data are message lists; set data.chat_template to "
                f"one of {', '.join(NAMED_TEMPLATES)}, or to a Jinja text"
            )
        try:
            # transformers renders in jinja2's ImmutableSandboxedEnvironment: no attribute leads out of it.
            with limited(RENDER_SECONDS):
                return str(
                    self.tokenizer.apply_chat_template(
                        messages,
                        chat_template=self.template,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                    )
                )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"data.chat_template, line {error.lineno}: {error.message}") from None
        except TimeOut:
            raise UserError(f"data.chat_template: takes over {RENDER_SECONDS} seconds to write one record") from None
        except Exception as error:  # a template is a program, and can fail in any way: 1 / 0, range(10**9), no end
            raise BadRecord("refused by the chat template", one_line(error)) from None

    def _hold(self, messages: Turns, held: list[str]) -> list[Message]:
        """`messages` with every special token in their text replaced by a mark; the tokens join `held`."""

        def mark(match: re.Match[str]) -> str:
            held.append(match[0])
            return f"{self._mark}{len(held) - 1}\ue001"

        assert not isinstance(messages, str)
        contents = [self._special.sub(mark, message["content"]) for message in messages]
        return [Message(role=m["role"], content=text) for m, text in zip(messages, contents, strict=True)]

    def _segments(self, text: str, held: list[str]) -> list[Segment]:
        if not held:
            return [Segment(text, control=True)]
        pieces = self._marked.split(text)  # text, number, text, number, ..., text
        segments = [
            Segment(held[int(piece)], control=False) if i % 2 else Segment(piece, control=True)
            for i, piece in enumerate(pieces)
        ]
        return [segment for segment in segments if segment.text]
