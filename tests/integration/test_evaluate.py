"""`orpo-ray evaluate` through the real stack: vLLM engines and packed scorers as Ray actors, real processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from file_modes import unlike_the_umask
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, OPTConfig

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.data import toyworld
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.evaluation.evaluate import evaluate
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.report import write_evaluation_report

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPTS, ROUNDS = 80, 2


def save(folder: Path, config: OPTConfig, auto: Any, seed: int) -> str:
    """A tiny model with weights large enough that its choices are not near-ties."""
    torch.manual_seed(seed)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    toyworld.tokenizer().save_pretrained(folder)
    write_text_rule(folder, through_template=False)  # as one that was trained here
    return str(folder)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def mapping(storage: Path) -> dict[str, Any]:
    config = toyworld.model_config()
    config.num_hidden_layers = 2
    judge = toyworld.model_config()
    judge.num_hidden_layers, judge.num_labels = 1, 1
    judge.pad_token_id = toyworld.tokenizer().pad_token_id
    return {
        "name": "base",
        "models": {label: save(storage / label, config, AutoModelForCausalLM, i) for i, label in enumerate("ab")},
        "prompts": {"source": "toy-test", "limit": PROMPTS},
        "reward_models": {
            "judge": save(storage / "judge", judge, AutoModelForSequenceClassification, 7),
            "truth": "toy",
        },
        "sampling": {"max_tokens": 12, "rounds": ROUNDS},
        "storage": {"path": str(storage)},
    }  # fmt: skip


def config_of(mapping: dict[str, Any], *overrides: str) -> EvaluationConfig:
    return parse_as(EvaluationConfig, mapping, list(overrides), "test")


@pytest.fixture(scope="module")
def finished(ray_cluster: None, mapping: dict[str, Any]) -> EvaluationFolder:
    """An undisturbed evaluation by one engine and one scorer."""
    return evaluate(config_of(mapping, "scaling={generators: 1, scorers: 1}"))


@pytest.fixture(scope="module")
def rows(finished: EvaluationFolder) -> list[dict[str, Any]]:
    return pq.read_table(finished.results).to_pylist()


def found(folder: EvaluationFolder) -> dict[str, Any]:
    return {key: value for key, value in json.loads(folder.winrates.read_text()).items() if key != "name"}


GREEDY = ["sampling.temperature=0", "sampling.max_tokens=20"]


class Other(NamedTuple):
    """What the finished evaluation's folder says under other settings, and what was in it before."""

    found: dict[str, Any]
    rows: list[dict[str, Any]]
    before: dict[Path, int]


@pytest.fixture(scope="module")
def greedy(finished: EvaluationFolder, mapping: dict[str, Any]) -> Other:
    """Greedy in the same folder; then the first setting again, which finds its pieces."""
    before = {path: path.stat().st_mtime_ns for path in finished.path.glob("responses/*/*")}
    evaluate(config_of(mapping, *GREEDY))
    other = Other(found(finished), pq.read_table(finished.results).to_pylist(), before)
    evaluate(config_of(mapping))
    return other


def test_every_response_is_there_and_judged(finished: EvaluationFolder, rows: list[dict[str, Any]]) -> None:
    drawn = {(row["prompt"], row["model"], row["round"]) for row in rows if row["model"] in "ab"}
    assert drawn == {(p, m, r) for p in range(PROMPTS) for m in "ab" for r in range(ROUNDS)}
    assert len(rows) == len(drawn) + 2 * PROMPTS  # the data's own chosen and rejected
    assert all(row["reward:judge"] is not None and row["reward:truth"] in (0, 1, 2, 3) for row in rows)
    result = found(finished)
    for label in "ab":
        model = result["models"][label]
        assert model["asked"] == model["responses"] == PROMPTS * ROUNDS
        mine = [row for row in rows if row["model"] == label]
        assert model["cut"] == sum(row["ended"] == "length" for row in mine)
        assert model["empty"] == sum(not row["text"].strip() for row in mine)
    # A random policy against the world's own pairs: the truth tells chosen from rejected every time.
    assert result["reward_models"]["truth"]["data_accuracy"]["accuracy"] == 1
    pair = next(p for p in result["pairs"] if p["model"] == "a" and p["reward_model"] == "judge")
    a, b = (
        np.array([row["reward:judge"] for row in rows if row["model"] == label]).reshape(PROMPTS, ROUNDS)
        for label in "ab"
    )
    assert pair["win_rate"] == pytest.approx(((a - b > 1e-4) + (abs(a - b) <= 1e-4) / 2).mean(), abs=1e-12)
    assert "<svg" in write_evaluation_report(finished.path).read_text()
    assert unlike_the_umask(finished.path) == {}
    assert "vllm" not in sys.modules, "vLLM belongs in the actors, not in this process"


