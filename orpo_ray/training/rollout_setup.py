"""What a worker loads beside the policy where it trains on rollouts: critic, reference, and who writes and scores
(issue 19)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
import torch
from transformers import PreTrainedTokenizerBase

from orpo_ray.config import RolloutsConfig, TrainConfig
from orpo_ray.data.prepare import PreparedData
from orpo_ray.data.questions import prompts_of
from orpo_ray.errors import UserError
from orpo_ray.inference.critic import critic_of
from orpo_ray.inference.rewards import RewardSource, find_rewards
from orpo_ray.modeling.critic import ActorCritic
from orpo_ray.modeling.digests import network_digest
from orpo_ray.modeling.loading import Warn
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import load_reward_model
from orpo_ray.modeling.scorer import Scorer
from orpo_ray.storage.checkpoints import Checkpoints
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training.engine import Engine
from orpo_ray.training.reference import load_reference
from orpo_ray.training.rollout_files import RolloutFiles
from orpo_ray.training.rollouts import RolloutSource
from orpo_ray.training.saving import REFERENCE
from orpo_ray.training.source import Arrays
from orpo_ray.training.writers import Writers


@dataclass(frozen=True)
class Beside:
    policy: PackedPolicy
    """What is trained: with its critic, where the objective has one."""
    reference: PackedPolicy
    rewards: Sequence[RewardSource]
    digests: dict[str, str]
    """Of what a run that continues has to have as it was, by the setting that names it."""

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        policy: Scorer,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        place: torch.device,
        warn: Warn,
    ) -> Beside:
        """`place`: where the policy was loaded. Raises `UserError` where one of them is not there, or does not fit."""
        assert config.rollouts is not None and isinstance(policy, PackedPolicy)
        rewards = find_rewards(config.rollouts, trust_remote_code=config.model.trust_remote_code)
        if config.objective.has_critic:
            update = {"name_or_path": critic_of(config, tokenizer), "tokenizer": None, "lora": None}
            model = config.model.model_copy(update={**update, "revision": None, "init": "pretrained"})
            policy = ActorCritic(policy, load_reward_model(model, seed=config.seed, device=place, warn=warn))
        plain = config.model_copy(update={"model": config.model.model_copy(update={"lora": None})})
        temperature = config.rollouts.temperature
        reference = load_reference(plain, device).at_temperature(temperature)
        digests = {f"rollouts.rewards.{source.label}": source.digest for source in rewards}
        digests[REFERENCE] = network_digest(reference.model, reference.model.state_dict())
        return cls(policy.at_temperature(temperature), reference, rewards, digests)

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
            assert config.rollouts is not None
            engines, gpus = places(config.rollouts, _gpus_beside(config, engine.device, folder.note))
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


def _gpus_beside(config: TrainConfig, device: torch.device, note: Callable[[str], None]) -> int:
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
    if asked > free:
        note(f"rollouts.gpus={asked}, and {max(0, free)} are free now: engines and scorer wait until the others are")
    return asked


def places(rollouts: RolloutsConfig, gpus: int) -> tuple[int, float]:
    """How many engines there are, and of how many GPUs each, and the scorer, are, where there are so many `gpus` beside
    training; 0: they take turns with training on its own device."""
    asked = rollouts.engines
    if gpus < 1:
        return (1 if asked == "auto" else asked), 0.0
    if gpus == 1:
        return 1, 0.5
    return (gpus - 1 if asked == "auto" else min(asked, gpus - 1)), 1.0
