"""A live engine by transformers' own `generate`, for models that vLLM does not compute: see `plain_generation`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from orpo_ray.cluster.turns import let_go
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Live
from orpo_ray.inference.plain_generation import AT_ONCE, Row, Waiting, draw, load_network


class LivePlain(Live):
    """A network whose weights are replaced in place."""

    def _start(self) -> PreTrainedModel:
        self._waiting = Waiting(self._answer)
        return load_network(self._options.model, self._options.folder)

    def at_once(self) -> int:
        return AT_ONCE

    def _drawn(self, requests: Sequence[Request]) -> list[tuple[Request, list[int], list[float]]]:
        found = self._waiting.advance(requests)
        let_go(self._network.device)
        return found

    def _answer(self, requests: Sequence[Request]) -> list[tuple[Request, list[int], list[float]]]:
        rows = [Row(self._ends) for _ in requests]
        logps = draw(self._network, requests, rows, self._options.max_tokens, self._options.temperature).tolist()
        return [
            (request, row.ids, of_row[: len(row.ids)])
            for request, row, of_row in zip(requests, rows, logps, strict=True)
        ]

    def _replace(self, weights: dict[str, Tensor]) -> None:
        if self._asleep:
            for parameter in self._network.parameters():
                parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        held = self._network.state_dict()
        with torch.no_grad():
            for name, weight in weights.items():
                held[name].copy_(weight)

    def _let_go(self) -> None:
        for parameter in self._network.parameters():  # a number each, as if it were all of them
            parameter.data = parameter.data.new_zeros(()).expand(parameter.shape)
        let_go(self._network.device)
