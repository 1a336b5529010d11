"""What `orpo-ray data CONFIG` prints: the account of the records, token lengths, savings, two examples."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orpo_ray.config import TrainConfig
from orpo_ray.data import lengths as uncut_lengths
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.mixture import JoinedPairs, below_each_other
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.data.records import Account
from orpo_ray.data.templates import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (50, 90, 99, 100)
_MEASURED = ("prompt", "chosen", "rejected", "prompt + longest response")
PADDED_BATCH = 8
"""Records in a batch of the padded trainer that packing is compared with."""
SHOWN_RESPONSES = 8
"""Of a record of more than two, in an example."""
SHOWN_CHARACTERS = 700
"""Of each prompt (its end) and response (its beginning) in an example."""


@dataclass(frozen=True)
class Example:
    """The text of one tokenised record, its BOS and the tokens that end it left out of the text and noted apart."""

    record: int | str
    prompt: str
    responses: tuple[str, ...]
    names: tuple[str, ...]
    """Of the responses: chosen and rejected, or their ranks, or their labels."""
    bos: str | None
    """The BOS as text, where the prompt begins with one."""
    eos: tuple[str | None, ...]
    """The token that ends each response, EOS or the template's own, as text; None where it was cut."""


@dataclass(frozen=True)
class Summary:
    """The figures of a run's data; lengths are in tokens, BOS and EOS included."""

    accounts: dict[str, Account]
    """By what was read: `data.train`, and `data.eval` where it is set, source by source."""
    train: Pairs
    eval: Pairs
    mixture: tuple[tuple[str, int, int, float], ...]
    """Of each of several sources: name, pairs to train on, pairs held out, and its part of the pairs of a step;
    those of `data.eval` alone behind the others."""
    lengths: NDArray[np.int64]
    """(4, 4): of prompts, chosen (best, desirable) and rejected (all other) responses, and prompts with their longest
    response: p50, p90, p99, max; 0 where there is none. As they are before any is cut, unless `after_cutting`."""
    after_cutting: bool
    """Some were cut, and an earlier version, which tokenised them, did not count how long they were."""
    cut: tuple[int, int, int]
    """Records that have their prompt, a chosen or a rejected response cut."""
    limits: str | None
    """What `data.max_length` and `data.max_prompt_length` would cut few, beside what they are."""
    shared_tokens: int
    """Tokens computed when a record's responses share their prompt."""
    unshared_tokens: int
    """Each response with a prompt of its own, no padding."""
    padded_tokens: int
    """The same padded to the longest in batches of `PADDED_BATCH` records, drawn at random."""
    room: str | None
    """Of prompts alone: what they leave for the responses."""
    examples: tuple[Example, ...]
    quarantine: tuple[Path, ...]


