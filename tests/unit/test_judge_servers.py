"""Judges behind servers: nothing is lost, nothing that has an answer is asked again, and no key is written down."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import JudgeServer, no_fault, tenth
from secret_scan import leaks

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.errors import UserError
from orpo_ray.evaluation.judged import Judged
from orpo_ray.evaluation.judging import judge, plan_judging
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.judging import servers
from orpo_ray.judging.places import Answered, places
from orpo_ray.judging.store import VerdictStore
from orpo_ray.terminal import Console

PROMPTS = 40
KEY = "sk-test-4f9aB71c0dE8"


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("JUDGE_KEY", raising=False)


def config_of(folder: Path, server: JudgeServer, judging: dict[str, Any] | None = None, **own: Any) -> EvaluationConfig:
    mapping = {
        "name": "e", "models": {"a": "a", "b": "b", "c": "c"}, "prompts": {"source": "toy"},
        "reward_models": {"truth": "toy"}, "judging": {"against": "a", **(judging or {})},
        "judges": {"j": {"kind": "openai", "base_url": server.url, "model": "big", "concurrency": 6, **own}},
        "storage": {"path": str(folder)},
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, [], "test")


def answered(models: str = "abc", prompts: int = PROMPTS) -> Answered:
    """Every tenth pair of answers is the same; one answer is missing."""
    answers: dict[str, list[list[list[str] | None]]] = {
        model: [
            [[f"answer {prompt if prompt % 10 else 0} of {model if prompt % 10 else 'all'}"]]
            for prompt in range(prompts)
        ]
        for model in models
    }
    answers["b"][1] = [None]
    return Answered([[f"question {prompt}"] for prompt in range(prompts)], answers, [None] * prompts)


CALLS = 2 * (PROMPTS - PROMPTS // 10) - 1


def run(config: EvaluationConfig, there: Answered | None = None, said: io.StringIO | None = None) -> Judged:
    plan = plan_judging(config)
    assert plan is not None
    folder = EvaluationFolder(config.storage.run_dir(config.name))
    return judge(config, plan, there or answered(), folder, Console(file=said or io.StringIO(), width=500))


def rows(judged: Judged) -> str:
    return json.dumps([judged.table().to_pylist(), str(judged.counts), judged.notes()])


def test_a_server_that_fails_a_tenth_loses_nothing_and_is_asked_nothing_twice(tmp_path: Path) -> None:
    there, calls = answered(prompts=120), 2 * (120 - 12) - 1
    with JudgeServer() as server:
        smooth = run(config_of(tmp_path / "smooth", server), there)
        assert server.answered.total() == calls == sum(each.shown_first is not None for each in smooth.judgements)
    with JudgeServer(tenth) as server:
        said = io.StringIO()
        found = run(config_of(tmp_path / "rough", server), there, said)
        assert rows(found) == rows(smooth)
        assert set(server.answered.values()) == {1} and server.answered.total() == calls
        assert set(server.faults) == {"500", "503", "429", "rubbish", "empty", "drop"}
        assert len(server.bodies) == calls + server.faults.total()
        assert f"{server.faults.total()} calls were lost, and made again" in said.getvalue()
        assert f"{server.faults['429']} of asked to wait (429)" in said.getvalue()
        assert server.most_at_once <= 6
        again = run(config_of(tmp_path / "rough", server), there, said)
        assert rows(again) == rows(smooth) and server.answered.total() == calls
        more = run(config_of(tmp_path / "rough", server), answered("abcd", 120))
        assert server.answered.total() == calls + 120 - 12  # those of the new model alone
        assert [each for each in more.judgements if each.model != "d"] == found.judgements


def test_a_call_that_gets_no_answer_in_time_is_made_again(tmp_path: Path) -> None:
    def hang(body: dict[str, Any], attempt: int) -> str | None:
        return "hang" if "question 3\n" in str(body["messages"][1]["content"]) and not attempt else None

    with JudgeServer(hang) as server:
        said = io.StringIO()
        found = run(config_of(tmp_path, server, timeout=0.3), said=said)
        assert found.counts["j"].asked == CALLS and not found.notes()
        assert "2 calls were lost, and made again: 2 of no answer in time" in said.getvalue()


@pytest.mark.parametrize("kept", [1, 25, 60])
def test_a_killed_driver_goes_on_to_the_same_bytes(tmp_path: Path, kept: int) -> None:
    with JudgeServer() as server:
        whole = rows(run(config_of(tmp_path / "whole", server)))
    with JudgeServer(lambda *_: "slow") as server:
        config = config_of(tmp_path / "killed", server)
        store = VerdictStore(EvaluationFolder(config.storage.run_dir("e")).verdicts).path("j")
        child = multiprocessing.get_context("fork").Process(target=run, args=(config,))
        child.start()
        while not store.is_file() or store.read_bytes().count(b"\n") < kept:
            assert child.is_alive()
            time.sleep(0.002)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        time.sleep(0.1)  # until the server has answered what nobody hears
        lines = store.read_bytes().count(b"\n")
        store.write_bytes(store.read_bytes() + b'{"key": "torn off')
        asked = server.answered.total()
        assert kept <= lines < CALLS and asked <= lines + 6
        assert rows(run(config)) == whole
        assert server.answered.total() == asked + CALLS - lines
        assert len(store.read_text().splitlines()) == CALLS


@pytest.mark.parametrize("kept", [0, 30])
def test_a_judge_that_is_called_otherwise_is_asked_nothing_again(tmp_path: Path, kept: int) -> None:
    """Nor is one that stands at another address, which is said; and a killed driver under the old name is gone on from,
    with its torn line, to the same tables."""
    with JudgeServer() as server:
        config = config_of(tmp_path, server)
        before = run(config)
        verdicts = EvaluationFolder(config.storage.run_dir("e")).verdicts
        old = verdicts / "j.jsonl"
        if kept:
            old.write_bytes(b"".join(old.read_bytes().splitlines(keepends=True)[:kept]) + b'{"key": "torn off')
        asked = len(server.bodies)
        mapping = config.for_a_file()
        mapping["judges"] = {"renamed": mapping["judges"]["j"]}
        after = run(parse_as(EvaluationConfig, mapping, [], "test"))
        assert len(server.bodies) - asked == (CALLS - kept if kept else 0)
        assert rows(after).replace('"renamed"', '"j"').replace("'renamed'", "'j'") == rows(before)
        assert (verdicts / "renamed.jsonl").is_file() == bool(kept) and not after.notes()
        address = server.url
    with JudgeServer() as server:
        said = io.StringIO()
        moved = run(config_of(tmp_path, server), said=said)
        assert f"{CALLS} verdicts of big are there already, given elsewhere ({CALLS} at {address})" in said.getvalue()
        assert not server.bodies and moved.judgements == before.judgements
        assert moved.counts["j"].elsewhere == {address: CALLS}
        [note] = moved.notes()
        assert f"were given at other addresses than its base_url ({CALLS} at {address})" in note
        more = run(config_of(tmp_path, server), answered("abcd"))
        assert len(server.bodies) == PROMPTS - PROMPTS // 10 and more.counts["j"].elsewhere == {address: CALLS}


def test_what_an_earlier_version_has_asked_is_not_paid_for_again(tmp_path: Path) -> None:
    """It had the server's address in the key of a verdict, and nowhere else."""
    with JudgeServer() as server:
        config, there = config_of(tmp_path, server), answered()
        before, plan = run(config, there), plan_judging(config)
        assert plan is not None
        identity = plan.judges["j"].identity
        asked = [each for _, each in places(config.judging, plan.prompt, there) if each is not None]
        former = {each.key(identity): each.key({**identity, "base_url": server.url}) for each in asked}
        file = EvaluationFolder(config.storage.run_dir("e")).verdicts / "j.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{**line, "key": former[line["key"]]} for line in lines[:-3]]
        file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "server"}) + "\n" for line in kept))
        made = len(server.bodies)
        assert rows(run(config, there)) == rows(before) and len(server.bodies) == made + 3
    with JudgeServer() as server:  # of which nobody knows whether it is the same one
        run(config_of(tmp_path, server), there)
        assert len(server.bodies) == CALLS - 3


