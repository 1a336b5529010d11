"""Ray Train's trainer, whose Ctrl-C is the command's (see `stopping`)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.train.torch import TorchTrainer

_SECONDS = 5.0


class ControlledTrainer(TorchTrainer):  # type: ignore[misc]
    """Leaves SIGINT as it is; to be ended by `abort`."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray Train's own handler ends the workers at once, and then the process."""
        self._controller = controller

    def abort(self) -> None:
        """End the workers, wherever they are, before another command may take up the run."""
        if self._controller is not None:
            with suppress(ray.exceptions.RayError):  # it is gone when it has done so
                ray.get(self._controller.abort.remote(), timeout=_SECONDS)
