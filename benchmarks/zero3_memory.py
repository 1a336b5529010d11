"""What a rank of ZeRO-3 holds while a model is loaded, partitioned and trained: two ranks on this machine's CPU.

    python benchmarks/zero3_memory.py --dtype float32

A model of 405 million random parameters lies in float32 in a folder of safetensors. Prints, of each rank and phase, the
peak of its private memory above what it had before, in MiB: pages of the files, which all ranks of a machine share and
the kernel takes back when it needs room, are not in it. Two trees are compared by way of PYTHONPATH.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from scaling_ranks import Rows, config_of, on_ranks, run_steps

_SHAPE = dict(
    vocab_size=50272, hidden_size=1024, ffn_dim=4096, num_hidden_layers=28, num_attention_heads=16,
    max_position_embeddings=512, word_embed_proj_dim=1024,
)  # fmt: skip
_THRESHOLDS = {  # a tenth of DeepSpeed's defaults, as the model is a tenth of what they are made for
    "reduce_bucket_size": 50_000_000, "stage3_prefetch_bucket_size": 5_000_000,
    "stage3_max_live_parameters": 100_000_000, "stage3_max_reuse_distance": 100_000_000,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the run")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # what ranks free goes back to the system, and is seen to
    from transformers import OPTConfig, OPTForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        model = OPTForCausalLM(OPTConfig(**_SHAPE))
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
        model.save_pretrained(folder, max_shard_size="500MB")
        del model
        for row in on_ranks(measured, options.ranks, folder, options.dtype):
            print(row)


def measured(folder: str, dtype: str) -> Rows:
    import deepspeed
    import torch
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Optimizer

    from orpo_ray.config import ModelConfig
    from orpo_ray.modeling.loading import load_policy
    from orpo_ray.training.deepspeed_engine import DeepSpeedEngine

    deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
    config = config_of(torch.distributed.get_world_size(), 256, 2, 3, dtype, _THRESHOLDS)
    with _Peaks() as peaks:
        policy = load_policy(ModelConfig.model_validate({"name_or_path": folder, "dtype": dtype}), seed=0)
        peaks.phase = "partition"
        create = Optimizer._create_fp32_partitions

        def creating(self: Any) -> None:
            peaks.phase = "optimizer"
            create(self)

        Optimizer._create_fp32_partitions = creating
        engine = DeepSpeedEngine(policy, config, torch.device("cpu"))
        peaks.phase = "steps"
        run_steps(engine, config, _SHAPE["vocab_size"])
    rows: Rows = engine.gather({"rank": engine.rank, **{phase: size // 2**20 for phase, size in peaks.bytes.items()}})
    return rows


class _Peaks:
    """The most private memory of each `phase`, in bytes above what there was at first, looked at every millisecond."""

    def __init__(self) -> None:
        self.phase = "load"
        self.bytes: dict[str, int] = {}
        self._start, self._over = _private(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Peaks:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.001):
            phase = self.phase
            self.bytes[phase] = max(self.bytes.get(phase, 0), _private() - self._start)


def _private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
