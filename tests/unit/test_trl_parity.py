"""Loss and gradients equal TRL's on the same tokens, where TRL truncates nothing. Needs the extra `bench`."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from orpo_ray.data import toyworld
from orpo_ray.data.packing import pack
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.objectives.dpo import dpo
from orpo_ray.objectives.kto import kto
from orpo_ray.objectives.orpo import orpo
from orpo_ray.objectives.terms import Totals

pytest.importorskip("trl", reason="TRL is not installed (pip install orpo_ray[bench])")

PAIRS, BETA = 6, 0.3


def model(attention: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = copy.deepcopy(toyworld.model_config())
    config.dropout, config.num_hidden_layers = 0.0, 2
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def rows() -> Any:
    from datasets import Dataset

    records = islice(toyworld.records("toy"), PAIRS)
    return Dataset.from_list([{**r, "chosen": f" {r['chosen']}", "rejected": f" {r['rejected']}"} for r in records])


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "beta": BETA, "max_length": 128, "per_device_train_batch_size": PAIRS,
        "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip


def compare(theirs: tuple[Tensor, PreTrainedModel], ours: tuple[Tensor, PackedPolicy]) -> None:
    """Losses and every gradient within 1e-4 of the largest."""
    assert float(ours[0].detach()) == pytest.approx(float(theirs[0].detach()), abs=1e-4)
    theirs[0].backward()
    ours[0].backward()
    scale = max(float(p.grad.abs().max()) for p in theirs[1].parameters() if p.grad is not None)
    assert scale > 1e-3
    for (name, expected), actual in zip(theirs[1].named_parameters(), ours[1].model.parameters(), strict=True):
        if expected.grad is not None:
            assert actual.grad is not None, name
            assert (actual.grad - expected.grad).abs().max() <= 1e-4 * scale, name


def scored(policy: PackedPolicy, examples: list[list[np.ndarray]]) -> tuple[Tensor, Tensor]:
    batch = pack(examples, score_prompts=True)
    return policy(batch).view(PAIRS, 3), batch.lengths.view(PAIRS, 3)


def test_orpo(tmp_path: Path) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer = ORPOTrainer(
        model=model("eager"),
        args=ORPOConfig(**settings(tmp_path)),
        train_dataset=rows(),
        processing_class=toyworld.tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    examples = []
    for i in range(PAIRS):
        parts = []
        for side in ("chosen", "rejected"):
            real = batch[f"{side}_attention_mask"][i] == 1
            ids, labels = batch[f"{side}_input_ids"][i][real].numpy(), batch[f"{side}_labels"][i][real].numpy()
            parts += [ids[labels == -100], ids[labels != -100]]
        np.testing.assert_array_equal(parts[0], parts[2])
        examples.append([parts[0], parts[1], parts[3]])
    policy = PackedPolicy(model(NAME))
    sums, lengths = scored(policy, examples)
    totals = Totals(PAIRS, int(lengths[:, :2].sum()))
    compare((loss, trainer.model), (orpo(sums, lengths, totals, lambda_=BETA)[0], policy))


def test_dpo(tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=model("eager"),
        ref_model=model("eager", seed=1),
        args=DPOConfig(**settings(tmp_path)),
        train_dataset=rows(),
        processing_class=toyworld.tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    texts = []
    for ids, real, completion in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        texts.append((ids[(real == 1) & (completion == 0)].numpy(), ids[completion == 1].numpy()))
    examples = [[texts[i][0], texts[i][1], texts[i + PAIRS][1]] for i in range(PAIRS)]
    policy, reference = PackedPolicy(model(NAME)), PackedPolicy(model(NAME, seed=1))
    with torch.no_grad():
        reference_sums = scored(reference, examples)[0][:, 1:]
    sums, lengths = scored(policy, examples)
    ours = dpo(sums, lengths, Totals(PAIRS, 1), reference=reference_sums, beta=BETA)[0]
    compare((loss, trainer.model), (ours, policy))


def test_kto(tmp_path: Path) -> None:
    """On a batch that is a whole step, where the reference point is estimated on the same mismatched texts."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    records = [
        {"prompt": f"{row['prompt']} {i}", "completion": row[("chosen", "rejected")[i % 2]], "label": i % 3 != 1}
        for i, row in enumerate(rows())
    ]
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.6}
    trainer = KTOTrainer(
        model=model("eager"),
        ref_model=model("eager", seed=1),
        args=KTOConfig(**settings(tmp_path), **weights, train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(records),
        processing_class=toyworld.tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)

    def texts(prefix: str) -> list[list[np.ndarray]]:
        found = zip(
            *(batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "completion_mask")), strict=True
        )
        return [
            [ids[(real == 1) & (completion == 0)].numpy(), ids[completion == 1].numpy()]
            for ids, real, completion in found
        ]

    policy, reference = PackedPolicy(model(NAME)), PackedPolicy(model(NAME, seed=1))

    def ratios(examples: list[list[np.ndarray]]) -> tuple[Tensor, Tensor]:
        packed = pack(examples, score_prompts=False)
        with torch.no_grad():
            known = reference(packed).view(PAIRS, 2)[:, 1:]
        return policy(packed).view(PAIRS, 2), known

    with torch.no_grad():
        sums, known = ratios(texts("KL_"))
        baseline = (sums[:, 1:] - known).mean().clamp(min=0)
    assert float(baseline) > 0
    sums, known = ratios(texts(""))
    desirable = torch.as_tensor(batch["label"], dtype=torch.bool)
    totals = Totals(PAIRS, 1, records=PAIRS, desirable=int(desirable.sum()))
    ours = kto(
        sums,
        torch.ones(PAIRS, 2),
        totals,
        reference=known,
        desirable=desirable,
        baseline=baseline,
        beta=BETA,
        **weights,
    )[0]
    compare((loss, trainer.model), (ours, policy))
