"""One rank of `test_engines.py`: trains the same few steps under every engine setting that it is given."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import OPTConfig, PretrainedConfig, Qwen3MoeConfig

from orpo_ray.config import LoraConfig, ModelConfig, TrainConfig, parse_config
from orpo_ray.data.dataset import PairDataset
from orpo_ray.data.mismatch import Mismatched
from orpo_ray.errors import UserError
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.lora import add_adapters
from orpo_ray.modeling.parity import probe, require_same_numbers
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.training.deepspeed_engine import DeepSpeedEngine, engine_for
from orpo_ray.training.engine import Engine, TorchEngine
from orpo_ray.training.loop import Line, Sink, State, Wanted, run
from orpo_ray.training.reference import reference_logps
from orpo_ray.training.saving import Saver, load
from orpo_ray.training.source import PairSource

OBJECTIVES: dict[str, dict[str, Any]] = {
    "pairs": {"lambda": 0.5}, "rankings": {"lambda": 0.5}, "labels": {"name": "kto", "beta": 0.5},
}  # fmt: skip
"""By what the records are."""
STEPS = 6
RESUMED_AT = 4


def config_of(**settings: Any) -> TrainConfig:
    """AdamW with a large eps: with 1e-8 rounding decides the sign of tiny updates."""
    train = {"global_batch_size": 12, "max_steps": STEPS, "epochs": 9, "checkpoint_every_steps": 4, "zero_stage": 0}
    mapping: dict[str, Any] = {
        "name": "engines",
        "model": {
            "name_or_path": "unused",
            "dtype": settings.pop("dtype", "float32"),
            "lora": settings.pop("lora", None),
        },
        "data": {"train": "unused"},
        "objective": OBJECTIVES[settings.pop("records", "pairs")],
        "optim": {"lr": 1e-3, "eps": 1e-3, "warmup_steps": 2, "weight_decay": 0.01},
        "train": {**train, **settings},
    }
    if mapping["train"]["zero_stage"]:
        # At the default threshold ZeRO-3 would leave such small parameters whole.
        mapping["train"]["deepspeed"] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return parse_config(mapping, [], "test")


def grouped(pairs: PairDataset, labels: bool) -> PairDataset:
    """The same texts as records of one to four responses, ranked or labelled."""
    rng = np.random.default_rng(1)
    bounds, starts = pairs.source_bounds, [0]
    flat: list[int] = []
    ranks: list[int] = []
    record = 0
    while record < len(pairs) - 1:  # of one pair, or of two that follow each other
        parts = bounds[record] if rng.random() < 0.5 else np.r_[bounds[record], bounds[record + 1, 2:]]
        count = len(parts) - 2
        if labels and count == 2:
            parts, count = parts[:3], 1
        flat += parts.tolist()
        ranks += [int(rng.integers(0, 2))] * count if labels else [0, 1, 1, 2][:count]
        starts.append(len(flat))
        record += 1 + (count > 2)
    return PairDataset(
        pairs.tokens, np.array(flat), np.arange(len(starts) - 1), source_starts=np.array(starts),
        source_ranks=np.array(ranks, np.int32), rule="labels" if labels else "every_pair",
    )  # fmt: skip


def with_references(data: PairDataset, reference: PackedPolicy) -> PairDataset:
    """Labelled records with what KTO needs."""
    data = replace(data, mismatched=Mismatched(data, seed=0, longest=40))

    def known(part: Any) -> Any:
        return replace(part, reference=reference_logps(part, np.arange(len(part)), reference.eval(), 1000))

    return replace(known(data), mismatched=known(data.mismatched))


def dataset(pairs: int = 40) -> PairDataset:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 25, (pairs, 3))
    ends = lengths.reshape(-1).cumsum()
    starts = np.r_[0, ends[:-1]].reshape(pairs, 3)
    tokens = rng.integers(3, 97, ends[-1]).astype(np.int32)
    return PairDataset(tokens, np.c_[starts, starts[:, 2] + lengths[:, 2]].astype(np.int64), np.arange(pairs))


def policy(
    dtype: str, checkpointing: bool, lora: LoraConfig | None, experts: bool = False, seed: int = 0
) -> PackedPolicy:
    """A tied OPT with a smooth activation: at a ReLU's kink rounding turns into a different gradient. Or a mixture of
    `experts`.

    Adapters begin where both of their halves have a gradient.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config: PretrainedConfig = OPTConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.0, activation_function="gelu",
    )  # fmt: skip
    if experts:
        config = Qwen3MoeConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME).to(getattr(torch, dtype))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is not None:
        add_adapters(model, lora, seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=0.1)
    return PackedPolicy(model).train()


class Watch(Sink):
    """Keeps lines and, where there is a place for them, checkpoints."""

    def __init__(self, engine: Engine, checkpoints: Checkpoints | None) -> None:
        self.lines: list[Line] = []
        self.saver = checkpoints and Saver(checkpoints, engine, newest=99, best=0, warn=fail)

    def metrics(self, line: Line) -> None:
        self.lines.append(line)

    def checkpoint(self, engine: Engine, state: State, line: Line) -> None:
        if self.saver:
            self.saver.begin(Manifest(state.step, asdict(state), engine.updates, "", "", None, {}))

    def signals(self) -> dict[str, float]:
        return self.saver.signals() if self.saver else {}

    def heard(self, signals: dict[str, float]) -> Wanted:
        if self.saver:
            self.saver.heard(signals)
        return Wanted.NOTHING


def fail(warning: str) -> None:
    raise AssertionError(warning)


