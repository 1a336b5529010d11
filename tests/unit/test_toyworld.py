"""The embedded preference world: its records, its tokenizer and its scorer."""

import hashlib
import itertools
import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpo_ray.data import toyworld
from orpo_ray.data.toyworld import parse_prompt, qualities, records, tokenizer, true_score
from orpo_ray.errors import UserError

SUM = "Mia asks: What is two plus three?"
PERFECT = "Good morning, Mia! That makes five. Ask me anything else."


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[dict[str, str]]]:
    return {name: list(records(name)) for name in toyworld.BUILT_IN}


def scores(record: dict[str, str]) -> tuple[int, int]:
    prompt = record["prompt"]
    return true_score(prompt, record["chosen"]), true_score(prompt, record["rejected"])


def test_sizes_and_fields(pairs):
    assert {name: len(found) for name, found in pairs.items()} == {
        "toy": 6000, "toy-base": 6000, "toy-test": 400, "toy-best": 6000, "toy-best-test": 400,
    }  # fmt: skip
    assert all(set(record) == {"prompt", "chosen", "rejected"} for found in pairs.values() for record in found)


def test_the_world_is_the_same_everywhere(pairs):
    # A change of this digest changes every measured number about the world.
    assert digest({name: pairs[name] for name in ("toy", "toy-base", "toy-test")}) == "454c5f191720c996"
    assert digest({name: pairs[name] for name in ("toy-best", "toy-best-test")}) == "d76505858f1ec039"


def digest(pairs):
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("source", "chosen", "rejected"),
    [
        ("toy", (2.1, 2.25), (0.75, 0.9)),
        ("toy-test", (2.1, 2.25), (0.75, 0.9)),
        ("toy-best", (2.35, 2.45), (0.9, 1.05)),
        ("toy-best-test", (2.3, 2.45), (0.9, 1.05)),
    ],
)
def test_chosen_has_more_good_qualities(pairs, source, chosen, rejected):
    found = [scores(record) for record in pairs[source]]
    assert all(better > worse for better, worse in found)
    mean_chosen, mean_rejected = (sum(of) / len(found) for of in zip(*found, strict=True))
    assert chosen[0] < mean_chosen < chosen[1], "better, not perfect"
    assert rejected[0] < mean_rejected < rejected[1]


def test_each_quality_is_an_even_coin_over_both_answers(pairs):
    found = [
        qualities(record["prompt"], record[answer]) for record in pairs["toy"] for answer in ("chosen", "rejected")
    ]
    for quality in ("courteous", "right", "helpful"):
        assert sum(each[quality] for each in found) / len(found) == pytest.approx(0.5, abs=0.02)


def test_the_base_source_has_the_same_answers_without_preference(pairs):
    swapped = 0
    for record, base in zip(pairs["toy"], pairs["toy-base"], strict=True):
        assert base["prompt"] == record["prompt"]
        assert {base["chosen"], base["rejected"]} == {record["chosen"], record["rejected"]}
        swapped += base["chosen"] == record["rejected"]
    assert swapped / 6000 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("source", "same"), [("toy-best", "toy"), ("toy-best-test", "toy-test")])
def test_the_best_of_four_answer_the_same_requests(pairs, source, same):
    assert [record["prompt"] for record in pairs[source]] == [record["prompt"] for record in pairs[same]]
    answers = [(record["chosen"], record["rejected"]) for record in pairs[source]]
    assert sum(both == (r["chosen"], r["rejected"]) for both, r in zip(answers, pairs[same], strict=True)) < 10


def test_the_best_of_four_and_any_of_the_worse(pairs):
    # Of four answers, each with qualities by the toss of three coins: who is the best, and one of those below it.
    share = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    expected: Counter[tuple[int, int]] = Counter()
    for drawn in itertools.product(range(4), repeat=4):
        worse = [score for score in drawn if score < max(drawn)]
        for score in worse:
            expected[max(drawn), score] += math.prod(share[each] for each in drawn) / len(worse)
    found = Counter(map(scores, pairs["toy-best"]))
    for outcome, chance in expected.items():
        chance /= sum(expected.values())
        assert found[outcome] / 6000 == pytest.approx(chance, abs=0.025), outcome
    assert set(found) == set(expected)


def test_test_requests_are_distinct_and_unseen(pairs):
    training = {record["prompt"] for record in pairs["toy"]}
    test = [record["prompt"] for record in pairs["toy-test"]]
    assert len(set(test)) == 400
    assert not training & set(test)
    # Not even in other words.
    seen = {(r.kind, r.name, *r.words.values()) for r in map(parse_prompt, training)}
    assert not seen & {(r.kind, r.name, *r.words.values()) for r in map(parse_prompt, test)}
    assert Counter(parse_prompt(prompt).kind for prompt in test) == dict.fromkeys(toyworld.QUESTIONS, 100)


