"""What a rank of ZeRO-3 holds while a model is loaded, partitioned and trained: two ranks on this machine's CPU.

    python benchmarks/zero3_memory.py --dtype float32
    python benchmarks/zero3_memory.py --layers 8 --vocabulary 8192 --limit 1500 --stage 2

A model of random parameters, 405 million by default, lies in float32 in a folder of safetensors. Prints, of each rank
and phase, the peak of its private memory above what it had before, in MiB: pages of the files, which all ranks of a
machine share and the kernel takes back when it needs room, are not in it. A rank that takes more than `--limit` is
ended at once, as one is whose device is full. Two trees are compared by way of PYTHONPATH.
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
    hidden_size=1024, ffn_dim=4096, num_attention_heads=16, max_position_embeddings=512,
    word_embed_proj_dim=1024,
)  # fmt: skip
# For each parameter of the model: DeepSpeed's defaults are made for models of some billions.
_THRESHOLDS = {
    "reduce_bucket_size": 1 / 8, "stage3_prefetch_bucket_size": 1 / 80, "stage3_max_live_parameters": 1 / 4,
    "stage3_max_reuse_distance": 1 / 4,
}  # fmt: skip
_PER_PARAMETER = 16
"""Bytes of a weight, its gradient and AdamW's two moments, in float32."""
_OVER = 3  # the exit code of a rank that is over the limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the run")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--vocabulary", type=int, default=50272)
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), default=3)
    parser.add_argument("--limit", type=int, help="MiB that a rank may take")
    options = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # what ranks free goes back to the system, and is seen to
    from torch.multiprocessing.spawn import ProcessExitedException
    from transformers import OPTConfig, OPTForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        model = OPTForCausalLM(OPTConfig(**_SHAPE, num_hidden_layers=options.layers, vocab_size=options.vocabulary))
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{parameters:,} parameters: {_PER_PARAMETER * parameters // 2**20} MiB with gradients and moments")
        model.save_pretrained(folder, max_shard_size="500MB")
        del model
        arguments = (folder, options.dtype, options.stage, parameters, options.limit)
        try:
            for row in on_ranks(measured, options.ranks, *arguments):
                print(row)
        except ProcessExitedException as error:
            if error.exit_code != _OVER:
                raise
            print(f"ZeRO stage {options.stage} on {options.ranks} ranks does not fit {options.limit} MiB")


def measured(folder: str, dtype: str, stage: int, parameters: int, limit: int | None) -> Rows:
    import deepspeed
    import torch
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Optimizer

    from orpo_ray.config import ModelConfig
    from orpo_ray.modeling.loading import load_policy
    from orpo_ray.training.deepspeed_engine import engine_for

    deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
    thresholds = {name: int(share * parameters) for name, share in _THRESHOLDS.items()}
    config = config_of(torch.distributed.get_world_size(), 256, 2, stage, dtype, thresholds)
    with _Peaks(limit) as peaks:
        policy = load_policy(ModelConfig.model_validate({"name_or_path": folder, "dtype": dtype}), seed=0)
        peaks.phase = "partition"
        create = Optimizer._create_fp32_partitions

        def creating(self: Any) -> None:
            peaks.phase = "optimizer"
            create(self)

        Optimizer._create_fp32_partitions = creating
        engine = engine_for(policy, config, torch.device("cpu"))
        peaks.phase = "steps"
        run_steps(engine, config, policy.model.config.vocab_size)
    rows: Rows = engine.gather({"rank": engine.rank, **{phase: size // 2**20 for phase, size in peaks.bytes.items()}})
    return rows


class _Peaks:
    """The most private memory of each `phase`, in bytes above what there was at first, looked at every millisecond.

    A process that has more than `limit` MiB is ended.
    """

    def __init__(self, limit: int | None) -> None:
        self.phase = "load"
        self._limit = None if limit is None else limit * 2**20
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
            taken = _private() - self._start
            self.bytes[phase] = max(self.bytes.get(phase, 0), taken)
            if self._limit is not None and taken > self._limit:
                rank, had = os.environ["RANK"], {name: size // 2**20 for name, size in self.bytes.items()}
                print(f"rank {rank}: over the limit: {had}", flush=True)
                os._exit(_OVER)


def _private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
