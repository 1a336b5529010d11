"""What the critic starts from, and that critic and reference have the policy's tokens."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from reward_sources import function, run_config
from test_evaluation_models import save_toy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from orpo_ray.config.objectives import DpoConfig, OnlineConfig
from orpo_ray.data import toyworld
from orpo_ray.errors import UserError
from orpo_ray.inference.critic import critic_of, require_reference_tokens
from orpo_ray.modeling.reward import ensure_pad_token


def test_the_critic_starts_from_the_first_reward_model_with_the_policys_tokens(
    judge: Path, stranger: Path, tmp_path: Path
) -> None:
    path = function(tmp_path, "return [1] * len(responses)")
    rewards = {"f": path, "t": "toy", "s": str(stranger), "r": str(judge)}
    tokenizer = toyworld.tokenizer()
    assert critic_of(run_config(rewards), tokenizer) == str(judge.resolve())
    padded = tmp_path / "run/model"
    save_toy(padded, labels=1)
    own = AutoTokenizer.from_pretrained(padded)
    own.pad_token = own.eos_token
    ensure_pad_token(own)
    own.save_pretrained(padded)
    assert len(AutoTokenizer.from_pretrained(padded)) == len(tokenizer) + 1
    assert critic_of(run_config({**rewards, "r": str(padded.parent)}), tokenizer) == str(padded)
    policy = save_toy(tmp_path / "policy")
    assert critic_of(run_config(rewards, critic=str(policy)), tokenizer) == str(policy)
    assert critic_of(run_config(rewards, critic="toy"), tokenizer) == "toy"


@pytest.mark.parametrize("pairs", [False, True])
def test_a_reference_with_other_tokens_is_refused(pairs: bool, judge: Path, stranger: Path, tmp_path: Path) -> None:
    """Log-probs of the policy's ids by other words are a KL to nothing; ids that it has no embedding for, a crash."""
    tokenizer, key = toyworld.tokenizer(), f"objective.{'pairs.' * pairs}reference"

    def refer(reference: Path | None) -> None:
        asked = {"reference": None if reference is None else str(reference)}
        config = run_config({"r": str(judge)}, **asked)
        if pairs:
            update = {"objective": OnlineConfig(pairs=DpoConfig(**asked))}  # type: ignore[arg-type]
            config = config.model_copy(update=update)
        require_reference_tokens(config, tokenizer)

    with pytest.raises(UserError, match=rf"^{key}: .*stranger.* has other tokens than the policy: token 0 is '<s>'"):
        refer(stranger)
    model = AutoModelForCausalLM.from_pretrained(save_toy(tmp_path / "same"))
    bare, fewer = tmp_path / "bare", tmp_path / "fewer"
    model.save_pretrained(bare)
    model.resize_token_embeddings(len(tokenizer) - 1)
    model.save_pretrained(fewer)
    for fitting in (None, tmp_path / "same", bare):
        refer(fitting)
    with pytest.raises(UserError, match=rf"^{key}: .* it has embeddings for {len(tokenizer) - 1} tokens, the policy"):
        refer(fewer)


def test_a_critic_with_other_tokens_is_refused(judge: Path, stranger: Path, tmp_path: Path) -> None:
    tokenizer = toyworld.tokenizer()
    refused = r"^objective\.critic: .*stranger.* has other tokens than the policy: token 0 is '<s>', and there token 1$"
    with pytest.raises(UserError, match=refused):
        critic_of(run_config({"r": str(judge)}, critic=str(stranger)), tokenizer)
    with pytest.raises(
        UserError, match=r"^objective\.critic: no reward model .* set objective\.critic to a model with"
    ):
        critic_of(run_config({"s": str(stranger), "t": "toy"}), tokenizer)
    with pytest.raises(UserError, match=r"^objective\.critic: \./nowhere: no such folder"):
        critic_of(run_config({"r": str(judge)}, critic="./nowhere"), tokenizer)
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<|late|>"])
    with pytest.raises(UserError, match=rf"token {len(tokenizer)} is '<\|late\|>', and there none$"):
        critic_of(run_config({"r": str(judge)}, critic=str(judge)), more)
    fewer = tmp_path / "fewer"
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    model.resize_token_embeddings(len(tokenizer) - 1)
    model.save_pretrained(fewer)
    tokenizer.save_pretrained(fewer)
    told = rf"it has embeddings for {len(tokenizer) - 1} tokens, the policy for {len(tokenizer)}$"
    with pytest.raises(UserError, match=told):
        critic_of(run_config({"r": str(judge)}, critic=str(fewer)), tokenizer)
