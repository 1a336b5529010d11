"""Kernels in Triton: under its interpreter on the CPU, and compiled for devices that are not there."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from orpo_ray.modeling import head, kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
ROUNDING = {"float32": 1e-6, "float16": 2**-11, "bfloat16": 2**-8}
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found() -> Found:
    program = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)], capture_output=True, text=True, timeout=300, check=True
    )
    results: Found = json.loads(done.stdout)
    return results


def cases(found: Found, dtype: str) -> dict[str, dict[str, Any]]:
    return {name: case for name, case in found.items() if name.startswith(f"{dtype} ")}


@needs_triton
@pytest.mark.parametrize("dtype", ROUNDING)
def test_log_probs_and_their_gradients_are_float64s_but_for_rounding(found: Found, dtype: str) -> None:
    """Vocabularies of 1 to 262,144 entries: usual, probable and certain targets, masked vocabularies, scales, caps."""
    for name, case in cases(found, dtype).items():
        assert case["value"] <= 2e-7, name
        assert case["gradient"] <= ROUNDING[dtype], name
        assert case["gradient"] <= 1.05 * case["plain gradient"] + 1e-6, name
        if dtype != "float16" and not name.endswith(" 1"):  # which has no numbers as small as probabilities
            assert case["each"] <= max(5e-6, ROUNDING[dtype]), name


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("vocab", [50_272, 128_256, 262_144])
def test_a_probable_target_keeps_the_digits_of_its_gradient(found: Found, dtype: str, vocab: int) -> None:
    """Of about 1e-4, where softmax - 1 in bfloat16 is 0 or 0.004."""
    assert found[f"{dtype} {vocab}"]["own"] <= max(1e-4, ROUNDING[dtype])


@needs_triton
def test_the_same_bits_in_place_beside_and_without_a_gradient(found: Found) -> None:
    assert all(case["same"] for case in found.values() if "same" in case)


@needs_triton
def test_what_is_no_number_stays_none(found: Found) -> None:
    """A step is left out for a NaN: none may be lost. A target outside of the vocabulary reads nobody's memory."""
    assert found["no numbers"] == {"nan": [True] * 5 + [False], "masked": [True, True]}


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_heads_gradients_are_as_near_to_float64_as_without_the_kernel(found: Found, dtype: str) -> None:
    """In chunks; with a bias that masks, a scale, a cap, logits in float32."""
    heads = cases(found, f"head {dtype}")
    assert len(heads) == 7
    for name, case in heads.items():
        if dtype == "float32":
            assert max(case["fused"]) <= 2e-6, name
        assert all(ours <= 1.05 * theirs + 1e-6 for ours, theirs in zip(case["fused"], case["plain"], strict=True)), (
            name
        )
        if "softcap" not in name and dtype == "bfloat16":  # a cap's steps are rounded one by one there
            assert case["to plain"] <= 2**-9, name


@needs_triton
def test_what_the_kernel_moves_is_what_is_said(found: Found) -> None:
    for name, case in found.items():
        if "bytes" in case:
            assert case["bytes"][0] == case["bytes"][1], name
            assert case["bytes of values"][0] == case["bytes of values"][1], name


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write: each tensor once, though a log-softmax may go over its row several times; of
    what is gathered and scattered only the elements that are."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operator(*args, **(kwargs or {}))
        schema = operator._schema
        name = schema.name.removeprefix("aten::")
        given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | (kwargs or {})
        if name in ("gather", "scatter_"):
            self.bytes += 2 * given["index"].numel() * given["self"].itemsize + given["index"].nbytes
        elif "empty" not in name and not any(
            returned.alias_info and not returned.alias_info.is_write for returned in schema.returns
        ):
            unread = {"copy_": "self"}.get(name, "out")
            read = [value for key, value in given.items() if isinstance(value, torch.Tensor) and key != unread]
            written = [results] if isinstance(results, torch.Tensor) else []
            self.bytes += sum(tensor.nbytes for tensor in (*read, *written))
        return results


