"""The objectives' sections of the configuration; `docs/objectives.md` has their formulas."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from orpo_ray.config.paths import Place
from orpo_ray.config.section import Number, Section

NllTokens = Literal["prompt_and_chosen", "chosen"]
TokenColumn = Literal["old_logps", "advantages", "old_values", "returns", "importance"]
"""What a loss of tokens may read of each token of a response: the log-prob by the policy that wrote it, its advantage,
the critic's value of that time and the return that it is to learn, and what the token weighs."""
Column = Literal["reference", "choices", "desirable", "baseline"] | TokenColumn
"""What a loss may read beside scores and lengths: summed log-probs under a reference model, `(rows, K)`; of each better
response in how many rows it is one; labels of the responses; a reference point of the whole step. Or what is known of
each token, `(tokens,)`."""

KL_STEP = 0.2
"""As far as an adaptive KL coefficient takes the relative error of the KL to its target."""


class ObjectiveSection(Section):
    """An objective: its settings, and all that others have to know of it but its formula."""

    title: ClassVar[str]
    """What pages call it."""
    model: ClassVar[Literal["policy", "reward"]] = "policy"
    """What it trains."""
    best_alone: ClassVar[bool] = False
    """Whether training packs the best (chosen) response of a prompt alone."""
    rolls_out: ClassVar[bool] = False
    """Whether it trains on what the policy itself writes (`rollouts`)."""
    by_token: ClassVar[bool] = False
    """Whether its loss reads each token's log-prob, or sums over responses."""
    has_critic: ClassVar[bool] = False
    """Whether a critic is trained beside the policy."""
    epochs_of_rollouts: ClassVar[int] = 1
    """Default of `rollouts.epochs`."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What its loss reads beside scores and lengths."""
        return ()

    @property
    def compares(self) -> ObjectiveSection:
        """The objective whose loss it is, and whose key `reference` names a reference model: itself, or that of the
        pairs of rollouts."""
        return self

    @property
    def score_prompts(self) -> bool:
        """Whether the NLL counts prompt tokens."""
        return getattr(self, "nll_tokens", None) == "prompt_and_chosen"

    @property
    def judges_labels(self) -> bool:
        """Whether responses are judged one by one, by their labels, against a reference point."""
        return "desirable" in self.columns


class ReferenceSection(ObjectiveSection):
    """An objective that compares with a reference model, which its key `reference` names."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return ("reference",)


class OrpoConfig(ObjectiveSection):
    """ORPO: `L_SFT + lambda * L_OR` (arXiv 2403.07691, Eq. 6)."""

    title = "ORPO"
    name: Literal["orpo"] = "orpo"
    lambda_: Annotated[Number, Field(ge=0, alias="lambda")] = 0.1
    """Weight of the odds-ratio term; `beta` in TRL, `alpha` in the authors' code."""
    nll_tokens: NllTokens = "prompt_and_chosen"
    """Which tokens the NLL term counts: the authors' and TRL's choice, or the response alone."""
    gradient_metrics: bool = False
    """Log the factors of the paper's gradient, `delta(d)` and the two weights of `h(d)` (Eq. 8 to 10)."""


class ProbabilityRatioConfig(ObjectiveSection):
    """The paper's ablation: the probability ratio in the place of the odds ratio."""

    title = "probability ratio"
    name: Literal["probability_ratio"] = "probability_ratio"
    lambda_: Annotated[Number, Field(ge=0, alias="lambda")] = 0.1
    """Weight of the probability-ratio term."""
    nll_tokens: NllTokens = "prompt_and_chosen"
    """Which tokens the NLL term counts: those of prompt and chosen response, or of the response alone."""


class SftConfig(ObjectiveSection):
    """Supervised fine-tuning on the chosen responses."""

    title = "SFT"
    best_alone = True
    name: Literal["sft"] = "sft"
    nll_tokens: NllTokens = "prompt_and_chosen"
    """Which tokens the NLL term counts: those of prompt and chosen response, or of the response alone."""


