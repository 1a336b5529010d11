"""What engines and scorers have to do: prompts in each model's tokens, cut into blocks, and which pieces are missing.

A `Plan` is what `evaluate` and `score` share; the second has no policies, and all responses come with the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orpo_ray.config import EvaluationConfig, ScoreConfig
from orpo_ray.config.evaluation import DATA_LABELS, SamplingConfig
from orpo_ray.data.prompts import Prompt, read_prompts, readable
from orpo_ray.data.records import Account
from orpo_ray.errors import UserError
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
from orpo_ray.inference.generation import Request, request_seed
from orpo_ray.inference.listening import Listener, listener
from orpo_ray.inference.models import TRUTH, EvaluatedModel, find_policy, find_reward_model, require_forward
from orpo_ray.inference.scoring import require_known
from orpo_ray.inference.speaking import Speaker, prompt_ids

ENGINES = {"vllm": "vLLM", "transformers": "transformers"}
OWN = ""
"""Whose the responses of the data set are, where others are the policies'."""


@dataclass(frozen=True)
class PolicyWork:
    """One policy: how it is asked, and where its pieces lie."""

    model: EvaluatedModel
    speaker: Speaker
    sampling: SamplingConfig
    engine: Literal["vllm", "transformers"]
    ids: list[list[int]]
    """Token ids of every prompt."""
    fits: list[bool]
    """Whether prompt and `max_tokens` fit its context."""
    stop_ids: tuple[int, ...]
    """Tokens that end its answers, beside EOS."""
    max_length: int
    responses: Pieces
    log_probs: Pieces | None
    """None where the data set has no responses of its own."""


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
    seeds: list[list[int]] = field(default_factory=list)
    """`(prompts, rounds)`."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the result must know."""

    def requests(self, label: str, block: int) -> list[Request]:
        """The responses of a policy to a block; none for prompts that do not fit its context."""
        policy = self.policies[label]
        return [
            Request(prompt, round, policy.ids[prompt], seed)
            for prompt in self.blocks[block] if policy.fits[prompt]
            for round, seed in enumerate(self.seeds[prompt])
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan(Plan):
    config: EvaluationConfig
    folder: EvaluationFolder

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
        for label, asked in config.models.items()
    }
    reward_models = find_reward_models(config)
    speakers = {label: Speaker(model, template) for label, model in models.items()}
    listeners = {label: listener(model, template) for label, model in reward_models.items() if model is not None}
    with_messages = any(speaker.wants_messages for speaker in [*speakers.values(), *listeners.values()])
    prompts, account = read_prompts(config.prompts, with_messages=with_messages, progress=progress)
    require_known(reward_models, prompts)
    folder = EvaluationFolder(config.storage.run_dir(config.name))
    ids = {label: prompt_ids(speaker, prompts) for label, speaker in {**speakers, **listeners}.items()}
    blocks = cut_into_blocks(ids[next(iter(speakers))])
    policies = {
        label: _policy_work(config, folder, model, speakers[label], ids[label], prompts, blocks)
        for label, model in models.items()
    }
    asked = content_key(prompts=[p.as_found.content for p in prompts], blocks=blocks)
    parts: dict[str, dict[str, Any]] = {OWN: {}} if prompts[0].as_found.completions else {}
    parts |= {
        label: {"responses": work.responses.folder.name, "said": [work.speaker.template, work.speaker.wants_messages]}
        for label, work in policies.items()
    }
    judges = judge_works(config, folder.rewards, reward_models, listeners, parts, asked=asked)
    return EvaluationPlan(
        config=config, folder=folder, prompts=prompts, account=account, blocks=blocks, seeds=_seeds(config, prompts),
        own=[[(label, 0) for label in DATA_LABELS[: len(prompt.as_found.completions)]] for prompt in prompts],
        policies=policies, judges=judges, notes=_notes(account, policies, listeners),
    )  # fmt: skip


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
        recipe = {} if judge is None or judge.trained_here else {"recipe": "huggingface"}
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
    room = None if model.context is None else model.context - sampling.max_tokens
    fits = [room is None or len(prompt) <= room for prompt in ids]
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
        max_length=max(len(prompt) for prompt, fit in zip(ids, fits, strict=True) if fit) + sampling.max_tokens,
        responses=Pieces(folder.responses, model.label, key, RESPONSES),
        log_probs=Pieces(folder.log_probs, model.label, key_of_pairs, LOG_PROBS)
        if scored else None,
    )  # fmt: skip


def _seeds(config: EvaluationConfig, prompts: list[Prompt]) -> list[list[int]]:
    earlier: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        text = readable(prompt.as_found.prompt)
        rounds = range(config.sampling.rounds)
        seeds.append([request_seed(config.sampling.seed, text, earlier[text], round) for round in rounds])
        earlier[text] += 1
    return seeds


def _notes(account: Account, policies: dict[str, PolicyWork], listeners: dict[str, Speaker]) -> list[str]:
    """What is said aloud: records left out, and models that are spoken to in different ways."""
    notes = left_out(account, "are no prompt")
    if account.dropped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in account.dropped.most_common())
        notes.append(
            f"{account.dropped.total()} of {account.read} records prefer neither answer and were left out: {reasons}."
        )
    notes += [f"Of the prompts: {remark}." for remark in account.remarks()]
    said = {label: work.speaker for label, work in policies.items()} | listeners
    notes += [f"{label}: {remark}." for label, speaker in said.items() for remark in speaker.remarks]
    ways = {label: _way(work.speaker) for label, work in policies.items()}
    if len(set(ways.values())) > 1:
        told = "; ".join(f"{label}: {way}" for label, way in ways.items())
        notes.append(f"The models are spoken to in different ways, each as it was trained ({told}).")
    for label, speaker in listeners.items():
        way = _way(speaker, bos=False)
        other = [name for name, work in policies.items() if _way(work.speaker, bos=False) != way]
        if other:
            notes.append(
                f"The reward model {label} reads text in another form than {', '.join(other)} wrote it in ({way})."
            )
    notes += from_elsewhere(listeners, generated=True)
    for label, work in policies.items():
        missing = work.fits.count(False)
        if missing:
            notes.append(
                f"{label} did not answer {missing} prompts: they do not fit its context of {work.model.context} tokens "
                "beside sampling.max_tokens. They count in none of its comparisons."
            )
    return notes


def left_out(account: Account, why: str) -> list[str]:
    """Notes on records that were set aside."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in account.quarantined.most_common())
    count = account.quarantined.total()
    return [f"{count} of {account.read} records {why} and were left out: {reasons}."] if count else []


def from_elsewhere(listeners: Mapping[str, Speaker], *, generated: bool) -> list[str]:
    """Notes on reward models that were not trained here. `generated`: answers may have been cut."""
    notes = []
    for label, speaker in listeners.items():
        if not isinstance(speaker, Listener):
            continue
        through = speaker.wants_messages
        reads = "whole conversations as its chat template writes them" if through else "text as its tokenizer takes it"
        closed = "; an answer that max_tokens cut is closed like any other" if through and generated else ""
        notes.append(
            f"The reward model {label} was not trained here: it reads {reads}, and is scored where transformers' own "
            f"classifiers are{closed}."
        )
    return notes


def _way(speaker: Speaker, *, bos: bool = True) -> str:
    form = (
        f"chat template {speaker.template}"
        if speaker.wants_messages
        else f"text as it stands, chat template {speaker.template}"
    )
    return form + (("" if speaker.bos is not None else ", no BOS") if bos else "")
