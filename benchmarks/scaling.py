"""How long a training step takes, what limits it, and what fits where: measured here, and predicted for H100 nodes.

    python benchmarks/scaling.py

Five parts, minutes of two CPU cores in all; `--parts` picks some, the results of the others stay in `--out`.

- input: the schedule of a step at up to 4,096 ranks over up to ten million pairs, with the trainer's own code, and the
  memory it takes (scaling_input.py).
- fit: steps of small networks on this CPU, in one process and through ZeRO-2 and ZeRO-3 on two ranks, and the cost
  model's coefficients fitted to them (scaling_fit.py).
- traffic: what DeepSpeed sends and holds, counted (scaling_traffic.py).
- predict: the cost model (scaling_model.py) with published figures of H100 nodes (scaling_predict.py); and the figure.
- device: a step on one H100, operator by operator, beside padded rows (scaling_device.py).

`--measured FILE`, lines of `orpo-ray doctor --gpu`, takes the place of what predict and device assume of a GPU.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import scaling_device
import scaling_fit
import scaling_input
import scaling_traffic
import torch
from scaling_figure import draw
from scaling_measured import Measured
from scaling_predict import Predictions

from orpo_ray.bench.results import machine
from orpo_ray.costs.step import Lengths

PARTS = ("input", "fit", "traffic", "predict", "device")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--ultrafeedback", default="../shared/data/ultrafeedback/train-1000.jsonl")
    parser.add_argument("--hh", default="../shared/data/hh_rlhf/helpful-base-test.jsonl.gz")
    parser.add_argument("--tokenizer", default="../shared/tokenizers/opt")
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"), help="token caches (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/scaling.png"))
    parser.add_argument("--measured", type=Path, metavar="FILE", help="lines of orpo-ray doctor --gpu")
    arguments = parser.parse_args()
    measured = Measured() if arguments.measured is None else Measured.read(arguments.measured)

    lengths: dict[str, Lengths] = {
        "UltraFeedback": scaling_input.real_lengths(
            arguments.ultrafeedback, arguments.tokenizer, 2048, 1024, arguments.work
        ),
        "HH-RLHF": scaling_input.real_lengths(arguments.hh, arguments.tokenizer, 1024, 768, arguments.work),
    }
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    packages = ("torch", "deepspeed", "numpy", "transformers")
    results |= {"machine": machine(torch.device("cpu")), "versions": {name: version(name) for name in packages}}
    if "input" in arguments.parts:
        results["input"] = scaling_input.measure(lengths["UltraFeedback"], arguments.work / "synthetic")
    if "fit" in arguments.parts:
        results["fit"] = scaling_fit.measure()
    if "traffic" in arguments.parts:
        results["traffic"] = scaling_traffic.measure()
    if "predict" in arguments.parts:
        prepared = {
            (step["ranks"], step["batch"]): step["plan_seconds"] + step["pack_seconds"]
            for row in results["input"] if row["state"] == "found split" for step in row["steps"]
        }  # fmt: skip  # the largest data set comes last
        results["predicted"] = Predictions(lengths, prepared, results["traffic"], measured).all()
        draw(results, arguments.figure)
    if "device" in arguments.parts:
        results["device"] = scaling_device.steps(lengths["UltraFeedback"], measured)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
