"""Sources of rewards for tests, and what they give; `judge` and `stranger` are of conftest.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from orpo_ray.config import parse_config
from orpo_ray.config.rollouts import RolloutsConfig
from orpo_ray.data.formats import Message
from orpo_ray.data.prompts import Prompt, Question
from orpo_ray.inference.rewards import Rewards, RewardSource, Scored, find_rewards
from orpo_ray.inference.speaking import Answer

EOS = 2
TEXT = Prompt("here:1", *[Question("Ada asks: What is one plus two?", ())] * 2)
ASKED = [Message(role="user", content="Say one"), Message(role="assistant", content="one"),
         Message(role="user", content="Say two")]  # fmt: skip
CHAT = Prompt("here:2", *[Question(ASKED, ())] * 2)


def found(rewards: dict[str, Any]) -> list[RewardSource]:
    return find_rewards(RolloutsConfig.model_validate({"rewards": rewards}))


def scores(rewards: dict[str, Any], prompt: Prompt, *answers: Answer) -> list[Scored]:
    [scored] = Rewards(found(rewards)).score([(prompt, answers)])
    return scored


def said(*texts: str, cut: bool = False) -> list[Answer]:
    return [Answer(text, cut, is_text=True) for text in texts]


def plain(folder: Path, ids: Sequence[int]) -> float:
    """The logit at the last of `ids`, by Hugging Face's own forward."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return float(model(torch.tensor([list(ids)])).logits[0, 0])


def function(folder: Path, body: str, name: str = "rule", arguments: str = "prompts, responses") -> str:
    """A file with one function; the path of that."""
    file = folder / f"{name}.py"
    file.write_text(f"import math\nimport numpy\nimport torch\n\ndef {name}({arguments}):\n    {body}\n")
    return f"{file}:{name}"


def run_config(rewards: dict[str, Any], **objective: Any) -> Any:
    return parse_config(
        {"name": "r", "model": {"name_or_path": "toy"}, "data": {"train": "toy", "eval": "toy-test"},
         "objective": {"name": "ppo", **objective}, "train": {"global_batch_size": 8},
         "rollouts": {"rewards": rewards, "prompts": 8}}, [], "test",
    )  # fmt: skip