def watch_gradients(engine: Engine) -> dict[str, torch.Tensor]:
    """Full gradients of the first step, taken between the last backward and the update."""
    taken: dict[str, torch.Tensor] = {}

    def take() -> None:
        for name, parameter in engine.policy.named_parameters() if not taken else ():
            if not parameter.requires_grad:
                continue
            if isinstance(engine, DeepSpeedEngine):
                from deepspeed.utils import safe_get_full_grad

                gradient = safe_get_full_grad(parameter)
            elif parameter.grad is None:  # its bfloat16 gradient is in the master copy's already
                continue
            else:
                gradient = parameter.grad
            taken[name.removeprefix("model.")] = gradient.detach().float().clone()

    sums = getattr(engine, "_sums", None)
    if sums is None:
        step = engine.step
        engine.step = lambda lr: (take(), step(lr))[1]  # type: ignore[method-assign]
    else:  # they are summed over ranks as the step begins
        finish = sums.finish
        sums.finish = lambda: (finish(), take())[0]
    return taken


def trained(
    settings: dict[str, Any], engine_kind: str, saved: Checkpoints | None, resumed: tuple[Checkpoints, int] | None
) -> dict[str, Any]:
    settings = dict(settings)
    checkpointing, experts = settings.pop("checkpointing", False), settings.pop("experts", False)
    records = settings.get("records", "pairs")
    config = config_of(**settings)
    own = policy(config.model.dtype, checkpointing, config.model.lora, experts)
    engine: Engine
    plain = engine_kind == "torch"
    engine = TorchEngine(own, config.optim) if plain else engine_for(own, config, torch.device("cpu"))
    gradients = watch_gradients(engine)
    state = State()
    if resumed is not None:
        checkpoints, step = resumed
        manifest = checkpoints.manifest(step)
        assert manifest is not None
        load(engine, checkpoints, manifest)
        state = State(**manifest.state)
    watch = Watch(engine, saved)
    data = dataset()
    if records != "pairs":
        data = grouped(data, labels=records == "labels")
    train, held_out = data, data.subset(np.arange(7))
    if records == "labels":
        train, held_out = (with_references(part, policy("float32", False, None, seed=5)) for part in (train, held_out))
    run(engine, config, PairSource(engine, config, train, held_out), watch, state)
    if watch.saver:
        watch.saver.finish()
    return {"lines": watch.lines, "gradients": gradients, "weights": engine.weights()}


class Given(nn.Module):
    """Its weight's gradient is what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, dtype=torch.bfloat16))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return (self.weight * given).sum()


def summed(settings: dict[str, Any]) -> dict[str, Any]:
    """The norm of a gradient that bfloat16 could not add up over ranks and micro-batches, 1 + 2^-9 + 2^-9; and that of
    one that is not finite on one rank, with what it did to the weights."""
    engine = engine_for(Given(), config_of(dtype="bfloat16", **settings), torch.device("cpu"))  # type: ignore[arg-type]

    def step(*given: float) -> float:
        for value in given:
            share = engine.forward(torch.full((64,), value, dtype=torch.bfloat16))  # type: ignore[arg-type]
            engine.backward(share, last=value is given[-1])
        return float(engine.step(1e-3))

    tiny = 2.0**-9
    norm = step(*[(1.0, tiny), (tiny, 0.0)][engine.rank])
    before = [piece.weight.clone() for piece in engine.pieces()]
    spoilt = step([1.0, math.nan][engine.rank])
    after = [piece.weight for piece in engine.pieces()]
    return {"norm": norm, "spoilt": spoilt, "moved": not all(map(torch.equal, before, after))}


def mapped(settings: dict[str, Any], file: Path) -> dict[str, Any]:
    """Where the weights of a model are read from `file`: how many bytes of its pages each rank has copied, and what the
    ranks hold then; and what the probe says of it, and once a rank's part is not what it was."""
    model = ModelConfig(name_or_path=str(file.parent), dtype=settings.get("dtype", "float32"))
    own = load_policy(model, seed=0)
    whole = probe(own, own)
    kept = own.model.get_input_embeddings().weight.data  # so that the file stays mapped
    engine = engine_for(own, config_of(**settings), torch.device("cpu"))
    copied = engine.gather(_copied_bytes(file))
    pieces = [(piece.name, piece.start, piece.weight.clone()) for piece in engine.pieces()]
    divided = probe(own, engine.forward)
    require_same_numbers("x", own, whole, divided)
    told = ""
    if engine.rank == 1:
        for piece in engine.pieces():
            piece.weight.add_(1.0)
    engine.filled(0)
    try:
        require_same_numbers("x", own, whole, probe(own, engine.forward))
    except UserError as error:
        told = str(error)
    return {
        "copied": copied, "pieces": [piece for rank in engine.gather(pieces) for piece in rank], "kept": kept,
        "told": engine.gather(told), "training": own.training,
    }  # fmt: skip


def _copied_bytes(file: Path) -> int:
    """Of the pages that this process has of `file`, those that are its own."""
    copied, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            here = rest[-1] == str(file)
        elif here and first == "Anonymous:":
            copied += 1024 * int(rest[0])
    return copied


def main(out: str) -> None:
    """Run every job of the file `out/jobs.pt`; rank 0 saves the results."""
    folder = Path(out)
    jobs: dict[str, dict[str, Any]] = torch.load(folder / "jobs.pt", weights_only=False)
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    results = {}
    for name, job in jobs.items():
        if "sum" in job:
            results[name] = summed(job["settings"])
            continue
        if "file" in job:
            results[name] = mapped(job["settings"], folder.parent / job["file"])
            continue
        places = {what: Checkpoints(str(folder.parent / job[what])) for what in ("save", "resume") if what in job}
        resumed = (places["resume"], RESUMED_AT) if "resume" in places else None
        results[name] = trained(job["settings"], job.get("engine", ""), places.get("save"), resumed)
    if rank == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
