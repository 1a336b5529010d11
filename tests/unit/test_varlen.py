"""The attention of CUDA devices, a kernel for a whole row, on CPU kernels of its operators (`varlen_cpu`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, random_examples
from test_attention import HEADS, PADDING, attended, examples_of, random_sizes
from test_packing_parity import plain_logps
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel
from varlen_cpu import CALLS, Fault, faulty, pretend_cuda

from orpo_ray.config import ModelConfig
from orpo_ray.data.packing import Layout, pack
from orpo_ray.modeling import attention, varlen
from orpo_ray.modeling.attention import NAME, shared_prefix_attention
from orpo_ray.modeling.memory import LEVELS, Recomputation, set_recomputation
from orpo_ray.modeling.parity import choose_way
from orpo_ray.modeling.policy import PackedPolicy, hidden_states
from orpo_ray.modeling.varlen import EFFICIENT, FLASH, Kernel, kernel_for

KERNELS_AND_WINDOWS = pytest.mark.parametrize(
    ("kernel", "window"), [(FLASH, None), (FLASH, 1), (FLASH, 3), (FLASH, 20), (EFFICIENT, None)]
)
KERNELS = pytest.mark.parametrize("kernel", [FLASH, EFFICIENT], ids=["flash", "efficient"])
EXACT = {"flash": torch.float64, "efficient": torch.float32}
"""In which dtype a whole model is computed by each kernel."""


class Recorder(TorchDispatchMode):
    """The operators that were called, each with the kinds of devices that its arguments and results are on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called: list[tuple[str, set[str]]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operator(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, results)) if isinstance(x, Tensor)]
        self.called.append((operator.name(), {x.device.type for x in tensors}))
        return results