class DpoConfig(ReferenceSection):
    """Direct Preference Optimization (arXiv 2305.18290), from an SFT model."""

    title = "DPO"
    name: Literal["dpo"] = "dpo"
    beta: Annotated[Number, Field(gt=0)] = 0.1
    """How strongly the policy is held near the reference."""
    reference: Place | None = None
    """Hub id or folder of the reference model; default: the model that training starts from."""


class IpoConfig(ReferenceSection):
    """Identity Preference Optimization (arXiv 2310.12036), from an SFT model."""

    title = "IPO"
    name: Literal["ipo"] = "ipo"
    tau: Annotated[Number, Field(gt=0)] = 0.1
    """How strongly the policy is held near the reference: the margin that is sought is `1 / (2 * tau)`."""
    reference: Place | None = None
    """Hub id or folder of the reference model; default: the model that training starts from."""


class KtoPairConfig(ReferenceSection):
    """KTO on pairs (arXiv 2402.01306), from an SFT model."""

    title = "KTO on pairs"
    name: Literal["kto_pair"] = "kto_pair"
    beta: Annotated[Number, Field(gt=0)] = 0.1
    """How strongly the policy is held near the reference."""
    baseline: Annotated[Number, Field(ge=0)] = 0.0
    """The reference point z0, in nats per response; fixed, so that steps may be cut anywhere."""
    reference: Place | None = None
    """Hub id or folder of the reference model; default: the model that training starts from."""


class KtoConfig(ReferenceSection):
    """KTO on responses that are labelled desirable or undesirable (arXiv 2402.01306), from an SFT model."""

    title = "KTO"
    name: Literal["kto"] = "kto"
    beta: Annotated[Number, Field(gt=0)] = 0.1
    """How strongly the policy is held near the reference."""
    desirable_weight: Annotated[Number, Field(ge=0)] = 1.0
    """The paper's lambda_D. With n_D desirable and n_U undesirable responses it advises
    1 <= desirable_weight * n_D / (undesirable_weight * n_U) <= 4/3."""
    undesirable_weight: Annotated[Number, Field(ge=0)] = 1.0
    """The paper's lambda_U."""
    reference: Place | None = None
    """Hub id or folder of the reference model; default: the model that training starts from."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return ("reference", "desirable", "baseline")


class SimpoConfig(ObjectiveSection):
    """SimPO (arXiv 2405.14734), from an SFT model, without a reference."""

    title = "SimPO"
    name: Literal["simpo"] = "simpo"
    beta: Annotated[Number, Field(gt=0)] = 2.0
    """What the difference of mean log-probs a token is multiplied by."""
    gamma: Annotated[Number, Field(ge=0)] = 1.0
    """The margin that is sought, taken off the multiplied difference."""


class CpoConfig(ObjectiveSection):
    """Contrastive Preference Optimization (arXiv 2401.08417)."""

    title = "CPO"
    name: Literal["cpo"] = "cpo"
    beta: Annotated[Number, Field(gt=0)] = 0.1
    """What the difference of log-probs is multiplied by."""
    lambda_: Annotated[Number, Field(ge=0, alias="lambda")] = 1.0
    """Weight of the NLL term."""
    nll_tokens: NllTokens = "chosen"
    """Which tokens the NLL term counts: those of prompt and chosen response, or of the response alone."""


class UnlikelihoodConfig(ObjectiveSection):
    """NLL of chosen plus unlikelihood of rejected (Welleck et al. 2019)."""

    title = "unlikelihood"
    name: Literal["unlikelihood"] = "unlikelihood"
    alpha: Annotated[Number, Field(ge=0)] = 1.0
    """Weight of the unlikelihood of rejected."""
    nll_tokens: NllTokens = "prompt_and_chosen"
    """Which tokens the NLL term counts: those of prompt and chosen response, or of the response alone."""


class RewardConfig(ObjectiveSection):
    """A reward model: `-log sigmoid(r_chosen - r_rejected)` (Bradley-Terry), or the same of whole lists."""

    title = "reward model"
    model = "reward"
    name: Literal["reward"] = "reward"
    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """`plackett_luce`: the likelihood of each prompt's whole ranking, a choice of the best of those that are left after
    another; of two responses it is `bradley_terry`."""
    centre: bool = False
    """Shift the exported model's rewards so that their mean over the training set is zero."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return ("choices",) if self.loss == "plackett_luce" else ()


