"""What the cost model counts of a step on a device, and what it takes of measurements (benchmarks/scaling_*.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from scaling_measured import Measured  # noqa: E402
from scaling_roofline import Device, Subject  # noqa: E402

from orpo_ray.costs.cluster import Cluster  # noqa: E402
from orpo_ray.costs.step import Lengths, Load  # noqa: E402

SIZES = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "OPT-1.3B": SIZES | {"ffn_dim": 128},
    "Mistral-7B": SIZES | {"intermediate_size": 128, "num_key_value_heads": 2},
}
TOY = ROOT / "tests/unit/gpu-toy.jsonl"


@pytest.fixture
def lengths() -> Lengths:
    return np.array([[30, 20, 10], [12, 40, 7], [25, 25, 25]])


@pytest.mark.parametrize("model", FAMILIES)
def test_flops_counted_by_operators_are_those_of_the_formula(model: str, lengths: Lengths) -> None:
    subject = Subject(model, Device(), **FAMILIES[model])
    useful = Load.of(lengths).flops(subject.network)
    counted = subject.packed([lengths], "none")
    # The last token of a continuation predicts nothing and the gradient of ids is none: parts of a layer.
    assert counted.flops == pytest.approx(useful, rel=0.03)
    assert set(counted.seconds) == {"products", "attention", "elements", "update"}
    assert subject.packed([lengths], "full").flops > 1.15 * counted.flops
    assert subject.packed([lengths, lengths], "none").flops == pytest.approx(2 * counted.flops)
    assert subject.padded([lengths], "none").flops > counted.flops  # each prompt twice, and padding


def test_a_step_is_as_long_as_its_operators_or_as_the_host_that_starts_them(lengths: Lengths) -> None:
    device = Device()
    subject = Subject("OPT-1.3B", device, **FAMILIES["OPT-1.3B"])
    counts = subject.packed([lengths], "none")
    assert counts.step(device) == counts.operators * device.launch > sum(counts.seconds.values())
    assert counts.step(Device(launch=0.0)) == pytest.approx(sum(counts.seconds.values()))


def lines() -> list[dict[str, Any]]:
    """As of a GPU: a rehearsal's, with other numbers."""
    found = [json.loads(line) for line in TOY.read_text().splitlines()]
    names = {"toy-opt": "OPT-1.3B", "toy-mistral": "Mistral-7B"}
    for line in found:
        if "model" in line:
            line["model"] = names[line["model"]]
        if line["stage"] == "start":
            line["toy"] = False
        if line["stage"] == "peak":
            line["tflops"] = 700.0
        if line["stage"] == "bandwidth":
            line["gb_per_s"] = 2900.0
        if line["stage"] == "step" and line.get("ms"):
            line |= {"ms": 100.0, "useful_tflop": 40.0}
    return found


def test_measured_rates_take_the_place_of_assumed_ones(tmp_path: Path, lengths: Lengths) -> None:
    file = tmp_path / "gpu.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    measured = Measured.read(file)
    assert measured.device and measured.roofline("OPT-1.3B").products == 700e12
    assert measured.roofline("OPT-1.3B").bandwidth == 2900e9
    net = Subject("OPT-1.3B", Device(), **FAMILIES["OPT-1.3B"]).network
    cluster, device = measured.cluster("OPT-1.3B", "none", net, lengths)
    update = net.parameters * 40 / 2900e9
    assert device == measured.device and cluster.utilisation == pytest.approx(40e12 / (0.1 - update) / 989e12)
    full, _ = measured.cluster("OPT-1.3B", "full", net, lengths)
    assert full.utilisation > 1.2 * cluster.utilisation  # more computed in the same time


def test_what_was_not_measured_stays_assumed(lengths: Lengths) -> None:
    net = Subject("OPT-1.3B", Device(), **FAMILIES["OPT-1.3B"]).network
    cut_short = [line for line in lines() if line["stage"] in ("start", "peak")]
    cut_short.append({"stage": "step", "model": "OPT-1.3B", "who": "orpo_ray", "memory": "none", "out_of_memory": True})
    measured = Measured.of(cut_short)
    assert measured.roofline("OPT-1.3B").bandwidth == Device().bandwidth
    assert measured.cluster("OPT-1.3B", "none", net, lengths) == (Cluster(), "")


@pytest.mark.parametrize(("change", "message"), [({"format": 9}, "format 9"), ({"toy": True}, "rehearsal")])
def test_files_of_other_kinds_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "gpu.jsonl"
    file.write_text(json.dumps(lines()[0] | change) + "\n")
    with pytest.raises(ValueError, match=message):
        Measured.read(file)
