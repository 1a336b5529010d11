"""Input preparation as one rank of many meets it, with the trainer's own code over a synthetic cache; see scaling.py.

The cache has the trainer's format. Bounds and prompt hashes are real numbers on the disk; the tokens are a hole in a
file, which takes no room. Lengths are drawn with replacement from the lengths of real pairs.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from orpo_ray.costs.step import Lengths

SIZES = (100_000, 1_000_000, 10_000_000)
RANKS, PAIRS_A_RANK, BUDGET = 512, 8, 8192
GRID = [(ranks, PAIRS_A_RANK * ranks) for ranks in (512, 1, 8, 64)] + [(8, 512), (512, 512), (4096, 8 * 4096)]
"""(ranks, pairs in a step), over the largest data set: eight pairs a rank, and 512 pairs in all. The first is that of
the smaller data sets, so that memory can be compared."""
_STEPS = 60  # of each; ten of the largest
_CHUNK = 1_000_000
_KEY = "synthetic"


def real_lengths(source: str, tokenizer: str, max_length: int, max_prompt_length: int, cache: Path) -> Lengths:
    """Lengths of the pairs of a real file, as the trainer tokenises and cuts them."""
    from orpo_ray.config import parse_config
    from orpo_ray.data.prepare import prepare
    from orpo_ray.modeling.loading import load_tokenizer

    model = Path(__file__).resolve().parents[1] / "configs/models/opt-8m"
    config = parse_config(
        {
            "name": "scaling",
            "model": {"name_or_path": str(model), "init": "random", "tokenizer": tokenizer},
            "data": {
                "train": source, "on_bad_record": "quarantine",
                "max_length": max_length, "max_prompt_length": max_prompt_length,
            },
            "storage": {"path": str(cache)},
        },
        [],
        "benchmark",
    )  # fmt: skip
    prepared = prepare(config, load_tokenizer(config.model))
    return np.concatenate([prepared.train.lengths(), prepared.eval.lengths()])


def write_cache(folder: Path, drawn_from: Lengths, pairs: int) -> None:
    """An entry of the trainer's cache with `pairs` pairs, in `folder`."""
    from orpo_ray.data.cache import ARRAYS, MANIFEST, QUARANTINE
    from orpo_ray.data.records import Account

    entry = folder / _KEY
    entry.mkdir(parents=True)
    rng = np.random.default_rng(pairs)
    end = 0
    names = ("bounds.bin", "record_ids.bin", "prompt_hashes.bin")
    bounds, record_ids, hashes = ((entry / name).open("wb") for name in names)
    with bounds, record_ids, hashes:
        for first in range(0, pairs, _CHUNK):
            size = min(_CHUNK, pairs - first)
            ends = end + np.cumsum(drawn_from[rng.integers(0, len(drawn_from), size)].ravel()).reshape(-1, 3)
            np.column_stack([np.r_[end, ends[:-1, 2]], ends]).tofile(bounds)
            np.arange(first, first + size).tofile(record_ids)
            rng.integers(0, 2**64, size, np.uint64).tofile(hashes)
            end = int(ends[-1, 2])
        for file in (bounds, record_ids, hashes):
            file.flush()
            os.fsync(file.fileno())
    with (entry / "tokens.bin").open("wb") as tokens:
        tokens.truncate(end * 4)
    for name in ("starts.bin", "ranks.bin", "question_hashes.bin", QUARANTINE):  # all are pairs, of one source
        (entry / name).touch()
    sizes = {name: (entry / name).stat().st_size for name in [*ARRAYS, QUARANTINE]}
    account = Account(read=pairs, kept=pairs)
    written = {"sizes": sizes, "account": vars(account), "digest": _KEY, "highest": [0, 0]}
    (entry / MANIFEST).write_text(json.dumps(written))


