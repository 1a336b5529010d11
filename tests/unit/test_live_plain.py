"""Engines whose weights are replaced: what they take and refuse, and what they draw by transformers' `generate`."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from live_models import EOS, SHAPES, asked, everything, network, options, plain_logps, save, worst
from transformers import AutoModelForCausalLM, GenerationConfig

from orpo_ray.config import LoraConfig
from orpo_ray.errors import UserError
from orpo_ray.inference import plain_generation
from orpo_ray.inference.generation import Request
from orpo_ray.inference.live import Sample, pack_weights, unpack_weights
from orpo_ray.inference.live_plain import LivePlain
from orpo_ray.modeling.lora import add_adapters, merged_weights


@pytest.fixture(scope="module", params=SHAPES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LivePlain, str]:
    folder = tmp_path_factory.mktemp("model")
    save(folder, SHAPES[request.param])
    return LivePlain(options(folder, temperature=0.7)), request.param


def test_log_probs_are_those_of_the_weights_loaded_last(engine: tuple[LivePlain, str]) -> None:
    live, shape = engine
    for step in (1, 2, 3):
        model = network(SHAPES[shape], seed=step)
        live.load(pack_weights(model.state_dict()), step)
        samples = everything(live, asked())
        assert worst(model, samples, temperature=0.7) <= 1e-5
        assert worst(model, samples) > 0.01  # not before temperature
        assert worst(network(SHAPES[shape], seed=step + 1), samples, temperature=0.7) > 0.1
        assert {sample.step for sample in samples.values()} == {step}


def test_of_tied_weights_one_is_enough(engine: tuple[LivePlain, str]) -> None:
    live, shape = engine
    model = network(SHAPES[shape], seed=7)
    weights = {name: weight for name, weight in model.state_dict().items() if name not in model.all_tied_weights_keys}
    assert (len(weights) < len(model.state_dict())) == bool(SHAPES[shape].tie_word_embeddings)
    live.load(pack_weights(weights), 7)
    assert worst(model, everything(live, asked()), temperature=0.7) <= 1e-5


def test_asleep_it_holds_no_weights_and_draws_nothing(engine: tuple[LivePlain, str]) -> None:
    live, shape = engine
    weights = pack_weights(network(SHAPES[shape], seed=8).state_dict())
    live.load(weights, 8)
    drawn = everything(live, asked())

    def held() -> int:
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in live._network.parameters()}
        return sum(storage.nbytes() for storage in storages.values())

    whole = held()
    for _ in range(2):
        live.sleep()
        assert held() <= 4 * len(list(live._network.parameters())) < whole / 50
        with pytest.raises(RuntimeError, match=r"^the engine sleeps, so nothing is drawn$"):
            live.advance(asked())
    with pytest.raises(UserError, match=r"^the weights of step 9 are not whole"):
        live.load({}, 9)
    assert held() < whole / 50, "it changes nothing"
    live.load(weights, 9)
    assert held() == whole
    again = everything(live, asked())
    assert {key: sample._replace(step=8) for key, sample in again.items()} == drawn


def test_it_is_not_put_to_sleep_while_it_draws(engine: tuple[LivePlain, str], monkeypatch: pytest.MonkeyPatch) -> None:
    live, _ = engine
    monkeypatch.setattr(plain_generation, "SECONDS_BETWEEN_ANSWERS", 0.0)
    count = len(live.advance(asked()))
    with pytest.raises(UserError, match=rf"^the engine is put to sleep while {8 - count} responses are at work$"):
        live.sleep()
    while live.advance([]):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opt")
    save(folder, SHAPES["opt tied"])
    return folder


def test_what_is_drawn_follows_from_seed_and_weights_alone(folder: Path) -> None:
    live = LivePlain(options(folder))
    together = everything(live, asked())
    assert together == everything(live, asked()[::-1])
    alone = [everything(live, [request]) for request in asked()]
    flat = {key: sample for each in alone for key, sample in each.items()}
    assert {key: sample.ids for key, sample in flat.items()} == {key: each.ids for key, each in together.items()}
    assert together[0, 0].ids != together[0, 1].ids


def test_a_response_ends_with_its_end_or_is_cut_without_one(folder: Path) -> None:
    """Ids come out as they were drawn: no text is made of them, so none becomes another."""
    live = LivePlain(options(folder, stop_ids=(3, 17)))
    many = [Request(i, 0, [0, 5, 9, 7], i) for i in range(300)]
    found = everything(live, many)
    ends = {EOS, 3, 17}
    ended = {sample.ended for sample in found.values()}
    assert ended == {"stop", "length"}
    for sample in found.values():
        assert len(sample.ids) == len(sample.logps) and not ends & set(sample.ids[:-1])
        assert (sample.ids[-1] in ends) == (sample.ended == "stop")
        assert sample.ended == "stop" or len(sample.ids) == 12
    assert {sample.ids[-1] for sample in found.values() if sample.ended == "stop"} == ends
    assert any(sample.ended == "stop" and len(sample.ids) == 1 for sample in found.values())
    assert worst_of(live, many, found) <= 1e-5
    [last] = everything(LivePlain(options(folder, max_tokens=1, stop_ids=range(1, 300))), many[:1]).values()
    assert (len(last.ids), last.ended) == (1, "stop")


def test_bug_end_searched_in_the_prompt_too(folder: Path) -> None:
    """trl#6802, #6805: a prompt of several turns holds EOS at the end of each, and is not the response's."""
    live = LivePlain(options(folder))
    turns = [Request(i, 0, [5, EOS, 9, EOS], i) for i in range(40)]
    found = everything(live, turns)
    assert sum(len(sample.ids) > 1 for sample in found.values()) > 30
    assert all((sample.ids[-1] == EOS) == (sample.ended == "stop") for sample in found.values())
    assert worst_of(live, turns, found) <= 1e-5