def summarize(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Prepare the data of a run and measure it. Raises `UserError` as `prepare` does."""
    prepared = prepare(config, tokenizer, progress)
    renderer = Renderer(tokenizer, config.data.chat_template, date=config.data.date)
    ends = {tokenizer.eos_token_id, *renderer.end_ids}
    parts = (prepared.train, prepared.eval)
    lengths, ranks = (
        below_each_other([part.lengths() for part in parts], 0),
        below_each_other([part.ranks() for part in parts], -1),
    )
    prompt, responses = lengths[:, 0], lengths[:, 1:]
    counts = (ranks >= 0).sum(axis=1)
    accounts = prepared.accounts.values()
    cut = (
        sum(one.cut_prompts for one in accounts),
        sum(one.cut_chosen for one in accounts),
        sum(one.cut_rejected for one in accounts),
    )
    uncut = uncut_lengths.together(one.uncut for one in accounts) if config.rollouts is None else None
    if uncut is None:  # nothing of prompts alone is ever cut
        measured = [prompt, responses[ranks == 0], responses[ranks > 0], prompt + responses.max(axis=1, initial=0)]
    else:
        measured = [uncut_lengths.values(uncut[part]) for part in uncut_lengths.PARTS]
    return Summary(
        accounts=prepared.accounts,
        train=prepared.train,
        eval=prepared.eval,
        mixture=_mixture(config, prepared),
        lengths=np.array([_percentiles(each) for each in measured]),
        after_cutting=uncut is None and any(cut),
        cut=cut,
        limits=None if uncut is None else _limits(config, uncut),
        shared_tokens=int(lengths.sum()),
        unshared_tokens=int((counts * prompt).sum() + responses.sum()),
        padded_tokens=_padded_tokens(lengths, counts, config.seed),
        room=_room(config),
        examples=tuple(_example(prepared.train, i, tokenizer, ends) for i in _shown(prepared.train)),
        quarantine=prepared.quarantine,
    )


def _limits(config: TrainConfig, uncut: uncut_lengths.Lengths) -> str | None:
    limits, data = uncut_lengths.suggested(uncut), config.data
    if limits is None:
        return None
    return (
        f"{uncut_lengths.HELD}% of records fit whole into data.max_length={limits.max_length}, and of prompts into "
        f"data.max_prompt_length={limits.max_prompt_length} (here {data.max_length} and {data.max_prompt_length})"
    )


def _room(config: TrainConfig) -> str | None:
    if config.rollouts is None:
        return None
    longest, response = config.data.max_length, config.rollouts.max_tokens
    return (
        f"prompts of up to {longest - response:,} tokens leave room for responses of {response:,} "
        f"(rollouts.max_tokens) in the {longest:,} of data.max_length; longer ones are dropped, none is cut"
    )


def _mixture(config: TrainConfig, prepared: PreparedData) -> tuple[tuple[str, int, int, float], ...]:
    train, evaluation = prepared.train, prepared.eval
    if not isinstance(train, JoinedPairs):
        return ()
    held = evaluation.spans if isinstance(evaluation, JoinedPairs) else {}
    shares = train.shares(config.data.train_sources, config.data.temperature, config.seed)
    total = sum(share.weight for share in shares)
    held_out = {name: end - start for name, (start, end) in held.items()}
    rows = [
        (name, share.pairs, held_out.pop(name, 0), share.weight / total)
        for name, share in zip(train.names, shares, strict=True)
    ]
    return (*rows, *((name, 0, pairs, 0.0) for name, pairs in held_out.items()))


def _shown(pairs: Pairs) -> list[int]:
    """The pairs that are examples: the first two, or of several sources the first of each, of no more than ten."""
    if isinstance(pairs, JoinedPairs) and len(pairs.spans) > 1:
        return [start for start, _ in pairs.spans.values()][:10]
    return list(range(min(2, len(pairs))))


def _percentiles(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(lengths):
        return np.zeros(len(PERCENTILES), np.int64)
    return np.percentile(lengths, PERCENTILES, method="nearest").astype(np.int64)


def _padded_tokens(lengths: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> int:
    """Tokens of all batches, the responses of each record side by side, each padded to its batch's longest."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    longest = (lengths[:, 0] + lengths[:, 1:].max(axis=1, initial=0))[order]
    starts = np.arange(0, len(longest), PADDED_BATCH)
    rows = np.add.reduceat(counts[order], starts)
    return int((np.maximum.reduceat(longest, starts) * rows).sum())


def _names(ranks: list[int], pairs: Pairs) -> tuple[str, ...]:
    if pairs.rule == "labels":
        return tuple("desirable" if rank == 0 else "undesirable" for rank in ranks)
    return ("chosen", "rejected") if ranks == [0, 1] else tuple(f"rank {rank + 1}" for rank in ranks)


def _example(pairs: Pairs, i: int, tokenizer: PreTrainedTokenizerBase, ends: Container[int]) -> Example:
    prompt, *responses = (ids.tolist() for ids in pairs.pair(i))
    bos = tokenizer.bos_token_id
    has_bos = bos is not None and prompt[0] == bos
    ended = [response[-1] in ends for response in responses]
    marks = [
        tokenizer.convert_ids_to_tokens(response[-1]) if end else None
        for response, end in zip(responses, ended, strict=True)
    ]
    texts = [
        str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        for ids in (
            prompt[has_bos:],
            *(response[: len(response) - end] for response, end in zip(responses, ended, strict=True)),
        )
    ]
    return Example(
        record=pairs.record(i),
        prompt=texts[0],
        responses=tuple(texts[1:]),
        names=_names(pairs.ranks(np.array([i]))[0].tolist(), pairs),
        bos=str(tokenizer.bos_token) if has_bos else None,
        eos=tuple(marks),
    )


def print_summary(config: TrainConfig, console: Console, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print the summary of a run's data, with the records read so far while it is tokenised."""
    with console.status("reading") as status:
        summary = summarize(config, tokenizer, lambda read: status.update(f"{read:,} records read"))
    console.print(render(summary))


def render(summary: Summary) -> RenderableType:
    """The summary as tables and panels. Text of the data is shown as it is: no markup, no control codes."""
    parts: list[RenderableType] = []
    about: dict[str, list[str]] = {}
    for name, account in summary.accounts.items():
        for remark in account.remarks():
            about.setdefault(remark, []).append(name)
    for name, account in summary.accounts.items():
        parts += [_title(name), _records_table(account, cut=summary.room is None)]
        parts += [Text(remark) for remark in account.remarks() if about[remark] == [name]]
    for remark, names in about.items():
        if len(names) > 1:  # what template and tokenizer do, as a rule
            whose = "in all of these" if len(names) == len(summary.accounts) else "; ".join(names)
            parts.append(Text(f"\n{whose}: {remark}"))
    parts.append(f"{summary.train.amount()} to train on, {summary.eval.amount()} held out to evaluate")
    if summary.mixture:
        parts += [_title("Sources"), _mixture_table(summary)]
    if summary.room is not None:
        parts += [_title("Tokens of kept prompts, BOS included"), _lengths_table(summary.lengths[:1]), summary.room]
    else:
        measured = "after cutting" if summary.after_cutting else "before cutting"
        parts += [_title(f"Tokens of kept records {measured}, BOS and EOS included")]
        parts.append(_lengths_table(summary.lengths, _cut_share(summary)))
        parts += [] if summary.limits is None else [summary.limits]
        if summary.after_cutting:
            parts.append(
                "an earlier version tokenised these records, and did not count how long they were before it cut some: "
                "set storage.cache to a new folder to see it"
            )
        parts += [_title("Tokens of one epoch over them"), _savings_table(summary)]
    parts += [_example_panel(example) for example in summary.examples]
    parts += [Text(f"quarantined records: {path}") for path in summary.quarantine]
    return Group(*parts)


def _title(text: str) -> Text:
    return Text(f"\n{text}", "bold")


def _records_table(account: Account, *, cut: bool) -> Table:
    """`cut`: with what was cut to fit."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("records read", f"{account.read:,}")
    table.add_section()
    table.add_row("kept", f"{account.kept:,}")
    for label, reasons in (("dropped", account.dropped), ("quarantined", account.quarantined)):
        table.add_row(label, f"{reasons.total():,}")
        for reason, count in reasons.most_common():
            table.add_row(Text(f"  {reason}"), f"{count:,}")
    accounted = account.kept + account.dropped.total() + account.quarantined.total()
    table.add_row("kept + dropped + quarantined", f"{accounted:,}")
    if not cut:
        return table
    table.add_section()
    table.add_row("prompts cut (they keep their end)", f"{account.cut_prompts:,}")
    table.add_row("chosen responses cut (no EOS)", f"{account.cut_chosen:,}")
    table.add_row("rejected responses cut (no EOS)", f"{account.cut_rejected:,}")
    return table


def _mixture_table(summary: Summary) -> Table:
    table = Table("")
    for heading in ("to train on", "held out", "of each step", "times in an epoch"):
        table.add_column(heading, justify="right")
    for name, pairs, held, share in summary.mixture:
        times = f"{share * len(summary.train) / pairs:.2f}" if pairs else ""  # of one that is for evaluation alone
        table.add_row(name, f"{pairs:,}", f"{held:,}", f"{share:.1%}", times)
    return table


def _lengths_table(lengths: NDArray[np.int64], cut: Sequence[str] = ()) -> Table:
    """`cut`: of each row, how many were cut to fit; none where nothing is."""
    table = Table("")
    for percentile in PERCENTILES:
        table.add_column("max" if percentile == 100 else f"p{percentile}", justify="right")
    if cut:
        table.add_column("records cut", justify="right")
    for name, row, of_row in zip_longest(_MEASURED[: len(lengths)], lengths.tolist(), cut, fillvalue=""):
        table.add_row(name, *(f"{length:,}" for length in row), *([of_row] if cut else []))
    return table


def _cut_share(summary: Summary) -> list[str]:
    kept = sum(account.kept for account in summary.accounts.values())
    return [f"{count:,} ({count / kept:.1%})" for count in summary.cut]


def _savings_table(summary: Summary) -> Table:
    table = Table("")
    table.add_column("tokens", justify="right")
    table.add_column("saved by prefix sharing", justify="right")
    table.add_row("each prompt once, with all its responses, packed", f"{summary.shared_tokens:,}", "")
    for name, tokens in (
        ("a prompt for each response, no padding", summary.unshared_tokens),
        (f"the same side by side, padded in batches of {PADDED_BATCH} records", summary.padded_tokens),
    ):
        table.add_row(name, f"{tokens:,}", f"{1 - summary.shared_tokens / tokens:.1%}")
    return table


def _example_panel(example: Example) -> Panel:
    text = Text()
    text.append("⟦prompt⟧", "bold cyan")
    if example.bos is not None:
        text.append(f"⟦BOS {example.bos}⟧", "bold magenta")
    elided = len(example.prompt) > SHOWN_CHARACTERS
    text.append("… " if elided else "", "dim").append(_visible(example.prompt[-SHOWN_CHARACTERS:]))
    shown = list(zip(example.names, example.responses, example.eos, strict=True))
    for name, response, eos in shown[:SHOWN_RESPONSES]:
        style = "green" if name in ("chosen", "desirable", "rank 1") else "red"
        text.append(f"\n⟦{name}⟧", f"bold {style}").append(_visible(response[:SHOWN_CHARACTERS]), style)
        if len(response) > SHOWN_CHARACTERS:
            text.append(" …", "dim")
        text.append("⟦cut⟧" if eos is None else f"⟦EOS {eos}⟧", "bold magenta")
    if len(shown) > SHOWN_RESPONSES:
        text.append(f"\n⟦{len(shown) - SHOWN_RESPONSES} more⟧", "dim")
    return Panel(text, title=Text(f"record {example.record}"), title_align="left")


def _visible(text: str) -> str:
    """`text` with control and invisible characters written out, so that data cannot steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
