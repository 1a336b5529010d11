"""What engines and scorers have to do: prompts in each model's tokens, cut into blocks, and which pieces are missing.

A `Plan` is what `evaluate` and `score` share; the second has no policies, and all responses come with the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from orpo_ray.config import EvaluationConfig, ScoreConfig
from orpo_ray.config.evaluation import DATA_LABELS, SamplingConfig
from orpo_ray.data.prompts import Prompt, read_prompts, readable
from orpo_ray.data.records import Account
from orpo_ray.errors import UserError
from orpo_ray.evaluation.given import GivenWork, find_given
from orpo_ray.evaluation.notes import notes_of
from orpo_ray.evaluation.store import (
    LOG_PROBS,
    PROMPTS_IN_BLOCK,
    RESPONSES,
    REWARDS,
    EvaluationFolder,
    Parts,
    Pieces,
    content_key,
)
from orpo_ray.evaluation.thinking import Thought, without_thinking
from orpo_ray.inference.generation import Request, request_seed
from orpo_ray.inference.listening import listener
from orpo_ray.inference.models import TRUTH, EvaluatedModel, find_policy, find_reward_model, require_forward
from orpo_ray.inference.scoring import require_known
from orpo_ray.inference.speaking import Answer, Speaker, prompt_ids

ENGINES = {"vllm": "vLLM", "transformers": "transformers"}
OWN = ""
"""Whose the responses of the data set are, where others are the policies'."""
TOO_LONG = "too long"
_READ_BY = {"ifeval": ("key", "instruction_id_list", "kwargs"), "mt-bench": ("question_id",)}
"""Columns of the prompts that a measure of `measures` reads."""


@dataclass(frozen=True)
class PolicyWork:
    """One policy: how it is asked, and where its pieces lie."""

    model: EvaluatedModel
    speaker: Speaker
    sampling: SamplingConfig
    engine: Literal["vllm", "transformers"]
    ids: list[list[int]]
    """Token ids of every prompt, in its first turn."""
    fits: list[bool]
    """Whether that and `max_tokens` fit its context."""
    stop_ids: tuple[int, ...]
    """Tokens that end its answers, beside EOS."""
    max_length: int
    responses: Pieces
    log_probs: Pieces | None
    """None where the data set has no responses of its own."""
    top_tokens: int = 0
    """Nobody asks how likely a policy's tokens were."""
    strip_thinking: bool = False
    conversations: list[list[Prompt | None]] | None = None
    """Of a later turn, of each prompt and round: what is asked, behind its own answers. None: of the first turn; of one
    round: an answer before is missing."""
    later: list[list[list[int] | None]] | None = None
    """Token ids of these; None for one that does not fit its context, too."""

    missing = TOO_LONG
    """Why an answer is not there."""

    @property
    def label(self) -> str:
        return self.model.label

    @property
    def rounds(self) -> int:
        return self.sampling.rounds

    @property
    def origin(self) -> dict[str, Any]:
        """What is said of it in results."""
        return {
            "path": self.model.name, "digest": self.model.digest, "template": self.speaker.template,
            "template_for_text": self.speaker.wants_messages, "bos": self.speaker.bos is not None,
        }  # fmt: skip

    @property
    def judged_as(self) -> dict[str, Any]:
        """What its rewards are known by."""
        cut = {"thinking": "cut"} if self.strip_thinking else {}
        said = [self.speaker.template, self.speaker.wants_messages]
        return {"responses": self.responses.folder.name, "said": said, **cut}

    def asked(self, prompt: int, round: int) -> list[int] | None:
        """What it is asked in this turn, in its tokens; None where it cannot be."""
        if self.later is not None:
            return self.later[prompt][round]
        return self.ids[prompt] if self.fits[prompt] else None

    def answer(self, prompt: Prompt, row: Mapping[str, Any]) -> Answer:
        """What a row of `responses` says, as it is judged."""
        return self.thought(prompt, row)[0] if self.strip_thinking else self._said(prompt, row)

    def thought(self, prompt: Prompt, row: Mapping[str, Any]) -> tuple[Answer, Thought]:
        """The same without what was thought aloud, and whether there was any."""
        answer = self._said(prompt, row)
        text, thought = without_thinking(answer.text)
        return answer._replace(text=text), thought

    def _said(self, prompt: Prompt, row: Mapping[str, Any]) -> Answer:
        return self.speaker.answer(prompt, row["text"], cut=row["ended"] == "length")


