"""Log-softmax at a target, and its gradient, in one kernel: two reads and a write of the logits.

PyTorch's operators take five passes: a copy to float32, log-softmax, exp, a copy back and what is gathered and
scattered at the target. Here a program owns a row and goes over it in blocks, twice: once for the sum of exponentials
(online: Milakov and Gimelshein, 2018), once to put `softmax - onehot(target)` in the logits' place. All is computed in
float32 and rounded where it is written. Nothing is added up across programs, so the same row gives the same bits.

The product that makes the logits stays cuBLAS's. To fuse it too, so that no logits are ever written (cut
cross-entropy, Wijmans et al., 2024), backward would have to compute them again block by block, a third of the head's
FLOPs more, in a kernel that has to be as fast as cuBLAS on every device; what it saves, the memory of one chunk of
logits, is bounded as it is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192
_WARPS = 8  # so a thread holds 32 logits of a block: four loads of 16 bytes in bfloat16


def logprobs(
    logits: Tensor, targets: Tensor, residuals: Tensor | None, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """Log-probs `(rows,)` in float32 of `targets (rows,)`, by `softcap * tanh(scale * logits / softcap)`, or
    `scale * logits` without a cap, of `logits (rows, vocab)` in float32, bfloat16 or float16.

    Into `residuals (rows, vocab)`, which may be `logits` themselves, goes the gradient by `logits` of minus the
    log-probs; None: it is not wanted, and the logits are read once. A target outside of the vocabulary is NaN.
    """
    rows, vocab = logits.shape
    assert logits.is_contiguous() and (residuals is None or residuals.is_contiguous())
    logps = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            _logprob[(rows,)](
                logits, targets.contiguous(), logps, logits if residuals is None else residuals, vocab, float(scale),
                1.0 if softcap is None else float(softcap), CAPPED=softcap is not None, WRITES=residuals is not None,
                BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)), num_warps=_WARPS, enable_fp_fusion=True,
            )  # fmt: skip
    return logps


def bytes_moved(rows: int, vocab: int, logits: torch.dtype, residuals: torch.dtype | None) -> int:
    """Bytes that `logprobs` reads and writes. Of a row also its target, the target's logit and its log-prob."""
    each = logits.itemsize if residuals is None else 2 * logits.itemsize + residuals.itemsize
    return rows * (vocab * each + torch.int64.itemsize + logits.itemsize + torch.float32.itemsize)


@triton.jit  # type: ignore[untyped-decorator]
def _logprob(  # type: ignore[no-untyped-def]
    logits,
    targets,
    logps,
    residuals,
    vocab,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    WRITES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # rows * vocab may pass 2^31
    logits += row * vocab
    residuals += row * vocab
    target = tl.load(targets + row)
    # Before anything is written in the logits' place: the reductions below are barriers between the two.
    known = (target >= 0) & (target < vocab)
    own = _behind(tl.load(logits + target, mask=known, other=float("nan")), scale, softcap, CAPPED)

    highest = -float("inf")
    total = 0.0
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        within = columns < vocab
        block = _behind(tl.load(logits + columns, mask=within, other=0.0), scale, softcap, CAPPED)
        block = tl.where(within, block, -float("inf"))
        before = highest
        highest = tl.maximum(highest, tl.max(block, 0))
        # A vocabulary's mask may fill whole blocks with -inf, and -inf less itself is no number.
        shift = tl.where(highest == -float("inf"), 0.0, highest)
        total = total * tl.exp(before - shift) + tl.sum(tl.exp(block - shift), 0)
    shift = tl.where(highest == -float("inf"), 0.0, highest)
    logp = (own - shift) - tl.log(total)
    tl.store(logps + row, logp)

    if WRITES:
        # The target's own entry apart: softmax - 1 of a probable token would have no digit left.
        at_target = _expm1(logp)
        inverse = 1.0 / total
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            within = columns < vocab
            block = _behind(tl.load(logits + columns, mask=within, other=0.0), scale, softcap, CAPPED)
            residual = tl.where(columns == target, at_target, tl.exp(block - shift) * inverse) * scale
            if CAPPED:
                bent = block / softcap
                residual = residual * (1.0 - bent * bent)
            tl.store(residuals + columns, residual, mask=within)


@triton.jit  # type: ignore[untyped-decorator]
def _behind(logits, scale, softcap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the model does to its logits behind the layer, in float32."""
    logits = logits.to(tl.float32) * scale
    if CAPPED:
        # tanh(|u|) = -expm1(-2 |u|) / (2 + expm1(-2 |u|)): Triton's own tanh is not that of all its devices
        falling = _expm1(-2.0 * tl.abs(logits / softcap))
        bounded = -softcap * falling / (2.0 + falling)
        logits = tl.where(logits < 0, -bounded, bounded)
    return logits


@triton.jit  # type: ignore[untyped-decorator]
def _expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1 of x <= 0: near 0, where the difference would have no digits, by its series."""
    series = 1.0
    for term in tl.static_range(8):
        series = 1.0 + series * x * (1.0 / (9 - term))
    return tl.where(x > -0.5, x * series, tl.exp(x) - 1.0)
