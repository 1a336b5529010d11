"""Responses by transformers' own `generate`, and which models need them."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, PretrainedConfig

from orpo_ray.config import EvaluationConfig, parse_as
from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.data import toyworld
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.evaluation.cpu_engine import HEAD_DIMENSIONS, lacks_on_cpu
from orpo_ray.evaluation.evaluate import _require_cpu_engines
from orpo_ray.evaluation.plan import make_plan
from orpo_ray.inference.generation import Request, Response
from orpo_ray.inference.models import EvaluatedModel, find_policy
from orpo_ray.inference.plain_generation import DrawnBySeed, PlainGenerator

WORDS = len(toyworld.tokenizer())


def narrow() -> PretrainedConfig:
    """Heads of 16 dimensions, which vLLM does not have on a CPU."""
    config = toyworld.model_config()
    config.num_hidden_layers, config.num_attention_heads = 1, config.hidden_size // 16
    return config


def mamba() -> PretrainedConfig:
    return MambaConfig(vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, state_size=8)


def save(folder: Path, config: PretrainedConfig) -> str:
    """With weights large enough that its choices are not near-ties."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    toyworld.tokenizer().save_pretrained(folder)
    write_text_rule(folder, through_template=False)
    return str(folder)


@pytest.fixture(scope="module", params=[narrow, mamba])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EvaluatedModel:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    return find_policy("a", save(folder, request.param()), folder)


