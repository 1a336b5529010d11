"""Ray Train's process group of torch: its store listens on its own address alone, gloo where other hosts reach it."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from orpo_ray.cluster.interface import listen_where_the_cluster_does
from orpo_ray.cluster.store import listen_where_told


class GroupConfig(TorchConfig):  # type: ignore[misc]
    """As Ray Train's own."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len({worker.metadata.node_id for worker in worker_group.get_workers()}) > 1:
            worker_group.execute(listen_where_the_cluster_does)
        worker_group.execute_single(0, listen_where_told)
        super().on_start(worker_group, backend_config)
