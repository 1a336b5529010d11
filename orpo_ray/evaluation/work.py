"""What is left to do: the requests of each policy, the blocks to judge, and the writing of what comes back."""

from __future__ import annotations

from collections import deque
from typing import Any

from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.evaluation.generation import Request, Response
from orpo_ray.evaluation.models import Answer
from orpo_ray.evaluation.plan import Plan
from orpo_ray.evaluation.scoring import Judged

TOO_LONG = "too long"

Answers = dict[int, list[tuple[str, int, Answer]]]
"""By prompt: policy, round and answer."""


class Responses:
    """What is left to generate, by policy, and the blocks that are not yet whole."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.todo: dict[str, deque[Request]] = {label: deque() for label in plan.policies}
        self._open: dict[tuple[str, int], list[Response]] = {}
        self._missing: dict[tuple[str, int], int] = {}
        self._block_of = {prompt: index for index, block in enumerate(plan.blocks) for prompt in block}
        for label, policy in plan.policies.items():
            for block in range(len(plan.blocks)):
                if policy.responses.has(block):
                    continue
                requests = plan.requests(label, block)
                self.todo[label].extend(requests)
                self._open[label, block] = []
                self._missing[label, block] = len(requests)
                if not requests:
                    self._write(label, block)

    @property
    def finished(self) -> bool:
        return not self._open

    def whole(self, block: int) -> bool:
        """Whether every policy has answered it."""
        return all((label, block) not in self._open for label in self.todo)

    def take(self, label: str, count: int) -> list[Request]:
        todo = self.todo[label]
        return [todo.popleft() for _ in range(min(count, len(todo)))]

    def receive(self, label: str, responses: list[Response]) -> None:
        for response in responses:
            block = self._block_of[response.prompt]
            self._open[label, block].append(response)
            self._missing[label, block] -= 1
            if not self._missing[label, block]:
                self._write(label, block)

    def _write(self, label: str, block: int) -> None:
        """The whole block, unanswered prompts included, in the order of prompts and rounds."""
        policy = self._plan.policies[label]
        rows = [response._asdict() for response in self._open.pop((label, block))]
        rows += [
            {"prompt": prompt, "round": round, "text": None, "tokens": None, "ended": TOO_LONG}
            for prompt in self._plan.blocks[block] if not policy.fits[prompt]
            for round in range(policy.sampling.rounds)
        ]  # fmt: skip
        policy.responses.write(block, sorted(rows, key=lambda row: (row["prompt"], row["round"])))


class Judgements:
    """What is left to judge: blocks whose responses are all there, and the policies' log-probs of the data."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        unjudged = {block: self._unjudged(block) for block in range(len(plan.blocks))}
        self._blocks = {block: labels for block, labels in unjudged.items() if labels}
        self._answered: dict[int, Answers] = {}
        """Of the blocks that are being judged."""
        self._pairs = deque(
            (label, block)
            for label, policy in plan.policies.items() if policy.log_probs is not None
            for block in range(len(plan.blocks)) if not policy.log_probs.has(block)
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        return not self._blocks and not self._pairs

    def next(self, responses: Responses, *, log_probs: bool) -> tuple[str, int] | None:
        """A block to judge (`("", block)`), or with `log_probs` a policy and a block of its own, or nothing yet."""
        for block in self._blocks:
            if responses.whole(block):
                return "", block
        return self._pairs.popleft() if self._pairs and log_probs else None

    def begin(self, scorer: Any, task: tuple[str, int]) -> Any:
        label, block = task
        prompts = self._plan.blocks[block]
        if label:
            model = self._plan.policies[label].model
            return scorer.log_probs.remote(model, [self._plan.prompts[prompt] for prompt in prompts])
        answers = self._answered[block] = self._answers(block)
        judged = [
            Judged(self._plan.prompts[prompt], tuple(answer for _, _, answer in answers[prompt])) for prompt in prompts
        ]
        return scorer.rewards.remote(self._blocks.pop(block), judged)

    def give_back(self, task: tuple[str, int]) -> None:
        label, block = task
        if label:
            self._pairs.append(task)
        else:
            del self._answered[block]
            self._blocks[block] = self._unjudged(block)

    def receive(self, task: tuple[str, int], result: Any) -> None:
        label, block = task
        if label:
            self._write_log_probs(label, block, result)
            return
        answers = self._answered.pop(block)
        for name, rewards in result.items():
            self._write_rewards(name, block, answers, rewards)

    def _unjudged(self, block: int) -> list[str]:
        return [label for label, judge in self._plan.judges.items() if not judge.rewards.has(block)]

    def _answers(self, block: int) -> Answers:
        """Every response there is, in a fixed order."""
        answers: Answers = {prompt: [] for prompt in self._plan.blocks[block]}
        for label, policy in self._plan.policies.items():
            for row in policy.responses.read(block):
                if row["text"] is not None:
                    prompt = self._plan.prompts[row["prompt"]]
                    answer = policy.speaker.answer(prompt, row["text"], cut=row["ended"] == "length")
                    answers[row["prompt"]].append((label, row["round"], answer))
        return answers

    def _write_rewards(self, name: str, block: int, answers: Answers, rewards: list[list[float | None]]) -> None:
        rows = []
        for prompt, values in zip(self._plan.blocks[block], rewards, strict=True):
            who = self._plan.own[prompt] + [(label, round) for label, round, _ in answers[prompt]]
            rows += [
                {"prompt": prompt, "model": label, "round": round, "reward": value}
                for (label, round), value in zip(who, values, strict=True)
            ]
        self._plan.judges[name].rewards.write(block, rows)

    def _write_log_probs(self, label: str, block: int, sums: list[list[tuple[float, int]] | None]) -> None:
        pieces = self._plan.policies[label].log_probs
        assert pieces is not None
        rows = []
        for prompt, pair in zip(self._plan.blocks[block], sums, strict=True):
            row: dict[str, Any] = {"prompt": prompt}
            for name, (value, tokens) in zip(DATA_LABELS, pair or [], strict=False):
                row |= {name: value, f"{name}_tokens": tokens}
            rows.append(row)
        pieces.write(block, rows)
