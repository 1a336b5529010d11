"""LoRA on the packed path: gradients of a plain peft model, a frozen base, exports that others load."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, build, random_examples, random_pairs
from safetensors.torch import load_file
from test_packing_parity import dense_orpo, packed_orpo, plain_logps
from test_reward_model import classifier, named, packed_rewards, plain_rewards, save_language_model, tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from orpo_ray.config import LoraConfig, TrainConfig, parse_config
from orpo_ray.data.packing import pack
from orpo_ray.data.templates import read_text_rule
from orpo_ray.errors import UserError
from orpo_ray.inference.models import find_policy, find_reward_model
from orpo_ray.modeling.attention import NAME
from orpo_ray.modeling.loading import load_policy
from orpo_ray.modeling.lora import add_adapters, merged_weights
from orpo_ray.modeling.memory import set_recomputation
from orpo_ray.modeling.policy import PackedPolicy
from orpo_ray.modeling.reward import PackedRewardModel, centre, load_reward_model
from orpo_ray.storage.checkpoints import Checkpoints, Manifest
from orpo_ray.training import saving
from orpo_ray.training.engine import TorchEngine
from orpo_ray.training.export import export_adapter, export_model
from orpo_ray.training.loop import Line, Sink, State, run
from orpo_ray.training.source import PairSource

LORA = LoraConfig(rank=3, alpha=7)


def draw_adapters(network: nn.Module, seed: int = 5) -> None:
    """Adapters that do something: B begins at zero, where A has no gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def adapted(network: PreTrainedModel, lora: LoraConfig = LORA) -> PreTrainedModel:
    add_adapters(network, lora, seed=0)
    draw_adapters(network)
    return network


def plain_peft(network: PreTrainedModel, task: str, weights: dict[str, torch.Tensor]) -> peft.PeftModel:
    """peft's own model, as anybody makes one, with the same weights."""
    transposed = network.config.model_type == "gpt2"
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", task_type=task, fan_in_fan_out=transposed)
    model = peft.get_peft_model(network, config, autocast_adapter_dtype=False)
    score = "score.weight" in weights  # peft keeps a copy of the head that it trains
    own = {f"base_model.model.{name}": weight for name, weight in weights.items() if name != "score.weight"}
    heads = ("original_module", "modules_to_save.default") if score else ()
    own |= {f"base_model.model.score.{head}.weight": weights["score.weight"] for head in heads}
    model.load_state_dict(own)
    return model.eval()


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def assert_same_gradients(packed: PreTrainedModel, plain: peft.PeftModel) -> None:
    """Relative to the largest; and nothing else has any."""
    expected = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): parameter.grad
        for name, parameter in trained(plain).items()
    }
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    assert trained(packed).keys() == expected.keys()
    for name, parameter in packed.named_parameters():
        if name in expected:
            assert parameter.grad is not None, name
            assert (parameter.grad - expected[name]).abs().max() <= 1e-9 * scale, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_orpo_gradients_equal_plain_peft_in_float64(family: PretrainedConfig, checkpointing: bool) -> None:
    """The adapted layers are those of peft's `all-linear` too; embeddings are frozen under checkpointing."""
    examples = random_examples(seed=7, prompts=3)
    packed = PackedPolicy(adapted(build(family, NAME, torch.float64)))
    plain = plain_peft(build(family, "sdpa", torch.float64), "CAUSAL_LM", packed.model.state_dict())
    if checkpointing:
        packed.model.gradient_checkpointing_enable({"use_reentrant": False})
        packed.train()
    expected, loss = dense_orpo(plain, examples), packed_orpo(packed, examples)
    assert abs(float(loss.detach()) - float(expected.detach())) <= 1e-9 * float(expected.detach())
    expected.backward()
    loss.backward()
    assert_same_gradients(packed.model, plain)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_reward_gradients_equal_plain_peft_in_float64(family: PretrainedConfig, checkpointing: bool) -> None:
    examples = random_examples(seed=7, prompts=3)
    network = adapted(classifier(family, NAME, torch.float64))
    network.score.requires_grad_(True)
    packed = PackedRewardModel(network)
    plain = plain_peft(classifier(family, "sdpa", torch.float64), "SEQ_CLS", packed.model.state_dict())
    if checkpointing:
        packed.model.gradient_checkpointing_enable({"use_reentrant": False})
        packed.train()
    for rewards in (plain_rewards(plain, examples), packed_rewards(packed, examples)):
        (-F.logsigmoid(rewards[:, 0] - rewards[:, 1])).mean().backward()
    assert_same_gradients(packed.model, plain)


# --- what is drawn and what is trained ---------------------------------------------------------------------------


