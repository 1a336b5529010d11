"""Our kernels under Triton's interpreter, held against float64: run as a program, since the interpreter is chosen by an
environment variable before Triton is imported, for the whole process.

Prints a JSON object: of each case of `test_kernels.py` what its numbers differ by.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from orpo_ray.modeling import head
from orpo_ray.modeling.head import LogprobHead
from orpo_ray.modeling.kernels import logprobs_for
from orpo_ray.modeling.kernels.logprob import bytes_moved, logprobs

VOCABULARIES = (50_272, 128_256, 262_144)
ODD = (1, 2, 7, 8191, 8192, 8193, 50_257)
CASES = {
    "float32": (*VOCABULARIES, *ODD), "bfloat16": (*VOCABULARIES, *ODD), "float16": (8193, 50_272),
}  # fmt: skip
"""Vocabularies by dtype."""
BEHIND: dict[str, tuple[float, float | None]] = {
    "": (1.0, None), " scale": (0.0625, None), " softcap": (1.0, 30.0), " both": (1 / 0.7, 30.0),
}  # fmt: skip
_convert = interpreter._convert_float
_patched: set[Any] = set()


def _rounded_as_a_device_does(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    """The interpreter cuts a float32 to bfloat16, where compiled kernels round to nearest even. The way back is here
    for its speed."""
    if source == tl.float32 and target == tl.bfloat16:
        return torch.from_numpy(np.array(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
    if source == tl.bfloat16 and target == tl.float32:
        return np.array(data).astype(np.uint32) << 16
    return _convert(data, source, target, rounding)


def _called(function: Any, *given: Any, **named: Any) -> Any:
    """A function within a kernel. The interpreter looks through Triton's modules in each call, which takes four fifths
    of all time; once is enough."""
    if function.fn not in _patched:
        interpreter._patch_lang(function.fn)
        _patched.add(function.fn)
    return function.rewrite()(*given, **named)


class Traffic:
    """Bytes that the interpreter loads and stores, where no mask says not to."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> Traffic:
        self._load, self._store = builder.create_masked_load, builder.create_masked_store
        builder.create_masked_load = self._counting(self._load, 1)
        builder.create_masked_store = self._counting(self._store, 2)
        return self

    def __exit__(self, *_: object) -> None:
        builder.create_masked_load, builder.create_masked_store = self._load, self._store

    def _counting(self, operator: Callable[..., Any], place: int) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            size = arguments[0].get_element_ty().primitive_bitwidth // 8
            self.bytes += int(np.broadcast_to(arguments[place].data, arguments[0].data.shape).sum()) * size
            return operator(*arguments)

        return counting


builder = interpreter.interpreter_builder