def test_bug_top_p_or_top_k_of_the_model_s_own_settings(tmp_path: Path) -> None:
    """trl#6789: a ratio would be off by the mass that is cut. What is drawn is of all tokens."""
    model = save(tmp_path, SHAPES["opt tied"])
    GenerationConfig(do_sample=True, top_k=2, top_p=0.5, temperature=0.3).save_pretrained(tmp_path)
    samples = everything(LivePlain(options(tmp_path)), asked())
    assert worst(model, samples) <= 1e-5
    assert min(min(sample.logps) for sample in samples.values()) < math.log(0.01), "beyond the likely ones"


def worst_of(live: LivePlain, requests: list[Request], found: dict[tuple[int, int], Sample]) -> float:
    prompts = {request.prompt: request.ids for request in requests[:40]}
    pairs = [(found[prompt, 0], ids) for prompt, ids in prompts.items()]
    return float(max((plain_logps(live._network, ids, s.ids) - torch.tensor(s.logps)).abs().max() for s, ids in pairs))


def test_bfloat16_is_computed_and_loaded_from_float32(folder: Path) -> None:
    live = LivePlain(options(folder, dtype="bfloat16"))
    model = network(SHAPES["opt tied"], seed=5)
    live.load(pack_weights(model.state_dict()), 1)
    rounded = network(SHAPES["opt tied"], seed=5).to(torch.bfloat16)
    assert live._network.dtype == torch.bfloat16
    for name, weight in live._network.state_dict().items():
        assert torch.equal(weight, rounded.state_dict()[name])
    assert worst(rounded, everything(live, asked())) <= 0.1


