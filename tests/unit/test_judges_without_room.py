"""A judge whose context is too short for what it is asked: told before it starts, and refused where nothing fits."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_models import opt, save

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.errors import UserError
from orpo_ray.evaluation import judging
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.judging.places import Answered
from orpo_ray.judging.store import VerdictStore
from orpo_ray.judging.verdict import Verdict
from orpo_ray.terminal import Console


@pytest.fixture
def config(tmp_path: Path) -> EvaluationConfig:
    judge = tmp_path / "judge"
    network = opt()
    network.max_position_embeddings = 2048
    save(judge, network, seed=1)
    mapping = {
        "name": "e", "models": {"a": "x", "b": "y"}, "prompts": {"source": "toy-test"},
        "judges": {"j": {"kind": "vllm", "model": str(judge), "chat_template": "chatml", "max_tokens": 8}},
        "judging": {"reads": "text"}, "storage": {"path": str(tmp_path)},
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, [], "test")


def judged(
    config: EvaluationConfig,
    lengths: list[int],
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[..., None] | None = None,
) -> tuple[list[int], str]:
    """How many judgements engines are asked for, and what is said."""
    asked: list[int] = []

    def count(config: Any, local: list[Any], *rest: Any) -> None:
        asked.extend(len(requests) for _, requests, _ in local)

    monkeypatch.setattr(
        judging, "_ask_engines", answer or count
    )  # they would take half a minute, and say nothing of use
    answers = {name: [[[f"{name} " * length]] for length in lengths] for name in ("a", "b")}
    answered = Answered([["q"]] * len(lengths), answers, [None] * len(lengths))
    plan, said = judging.plan_judging(config), io.StringIO()
    assert plan is not None
    judging.judge(
        config, plan, answered, EvaluationFolder(config.storage.run_dir(config.name)), Console(file=said, width=300)
    )
    return asked, said.getvalue()


def test_a_judge_for_whom_nothing_fits_is_refused(config: EvaluationConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^judges\.j: none of 2 judgements fits its context of [\d,]+ tokens: the shortest"
    ) as e:
        judged(config, [5_000, 6_000], monkeypatch)
    assert "\n" not in str(e.value) and str(e.value).endswith("The answers are kept")


def test_what_does_not_fit_is_said_before_the_rest_is_asked(
    config: EvaluationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, said = judged(config, [1, 5_000, 2], monkeypatch)
    assert asked == [2]
    assert said.startswith("judge j: 1 of 3 judgements are too long for its context of ")


def test_it_is_not_said_again_where_nothing_more_is_asked(
    config: EvaluationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(config: Any, local: list[Any], store: VerdictStore, *rest: Any) -> None:
        for judge, requests, _ in local:
            for key in requests:
                store.keep(judge.label, Verdict(key, 0.9, None, "m", 10, 1))

    asked, _ = judged(config, [1, 5_000], monkeypatch)
    assert asked == [1]
    _, said = judged(config, [1, 5_000], monkeypatch, answer)
    assert said
    asked, said = judged(config, [1, 5_000], monkeypatch)
    assert (asked, said) == ([], "")
