"""What `orpo-ray data CONFIG` prints: the account of the records, token lengths, savings, two examples."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orpo_ray.config import TrainConfig
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.data.records import Account
from orpo_ray.data.templates import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (50, 90, 99, 100)
PADDED_BATCH = 8
"""Pairs in a batch of the padded trainer that packing is compared with."""
SHOWN_CHARACTERS = 700
"""Of each prompt (its end) and response (its beginning) in an example."""


@dataclass(frozen=True)
class Example:
    """The text of one tokenised pair, its BOS and the tokens that end it left out of the text and noted apart."""

    record: int | str
    prompt: str
    chosen: str
    rejected: str
    bos: str | None
    """The BOS as text, where the prompt begins with one."""
    eos: tuple[str | None, str | None]
    """The token that ends chosen and rejected, EOS or the template's own, as text; None where the response was cut."""


@dataclass(frozen=True)
class Summary:
    """The figures of a run's data; lengths are in tokens, BOS and EOS included."""

    accounts: dict[str, Account]
    """By what was read: `data.train`, and `data.eval` where it is set, source by source."""
    train_pairs: int
    eval_pairs: int
    mixture: tuple[tuple[str, int, int, float], ...]
    """Of each of several sources: name, pairs to train on, pairs held out, and its part of the pairs of a step;
    those of `data.eval` alone behind the others."""
    lengths: NDArray[np.int64]
    """(3, 4): of prompt, chosen, rejected: p50, p90, p99, max."""
    shared_tokens: int
    """Tokens computed when a pair's two responses share their prompt."""
    unshared_tokens: int
    """Each response with a prompt of its own, no padding."""
    padded_tokens: int
    """The same padded to the longest in batches of `PADDED_BATCH` pairs, drawn at random."""
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
    lengths = np.concatenate([prepared.train.lengths(), prepared.eval.lengths()])
    prompt, responses = lengths[:, 0], lengths[:, 1:].sum(axis=1)
    return Summary(
        accounts=prepared.accounts,
        train_pairs=len(prepared.train),
        eval_pairs=len(prepared.eval),
        mixture=_mixture(config, prepared),
        lengths=np.percentile(lengths, PERCENTILES, axis=0, method="nearest").T.astype(np.int64),
        shared_tokens=int((prompt + responses).sum()),
        unshared_tokens=int((2 * prompt + responses).sum()),
        padded_tokens=_padded_tokens(lengths, config.seed),
        examples=tuple(_example(prepared.train, i, tokenizer, ends) for i in _shown(prepared.train)),
        quarantine=prepared.quarantine,
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


def _padded_tokens(lengths: NDArray[np.int64], seed: int) -> int:
    """Tokens of all batches, chosen and rejected side by side, each padded to its batch's longest."""
    longest = lengths[:, 0] + lengths[:, 1:].max(axis=1)
    longest = np.random.default_rng(seed).permutation(longest)
    starts = np.arange(0, len(longest), PADDED_BATCH)
    rows = 2 * np.diff(np.append(starts, len(longest)))
    return int((np.maximum.reduceat(longest, starts) * rows).sum())


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
        chosen=texts[1],
        rejected=texts[2],
        bos=str(tokenizer.bos_token) if has_bos else None,
        eos=(marks[0], marks[1]),
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
        parts += [_title(name), _records_table(account)]
        parts += [Text(remark) for remark in account.remarks() if about[remark] == [name]]
    for remark, names in about.items():
        if len(names) > 1:  # what template and tokenizer do, as a rule
            whose = "in all of these" if len(names) == len(summary.accounts) else "; ".join(names)
            parts.append(Text(f"\n{whose}: {remark}"))
    parts.append(f"{summary.train_pairs:,} pairs to train on, {summary.eval_pairs:,} held out to evaluate")
    if summary.mixture:
        parts += [_title("Sources"), _mixture_table(summary)]
    parts += [_title("Tokens of kept pairs, BOS and EOS included"), _lengths_table(summary.lengths)]
    parts += [_title("Tokens of one epoch over them"), _savings_table(summary)]
    parts += [_example_panel(example) for example in summary.examples]
    parts += [Text(f"quarantined records: {path}") for path in summary.quarantine]
    return Group(*parts)


def _title(text: str) -> Text:
    return Text(f"\n{text}", "bold")


def _records_table(account: Account) -> Table:
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
        times = f"{share * summary.train_pairs / pairs:.2f}" if pairs else ""  # of one that is for evaluation alone
        table.add_row(name, f"{pairs:,}", f"{held:,}", f"{share:.1%}", times)
    return table


def _lengths_table(lengths: NDArray[np.int64]) -> Table:
    table = Table("")
    for percentile in PERCENTILES:
        table.add_column("max" if percentile == 100 else f"p{percentile}", justify="right")
    for name, row in zip(("prompt", "chosen", "rejected"), lengths.tolist(), strict=True):
        table.add_row(name, *(f"{length:,}" for length in row))
    return table


def _savings_table(summary: Summary) -> Table:
    table = Table("")
    table.add_column("tokens", justify="right")
    table.add_column("saved by prefix sharing", justify="right")
    table.add_row("each prompt once: prompt + chosen + rejected, packed", f"{summary.shared_tokens:,}", "")
    for name, tokens in (
        ("prompt + chosen and prompt + rejected, no padding", summary.unshared_tokens),
        (f"the same side by side, padded in batches of {PADDED_BATCH} pairs", summary.padded_tokens),
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
    for name, style, response, eos in (
        ("chosen", "green", example.chosen, example.eos[0]),
        ("rejected", "red", example.rejected, example.eos[1]),
    ):
        text.append(f"\n⟦{name}⟧", f"bold {style}").append(_visible(response[:SHOWN_CHARACTERS]), style)
        if len(response) > SHOWN_CHARACTERS:
            text.append(" …", "dim")
        text.append("⟦cut⟧" if eos is None else f"⟦EOS {eos}⟧", "bold magenta")
    return Panel(text, title=Text(f"record {example.record}"), title_align="left")


def _visible(text: str) -> str:
    """`text` with control and invisible characters written out, so that data cannot steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
