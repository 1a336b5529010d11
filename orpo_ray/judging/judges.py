"""The judges of an evaluation: found and checked, with what is said of them beside their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from jinja2 import TemplateError

from orpo_ray.config import EvaluationConfig, ModelConfig
from orpo_ray.config.evaluation import AskedModel, SamplingConfig
from orpo_ray.config.judges import ServerJudge, VllmJudge
from orpo_ray.data.records import BadRecord, one_line
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import Request, request_seed
from orpo_ray.inference.models import EvaluatedModel, find_policy
from orpo_ray.inference.speaking import Speaker
from orpo_ray.judging.asking import Asked
from orpo_ray.judging.reading import TOP_TOKENS
from orpo_ray.modeling.loading import load_tokenizer


@dataclass(frozen=True)
class LocalJudge:
    """A model on this project's own engines."""

    label: str
    config: VllmJudge
    model: EvaluatedModel
    speaker: Speaker
    by_labels: bool
    deterministic: bool = False
    """`generation.deterministic`."""

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            temperature=self.config.temperature or 0, max_tokens=self.config.answer_tokens(labels=self.by_labels),
            rounds=1, seed=self.config.seed,
        )  # fmt: skip

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.speaker.ends(messages=True)

    @property
    def top_tokens(self) -> int:
        return TOP_TOKENS if self.by_labels else 0

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides its answers, beside what it is asked."""
        template = hashlib.blake2b(str(self.speaker.renderer.template).encode(), digest_size=16).hexdigest()
        return {
            "kind": "vllm", "model": self.model.digest, "dtype": self.model.generation_dtype, "template": template,
            "stop": self.stop_ids, **_drawn(self.config, self.sampling.max_tokens),
            **({"deterministic": True} if self.deterministic else {}),
        }  # fmt: skip

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "vllm", "model": self.config.model, "digest": self.model.digest,
            "dtype": self.model.generation_dtype, "template": self.speaker.template,
            **_drawn(self.config, self.sampling.max_tokens),
        }  # fmt: skip

    def request(self, number: int, asked: Asked) -> Request:
        """For an engine. Raises `UserError` where the judge's template does not take what it is asked."""
        try:
            ids = self.speaker.rows(asked.messages)[0]
        except (BadRecord, UserError) as error:
            hint = "; a prompt without `system` may be (judging.prompt)" if asked.system else ""
            raise UserError(f"judges.{self.label}: {self.speaker.in_its_words(error)}{hint}") from None
        return Request(number, 0, ids, request_seed(self.config.seed, asked.user, 0, asked.repeat))

    def fits(self, request: Request) -> bool:
        """Whether its context has room for the prompt and an answer."""
        context = self.model.context
        return context is None or len(request.ids) + self.sampling.max_tokens <= context


@dataclass(frozen=True)
class ServedJudge:
    """A model behind a server."""

    label: str
    config: ServerJudge
    by_labels: bool
    count: Callable[[Asked], int] | None
    """Tokens of a prompt; None: nobody here knows the tokenizer."""

    @property
    def answer_tokens(self) -> int:
        return self.config.answer_tokens(labels=self.by_labels)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides its answers, as far as it can be known, beside what it is asked.

        Not where it is: the same model is at another host and port in every job. Verdicts keep that themselves
        (`Verdict.server`), and those of another address than the configured one are said.
        """
        return {
            "kind": "openai", "model": self.config.model, "extra_body": self.config.extra_body,
            **_drawn(self.config, self.answer_tokens),
        }  # fmt: skip

    @property
    def former_identity(self) -> dict[str, Any]:
        """By which verdicts were kept before they were told where they were given: they were paid for."""
        return {**self.identity, "base_url": self.config.base_url}

    def describe(self) -> dict[str, Any]:
        shown = {"base_url": self.config.base_url, "extra_body": self.config.for_a_file()["extra_body"]}
        return {**self.identity, **shown}


Judge = LocalJudge | ServedJudge


def find_judges(config: EvaluationConfig) -> dict[str, Judge]:
    """By label. Raises `UserError`, naming the judge, where a model is not there, a label is no token of it, or two
    judges are one."""
    judging = config.judging
    by_labels = judging.compares == "pairs" and judging.reads == "labels"
    found: dict[str, Judge] = {}
    for label, asked in config.judges.items():
        if isinstance(asked, VllmJudge):
            policy = AskedModel(path=asked.model, dtype=asked.dtype, chat_template=asked.chat_template)
            trust = config.trust_remote_code
            model = find_policy(label, policy, config.storage.cache_dir, section="judges", trust_remote_code=trust)
            judge = LocalJudge(label, asked, model, Speaker(model, None), by_labels, config.generation.deterministic)
            tokenizer = judge.speaker.tokenizer
            if judge.speaker.renderer.template is None:
                raise UserError(f"judges.{label}: {asked.model} has no chat template; set judges.{label}.chat_template")
            found[label] = judge
        else:
            tokenizer = asked.tokenizer and load_tokenizer(ModelConfig(name_or_path=asked.tokenizer))
            found[label] = ServedJudge(label, asked, by_labels, _counter(label, tokenizer) if tokenizer else None)
        if by_labels and tokenizer:
            for text in judging.labels:
                _require_one_token(label, tokenizer, text)
    _require_unlike(found)
    return found


def _require_unlike(judges: Mapping[str, Judge]) -> None:
    """Raises `UserError` where two would have each other's verdicts, and agree with certainty."""
    for a, b in combinations(judges, 2):
        if judges[a].identity == judges[b].identity:
            raise UserError(
                f"judges.{a} and judges.{b}: are the same model ({judges[a].config.model}) with the same sampling, and "
                "so one judge, wherever it is served; judging.repeats asks one again, and another model that a server "
                "calls by the same name has to get a name of its own there"
            )


def _drawn(config: VllmJudge | ServerJudge, max_tokens: int) -> dict[str, Any]:
    """At temperature 0 nothing is drawn, so that no seed counts."""
    seed = {"seed": config.seed} if config.temperature else {}
    return {"temperature": config.temperature, "max_tokens": max_tokens, **seed}


def _counter(judge: str, tokenizer: Any) -> Callable[[Asked], int]:
    def count(asked: Asked) -> int:
        """Raises `UserError` where the tokenizer's template does not take what is asked."""
        text = f"{asked.system}\n{asked.user}"
        if tokenizer.chat_template:
            try:
                text = tokenizer.apply_chat_template(asked.messages, tokenize=False, add_generation_prompt=True)
            except (TemplateError, TypeError, ValueError) as error:
                hint = "; a prompt without `system` may be (judging.prompt)" if asked.system else ""
                raise UserError(
                    f"judges.{judge}.tokenizer: its chat template refuses what is asked: {one_line(error)}{hint}"
                ) from None
        return len(tokenizer.encode(text, add_special_tokens=False))

    return count


def _require_one_token(judge: str, tokenizer: Any, label: str) -> None:
    """With a space before it or without: an answer may begin with either."""
    written = [tokenizer.encode(text, add_special_tokens=False) for text in (label.strip(), f" {label.strip()}")]
    if all(len(ids) != 1 or ids == [tokenizer.unk_token_id] for ids in written):
        raise UserError(
            f"judging.labels: {label.strip()!r:.40} is no single token of judges.{judge}, and its probability is that "
            "of a first token; choose others, or set judging.reads=text"
        )