def test_rewards_are_those_of_plain_forwards(
    rows: list[dict[str, Any]], finished: EvaluationFolder, storage: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(storage / "judge", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(storage / "judge")
    prompts = pq.read_table(finished.prompts).to_pylist()
    for row in rows[:: len(rows) // 60]:
        ids = tokenizer(prompts[row["prompt"]]["text"] + row["text"])["input_ids"]  # as in training
        ids += [] if row["ended"] == "length" else [tokenizer.eos_token_id]
        with torch.no_grad():
            reward = model(torch.tensor([ids])).logits.item()
        assert row["reward:judge"] == pytest.approx(reward, abs=1e-4)


def test_log_probs_of_the_data_are_those_of_plain_forwards(finished: EvaluationFolder, storage: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(storage / "a", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(storage / "a")
    prompts = pq.read_table(finished.prompts).to_pylist()
    means = []
    for prompt in prompts:
        for side in ("chosen", "rejected"):
            start = tokenizer(prompt["text"])["input_ids"]
            response = tokenizer(prompt[side], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([*start, *response, tokenizer.eos_token_id])
            with torch.no_grad():
                logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            means.append(logps[len(start) - 1 :].mean().item())
    odds = found(finished)["models"]["a"]["odds"]
    assert odds["logps_chosen"] == pytest.approx(np.mean(means[::2]), abs=1e-4)
    assert odds["logps_rejected"] == pytest.approx(np.mean(means[1::2]), abs=1e-4)


def test_more_actors_change_no_byte(finished: EvaluationFolder, mapping: dict[str, Any]) -> None:
    twice = evaluate(config_of(mapping, "name=two", "scaling={generators: 2, scorers: 2}"))
    assert found(twice) == found(finished)
    assert twice.results.read_bytes() == finished.results.read_bytes()


def is_greedy(folder: str, prompt: str, row: dict[str, Any]) -> bool:
    """Whether Hugging Face finds every token of a response the likeliest, but for rounding.

    False where the text does not say which tokens it was: special ones leave no trace in it.
    """
    tokenizer = toyworld.tokenizer()
    response = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    response += [] if row["ended"] == "length" else [tokenizer.eos_token_id]
    if len(response) != row["tokens"]:
        return False
    start = tokenizer(prompt)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([start + response])).logits[0, len(start) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(response)[:, None])[:, 0]
    assert (logits.max(dim=1).values - chosen).max() < 1e-3
    return True


@pytest.fixture(scope="module")
def first(finished: EvaluationFolder) -> bytes:
    """Its numbers, before anything else was done in its folder."""
    return finished.winrates.read_bytes()


def test_a_new_setting_is_a_new_result_and_old_pieces_stay(
    first: bytes, finished: EvaluationFolder, greedy: Other, mapping: dict[str, Any]
) -> None:
    assert finished.winrates.read_bytes() == first
    evaluate(config_of(mapping))
    assert finished.winrates.read_bytes() == first, "a finished evaluation is left as it is"
    prompts = pq.read_table(finished.prompts).to_pylist()
    mine = [row for row in greedy.rows if row["model"] == "a"]
    assert sum(is_greedy(mapping["models"]["a"], prompts[row["prompt"]]["text"], row) for row in mine[:30]) > 20
    assert greedy.found["pairs"][0]["rounds"][0] == greedy.found["pairs"][0]["rounds"][1]
    evaluate(config_of(mapping, f"models.c={mapping['models']['a']}"))
    after = {path: path.stat().st_mtime_ns for path in greedy.before}
    assert after == greedy.before, "adding a model computed the others' responses again"
    assert {"a", "b", "c"} == set(found(finished)["models"])
    evaluate(config_of(mapping))
    assert finished.winrates.read_bytes() == first


def test_vllm_judges_as_the_packed_forward_or_not_at_all(
    finished: EvaluationFolder, rows: list[dict[str, Any]], mapping: dict[str, Any], storage: Path, tmp_path: Path
) -> None:
    """Its rewards are the packed ones; for a model that keeps an offset beside its weights, it is refused."""
    shutil.copytree(finished.path / "responses", storage / "pooled" / "responses")  # it finds them, and judges
    pooled = evaluate(config_of(mapping, "name=pooled", "scoring.engine=vllm"))
    for row, other in zip(rows, pq.read_table(pooled.results).to_pylist(), strict=True):
        assert (row["model"], row["round"], row["text"]) == (other["model"], other["round"], other["text"])
        assert row["reward:judge"] == pytest.approx(other["reward:judge"], abs=1e-3)
    shifted = tmp_path / "shifted"
    shutil.copytree(mapping["reward_models"]["judge"], shifted)
    settings = json.loads((shifted / "config.json").read_text())
    (shifted / "config.json").write_text(json.dumps({**settings, "reward_offset": 1.0}))
    with pytest.raises(
        UserError, match=r"reward_models\.judge: vLLM's rewards are up to 1 away .*scoring\.engine=packed"
    ):
        evaluate(config_of(mapping, "name=pooled", f"reward_models={{judge: {shifted}}}", "scoring.engine=vllm"))


def test_a_model_that_vllm_cannot_run_is_named(ray_cluster: None, mapping: dict[str, Any], tmp_path: Path) -> None:
    """Told once, at its first start, and not tried again as a lost actor would be."""
    broken = tmp_path / "broken"
    shutil.copytree(mapping["models"]["a"], broken)
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**settings, "architectures": ["NoSuchModel"]}))
    asked = tmp_path / "prompts.jsonl"  # without pairs, whose log-probs would find the mistake first
    asked.write_text(json.dumps({"prompt": next(iter(toyworld.records("toy-test")))["prompt"]}) + "\n")
    settings = [f"models={{a: {broken}}}", f"storage.path={tmp_path}", f"prompts={{source: {asked}}}"]
    with pytest.raises(UserError, match=r"^models\.a: vLLM cannot be started: ") as raised:
        evaluate(config_of(mapping, *settings))
    assert "\n" not in str(raised.value)


def processes(name: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] and name in " ".join(p.info["cmdline"])]


@pytest.mark.parametrize("seed", [0])
def test_lost_actors_are_replaced(
    first: bytes, greedy: Other, mapping: dict[str, Any], seed: int, ray_cluster: None
) -> None:
    """A generator and a scorer are killed at work, greedy sampling; the result is that of an undisturbed run."""
    draw = random.Random(seed)
    killed = []
    # An evaluation before may still be ending.
    others = {process.pid for name in ("ray::Generator", "ray::Scorer") for process in processes(name)}

    def kill() -> None:
        for name in ("ray::Generator", "ray::Scorer"):
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                victims = [process for process in processes(name) if process.pid not in others]
                if victims:
                    time.sleep(draw.uniform(0.5, 4))
                    victims[0].kill()
                    killed.append(name)
                    break
                time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    disturbed = evaluate(config_of(mapping, "name=disturbed", *GREEDY, "scaling={generators: 1, scorers: 1}"))
    thread.join()
    assert killed == ["ray::Generator", "ray::Scorer"]
    assert found(disturbed) == greedy.found


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.long)])
def test_the_driver_is_killed(
    finished: EvaluationFolder, mapping: dict[str, Any], storage: Path, times: int, beside_tests: dict[str, str]
) -> None:
    """SIGKILL at seeded moments, the same command each time: the same bytes as undisturbed."""
    name = f"killed-{times}"
    config = storage / f"{name}.yaml"
    config.write_text(config_of(mapping, f"name={name}").to_yaml())
    folder = EvaluationFolder(storage / name)
    command = [sys.executable, "-m", "orpo_ray.cli", "evaluate", str(config)]
    draw = random.Random(0)
    pieces = 3 * len({path.name for path in finished.path.glob("responses/*/*")})  # of one kind each
    wanted = sorted(draw.sample(range(pieces), times))
    for count in wanted:
        log = storage / f"{name}-{count}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            deadline = time.monotonic() + 240
            while len(list(folder.path.glob("*/*/[0-9]*.parquet"))) < count + 1 and time.monotonic() < deadline:
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.3))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not folder.winrates.exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=beside_tests)
    assert done.returncode == 0, done.stderr[-2000:]
    assert folder.winrates.read_text().replace(f'"{name}"', '"base"') == finished.winrates.read_text()
    assert folder.results.read_bytes() == finished.results.read_bytes()
    assert (folder.path / "report.html").is_file()


