"""What a worker loads beside the policy where it trains on rollouts: critic, reference, and who writes and scores
(issue 19)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import ray
import torch
from transformers import PreTrainedTokenizerBase

from orpo_ray.config import RolloutsConfig, TrainConfig
from orpo_ray.data.prepare import PreparedData
from orpo_ray.data.questions import prompts_of
from orpo_ray.errors import UserError
from orpo_ray.inference.critic import critic_of
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.inference.rewards import RewardSource, find_rewards
from orpo_ray.modeling.critic import ActorCritic
from orpo_ray.modeling.digests import network_digest
from orpo_ray.modeling.loading import Warn
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.modeling.scorer import Scorer
from orpo_ray.storage.checkpoints import Checkpoints
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training.agreement import sampled_digest
from orpo_ray.training.engine import Engine
from orpo_ray.training.reference import load_reference, reference_name
from orpo_ray.training.rollout_files import RolloutFiles
from orpo_ray.training.rollouts import RolloutSource
from orpo_ray.training.saving import REFERENCE
from orpo_ray.training.source import Arrays
from orpo_ray.training.writers import Writers, visible_gpus

_ASLEEP = 2 * 2**30
"""Bytes that a vLLM engine holds asleep: CUDA itself, its graphs and buffers of libraries. Assumed, not measured."""


class Places(NamedTuple):
    """Where those stand who write and score."""

    engines: int
    gpus: float
    """Of each engine, and of the scorer; 0: they take turns with training on its own device."""


@dataclass(frozen=True)
class Beside:
    policy: PackedPolicy
    """What is trained: with its critic, where the objective has one."""
    reference: PackedPolicy
    rewards: Sequence[RewardSource]
    """Of rank 0 alone."""
    digests: dict[str, str]
    """Of what a run that continues has to have as it was, by the setting that names it; of rank 0 alone."""
    same: dict[str, str]
    """Digests of samples of what all ranks have to hold alike, by what it is called."""
    places: Places

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        policy: Scorer,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        place: torch.device,
        warn: Warn,
        *,
        leads: bool,
    ) -> Beside:
        """`place`: where the policy was loaded; `leads`: on rank 0. Raises `UserError` where one of them is not there,
        or does not fit."""
        assert config.rollouts is not None and isinstance(policy, PackedPolicy)
        rewards: list[RewardSource] = []
        same: dict[str, str] = {}
        if leads:  # all of their bytes are read
            rewards = find_rewards(config.rollouts, trust_remote_code=config.model.trust_remote_code)
        if config.objective.has_critic:
            name = critic_of(config, tokenizer)
            update = {"name_or_path": name, "tokenizer": None, "lora": None}
            model = config.model.model_copy(update={**update, "revision": None, "init": "pretrained"})
            critic = load_reward_model(model, seed=config.seed, device=place, warn=warn)
            same[f"objective.critic: {name}"] = sampled_digest(critic.model)
            policy = ActorCritic(policy, critic)
        plain = config.model_copy(update={"model": config.model.model_copy(update={"lora": None})})
        temperature = config.rollouts.temperature
        reference = load_reference(plain, device).at_temperature(temperature)
        same[reference_name(config)] = sampled_digest(reference.model)
        digests = {f"rollouts.rewards.{source.label}": source.digest for source in rewards}
        if leads:
            digests[REFERENCE] = network_digest(reference.model, reference.model.state_dict())
        where = places(config.rollouts, _gpus_beside(config, device, warn if leads else None))
        return cls(policy.at_temperature(temperature), reference, rewards, digests, same, where)

    def memory(self, config: TrainConfig, device: torch.device) -> int:
        """Bytes of `device`, the trainer's, that engines and scorer will hold where they take turns with training."""
        assert config.rollouts is not None
        if device.type != "cuda" or self.places.gpus:
            return 0
        models = [source.judge for source in self.rewards if isinstance(source.judge, EvaluatedModel)]
        scorer = sum(file.size for model in models for file in model.files)
        if config.rollouts.engine != "vllm":
            return scorer
        engines_here = -(-self.places.engines // len(visible_gpus()))
        if config.rollouts.sleep:
            return scorer + engines_here * _ASLEEP
        return scorer + int(engines_here * config.rollouts.gpu_memory * torch.cuda.mem_get_info(device)[1])

    def source(
        self,
        engine: Engine,
        config: TrainConfig,
        data: PreparedData,
        tokenizer: PreTrainedTokenizerBase,
        folder: RunFolder,
        ranks_here: int,
        checkpoints: Checkpoints,
        kept: dict[str, float],
        carried: Arrays,
    ) -> RolloutSource:
        """`kept` and `carried`: what the checkpoint kept that the run continues from."""
        writers = None
        if engine.rank == 0:
            engines, gpus = self.places
            threads = torch.get_num_threads() * ranks_here  # of the trainers, who wait meanwhile
            writers = Writers(
                config, self.policy.model, tokenizer, self.rewards, engine.device, threads, engines, gpus, folder.note
            )
        train, held_out = prompts_of(data.train), prompts_of(data.eval)
        files = RolloutFiles(folder.path, folder.note)
        return RolloutSource(
            engine, config, train, held_out, self.reference, writers, files,
            lambda: min(checkpoints.steps(), default=0), kept, carried,
        )  # fmt: skip


def _gpus_beside(config: TrainConfig, device: torch.device, note: Callable[[str], None] | None) -> int:
    """How many engines and scorer have: as many as are asked for, or as training leaves free."""
    assert config.rollouts is not None
    asked = config.rollouts.gpus
    if device.type != "cuda":
        if asked != "auto" and asked:
            raise UserError(f"rollouts.gpus: {asked} are asked for beside training, which is on CPUs here")
        return 0
    beside = config.eval.win_rate is not None  # which has an engine and a scorer of its own on one
    free = int(ray.available_resources().get("GPU", 0)) - beside
    if asked == "auto":
        return free
    if asked > free and note is not None:
        note(f"rollouts.gpus={asked}, and {max(0, free)} are free now: engines and scorer wait until the others are")
    return asked


def places(rollouts: RolloutsConfig, gpus: int) -> Places:
    """Where there are so many `gpus` beside training."""
    asked = rollouts.engines
    if gpus < 1:
        return Places(1 if asked == "auto" else asked, 0.0)
    if gpus == 1:
        return Places(1, 0.5)
    return Places(gpus - 1 if asked == "auto" else min(asked, gpus - 1), 1.0)