def test_adapters_come_in_merged(folder: Path) -> None:
    live = LivePlain(options(folder))
    model, plain = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    add_adapters(model, LoraConfig(rank=2, alpha=4), seed=0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    live.load(pack_weights(merged_weights(model, model.state_dict())), 1)
    samples = everything(live, asked())
    assert worst(model.eval(), samples) <= 1e-5
    assert worst(plain.eval(), samples) > 0.01


# --- what is refused ----------------------------------------------------------------------------------------------


def without(name: str) -> Any:
    return lambda weights: weights.pop(name)


REFUSED: dict[str, tuple[Any, str]] = {
    "one is missing": (without("model.decoder.layers.1.fc2.bias"), r"they lack model\.decoder\.layers\.1\.fc2\.bias$"),
    "both of the tied are": (
        lambda weights: [weights.pop(name) for name in ("lm_head.weight", "model.decoder.embed_tokens.weight")],
        r"they lack model\.decoder\.embed_tokens\.weight$",
    ),
    "one is unknown": (
        lambda weights: weights.update(score=torch.zeros(1)),
        r"are not of this model: it has no score$",
    ),
    "an adapter's name": (
        lambda weights: weights.update({"model.decoder.layers.0.fc1.base_layer.weight": torch.zeros(1)}),
        r"it has no model\.decoder\.layers\.0\.fc1\.base_layer\.weight$",
    ),
    "another shape": (
        lambda weights: weights.update({"model.decoder.layers.0.fc1.bias": torch.zeros(95)}),
        r"hold model\.decoder\.layers\.0\.fc1\.bias as \[95\]; this model's is \[96\]$",
    ),
    "tied ones differ": (
        lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"] + 1}),
        r"which this model ties, with other values$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit_change_nothing(case: str, folder: Path) -> None:
    live = LivePlain(options(folder))
    before = everything(live, asked(4))
    weights = network(SHAPES["opt tied"], seed=3).state_dict()
    spoil, told = REFUSED[case]
    spoil(weights)
    with pytest.raises(UserError, match=f"^the weights of step 9 .*{told}") as error:
        live.load(pack_weights(weights), 9)
    assert "\n" not in str(error.value)
    assert everything(live, asked(4)) == before


def test_nothing_is_drawn_by_weights_of_which_some_are_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LivePlain(options(folder))
    weights = pack_weights(network(SHAPES["opt tied"], seed=3).state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(live, "_replace", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            live.load(weights, 1)
    with pytest.raises(RuntimeError, match="not loaded whole"):
        live.advance(asked())
    live.load(weights, 1)
    assert worst(network(SHAPES["opt tied"], seed=3), everything(live, asked())) <= 1e-5


def test_nothing_is_drawn_by_what_is_no_number(folder: Path) -> None:
    live = LivePlain(options(folder))
    weights = network(SHAPES["opt tied"], seed=3).state_dict()
    for name in ("model.decoder.embed_tokens.weight", "lm_head.weight"):  # gathered apart, they are two
        weights[name] = torch.full_like(weights[name], torch.nan)
    live.load(pack_weights(weights), 1)
    with pytest.raises(UserError, match="no numbers"):
        live.advance(asked())


def test_weights_wait_until_responses_have_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_generation, "SECONDS_BETWEEN_ANSWERS", 0.0)
    live = LivePlain(options(folder))
    weights = pack_weights(network(SHAPES["opt tied"], seed=3).state_dict())
    many = [Request(i, 0, list(range(1, 2 + i % 4)), i) for i in range(40)]
    found = live.advance(many)
    assert 0 < len(found) < len(many)
    with pytest.raises(UserError, match=rf"step 4 come while {len(many) - len(found)} responses are at work"):
        live.load(weights, 4)
    while live.advance([]):
        pass
    live.load(weights, 4)
    assert {sample.step for sample in everything(live, asked()).values()} == {4}


def test_one_response_is_not_asked_for_twice_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_generation, "SECONDS_BETWEEN_ANSWERS", 0.0)
    live = LivePlain(options(folder))
    first, second = Request(0, 0, [5], 1), Request(0, 1, [5, 6], 1)
    with pytest.raises(ValueError, match="twice"):
        live.advance([first, first])
    assert len(live.advance([first, second])) == 1
    with pytest.raises(ValueError, match="twice"):
        live.advance([second])
    assert len(live.advance([first])) == 1  # those before it first
    assert len(live.advance([])) == 1


def test_a_prompt_without_room_for_a_response_is_refused_and_none_beside_it_taken(folder: Path) -> None:
    live = LivePlain(options(folder))
    for length in (29, 0):
        with pytest.raises(UserError, match=rf"^prompt 77 has {length} tokens; the engine has room for 1 to 28,"):
            live.advance([*asked(), Request(77, 0, [5] * length, 1)])
    assert live.advance([]) == []
    assert everything(live, [Request(1, 0, [5] * 28, 1)])


# --- weights on their way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_packed_weights_are_the_same_and_shared(dtype: torch.dtype) -> None:
    given = {"a": torch.randn(3, 4).to(dtype), "b": torch.randn(4, 3).to(dtype).t(), "c": torch.tensor(2).to(dtype)}
    given["tied"] = given["a"]
    packed = pack_weights(given)
    assert packed["tied"] is packed["a"]
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 3  # out of band, as the object store keeps them: tied ones once
    found = unpack_weights(pickle.loads(stream, buffers=[memoryview(bytes(each)) for each in buffers]))
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert found["tied"] is found["a"]
    assert unpack_weights(packed)["a"].data_ptr() == given["a"].data_ptr()


@pytest.mark.filterwarnings("error")
def test_what_the_object_store_holds_cannot_be_written_to_and_is_read_in_silence() -> None:
    packed = pack_weights({"a": torch.ones(3)})
    packed["a"].array.flags.writeable = False
    assert torch.equal(unpack_weights(packed)["a"], torch.ones(3))


def test_an_engine_refuses_a_folder_with_code_of_its_own(tmp_path: Path) -> None:
    save(tmp_path, SHAPES["opt tied"])
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (tmp_path / "own.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match=re.escape("Python code of its own")):
        LivePlain(options(tmp_path))