def requests(count: int = 6) -> list[Request]:
    texts = [record["prompt"] for record in list(toyworld.records("toy-test"))[: count // 2]]
    ids = toyworld.tokenizer()(texts)["input_ids"]
    return [Request(prompt, turn, ids[prompt], 97 * prompt + turn) for prompt in range(len(ids)) for turn in range(2)]


def everything(generator: PlainGenerator, asked: Sequence[Request]) -> dict[tuple[int, int], Response]:
    found = generator.advance(asked)
    while more := generator.advance([]):
        found += more
    assert len(found) == len(asked)
    return {(response.prompt, response.round): response for response in found}


def greedy(policy: EvaluatedModel, request: Request, count: int) -> list[int]:
    """The likeliest tokens by a forward for each, through EOS."""
    network = AutoModelForCausalLM.from_pretrained(policy.folder).eval()
    ids: list[int] = []
    while len(ids) < count and toyworld.tokenizer().eos_token_id not in ids:
        with torch.no_grad():
            ids.append(int(network(torch.tensor([request.ids + ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


def test_greedy_responses_are_those_of_plain_forwards(policy: EvaluatedModel) -> None:
    asked = requests()
    found = everything(PlainGenerator(policy, SamplingConfig(temperature=0, max_tokens=9)), asked)
    tokenizer = toyworld.tokenizer()
    for request in asked:
        ids = greedy(policy, request, 9)
        response = found[request.prompt, request.round]
        prompt = tokenizer.decode(request.ids, skip_special_tokens=True)
        whole = tokenizer.decode(request.ids + ids, skip_special_tokens=True)
        assert response.text == whole.removeprefix(prompt)
        assert (response.tokens, response.ended) == (len(ids), "stop" if tokenizer.eos_token_id in ids else "length")


def test_what_is_drawn_follows_from_the_request_alone(policy: EvaluatedModel) -> None:
    asked, generator = requests(), PlainGenerator(policy, SamplingConfig(top_p=0.9, max_tokens=9))
    together = everything(generator, asked)
    assert together == everything(generator, asked[::-1])
    alone = [everything(generator, [request]) for request in asked]
    assert together == {key: response for each in alone for key, response in each.items()}
    assert together[0, 0].text != together[0, 1].text
    other = everything(generator, [replace_seed(request) for request in asked])
    assert all(other[key].text != together[key].text for key in together)


def replace_seed(request: Request) -> Request:
    return request._replace(seed=request.seed + 10**6)


def test_a_response_ends_at_tokens_and_texts_and_holds_neither(policy: EvaluatedModel) -> None:
    [request] = requests(2)[:1]

    def answer(stop_ids: tuple[int, ...] = (), **sampling: Any) -> Response:
        settings = SamplingConfig(temperature=0, max_tokens=8, **sampling)
        return everything(PlainGenerator(policy, settings, stop_ids), [request])[0, 0]

    whole = answer()
    ids = greedy(policy, request, 8)
    last = ids[len(ids) // 2]
    cut = answer((last,))
    assert (cut.ended, cut.tokens) == ("stop", ids.index(last) + 1)
    assert whole.text.startswith(cut.text) and len(cut.text) < len(whole.text)
    place = len(whole.text) // 2
    stopped = answer(stop=("never said", whole.text[place : place + 2]))
    assert stopped.ended == "stop"
    assert stopped.text == whole.text[: whole.text.index(whole.text[place : place + 2])]


def test_seeds_draw_from_the_distribution() -> None:
    scores = torch.tensor([2.0, 0.0, 1.0, -torch.inf, -1.0]).repeat(20_000, 1)
    drawn = DrawnBySeed(range(20_000))(torch.zeros(20_000, 1, dtype=torch.long), scores)
    assert torch.equal((drawn == 0).sum(-1), torch.ones(20_000, dtype=torch.long))
    shares = torch.bincount(drawn.argmax(-1), minlength=5) / 20_000
    torch.testing.assert_close(shares, scores[0].softmax(-1), atol=0.01, rtol=0)
    assert shares[3] == 0


# --- which models need it ------------------------------------------------------------------------------------------


def test_head_dimensions_are_those_of_the_installed_vllm() -> None:
    [root] = importlib.util.find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    source = (Path(root) / "v1/attention/backends/cpu_attn.py").read_text()
    [listed] = re.findall(r"def get_supported_head_sizes.*?return \[([\d, ]+)\]", source, re.DOTALL)
    assert tuple(map(int, listed.split(","))) == HEAD_DIMENSIONS


@pytest.mark.parametrize(
    ("kind", "settings", "lack"),
    [
        ("llama", {"hidden_size": 64, "num_attention_heads": 4}, "attention heads of 16 dimensions"),
        ("llama", {"hidden_size": 128, "num_attention_heads": 4}, ""),
        ("qwen3", {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 40}, "attention heads of 40 dimensions"),
        ("gpt2", {"n_embd": 48, "n_head": 3}, "attention heads of 16 dimensions"),
        ("bloom", {"hidden_size": 128, "n_head": 4}, ""),
        ("mamba", {}, "state space layers"),
        ("jamba", {}, "state space layers"),
        ("bamba", {}, "state space layers"),
        ("falcon_h1", {}, "state space layers"),
        ("granitemoehybrid", {"num_hidden_layers": 2, "layer_types": ["attention"] * 2, "hidden_size": 2048}, ""),
    ],
)
def test_what_vllm_lacks_on_a_cpu_is_known_from_the_configuration(
    kind: str, settings: dict[str, Any], lack: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    model = EvaluatedModel("m", "m", tmp_path, "", "float32", "float32", None, False)
    assert lacks_on_cpu(model).startswith(lack) and bool(lacks_on_cpu(model)) == bool(lack)


def test_such_a_model_is_refused_before_an_engine_starts_or_generated_from_plainly(tmp_path: Path) -> None:
    mapping = {
        "name": "e", "models": {"a": save(tmp_path / "a", narrow())}, "prompts": {"source": "toy-test", "limit": 3},
        "reward_models": {"r": "toy"}, "sampling": {"max_tokens": 8, "rounds": 1}, "storage": {"path": str(tmp_path)},
    }  # fmt: skip
    by_vllm, plainly = (
        make_plan(parse_as(EvaluationConfig, mapping, [f"generation.engine={engine}"], "test"))
        for engine in ("vllm", "transformers")
    )
    with pytest.raises(
        UserError, match=r"^models\.a: vLLM has no attention heads of 16 dimensions .*engine=transf"
    ) as e:
        _require_cpu_engines(by_vllm)
    assert "\n" not in str(e.value)
    _require_cpu_engines(plainly)
    assert by_vllm.policies["a"].responses.folder != plainly.policies["a"].responses.folder
    by_vllm.policies["a"].responses.write(0, [])
    _require_cpu_engines(by_vllm)  # there is nothing left to generate


# --- as it is asked -----------------------------------------------------------------------------------------------


def test_generation_settings_of_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = Path(save(tmp_path / "a", narrow()))
    plain = everything(
        PlainGenerator(find_policy("a", str(folder), tmp_path), SamplingConfig(max_tokens=9)), requests()
    )
    own = {"temperature": 0.01, "top_k": 1, "repetition_penalty": 9.0, "max_length": 3, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(own))
    again = everything(
        PlainGenerator(find_policy("a", str(folder), tmp_path), SamplingConfig(max_tokens=9)), requests()
    )
    assert again == plain
