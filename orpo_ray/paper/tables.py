"""The paper's tables remade: win-rates of ORPO by data set and size (Tables 2 and 3), and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orpo_ray.paper import published
from orpo_ray.paper.benchmark_tables import alpaca_table, ifeval_table, mt_bench_table
from orpo_ray.paper.cells import called, seeds_in_words, source, span, with_sd
from orpo_ray.paper.doubts import doubt
from orpo_ray.paper.further_tables import diversity_table, reward_table
from orpo_ray.paper.outcomes import AGAINST, Contest, Outcomes
from orpo_ray.paper.published import RewardWinRate
from orpo_ray.paper.stages import SEEDS
from orpo_ray.paper.table import ALL, Cell, Number, Table
from orpo_ray.paper.verdicts import Verdict, Word, holds, left_open
from orpo_ray.paper.verdicts import contest as verdict_on

_COLUMNS = {"sft": "vs SFT", "dpo": "vs SFT+DPO", "ppo": "vs SFT+PPO"}


def paper_tables(outcomes: Outcomes) -> list[Table]:
    """All of them, in the paper's order; behind Tables 2 and 3 their seeds' numbers, and mean rewards."""
    found = [alpaca_table(outcomes)]
    for data in outcomes.stages.config.data:
        for judge in outcomes.stages.judges[data]:
            found += [win_rate_table(outcomes, data, judge), seeds_table(outcomes, data, judge)]
        found.append(reward_table(outcomes, data))
    return [*found, diversity_table(outcomes), ifeval_table(outcomes), mt_bench_table(outcomes)]


def win_rate_table(outcomes: Outcomes, data: str, judge: str) -> Table:
    """Table 2 or 3, over all seeds, in the paper's layout. Only what the first judge says is held against the paper."""
    config, of_paper = outcomes.stages.config, _is_first(outcomes, data, judge)
    rows, numbers, run = [], [], []
    for size, row in config.sizes.items():
        beside = (f"the paper's OPT-{row.paper}",) if row.paper and of_paper else ()
        cells = [Cell(size, details=beside)]
        for against in AGAINST:
            contest = outcomes.contest(data, size, against, judge)
            printed = _printed(outcomes, contest) if of_paper else None
            run.append(contest.seeds)
            cells.append(_cell(outcomes, contest, printed))
            numbers += _numbers(outcomes, contest, printed)
        rows.append(tuple(cells))
    title = _title(outcomes, data, judge, "Win-rate of ORPO")
    told = (
        ", the paper's number, whether it lies in that, and whether both say the same of who wins" if of_paper else ""
    )
    seeds = seeds_in_words(config.seeds, run)
    notes = [
        f"Mean over {seeds}, and in brackets the standard deviation of the rounds' win-rates, "
        "which is what the paper has there (the mean of the seeds'); below, the mean's 95% interval over seeds and "
        f"prompts{told}.",
        *_missing(outcomes, data, judge),
    ]
    name, columns = outcomes.stages.judges[data][judge], ("Size", *_COLUMNS.values())
    return Table(name, title, columns, tuple(rows), tuple(numbers), tuple(notes))


def seeds_table(outcomes: Outcomes, data: str, judge: str) -> Table:
    """The numbers that `win_rate_table` is the mean of: a row for each size and seed."""
    config = outcomes.stages.config
    rows, numbers = [], []
    for size in config.sizes:
        contests = [outcomes.contest(data, size, against, judge) for against in AGAINST]
        for seed in config.seeds:
            cells = [_seed_cell(outcomes, contest, seed) for contest in contests]
            rows.append((Cell(size), Cell(str(seed), numeric=True), *cells))
        numbers += [
            number for contest in contests for number in _numbers(outcomes, contest, None) if number.seed != ALL
        ]
    title = _title(outcomes, data, judge, "Win-rate of ORPO by seed")
    note = (
        "In brackets the standard deviation of the rounds' win-rates; below, the 95% interval over prompts, which "
        "holds for the models of that seed alone."
    )
    columns = ("Size", "Seed", *_COLUMNS.values())
    return Table(f"{outcomes.stages.judges[data][judge]}{SEEDS}", title, columns, tuple(rows), tuple(numbers), (note,))


def _printed(outcomes: Outcomes, contest: Contest) -> RewardWinRate | None:
    """The paper's number, where the configuration names its place."""
    config = outcomes.stages.config
    data, size = config.data[contest.data].paper, config.sizes[contest.size].paper
    return None if data is None or size is None else published.WIN_RATES[data, size, contest.against]


