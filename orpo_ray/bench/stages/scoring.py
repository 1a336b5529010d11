"""Rewards by the packed scorer, and by Hugging Face's forward over padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from orpo_ray.bench.stages.models import random_judge
from orpo_ray.bench.stages.way import Way
from orpo_ray.cluster.allocator import keep_freed_memory
from orpo_ray.config import ModelConfig
from orpo_ray.config.evaluation import ScoringConfig
from orpo_ray.config.evaluation_benchmark import ScoringBenchmarkConfig
from orpo_ray.data.prompts import read_prompts
from orpo_ray.inference.models import find_reward_model
from orpo_ray.inference.scoring import Rows
from orpo_ray.inference.speaking import Completion, Speaker
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.modeling.scorer import packed_scores

_RECORDS_OF_A_PROMPT = 3
"""Its own two responses and those of the two records after it: six, as three models with two rounds would give."""

Texts = list[list[int]]


@contextmanager
def scoring(config: ScoringBenchmarkConfig, folder: Path) -> Iterator[dict[str, Way]]:
    judge = random_judge(config.judge, config.tokenizer, folder)
    rows = _rows(config, judge)
    texts = [prompt + ending for prompt, *endings in rows for ending in endings]
    keep_freed_memory()  # as scoring actors do; it serves the padded ways as well
    ours = load_reward_model(ModelConfig(name_or_path=str(judge), dtype="float32"), seed=0).eval()
    plain = AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32).eval()
    packed = sum(len(ids) for row in rows for ids in row)
    budget = ScoringConfig().tokens_per_microbatch
    ways = {"orpo_ray": Way(lambda: sum(map(len, packed_scores(ours, rows, budget))), "responses", packed)}
    for size in config.batches:
        for name, ordered in ((f"padded, {size}", texts), (f"padded, {size}, sorted", sorted(texts, key=len))):
            batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
            computed = sum(len(batch) * max(map(len, batch)) for batch in batches)
            ways[name] = Way(_padded(plain, batches), "responses", computed)
    yield ways


def _rows(config: ScoringBenchmarkConfig, judge: Path) -> list[Rows]:
    speaker = Speaker(find_reward_model("judge", str(judge), "float32"), config.prompts.chat_template)
    questions = [speaker.question(prompt) for prompt in read_prompts(config.prompts, with_messages=False)[0]]
    groups = [questions[i : i + _RECORDS_OF_A_PROMPT] for i in range(0, len(questions), _RECORDS_OF_A_PROMPT)]
    return [
        speaker.rows(
            group[0].prompt,
            [Completion(turns, cut=False) for each in group for turns in each.completions],
            group[0].tools,
        )
        for group in groups
    ]


def _padded(model: PreTrainedModel, batches: list[Texts]) -> Callable[[], int]:
    pad = model.config.pad_token_id

    def run() -> int:
        for batch in batches:
            longest = max(map(len, batch))
            ids = torch.tensor([text + [pad] * (longest - len(text)) for text in batch])
            mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch])
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=mask)
        return sum(map(len, batches))

    return run
