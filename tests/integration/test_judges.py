"""A local judge on our own engines says what the same model says behind vLLM's own OpenAI-compatible server."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.errors import UserError
from orpo_ray.evaluation.judged import Judged
from orpo_ray.evaluation.judging import judge, plan_judging
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.inference.generation import ENVIRONMENT
from orpo_ray.judging.places import Answered
from orpo_ray.terminal import Console

CONTEXT = 4096
PROMPTS = 24
TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token for each byte, so that texts of any kind are read; it likes the labels, and not always."""
    folder = tmp_path_factory.mktemp("judge")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({text: i for i, text in enumerate(["<s>", "</s>", *alphabet])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        network.lm_head.weight[tokenizer.convert_tokens_to_ids(["m", "M"])] *= 2
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    """vLLM's own, on loopback; its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (model / "server.log").open("wb")
    # By vLLM's own function: its command asks for the version of a package `vllm`, and the CPU's is called otherwise.
    process = subprocess.Popen(
        [sys.executable, "-c", "from vllm.entrypoints.launchers.api_server.entry import main; main()", "--model",
         str(model), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
         "--max-model-len", str(CONTEXT), "--served-model-name", "judge", "--generation-config", "vllm",
         "--load-format", "safetensors", "--max-num-seqs", "8", "--no-enable-chunked-prefill",
         "--max-num-batched-tokens", str(CONTEXT)],  # as our engines: seeded draws want prompts whole on a CPU
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, model / "server.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"vLLM's server did not start: {log.read_text(errors='replace')[-4000:]}")


def config_of(folder: Path, judges: dict[str, Any], **judging: Any) -> EvaluationConfig:
    mapping = {
        "name": "e", "models": {"a": "a", "b": "b"}, "prompts": {"source": "toy"}, "reward_models": {"truth": "toy"},
        "judging": judging, "judges": judges, "storage": {"path": str(folder)}, "scaling": {"generators": 1},
    }  # fmt: skip
    return parse_as(EvaluationConfig, mapping, [], "test")


def answered() -> Answered:
    """Texts with umlauts and line ends, of very different lengths, one too long for the judge. (Special tokens would be
    text to us alone.)"""
    answers: dict[str, list[list[list[str] | None]]] = {
        label: [[[f"{label} says {'wörter, ' * (i % 7)}\n🦜 {i}"]] for i in range(PROMPTS)] for label in "ab"
    }
    answers["a"][3] = [["long " * CONTEXT]]
    return Answered([[f"What is {i} + {i}?"] for i in range(PROMPTS)], answers, [None] * PROMPTS)


def run(config: EvaluationConfig, there: Answered) -> tuple[Judged, str]:
    plan = plan_judging(config)
    assert plan is not None
    said = io.StringIO()
    folder = EvaluationFolder(config.storage.run_dir(config.name))
    return judge(config, plan, there, folder, Console(file=said, width=500)), said.getvalue()


@pytest.mark.parametrize("judging", [{"order": "both"}, {"reads": "text"}, {"compares": "rates"}], ids=str)
def test_the_same_verdicts_as_vllm_s_own_server_in_float32(
    judging: dict[str, Any], model: Path, server: str, ray_cluster: None, tmp_path: Path
) -> None:
    drawn = {} if "order" in judging else {"max_tokens": 12, "temperature": 1.0}  # by the same seeds
    config = config_of(
        tmp_path,
        {
            "local": {"kind": "vllm", "model": str(model), "dtype": "float32", **drawn},
            "served": {"kind": "openai", "base_url": server, "model": "judge", "tokenizer": str(model), **drawn},
        },
        **judging,
    )
    found, said = run(config, answered())
    local, served = ([each for each in found.judgements if each.judge == label] for label in ("local", "served"))
    times = 2 if "order" in judging or "compares" in judging else 1
    assert len(local) == len(served) == PROMPTS * times
    too_long = PROMPTS * times - len([each for each in local if each.words is not None])
    assert too_long == found.counts["local"].too_long == (2 if "order" in judging else 1)
    for mine, theirs in zip(local, served, strict=True):
        if mine.words is None:
            assert (mine.prompt, theirs.readable) == (3, False)
            assert theirs.words is not None and theirs.words.startswith("[refused by the server: ")
            continue
        assert mine.words == theirs.words
        assert (mine.probability is None) == (theirs.probability is None)
        assert mine.probability is None or mine.probability == pytest.approx(theirs.probability, abs=1e-5)
    if "order" in judging:
        read = [each.probability for each in local if each.probability is not None]
        assert len(read) > PROMPTS and len({round(value, 4) for value in read}) > PROMPTS / 2
    else:
        assert len({each.words for each in local}) > PROMPTS / 2
    counts = found.counts["served"]
    assert counts.prompt_tokens == found.counts["local"].prompt_tokens  # as vLLM's server counts them
    assert counts.served_by == {"judge": PROMPTS * times - too_long}
    assert f"{len(served)} calls, " in said and "(an estimate" not in said
    assert any(
        note.startswith(f"{too_long} of {len(local)} judgements are too long for the judge local")
        for note in found.notes()
    )
    again, said = run(config, answered())
    assert again == found and not said


def test_a_judge_that_cannot_judge_is_refused_before_anything_is_asked(model: Path, tmp_path: Path) -> None:
    local = {"local": {"kind": "vllm", "model": str(model)}}
    with pytest.raises(UserError, match=r"^judging\.labels: 'first' is no single token of judges\.local"):
        plan_judging(config_of(tmp_path, local, labels=["first", "M"]))
    with pytest.raises(UserError, match=r"^judges\.local: .*nowhere"):
        plan_judging(config_of(tmp_path, {"local": {"kind": "vllm", "model": str(tmp_path / "nowhere")}}))
