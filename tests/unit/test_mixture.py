"""Several sources as one: their shares, their orders, what is held out of each, and a run over them."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from chat_tokenizers import family
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from rich.console import Console
from test_data_prepare import plain, write
from test_training_pieces import config as run_config

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.dataset import Pairs
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.prepare import PreparedData, prepare
from orpo_ray.data.schedule import Share, StepSchedule, apportioned
from orpo_ray.data.summary import print_summary, render, summarize
from orpo_ray.errors import UserError
from orpo_ray.modeling.loading import load_policy
from orpo_ray.report.page import write_report
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.storage.run_folder import write_eval_scores
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.loop import Line, Sink, State, run
from orpo_ray.training.saving import Saver, load
from orpo_ray.training.source import PairSource, build_schedule

TOY = toyworld.tokenizer()
FEW = examples(max_examples=30)
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def by_hand(weights: list[int], seats: int) -> list[int]:
    """Webster's method, seat by seat."""
    counts = [0] * len(weights)
    for _ in range(seats):
        counts[max(range(len(weights)), key=lambda i: Fraction(weights[i], 2 * counts[i] + 1))] += 1
    return counts


@given(st.lists(st.integers(1, 10**6) | st.integers(1, 3), min_size=1, max_size=6), st.integers(0, 200))
def test_seats_are_apportioned_as_by_hand(weights: list[int], seats: int) -> None:
    assert apportioned(weights, seats) == by_hand(weights, seats)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.integers(0, 10**12), st.integers(0, 1000))
def test_no_part_shrinks_and_each_stays_by_its_share(weights: list[int], seats: int, more: int) -> None:
    before, after = apportioned(weights, seats), apportioned(weights, seats + more)
    assert sum(before) == seats and sum(after) == seats + more
    assert all(a <= b for a, b in zip(before, after, strict=True))
    for weight, count in zip(weights, before, strict=True):
        assert abs(count - Fraction(weight * seats, sum(weights))) <= max(1, len(weights) / 2)


def schedule(sizes: list[int], weights: list[int], batch: int, epochs: int = 1, seed: int = 0) -> StepSchedule:
    starts = np.cumsum([0, *sizes]).tolist()
    shares = [
        Share(start, size, weight, (seed, i))
        for i, (start, size, weight) in enumerate(zip(starts[:-1], sizes, weights, strict=True))
    ]
    return StepSchedule(sum(sizes), batch, epochs, None, seed, tuple(shares))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(3, 40))
@FEW
def test_without_weights_an_epoch_meets_every_pair_once(sizes: list[int], batch: int) -> None:
    steps = schedule(sizes, sizes, batch, epochs=3)
    for epoch in range(3):
        met = [steps.indices(epoch * steps.steps_per_epoch + i) for i in range(steps.steps_per_epoch)]
        assert sorted(np.concatenate(met).tolist()) == list(range(sum(sizes)))


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=2, max_size=4), st.integers(3, 40))
@FEW
def test_each_source_is_gone_through_in_turn(sources: list[tuple[int, int]], batch: int) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    steps = schedule(sizes, weights, batch, epochs=2)
    drawn = np.concatenate([steps.indices(step) for step in range(steps.total_steps)])
    start = 0
    for size, weight in sources:
        own = drawn[(drawn >= start) & (drawn < start + size)]
        share = Fraction(len(drawn) * weight, sum(weights))
        assert abs(len(own) - share) <= max(1, len(sizes) / 2)
        for first in range(0, len(own), size):  # each time all of it, before any comes again
            assert len(set(own[first : first + size].tolist())) == len(own[first : first + size])
        start += size


def test_a_source_that_grows_moves_no_other_s_order() -> None:
    def of_first(second: int) -> list[int]:
        steps = schedule([50, second], [1, 3], 16, epochs=4)
        drawn = np.concatenate([steps.indices(step) for step in range(10)])
        return [int(pair) for pair in drawn if pair < 50]

    assert of_first(100) == of_first(101) == of_first(10**9)


def test_a_step_of_ten_billion_pairs_is_a_step() -> None:
    steps = schedule([10**10, 3, 10**7], [5, 1, 4], 512)
    drawn = steps.indices(10**6)
    assert len(drawn) == 512
    assert np.bincount(np.searchsorted([10**10, 10**10 + 3], drawn, side="right")).tolist() == [256, 51, 205]


# A run ---------------------------------------------------------------------------------------------------------------


def records(count: int, offset: int, word: str) -> list[dict[str, str]]:
    return [
        plain(f"What is {WORDS[i // 10 % 10]} plus {WORDS[i % 10]} {word}?", WORDS[i % 7], WORDS[i % 5] + " Ada")
        for i in range(offset, offset + count)
    ]