def test_every_word_is_trained_on(pairs):
    texts = [text for record in pairs["toy"] for text in record.values()]
    used = {i for ids in tokenizer()(texts, add_special_tokens=False)["input_ids"] for i in ids}
    assert used == set(range(4, len(tokenizer())))


def test_tokenizer_round_trip_and_size(pairs):
    words = tokenizer()
    assert len(words) % 8 == 0
    assert 100 <= len(words) <= 200
    assert (words.bos_token_id, words.pad_token_id, words.eos_token_id, words.unk_token_id) == (0, 1, 2, 3)
    for record in pairs["toy-test"]:
        for text in record.values():
            ids = words.encode(text)
            assert ids[0] == 0
            assert 3 not in ids
            assert words.decode(ids, skip_special_tokens=True) == text
    assert words.encode(SUM, add_special_tokens=False) == words.encode(SUM)[1:]
    assert words.encode("Zanzibar", add_special_tokens=False) == [3]


def test_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode(SUM) == tokenizer().encode(SUM)
    assert loaded.decode(loaded.encode(PERFECT), skip_special_tokens=True) == PERFECT
    assert loaded.eos_token_id == 2


def test_model_is_small_and_fits_the_tokenizer():
    from transformers import AutoModelForCausalLM

    config = toyworld.model_config()
    assert config.vocab_size == len(tokenizer())
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert 1_000_000 <= parameters <= 3_000_000


@pytest.mark.parametrize(
    ("response", "good"),
    [
        (PERFECT, {"courteous", "right", "helpful"}),
        (f"  {PERFECT} ", {"courteous", "right", "helpful"}),
        ("What now, Mia? That makes six. Go away.", set()),
        ("What now, Mia? The sum of two and three is five. Go away.", {"right"}),
        # The right words about the wrong things.
        ("Good morning, Ben! That makes five. Go away.", {"right"}),
        ("Gladly! The sum of two and two is five. Go away.", {"courteous"}),
        ("Gladly! The larger one is five. Go away.", {"courteous"}),
        # Both sides of one quality are neither.
        ("Gladly! What now, Mia? That makes five.", {"right"}),
        ("Gladly! That makes five. That makes six.", {"courteous"}),
        ("That makes five. Go away. Ask me anything else.", {"right"}),
        # Out of place.
        ("That makes five. Gladly! Ask me anything else.", {"right", "helpful"}),
        ("Ask me anything else. That makes five. Gladly!", {"right"}),
        # Parts of an answer earn their part.
        ("Gladly!", {"courteous"}),
        ("That makes five.", {"right"}),
        # Garbled, cut off, or rambling on.
        ("Good the morning, Mia! That makes five. Ask me anything else.", {"right", "helpful"}),
        ("Good morning, Mia! That makes five. Ask me anything", set()),
        (f"{PERFECT} Ask me anything else.", set()),
        (f"{PERFECT} five five five.", set()),
        (f"five {PERFECT}", {"right", "helpful"}),
        ("five Gladly, . ! ?", set()),
        ("<unk> <s>", set()),
        ("", set()),
        (" \n", set()),
    ],
)
def test_scorer_on_written_cases(response, good):
    assert {name for name, has in qualities(SUM, response).items() if has} == good
    assert true_score(SUM, response) == len(good)


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("Ada asks: Can you add five and five?", "The answer is ten.", "The answer is nine."),
        ("Ada asks: Which sound comes from the owl?", "It goes hoot.", "It goes moo."),
        ("Ada asks: What does the cow say?", "The cow says moo.", "The owl says hoot."),
        ("Ada asks: Is nine or three the larger number?", "The larger one is nine.", "The larger one is three."),
        ("Ada asks: Of bee, whale and duck, which is the smallest?", "That must be the bee.", "That must be the duck."),
        ("Ada asks: Which is the largest: bee, duck or horse?", "The largest one is the horse.", "The horse is."),
    ],
)  # fmt: skip
def test_facts_of_every_kind(prompt, right, wrong):
    assert qualities(prompt, right)["right"]
    assert not qualities(prompt, wrong)["right"]


@given(st.text(max_size=200))
def test_scorer_reads_any_text(text):
    assert 0 <= true_score(SUM, text) <= 3  # hypothesis draws sentences of the world too, for they stand in its source


@given(st.lists(st.integers(0, 159), max_size=40))
def test_scorer_reads_any_tokens(ids):
    assert 0 <= true_score(SUM, tokenizer().decode(ids, skip_special_tokens=True)) <= 3


@pytest.mark.parametrize(
    "prompt", ["", "Hello", "Mia asks: What is two plus moo?", "Mia asks: What does the whale say?"]
)
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="not a request"):
        true_score(prompt, PERFECT)


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(UserError, match="toy, toy-base, toy-test"):
        records("toy-tset")