def in_this_process(folder: Path, grid: list[tuple[int, int]]) -> dict[str, Any]:
    """Seconds of a step's schedule and of packing it, and this process's memory in bytes. First 5 % of the prompts are
    held out, as `data.eval: null` does, if no process has done it yet.
    """
    from orpo_ray.data.cache import read_or_build
    from orpo_ray.data.packing import pack
    from orpo_ray.data.schedule import StepSchedule
    from orpo_ray.data.split import split_by_prompt
    from orpo_ray.training.batches import plan

    before = _memory()
    source = read_or_build(folder, _KEY, _never)
    start = time.perf_counter()
    held_in, _ = split_by_prompt(source.prompt_hashes, 0.05, 0, "synthetic", source.folder)
    result: dict[str, Any] = {
        "split_seconds": time.perf_counter() - start, "split_private_bytes": _memory()["RssAnon"] - before["RssAnon"],
    }  # fmt: skip
    data = source.pairs.subset(held_in)
    private, rows = 0, []
    for ranks, batch in grid:
        schedule = StepSchedule(len(data), batch, epochs=1000, max_steps=None, seed=0)
        plans, packs = [], []
        for step in range(_STEPS if batch <= PAIRS_A_RANK * RANKS else 10):
            start = time.perf_counter()
            work = plan(
                data, schedule.indices(step), best_alone=False, score_prompts=True,
                rank=step % ranks, ranks=ranks, budget=BUDGET,
            )  # fmt: skip
            planned = time.perf_counter()
            for cut in work.cuts:
                pack([data.pair(pair) for pair in cut.pairs.tolist()], score_prompts=True)
            packs.append(time.perf_counter() - planned)
            plans.append(planned - start)
            private = max(private, _memory()["RssAnon"] - before["RssAnon"])
        row = {
            "ranks": ranks, "batch": batch, "first_plan_seconds": plans[0], "plan_seconds": statistics.median(plans),
            "slowest_plan_seconds": max(plans[1:]), "pack_seconds": statistics.median(packs),
            "private_bytes": private,
        }  # fmt: skip
        rows.append(row)
    memory = _memory()
    return {
        "pairs": len(source.pairs), **result, "steps": rows,
        "mapped_bytes": memory["RssFile"] - before["RssFile"], "process_peak_bytes": memory["VmHWM"],
    }  # fmt: skip


def _never(writer: object) -> Any:
    raise AssertionError("the cache is there")


def _memory() -> dict[str, int]:
    """Bytes. RssAnon: private; RssFile: pages of mapped files, which a node's ranks share and the kernel may drop."""
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(value.split()[0]) * 1024 for name, value in lines if name in ("RssAnon", "RssFile", "VmHWM")}


def measure(drawn_from: Lengths, work: Path) -> list[dict[str, Any]]:
    """For each size of the data set a process that splits it, and one that finds it split, as a run's ranks do; for the
    largest one more, with nothing of it in the page cache.
    """
    work.mkdir(parents=True, exist_ok=True)
    results = []
    for pairs in SIZES:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            write_cache(Path(folder), drawn_from, pairs)
            grid = GRID if pairs == SIZES[-1] else [(RANKS, PAIRS_A_RANK * RANKS), (RANKS, RANKS)]
            for state in ("split here", "found split", "cold")[: 3 if pairs == SIZES[-1] else 2]:
                if state == "cold":
                    for file in Path(folder).rglob("*.bin"):
                        with file.open("rb") as opened:
                            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                steps = grid if state == "found split" else [(RANKS, PAIRS_A_RANK * RANKS)]
                results.append({"state": state, **_own_process(Path(folder), steps)})
                _tell(results[-1])
    shutil.rmtree(work)
    return results


def _own_process(folder: Path, grid: list[tuple[int, int]]) -> dict[str, Any]:
    arguments = json.dumps([str(folder), grid])
    done = subprocess.run([sys.executable, __file__, arguments], stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _tell(result: dict[str, Any]) -> None:
    mapped, peak = (result[f"{name}_bytes"] / 2**20 for name in ("mapped", "process_peak"))
    print(
        f"{result['pairs']:,} pairs, {result['state']}: mapped {mapped:.0f} MiB, "
        f"the process in all {peak:.0f} MiB; split {result['split_seconds']:.3f} s"
    )
    for step in result["steps"]:
        print(
            f"  {step['batch']} pairs over {step['ranks']} ranks: plan {step['plan_seconds'] * 1e3:.2f} ms "
            f"(first {step['first_plan_seconds'] * 1e3:.2f}, slowest {step['slowest_plan_seconds'] * 1e3:.2f}), "
            f"pack {step['pack_seconds'] * 1e3:.2f} ms; private so far {step['private_bytes'] / 2**20:.1f} MiB"
        )


if __name__ == "__main__":
    where, steps = json.loads(sys.argv[1])
    print(json.dumps(in_this_process(Path(where), [tuple(step) for step in steps])))
