"""One padded forward of the trunk over chosen and rejected, and Liger's fused linear ORPO loss as its head."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from orpo_ray.bench.task import Pair, Task, Unavailable
from orpo_ray.bench.trainers.plain import IGNORED, PlainTrainer, padded


class Liger(PlainTrainer):
    """`LigerFusedLinearORPOLoss` never holds the logits of more than a pair; compiled where there is a GPU."""

    def __init__(self, task: Task) -> None:
        try:
            from liger_kernel.chunked_loss import LigerFusedLinearORPOLoss
        except ImportError as error:
            raise Unavailable(f"{error} (pip install orpo_ray[bench])") from None
        super().__init__(task)
        self.head: Any = LigerFusedLinearORPOLoss(beta=self.lambda_, compiled=self.device.type == "cuda")

    def loss(self, pairs: list[Pair]) -> Tensor:
        """Scalar: NLL of prompt and chosen per token, plus lambda times the odds-ratio loss."""
        rows = [np.r_[pair[0], pair[side]] for side in (1, 2) for pair in pairs]  # all chosen, then all rejected
        of_responses = [np.r_[np.full_like(pair[0], IGNORED), pair[side]] for side in (1, 2) for pair in pairs]
        ids = padded(rows, 0, self.device)  # (2 pairs, longest)
        real = padded([np.ones_like(row) for row in rows], 0, self.device)
        output = self.network.base_model(input_ids=ids, attention_mask=real, use_cache=False)
        head = self.network.get_output_embeddings()
        loss: Tensor = self.head(
            head.weight,
            output.last_hidden_state[:, :-1],
            padded(of_responses, IGNORED, self.device)[:, 1:],
            bias=head.bias,
            nll_target=padded(rows, IGNORED, self.device)[:, 1:],
        )[0]
        return loss
