"""Ray Train's process group of torch, whose store listens on its own address alone."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from orpo_ray.cluster.store import listen_where_told


class GroupConfig(TorchConfig):  # type: ignore[misc]
    """As Ray Train's own."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute_single(0, listen_where_told)
        super().on_start(worker_group, backend_config)
