"""The reward model: a packed batch in, a scalar reward per continuation out.

It is a Hugging Face sequence-classification model with one label, and its export is nothing else, so that
`AutoModelForSequenceClassification` and vLLM's pooling runner score with it as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray.config import ModelConfig
from orpo_ray.data.packing import PackedBatch
from orpo_ray.errors import UserError
from orpo_ray.modeling.linear import SharedLinear
from orpo_ray.modeling.loading import (
    CPU,
    Warn,
    build_network,
    load_config,
    load_tokenizer,
    log_warning,
    make_ready,
    require_weights,
)
from orpo_ray.modeling.lora import merged_weights, plain_name
from orpo_ray.modeling.plain import forward, text_rewards, text_values
from orpo_ray.modeling.policy import Packable, hidden_states

StateDict = dict[str, Tensor]

_HEAD = "score.weight"
_NO_TOKEN = -1
# What the decoders of transformers call the norm whose output their heads read.
_FINAL_NORMS = ("final_layer_norm", "final_layernorm", "ln_f", "norm")


class RewardHead(SharedLinear):
    """A score head that computes in float32 at least: a margin of bfloat16 rewards has two or three digits. It has no
    bias, as no `score` layer of transformers has."""

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., 1)` of `hidden (..., width)`."""
        exact = torch.promote_types(hidden.dtype, torch.float32)
        return F.linear(hidden.to(exact), self.weight.to(exact))


class PackedRewardModel(Packable):
    """A Hugging Face sequence-classification model of one label behind shared-prefix packing.

    `model` must have been built with `attn_implementation="shared_prefix"` (see `load_reward_model`). Its score
    head becomes a `RewardHead` with the same weight, so `model.save_pretrained` writes what it always did.
    """

    def __init__(self, model: PreTrainedModel, *, alone: str = "") -> None:
        super().__init__(model, alone)
        model.score = RewardHead.from_linear(model.score)
        self.offset = float(getattr(model.config, "reward_offset", 0.0))
        """What is subtracted from the network's own rewards (see `centre`)."""

    def forward(self, batch: PackedBatch) -> Tensor:
        """Rewards `(sequences,)` in float32: a continuation's at its last token, 0 for a prompt.

        They stand as the log-prob sums of a `PackedPolicy` do.
        """
        if self._one_by_one(batch):
            rewards = text_rewards(self.model, batch)  # (continuations,)
        else:
            hidden = hidden_states(self.model, batch)  # (tokens, width)
            rewards = self.model.score(hidden[batch.ends[batch.continuations]])[:, 0]
        return rewards.new_zeros(len(batch.ends)).index_copy(0, batch.continuations, rewards - self.offset)

    def values(self, batch: PackedBatch) -> Tensor:
        """What its head gives where each prediction of `batch` is made, before the token is there: `(predictions,)` in
        float32, of a batch whose prompts are not scored."""
        if self._one_by_one(batch):
            return text_values(self.model, batch) - self.offset
        hidden = hidden_states(self.model, batch)  # (tokens, width)
        values: Tensor = self.model.score(hidden[batch.source])[:, 0]
        return values - self.offset


def load_reward_model(
    model: ModelConfig, *, seed: int, device: torch.device = CPU, warn: Warn = log_warning
) -> PackedRewardModel:
    """The reward model on `device`, in the configured dtype, in training mode.

    `model` names a sequence-classification model of one label, whose score head is kept, or a (causal) language
    model, which gets a head drawn from `seed`, the same on every rank, from N(0, 1/(width + 1)) as in Stiennon
    et al. (arXiv 2009.01325). With `model.lora` the head is trained beside the adapters. Raises `UserError` for a
    model that is not there, is not in safetensors, lacks weights, has more than one label, has no class with a score
    head on its last token, or whose rewards nothing here computes.
    """
    config = load_config(model)
    is_classifier = any("ForSequenceClassification" in name for name in config.architectures or [])
    if model.has_weights and is_classifier and config.num_labels != 1:
        raise UserError(
            f"{model.name_or_path}: a classifier of {config.num_labels} labels, but a reward model has one; start "
            "from a model of one label or from a language model"
        )
    tokenizer = load_tokenizer(model)
    pad = ensure_pad_token(tokenizer)
    _describe_as_reward_model(config, pad)
    network, missing = build_network(AutoModelForSequenceClassification, config, model, seed, warn)
    require_head("model.name_or_path", network)
    require_weights(model.name_or_path, missing if is_classifier else missing - {_HEAD})
    if missing or not model.has_weights:
        _draw_head(network.score, seed)
    _make_room(network, tokenizer, pad)
    alone = make_ready(network, PackedRewardModel, model, seed, device, warn)
    network.score.requires_grad_(True)  # adapters freeze all that they find
    return PackedRewardModel(network, alone=alone).train()


class ForeignRewardModel(PackedRewardModel):
    """A reward model from elsewhere, as its files describe it; texts come cut at the token that it scores.

    So its own padding must not be looked for once more: it is put out of the way but for `plain`.
    """

    def __init__(self, model: PreTrainedModel, *, alone: str, attention: str, pad: int | None) -> None:
        super().__init__(model, alone=alone)
        self._attention = attention
        self._pad = pad

    def plain(self, ids: Sequence[int], attention: str | None = None) -> float:
        """The reward of a whole text by the network's own forward, which finds the token to score by itself.

        `attention`: an implementation of transformers; default: the one that it would take.
        """
        packed = self.model.config._attn_implementation
        self.model.set_attn_implementation(attention or self._attention)
        _set_padding(self.model.config, self._pad)
        try:
            with torch.inference_mode():
                reward = forward(self.model, torch.tensor([list(ids)], device=self.model.device))[0, 0]
        finally:
            _set_padding(self.model.config, _NO_TOKEN)
            self.model.set_attn_implementation(packed)
        return float(reward)