def settings(folder: Path, *overrides: str, sizes: tuple[int, int, int] = (40, 30, 20)) -> TrainConfig:
    """Three sources; the first two share ten prompts."""
    a = write(folder / "a.jsonl", records(sizes[0], 0, "Ada"))
    b = write(folder / "b.jsonl", records(10, 0, "Ada") + records(sizes[1] - 10, 0, "Ben"))
    c = write(folder / "c.jsonl", records(sizes[2], 0, "now"))
    sources = [
        {"source": str(file), "name": file.stem, "weight": weight} for file, weight in ((a, 1), (b, 2), (c, 1.5))
    ]
    mapping = {
        "name": "mixed", "model": {"name_or_path": "toy", "dtype": "float32"},
        "data": {"train": sources, "eval_fraction": 0.2},
        "optim": {"lr": 1e-2, "warmup_steps": 0},
        "train": {"global_batch_size": 9, "max_steps": 12, "eval_every_steps": 6, "checkpoint_every_steps": 5},
        "storage": {"path": str(folder)},
    }  # fmt: skip
    return parse_config(mapping, list(overrides), "test")


def prompts(data: Pairs) -> list[str]:
    return [TOY.decode(data.pair(i)[0]) for i in range(len(data))]


def joined(data: Pairs) -> JoinedPairs:
    assert isinstance(data, JoinedPairs)
    return data


def test_prompts_are_held_out_of_all_sources_alike(tmp_path: Path) -> None:
    data = prepare(settings(tmp_path), TOY)
    assert {*prompts(data.eval)} & {*prompts(data.train)} == set()
    assert len(data.eval) + len(data.train) == 90
    held = {name: end - start for name, (start, end) in joined(data.eval).spans.items()}
    assert set(held) == {"a", "b", "c"}
    shared = [{*prompts(part)} for part in joined(data.eval).parts]
    assert shared[0] & shared[1], "a prompt of both is held out of both"


def test_a_prompt_is_held_out_of_all_sources_however_it_is_written(tmp_path: Path) -> None:
    asked = [f"What is {WORDS[i // 10]} plus {WORDS[i % 10]}?" for i in range(60)]
    ways = {
        "text": [plain(f"{text}\n", " one", " two") for text in asked],
        "dialogue": [
            {key: f"\n\nHuman: {text}\n\nAssistant: {word}" for key, word in (("chosen", "one"), ("rejected", "two"))}
            for text in asked
        ],
        "messages": [
            {
                "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": text}],
                "chosen": [{"role": "assistant", "content": "one"}],
                "rejected": [{"role": "assistant", "content": "two"}],
            }
            for text in asked
        ],
    }
    sources = [{"source": str(write(tmp_path / f"{name}.jsonl", ways[name])), "name": name} for name in ways]
    data = prepare(settings(tmp_path, f"data.train={json.dumps(sources)}"), family("chatml-qwen").tokenizer)
    held = [set(part.record_ids.tolist()) for part in joined(data.eval).parts]
    assert held[0] and held[0] == held[1] == held[2]


def test_a_source_that_grows_leaves_what_is_held_out_of_others(tmp_path: Path) -> None:
    small, large = (prepare(settings(tmp_path, sizes=(40, 30, size)), TOY) for size in (20, 60))
    for before, after in zip(joined(small.eval).parts[:2], joined(large.eval).parts[:2], strict=True):
        assert before.record_ids.tolist() == after.record_ids.tolist()
    orders = []
    for data, size in ((small, 20), (large, 60)):
        config = settings(tmp_path, sizes=(40, 30, size))
        steps, train = build_schedule(config, data.train), joined(data.train)
        drawn = np.concatenate([steps.indices(step) for step in range(12)])
        orders.append([train.record(int(i)) for i in drawn if int(i) < len(train.parts[0]) + len(train.parts[1])])
    assert orders[0] == orders[1]


def test_lengths_pairs_and_records_are_those_of_the_parts(tmp_path: Path) -> None:
    data = joined(prepare(settings(tmp_path), TOY).train)
    flat = [(name, part, i) for name, part in zip(data.names, data.parts, strict=True) for i in range(len(part))]
    assert len(data) == len(flat) == len(data.lengths()) == len(data.record_ids)
    order = np.random.default_rng(0).permutation(len(flat))
    assert data.lengths(order).tolist() == [part.lengths()[i].tolist() for _, part, i in (flat[k] for k in order)]
    for k, (name, part, i) in enumerate(flat):
        assert [ids.tolist() for ids in data.pair(k)] == [ids.tolist() for ids in part.pair(i)]
        assert data.record(k) == f"{name}: {part.record_ids[i]}"