def load(folder: Path, seed: int = 0, **lora: Any) -> PackedPolicy:
    return load_policy(named(folder, lora={"rank": 3, "alpha": 7, **lora}), seed=seed)


def test_a_policy_begins_as_its_base_and_adapters_follow_the_seed(tmp_path: Path) -> None:
    save_language_model(tmp_path, FAMILIES["llama-grouped-query"])
    batch = pack(random_examples(seed=1, prompts=3), score_prompts=True)
    base = load_policy(named(tmp_path), seed=0)
    first, same, other = load(tmp_path), load(tmp_path), load(tmp_path, seed=1)
    with torch.no_grad():
        assert torch.equal(first(batch), base(batch))
    for name, weight in trained(first).items():
        assert torch.equal(weight, trained(same)[name]), name
        assert torch.equal(weight, trained(other)[name]) == ("lora_B" in name), name
    assert {name.rpartition(".lora_")[1] for name in trained(first)} == {".lora_"}


def test_named_layers_alone_are_adapted(tmp_path: Path) -> None:
    save_language_model(tmp_path, FAMILIES["opt-pre-norm"])
    policy = load(tmp_path, target_modules=["v_proj", "layers.1.fc2"])
    layers = {name.partition(".lora_")[0].removeprefix("model.model.decoder.layers.") for name in trained(policy)}
    assert layers == {"0.self_attn.v_proj", "1.self_attn.v_proj", "1.fc2"}
    assert sum(weight.numel() for weight in trained(policy).values()) == 3 * (2 * (32 + 32) + (64 + 32))


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "self_attn", "q_prj"])
def test_a_layer_that_is_not_there_is_told_with_those_that_are(name: str, tmp_path: Path) -> None:
    save_language_model(tmp_path, FAMILIES["opt-pre-norm"])
    with pytest.raises(UserError) as raised:
        load(tmp_path, target_modules=["q_proj", name])
    assert str(raised.value) == (
        f"model.lora.target_modules: OPTForCausalLM has no linear layer {name} below its output; "
        "it has fc1, fc2, k_proj, out_proj, q_proj, v_proj"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target_modules=q_proj", "model.lora.target_modules: should be all-linear or a list of layers such as"),
        ("target_modules=[]", "model.lora.target_modules: should be all-linear or a list"),
        ("target_modules=[1]", "model.lora.target_modules: should be all-linear or a list"),
        ("rank=0", "model.lora.rank: "),
        ("alpha=0", "model.lora.alpha: "),
        ("dropout=1", "model.lora.dropout: "),
        ("r=8", "unknown key model.lora.r; "),
    ],
)
def test_mistakes_in_the_configuration(override: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        settings(Path("base"), Path("runs"), f"model.lora.{override}")
    assert str(raised.value).startswith(f"test: {message}")


def settings(base: Path, storage: Path, *overrides: str) -> TrainConfig:
    """Ten steps of 8 pairs, large enough for the adapters to move well beyond rounding."""
    mapping = {
        "name": "lora", "model": {"name_or_path": str(base), "dtype": "float32", "lora": {"rank": 3, "alpha": 7}},
        "data": {"train": "unused"}, "optim": {"lr": 1e-2, "warmup_steps": 1},
        "train": {"max_steps": 10, "epochs": 9, "global_batch_size": 8, "checkpoint_every_steps": 5},
        "storage": {"path": str(storage)},
    }  # fmt: skip
    return parse_config(mapping, list(overrides), "test")


class Saving(Sink):
    """Keeps the losses and the engine's checkpoints."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.losses: list[float] = []

    def metrics(self, line: Line) -> None:
        if "loss" in line:
            self.losses.append(line["loss"])

    def checkpoint(self, engine: Any, state: State, line: Line) -> None:
        saver = saving.Saver(self.checkpoints, engine, newest=99, best=0, warn=pytest.fail)
        saver.begin(Manifest(state.step, asdict(state), engine.updates, "", "", None, {}))
        saver.finish()


def train(config: TrainConfig, folder: Path, resume: int | None = None) -> tuple[PackedPolicy, list[float]]:
    policy = load_policy(config.model, seed=config.seed)
    set_recomputation(policy, "full")
    engine = TorchEngine(policy, config.optim)
    checkpoints, state = Checkpoints(str(folder)), State()
    if resume is not None:
        manifest = checkpoints.manifest(resume)
        assert manifest is not None
        saving.load(engine, checkpoints, manifest)
        state = State(**manifest.state)
    sink = Saving(checkpoints)
    run(engine, config, PairSource(engine, config, random_pairs(40), random_pairs(4, seed=2)), sink, state)
    return policy, sink.losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_moves_adapters_alone_and_resumes_bitwise(dtype: str, tmp_path: Path) -> None:
    """With dropout, whose draws a resumed run repeats, and checkpointing, which repeats them in backward."""
    base = save_language_model(tmp_path / "base", FAMILIES["llama-grouped-query"])
    config = settings(tmp_path / "base", tmp_path, f"model.dtype={dtype}", "model.lora.dropout=0.3")
    start = load_policy(config.model, seed=config.seed).state_dict()
    policy, losses = train(config, tmp_path / "checkpoints")
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert (parameter - start[name]).abs().max() > 1e-3, name
        else:
            assert torch.equal(parameter, start[name]), name
            assert parameter.grad is None, name
    held = load_file(tmp_path / "checkpoints" / "step-00000005" / "rank-00000.safetensors")
    weights = sum(vector.numel() for name, vector in held.items() if name.endswith("/weight"))
    assert weights == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert weights < sum(p.numel() for p in base.parameters()) / 4
    resumed, repeated = train(config, tmp_path / "checkpoints", resume=5)
    assert repeated == losses[5:]
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_dropout_is_for_training_alone(tmp_path: Path) -> None:
    save_language_model(tmp_path, FAMILIES["opt-pre-norm"])
    policy = load(tmp_path, dropout=0.5)
    draw_adapters(policy.model)
    batch = pack(random_examples(seed=1, prompts=3), score_prompts=True)
    with torch.no_grad():
        assert not torch.equal(policy(batch), policy(batch))
        policy.eval()
        assert torch.equal(policy(batch), policy(batch))


# --- merged and exported -----------------------------------------------------------------------------------------


def export(policy: PackedPolicy | PackedRewardModel, config: TrainConfig, mean: float | None = None) -> Path:
    """`model/` and `adapter/`, as a worker writes them; `mean`: of the rewards, to be centred."""
    weights = dict(policy.model.state_dict())
    exported = merged_weights(policy.model, weights)
    if mean is not None:
        assert isinstance(policy, PackedRewardModel)
        centre(policy, mean, exported)
    folder = config.run_dir
    export_model(folder / "model", policy.model, exported, tokenizer(), config, {"step": 3, "eval_loss": 1.0}, 10)
    export_adapter(folder / "adapter", policy.model, weights, exported, tokenizer(), config)
    return folder


def test_exports_give_what_the_policy_gives_and_leave_it_alone(family: PretrainedConfig, tmp_path: Path) -> None:
    """The merged model by plain Hugging Face, the adapter over its base by plain peft and by an evaluation."""
    examples = random_examples(seed=3, prompts=3)
    save_language_model(tmp_path / "base", family)
    config = settings(tmp_path / "base", tmp_path, "data.chat_template=orpo")
    policy = load(tmp_path / "base").eval()
    draw_adapters(policy.model)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    folder = export(policy, config)
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, before[name]), name

    merged = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert type(merged) is type(base)
    assert merged.state_dict().keys() == base.state_dict().keys()
    tokens = torch.tensor([len(ids) for example in examples for ids in example]).view(3, 3)
    with torch.no_grad():
        expected = policy(pack(examples, score_prompts=True)).view(3, 3) / tokens
        actual, unadapted = (torch.stack([plain_logps(m, e) for e in examples]) / tokens for m in (merged, base))
        assert (expected - unadapted).abs().max() > 0.02  # the adapters do something
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        over_base = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
        ids = torch.arange(5, 25)[None]
        torch.testing.assert_close(over_base(ids).logits, merged(ids).logits, rtol=0, atol=1e-5)

    found = find_policy("a", str(folder / "adapter"), tmp_path / "cache")
    assert read_text_rule(found.folder)
    assert (found.folder / "chat_template.jinja").read_text() == (folder / "model/chat_template.jinja").read_text()
    for name, weight in AutoModelForCausalLM.from_pretrained(found.folder).state_dict().items():
        torch.testing.assert_close(weight, merged.state_dict()[name], rtol=0, atol=1e-6, msg=name)
    assert find_policy("a", str(folder), tmp_path / "cache").folder == folder / "model"


def test_the_adapter_is_small_and_names_its_base(tmp_path: Path) -> None:
    save_language_model(tmp_path / "earlier" / "model", FAMILIES["opt-pre-norm"])
    config = settings(tmp_path / "earlier", tmp_path, "model.lora.target_modules=[q_proj, v_proj]")
    policy = load_policy(config.model, seed=0)
    folder = export(policy, config)
    described = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(tmp_path / "earlier" / "model")
    assert (described["r"], described["lora_alpha"], described["target_modules"]) == (3, 7, ["q_proj", "v_proj"])
    assert (described["task_type"], described["modules_to_save"]) == ("CAUSAL_LM", None)
    held = peft.utils.load_peft_weights(str(folder / "adapter"))
    assert sum(weight.numel() for weight in held.values()) == 2 * 2 * 3 * (32 + 32)
    assert "| LoRA, merged here | rank 3, alpha 7, dropout 0, on q_proj, v_proj |" in (
        (folder / "model" / "README.md").read_text()
    )
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_an_export_replaces_the_earlier_one(tmp_path: Path) -> None:
    save_language_model(tmp_path / "base", FAMILIES["opt-pre-norm"])
    config = settings(tmp_path / "base", tmp_path)
    policy = load_policy(config.model, seed=0)
    first = {part: (export(policy, config) / part).stat().st_ino for part in ("model", "adapter")}
    draw_adapters(policy.model)
    folder = export(policy, config)
    assert all((folder / part).stat().st_ino != inode for part, inode in first.items())
    held = peft.utils.load_peft_weights(str(folder / "adapter"))
    assert torch.equal(
        held["base_model.model.model.decoder.layers.0.fc1.lora_B.weight"],
        policy.model.get_submodule("model.decoder.layers.0.fc1.lora_B.default").weight,
    )


def test_merging_in_bfloat16_rounds_once(tmp_path: Path) -> None:
    """To the bfloat16 nearest to the exact sum, which a product that is rounded first often misses."""
    save_language_model(tmp_path, FAMILIES["llama-grouped-query"])
    network = load_policy(named(tmp_path, dtype="bfloat16", lora={"rank": 3, "alpha": 7}), seed=0).model
    draw_adapters(network)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    weights = dict(network.state_dict())
    merged = merged_weights(network, weights)
    layer = "model.layers.0.mlp.up_proj"
    product = weights[f"{layer}.lora_B.default.weight"].double() @ weights[f"{layer}.lora_A.default.weight"].double()
    exact = weights[f"{layer}.base_layer.weight"].double() + 7 / 3 * product
    assert merged[f"{layer}.weight"].dtype == torch.bfloat16
    assert (merged[f"{layer}.weight"] != exact.bfloat16()).float().mean() < 1e-3
    twice = weights[f"{layer}.base_layer.weight"] + (7 / 3 * product).bfloat16()
    assert (twice != exact.bfloat16()).float().mean() > 0.1
    assert merged["lm_head.weight"] is weights["lm_head.weight"]


# --- reward models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["opt-pre-norm", "opt-post-norm-projected", "llama-grouped-query", "gpt2"])
@pytest.mark.parametrize("centred", [False, True])
def test_exports_of_a_reward_model(name: str, centred: bool, tmp_path: Path) -> None:
    """Adapter over base and merged model give the same logits, the head that is new and the centring included."""
    examples = random_examples(seed=3, prompts=4)
    save_language_model(tmp_path / "base", FAMILIES[name], pad_token="<pad>")
    config = settings(tmp_path / "base", tmp_path, "objective={name: reward, centre: true}")
    model = load_reward_model(config.model, seed=0).eval()
    assert {n for n in trained(model) if ".lora_" not in n} == {"model.score.weight"}
    draw_adapters(model.model)
    with torch.no_grad():
        own = packed_rewards(model, examples)
        mean = float(own.mean()) if centred else None
        expected = own - own.mean() if centred else own
        folder = export(model, config, mean)
        assert torch.equal(packed_rewards(model, examples), own)

        merged = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
        offset = getattr(merged.config, "reward_offset", 0.0)
        torch.testing.assert_close(plain_rewards(merged, examples) - offset, expected, rtol=0, atol=1e-5)
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=1)
        over_base = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
        torch.testing.assert_close(
            plain_rewards(over_base, examples), plain_rewards(merged, examples), rtol=0, atol=1e-5
        )
        again = load_reward_model(named(folder), seed=9).eval()
        torch.testing.assert_close(packed_rewards(again, examples), expected, rtol=0, atol=1e-5)
    saved = json.loads((folder / "adapter" / "adapter_config.json").read_text())["modules_to_save"]
    assert len(saved) == (2 if centred and name != "llama-grouped-query" else 1)
    assert find_reward_model("r", str(folder), "auto").folder == folder / "model"
    with pytest.raises(UserError, match=r"reward_models\.r: .*adapter is an adapter; name the merged model"):
        find_reward_model("r", str(folder / "adapter"), "auto")


def test_an_adapted_reward_model_is_centred_in_place(tmp_path: Path) -> None:
    save_language_model(tmp_path, FAMILIES["opt-post-norm-projected"], pad_token="<pad>")
    model = load_reward_model(named(tmp_path, lora={}), seed=0).eval()
    draw_adapters(model.model)
    examples = random_examples(seed=3, prompts=4)
    with torch.no_grad():
        centre(model, float(packed_rewards(model, examples).mean()))
        assert abs(float(packed_rewards(model, examples).mean())) < 1e-6