def test_one_judge_under_two_names_is_refused(tmp_path: Path) -> None:
    """Wherever it is asked: both would have the same verdicts, and agree with certainty."""
    judge = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "big"}
    unlike = {"model": "small"}, {"temperature": 0.5}, {"max_tokens": 7}, {"extra_body": {"top_k": 1}}
    alike = {"base_url": "http://127.0.0.1:2/v1"}, {"concurrency": 2}, {"seed": 3}, {"tokenizer": None}
    mapping = {
        "name": "e", "models": {"a": "a", "b": "b"}, "prompts": {"source": "toy"}, "storage": {"path": str(tmp_path)},
    }  # fmt: skip
    for other in (*unlike, *alike):
        judges = {"one": judge, "two": {**judge, **other}}
        config = parse_as(EvaluationConfig, {**mapping, "judges": judges}, [], "test")
        if other in unlike:
            assert plan_judging(config) is not None
            continue
        with pytest.raises(UserError, match=r"^judges\.one and judges\.two: are the same model \(big\) with"):
            plan_judging(config)


def test_what_the_server_refuses_is_counted_and_not_asked_for_ever(tmp_path: Path) -> None:
    def refusing(body: dict[str, Any], attempt: int) -> str | None:
        return "400" if "answer 7 of b" in body["messages"][1]["content"] else None

    with JudgeServer(refusing) as server:
        for _ in range(2):
            found = run(config_of(tmp_path, server))
            assert (found.counts["j"].unreadable, found.counts["j"].refused) == (0, 1) and len(server.bodies) == CALLS
        [note] = found.notes()
        assert note.startswith(
            f"1 of {CALLS} verdicts were refused by the server of the judge j (the first: prompt 7, b against a: '[re"
        )