class PolicyGradientSection(ObjectiveSection):
    """An objective on scored rollouts of the policy, held near a reference model by a penalty in the reward."""

    rolls_out = True
    by_token = True
    clip: Annotated[Number, Field(gt=0)] = 0.2
    """How far from 1 the probability ratio of policy and old policy moves the loss."""
    kl_coefficient: Annotated[Number, Field(ge=0)] = 0.1
    """Beta: what a nat of KL to the reference costs, taken from the reward of each token; where `kl_target` is set,
    what it begins with."""
    kl_target: Annotated[Number, Field(gt=0)] | None = None
    """Nats per response that the coefficient is adapted to; null: it is fixed."""
    kl_horizon: Annotated[Number, Field(gt=0)] = 2000
    """Responses in which the coefficient adapts."""
    reference: Place | None = None
    """Hub id or folder of the reference model; default: the model that training starts from."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return ("old_logps", "advantages", "importance")


class PpoConfig(PolicyGradientSection):
    """Proximal Policy Optimization (arXiv 1707.06347) with a critic, as in InstructGPT (arXiv 2203.02155)."""

    title = "PPO"
    has_critic = True
    epochs_of_rollouts = 4
    name: Literal["ppo"] = "ppo"
    gamma: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Discount per token; the paper's trainer has 0.99."""
    gae_lambda: Annotated[Number, Field(ge=0, le=1)] = 0.95
    """Of generalised advantage estimation (arXiv 1506.02438)."""
    value_clip: Annotated[Number, Field(gt=0)] | None = 0.2
    """How far a value may move from that of the rollout before its loss is no longer less; null: as far as it will."""
    value_weight: Annotated[Number, Field(ge=0)] = 0.1
    """Of the critic's loss beside the policy's."""
    whiten_advantages: bool = True
    """Over all response tokens of a batch of rollouts."""
    critic: Place | None = None
    """What the critic starts from: a reward model, or language model, with the policy's tokens; default: the first of
    `rollouts.rewards` that is a model with these."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return (*super().columns, "old_values", "returns")


class RlooConfig(PolicyGradientSection):
    """REINFORCE leave-one-out (arXiv 2402.14740): a response is one action, its baseline the mean of the others."""

    title = "RLOO"
    name: Literal["rloo"] = "rloo"


class GrpoConfig(PolicyGradientSection):
    """Group Relative Policy Optimization (arXiv 2402.03300), its KL in the reward."""

    title = "GRPO"
    name: Literal["grpo"] = "grpo"
    scale_advantages: bool = True
    """Divide by the standard deviation within the group; false: Dr. GRPO (arXiv 2503.20783)."""
    token_mean: Literal["response", "batch"] = "response"
    """Whether the loss is the mean over responses of their tokens' means, or over all tokens of the step (DAPO)."""


class OnlineConfig(ObjectiveSection):
    """Best and worst of K responses by the reward, as a pair for an objective of pairs (arXiv 2402.04792)."""

    title = "online pairs"
    rolls_out = True
    name: Literal["online"] = "online"
    pairs: Annotated[
        OrpoConfig | ProbabilityRatioConfig | DpoConfig | IpoConfig | SimpoConfig | CpoConfig,
        Field(discriminator="name"),
    ] = DpoConfig()
    """The objective of the pairs, with its settings."""

    @property
    def compares(self) -> ObjectiveSection:
        return self.pairs

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.pairs.columns

    @property
    def score_prompts(self) -> bool:
        return self.pairs.score_prompts


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
    | RewardConfig
    | PpoConfig
    | RlooConfig
    | GrpoConfig
    | OnlineConfig,
    Field(discriminator="name"),
]
OBJECTIVES: tuple[type[ObjectiveSection], ...] = get_args(get_args(ObjectiveConfig)[0])
