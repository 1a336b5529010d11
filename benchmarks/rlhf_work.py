"""What both sides of rlhf.py do: the models, the prompts, and how a side reports its rounds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

Kind = Literal["ppo", "rloo", "grpo"]
_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class Work:
    """A few rounds of one kind: the same prompts are answered, scored and trained on in each."""

    kind: Kind
    folder: str
    """With `policy` and `reward`, saved as anybody would, each with the tokenizer."""
    prompts: str
    """JSON lines, `{"prompt": text}`."""
    rounds: int
    """The first of which is for warming up: optimizer states are made in it."""
    samples: int
    """Responses to each prompt."""
    epochs: int
    """Times that a round's responses are trained on."""
    rollouts: int = 64
    """Responses of a round."""
    tokens: int = 64
    """Of each response: random weights hardly ever end one."""
    kl_coefficient: float = 0.1
    lr: float = 1e-5
    max_length: int = 512
    """Of prompt and response together."""
    recompute: bool = False
    """Backward computes layers again, which takes longer and less memory (TRL's default)."""

    @property
    def prompts_of_a_round(self) -> int:
        return self.rollouts // self.samples

    @property
    def update_prompts(self) -> int:
        """Prompts of an update, with their responses."""
        return min(8, self.prompts_of_a_round)

    @property
    def updates_of_a_round(self) -> int:
        return self.epochs * self.prompts_of_a_round // self.update_prompts

    @property
    def texts(self) -> list[str]:
        return [json.loads(line)["prompt"] for line in Path(self.prompts).read_text().splitlines()]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Round:
    """Of all its rollouts. What is not generation is scoring, log-probs, values and updates."""

    seconds: float
    generation_seconds: float

    @property
    def others_seconds(self) -> float:
        return self.seconds - self.generation_seconds


def save_models(folder: Path, shape: str, tokenizer: str, seed: int = 0) -> None:
    """A policy and a reward model of one shape, random, float32."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = AutoConfig.from_pretrained(shape)
    for name, kind, settings in (
        ("policy", AutoModelForCausalLM, {}),
        ("reward", AutoModelForSequenceClassification, {"num_labels": 1}),
    ):
        if (folder / name / "config.json").is_file():
            continue
        torch.manual_seed(seed)
        for key, value in settings.items():
            setattr(config, key, value)
        kind.from_config(config).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
        seed += 1


def prompts_of(data: str, tokenizer: str, longest: int, seed: int) -> Iterator[str]:
    """HH-RLHF's prompts of at most `longest` tokens (BOS counts), each once, in an order drawn from `seed`."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    with gzip.open(data, "rt") as file:
        dialogues = [json.loads(line)["chosen"] for line in file]
    texts = list(dict.fromkeys(text[: text.rindex(_TURN) + len(_TURN)] for text in dialogues))
    for place in np.random.default_rng(seed).permutation(len(texts)):
        if len(words(texts[place])["input_ids"]) <= longest:
            yield texts[place]


def write_prompts(texts: list[str], path: Path) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def report(rounds: list[Round], **more: Any) -> str:
    """What a side's process prints last."""
    return json.dumps({"rounds": [asdict(one) for one in rounds], **more})