def rows_of(vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits `(rows, vocab)` and targets `(rows,)`: of a usual token, of a probable one, of an all but certain one, and
    behind a mask that fills whole blocks, the first among them."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(4, vocab, generator=generator) * 3
    targets = torch.randint(0, vocab, (4,), generator=generator)
    targets[3] = vocab - 1
    logits[1, targets[1]] = 22
    logits[2, targets[2]] = 60
    logits[3, : vocab * 3 // 4] = -math.inf
    return logits.to(dtype), targets


def truth(logits: Tensor, targets: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    given = logits.double().requires_grad_()
    shown = given * scale if softcap is None else softcap * (given * scale / softcap).tanh()
    chosen = shown.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return chosen.detach(), torch.autograd.grad(-chosen.sum(), given)[0]


def plainly(logits: Tensor, targets: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """By the head's own operators of PyTorch."""
    with plain_path():
        found, residuals = head._of_logits(logits.clone(), targets, head._Way(scale, softcap), logits.dtype)
    assert residuals is not None
    return found, residuals


class plain_path:
    def __enter__(self) -> None:
        head.logprobs_for = lambda logits: None  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        head.logprobs_for = logprobs_for


def apart(found: Tensor, expected: Tensor, floor: float = 1e-30) -> float:
    """The largest difference, over the largest number expected, or over `floor` where that is less."""
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), floor)


def rows_apart(residuals: Tensor, expected: Tensor) -> float:
    """Of a row. Where the target is so probable that all are near 0, its log-prob has no more digits in float32."""
    return max(apart(*row, floor=0.25) for row in zip(residuals, expected, strict=True))


def of_kernel(vocab: int, dtype: torch.dtype, scale: float, softcap: float | None) -> dict[str, Any]:
    logits, targets = rows_of(vocab, dtype)
    residuals = torch.empty_like(logits)
    with Traffic() as traffic:
        found = logprobs(logits, targets, residuals, scale, softcap)
    moved = traffic.bytes
    with Traffic() as traffic:
        only = logprobs(logits, targets, None, scale, softcap)
    in_place = logits.clone()
    again = logprobs(in_place, targets, in_place, scale, softcap)
    expected, gradient = truth(logits, targets, scale, softcap)
    plain, plain_residuals = plainly(logits, targets, scale, softcap)
    return {
        "value": apart(found, expected), "plain value": apart(plain, expected),
        "gradient": rows_apart(residuals, gradient), "plain gradient": rows_apart(plain_residuals, gradient),
        "each": float(((residuals[0] - gradient[0]) / gradient[0]).abs().max()),
        "own": apart(residuals[1, targets[1]], gradient[1, targets[1]]),
        "plain own": apart(plain_residuals[1, targets[1]], gradient[1, targets[1]]),
        "same": torch.equal(found, only) and torch.equal(found, again) and torch.equal(residuals, in_place),
        "bytes": [moved, bytes_moved(4, vocab, dtype, dtype)],
        "bytes of values": [traffic.bytes, bytes_moved(4, vocab, dtype, None)],
    }  # fmt: skip


def of_head(vocab: int, dtype: torch.dtype, more: dict[str, Any]) -> dict[str, Any]:
    """Values and gradients of the whole head, in chunks, by the kernel and by PyTorch's operators, beside float64's."""

    def results(dtype: torch.dtype, chunk_rows: int) -> list[Tensor]:
        own = LogprobHead.from_linear(torch.nn.Linear(width, vocab, bias=bias is not None))
        own.weight = torch.nn.Parameter(weight.to(dtype))
        if bias is not None:
            own.bias = torch.nn.Parameter(bias.to(dtype))
        own.scale, own.softcap = more.get("scale", 1.0), more.get("softcap")
        own.float32_logits = more.get("float32_logits", False)
        own.chunk_bytes = chunk_rows * vocab * own.bytes_per_logit
        inputs = hidden.to(dtype).requires_grad_()
        logps = own(inputs, targets)
        with torch.no_grad():
            assert torch.equal(own(inputs, targets), logps)
        return [logps.detach(), *torch.autograd.grad((logps * factors).sum(), (inputs, *own.parameters()))]

    width, rows = 8, 5
    generator = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(rows, width, generator=generator).to(dtype)
    weight = torch.randn(vocab, width, generator=generator).to(dtype)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    weight[targets[0]] = 5 * hidden[0]  # probable
    bias = torch.randn(vocab, generator=generator).to(dtype) if more.get("bias") else None
    if bias is not None:
        bias[: vocab // 3] = -math.inf
        bias[targets] = 1.0
    factors = torch.randn(rows, generator=generator)
    fused = results(dtype, 2)
    with plain_path():
        plain, exact = results(dtype, 2), results(torch.float64, rows)
    return {
        "to plain": max(map(apart, fused, plain)),
        "fused": list(map(apart, fused, exact)),
        "plain": list(map(apart, plain, exact)),
    }


def of_no_numbers() -> dict[str, list[bool]]:
    """Whether log-probs are NaN: of rows with a NaN, with an infinite logit, with masked ones alone; of targets in no
    vocabulary; of a masked one."""
    logits = torch.randn(6, 9000)
    logits[0, 8999], logits[1, 3], logits[2] = math.nan, math.inf, -math.inf
    targets = torch.tensor([0, 0, 0, -1, 9000, 8999])
    logits[5, 8999] = -math.inf
    residuals = torch.empty_like(logits)
    found = logprobs(logits, targets, residuals)
    return {"nan": found.isnan().tolist(), "masked": [float(found[5]) == -math.inf, float(residuals[5, 8999]) == -1.0]}


def main() -> None:
    interpreter._convert_float = _rounded_as_a_device_does
    interpreter.InterpretedFunction.__call__ = _called
    found: dict[str, Any] = {"no numbers": of_no_numbers()}
    for name, vocabularies in CASES.items():
        for vocab in vocabularies:
            for behind, settings in BEHIND.items():
                if not behind or vocab == 8193:
                    found[f"{name} {vocab}{behind}"] = of_kernel(vocab, getattr(torch, name), *settings)
    heads: dict[str, dict[str, Any]] = {
        "": {}, " bias": {"bias": True}, " scale": {"scale": 0.5}, " softcap": {"softcap": 30.0, "scale": 2.0},
        " float32_logits": {"float32_logits": True, "softcap": 30.0},
    }  # fmt: skip
    for name in ("float32", "bfloat16"):
        for vocab in VOCABULARIES:
            for kind, more in heads.items():
                if not kind or vocab == VOCABULARIES[0]:
                    found[f"head {name} {vocab}{kind}"] = of_head(vocab, getattr(torch, name), more)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
