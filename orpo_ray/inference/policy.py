"""A policy in this process: a person's own questions, answered as an evaluation would have them answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orpo_ray.config import parse_as
from orpo_ray.config.evaluation import AskedModel, PromptsConfig, SamplingConfig
from orpo_ray.data.formats.messages import readable
from orpo_ray.data.prompts import Prompt, QuestionReader
from orpo_ray.data.records import Account, BadRecord
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import Request, request_seed
from orpo_ray.inference.models import find_policy, require_forward
from orpo_ray.inference.plain_generation import PlainGenerator
from orpo_ray.inference.speaking import Speaker, prompt_ids

Question = str | Sequence[Mapping[str, Any]]
"""A text, or messages of `role` and `content`."""


class Policy:
    """By transformers' `generate`: no Ray, no vLLM. Its weights are loaded when it is first asked."""

    def __init__(self, asked: Mapping[str, Any], cache: Path) -> None:
        """`asked`: as `models.NAME` of an evaluation. Raises `UserError` where it names no whole policy."""
        self._model = find_policy("policy", parse_as(AskedModel, dict(asked), [], "load_policy"), cache)
        require_forward(self._model, "ask it by an evaluation with generation.engine=vllm")
        self._speaker = Speaker(self._model, None)
        self._generator: PlainGenerator | None = None

    def generate(
        self,
        prompts: Sequence[Question],
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> list[str]:
        """An answer to each of `prompts`, in their order; 0 as `temperature` takes the likeliest token each time.

        Each is asked as the model was trained to be, and drawn by its own text and `seed`, whatever else is asked; a
        prompt that occurs again is drawn anew. Raises `UserError` for what is no prompt, or fits no context, and for
        settings that no evaluation takes.
        """
        if isinstance(prompts, str):
            raise UserError("generate: takes a list of prompts; put brackets around one")
        settings = {
            "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "rounds": 1,
            "stop": [stop] if isinstance(stop, str) else list(stop),
        }  # fmt: skip
        sampling = parse_as(SamplingConfig, settings, [], "generate")
        read = [self._read(number, prompt) for number, prompt in enumerate(prompts)]
        if not read:
            return []
        ids = prompt_ids(self._speaker, read)
        for prompt, tokens in zip(read, ids, strict=True):
            if self._model.context is not None and len(tokens) + max_tokens > self._model.context:
                raise UserError(
                    f"{prompt.location}: {len(tokens)} tokens and max_tokens={max_tokens} do not fit the model's "
                    f"context of {self._model.context}"
                )
        texts = [readable(prompt.as_found.prompt) for prompt in read]
        requests = [
            Request(number, 0, tokens, request_seed(seed, texts[number], texts[:number].count(texts[number]), 0))
            for number, tokens in enumerate(ids)
        ]
        stop_ids = self._speaker.stop_ids(read)
        if self._generator is None:
            self._generator = PlainGenerator(self._model, sampling, stop_ids)
        generator = self._generator.asked_otherwise(sampling, stop_ids)
        answers: dict[int, str] = {}
        waiting: Sequence[Request] = requests
        while len(answers) < len(requests):
            answers |= {answer.prompt: answer.text for answer in generator.advance(waiting)}
            waiting = ()
        return [answers[number] for number in range(len(requests))]

    def _read(self, number: int, prompt: Question) -> Prompt:
        location = f"prompt {number}"
        given: Any = [_plain(each) for each in prompt] if isinstance(prompt, list | tuple) else prompt
        config = PromptsConfig(source="of a program")
        try:
            as_found, spoken = (
                QuestionReader(config, "prompts", Account(), as_messages=as_messages)({"prompt": given})
                for as_messages in (False, True)
            )
        except BadRecord as error:
            raise UserError(f"{location}: {error}") from None
        return Prompt(location, as_found, spoken)


def _plain(message: Any) -> Any:
    return dict(message) if isinstance(message, Mapping) else message