@dataclass(frozen=True)
class JudgeWork:
    """One reward model (None: the embedded world's truth)."""

    label: str
    name: str
    model: EvaluatedModel | None
    template: str
    rewards: Parts
    """Of each policy's responses by its label; of the data set's own by `OWN`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    config: EvaluationConfig | ScoreConfig
    prompts: list[Prompt]
    account: Account
    blocks: list[list[int]]
    """Indices of prompts; those that begin alike lie together, for the engines' prefix cache."""
    own: list[list[tuple[str, int]]]
    """Of each prompt the label and number (the round, where it is a model's) that each response of the data has."""
    judges: dict[str, JudgeWork]
    policies: dict[str, PolicyWork] = field(default_factory=dict)
    given: dict[str, GivenWork] = field(default_factory=dict)
    """Those that are not asked."""
    seeds: list[list[int]] = field(default_factory=list)
    """`(prompts, rounds)`."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the result must know."""

    @property
    def answering(self) -> dict[str, PolicyWork | GivenWork]:
        """Whoever answers, or has answered, by label."""
        return {**self.policies, **self.given}

    def requests(self, label: str, block: int) -> list[Request]:
        """The responses of a policy to a block; none for prompts that do not fit its context."""
        policy = self.policies[label]
        return [
            Request(prompt, round, ids, seed, self.prompts[prompt].category)
            for prompt in self.blocks[block]
            for round, seed in enumerate(self.seeds[prompt]) if (ids := policy.asked(prompt, round)) is not None
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan(Plan):
    config: EvaluationConfig
    folder: EvaluationFolder
    reward_models: dict[str, EvaluatedModel | None]
    """Those that `judges` has in the last turn."""
    listeners: dict[str, Speaker]
    earlier: tuple[EvaluationPlan, ...] = ()
    """Of the turns before this one, all of whose answers are there."""

    @property
    def turn(self) -> int:
        """Counted from 1."""
        return len(self.earlier) + 1

    @property
    def rounds(self) -> int:
        """That are compared: 1 where all answers are from elsewhere and one to a prompt, whatever is asked for."""
        return max(work.rounds for work in self.answering.values())

    @property
    def last(self) -> bool:
        return self.turn == self.config.prompts.turns

    @property
    def answering(self) -> dict[str, PolicyWork | GivenWork]:
        """In the order of the configuration."""
        found = super().answering
        return {label: found[label] for label in self.config.models}

    @property
    def pairs(self) -> bool:
        """Whether the data set has responses of its own."""
        return bool(self.own[0])


def make_plan(config: EvaluationConfig, progress: Callable[[int], None] | None = None) -> EvaluationPlan:
    """Find and check every model, read the prompts, and say where each piece of work goes.

    Raises `UserError` for what the user has to mend, before anything is computed.
    """
    trust, template = config.trust_remote_code, config.prompts.chat_template
    models = {
        label: find_policy(label, asked, config.storage.cache_dir, trust_remote_code=trust)
        for label, asked in config.asked.items()
    }
    reward_models = find_reward_models(config)
    speakers = {label: Speaker(model, template) for label, model in models.items()}
    listeners = {label: listener(model, template) for label, model in reward_models.items() if model is not None}
    with_messages = any(speaker.wants_messages for speaker in [*speakers.values(), *listeners.values()])
    prompts, account = read_prompts(config.prompts, with_messages=with_messages, progress=progress)
    require_known(reward_models, prompts)
    for name in (name for measure in config.measures for name in _READ_BY.get(measure, ())):
        account.unread.pop(name, None)
    folder = EvaluationFolder(config.storage.run_dir(config.name))
    ids = {label: prompt_ids(speaker, prompts) for label, speaker in {**speakers, **listeners}.items()}
    first = next(iter(speakers), None)
    blocks = cut_into_blocks([readable(prompt.as_found.prompt) for prompt in prompts] if first is None else ids[first])
    policies = {
        label: _policy_work(config, folder, model, speakers[label], ids[label], prompts, blocks)
        for label, model in models.items()
    }
    given = find_given(config, folder, prompts, blocks)
    plan = EvaluationPlan(
        config=config, folder=folder, prompts=prompts, account=account, blocks=blocks, seeds=seeds(config, prompts, 1),
        own=[[(label, 0) for label in DATA_LABELS[: len(prompt.as_found.completions)]] for prompt in prompts],
        policies=policies, given=given, judges={}, reward_models=reward_models, listeners=listeners,
        notes=notes_of(config, prompts, account, policies, given, listeners),
    )  # fmt: skip
    return judged_at_last(plan)


def judged_at_last(plan: EvaluationPlan) -> EvaluationPlan:
    """`plan` with its reward models' work where it is of the last turn: they judge that, the conversation in view."""
    if not plan.last:
        return plan
    asked = content_key(prompts=[p.as_found.content for p in plan.prompts], blocks=plan.blocks)
    parts: dict[str, dict[str, Any]] = {OWN: {}} if plan.pairs else {}
    parts |= {label: work.judged_as for label, work in plan.answering.items()}
    rewards = plan.folder.of_turn(plan.turn).rewards
    judges = judge_works(plan.config, rewards, plan.reward_models, plan.listeners, parts, asked=asked)
    return replace(plan, judges=judges)


def find_reward_models(config: EvaluationConfig | ScoreConfig) -> dict[str, EvaluatedModel | None]:
    """By label; None: the embedded world's truth. Raises `UserError` as `find_reward_model` does."""
    return {
        label: None
        if name == TRUTH
        else find_reward_model(label, name, config.scoring.dtype, trust_remote_code=config.trust_remote_code)
        for label, name in config.reward_models.items()
    }


def cut_into_blocks(order: Sequence[Any]) -> list[list[int]]:
    """Indices of prompts in the order of what is given for each, `PROMPTS_IN_BLOCK` at a time."""
    ordered = sorted(range(len(order)), key=order.__getitem__)
    return [ordered[start : start + PROMPTS_IN_BLOCK] for start in range(0, len(ordered), PROMPTS_IN_BLOCK)]


def judge_works(
    config: EvaluationConfig | ScoreConfig,
    folder: Path,
    reward_models: Mapping[str, EvaluatedModel | None],
    listeners: Mapping[str, Speaker],
    parts: Mapping[str, Mapping[str, Any]],
    **asked: Any,
) -> dict[str, JudgeWork]:
    """Each reward model with the places of its pieces in `folder`.

    `parts`: by whose responses they are, JSON values that decide what it judges, beside `asked`, which all have.
    """
    works = {}
    for label, judge in reward_models.items():
        speaker = listeners.get(label)
        # Of models that were trained here, what is there stays as it is.
        recipe: dict[str, Any] = {} if judge is None or judge.trained_here else {"recipe": "huggingface"}
        if isinstance(config, EvaluationConfig) and config.generation.deterministic and config.scoring.engine == "vllm":
            recipe["deterministic"] = True
        model = TRUTH if judge is None else [judge.digest, judge.dtype, config.scoring.model_dump()]
        template = speaker and [speaker.template, speaker.wants_messages]
        rewards = {
            who: Pieces(
                folder, f"{label}-{who}" if who else label,
                content_key(model=model, template=template, **asked, **part, **recipe), REWARDS,
            )
            for who, part in parts.items()
        }  # fmt: skip
        works[label] = JudgeWork(
            label, config.reward_models[label], judge, speaker.template if speaker else "none", Parts(rewards)
        )
    return works


def _policy_work(
    config: EvaluationConfig,
    folder: EvaluationFolder,
    model: EvaluatedModel,
    speaker: Speaker,
    ids: list[list[int]],
    prompts: list[Prompt],
    blocks: list[list[int]],
) -> PolicyWork:
    sampling = config.sampling
    most = [sampling.of(prompt.category).max_tokens for prompt in prompts]
    fits = [fits_context(model, prompt, tokens) for prompt, tokens in zip(ids, most, strict=True)]
    if not any(fits):
        raise UserError(
            f"models.{model.label}: no prompt fits its context of {model.context} tokens beside "
            f"sampling.max_tokens={sampling.max_tokens}; lower it"
        )
    stop_ids = speaker.stop_ids(prompts)
    plain = config.generation.engine == "transformers"
    key = content_key(
        model=[model.digest, model.dtype if plain else model.generation_dtype],
        ids=ids, blocks=blocks, sampling=sampling.model_dump(),
        prompts=[prompt.as_found.prompt for prompt in prompts],
        **({"stop": stop_ids} if stop_ids else {}), **({"engine": "transformers"} if plain else {}),
        **({"categories": [prompt.category for prompt in prompts]} if sampling.by_category else {}),
        **({"deterministic": True} if config.generation.deterministic else {}),
    )  # fmt: skip
    pairs = [prompt.as_found.completions for prompt in prompts]
    scored = bool(pairs[0]) and config.log_probs
    if plain:
        require_forward(model, "set generation.engine=vllm, which may have it")
    elif scored:
        require_forward(model, "set log_probs=false to leave the log-probs of the data out")
    key_of_pairs = content_key(model=[model.digest, model.dtype], ids=ids, pairs=pairs, blocks=blocks)
    return PolicyWork(
        model, speaker, sampling, config.generation.engine, ids, fits, stop_ids,
        max_length=max(len(prompt) + tokens for prompt, tokens, fit in zip(ids, most, fits, strict=True) if fit),
        responses=Pieces(folder.responses, model.label, key, RESPONSES),
        log_probs=Pieces(folder.log_probs, model.label, key_of_pairs, LOG_PROBS)
        if scored else None,
        strip_thinking=config.answers.strip_thinking,
    )  # fmt: skip


def fits_context(model: EvaluatedModel, ids: Sequence[int], max_tokens: int) -> bool:
    """Whether a model has room for a prompt and the longest answer."""
    return model.context is None or len(ids) + max_tokens <= model.context


def seeds(config: EvaluationConfig, prompts: list[Prompt], turn: int) -> list[list[int]]:
    """`(prompts, rounds)`, of one turn, counted from 1; the same for every model."""
    earlier: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        text = "\n\n".join([readable(prompt.as_found.prompt), *prompt.as_found.further[: turn - 1]])
        rounds = range(config.sampling.rounds)
        found.append([request_seed(config.sampling.seed, text, earlier[text], round) for round in rounds])
        earlier[text] += 1
    return found
