#!/usr/bin/env bash
# torch 2.13.0: the gradient of `aten::_efficient_attention_forward`, the kernel of memory-efficient attention that
# takes sequences of several lengths and a `window_size`, is that of another function. Its backward operator has a
# `window_size` too, but autograd never sets it: the gradient is computed as if each token saw all before it, with the
# log-sums of a forward in which it saw the window alone, and no error says so. Who needs the window has to call both
# operators himself. Nor can it be noticed on the meta device: there the backward operator cannot be called by
# autograd at all, with a window or without, because its meta kernel has no `out` and no `window_size` among its
# parameters.
#
# What autograd hands over is recorded on meta tensors (no GPU is needed; the same code hands it over for any device),
# with an answer of the right shapes in the meta kernel's place.
#
# Seen: "forward: window_size 16, backward: window_size None (may be set: True)", "scale 0.5, 0.5", "no window,
# torch's own meta kernel: TypeError". Exits with 1 where that has changed. Needs Python 3.11 and 1 GB; takes a few
# minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install -qq --disable-pip-version-check)
"${pip[@]}" 'torch==2.13.0+cpu' || "${pip[@]}" --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu'
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FORWARD, BACKWARD = torch.ops.aten._efficient_attention_forward, torch.ops.aten._efficient_attention_backward


class Recorded(TorchDispatchMode):
    """Notes the options that either operator is called with, and answers for the backward one."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = None

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator is FORWARD.default:
            self.forward = kwargs
        if operator is BACKWARD.default:
            self.backward = kwargs
            _, query, key, value = args[:4]
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), query.new_empty(())
        return operator(*args, **kwargs)


def attention(**window):
    """Two sequences of 32 tokens in a row, causal, two heads of 8."""
    query, key, value = (torch.empty(1, 64, 2, 8, device="meta", requires_grad=True) for _ in range(3))
    starts = torch.empty(3, dtype=torch.int32, device="meta")
    return FORWARD(query, key, value, None, starts, starts, 32, 32, 0.0, 1, True, scale=0.5, **window)[0]


print("torch", torch.__version__)
with Recorded() as told:
    attention(window_size=16).sum().backward()
windows = told.forward.get("window_size"), told.backward.get("window_size")
takes = "window_size" in {argument.name for argument in BACKWARD.default._schema.arguments}
print(f"forward: window_size {windows[0]}, backward: window_size {windows[1]} (may be set: {takes})")
scales = told.forward.get("scale"), told.backward.get("scale")
print(f"scale {scales[0]}, {scales[1]}")
try:
    attention().sum().backward()
    ended = "done"
except TypeError:
    ended = "TypeError"
print(f"no window, torch's own meta kernel: {ended}")
sys.exit((windows, takes, scales, ended) != ((16, None), True, (0.5, 0.5), "TypeError"))
PYTHON
