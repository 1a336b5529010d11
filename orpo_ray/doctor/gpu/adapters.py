"""LoRA (arXiv 2106.09685) without peft, which a bare GPU box may lack: the same products, in the same precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class _Adapted(nn.Module):
    """`base(x) + up(down(x))` of a frozen linear layer."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Linear(base.in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, base.out_features, bias=False, **like)
        with torch.no_grad():
            self.up.weight.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """`(..., out_features)` of `input (..., in_features)`."""
        found: Tensor = self.base(input) + self.up(self.down(input))
        return found


def add_adapters(network: PreTrainedModel, rank: int) -> None:
    """Freeze `network`, and put adapters on all linear layers of its trunk."""
    network.requires_grad_(False)
    trunk = network.base_model
    for name, module in list(trunk.named_modules()):
        if isinstance(module, nn.Linear):
            trunk.set_submodule(name, _Adapted(module, rank))