def test_the_last_calls_may_be_those_that_are_refused(tmp_path: Path) -> None:
    """Such as of a new model, or where a driver was killed when all others were answered."""
    with JudgeServer() as server:
        run(config_of(tmp_path, server), answered("ab", 5))
        before = len(server.bodies)
        server.fault = lambda *_: "400"
        for _ in range(2):
            found = run(config_of(tmp_path, server), answered("ab", 6))
            assert found.counts["j"].refused == 1 and len(server.bodies) == before + 1
        with pytest.raises(UserError, match="the server answers none of the calls"):
            run(config_of(tmp_path, server))


def test_a_request_that_is_wrong_altogether_is_an_error(tmp_path: Path) -> None:
    with JudgeServer(lambda *_: "400") as server:
        with pytest.raises(
            UserError, match=r"^judges\.j: the server answers none of the calls: .*no: None \(some_code\)"
        ):
            run(config_of(tmp_path, server))
        assert len(server.bodies) < 20
        server.fault = no_fault
        assert run(config_of(tmp_path, server)).counts["j"].refused == 0  # nothing was kept


def test_a_server_that_stays_away_ends_it_and_what_is_there_is_kept(tmp_path: Path) -> None:
    def away(body: dict[str, Any], attempt: int) -> str | None:
        return "503" if "answer 29 of" in body["messages"][1]["content"] else None

    with JudgeServer(away) as server:
        told = rf"^judges\.j: a call to {server.url} got no answer in 3 tries; the last: status 503: .*kept"
        with pytest.raises(UserError, match=told):
            run(config_of(tmp_path, server, retries=2))
        kept = server.answered.total()
        assert kept > 10
        server.fault = no_fault
        run(config_of(tmp_path, server, retries=2))
        assert server.answered.total() == CALLS and set(server.answered.values()) == {1}