def test_real_dialogues_in_two_vocabularies(ray_cluster: None, shared: Path, tmp_path: Path) -> None:
    """Real HH-RLHF prompts, more than an engine's batch holds and some past a context; the genuine OPT vocabulary
    answers, a real pretrained Llama with a tokenizer of its own judges."""
    config = OPTConfig.from_pretrained(REPOSITORY / "configs/models/opt-8m")
    config.max_position_embeddings = 256
    policy = save(tmp_path / "policy", config, AutoModelForCausalLM, 0)
    AutoTokenizer.from_pretrained(shared / "tokenizers/opt").save_pretrained(policy)
    torch.manual_seed(0)
    stories = shared / "models/stories260k"
    AutoModelForSequenceClassification.from_pretrained(stories, num_labels=1).save_pretrained(tmp_path / "judge")
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.save_pretrained(tmp_path / "judge")
    mapping = {
        "name": "real", "models": {"policy": policy},
        "prompts": {
            "source": str(shared / "data/hh_rlhf/harmless-base-test.jsonl.gz"), "limit": 40,
            "on_bad_record": "quarantine",
        },
        "reward_models": {"judge": str(tmp_path / "judge")}, "sampling": {"max_tokens": 24, "rounds": 2},
        "storage": {"path": str(tmp_path)},
    }  # fmt: skip
    folder = evaluate(config_of(mapping))
    result, rows = found(folder), pq.read_table(folder.results).to_pylist()
    model = result["models"]["policy"]
    missing = model["not_generated"]["too long"]
    assert missing > 0, "every prompt fits the policy's context"
    assert model["asked"] == model["responses"] + missing == 2 * result["prompts"]
    assert any(f"policy did not answer {missing // 2} prompts" in note for note in result["notes"])
    given = [row for row in rows if row["model"] == "policy" and row["text"] is not None]
    assert len(given) == model["responses"]
    scored = [row for row in rows if row["reward:judge"] is not None]
    unscored = result["reward_models"]["judge"]["not_scored"]["too long"]
    assert unscored == sum(row["reward:judge"] is None for row in given) > 0
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge", dtype=torch.float32).eval()
    prompts = pq.read_table(folder.prompts).to_pylist()
    for row in scored[:: len(scored) // 16]:
        text = prompts[row["prompt"]]["text"] + row["text"]
        ids = tokenizer(text, split_special_tokens=True)[
            "input_ids"
        ]  # whole, and nothing of ours: it is from elsewhere
        with torch.no_grad():
            assert row["reward:judge"] == pytest.approx(plain(torch.tensor([ids])).logits.item(), abs=1e-4)