def plain_traffic(vocab: int, dtype: torch.dtype, way: head._Way, gradients: torch.dtype) -> float:
    """Bytes a logit that the head's operators of PyTorch move."""
    rows = 3
    logits, targets = torch.randn(rows, vocab).to(dtype), torch.arange(rows)
    with Traffic() as traffic:
        head._of_logits(logits, targets, way, gradients)
    return traffic.bytes / logits.numel()


HALF, SINGLE = torch.bfloat16, torch.float32
BYTES: dict[str, tuple[torch.dtype, head._Way, torch.dtype, int, int]] = {
    "bfloat16": (HALF, head._Way(), HALF, 28, 6),
    "bfloat16, values alone": (HALF, head._Way(learns=False), HALF, 14, 2),
    "bfloat16, scaled": (HALF, head._Way(0.5), HALF, 36, 6),
    "bfloat16, capped": (HALF, head._Way(1.0, 30.0), HALF, 70, 6),
    "float32_logits": (SINGLE, head._Way(float32=True), HALF, 22, 10),
    "float32": (SINGLE, head._Way(), SINGLE, 16, 12),
}
"""Bytes a logit, by PyTorch's operators and by the kernel: docs/scaling.md."""


@needs_triton
@pytest.mark.parametrize("kind", BYTES)
def test_bytes_moved_beside_the_plain_heads(kind: str) -> None:
    from orpo_ray.modeling.kernels.logprob import bytes_moved

    dtype, way, gradients, plain, fused = BYTES[kind]
    vocab = 128_256
    assert plain_traffic(vocab, dtype, way, gradients) == pytest.approx(plain, rel=1e-3)
    assert bytes_moved(1, vocab, dtype, gradients if way.learns else None) / vocab == pytest.approx(fused, rel=1e-3)
    if dtype == HALF:
        assert fused <= 0.4 * plain
    page = (Path(__file__).resolve().parents[2] / "docs/scaling.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| {kind}.* \| {plain} \| {fused} \| {fused / plain:.2f} \|", page, re.MULTILINE), kind


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_for_a_device_it_loads_16_bytes_at_a_time_and_counts_in_64_bits(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler: Any = pytest.importorskip("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    from orpo_ray.modeling.kernels import logprob

    values = {"CAPPED": True, "WRITES": True, "BLOCK": logprob._BLOCK}
    types = {
        "logits": "*bf16", "targets": "*i64", "logps": "*fp32", "residuals": "*bf16", "vocab": "i32", "scale": "fp32",
        "softcap": "fp32", **dict.fromkeys(values, "constexpr"),
    }  # fmt: skip
    aligned: dict[Any, Any] = {(place,): [["tt.divisibility", 16]] for place in (0, 3, 4)}
    source = compiler.ASTSource(logprob._logprob, types, constexprs=values, attrs=aligned)
    options = {"num_warps": logprob._WARPS, "enable_fp_fusion": True}
    code = compiler.compile(source, target=target, options=options).asm
    assert "ld.global.v4.b32" in code["ptx"] and "st.global.v4.b32" in code["ptx"]
    row = re.search(r"(%\w+) = arith.extsi %\w+ : i32 to i64", code["ttir"])
    assert row is not None and re.search(rf"arith.muli {row[1]}, %\w+ : i64", code["ttir"])


@needs_triton
def test_where_triton_does_not_run_that_is_said_and_operators_take_over(caplog: pytest.LogCaptureFixture) -> None:
    """As on a machine without a driver or a compiler: Triton itself has nothing to run on here."""
    if torch.cuda.is_available():
        pytest.skip("it runs here")
    tried: Callable[[torch.device], Any] = kernels._logprobs.__wrapped__
    with caplog.at_level(logging.WARNING, logger="orpo_ray"):
        assert tried(torch.device("cpu")) is None
    assert "Triton does not run" in caplog.text


def test_without_triton_operators_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orpo_ray.modeling.kernels.logprob", None)
    assert kernels._logprobs.__wrapped__(torch.device("cpu")) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_on_a_cpu_no_kernel_is_asked_for(dtype: torch.dtype) -> None:
    assert kernels.logprobs_for(torch.zeros(1, 2, dtype=dtype)) is None
