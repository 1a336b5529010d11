"""Models that judge in words: which they are, what they are asked, and how their answers are read."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from orpo_ray.config.paths import Place
from orpo_ray.config.section import Count, FreeForm, Integer, Number, RunName, Section

TOKENS_OF_LABEL, TOKENS_OF_TEXT = 1, 2048
"""What a judge may write by default: a label, or its reasons and a verdict."""


_ONE_PIECE = "each answer is read in one piece"
_ONE_ANSWER = "each call has one answer; to judge again set judging.repeats"
_MOST_TOKENS = "set the judge's max_tokens (and max_tokens_key, for what the server calls it)"
_OWN = {
    "model": "set the judge's model", "messages": "they are made of judging.prompt", "stream": _ONE_PIECE,
    "stream_options": _ONE_PIECE, "n": _ONE_ANSWER, "best_of": _ONE_ANSWER, "use_beam_search": _ONE_ANSWER,
    "max_tokens": _MOST_TOKENS, "max_completion_tokens": _MOST_TOKENS, "temperature": "set the judge's temperature",
    "seed": "set the judge's seed", "logprobs": "judging.reads says whether they are asked for",
}  # fmt: skip
"""Keys of a request's body that are not a person's to add, and what to set instead."""


class _Judge(Section):
    model: str
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = 0.0
    """0 takes the likeliest token each time; null, of a server: it is not told."""
    max_tokens: Count | None = None
    """Of one answer; null: 1 where labels are read, 2,048 where text is."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Of what is drawn, where `temperature` is above 0."""

    def answer_tokens(self, *, labels: bool) -> int:
        return self.max_tokens or (TOKENS_OF_LABEL if labels else TOKENS_OF_TEXT)


class VllmJudge(_Judge):
    """A local model, on this project's own vLLM engines."""

    kind: Literal["vllm"]
    model: Place
    """Run folder, folder, Hub id, or LoRA adapter."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What it computes in; `auto`: as it is stored."""
    chat_template: str | None = None
    """Overrides its own: a named template or a Jinja text."""

    @model_validator(mode="after")
    def _is_drawn_somehow(self) -> VllmJudge:
        if self.temperature is None or 0 < self.temperature < 0.01:
            raise ValueError("temperature: vLLM draws at 0 and at 0.01 to 2")
        return self


class ServerJudge(_Judge):
    """A model behind an OpenAI-compatible server."""

    kind: Literal["openai"]
    base_url: str
    """Up to and with `/v1`, as the library `openai` takes it."""
    model: str
    """As the server calls it."""
    api_key_env: str | None = None
    """The environment variable that holds the key; null: the server wants none. The key itself is written nowhere."""
    concurrency: Annotated[Integer, Field(ge=1, le=1024)] = 8
    """Calls at once."""
    calls_per_minute: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    """Calls that begin in a minute, evenly, those that are asked again included; null: as many as there are."""
    retries: Annotated[Integer, Field(ge=0, le=100)] = 8
    """How often a call is asked again that was lost: no answer, an error of the server, an answer that is none."""
    timeout: Annotated[Number, Field(gt=0, le=86_400)] = 600.0
    """Seconds to wait for one answer."""
    max_calls: Annotated[Integer, Field(ge=0, le=10**12)] | None = None
    """Calls of one command, those that are asked again included."""
    max_tokens_total: Annotated[Integer, Field(ge=0, le=10**15)] | None = None
    """Tokens of one command, of prompts and answers."""
    tokenizer: Place | None = None
    """Folder or Hub id of its tokenizer, by which the forecast counts; null: a token for every four characters."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the most tokens of an answer: OpenAI's reasoning models take the second alone."""
    extra_body: FreeForm = Field(default_factory=dict)
    """More of each request's body, as the server takes it, such as a `top_logprobs` below our 20."""

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """In capitals, as such names are: what is not may be the key itself, and so is not shown."""
        if name is not None and not re.fullmatch("[A-Z_][A-Z0-9_]{0,99}", name):
            raise ValueError("should be the name of an environment variable in capitals; the key stays out of the file")
        return name

    @field_validator("extra_body")
    @classmethod
    def _leaves_the_request_as_it_is(cls, body: dict[str, Any]) -> dict[str, Any]:
        """What is sent, forecast, paid for and named beside the numbers is said by keys of our own."""
        if taken := next((key for key in body if key in _OWN), None):
            raise ValueError(f"{taken} cannot be set here: {_OWN[taken]}")
        return body

    @field_validator("base_url")
    @classmethod
    def _leads_to_a_server(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"should be a web address ({error})") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("should be a web address such as https://api.openai.com/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("should hold neither credentials nor parameters; a key goes by api_key_env")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _key_stays_secret(self) -> ServerJudge:
        if self.api_key_env and urlsplit(self.base_url).scheme == "http" and not self.is_here:
            raise ValueError("base_url: http would send the key of api_key_env readable by anybody; use https")
        return self

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine, by its address."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


JudgeConfig = Annotated[VllmJudge | ServerJudge, Field(discriminator="kind")]


class JudgingConfig(Section):
    """What every judge is asked."""

    compares: Literal["pairs", "rates"] = "pairs"
    """`pairs`: which of two answers is better; `rates`: how good one answer is, from 1 to 10."""
    against: RunName | None = None
    """The model that every other is compared with; null: every two of them are."""
    prompt: Place | None = None
    """A file with the judge's prompt: YAML with `system` and `user` in Jinja, AlpacaEval's `.txt`, or FastChat's
    `judge_prompts.jsonl`; null: this project's own."""
    reads: Literal["labels", "text"] = "labels"
    """Of pairs: `labels` takes the probabilities of the two labels as first token, `text` what the judge writes."""
    labels: tuple[str, str] = ("m", "M")
    """Of the answer that is shown first, and of the other."""
    order: Literal["seeded", "both", "alpaca_eval"] = "seeded"
    """Which of two answers is shown first: drawn by `seed` for each two, each once, or as AlpacaEval draws it."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Of the order in which two answers are shown."""
    references: Place | None = None
    """A file of reference answers, as MT-Bench has them, shown to the judge where a prompt has one."""
    repeats: Annotated[Integer, Field(ge=1, le=1000)] = 1
    """How often each is judged."""

    @model_validator(mode="after")
    def _fits_together(self) -> JudgingConfig:
        if self.compares == "rates":
            fields = type(self).model_fields
            taken = [
                key for key in ("against", "reads", "labels", "order") if getattr(self, key) != fields[key].default
            ]
            if taken:
                raise ValueError(f"{taken[0]}: is of pairs, and compares=rates judges one answer at a time")
        first, second = (label.strip() for label in self.labels)
        if not first or not second or first == second:
            raise ValueError("labels: should be two different texts")
        return self