def _verdict(outcomes: Outcomes, contest: Contest, printed: RewardWinRate) -> Verdict:
    found = verdict_on(contest.overall, printed, contest.why_not)
    return left_open(found, doubt(outcomes, contest.data, contest.judge))


def _cell(outcomes: Outcomes, contest: Contest, printed: RewardWinRate | None) -> Cell:
    sources = tuple(source(outcomes, each.place, f"seed {seed}") for seed, each in contest.seeds.items())
    ours = contest.overall
    verdict = None if printed is None else _verdict(outcomes, contest, printed)
    word, why = ("", contest.why_not) if verdict is None else (verdict.word.value, verdict.why)
    paper = "" if printed is None else f"paper {with_sd(printed.win_rate, printed.sd)}"
    if ours is None:
        return Cell(Word.NOT_RUN.value, details=(paper,) if paper else (), verdict=word, why=why, sources=sources)
    if printed is not None:
        paper += ", in it" if holds(ours, printed.win_rate) else ", not in it"
    details = (span(ours.low, ours.high), paper) if paper else (span(ours.low, ours.high),)
    return Cell(with_sd(ours.mean, contest.sd), True, details, word, why, sources)


def _seed_cell(outcomes: Outcomes, contest: Contest, seed: int) -> Cell:
    if (found := contest.seeds.get(seed)) is None:
        return Cell(Word.NOT_RUN.value, why=contest.missing[seed])
    interval = span(found.low, found.high)
    of = source(outcomes, found.place, "evaluation")
    return Cell(with_sd(found.win_rate, found.sd), True, (interval,), sources=(of,))


def _numbers(outcomes: Outcomes, contest: Contest, printed: RewardWinRate | None) -> list[Number]:
    """Of all seeds, then of each."""
    place = Number(
        "win_rate", data=contest.data, size=contest.size, method="orpo", against=contest.against, judge=contest.judge
    )
    links = {seed: outcomes.link(each.place) for seed, each in contest.seeds.items()}
    overall, ours = replace(place, seed=ALL), contest.overall
    if ours is not None:
        overall = replace(
            overall, value=ours.mean, sd=contest.sd, low=ours.low, high=ours.high, prompts=ours.prompts or None,
            rounds=contest.rounds, folder=" ".join(links.values()),
        )  # fmt: skip
    if printed is not None:
        overall = replace(
            overall, paper=printed.win_rate, paper_sd=printed.sd,
            verdict=_verdict(outcomes, contest, printed).word.value,
            holds_paper=None if ours is None else holds(ours, printed.win_rate),
        )  # fmt: skip
    elif ours is None:
        overall = replace(overall, verdict=Word.NOT_RUN.value)
    own = [
        replace(
            place, seed=str(seed), value=each.win_rate, sd=each.sd, low=each.low, high=each.high, prompts=each.prompts,
            rounds=each.rounds, folder=links[seed],
        )
        for seed, each in contest.seeds.items()
    ]  # fmt: skip
    return [overall, *own]


def _is_first(outcomes: Outcomes, data: str, judge: str) -> bool:
    """Whether its word is that of Tables 2 and 3."""
    return judge == outcomes.stages.first_judge(data)


def _title(outcomes: Outcomes, data: str, judge: str, of: str) -> str:
    config = outcomes.stages.config
    paper = config.data[data].paper if _is_first(outcomes, data, judge) else None
    held = "" if paper is None else f"Table {published.TABLES[paper].removeprefix('table-')}. "
    return f"{held}{of}, in %: {config.data[data].title}, judged by {called(outcomes, judge)}"


def _missing(outcomes: Outcomes, data: str, judge: str) -> list[str]:
    """Each reason once, with the sizes, columns and seeds that it keeps empty."""
    found: dict[str, dict[tuple[str, int], list[str]]] = {}
    for size in outcomes.stages.config.sizes:
        for against in AGAINST:
            for seed, why in outcomes.contest(data, size, against, judge).missing.items():
                found.setdefault(why, {}).setdefault((size, seed), []).append(_COLUMNS[against])
    return [f"Not run: {'; '.join(_places(kept))}: {why}." for why, kept in found.items()]


def _places(kept: Mapping[tuple[str, int], Sequence[str]]) -> list[str]:
    """`small vs SFT+PPO, seeds 1, 2`; without columns where it is all of them."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for (size, seed), columns in kept.items():
        which = "" if len(columns) == len(_COLUMNS) else f" {', '.join(columns)}"
        seeds.setdefault((size, which), []).append(seed)
    return [
        f"{size}{which}, seed{'s' if len(own) > 1 else ''} {', '.join(map(str, own))}"
        for (size, which), own in seeds.items()
    ]  # fmt: skip