@pytest.mark.parametrize(("path", "hint"), [("", True), ("/", True), ("/v2", False), ("/v1/chat", False)])
def test_an_address_that_is_none_is_named_with_what_it_mostly_lacks(tmp_path: Path, path: str, hint: bool) -> None:
    with JudgeServer(lambda *_: "404") as server:
        address = server.url.removesuffix("/v1") + path
        with pytest.raises(UserError) as error:
            run(config_of(tmp_path, server, base_url=address))
    said = f"judges.j: {address.rstrip('/')} answers with status 404{' (it mostly ends in /v1)' if hint else ''}: no"
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("how", ["drop", "rubbish", "hang", "429", "gone"])
def test_a_server_that_is_lost_is_named_at_the_end(tmp_path: Path, how: str) -> None:
    """However it is lost: the address may be what is wrong."""
    with JudgeServer(lambda *_: how) as server:
        config = config_of(tmp_path, server, retries=1, timeout=0.3, concurrency=1)
        if how != "gone":
            with pytest.raises(UserError, match=rf"^judges\.j: a call to {server.url} got no answer in 2 tries"):
                run(config)
    if how == "gone":
        with pytest.raises(UserError, match=rf"a call to {server.url} got no answer in 2 tries; .* no connection"):
            run(config)


def test_a_limited_server_is_waited_for_however_often_it_says_so(tmp_path: Path) -> None:
    """It answers each third call: some are put off far more often than `retries`, while others are answered."""
    arrived = itertools.count()
    with JudgeServer(lambda *_: "429" if next(arrived) % 3 else None) as server:
        found = run(config_of(tmp_path, server, retries=3, concurrency=12))
        assert found.counts["j"].asked == server.answered.total() == CALLS
        assert server.faults["429"] >= 2 * CALLS - 2 and max(server.attempts.values()) > 5


def test_the_pace_is_kept(tmp_path: Path) -> None:
    with JudgeServer(lambda body, attempt: None if attempt else "500") as server:
        run(config_of(tmp_path, server, calls_per_minute=1500), answered("ab", prompts=12))
        assert len(server.times) == 18
        assert server.times[-1] - server.times[0] >= 17 * 0.04 - 0.1  # the first takes a while to connect


def test_a_budget_is_held_before_and_while_it_is_spent(tmp_path: Path) -> None:
    with JudgeServer(lambda body, attempt: "500" if not attempt and "answer 9 of" in str(body) else None) as server:
        expected = rf"since it takes {CALLS} calls, about [\d,]+ tokens of prompts \(an estimate: characters / 4\) and"
        for key, most in (("max_calls", CALLS - 1), ("max_tokens_total", 500)):
            with pytest.raises(UserError, match=rf"^judges\.j\.{key}={most}: nothing was asked, {expected} at most"):
                run(config_of(tmp_path, server, **{key: most}))
        assert not server.bodies
        with pytest.raises(UserError, match=rf"^judges\.j\.max_calls={CALLS} is used up, by calls .* kept"):
            run(config_of(tmp_path, server, max_calls=CALLS))
        assert len(server.bodies) == CALLS
        run(config_of(tmp_path, server, max_calls=CALLS))
        assert server.answered.total() == CALLS


