"""Bytes of tensors on a CPU, whose allocator does not count them: so a rehearsal measures memory too."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountedTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of all tensors that operators give while it is on, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operator(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.device.type == "cpu":
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: object) -> None:
            del self._alive[key]
            self.held -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.held += size
        self.peak = max(self.peak, self.held)
