"""Chat templates: preference pairs to the text that is tokenised, a prompt and what follows it in each conversation.

A prompt is rendered as a server does that asks a model; a response is what the whole conversation, as
`apply_chat_template` writes it, has behind that, up to the end of its turn. Plain text is taken verbatim unless
`data.chat_template` is set; message lists need a template, the configuration's or the tokenizer's own. What a template
itself writes may hold special tokens and they become their ids; what the *data* holds never does: a `</s>` in
somebody's answer is text, and must not end it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orpo_ray.config.data import DATE
from orpo_ray.data.formats import Message, Tools, Turns
from orpo_ray.data.formats.reading import CHANCE
from orpo_ray.data.named_templates import NAMED_TEMPLATES, resolve_template, template_as_given
from orpo_ray.data.records import BadRecord, one_line
from orpo_ray.data.special_tokens import control_tokens, special_tokens, text_start
from orpo_ray.data.template_frame import Frame, frame_of
from orpo_ray.data.time_limit import TimeOut, limited
from orpo_ray.errors import UserError
from orpo_ray.parsing import read_member, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_RULE = "orpo_ray.json"
_AS_SERVED = "as served"
_WORD = "zqwordqz"  # what no template takes apart
RENDER_SECONDS = 10
"""Of computing, for one record: more is a template that does not end."""


class Segment(NamedTuple):
    """A stretch of text to tokenise. `control`: special tokens written in it stand for themselves."""

    text: str
    control: bool


class Response(NamedTuple):
    """What stands behind a prompt in the whole conversation, up to the end of its turn."""

    segments: list[Segment]
    closed: bool
    """Whether a token that ends the turn is in it; if not, EOS, which is added as an id, is its end."""
    cut: bool = False
    """It did not end, so that neither follows."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt and responses to it, as text."""

    prompt: list[Segment]
    responses: list[Response]
    verbatim: bool
    """Text as it stands: before it comes what the tokenizer puts before any text."""

    @property
    def characters(self) -> int:
        """Those that are tokenised at once, with the prompt before each response."""
        prompt, *responses = (
            sum(len(segment.text) for segment in part)
            for part in (self.prompt, *(response.segments for response in self.responses))
        )
        return prompt * max(len(responses), 1) + sum(responses)


def write_text_rule(folder: Path, through_template: bool) -> None:
    """Note in a model's folder whether plain text, too, went through its chat template when it was trained."""
    held = {"chat_template_for_text": through_template, "tokens": _AS_SERVED}
    (folder / TEXT_RULE).write_text(json.dumps(held) + "\n", encoding="utf-8")


def read_text_rule(folder: Path) -> bool:
    """What `write_text_rule` noted; False for a model from elsewhere. Raises `UserError` where it cannot be read."""
    file = folder / TEXT_RULE
    if not file.is_file():
        return False
    return bool(read_member(file, "chat_template_for_text", bool))


def trained_as_served(folder: Path) -> bool:
    """False for a model of an earlier version, whose prompts began with BOS and whose responses ended with EOS whatever
    the template wrote. Raises `UserError` where `write_text_rule`'s note cannot be read."""
    file = folder / TEXT_RULE
    return not file.is_file() or read_object(file).get("tokens") == _AS_SERVED


