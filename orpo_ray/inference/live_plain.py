"""A live engine by transformers' own `generate`, for models that vLLM does not compute: see `plain_generation`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Live, LiveOptions
from orpo_ray.inference.plain_generation import Row, Waiting, draw, load_network


class LivePlain(Live):
    """A network whose weights are replaced in place."""

    def __init__(self, options: LiveOptions) -> None:
        """Raises `UserError` where the folder holds no whole model in safetensors, or comes with code of its own."""
        super().__init__(options)
        self._held = load_network(options.model, options.folder)
        self._waiting = Waiting(self._answer)

    def cancel(self) -> None:
        self._waiting.cancel()

    @property
    def _network(self) -> PreTrainedModel:
        return self._held

    def _at_work(self) -> int:
        return len(self._waiting)

    def _drawn(self, requests: Sequence[Request]) -> list[tuple[Request, list[int], list[float]]]:
        return self._waiting.advance(requests)

    def _answer(self, requests: Sequence[Request]) -> list[tuple[Request, list[int], list[float]]]:
        rows = [Row(self._ends) for _ in requests]
        logps = draw(self._held, requests, rows, self.options.max_tokens, self.options.temperature).tolist()
        return [
            (request, row.ids, of_row[: len(row.ids)]) for request, row, of_row in zip(requests, rows, logps, strict=True)
        ]

    def _replace(self, weights: dict[str, Tensor]) -> None:
        held = self._held.state_dict()
        with torch.no_grad():
            for name, weight in weights.items():
                held[name].copy_(weight)
