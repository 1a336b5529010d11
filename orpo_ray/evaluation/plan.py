"""What an evaluation has to do: prompts in each model's tokens, cut into blocks, and which pieces are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from orpo_ray.config import EvaluationConfig
from orpo_ray.data.prompts import Prompt, read_prompts, readable
from orpo_ray.data.records import Account, BadRecord
from orpo_ray.errors import UserError
from orpo_ray.evaluation.generation import Request, request_seed
from orpo_ray.evaluation.models import TRUTH, EvaluatedModel, Speaker, find_policy, find_reward_model
from orpo_ray.evaluation.store import (
    LOG_PROBS,
    PROMPTS_IN_BLOCK,
    RESPONSES,
    REWARDS,
    EvaluationFolder,
    Pieces,
    content_key,
)


@dataclass(frozen=True)
class PolicyWork:
    """One policy: how it is asked, and where its pieces lie."""

    model: EvaluatedModel
    speaker: Speaker
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
    rewards: Pieces


@dataclass(frozen=True)
class EvaluationPlan:
    config: EvaluationConfig
    folder: EvaluationFolder
    prompts: list[Prompt]
    account: Account
    blocks: list[list[int]]
    """Indices of prompts; those that begin alike lie together, for the engines' prefix cache."""
    seeds: list[list[int]]
    """`(prompts, rounds)`."""
    policies: dict[str, PolicyWork]
    judges: dict[str, JudgeWork]
    notes: list[str] = field(default_factory=list)
    """What a reader of the result must know."""

    @property
    def pairs(self) -> bool:
        """Whether the data set has responses of its own."""
        return bool(self.prompts[0].as_found.completions)

    def requests(self, label: str, block: int) -> list[Request]:
        """The responses of a policy to a block; none for prompts that do not fit its context."""
        policy = self.policies[label]
        return [
            Request(prompt, round, policy.ids[prompt], self.seeds[prompt][round])
            for prompt in self.blocks[block] if policy.fits[prompt]
            for round in range(self.config.sampling.rounds)
        ]  # fmt: skip


def make_plan(config: EvaluationConfig, progress: Callable[[int], None] | None = None) -> EvaluationPlan:
    """Find and check every model, read the prompts, and say where each piece of work goes.

    Raises `UserError` for what the user has to mend, before anything is computed.
    """
    trust, template = config.trust_remote_code, config.prompts.chat_template
    models = {
        label: find_policy(label, name, config.storage.cache_dir, trust_remote_code=trust)
        for label, name in config.models.items()
    }
    reward_models = {
        label: None if name == TRUTH else find_reward_model(label, name, config.scoring.dtype, trust_remote_code=trust)
        for label, name in config.reward_models.items()
    }
    speakers = {label: Speaker(model, template) for label, model in models.items()}
    listeners = {label: Speaker(model, template) for label, model in reward_models.items() if model is not None}
    with_messages = any(speaker.wants_messages for speaker in [*speakers.values(), *listeners.values()])
    prompts, account = read_prompts(config.prompts, with_messages=with_messages, progress=progress)
    folder = EvaluationFolder(config.storage.run_dir(config.name))
    ids = {label: _prompt_ids(speaker, prompts) for label, speaker in {**speakers, **listeners}.items()}
    order = sorted(range(len(prompts)), key=ids[next(iter(speakers))].__getitem__)
    blocks = [order[start : start + PROMPTS_IN_BLOCK] for start in range(0, len(order), PROMPTS_IN_BLOCK)]
    policies = {
        label: _policy_work(config, folder, model, speakers[label], ids[label], prompts, blocks)
        for label, model in models.items()
    }
    asked = content_key(prompts=[[p.as_found.prompt, p.as_found.completions] for p in prompts], blocks=blocks)
    judges = {}
    for label, judge in reward_models.items():
        listener = listeners.get(label)
        key = content_key(
            model=TRUTH if judge is None else [judge.digest, judge.dtype, config.scoring.model_dump()],
            template=listener and [listener.template, listener.wants_messages],
            asked=asked, responses=[[name, work.responses.folder.name] for name, work in policies.items()],
        )  # fmt: skip
        judges[label] = JudgeWork(
            label, config.reward_models[label], judge, listener.template if listener else "none",
            Pieces(folder.rewards, label, key, REWARDS),
        )  # fmt: skip
    seeds = _seeds(config, prompts)
    return EvaluationPlan(
        config, folder, prompts, account, blocks, seeds, policies, judges, _notes(account, policies, listeners)
    )


def _prompt_ids(speaker: Speaker, prompts: list[Prompt]) -> list[list[int]]:
    ids = []
    speaker.look_at(prompts)
    for prompt in prompts:
        try:
            ids.append(speaker.rows(speaker.question(prompt).prompt)[0])
        except (BadRecord, UserError) as error:
            raise UserError(f"{prompt.location}: {error}") from None
    return ids


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
    key = content_key(
        model=[model.digest, model.stored_dtype], ids=ids, blocks=blocks, sampling=sampling.model_dump(),
        prompts=[prompt.as_found.prompt for prompt in prompts],
        **({"stop": stop_ids} if stop_ids else {}),
    )  # fmt: skip
    pairs = [prompt.as_found.completions for prompt in prompts]
    log_probs = content_key(model=[model.digest, model.dtype], ids=ids, pairs=pairs, blocks=blocks)
    return PolicyWork(
        model, speaker, ids, fits, stop_ids,
        max_length=max(len(prompt) for prompt, fit in zip(ids, fits, strict=True) if fit) + sampling.max_tokens,
        responses=Pieces(folder.responses, model.label, key, RESPONSES),
        log_probs=Pieces(folder.log_probs, model.label, log_probs, LOG_PROBS) if pairs[0] else None,
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
    notes = []
    if account.quarantined:
        reasons = ", ".join(f"{reason} {count}" for reason, count in account.quarantined.most_common())
        notes.append(
            f"{account.quarantined.total()} of {account.read} records are no prompt and were left out: {reasons}."
        )
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
    for label, work in policies.items():
        missing = work.fits.count(False)
        if missing:
            notes.append(
                f"{label} did not answer {missing} prompts: they do not fit its context of {work.model.context} tokens "
                "beside sampling.max_tokens. They count in none of its comparisons."
            )
    return notes


def _way(speaker: Speaker, *, bos: bool = True) -> str:
    form = (
        f"chat template {speaker.template}"
        if speaker.wants_messages
        else f"text as it stands, chat template {speaker.template}"
    )
    return form + (("" if speaker.bos is not None else ", no BOS") if bos else "")
