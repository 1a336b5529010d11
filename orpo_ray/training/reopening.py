"""A finished run that is to have more steps goes on, where they are those that a longer run would have made."""

from __future__ import annotations

from orpo_ray.config import TrainConfig, read_yaml
from orpo_ray.config.identity import differences, other_settings
from orpo_ray.errors import UserError
from orpo_ray.parsing import read_member
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.patience import STORAGE_ERRORS
from orpo_ray.storage.run_folder import RunFolder, write_atomically
from orpo_ray.terminal import Console
from orpo_ray.training.lr import learning_rate


def reopened(folder: RunFolder, config: TrainConfig, total_steps: int, data: str, console: Console) -> bool:
    """Whether the finished run in `folder`, which was opened for `config`, is unfinished now, to go on to
    `total_steps`; where not, says what is asked for in vain. `data`: the digest of its pairs.

    Data come in an order that knows nothing of a run's end, but most learning rates do. Raises `UserError` where the
    steps that are done would have been others, or nothing is left to go on from.
    """
    held, wanted = read_yaml(folder.config), config.for_a_file()
    done = read_member(folder.summary, "steps", int)
    longer = differences(held, wanted)  # no other settings: it was opened
    if not longer or total_steps == done:
        in_vain = other_settings(held, wanted)
        console.say(f"{folder.path}: already finished" + (f"; of no effect: {', '.join(in_vain)}" if in_vain else ""))
        return False
    keys = ", ".join(longer)
    if total_steps < done:
        why = f"{keys} would leave {done - total_steps} of its {done} steps out"
    elif any(_rate(config, step, done) != _rate(config, step, total_steps) for step in range(done)):
        why = f"with {keys} the learning rate of the steps that are done would have been another (optim.schedule)"
    elif not (finished := _finished(config)):
        why = f"its checkpoints are gone from {config.checkpoints_location}"
    elif finished[0].data != data:
        why = "data.train or data.eval: its pairs have changed"
    else:
        why = ""
    if why:
        raise UserError(
            f"{folder.path}: holds a finished run, which cannot go on: {why}; choose another name=..., with "
            f"model.name_or_path={folder.path} to go on from its model"
        )
    if refused := [key for key in longer if key not in config.resume.allow_changes]:
        raise UserError(
            f"{folder.path}: holds a finished run of {done} steps ({', '.join(refused)}); choose another name=..., or "
            f"give it more with 'resume.allow_changes=[{', '.join(refused)}]'"
        )
    folder.note(f"had finished with {done} steps, and goes on to {total_steps}")
    folder.summary.unlink()
    write_atomically(folder.config, config.to_yaml())
    return True


def _rate(config: TrainConfig, step: int, total_steps: int) -> float:
    return learning_rate(step, total_steps, config.optim)


def _finished(config: TrainConfig) -> list[Manifest]:
    try:
        return Checkpoints(config.checkpoints_location).finished()
    except STORAGE_ERRORS as error:
        raise UserError(f"{config.checkpoints_location}: cannot be read: {error}") from None
