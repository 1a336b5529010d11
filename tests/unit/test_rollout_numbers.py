"""Rounds that cannot be trained on: numbers that are not finite, and answers that are all alike (issue 19)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_runs import InProcess, Trained, settings

from orpo_ray.config import TrainConfig
from orpo_ray.data.prepare import prepare
from orpo_ray.data.questions import prompts_of
from orpo_ray.errors import Diverged, UserError
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Sample
from orpo_ray.modeling.loading import load_tokenizer
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.rollout_setup import Beside
from orpo_ray.training.source import schedule_of

ALONE = "train.tokens_per_microbatch=1"
"""Each prompt is computed by itself."""


def spoilt(forward: Callable[..., torch.Tensor], prompt: list[int], column: int) -> Callable[..., torch.Tensor]:
    """`forward`, one of whose numbers is none where `prompt` is computed."""

    def given(batch: Any, *, by_token: bool = False) -> torch.Tensor:
        found = forward(batch, by_token=by_token)
        if batch.input_ids.flatten().tolist()[: len(prompt)] == prompt:
            found = found.clone()
            found.view(len(found), -1)[-1, column] = float("nan")
        return found

    return given


@pytest.mark.parametrize(
    ("whose", "what", "held_out"),
    [
        ("the policy", "log-prob", False), ("the reference", "log-prob", False), ("the critic", "value", False),
        ("the reference", "log-prob", True),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_told_with_whose_it_is_and_its_record(
    whose: str, what: str, held_out: bool, tmp_path: Path
) -> None:
    config = settings(tmp_path, ALONE, "train.max_steps=1")
    data = prepare(config, load_tokenizer(config.model))
    prompts = prompts_of(data.eval if held_out else data.train)
    record = 2 if held_out else int(schedule_of(config, data.train).indices(0)[3])
    prompt = prompts.pair(record)[0].tolist()

    def changed(beside: Beside) -> None:
        if whose == "the reference":
            beside.reference.forward = spoilt(beside.reference.forward, prompt, 0)  # type: ignore[method-assign]

    def engine(policy: PackedPolicy) -> TorchEngine:
        made = TorchEngine(policy, config.optim)
        if whose != "the reference":
            made.forward = spoilt(made.forward, prompt, int(what == "value"))  # type: ignore[method-assign]
        return made

    where = "evaluation of step 0" if held_out else "round 0"
    told = rf"^{where}: {whose}.* gives a token of a response to record {prompts.record(record)} a {what} of nan$"
    with pytest.raises(UserError, match=told) as error:
        Trained(config, engine=engine, changed=changed)
    assert isinstance(error.value, Diverged) == (whose != "the reference"), "a sweep takes it for a bad trial"
    assert ("model.name_or_path: " in str(error.value)) == (whose == "the reference")


def test_a_policy_that_the_engine_finds_at_its_end_has_diverged(tmp_path: Path) -> None:
    class NoNumber(InProcess):
        def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
            raise Diverged("the policy of step 0 gave a drawn token a log-prob that is no number")

    with pytest.raises(Diverged, match=r"^the policy of step 0 gave"):
        Trained(settings(tmp_path, "train.max_steps=1"), writers=NoNumber)


# Answers that are alike ----------------------------------------------------------------------------------------------

ONLINE = ("objective={name: online, pairs: {name: orpo}}", "rollouts.samples=3")
"""Rounds of two steps."""


class Alike(InProcess):
    """Answers each prompt three times by the same, at some steps."""

    at: tuple[int, ...] = ()

    def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
        first: dict[int, Sample] = {}
        for found in super().draw(requests):
            if self.step in self.at:
                firsts = [first.setdefault(sample.prompt, sample) for sample in found]
                found = [one._replace(sample=of.sample) for one, of in zip(firsts, found, strict=True)]
            yield found


def alike(*steps: int) -> type[Alike]:
    return type("AlikeThere", (Alike,), {"at": steps})


def test_a_round_without_a_pair_is_passed_over_and_told(tmp_path: Path) -> None:
    config = settings(tmp_path, *ONLINE, "train.max_steps=8", "train.eval_every_steps=4")
    whole = Trained(config, writers=alike(2, 6))
    assert whole.state.step == 8 and [line["step"] for line in whole.lines] == [1, 2, 5, 6]
    assert [line["step"] for line in whole.evaluations] == [0, 4, 8], "as the number of the step asks for"
    assert [(line["round"], line["alike"]) for line in whole.rounds] == [(0, 0), (2, 0)]
    assert whole.writers.said == [
        f"round {number}: best and worst differ of 0 of 8 prompts, and 2 steps need one each: it is passed over"
        for number in (1, 3)
    ]
    assert whole.state.source == {"rounds_passed_over": 1}, "in a row"
    for begin in (3, 6):  # in the middle of a round that is passed over, and behind the next
        again = Trained(config, begin=begin, writers=alike(2, 6))
        assert again.weights() == whole.weights()
        assert again.state == whole.state
        assert [line["loss"] for line in again.lines] == [line["loss"] for line in whole.lines if line["step"] > begin]


def test_prompts_without_a_pair_are_counted(tmp_path: Path) -> None:
    class Some(Alike):
        at = (0,)

        def draw(self, requests: Sequence[Request]) -> Iterator[list[Sample]]:
            drawn = [sample for found in super().draw(requests) for sample in found]
            yield [one._replace(ids=[*one.ids, 7 + one.sample], logps=[*one.logps, -1.0]) if one.prompt < 5 else one
                   for one in drawn]  # fmt: skip

    trained = Trained(settings(tmp_path, *ONLINE, "train.max_steps=2", rule="lots"), writers=Some)
    assert trained.rounds[0]["alike"] == 3 and trained.state.source == {}


@pytest.mark.parametrize("most", [0, 3])
def test_too_many_such_rounds_in_a_row_end_the_run(most: int, tmp_path: Path) -> None:
    """A policy that is nearly deterministic; its scores may differ by rounding, or by a rule that draws lots."""
    config: TrainConfig = settings(
        tmp_path, *ONLINE, "rollouts.temperature=1e-3", f"train.max_skipped_steps={most}", rule="lots"
    )
    writers: list[InProcess] = []

    def kept(*given: Any) -> InProcess:
        writers.append(InProcess(*given))
        return writers[0]

    last = f"^round {most}: best and worst differ of 0 of 8 prompts, and 2 steps need one each; "
    with pytest.raises(UserError, match=last + r".*\(train\.max_skipped_steps\): .* a higher rollouts\.temperature"):
        Trained(config, writers=kept)
    assert len(writers[0].said) == most
