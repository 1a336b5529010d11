"""What *ORPO* (arXiv 2403.07691 v2) printed: the numbers of its tables, and where its curves start and end.

Win-rates and their standard deviations are fractions of 1, as in `orpo_ray.statistics`, of 84.0 % exactly 0.84.
Log-probs are means over a response's tokens, in nats. Nothing here is computed; the ends of curves are those
of the figures' smoothed ones. A data set is named as a paper's configuration names it: `hh`
(Anthropic HH-RLHF) or `ultrafeedback`; a method by its kind: `sft`, `dpo` (SFT+DPO), `ppo` (SFT+PPO), `orpo`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardWinRate:
    """Of ORPO against another method, as Tables 2 and 3 have it."""

    win_rate: float
    sd: float
    """Standard deviation over three rounds of sampling, of one model each: it says nothing of other training seeds."""


@dataclass(frozen=True)
class Alpaca:
    """A row of Table 1: win-rates of AlpacaEval 1.0 and 2.0."""

    model: str
    first: float
    second: float


@dataclass(frozen=True)
class Diversity:
    """A row of Table 4: mean pairwise cosines, lower where responses are more diverse."""

    model: str
    method: str
    per_input: float
    """Of five responses to one instruction."""
    across_input: float
    """Of responses to different instructions."""


@dataclass(frozen=True)
class IfEval:
    """A row of Table 6, fractions."""

    model: str
    prompt_strict: float
    prompt_loose: float
    instruction_strict: float
    instruction_loose: float


@dataclass(frozen=True)
class Curve:
    """A number's course over training."""

    start: float
    end: float
    lowest: float | None = None
    """Between the two, where it first falls and then rises."""


@dataclass(frozen=True)
class Curves:
    """Of one training run of the paper."""

    figure: int
    model: str
    data: str | None
    """None where it is not stated."""
    chosen: Curve
    rejected: Curve
    log_odds_ratio: Curve | None = None
    weight: float | None = None
    """λ; None where no odds ratio is trained on."""

    @property
    def label(self) -> str:
        """`OPT-350M on HH-RLHF`, with λ where there is one."""
        data = f" on {TITLES[self.data]}" if self.data else ""
        return f"{self.model}{data}" + ("" if self.weight is None else f", λ = {self.weight:g}")


SIZES = ("125M", "350M", "1.3B")
"""Of OPT, the rows of Tables 2 and 3."""
AGAINST = ("sft", "dpo", "ppo")
"""Their columns: what ORPO is compared with."""
TITLES = {"hh": "HH-RLHF", "ultrafeedback": "UltraFeedback"}
TABLES = {"hh": "table-2", "ultrafeedback": "table-3"}
"""Where the win-rates of each data set stand."""
ROUNDS = 3

WIN_RATES: dict[tuple[str, str, str], RewardWinRate] = {
    ("hh", "125M", "sft"): RewardWinRate(0.840, 0.0062),
    ("hh", "125M", "dpo"): RewardWinRate(0.417, 0.0077),
    ("hh", "125M", "ppo"): RewardWinRate(0.661, 0.0026),
    ("hh", "350M", "sft"): RewardWinRate(0.827, 0.0056),
    ("hh", "350M", "dpo"): RewardWinRate(0.494, 0.0054),
    ("hh", "350M", "ppo"): RewardWinRate(0.794, 0.0029),
    ("hh", "1.3B", "sft"): RewardWinRate(0.780, 0.0016),
    ("hh", "1.3B", "dpo"): RewardWinRate(0.709, 0.0052),
    ("hh", "1.3B", "ppo"): RewardWinRate(0.659, 0.0033),
    ("ultrafeedback", "125M", "sft"): RewardWinRate(0.732, 0.0012),
    ("ultrafeedback", "125M", "dpo"): RewardWinRate(0.488, 0.0029),
    ("ultrafeedback", "125M", "ppo"): RewardWinRate(0.714, 0.0028),
    ("ultrafeedback", "350M", "sft"): RewardWinRate(0.805, 0.0054),
    ("ultrafeedback", "350M", "dpo"): RewardWinRate(0.505, 0.0017),
    ("ultrafeedback", "350M", "ppo"): RewardWinRate(0.858, 0.0062),
    ("ultrafeedback", "1.3B", "sft"): RewardWinRate(0.694, 0.0057),
    ("ultrafeedback", "1.3B", "dpo"): RewardWinRate(0.578, 0.0073),
    ("ultrafeedback", "1.3B", "ppo"): RewardWinRate(0.657, 0.0107),
}
"""Tables 2 and 3: of ORPO on a data set, at a size, against a method; an OPT-1.3B reward model judged."""

ALPACA = (
    Alpaca("Phi-2 SFT", 0.4837, 0.0011),
    Alpaca("Phi-2 SFT+DPO", 0.5063, 0.0078),
    Alpaca("Phi-2 ORPO", 0.7180, 0.0635),
    Alpaca("Llama-2-Chat 7B", 0.7134, 0.0496),
    Alpaca("Llama-2-Chat 13B", 0.8109, 0.0770),
    Alpaca("Llama-2 ORPO", 0.8126, 0.0944),
    Alpaca("Zephyr α", 0.8576, 0.0835),
    Alpaca("Zephyr β", 0.9060, 0.1099),
    Alpaca("Mistral-ORPO-α", 0.8792, 0.1133),
    Alpaca("Mistral-ORPO-β", 0.9141, 0.1220),
)
"""Table 1, in its order. AlpacaEval 2.0's leaderboard later gave Mistral-ORPO-β 12.57 %, length-controlled 14.72 %."""

DIVERSITY = (
    Diversity("Phi-2", "dpo", 0.8012, 0.6019),
    Diversity("Phi-2", "orpo", 0.8909, 0.5173),
    Diversity("Llama-2", "dpo", 0.8889, 0.5658),
    Diversity("Llama-2", "orpo", 0.9008, 0.5091),
)
"""Table 4. (Its Eq. 13 divides by 4 besides; the table's numbers are plain means.)"""

IFEVAL = (
    IfEval("Mistral-ORPO-α", 0.5009, 0.5083, 0.5995, 0.6163),
    IfEval("Mistral-ORPO-β", 0.5287, 0.5564, 0.6355, 0.6619),
)
"""Table 6."""

MT_BENCH = {"Mistral-ORPO-α": 7.23, "Mistral-ORPO-β": 7.32, "Mistral-ORPO, λ = 1.0": 6.74}
"""Scores of 1 to 10 over all categories; those of Figure 10, by category, are not given as numbers."""

FIGURE_3 = Curves(3, "OPT-350M", "hh", chosen=Curve(-2.51, -2.16), rejected=Curve(-2.54, -2.17))
"""SFT on the chosen responses alone."""
FIGURE_7 = Curves(
    7, "OPT-350M", None, chosen=Curve(-1.35, -0.72), rejected=Curve(-1.46, -1.73),
    log_odds_ratio=Curve(0.17, 1.44, lowest=0.08), weight=1.0,
)  # fmt: skip
"""ORPO."""
FIGURE_9 = (
    Curves(9, "Mistral-7B", "ultrafeedback", Curve(-2.07, -0.81), Curve(-2.13, -1.16), weight=0.1),
    Curves(9, "Mistral-7B", "ultrafeedback", Curve(-2.02, -1.12), Curve(-2.10, -2.32), weight=0.5),
    Curves(9, "Mistral-7B", "ultrafeedback", Curve(-1.37, -1.10), Curve(-1.38, -2.19), weight=1.0),
)
"""ORPO by λ."""