class Renderer:
    """Renders prompts and responses for one tokenizer and one `data.chat_template`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        setting: str | None,
        *,
        overrides_text: bool | None = None,
        date: str = DATE,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = resolve_template(setting, tokenizer, date)
        self.overrides_text = setting is not None if overrides_text is None else overrides_text
        """Whether plain text, too, goes through the template, as messages."""
        self._fixed_date = date if self.template != template_as_given(setting, tokenizer) else None
        self._special = special_tokens(tokenizer)
        # Stands for a special token that the data holds while the template runs; no data can foresee it. Digits alone,
        # and so many of them for each token, stand in JSON as they are, and in upper case.
        self._mark = f"7{secrets.randbelow(10**24):024}"
        self._marked = re.compile(f"{self._mark}(\\d{{9}})")

    def rendered(
        self, prompt: Turns, completions: Sequence[Turns], cut: Sequence[bool] = (), tools: Tools | None = None
    ) -> Rendered:
        """A prompt as a server asks it, with `tools` where the template puts them, and each completion of it.

        Raises `BadRecord` where the template refuses the messages, `UserError` where no template fits.

        `cut`: which completions did not end, so that no end of turn follows; default: none.
        """
        cuts = cut or [False] * len(completions)
        if isinstance(prompt, str):
            responses = [
                Response([Segment(str(text), control=False)], closed=False, cut=is_cut)
                for text, is_cut in zip(completions, cuts, strict=True)
            ]
            return Rendered([Segment(prompt, control=False)], responses, verbatim=True)
        held: list[str] = []
        messages, tools = self._hold(prompt, held), self._hold(tools, held)
        wholes = [self._whole(messages, self._hold(turns, held), tools) for turns in completions]
        opening = self._opening(messages, tools)
        self._require_turns(messages, opening, lambda others: self._opening(others, tools))
        opening = self._parted(opening, wholes)
        responses = []
        for whole, is_cut in zip(wholes, cuts, strict=True):
            text, closed = self._ended(whole.removeprefix(opening), cut=is_cut)
            responses.append(Response(self._segments(text, held), closed, is_cut))
        return Rendered(self._segments(opening, held), responses, verbatim=False)

    def conversation(self, prompt: Turns, completion: Turns, tools: Tools | None = None) -> list[Segment]:
        """The whole conversation as the template writes it, with what stands behind the end of turn; of plain text both
        parts. Raises as `pair` does."""
        if isinstance(prompt, str):
            return [Segment(prompt + str(completion), control=False)]
        held: list[str] = []
        messages, answer, tools = self._hold(prompt, held), self._hold(completion, held), self._hold(tools, held)
        whole = self._whole(messages, answer, tools)
        self._require_turns(messages, whole, lambda others: self._whole(others, answer, tools))
        return self._segments(whole, held)

    @cached_property
    def frame(self) -> Frame | None:
        """What the template writes around an answer; None where one question and one answer do not tell."""
        if self.template is None:
            return None
        try:
            return frame_of(self._render, self._control, self.tokenizer.eos_token)
        except BadRecord:  # it wants other messages, tools or a system turn, say
            return None

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return control_tokens(self.tokenizer)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The token that the template ends an answer with; none where EOS follows its text, or there is no template."""
        if self.frame is None or not self.frame.closes:
            return ()
        *_, last = self._control.finditer(self.frame.end)
        return (int(self.tokenizer.convert_tokens_to_ids(last[0])),)

    def said(self, text: str) -> str:
        """The message that a model gave when it generated `text` behind a prompt: without what the template, not the
        model, would write around it, and with what the generation prompt began it with."""
        frame = self.frame
        if frame is None:
            return text
        end, header, surplus = (self._special.sub("", part) for part in (frame.end, frame.header, frame.surplus))
        text = text.removesuffix(frame.end).removesuffix(end)
        return surplus + text.removeprefix(frame.header).removeprefix(header)

    @cached_property
    def prompt_remarks(self) -> list[str]:
        """What the template does to prompts that a person may not expect, each in a line."""
        if self.template is None:
            return []
        said, frame = [], self.frame
        if self._fixed_date is not None:
            said.append(f"the chat template writes today's date: it is {self._fixed_date} on every day (data.date)")
        start = self.tokenizer.convert_ids_to_tokens(text_start(self.tokenizer))
        if frame is not None and start and not self._begins_with("".join(start)):
            said.append(
                f"the chat template writes no {''.join(start)}, which the tokenizer puts before text: none is added"
            )
        if frame is not None and not frame.always_prompts and not frame.prompts:
            header = f": {frame.header!r} is part of each response" if frame.header.strip() else ""
            said.append(f"the chat template has no generation prompt{header}")
        return said

    @cached_property
    def remarks(self) -> list[str]:
        """The same of prompts and responses."""
        said, frame = [*self.prompt_remarks], self.frame
        if frame is None:
            return said
        if frame.always_prompts:
            said.append(
                f"the chat template ends every conversation with {frame.rest!r}, which is left out of responses"
            )
        if frame.prompts and frame.header.strip():
            said.append(f"the chat template writes {frame.header!r} into each response")
        if frame.surplus:
            said.append(
                f"the chat template's generation prompt adds {frame.surplus!r}, which servers will write and answers "
                "of the data do not begin with; prompts are trained on without it where a response lacks it: set "
                "data.chat_template to one that leaves it out"
            )
        return said

    def _begins_with(self, start: str) -> bool:
        return self._render([Message(role="user", content="question")], True).startswith(start)

    @property
    def writes_bos(self) -> bool:
        """Whether a conversation begins with BOS, or there is none."""
        return self.frame is None or self._begins_with(self.tokenizer.bos_token or "")

    def _opening(self, messages: list[Message], tools: Tools | None) -> str:
        """The prompt as a server renders it: an assistant's last turn stays open."""
        if messages[-1]["role"] == "assistant":
            return self._render(messages, False, tools, continue_final_message=True)
        return self._render(messages, True, tools)

    def _require_turns(self, messages: list[Message], text: str, render: Callable[[list[Message]], str]) -> None:
        """Raises `BadRecord` where a turn of the prompt, such as the system's, is not in the `text` that `render` makes
        of it."""
        for at, message in enumerate(messages):
            content, may_be_left_out = message["content"].strip(), message["role"] not in ("user", "assistant")
            if content in text and (not content or len(content) >= CHANCE or not may_be_left_out):
                continue
            # Changed, or left out? A template may write it in another form, or a part of it.
            other = [*messages[:at], Message(**{**message, "content": _WORD}), *messages[at + 1 :]]
            try:
                is_written = render(other) != text
            except BadRecord:
                is_written = True
            if not is_written:
                role = message["role"]
                raise BadRecord("not written by the chat template", f"message {at} of the prompt, of role {role!r:.40}")

    def _whole(self, messages: list[Message], answer: list[Message], tools: Tools | None) -> str:
        """The conversation; an answer goes on with the prompt's last turn where that is the assistant's."""
        last, first = messages[-1], answer[0]
        if last["role"] == first["role"] == "assistant":
            content = last["content"] + first["content"]
            messages, answer = messages[:-1], [Message(**{**last, **first, "content": content}), *answer[1:]]
        return self._render(messages + answer, False, tools)

    def _parted(self, opening: str, wholes: list[str]) -> str:
        """What of the rendered prompt all conversations begin with."""
        surplus = self.frame.surplus if wholes and self.frame is not None else ""
        for text in (opening, opening.removesuffix(surplus)):
            if all(whole.startswith(text) for whole in wholes):
                return text
        raise UserError(
            "the chat template renders a prompt differently once a response follows, so the two cannot "
            "be parted; set data.chat_template to one that does not (such as chatml)"
        )

    def _ended(self, response: str, *, cut: bool) -> tuple[str, bool]:
        """The response up to the end of its turn, and whether that is there; of one that was `cut` the text before."""
        end, rest, closes = ("", "", False) if (frame := self.frame) is None else (frame.end, frame.rest, frame.closes)
        if closes and response.endswith(end + rest):
            response = response.removesuffix(rest)
            return (response.removesuffix(end), False) if cut else (response, True)
        response = response.removesuffix(rest)
        *_, last = [None, *self._special.finditer(response)]  # none of the data's: those are held
        if last is not None and not response[last.end() :].strip():
            return (response[: last.start()], False) if cut else (response[: last.end()], True)
        return (response.removesuffix(end) if cut else response), False

    def _render(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        tools: Tools | None = None,
        *,
        continue_final_message: bool = False,
    ) -> str:
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
                        tools=tools,
                        chat_template=self.template,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                        continue_final_message=continue_final_message,
                    )
                )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"data.chat_template, line {error.lineno}: {error.message}") from None
        except TimeOut:
            raise UserError(f"data.chat_template: takes over {RENDER_SECONDS} seconds to write one record") from None
        except Exception as error:  # a template is a program, and can fail in any way: 1 / 0, range(10**9), no end
            raise BadRecord("refused by the chat template", one_line(error)) from None

    def _hold(self, value: Any, held: list[str]) -> Any:
        """`value` (messages, tools) with every special token in its texts, at any depth, replaced by a mark; the tokens
        join `held`."""

        def mark(match: re.Match[str]) -> str:
            held.append(match[0])
            return f"{self._mark}{len(held) - 1:09}"

        if isinstance(value, str):
            return self._special.sub(mark, value)
        if isinstance(value, list):
            return [self._hold(inner, held) for inner in value]
        if isinstance(value, dict):
            return {self._hold(key, held): self._hold(inner, held) for key, inner in value.items()}
        return value

    def _segments(self, text: str, held: list[str]) -> list[Segment]:
        if not held:
            return [Segment(text, control=True)]
        pieces = self._marked.split(text)  # text, number, text, number, ..., text
        segments = [
            Segment(held[int(piece)], control=False) if i % 2 else Segment(piece, control=True)
            for i, piece in enumerate(pieces)
        ]
        return [segment for segment in segments if segment.text]
