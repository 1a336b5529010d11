"""What is left to do: the requests of each policy, what is to be judged, and the writing of what comes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from orpo_ray.config.evaluation import DATA_LABELS
from orpo_ray.evaluation.plan import OWN, Plan, PolicyWork
from orpo_ray.inference.generation import Request, Response
from orpo_ray.inference.scoring import GpuShare, Judged
from orpo_ray.inference.speaking import Answer

Names = list[tuple[str, int]]
"""Of a prompt's responses: whose each is (`chosen` and `rejected`, where it is the data set's), and its round."""


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
    def models(self) -> Mapping[str, PolicyWork]:
        return self._plan.policies

    @property
    def finished(self) -> bool:
        return not self._open

    def whole(self, label: str, block: int) -> bool:
        """Whether a policy has answered all of a block."""
        return (label, block) not in self._open

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
            {"prompt": prompt, "round": round, "text": None, "tokens": None, "ended": policy.missing}
            for prompt in self._plan.blocks[block]
            for round in range(policy.sampling.rounds) if policy.asked(prompt, round) is None
        ]  # fmt: skip
        policy.responses.write(block, sorted(rows, key=lambda row: (row["prompt"], row["round"])))


class Task(NamedTuple):
    """What one call of a scorer is for."""

    who: str
    """The policy whose responses are judged (`OWN`: the data set's), or whose log-probs are wanted."""
    block: int
    log_probs: bool = False
    """Of the data set's responses, in place of rewards."""


class Judgements:
    """What is left to judge, each model's responses to a block by themselves; and log-probs of the data."""

    def __init__(self, plan: Plan, responses: Responses) -> None:
        self._plan = plan
        self._responses = responses
        self._rewards = {
            Task(who, block): None
            for block in range(len(plan.blocks))
            for who in dict.fromkeys(who for judge in plan.judges.values() for who in judge.rewards.parts)
            if self._unjudged(who, block)
        }
        self._begun: dict[Task, list[tuple[int, Names]]] = {}
        """Of what is being judged, each prompt with the names of its responses."""
        self._pairs = deque(
            Task(label, block, log_probs=True)
            for label, policy in plan.policies.items() if policy.log_probs is not None
            for block in range(len(plan.blocks)) if not policy.log_probs.has(block)
        )  # fmt: skip

    @property
    def left(self) -> list[Task]:
        """What nobody has begun to judge."""
        return list(self._rewards)

    @property
    def finished(self) -> bool:
        return not self._rewards and not self._pairs

    def next(self, *, log_probs: bool) -> Task | None:
        """Something to judge that is there, or with `log_probs` a block of a policy's, or nothing yet."""
        for task in self._rewards:
            if task.who == OWN or self._responses.whole(task.who, task.block):
                return task
        return self._pairs[0] if self._pairs and log_probs else None

    def start(self, actor: Any, share: GpuShare | None) -> Any:
        """A scorer with all reward models. `actor`: the class of such actors; `share`: of its GPU."""
        config = self._plan.config
        models = {label: judge.model for label, judge in self._plan.judges.items()}
        return actor.remote(models, config.prompts.chat_template, config.scoring, config.name, share=share)

    def begin(self, scorer: Any, task: Task) -> Any:
        """The call of `scorer` for a task that was `next`."""
        prompts = self._plan.blocks[task.block]
        if task.log_probs:
            self._pairs.remove(task)
            model = self._plan.policies[task.who].model
            return scorer.log_probs.remote(model, [self._plan.prompts[prompt] for prompt in prompts])
        del self._rewards[task]
        asked = self._own(prompts) if task.who == OWN else self._answers(task)
        asked = [(prompt, judged, names) for prompt, judged, names in asked if names]
        self._begun[task] = [(prompt, names) for prompt, _, names in asked]
        return scorer.rewards.remote(self._unjudged(task.who, task.block), [judged for _, judged, _ in asked])

    def give_back(self, task: Task) -> None:
        if task.log_probs:
            self._pairs.append(task)
        else:
            del self._begun[task]
            self._rewards[task] = None

    def receive(self, task: Task, result: Any) -> int:
        """Returns the number of prompts that it is of."""
        count = len(self._plan.blocks[task.block])
        if task.log_probs:
            self._write_log_probs(task, result)
            return count
        begun = self._begun.pop(task)
        for judge, rewards in result.items():
            rows = [
                {"prompt": prompt, "model": label, "round": round, "reward": value}
                for (prompt, names), values in zip(begun, rewards, strict=True)
                for (label, round), value in zip(names, values, strict=True)
            ]
            self._plan.judges[judge].rewards.parts[task.who].write(task.block, rows)
        return count

    def _unjudged(self, who: str, block: int) -> list[str]:
        return [label for label, judge in self._plan.judges.items() if not judge.rewards.parts[who].has(block)]

    def _own(self, prompts: list[int]) -> list[tuple[int, Judged, Names]]:
        return [(prompt, Judged(self._plan.prompts[prompt], ()), self._plan.own[prompt]) for prompt in prompts]

    def _answers(self, task: Task) -> list[tuple[int, Judged, Names]]:
        """Every response of a policy to each prompt of a block, in the order of rounds; in a later turn each behind a
        conversation of its own."""
        policy = self._plan.answering[task.who]
        answers: dict[int, list[tuple[int, Answer]]] = {prompt: [] for prompt in self._plan.blocks[task.block]}
        for row in policy.responses.read(task.block):
            if row["text"] is not None:
                answer = policy.answer(self._plan.prompts[row["prompt"]], row)
                answers[row["prompt"]].append((row["round"], answer))
        if policy.conversations is not None:
            return [
                (prompt, Judged(asked, (answer,)), [(task.who, round)])
                for prompt, given in answers.items()
                for round, answer in given if (asked := policy.conversations[prompt][round]) is not None
            ]  # fmt: skip
        return [
            (prompt, Judged(self._plan.prompts[prompt].alone, tuple(answer for _, answer in given)),
             [(task.who, round) for round, _ in given])
            for prompt, given in answers.items()
        ]  # fmt: skip

    def _write_log_probs(self, task: Task, sums: list[list[tuple[float, int]] | None]) -> None:
        pieces = self._plan.policies[task.who].log_probs
        assert pieces is not None
        rows = []
        for prompt, pair in zip(self._plan.blocks[task.block], sums, strict=True):
            row: dict[str, Any] = {"prompt": prompt}
            for name, (value, tokens) in zip(DATA_LABELS, pair or [], strict=False):
                row |= {name: value, f"{name}_tokens": tokens}
            rows.append(row)
        pieces.write(task.block, rows)
