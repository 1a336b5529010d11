"""What freed memory costs that is kept, and what it costs to give large blocks back: one process, one thread, a CPU.

    python benchmarks/allocator.py --rounds 1 --shapes "4M, OPT's vocabulary"

SFT steps of rows of other lengths, each way in a process of its own, in turn, `--rounds` times: `kept`, as before issue
22 (no block goes back); `back`, blocks over 32 MB do; `huge pages`, as it is now, PyTorch asking for these too. Prints
the highest memory of the process (GB) and the CPU time of a token (microseconds, the median over steps).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from orpo_ray.cluster.allocator import _set, keep_freed_memory, use_huge_pages, use_one_arena

WAYS = ("kept", "back", "huge pages")
SHAPES = {  # width, layers, vocabulary, the most tokens of a row
    "4M, OPT's vocabulary": (64, 4, 50272, 4096),
    "52M, OPT's vocabulary": (512, 8, 50272, 2048),
    "1M, the embedded world's": (128, 4, 640, 4096),
}
_STEPS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for shape in options.shapes or SHAPES:
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for way in WAYS * options.rounds:
            done = subprocess.run([sys.executable, __file__, shape, way], capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
        for way, each in found.items():
            memory, micros = (min(numbers) for numbers in zip(*each, strict=True))
            rows.append({"shape": shape, "way": way, "gigabytes": memory, "cpu_microseconds_per_token": micros})
            print(rows[-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def measured(shape: str, way: str) -> tuple[float, float]:
    use_one_arena()
    keep_freed_memory()
    if way == "kept":
        _set(-4, 0)  # M_MMAP_MAX
    if way == "huge pages":
        use_huge_pages()
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    from orpo_ray.data.packing import pack
    from orpo_ray.modeling.linear import quicken
    from orpo_ray.modeling.policy import PackedPolicy

    width, layers, vocabulary, most = SHAPES[shape]
    torch.set_num_threads(1)
    config = OPTConfig(
        vocab_size=vocabulary, hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=layers,
        num_attention_heads=width // 32, ffn_dim=4 * width, max_position_embeddings=2048, dropout=0.0,
    )  # fmt: skip
    network = OPTForCausalLM(config).train()
    policy = PackedPolicy(network)
    quicken(network)
    optimizer = torch.optim.AdamW(network.parameters())
    rng = np.random.default_rng(0)
    times = []
    for _ in range(_STEPS):
        lengths = rng.integers(60, 384, 64)
        lengths = lengths[lengths.cumsum() <= rng.integers(most // 2, most)]
        examples = [[rng.integers(5, vocabulary, n).astype(np.int32) for n in (k // 3, k - k // 3)] for k in lengths]
        batch = pack(examples, score_prompts=True)
        began = time.process_time()
        (-policy(batch).sum() / int(lengths.sum())).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append((time.process_time() - began) / int(lengths.sum()))
        _ = [torch.empty(int(n)) for n in rng.integers(1000, 400_000, 20)]  # what recording and packing hold meanwhile
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1e6 * float(np.median(times))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in SHAPES:
        print(json.dumps(measured(*sys.argv[1:])))
    else:
        main()