class TestTheChoice:
    @pytest.mark.parametrize(
        ("dtype", "widths", "capability", "beside", "expected"),
        [
            (torch.bfloat16, (64, 64), (8, 0), "", FLASH),
            (torch.float16, (128, 128), (9, 0), "", FLASH),
            (torch.bfloat16, (80, 80), (12, 0), "", FLASH),
            (torch.bfloat16, (256, 256), (8, 6), "", FLASH),
            (torch.bfloat16, (64, 64), (8, 0), "window", FLASH),
            (torch.bfloat16, (64, 64), (8, 0), "dropout window", None),
            (torch.bfloat16, (64, 64), (9, 0), "dropout", EFFICIENT),
            (torch.bfloat16, (208, 208), (8, 9), "", EFFICIENT),
            (torch.bfloat16, (264, 264), (9, 0), "", EFFICIENT),
            (torch.bfloat16, (192, 128), (9, 0), "", EFFICIENT),  # multi-head latent attention
            (torch.bfloat16, (192, 128), (9, 0), "window", None),
            (torch.bfloat16, (100, 100), (9, 0), "", None),
            (torch.bfloat16, (64, 64), (7, 5), "", None),
            (torch.float16, (64, 64), (7, 5), "", EFFICIENT),
            (torch.float16, (12, 12), (8, 0), "", None),
            (torch.float32, (64, 64), (9, 0), "", EFFICIENT),
            (torch.float32, (64, 64), (7, 0), "dropout", EFFICIENT),
            (torch.float32, (64, 64), (9, 0), "window", None),
            (torch.float32, (12, 12), (8, 0), "", EFFICIENT),
            (torch.float32, (6, 6), (8, 0), "", None),
            (torch.float32, (8, 6), (8, 0), "", None),
            (torch.float64, (64, 64), (9, 0), "", None),
        ],
    )
    def test_of_a_kernel(
        self,
        dtype: torch.dtype,
        widths: tuple[int, int],
        capability: tuple[int, int],
        beside: str,
        expected: Kernel | None,
    ) -> None:
        found = kernel_for(dtype, *widths, capability, dropout="dropout" in beside, slides="window" in beside)
        assert found == expected

    @pytest.mark.parametrize(
        ("dtype", "options", "why"),
        [
            (torch.float64, {}, "none is for heads of 8 in torch.float64 on a device of compute capability 9.0"),
            (
                torch.float32,
                {"sliding_window": 9},
                "none is for heads of 8 in torch.float32 within a window on a device of compute capability 9.0",
            ),
            (torch.bfloat16, {"softcap": 20.0}, "no kernel has its soft cap or its sinks"),
        ],
    )
    def test_what_no_kernel_takes_is_computed_part_by_part_and_said_once(
        self,
        dtype: torch.dtype,
        options: dict[str, Any],
        why: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        layout = pack(random_examples(seed=1, prompts=3), score_prompts=False).layout
        expected = attended(layout, 2, dtype, **options)
        pretend_cuda(monkeypatch)
        attention._say_slow.cache_clear()
        with caplog.at_level(logging.WARNING, logger="orpo_ray"):
            found = [attended(layout, 2, dtype, **options) for _ in range(2)]
        assert [record.values["why"] for record in caplog.records] == [why]  # type: ignore[attr-defined]
        assert all(torch.equal(a, b) for each in found for a, b in zip(each, expected, strict=True))
        assert not CALLS

    def test_a_cpu_has_no_kernel_and_says_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        assert varlen.capability_of(torch.device("cpu")) is None
        attended(pack(random_examples(seed=1, prompts=2), score_prompts=False).layout, 2, torch.float64)
        assert not caplog.records

    def test_the_operator_is_called_as_both_versions_of_torch_have_it(self) -> None:
        """2.11 and 2.13."""
        arguments = [argument.name for argument in torch.ops.torch_attn._varlen_attn.default._schema.arguments]
        assert arguments[:10] == [
            "query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "is_causal", "scale", "window_size",
        ]  # fmt: skip


def of_kernel(kernel: Kernel, layout: Layout, kv_heads: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """As `attended`, in float64 by `kernel`."""
    with monkeypatch.context() as patch:
        pretend_cuda(patch)
        patch.setattr(attention, "kernel_for", lambda *told, **beside: kernel)
        return attended(layout, kv_heads, torch.float64, **options)


class TestARow:
    @KERNELS_AND_WINDOWS
    @pytest.mark.parametrize("kv_heads", [1, 2, 4])
    def test_equals_its_parts(
        self, kernel: Kernel, window: int | None, kv_heads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = np.random.default_rng(kv_heads)
        for _ in range(4):
            layout = pack(examples_of(random_sizes(rng)), score_prompts=False).layout
            options = {"sliding_window": window, "scaling": float(rng.uniform(0.1, 1))}
            found = of_kernel(kernel, layout, kv_heads, monkeypatch, **options)
            torch.testing.assert_close(found, attended(layout, kv_heads, torch.float64, **options), rtol=0, atol=1e-12)
            assert not found[0][0, -PADDING:].any()

    @KERNELS
    @pytest.mark.parametrize("continuations", range(1, 9))
    def test_of_any_number_of_continuations(
        self, kernel: Kernel, continuations: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        examples = random_examples(seed=continuations, prompts=3, continuations=continuations, longest=12)
        examples += random_examples(seed=9, prompts=1, continuations=1)  # another number than the rest
        layout = pack(examples, score_prompts=False).layout
        options = {"sliding_window": 9} if kernel is FLASH else {}
        found = of_kernel(kernel, layout, 2, monkeypatch, **options)
        torch.testing.assert_close(found, attended(layout, 2, torch.float64, **options), rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("kernel", "fault"),
        [
            (FLASH, "top left"),
            (FLASH, "window off by one"),
            (FLASH, "keys rolled"),
            (EFFICIENT, "top left"),
            (EFFICIENT, "keys rolled"),
        ],
    )
    def test_a_kernel_that_sees_other_keys_is_noticed(
        self, kernel: Kernel, fault: Fault, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layout = pack(random_examples(seed=4, prompts=3), score_prompts=False).layout
        options = {"sliding_window": 9} if kernel is FLASH else {}
        expected = attended(layout, 2, torch.float64, **options)
        with faulty(fault):
            found = of_kernel(kernel, layout, 2, monkeypatch, **options)
        assert all(float((a - b).abs().max()) > 1e-2 for a, b in zip(found, expected, strict=True))

    @KERNELS
    def test_gradients_of_copies_are_sums_in_order(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        """No operator that adds to places that may be the same: on a device these race, or sort."""
        layout = pack(random_examples(seed=4, prompts=3, continuations=4), score_prompts=False).layout
        with Recorder() as recorder:
            first = of_kernel(kernel, layout, 2, monkeypatch)
        names = {name for name, _ in recorder.called}
        assert {"aten::index_select", "aten::_embedding_bag_forward_only"} <= names
        assert not [name for name in names if any(word in name for word in ("index_put", "index_add", "scatter"))]
        second = of_kernel(kernel, layout, 2, monkeypatch)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @KERNELS
    def test_a_single_continuation_needs_no_copies(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        examples = random_examples(seed=4, prompts=3, continuations=1) + examples_of([[5], [1, 1]])
        layout = pack(examples, score_prompts=False).layout
        assert torch.equal(layout.varlen.keys, torch.arange(layout.segments[-1].end))
        with Recorder() as recorder:
            found = of_kernel(kernel, layout, 2, monkeypatch)
        assert not {"aten::index_select", "aten::_embedding_bag_forward_only"} & {name for name, _ in recorder.called}
        torch.testing.assert_close(found, attended(layout, 2, torch.float64), rtol=0, atol=1e-12)

    def test_copies_are_those_of_all_continuations_but_the_first(self) -> None:
        row = pack(examples_of([[3, 2, 1], [1, 1, 2, 1]]), score_prompts=False).layout.varlen
        assert row.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 6, 8, 9, 6, 10]
        assert row.cu_seq_q.tolist() == [0, 5, 6, 8, 10, 11]
        assert row.cu_seq_k.tolist() == [0, 5, 9, 11, 14, 16]
        assert (row.max_q, row.max_k) == (5, 5)
        copies = [row.copies[a:b].tolist() for a, b in pairwise(row.cu_copies.tolist())]
        assert copies == [[0, 5], [1, 6], [2, 7], [3], [4], [8], [9, 11, 14], [10], [12], [13], [15]]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_in_half_precision_is_near(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = pack(random_examples(seed=4, prompts=3), score_prompts=False).layout
        expected = attended(layout, 2, dtype)
        pretend_cuda(monkeypatch)
        found = attended(layout, 2, dtype)
        assert CALLS == {"flash": 1, "flash_backward": 1}
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == dtype
            assert float((a - b).abs().max()) < 0.05 * float(b.abs().max())

    @KERNELS
    def test_keeps_no_copies_of_keys_for_backward(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        kept: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            kept[-1] += tensor.untyped_storage().nbytes()
            return tensor

        for sizes in ([[32, 32]], [[32, 4, 4, 4, 4, 4, 4, 4, 4]]):
            layout = pack(examples_of(sizes), score_prompts=False).layout
            kept.append(0)
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                of_kernel(kernel, layout, 2, monkeypatch)
        one, eight = kept
        extra = 8 * HEADS * 32 * (9 - 2) if kernel is EFFICIENT else 0  # its log-sums are padded to 32 a segment
        assert eight <= one + extra


class TestDropout:
    def test_takes_the_kernel_that_has_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_cuda(monkeypatch)
        layout = pack(random_examples(seed=4, prompts=2), score_prompts=False).layout
        attended(layout, 2, torch.bfloat16, dropout=0.5)
        assert CALLS == {"efficient": 1, "efficient_backward": 1}

    def test_zeroes_weights_and_keeps_their_mean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_cuda(monkeypatch)
        layout = pack(examples_of([[3, 2, 2], [2, 3, 1]]), score_prompts=False).layout
        ones = torch.ones(1, 1, layout.segments[-1].end, 4)
        torch.manual_seed(0)
        call: Callable[[], Tensor] = lambda: shared_prefix_attention(  # noqa: E731
            torch.nn.Identity(), ones, ones, ones, None, layout=layout, dropout=0.5
        )[0]
        drawn = torch.stack([call() for _ in range(400)])
        assert (drawn == 0).any()
        assert (drawn.mean(0) - 1).abs().max() < 0.25

    def test_backward_drops_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_cuda(monkeypatch)
        monkeypatch.setattr(attention, "kernel_for", lambda *told, **beside: EFFICIENT)
        layout = pack(examples_of([[3, 2, 2]]), score_prompts=False).layout

        def computed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            torch.manual_seed(0)
            return shared_prefix_attention(torch.nn.Identity(), query, key, value, None, layout=layout, dropout=0.4)[0]

        inputs = [torch.randn(1, heads, 7, 2, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1)]
        assert torch.autograd.gradcheck(computed, inputs)  # type: ignore[no-untyped-call]


class TestModels:
    @KERNELS
    @pytest.mark.parametrize("recomputation", LEVELS)
    def test_sums_and_gradients_equal_plain_forwards(
        self,
        family: PretrainedConfig,
        recomputation: Recomputation,
        kernel: Kernel,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Against Hugging Face's own in float64; errors of gradients are relative to the largest of the model."""
        name = "flash" if kernel is FLASH else "efficient"
        examples = random_examples(seed=7, prompts=3, longest=20)
        weights = torch.linspace(-1, 1, 9, dtype=torch.float64)
        plain = build(family, "sdpa", torch.float64)
        expected = torch.cat([plain_logps(plain, example) for example in examples])
        (expected * weights).sum().backward()
        policy = PackedPolicy(build(family, NAME, EXACT[name])).train()
        set_recomputation(policy, recomputation)
        pretend_cuda(monkeypatch, (9, 0), *([torch.float64] if kernel is FLASH else []))
        found = policy(pack(examples, score_prompts=True))
        (found * weights).sum().backward()
        layers = family.num_hidden_layers
        again = layers * (recomputation == "full")
        slides = kernel is EFFICIENT and getattr(family, "sliding_window", None) == 7  # which that kernel is not given
        assert dict(CALLS) == ({} if slides else {name: layers + again, f"{name}_backward": layers})
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
        scale = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
        for (place, own), packed in zip(plain.named_parameters(), policy.model.parameters(), strict=True):
            assert (own.grad is None) == (packed.grad is None), place
            if own.grad is not None and packed.grad is not None:
                assert float((packed.grad - own.grad).abs().max()) <= 1e-6 * scale, place

    def test_the_host_waits_for_nothing(self, family: PretrainedConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        """On the meta device nothing can be read back, and all that comes from the host can be seen."""
        network = build(family, NAME, torch.bfloat16).train()
        called = on_meta(network, monkeypatch, backward=True)
        assert {"torch_attn::_varlen_attn", "torch_attn::_varlen_attn_backward"} <= called

    def test_nor_in_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without backward: torch 2.13's meta kernel of that operator takes too few arguments."""
        network = build(FAMILIES["qwen3"], NAME).train()
        assert "aten::_efficient_attention_forward" in on_meta(network, monkeypatch, backward=False)


def on_meta(network: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, *, backward: bool) -> set[str]:
    """The operators that a batch is computed by; fails where one reads what is on the device, or brings something."""
    pretend_cuda(monkeypatch)
    batch = pack(random_examples(seed=2, prompts=3), score_prompts=True)
    assert batch.layout.varlen.max_q  # which a thread computes ahead
    batch, network = batch.to(torch.device("meta")), network.to("meta")
    with Recorder() as recorder:
        total = hidden_states(network, batch).sum()
        if backward:
            total.backward()
    reads = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select"}
    for name, devices in recorder.called:
        assert "meta" not in devices or (name not in reads and devices == {"meta"}), name
    return {name for name, _ in recorder.called}


class TestTheProbe:
    """Which finds out, when a model is loaded, whether it may be packed (`modeling.parity`)."""

    @pytest.mark.parametrize("fault", ["", "keys rolled"])
    def test_it_sees_the_kernel_that_trains(self, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
        """A window goes part by part in the float32 copy that a model in half precision is probed by first."""
        network = build(FAMILIES["mistral-window-shorter"], "sdpa", torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(4)  # so that rounding does not hide what is wrong
        pretend_cuda(monkeypatch)
        model = ModelConfig(name_or_path="x")
        with faulty(fault):
            reason = choose_way(network.to(torch.bfloat16), PackedPolicy, model)
        assert CALLS["flash"] and not CALLS["efficient"]
        assert reason.startswith("packed, MistralForCausalLM gives other numbers") if fault else not reason
