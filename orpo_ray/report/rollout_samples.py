"""What the policy wrote to the same few held-out prompts at each evaluation, from `samples.jsonl`.

Left out: all but the first evaluation, that of the kept model and the newest few, so that a page stays small however
long a run was; and what follows the first few thousand characters of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from orpo_ray.errors import UserError
from orpo_ray.parsing import NUMBER, member, object_from_json
from orpo_ray.report.numbers import number
from orpo_ray.report.runs import Run

SAMPLES = "samples.jsonl"
MOST_PROMPTS = 8
NEWEST = 4
MOST_CHARACTERS = 4000
_LONGEST_LINE = 2**24
"""Bytes; no response and prompt are as long."""


class Answer(NamedTuple):
    text: str
    reward: str
    cut: bool


class Step(NamedTuple):
    """One evaluation."""

    step: int
    name: str


@dataclass(frozen=True)
class Samples:
    steps: list[Step]
    """Oldest first."""
    prompts: list[tuple[str, list[Answer | None]]]
    """Each with what was written at each of `steps`; None: nothing is known of then."""
    remark: str
    """What is not shown."""


def read_samples(run: Run) -> Samples | None:
    """None where there is no such file, or nothing in it that can be read.

    Lines that are no samples are counted and left out: what a crash leaves half written stays in the file. Raises
    `UserError` where the file cannot be read at all.
    """
    path, kept = run.folder / SAMPLES, run.kept_step
    held: dict[int, dict[str, Answer]] = {}
    first: int | None = None
    damaged, all_steps = 0, set[int]()
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                if not line.endswith(b"\n"):  # the last, which is still being written; or one without end
                    damaged += len(line) == _LONGEST_LINE
                    continue
                try:
                    step, prompt, answer = _sample(line)
                except ValueError:
                    damaged += bool(line.strip())
                    continue
                if step > run.last_step:  # of steps that a run which goes on is to repeat
                    continue
                first = step if first is None else min(first, step)
                all_steps.add(step)
                answers = held.setdefault(step, {})
                if prompt in answers or len(answers) < MOST_PROMPTS:
                    answers[prompt] = answer  # of a step that was repeated, the last
                newest = sorted(held)[-NEWEST:]
                for old in [each for each in held if each not in {first, kept, *newest}]:
                    del held[old]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not held:
        return None
    steps = sorted(held)
    prompts = list(dict.fromkeys(prompt for step in reversed(steps) for prompt in held[step]))[:MOST_PROMPTS]
    omitted = len(all_steps) - len(steps)
    said = [
        f"{number(omitted)} evaluations between them are in {SAMPLES}." if omitted else "",
        f"{number(damaged)} lines of {SAMPLES} cannot be read, and are left out." if damaged else "",
    ]
    return Samples(
        [Step(step, _named(step, kept)) for step in steps],
        [(_short(prompt), [held[step].get(prompt) for step in steps]) for prompt in prompts],
        " ".join(filter(None, said)),
    )


def _named(step: int, kept: int | None) -> str:
    return f"step {number(step)}{', before training' if step == 0 else ', kept' if step == kept else ''}"


def _sample(line: bytes) -> tuple[int, str, Answer]:
    """Step, prompt and response of a line. Raises `ValueError` where it is no sample."""
    found = object_from_json(line.decode("utf-8", "replace"))
    reward = member(found, "reward", *NUMBER, type(None))
    step = member(found, "step", int)
    if not 0 <= step < 2**63:
        raise ValueError("has no step")
    text = _short(member(found, "response", str))
    told = number(float(reward), 2) if reward is not None and abs(reward) < 1e100 else "–"
    return step, member(found, "prompt", str), Answer(text, told, found.get("ended") == "length")


def _short(text: str) -> str:
    rest = len(text) - MOST_CHARACTERS
    return text if rest <= 0 else f"{text[:MOST_CHARACTERS]} … ({number(rest)} more characters)"
