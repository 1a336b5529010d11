"""What the critic of `ppo` starts from, and the reference: they read the policy's tokens, so their vocabulary has to be
the policy's."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray.config import ModelConfig, TrainConfig
from orpo_ray.config.objectives import PpoConfig
from orpo_ray.errors import UserError
from orpo_ray.inference.models import TRUTH
from orpo_ray.inference.reward_functions import names_function
from orpo_ray.modeling.loading import load_config, load_tokenizer, model_folder
from orpo_ray.modeling.weights import has_tokenizer

_KEY = "objective.critic"
_REFERENCE = "objective.reference"


def critic_of(config: TrainConfig, tokenizer: Tokenizer) -> str:
    """The folder that the critic starts from, or `toy`: `objective.critic`, else the first of `rollouts.rewards` that
    is a model whose tokens are the policy's, by id; it may have more, such as padding.

    `tokenizer`: the policy's. Raises `UserError`, naming the key, where the one that is asked for has other tokens, or
    none of the rewards' has the policy's.
    """
    assert isinstance(config.objective, PpoConfig) and config.rollouts is not None
    asked = config.objective.critic
    if asked is not None:
        model = _model(config, _KEY, asked)
        other = _other_tokens(config.model, tokenizer, model)
        if other:
            raise UserError(f"{_KEY}: {asked} has other tokens than the policy: {other}")
        return model.name_or_path
    for label, source in config.rollouts.rewards.items():
        if source.path != TRUTH and not names_function(source.path):
            model = _model(config, f"rollouts.rewards.{label}", source.path)
            if not _other_tokens(config.model, tokenizer, model):
                return model.name_or_path
    raise UserError(
        f"{_KEY}: no reward model of rollouts.rewards has the policy's tokens, so none can be what the critic starts "
        f"from; set {_KEY} to a model with the policy's tokens"
    )


def require_reference_tokens(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Raises `UserError`, naming the key, where `objective.reference` is set and its tokens are not the policy's, whose
    are told by `tokenizer`. One without a tokenizer of its own is asked for its embeddings alone."""
    key = _REFERENCE if not hasattr(config.objective, "pairs") else "objective.pairs.reference"
    name = getattr(config.objective.compares, "reference", None)
    if name is None:
        return
    model = _model(config, key, name, has_words=False)
    if other := _other_tokens(config.model, tokenizer, model):
        raise UserError(f"{key}: {name} has other tokens than the policy: {other}")


def _model(config: TrainConfig, key: str, name: str, *, has_words: bool = True) -> ModelConfig:
    if name == "toy":
        return ModelConfig(name_or_path=name)
    try:
        folder = model_folder(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if has_words and not has_tokenizer(Path(folder)):
        raise UserError(f"{key}: {folder} holds no tokenizer (no tokenizer.json)")
    return ModelConfig(name_or_path=str(folder), trust_remote_code=config.model.trust_remote_code)


def _other_tokens(policy: ModelConfig, tokenizer: Tokenizer, critic: ModelConfig) -> str:
    """In what the critic's tokens are not the policy's, by id; empty: in nothing."""
    own = tokenizer.get_vocab()
    others = (
        load_tokenizer(critic).get_vocab()
        if critic.name_or_path == TRUTH or has_tokenizer(Path(critic.name_or_path))
        else own
    )
    for token, id in sorted(own.items(), key=lambda item: item[1]):
        if others.get(token) != id:
            return f"token {id} is {token!r}, and there {'none' if token not in others else f'token {others[token]}'}"
    # The policy may draw any token that it has an output for, whether its tokenizer has a name for it or not.
    held, needed = (load_config(each).get_text_config().vocab_size for each in (critic, policy))
    return f"it has embeddings for {held} tokens, the policy for {needed}" if held < needed else ""
