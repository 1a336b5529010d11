"""Runs on rollouts, the moments of their rounds, and who is lost there."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import psutil
from fault_harness import Nodes, Run, kill, title

PROMPTS, SAMPLES, ROUND = 8, 2, 4
ROUNDS = 6
PPO = (
    "objective={name: ppo, critic: toy}", f"train.max_steps={ROUNDS * ROUND}", "train.global_batch_size=4",
    "train.checkpoint_every_steps=3",
    f"rollouts={{rewards: {{truth: toy}}, prompts: {PROMPTS}, samples: {SAMPLES}, epochs: 2, max_tokens: 32, "
    "eval_prompts: 4, engine: transformers}",
)  # fmt: skip
"""Rounds of four steps, which three of four checkpoints are in the middle of."""
BY_VLLM = (*PPO, "rollouts.engine=vllm")


def in_rollout(run: Run, round: int, rng: random.Random) -> None:
    run.wait(lambda: run.responses(round) > 0, f"responses of round {round}")


def in_scoring(run: Run, round: int, rng: random.Random) -> None:
    run.wait(lambda: run.responses(round) == PROMPTS * SAMPLES, f"all responses of round {round}")


def in_update(run: Run, round: int, rng: random.Random) -> None:
    run.wait_for_step(round * ROUND + rng.randrange(1, ROUND))


def in_sync(run: Run, round: int, rng: random.Random) -> None:
    """The engines take the weights of the round's end."""
    run.wait_for_step((round + 1) * ROUND)


def in_checkpoint(run: Run, round: int, rng: random.Random) -> None:
    run.wait_for_step(round * ROUND + 1)
    run.wait(lambda: run.unfinished_checkpoints(), "a checkpoint to be written")


MOMENTS: dict[str, Callable[[Run, int, random.Random], None]] = {
    "rollout": in_rollout, "scoring": in_scoring, "update": in_update, "sync": in_sync, "checkpoint": in_checkpoint,
}  # fmt: skip


def lose_worker(run: Run, nodes: Nodes, rng: random.Random) -> None:
    starts = run.starts()
    kill(rng.choice(run.workers()))
    run.wait_for_restart(starts)


def lose_driver(run: Run, nodes: Nodes, rng: random.Random) -> None:
    starts = run.starts()
    run.interrupt(signal.SIGKILL)
    run.type_command()
    run.wait_for_restart(starts)


def lose_engine(run: Run, nodes: Nodes, rng: random.Random) -> None:
    """Training goes on, and events say what was begun anew."""
    starts, told, step = run.starts(), len(run.events()), run.step()
    engines = nodes.engines()
    assert engines, [title(process) for process in psutil.process_iter() if "ray::" in title(process)]
    for engine in engines:
        kill(engine)
    run.wait(
        lambda: any("an engine was lost and is begun anew" in event for event in run.events()[told:]), "a new engine"
    )
    run.wait_for_step(step + 1)
    assert run.starts() == starts, "training was to go on"


LOSSES: dict[str, Callable[[Run, Nodes, random.Random], None]] = {
    "worker": lose_worker, "driver": lose_driver, "engine": lose_engine,
}  # fmt: skip
