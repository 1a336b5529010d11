"""vLLM through a Ray task: the same model as Hugging Face's, and draws that depend on nothing but seed and prompt."""

import os
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from orpo_ray.data import toyworld
from orpo_ray.errors import UserError
from orpo_ray.evaluation.generation import Response, Sampling, _seeds, generate


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT with weights large enough that its choices are not near-ties."""
    folder = tmp_path_factory.mktemp("model")
    config = toyworld.model_config()
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    toyworld.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = toyworld.tokenizer()
    return [tokenizer.encode(record["prompt"]) for record in islice(toyworld.records("toy-test"), 12)]


def greedy_by_hugging_face(model_dir: Path, prompt: list[int], max_tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=max_tokens)
    return output[0, len(prompt) :].tolist()


def test_greedy_tokens_are_hugging_faces(ray_cluster, model_dir, prompts):
    responses = generate(model_dir, prompts, Sampling(temperature=0, max_tokens=20), dtype="float32")
    tokenizer = toyworld.tokenizer()
    for prompt, response in zip(prompts, responses, strict=True):
        assert response.token_ids == greedy_by_hugging_face(model_dir, prompt, 20)
        assert response.text.lstrip() == tokenizer.decode(response.token_ids, skip_special_tokens=True)
        stopped = response.token_ids[-1] == tokenizer.eos_token_id
        assert response.finish_reason == ("stop" if stopped else "length")
    assert "vllm" not in os.sys.modules, "vLLM belongs in the Ray task, not in this process"


def test_a_seed_fixes_the_draws_whatever_the_order(ray_cluster, model_dir, prompts):
    sampling = Sampling(temperature=1.0, max_tokens=12, seed=5)
    twice = [*prompts, prompts[0]]
    forward = generate(model_dir, twice, sampling, dtype="float32")
    backward = generate(model_dir, prompts[:6][::-1], sampling, dtype="float32")
    assert [r.token_ids for r in backward] == [r.token_ids for r in forward[:6][::-1]]
    assert forward[0].token_ids != forward[-1].token_ids, "a repeated prompt is drawn anew"


def test_every_request_has_its_own_seed(prompts):
    seeds = _seeds([*prompts, *prompts], 0) + _seeds(prompts, 1)
    assert len(set(seeds)) == 3 * len(prompts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_no_prompts_need_no_engine(model_dir):
    empty: list[Response] = generate(model_dir, [], Sampling())
    assert empty == []


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no model"):
        generate(tmp_path, [[0]], Sampling())
