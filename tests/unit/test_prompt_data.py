"""Data of a run whose policy writes the responses: records as prompts alone, their tokens and their questions."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preference_records import SOURCES, Source, turns
from pydantic import ValidationError
from rich.console import Console
from test_data_prepare import account_of, plain, write
from test_data_prepare import config as pair_config
from test_data_tokenization import bytes_tokenizer
from transformers import PreTrainedTokenizerBase

from orpo_ray.config import TrainConfig
from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data.dataset import Prompts
from orpo_ray.data.mixture import JoinedPairs
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.prepare import prepare
from orpo_ray.data.prompts import Prompt, Question, read_prompts
from orpo_ray.data.questions import as_line, prompts_of
from orpo_ray.data.records import BadRecord
from orpo_ray.data.summary import print_summary
from orpo_ray.errors import UserError
from orpo_ray.training.source import schedule_of

ROLLOUTS: dict[str, Any] = {
    "objective": {"name": "rloo"}, "rollouts": {"rewards": {"truth": "toy"}, "samples": 2, "max_tokens": 8},
    "train": {"global_batch_size": 8},
}  # fmt: skip
ANSWERS_LEFT_OUT = "have answers of their own, which are left out"


def config(cache: Path, train: Any, *, max_tokens: int = 8, seed: int = 0, **data: Any) -> TrainConfig:
    asked = {**ROLLOUTS, "rollouts": {**ROLLOUTS["rollouts"], "max_tokens": max_tokens}}
    train = train if isinstance(train, list) else str(train)
    return TrainConfig.model_validate(
        {
            "name": "test", "seed": seed, "model": {"name_or_path": "toy"}, "data": {"train": train, **data},
            "storage": {"cache": str(cache)}, **asked,
        }
    )  # fmt: skip


def chat_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = NAMED_TEMPLATES["chatml"]
    return tokenizer


def questions(data: Prompts) -> list[Prompt]:
    return [data.question(i) for i in range(len(data))]


def texts(data: Prompts, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(data.pair(i)[0], skip_special_tokens=True) for i in range(len(data))]


# What is read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, "orpo"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_each_shape_asks_what_its_pairs_ask(source: Source, template: str | None, tmp_path: Path) -> None:
    """Token for token; a tie asks, too, and the question is the one that an evaluation asks."""
    file = write(tmp_path / "pairs.jsonl", [source.win])
    asked = {"chat_template": template, **source.settings}
    pairs = prepare(pair_config(tmp_path, file, eval=str(file), **asked), chat_tokenizer()).train
    records = [{**source.win, **source.tie}, source.win, {**source.win, **source.reversed}]
    every = write(tmp_path / "all.jsonl", records)
    prepared = prepare(config(tmp_path, every, eval=str(file), **asked), chat_tokenizer())
    prompts = prompts_of(prepared.train)
    assert [ids.tolist() for ids in prompts.pair(0)] == [pairs.pair(0)[0].tolist()]
    assert (len(prompts), prompts.record_ids.tolist()) == (1, [0])
    account = account_of(prepared)
    assert account.describe() == "3 read = 1 kept + 2 dropped (prompt of an earlier record 2) + 0 quarantined"
    assert account.noted[ANSWERS_LEFT_OUT] == 3
    assert not [sentence for sentence in account.noted if "chosen counts" in sentence or "winner" in sentence]

    [prompt], _ = read_prompts(PromptsConfig(source=str(file), **source.settings), with_messages=True)
    assert prompts.question(0) == replace(prompt.alone, location=f"{every}[record 0]")


def test_labels_that_disagree_or_are_not_chosen_between_ask_too(tmp_path: Path) -> None:
    record = next(source for source in SOURCES if source.format == "pku-saferlhf").win
    records = [{**record, "prompt": f"Why {i}?", "safer_response_id": i % 2} for i in range(4)]
    file = write(tmp_path / "pku.jsonl", records)
    prepared = prepare(config(tmp_path, file, eval=str(file)), chat_tokenizer())
    assert len(prepared.train) == 4
    assert dict(account_of(prepared).noted) == {ANSWERS_LEFT_OUT: 4}


ONLY_ASKED: dict[str, tuple[dict[str, Any], Question]] = {
    "text": ({"prompt": "Why?"}, Question("Why?", ())),
    "messages": ({"prompt": turns("Why?", "So.", "Really?")}, Question(turns("Why?", "So.", "Really?"), ())),  # type: ignore[arg-type]
    "turns": ({"turns": ["Why?", "And?"]}, Question(turns("Why?"), ())),  # type: ignore[arg-type]
    "instruction": (
        {"instruction": "Answer.", "input": "Why?", "output": "So."},
        Question(turns("Answer.\n\nWhy?"), ()),  # type: ignore[arg-type]
    ),
    "labelled": ({"prompt": "Why?", "completion": "So.", "label": False}, Question("Why?", ())),
    "empty answers": ({"prompt": "Why?", "chosen": "", "rejected": " "}, Question("Why?", ())),
    "equal answers": ({"prompt": "Why?", "chosen": "So.", "rejected": "So."}, Question("Why?", ())),
    "tools": (
        {"prompt": turns("Why?"), "tools": [{"name": "clock", "parameters": {"digits": 2.5}}]},
        Question(turns("Why?"), (), [{"name": "clock", "parameters": {"digits": 2.5}}]),  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("name", ONLY_ASKED)
def test_records_that_only_ask(name: str, tmp_path: Path) -> None:
    record, question = ONLY_ASKED[name]
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ tools }}" + NAMED_TEMPLATES["chatml"]
    file = write(tmp_path / "asked.jsonl", [record])
    prompts = prompts_of(prepare(config(tmp_path, file, eval=str(file)), tokenizer).train)
    spoken = question if not isinstance(question.prompt, str) else replace(question, prompt=turns(question.prompt))  # type: ignore[arg-type]
    assert questions(prompts) == [Prompt(f"{file}[record 0]", question, spoken)]
    [asked] = prompts.pair(0)
    assert tokenizer.decode(asked).count("Why?") == 1
    assert (prompts.unit, prompts.amount()) == ("prompts", "1 prompts")
    assert (prompts.counts().tolist(), prompts.lengths().tolist()) == ([0], [[len(asked)]])
    assert prompts.ranks().shape == (1, 0) and len(prompts.compared().records) == 0


def test_a_prompt_ends_as_a_server_asks(tmp_path: Path) -> None:
    """The last turn open; special tokens of the data stay text, in its question too."""
    file = write(tmp_path / "asked.jsonl", [{"prompt": turns("Why </s>?")}])
    prompts = prompts_of(prepare(config(tmp_path, file, eval=str(file)), chat_tokenizer()).train)
    asked = prompts.pair(0)[0].tolist()
    assert chat_tokenizer().decode(asked).endswith("Why </s>?<|im_end|>\n<|im_start|>assistant\n")
    assert chat_tokenizer().eos_token_id not in asked
    assert prompts.question(0).as_found.prompt == turns("Why </s>?")


def test_what_a_generation_prompt_adds_is_asked(tmp_path: Path) -> None:
    """Of pairs it is left out where the answers of the data do not begin with it, and said; a server does write it."""
    tokenizer = chat_tokenizer()
    think = "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    tokenizer.chat_template = f"{NAMED_TEMPLATES['chatml']}{think}"
    file = write(tmp_path / "pairs.jsonl", [next(each.win for each in SOURCES if each.format == "conversational")])
    pairs = prepare(pair_config(tmp_path, file, eval=str(file)), tokenizer)
    prompts = prepare(config(tmp_path, file, eval=str(file)), tokenizer)
    assert tokenizer.decode(prompts.train.pair(0)[0]) == tokenizer.decode(pairs.train.pair(0)[0]) + "<think>\n"
    said = "the chat template's generation prompt adds '<think>"
    assert any(said in remark for remark in pairs.remarks)
    assert not any(said in remark for remark in prompts.remarks)


def test_a_field_that_json_does_not_have_is_a_bad_record() -> None:
    calls = [{"role": "assistant", "content": "", "tool_calls": [{"at": Decimal(1)}]}]
    with pytest.raises(BadRecord, match="not JSON: in a message or in tools: Object of type Decimal"):
        as_line(Question(calls, ()), Question(calls, ()))  # type: ignore[arg-type]


def test_a_system_turn_that_text_cannot_hold_is_asked_through_the_template(tmp_path: Path) -> None:
    """Pairs of such a source are trained on where data.chat_template is set."""
    file = write(tmp_path / "asked.jsonl", [{"prompt": "Why?"}, {"prompt": "Why?", "system": "Be brief."}])
    with pytest.raises(UserError, match=r"asked\.jsonl:2: a system turn beside text"):
        prepare(config(tmp_path, file, eval=str(file)), chat_tokenizer())
    prompts = prompts_of(
        prepare(config(tmp_path, file, eval=str(file), chat_template="chatml"), chat_tokenizer()).train
    )
    first, second = questions(prompts)
    assert (first.as_found.prompt, first.form(True).prompt) == ("Why?", turns("Why?"))
    assert second.as_found == second.as_messages
    assert second.form(True).prompt[0] == {"role": "system", "content": "Be brief."}


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    records = [
        plain("one"), plain("one", "Ada"), plain("a" * 21), plain("b" * 19), plain("c" * 12), plain("two"), plain(" "),
        plain("b" * 19), {"chosen": "b"}, plain("one"),
    ]  # fmt: skip
    file = write(tmp_path / "pairs.jsonl", records)
    asked = {"eval": str(file), "on_bad_record": "quarantine", "max_prompt_length": 15}
    tokenizer = bytes_tokenizer()  # a token a letter, behind BOS
    prepared = prepare(config(tmp_path, file, max_tokens=10, max_length=23, drop_prompts_over=20, **asked), tokenizer)
    account = account_of(prepared)
    assert dict(account.dropped) == {
        "prompt over 20 tokens": 1,
        "prompt leaves no room for rollouts.max_tokens": 2,
        "prompt of an earlier record": 2,
    }
    assert dict(account.quarantined) == {"empty prompt": 1, "missing field": 1}
    assert (account.read, account.kept) == (10, 3)
    assert prepared.train.record_ids.tolist() == [0, 4, 5]
    assert prepared.train.lengths().max() == 13 == 23 - 10, "none is cut"

    with pytest.raises(UserError, match=r"no prompt is left: 10 read = 0 kept"):
        prepare(config(tmp_path, file, max_tokens=22, max_length=23, **asked), tokenizer)
    for refused, why in (
        ({"max_tokens": 23, "max_length": 23}, r"rollouts\.max_tokens \(23\) must be below data\.max_length \(23\)"),
        ({"comparisons": "best_against_each"}, r"data\.comparisons \(best_against_each\): is for the responses"),
    ):
        with pytest.raises(ValidationError, match=why):
            config(tmp_path, file, **{**asked, **refused})


def test_a_tokenizer_that_loses_text_is_refused_for_prompts_alone(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.backend_tokenizer.decoder = None  # type: ignore[assignment]
    file = write(tmp_path / "asked.jsonl", [{"prompt": "Why is it so?"}])
    with pytest.raises(UserError, match=r"asked.jsonl:1: model\.tokenizer: bytes does not give back"):
        prepare(config(tmp_path, file, eval=str(file)), tokenizer)


# What is held out, and several sources --------------------------------------------------------------------------------


def test_the_same_prompts_are_held_out_as_of_pairs(tmp_path: Path) -> None:
    records = [plain(f"What is {i}?") for i in range(60)]
    file = write(tmp_path / "pairs.jsonl", records)
    for train in (str(file), [{"source": str(file), "name": "a"}, {"source": str(file), "name": "b"}]):
        asked = prepare(config(tmp_path, train, eval_fraction=0.2, seed=3), bytes_tokenizer())
        mapping = pair_config(tmp_path, "toy", seed=3, eval_fraction=0.2).model_dump(by_alias=True)
        mapping["data"]["train"] = train
        pairs = prepare(TrainConfig.model_validate(mapping), bytes_tokenizer())
        assert asked.eval.record_ids.tolist() == pairs.eval.record_ids.tolist()
        assert asked.train.record_ids.tolist() == pairs.train.record_ids.tolist()
        for part in (asked.train, asked.eval):
            prompts = prompts_of(part)
            spoken = [f"What is {record}?" for record in part.record_ids.tolist()]
            assert (
                [prompt.as_found.prompt for prompt in questions(prompts)] == spoken == texts(prompts, bytes_tokenizer())
            )


def test_two_sources_as_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [plain(f"Is {i} one?") for i in range(30)])
    b = write(tmp_path / "b.jsonl", [{"prompt": turns(f"Is {i} one?")} for i in range(20, 40)])
    sources = [{"source": str(file), "name": file.stem, "weight": weight} for file, weight in ((a, 3), (b, 1))]
    settings = config(tmp_path, sources, eval_fraction=0.3)
    prepared = prepare(settings, chat_tokenizer())
    assert isinstance(prepared.train, JoinedPairs) and isinstance(prepared.eval, JoinedPairs)
    train, held_out = prompts_of(prepared.train), prompts_of(prepared.eval)
    assert train.amount() == f"{len(train)} prompts" and len(train) + len(held_out) == 50
    assert (train.counts().max(), train.lengths().shape) == (0, (len(train), 1))
    for part in (train, held_out):
        for i, prompt in enumerate(questions(part)):
            name, record = str(part.record(i)).split(": ")
            assert prompt.location == f"{tmp_path / name}.jsonl[record {record}]"
            number = int(record) + (20 if name == "b" else 0)
            assert prompt.form(True).prompt == turns(f"Is {number} one?")
            assert isinstance(prompt.as_found.prompt, str) == (name == "a")
    words = [{str(prompt.form(True).prompt) for prompt in questions(part)} for part in (train, held_out)]
    assert not words[0] & words[1], "what is evaluated in one is trained on in none"
    drawn = np.concatenate([schedule_of(settings, train).indices(number) for number in range(3)])
    assert prepared.train.sources_of(drawn).count("a") == 144  # of 192, three in four


# What is shown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_the_summary_shows_prompts_and_their_room(several: bool, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", [plain(f"What is {i}?") for i in range(60)] + [plain("a" * 90)])
    train = [{"source": str(file), "name": name} for name in ("one", "two")] if several else file
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    settings = config(tmp_path, train, max_tokens=30, max_length=100, max_prompt_length=50, eval_fraction=0.2)
    print_summary(settings, console, bytes_tokenizer())
    printed = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
    whole = "\n".join(printed)
    assert "records read 61" in printed and "prompt leaves no room for rollouts.max_tokens 1" in printed
    assert f"61 of 61 records {ANSWERS_LEFT_OUT}" in whole
    assert ("prompts to train on" in whole) and ("prompts held out to evaluate" in whole)
    assert "prompts of up to 70 tokens leave room for responses of 30 (rollouts.max_tokens) in the 100 of" in whole
    assert "prompt 12 12 12 12" in printed or "prompt 13 13 13 13" in printed
    assert whole.count("⟦prompt⟧⟦BOS <s>⟧What is") == 2
    for word in ("chosen", "rejected", "saved by", "cut)", "EOS"):
        assert word not in whole