def test_a_key_is_written_nowhere_whatever_the_server_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "JUDGE_KEY": KEY, "OPENAI_API_KEY": "sk-other", "OPENAI_ORG_ID": "org-other", "OPENAI_PROJECT_ID": "p-other",
        "OPENAI_CUSTOM_HEADERS": "X-Other: other\nAuthorization: Bearer other", "OPENAI_BASE_URL": "http://127.0.0.1:9/",
        "HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    said = io.StringIO()
    with JudgeServer(says=f"I was told {KEY}. [[A]]") as server:
        config = config_of(tmp_path, server, {"reads": "text"}, api_key_env="JUDGE_KEY", retries=1)
        (tmp_path / "config.yaml").write_text(config.to_yaml())
        run(config, said=said)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        assert not any("other" in f"{name}{value}" for headers in server.headers for name, value in headers.items())
        for status in ("401", "500", "400"):
            server.fault = lambda *_, status=status: status
            with pytest.raises(UserError) as error:
                run(config, answered("abd", 12), said)
            said.write(str(error.value))
        without = config_of(tmp_path / "without", server, {"reads": "text"})
        server.fault, server.says = no_fault, "[[A]]"
        run(without, answered("ab", 5))
        assert "authorization" not in server.headers[-1]
    assert "The key of JUDGE_KEY".lower() in said.getvalue().lower()
    (tmp_path / "said").write_text(said.getvalue() + "".join(capfd.readouterr()))
    assert not leaks(tmp_path, {"key": KEY})
    assert "I was told ***" in (tmp_path / "e" / "verdicts" / "j.jsonl").read_text()


@pytest.mark.parametrize(("value", "told"), [(None, "the environment has no JUDGE_KEY"), ("a\nb", "is no key")])
def test_a_key_that_is_none_is_said_before_anything_is_asked(
    value: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with JudgeServer() as server:
        plan = plan_judging(config_of(tmp_path, server, api_key_env="JUDGE_KEY"))
        assert plan is not None
        with pytest.raises(UserError, match=rf"^judges\.j\.api_key_env: .*{told}") as error:
            plan.require_keys()
        assert "a\nb" not in str(error.value)


def test_no_number_of_a_server_is_too_large_to_be_read() -> None:
    for day, hour in (("01 Jan 99999999999999999999", 1), ("01 Jan 2020", 10**20)):
        assert servers._seconds_asked_for({"retry-after": f"Mon, {day} {hour}:00:00 GMT"}) is None
    assert servers._seconds_asked_for({"retry-after": "1e999"}) is None
    top = [{"token": "m", "logprob": -(10**400)}]
    with pytest.raises(ValueError, match="no log-probs"):
        servers._likely({"logprobs": {"content": [{"top_logprobs": top}]}})


def test_a_server_without_log_probs_is_told_of(tmp_path: Path) -> None:
    with JudgeServer() as server:
        complete = server.completion
        server.completion = lambda body: complete({**body, "logprobs": False})  # type: ignore[method-assign]
        with pytest.raises(
            UserError, match=r"it tells no log-probs; where the server has none, set judging\.reads=text"
        ):
            run(config_of(tmp_path, server, retries=1))


def test_the_body_is_what_was_configured(tmp_path: Path) -> None:
    with JudgeServer() as server:
        config = config_of(
            tmp_path,
            server,
            temperature=None,
            max_tokens=3,
            max_tokens_key="max_completion_tokens",
            extra_body={"top_logprobs": 5, "user": "me"},
        )
        run(config, answered("ab", 4))
        assert {key: value for key, value in server.bodies[0].items() if key != "messages"} == {
            "model": "big", "max_completion_tokens": 3, "logprobs": True, "top_logprobs": 5, "user": "me",
        }  # fmt: skip
        first = len(server.bodies)
        run(config_of(tmp_path, server, {"reads": "text", "repeats": 2}, temperature=0.7), answered("ab", 4))
        assert len({body["seed"] for body in server.bodies[first:]}) == len(server.bodies) - first == 4
        assert {body["max_tokens"] for body in server.bodies[first:]} == {2048}


def test_a_name_that_stands_for_several_models_is_told(tmp_path: Path) -> None:
    with JudgeServer() as server:
        assert run(config_of(tmp_path, server), answered("ab", 10)).counts["j"].served_by == {"big-0613": 8}
        server.model = "big-1106"
        found = run(config_of(tmp_path, server), answered("ab", 20))
        assert found.notes() == ["The server of the judge j answered by several models (big-0613 8, big-1106 9)."]