def load_foreign_reward_model(
    model: ModelConfig, *, device: torch.device = CPU, warn: Warn = log_warning
) -> ForeignRewardModel:
    """A reward model that was not trained here, on `device`, for scoring: nothing of it is changed.

    Raises `UserError` as `load_reward_model` does.
    """
    config = load_config(model)
    pad = padding_of(config)
    network, missing = build_network(AutoModelForSequenceClassification, config, model, 0, warn)
    require_head(model.name_or_path, network)
    require_weights(model.name_or_path, missing)
    attention = network.config._attn_implementation
    _set_padding(network.config, _NO_TOKEN)
    alone = make_ready(network, PackedRewardModel, model, 0, device, warn)
    return ForeignRewardModel(network, alone=alone, attention=attention, pad=pad).eval()


def padding_of(config: PretrainedConfig) -> int | None:
    """The token that a classifier of transformers passes over when it looks for the one to score; None: it scores
    the last one."""
    pad: int | None = config.get_text_config().pad_token_id
    return pad


def _set_padding(config: PretrainedConfig, pad: int | None) -> None:
    config.get_text_config().pad_token_id = pad


def require_head(name: str, network: PreTrainedModel) -> None:
    """Raises `UserError` where a classifier reads its score elsewhere than by a linear layer at a token."""
    if not isinstance(getattr(network, "score", None), nn.Linear):
        raise UserError(f"{name}: {type(network).__name__} has no linear score head on its last token")


def ensure_pad_token(tokenizer: Tokenizer) -> int:
    """Have `tokenizer` pad, on the right, with a token that no text ends in; returns its id.

    Hugging Face's classifiers score the last token that is not padding. Where padding is EOS, as is common, a text
    that ends in EOS would be scored before its end; so `<|pad|>` is added where there is no padding of its own.
    The tokenizer that is saved beside a reward model must have been through this.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return int(tokenizer.pad_token_id)


def centre(model: PackedRewardModel, mean: float, weights: StateDict | None = None) -> None:
    """Shift every reward of `model` by `-mean`, so that those whose mean it was have mean zero.

    The shift goes into the bias of the last LayerNorm, which only the score head reads, so that plain Hugging Face
    and vLLM give centred rewards too. A model without one (the RMSNorm families: Llama, Mistral, Qwen) gets
    `reward_offset` in its config instead: `PackedRewardModel` subtracts it, others have to.

    `weights`: the state dict that is to be exported, such as an engine gathers under ZeRO-3, adapters merged. It and
    the config then change, while `model` itself computes on as before: centring the next export needs the mean of
    that time alone. By default the model changes, whose parameters must be whole.
    """
    found = _last_bias(model.model)
    if found is None:
        model.model.config.reward_offset = model.offset + mean
        if weights is None:
            model.offset += mean
        return
    name, projection = found
    state = merged_weights(model.model, model.model.state_dict()) if weights is None else weights
    direction = state[_HEAD][0].double()  # d reward / d bias, the same for every text
    if projection is not None:
        direction = direction @ state[projection].double().to(direction.device)
    shifted = (state[name].double() - mean * direction / direction.square().sum()).to(state[name].dtype)
    if weights is None:
        state[name].copy_(shifted)
    else:
        weights[name] = shifted


def _last_bias(network: PreTrainedModel) -> tuple[str, str | None] | None:
    """Names of the last LayerNorm's bias and of the projection between it and the score head, if any."""
    base = network.base_model
    decoder = getattr(base, "decoder", base)  # OPT's layers are one level down
    norms = [getattr(decoder, name, None) for name in _FINAL_NORMS]
    if not getattr(network.config, "do_layer_norm_before", True):
        norms.append(decoder.layers[-1].final_layer_norm)  # OPT-350M normalises after each layer
    norm = next((norm for norm in norms if isinstance(norm, nn.LayerNorm) and norm.bias is not None), None)
    if norm is None:
        return None
    projection = getattr(decoder, "project_out", None)
    names = {id(parameter): plain_name(name) for name, parameter in network.named_parameters()}
    return names[id(norm.bias)], None if projection is None else names[id(projection.weight)]


def _describe_as_reward_model(config: PretrainedConfig, pad: int) -> None:
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    # For vLLM and transformers' pipelines: the logit is the answer, not the argument of a sigmoid.
    config.problem_type = "regression"
    config.pad_token_id = pad if pad < config.vocab_size else None


def _make_room(network: PreTrainedModel, tokenizer: Tokenizer, pad: int) -> None:
    """An embedding for padding that was added to a full vocabulary. Attention masks it, so it may be anything."""
    embedded = network.config.vocab_size
    if pad >= embedded:
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            network.get_input_embeddings().weight[embedded:] = 0.0
    network.config.pad_token_id = pad


def _draw_head(score: nn.Linear, seed: int) -> None:
    drawn = torch.randn(score.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        score.weight.copy_(drawn / (score.in_features + 1) ** 0.5)
