"""A policy whose answers were made elsewhere: it has no model, and they are kept in pieces like any other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orpo_ray.config import EvaluationConfig
from orpo_ray.config.evaluation import OutputsConfig
from orpo_ray.data.outputs import Outputs, missing, read_outputs
from orpo_ray.data.prompts import Prompt
from orpo_ray.errors import UserError
from orpo_ray.evaluation.store import RESPONSES, EvaluationFolder, Pieces, content_key
from orpo_ray.evaluation.thinking import Thought, without_thinking
from orpo_ray.inference.speaking import Answer
from orpo_ray.masking import masked

GIVEN, NOT_GIVEN = "given", "not in the file"
"""How an answer ended, of which nothing is known; and why there is none."""


@dataclass(frozen=True)
class GivenWork:
    """One such policy."""

    label: str
    name: str
    """Its file, as the configuration names it."""
    digest: str
    """Of its answers to what is asked, in each round and turn."""
    answers: list[list[tuple[str, ...]]]
    """Of each prompt and round that there is, those to each turn."""
    rounds: int
    """As many as are asked for; 1 where no prompt has more answers, which then stands in every round."""
    responses: Pieces
    remarks: list[str]
    """What prompts and file have that the other lacks, each in a sentence."""
    strip_thinking: bool = False
    turn: int = 1
    conversations: list[list[Prompt | None]] | None = None
    """Of a later turn, of each prompt and round: what is asked, behind the answers before. None: of the first turn; of
    one round: an answer before is missing."""

    missing = NOT_GIVEN
    log_probs = None

    @property
    def origin(self) -> dict[str, Any]:
        """What is said of it in results; nothing is known of how it was asked."""
        return {
            "path": self.name, "digest": self.digest, "template": None, "template_for_text": None, "bos": None,
        }  # fmt: skip

    @property
    def judged_as(self) -> dict[str, Any]:
        """What its rewards are known by."""
        cut = {"thinking": "cut"} if self.strip_thinking else {}
        return {"responses": self.responses.folder.name, **cut}

    def answer(self, prompt: Prompt, row: Mapping[str, Any]) -> Answer:
        """What a row of `responses` says, as a message, and as it is judged."""
        return self.thought(prompt, row)[0] if self.strip_thinking else Answer(row["text"], cut=False, is_text=False)

    def thought(self, prompt: Prompt, row: Mapping[str, Any]) -> tuple[Answer, Thought]:
        """The same without what was thought aloud, and whether there was any."""
        text, thought = without_thinking(row["text"])
        return Answer(text, cut=False, is_text=False), thought

    def keep(self, blocks: Sequence[Sequence[int]]) -> None:
        """Write the pieces that are missing."""
        for block, prompts in enumerate(blocks):
            if not self.responses.has(block):
                rows = [self._row(prompt, round) for prompt in sorted(prompts) for round in range(self.rounds)]
                self.responses.write(block, rows)

    def _row(self, prompt: int, round: int) -> dict[str, Any]:
        of_turns = dict(enumerate(dict(enumerate(self.answers[prompt])).get(round, ()), start=1))
        text = of_turns.get(self.turn)
        ended = NOT_GIVEN if text is None else GIVEN
        return {"prompt": prompt, "round": round, "text": text, "tokens": None, "ended": ended}

    def next_turn(self, folder: EvaluationFolder, conversations: list[list[Prompt | None]]) -> GivenWork:
        turn = self.turn + 1
        key = content_key(outputs=self.digest, turn=turn, before=self.responses.folder.name)
        responses = Pieces(folder.responses, self.label, key, RESPONSES)
        return replace(self, turn=turn, conversations=conversations, responses=responses)


def find_given(
    config: EvaluationConfig, folder: EvaluationFolder, prompts: Sequence[Prompt], blocks: Sequence[Sequence[int]]
) -> dict[str, GivenWork]:
    """The models of `config` whose answers are there, by label. Raises `UserError`, naming the key, as `read_outputs`
    does."""
    found = {}
    for label, asked in config.models.items():
        if isinstance(asked, OutputsConfig):
            try:
                outputs = read_outputs(asked, prompts, config.prompts)
            except UserError as error:
                raise UserError(f"models.{label}: {error}") from None
            found[label] = _work(config, folder, label, masked(asked.outputs), outputs, prompts, blocks)
    return found


def _work(
    config: EvaluationConfig, folder: EvaluationFolder, label: str, name: str, outputs: Outputs,
    prompts: Sequence[Prompt], blocks: Sequence[Sequence[int]],
) -> GivenWork:  # fmt: skip
    rounds, turns = config.sampling.rounds, config.prompts.turns
    if all(len(of_prompt) <= 1 for of_prompt in outputs.answers):
        rounds = 1
    answers = [[texts[:turns] for texts in of_prompt[:rounds]] for of_prompt in outputs.answers]
    digest = content_key(outputs=answers)
    asked = [prompt.as_found.content for prompt in prompts]
    key = content_key(outputs=digest, prompts=asked, blocks=blocks, rounds=rounds)
    remarks = [*missing(outputs, prompts, rounds, turns), *outputs.remarks]
    return GivenWork(
        label, name, digest, answers, rounds, Pieces(folder.responses, label, key, RESPONSES),
        [f"The file of {label} {remark}." for remark in remarks], config.answers.strip_thinking,
    )  # fmt: skip
