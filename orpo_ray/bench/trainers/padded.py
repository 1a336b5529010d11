"""The baseline of the authors' code: two padded forwards, chosen and rejected, with all their logits."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import log_softmax

from orpo_ray.bench.task import Pair
from orpo_ray.bench.trainers.plain import PlainTrainer, odds_ratio_loss, padded
from orpo_ray.data.packing import Ids


class Padded(PlainTrainer):
    """ORPO (arXiv 2403.07691, Eq. 6) over prompt + response of each side, padded to the longest of that side."""

    def loss(self, pairs: list[Pair]) -> Tensor:
        """Scalar: NLL of prompt and chosen per token, plus lambda times the odds-ratio loss."""
        prompts = [prompt for prompt, _, _ in pairs]
        chosen, nll = self._scored(prompts, [chosen for _, chosen, _ in pairs])
        rejected, _ = self._scored(prompts, [rejected for _, _, rejected in pairs])
        return nll + self.lambda_ * odds_ratio_loss(chosen, rejected)

    def _scored(self, prompts: list[Ids], responses: list[Ids]) -> tuple[Tensor, Tensor]:
        """Mean log-prob `(pairs,)` of each response, and the scalar NLL per token of prompts and responses."""
        rows = [np.r_[prompt, response] for prompt, response in zip(prompts, responses, strict=True)]
        ids = padded(rows, 0, self.device)  # (pairs, longest)
        real = padded([np.ones_like(row) for row in rows], 0, self.device)
        parts = [np.r_[np.zeros_like(p), np.ones_like(r)] for p, r in zip(prompts, responses, strict=True)]
        in_response = padded(parts, 0, self.device)[:, 1:]
        logits = self.network(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1]
        exact = logits if logits.element_size() >= 4 else logits.float()
        logps = log_softmax(exact, dim=-1).gather(2, ids[:, 1:, None])[..., 0]  # (pairs, longest - 1)
        real = real[:, 1:]
        return (logps * in_response).sum(1) / in_response.sum(1), -(logps * real).sum() / real.sum()