class Collect(Sink):
    def __init__(self, saver: Saver | None = None) -> None:
        self.lines: list[Line] = []
        self.saver = saver
        self.table = torch.empty(0)

    def metrics(self, line: Line) -> None:
        self.lines.append(line)

    def best_model(self, engine: Any, evaluation: Line, table: torch.Tensor) -> bool:
        self.table = table
        return True

    def checkpoint(self, engine: Any, state: State, line: Line) -> None:
        if self.saver is not None:
            self.saver.begin(Manifest(state.step, asdict(state), engine.updates, "", "", None, {}))
            self.saver.finish()


def trained(config: TrainConfig, data: PreparedData, place: Path, resume: int | None = None) -> tuple[Any, Collect]:
    engine, checkpoints, state = (
        TorchEngine(load_policy(config.model, seed=0), config.optim),
        Checkpoints(str(place)),
        State(),
    )
    if resume is not None:
        manifest = checkpoints.manifest(resume)
        assert manifest is not None
        load(engine, checkpoints, manifest)
        state = State.from_json(manifest.state)
    sink = Collect(Saver(checkpoints, engine, newest=9, best=0, warn=pytest.fail) if resume is None else None)
    run(engine, config, PairSource(engine, config, data.train, data.eval), sink, state)
    return engine, sink


def test_a_run_over_three_weighted_sources_resumes_bitwise_and_tells_each_apart(tmp_path: Path) -> None:
    config = settings(tmp_path)
    data = prepare(config, TOY)
    whole, sink = trained(config, data, tmp_path / "checkpoints")
    resumed, repeated = trained(config, data, tmp_path / "checkpoints", resume=5)
    for name, parameter in whole.policy.named_parameters():
        assert torch.equal(parameter, resumed.policy.get_parameter(name)), name
    losses = {line["step"]: line["loss"] for line in sink.lines if "loss" in line}
    assert {line["step"]: line["loss"] for line in repeated.lines if "loss" in line} == {
        step: loss for step, loss in losses.items() if step > 5
    }

    last = sink.lines[-1]
    spans = joined(data.eval).spans
    weights = np.array([end - start for start, end in spans.values()])
    for name in ("eval_loss", "eval_reward_accuracy", "eval_logps_chosen"):
        of_sources = np.array([last[f"{name}/{source}"] for source in spans])
        if name == "eval_loss":  # NLL is a mean over tokens, so the loss is not one over pairs
            assert of_sources.min() <= last[name] <= of_sources.max()
        else:
            assert last[name] == pytest.approx((of_sources * weights).sum() / weights.sum(), rel=1e-6)

    write_eval_scores(tmp_path / "scores.parquet", data.eval, sink.table)
    table = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert table["source"] == [name for name, (start, end) in spans.items() for _ in range(end - start)]


