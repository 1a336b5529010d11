"""The objectives' sections of the configuration; `docs/objectives.md` has their formulas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orpo_ray.config.section import Number, Section

NllTokens = Literal["prompt_and_chosen", "chosen"]


class OrpoConfig(Section):
    """ORPO: `L_SFT + lambda * L_OR` (arXiv 2403.07691, Eq. 6)."""

    name: Literal["orpo"] = "orpo"
    lambda_: Annotated[Number, Field(ge=0, alias="lambda")] = 0.1
    """Weight of the odds-ratio term; `beta` in TRL, `alpha` in the authors' code."""
    nll_tokens: NllTokens = "prompt_and_chosen"
    """Which tokens the NLL term counts: the authors' and TRL's choice, or the response alone."""
    gradient_metrics: bool = False
    """Log the factors of the paper's gradient, `delta(d)` and the two weights of `h(d)` (Eq. 8 to 10)."""


class ProbabilityRatioConfig(Section):
    """The paper's ablation: the probability ratio in the place of the odds ratio."""

    name: Literal["probability_ratio"] = "probability_ratio"
    lambda_: Annotated[Number, Field(ge=0, alias="lambda")] = 0.1
    nll_tokens: NllTokens = "prompt_and_chosen"


class SftConfig(Section):
    """Supervised fine-tuning on the chosen responses."""

    name: Literal["sft"] = "sft"
    nll_tokens: NllTokens = "prompt_and_chosen"


class DpoConfig(Section):
    """Direct Preference Optimization (arXiv 2305.18290), from an SFT model."""

    name: Literal["dpo"] = "dpo"
    beta: Annotated[Number, Field(gt=0)] = 0.1
    reference: str | None = None
    """Hub id or folder of the reference model; default: the model that training starts from."""


class IpoConfig(Section):
    """Identity Preference Optimization (arXiv 2310.12036), from an SFT model."""

    name: Literal["ipo"] = "ipo"
    tau: Annotated[Number, Field(gt=0)] = 0.1
    reference: str | None = None


class KtoPairConfig(Section):
    """KTO on pairs (arXiv 2402.01306), from an SFT model."""

    name: Literal["kto_pair"] = "kto_pair"
    beta: Annotated[Number, Field(gt=0)] = 0.1
    baseline: Annotated[Number, Field(ge=0)] = 0.0
    """The reference point z0, in nats per response; fixed, so that steps may be cut anywhere."""
    reference: str | None = None


class KtoConfig(Section):
    """KTO on responses that are labelled desirable or undesirable (arXiv 2402.01306), from an SFT model."""

    name: Literal["kto"] = "kto"
    beta: Annotated[Number, Field(gt=0)] = 0.1
    desirable_weight: Annotated[Number, Field(ge=0)] = 1.0
    """The paper's lambda_D. With n_D desirable and n_U undesirable responses it advises
    1 <= desirable_weight * n_D / (undesirable_weight * n_U) <= 4/3."""
    undesirable_weight: Annotated[Number, Field(ge=0)] = 1.0
    """The paper's lambda_U."""
    reference: str | None = None


class SimpoConfig(Section):
    """SimPO (arXiv 2405.14734), from an SFT model, without a reference."""

    name: Literal["simpo"] = "simpo"
    beta: Annotated[Number, Field(gt=0)] = 2.0
    gamma: Annotated[Number, Field(ge=0)] = 1.0


class CpoConfig(Section):
    """Contrastive Preference Optimization (arXiv 2401.08417)."""

    name: Literal["cpo"] = "cpo"
    beta: Annotated[Number, Field(gt=0)] = 0.1
    lambda_: Annotated[Number, Field(ge=0, alias="lambda")] = 1.0
    """Weight of the NLL term."""
    nll_tokens: NllTokens = "chosen"


class UnlikelihoodConfig(Section):
    """NLL of chosen plus unlikelihood of rejected (Welleck et al. 2019)."""

    name: Literal["unlikelihood"] = "unlikelihood"
    alpha: Annotated[Number, Field(ge=0)] = 1.0
    nll_tokens: NllTokens = "prompt_and_chosen"


class RewardConfig(Section):
    """A reward model: `-log sigmoid(r_chosen - r_rejected)` (Bradley-Terry), or the same of whole lists."""

    name: Literal["reward"] = "reward"
    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """`plackett_luce`: the likelihood of each prompt's whole ranking, a choice of the best of those that are left after
    another; of two responses it is `bradley_terry`."""
    centre: bool = False
    """Shift the exported model's rewards so that their mean over the training set is zero."""


OBJECTIVES = (
    OrpoConfig, ProbabilityRatioConfig, SftConfig, DpoConfig, IpoConfig, KtoPairConfig, KtoConfig, SimpoConfig,
    CpoConfig, UnlikelihoodConfig, RewardConfig,
)  # fmt: skip
ObjectiveConfig = Annotated[
    OrpoConfig
    | ProbabilityRatioConfig
    | SftConfig
    | DpoConfig
    | IpoConfig
    | KtoPairConfig
    | KtoConfig
    | SimpoConfig
    | CpoConfig
    | UnlikelihoodConfig
    | RewardConfig,
    Field(discriminator="name"),
]
