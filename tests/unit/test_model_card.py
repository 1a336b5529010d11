"""The model card, and docs/use-your-model.md: what the Hub reads, no path of this machine, and snippets that run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_tokenizers import family
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from orpo_ray.config import TrainConfig, parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.encoding import Encoder
from orpo_ray.data.named_templates import resolve_template
from orpo_ray.data.templates import Renderer
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.lora import merged_weights
from orpo_ray.modeling.reward import ensure_pad_token, load_reward_model
from orpo_ray.training.card import card, hardware_of, published
from orpo_ray.training.export import export_adapter, export_model

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "use-your-model.md"
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def config(**mapping: Any) -> TrainConfig:
    return parse_config(
        {"name": "mine", "model": {"name_or_path": "toy"}, "data": {"train": "toy"}, **mapping}, [], "test"
    )


def card_of(given: TrainConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    line = {"step": 3, "eval_loss": 1.0}
    return card(given, tokenizer or toyworld.tokenizer(), line, 9, "lowest eval loss", "NVIDIA H200 x 8")


def front_of(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_hub_reads_what_is_on_the_hub() -> None:
    sources = [
        {"source": "org/pairs:sub", "name": "a"}, {"source": "org/pairs", "name": "b"}, {"source": "toy", "name": "c"},
        {"source": "https://example.com/x.jsonl", "name": "d"}, {"source": "/data/far/e.jsonl", "name": "e"},
    ]  # fmt: skip
    text = card_of(config(model={"name_or_path": "some/base", "revision": "v2"}, data={"train": sources}))
    assert front_of(text) == {
        "library_name": "transformers", "tags": ["orpo_ray", "orpo"], "base_model": "some/base",
        "datasets": ["org/pairs"],
    }  # fmt: skip
    assert "`some/base@v2` (pretrained" in text and "| data | `org/pairs:sub`, split train |" in text
    assert "| trained on | NVIDIA H200 x 8 |" in text and f"torch {torch.__version__}" in text
    assert re.search(r"\| written \| \d{4}-\d\d-\d\d, with torch ", text)
    fresh = card_of(config(model={"name_or_path": "some/base", "init": "random"}))
    assert "base_model" not in front_of(fresh) and "datasets" not in front_of(fresh)


@pytest.mark.parametrize("objective", [
    {"name": "dpo", "reference": "{}/ref"}, {"name": "online", "pairs": {"name": "ipo", "reference": "{}/ref"}},
    {"name": "ppo", "reference": "{}/ref", "critic": "{}/ref"},
])  # fmt: skip
def test_no_path_of_this_machine_is_in_it(objective: dict[str, Any], tmp_path: Path) -> None:
    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: placed(inner) for key, inner in value.items()}
        return value.replace("{}", str(tmp_path))

    own: dict[str, Any] = {}
    if objective["name"] != "dpo":
        own["rollouts"] = {"rewards": {"f": f"{tmp_path}/rewards.py:score"}, "samples": 2}
    text = card_of(
        config(
            model={"name_or_path": f"{tmp_path}/sft", "tokenizer": f"{tmp_path}/tokens"}, objective=placed(objective),
            data={"train": f"{tmp_path}/pairs.jsonl", "eval": f"{tmp_path}/held.jsonl"},
            storage={"path": str(tmp_path)}, **own,
        )
    )  # fmt: skip
    assert str(tmp_path) not in text and tmp_path.name not in text
    assert "`sft` (pretrained" in text and "`pairs.jsonl`" in text and text.count("ref") >= 2
    assert "base_model" not in front_of(text)


def test_what_places_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "sft"
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for place, name in {
        str(run): "sft", str(run / "adapter"): "sft/adapter", "./sft": "sft", "sft": "sft", "~/x/base": "base",
        "/data/model": "model", "org/name": "org/name", "s3://bucket/pairs": "s3://bucket/pairs", "toy": "toy",
        "/data/pairs.jsonl": "pairs.jsonl",
    }.items():  # fmt: skip
        assert published(place) == name, place
    assert hardware_of(torch.device("cpu"), 2) == f"{2 * torch.get_num_threads()} CPU cores"


@pytest.mark.parametrize("objective", ["orpo", "reward"])
@pytest.mark.parametrize("template", [None, "chatml"])
def test_the_cards_snippet_runs(
    objective: str, template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(objective={"name": objective}, data={"train": "toy", "chat_template": template})
    tokenizer = toyworld.tokenizer()
    ensure_pad_token(tokenizer)
    load = load_reward_model if objective == "reward" else load_policy
    model = load(given.model, seed=0).model
    export_model(tmp_path / "model", model, dict(model.state_dict()), tokenizer, given, {"step": 1}, 2)
    snippet = SNIPPET.search((tmp_path / "model" / "README.md").read_text(encoding="utf-8"))
    assert snippet is not None
    monkeypatch.chdir(tmp_path / "model")
    found = executed(snippet[1])
    if objective == "reward" and template is None:
        assert found["inputs"]["input_ids"][0].tolist() == trained_on(tokenizer, template)


@pytest.mark.parametrize(("name", "template", "closes"), [("chatml-qwen", None, True), ("llama-3", "chatml", False)])
def test_a_reward_is_read_where_a_response_ended_in_training(name: str, template: str | None, closes: bool) -> None:
    """Of a template that writes a new line behind the token that ends an answer, and of one that EOS follows."""
    tokenizer = family(name).tokenizer
    given = config(objective={"name": "reward"}, data={"train": "toy", "chat_template": template})
    snippet = SNIPPET.search(card_of(given, tokenizer))
    assert snippet is not None and ("eos_token" in snippet[1]) is not closes
    inputs = re.search(r"^chat = .*?\ninputs = .*?$", snippet[1], re.MULTILINE | re.DOTALL)
    assert inputs is not None
    tokenizer.chat_template = resolve_template(template, tokenizer)
    found = executed(inputs[0], tokenizer=tokenizer)["inputs"]["input_ids"][0].tolist()
    assert found == trained_on(tokenizer, template)


def trained_on(tokenizer: PreTrainedTokenizerBase, template: str | None) -> list[int]:
    """What a reward model reads of the snippets' conversation."""
    renderer = Renderer(tokenizer, template)
    if renderer.template is None:
        rendered = renderer.rendered("What does the cow say?", [" Moo."])
    else:
        prompt = [{"role": "user", "content": "What does the cow say?"}]
        rendered = renderer.rendered(prompt, [[{"role": "assistant", "content": "Moo."}]])
    encoded = Encoder(tokenizer)([rendered])[0]
    return [*encoded.prompt, *encoded.responses[0]]


def test_the_guides_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = family("llama-3").tokenizer
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = {"name_or_path": str(tmp_path / "base"), "dtype": "float32", "lora": {"rank": 2}}
    given = config(model=model, storage={"path": str(tmp_path / "runs")})
    network = load_policy(given.model, seed=0).model
    weights = dict(network.state_dict())
    exported = merged_weights(network, weights)
    export_model(given.run_dir / "model", network, exported, tokenizer, given, {"step": 1}, 2)
    export_adapter(given.run_dir / "adapter", network, weights, exported, tokenizer, given)
    monkeypatch.chdir(tmp_path)
    snippets = SNIPPET.findall(GUIDE.read_text(encoding="utf-8"))
    assert len(snippets) == 3
    for snippet in snippets:
        assert "runs/NAME" in snippet
        executed(snippet.replace("runs/NAME", "runs/mine"))
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def executed(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "snippet", "exec"), names)
    return names