def test_the_summary_says_what_each_source_gives(tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    print_summary(settings(tmp_path), console, TOY)
    text = console.export_text()
    assert all(f"data.train, {name}: {tmp_path / name}.jsonl" in text.replace("\n", "") for name in "abc")
    shares = {
        line.split("│")[1].strip(): line.split("│")[4].strip()
        for line in text.splitlines()
        if "%" in line and line.count("│") == 6
    }
    assert {name: shares[name] for name in "abc"} == {"a": "22.2%", "b": "44.4%", "c": "33.3%"}


def test_the_summary_shows_a_pair_of_each_source_and_what_is_for_evaluation_alone(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", records(6, 90, "Ada"))
    config = settings(tmp_path, f"data.eval=[{{source: {tmp_path}/c.jsonl, name: c}}, {{source: {held}, name: held}}]")
    found = summarize(config, TOY)
    assert [str(example.record).partition(":")[0] for example in found.examples] == ["a", "b", "c"]
    assert [row[:3] for row in found.mixture] == [("a", 40, 0), ("b", 30, 0), ("c", 20, 20), ("held", 0, 6)]
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(render(found))
    assert "held" in console.export_text()


def test_what_is_so_in_several_sources_is_said_once(tmp_path: Path) -> None:
    config = settings(tmp_path)
    for name in "ab":
        path = tmp_path / f"{name}.jsonl"
        path.write_text(path.read_text().replace("{", '{"note": "n", '))
    unread, no_token = prepare(config, TOY).remarks
    assert unread == f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl: columns that are not read: note"
    everywhere = ", ".join(f"{tmp_path}/{name}.jsonl" for name in "abc")
    assert no_token.startswith(f"{everywhere}: the tokenizer has no token")

    console = Console(width=400, record=True, file=(tmp_path / "out").open("w"))
    console.print(render(summarize(config, TOY)))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert (
        f"data.train, a: {tmp_path}/a.jsonl; data.train, b: {tmp_path}/b.jsonl: columns that are not read: note"
        in lines
    )
    assert [line for line in lines if "has no token" in line] == [
        f"in all of these: {no_token.partition('jsonl: ')[2]}"
    ]


def test_the_page_has_a_row_for_each_source(tmp_path: Path) -> None:
    config = settings(tmp_path)
    folder = config.run_dir
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    evaluation = {
        "step": 5,
        "eval_loss": 2.0,
        **{f"eval_loss/{name}": 1.0 + i for i, name in enumerate(("a", "b", "c"))},
    }
    (folder / "metrics.jsonl").write_text(__import__("json").dumps(evaluation) + "\n")
    page = write_report(folder).read_text()
    assert "Held-out pairs of the kept model by source (3)" in page
    assert all(
        f'<td class="text">{name}</td><td>{loss}</td>' in page for name, loss in (("a", "1.000"), ("c", "3.000"))
    )
    assert "a, b, c" in page


def test_temperature_lies_between_sizes_and_equal_parts(tmp_path: Path) -> None:
    config = settings(tmp_path)
    sources = [source.model_copy(update={"weight": None}) for source in config.data.train_sources]
    data = joined(prepare(config, TOY).train)
    sizes = np.array([len(part) for part in data.parts])

    def shares(temperature: float | None) -> np.ndarray[Any, Any]:
        weights = np.array([share.weight for share in data.shares(sources, temperature, 0)])
        return weights / weights.sum()

    assert shares(None) == pytest.approx(sizes / sizes.sum())
    assert shares(1.0) == pytest.approx(sizes / sizes.sum(), abs=1e-6)
    assert shares(0.05) == pytest.approx([1, 0, 0], abs=0.01)  # a power of 20, which ten billion pairs have too
    assert shares(1e6) == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert shares(2.0) == pytest.approx(np.sqrt(sizes) / np.sqrt(sizes).sum(), abs=1e-6)


# What is told --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=[]", r"data\.train: should not be empty"),
        ("data.train=3", r"data\.train: should be a text, or a list \(got 3\)"),
        ("data.train=[a]", r"data\.train\.0: should be a mapping of keys"),
        ("data.train=[{source: a, name: a}, {source: b, name: a}]", "train: two sources are called a"),
        ("data.train=[{source: a, name: a, weight: 1}, {source: b, name: b}]", "all sources have a weight or none"),
        ("data.train=[{source: a, name: a, weight: 0}]", r"data\.train\.0\.weight: .* greater than 0"),
        ("data.train=[{source: a, name: a/b}]", r"data\.train\.0\.name: "),
        ("data.train=[{source: a, name: a, wieght: 1}]", r"unknown key data\.train\.0\.wieght"),
        ("data.temperature=0.01", r"data\.temperature: .* greater than or equal to 0\.05"),
        ("data.temperature=2", "temperature: is for several sources"),
        ("data.eval=[{source: a, name: a, weight: 1}]", "eval: held-out pairs are all evaluated"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_config(override)


def test_limit_is_each_source_s_own() -> None:
    with pytest.raises(UserError, match="limit: of several sources each has a limit of its own"):
        run_config("data.train=[{source: a, name: a}]", "data.limit=3")


def test_nothing_held_out_is_told(tmp_path: Path) -> None:
    for fraction in ("1e-06", "1e-30"):
        with pytest.raises(UserError, match=rf"data\.eval_fraction={fraction} holds out none of so few prompts"):
            prepare(settings(tmp_path, f"data.eval_fraction={fraction}"), TOY)
    with pytest.raises(UserError, match=r"a\.jsonl: 40 records have 40 different prompts, too few to hold out"):
        prepare(settings(tmp_path, "data.eval_fraction=0.999999"), TOY)


def test_paths_of_sources_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", records(3, 0, "Ada"))
    monkeypatch.chdir(tmp_path)
    config = run_config("data.train=[{source: a.jsonl, name: a}, {source: org/name, name: b}]")
    assert [source.source for source in config.with_absolute_paths().data.train_sources] == [
        str(tmp_path / "a.jsonl"),
        "org/name",
    ]
    # What goes to workers, and what a folder keeps, is read again there.
    assert TrainConfig.model_validate(config.model_dump(mode="json", by_alias=True)) == config
    assert parse_config(yaml.safe_load(config.to_yaml()), [], "test") == config
