"""The embedded preference world: small requests, answers graded by three qualities, and the scorer that knows.

A named person asks for a small sum, an animal's sound, the larger of two numbers or the largest of three
animals. An answer is three sentences, and each is good or bad by the toss of a coin: a courteous or curt
opening, a right or wrong fact, a helpful or dismissive ending. Of two answers to a request the one with more
good sentences is *chosen* (equal ones are drawn again), so chosen answers are better, not perfect, and share
most of their words with the rejected. That grading is what lets the world show what the ORPO paper shows:
imitating the chosen answers lifts the rejected ones too, while following the contrast parts them. A second
data set asks the same and compares the best of four answers with one of the worse, as UltraFeedback was binarised.

The true score of any text is its number of good sentences, 0 to 3, read from the text alone. Everything is
drawn from `random.Random(seed).random()`, the one generator that Python promises never to change.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar

from orpo_ray.config.data import BUILT_IN
from orpo_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import OPTConfig, PreTrainedTokenizerFast

TRAIN_PAIRS = 6_000
TEST_PAIRS = 400
BEST_OF = 4
"""Answers that `toy-best` has its chosen one from, as many as UltraFeedback."""

NAMES = (
    "Ada", "Amir", "Ben", "Chloe", "Diego", "Elif", "Finn", "Grace", "Hugo", "Ines",
    "Jun", "Kofi", "Lena", "Mia", "Noor", "Omar", "Sara",
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
SOUNDS = {
    "bee": "buzz", "cat": "meow", "cow": "moo", "dog": "woof", "duck": "quack", "frog": "croak",
    "horse": "neigh", "lion": "roar", "mouse": "squeak", "owl": "hoot", "pig": "oink", "sheep": "baa",
}  # fmt: skip
BY_SIZE = ("bee", "mouse", "duck", "sheep", "horse", "elephant", "whale")

COURTEOUS = (
    "Good morning, {name}!", "Thank you for asking.", "What a nice question!",
    "Of course, {name}!", "Gladly!", "Happy to help, {name}!",
)  # fmt: skip
CURT = (
    "What now, {name}?", "Not you again, {name}.", "I was busy.",
    "Make it quick, {name}.", "Another silly question.", "Oh well.",
)  # fmt: skip
HELPFUL = (
    "Ask me anything else.", "Shall I explain it?", "I am glad to help again.",
    "Would you like another one?", "Feel free to ask more.", "Come back any time.",
)  # fmt: skip
DISMISSIVE = (
    "Now leave me alone.", "Do not ask again.", "Work out the rest yourself.",
    "That is all you get.", "I have better things to do.", "Go away.",
)  # fmt: skip

Kind = Literal["sum", "sound", "larger", "three"]
QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "sum": ("What is {a} plus {b}?", "Can you add {a} and {b}?"),
    "sound": ("What does the {a} say?", "Which sound comes from the {a}?"),
    "larger": ("Which is larger, {a} or {b}?", "Is {a} or {b} the larger number?"),
    "three": ("Which is the {d}: {a}, {b} or {c}?", "Of {a}, {b} and {c}, which is the {d}?"),
}
FACTS: dict[Kind, tuple[str, ...]] = {
    "sum": ("The answer is {x}.", "That makes {x}.", "The sum of {a} and {b} is {x}."),
    "sound": ("The answer is {x}.", "The {a} says {x}.", "It goes {x}."),
    "larger": ("The answer is {x}.", "The larger one is {x}.", "That must be {x}."),
    "three": ("The answer is the {x}.", "The {d} one is the {x}.", "That must be the {x}."),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What one person asks; `words` fills the templates, `answers` holds the right one first."""

    kind: Kind
    name: str
    words: dict[str, str]
    answers: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether only `toy-test` may ask this; decided by content, whatever the wording.

        Of a held-out sum or sound the same question by other people stays in training, of two numbers to
        compare their mirrored order does, of three animals their other orders: the answer can be known, but
        this request was never seen.
        """
        words = list(self.words.values())
        if self.kind in ("sum", "sound"):
            return _hash(self.name, *words) % 3 == 0
        if self.kind == "three":
            return _hash(*words) % 6 == 0
        key = _hash(*sorted(words))
        return key % 3 == 0 and (words == sorted(words)) == (key % 2 == 0)


def records(name: str) -> Iterator[dict[str, str]]:
    """The pairs of a source as plain `{prompt, chosen, rejected}` text.

    `toy`: 6,000 training pairs. `toy-base`: the same requests and answers, but 'chosen' is either answer by
    the toss of a coin, for a base model that has no preference yet. `toy-test`: 400 pairs whose requests are
    distinct and occur in neither of the other two. `toy-best` and `toy-best-test`: the requests of `toy` and
    of `toy-test`, each with other answers: the best of four, and one of those with fewer good sentences, drawn at
    random. Raises `UserError` for another name.
    """
    if name not in BUILT_IN:
        raise UserError(f"{name}: no such embedded source; there are {', '.join(BUILT_IN)}")
    return _pairs_of_best(name) if name.startswith("toy-best") else _pairs(name)


def _pairs(name: str) -> Iterator[dict[str, str]]:
    rng = random.Random(2 if name == "toy-test" else 1)
    coin = random.Random(3)
    seen: set[str] = set()
    kinds: tuple[Kind, ...] = ("sum", "sound", "larger", "three")
    count = TEST_PAIRS if name == "toy-test" else TRAIN_PAIRS
    made = 0
    while made < count:
        request = _draw_request(rng, kinds[made % len(kinds)])
        prompt = f"{request.name} asks: {_fill(_pick(rng, QUESTIONS[request.kind]), request)}"
        if request.held_out != (name == "toy-test") or (name == "toy-test" and prompt in seen):
            continue
        seen.add(prompt)
        better, worse = _draw_answers(rng, request)
        if name == "toy-base" and coin.random() < 0.5:
            better, worse = worse, better
        yield {"prompt": prompt, "chosen": better, "rejected": worse}
        made += 1


def _pairs_of_best(name: str) -> Iterator[dict[str, str]]:
    test = name == "toy-best-test"
    rng = random.Random(5 if test else 4)
    for asked in _pairs("toy-test" if test else "toy"):
        best, worse = _draw_best(rng, parse_prompt(asked["prompt"]))
        yield {"prompt": asked["prompt"], "chosen": best, "rejected": worse}


def _draw_request(rng: random.Random, kind: Kind) -> Request:
    name = _pick(rng, NAMES)
    if kind == "sound":
        return _request(kind, name, {"a": _pick(rng, tuple(SOUNDS))})
    if kind == "three":
        degree = _pick(rng, ("largest", "smallest"))
        a, b, c = sorted(BY_SIZE, key=lambda _: rng.random())[:3]
        return _request(kind, name, {"d": degree, "a": a, "b": b, "c": c})
    highest = 5 if kind == "sum" else len(NUMBERS) - 1
    first, second = _pick(rng, NUMBERS[1 : highest + 1]), _pick(rng, NUMBERS[1 : highest + 1])
    if kind == "larger" and first == second:
        return _draw_request(rng, kind)
    return _request(kind, name, {"a": first, "b": second})


def _request(kind: Kind, name: str, words: dict[str, str]) -> Request:
    """The request with its possible answers worked out, the right one first."""
    if kind == "sound":
        right = SOUNDS[words["a"]]
        wrong: Sequence[str] = [sound for sound in SOUNDS.values() if sound != right]
    elif kind == "three":
        ordered = sorted((words["a"], words["b"], words["c"]), key=BY_SIZE.index, reverse=words["d"] == "largest")
        right, *wrong = ordered
    else:
        a, b = NUMBERS.index(words["a"]), NUMBERS.index(words["b"])
        if kind == "sum":
            right = NUMBERS[a + b]
            wrong = [NUMBERS[n] for n in range(a + b - 2, a + b + 3) if n != a + b and 0 < n < len(NUMBERS)]
        else:
            right, wrong = NUMBERS[max(a, b)], [NUMBERS[min(a, b)]]
    return Request(kind, name, words, (right, *wrong))


def _draw_answers(rng: random.Random, request: Request) -> tuple[str, str]:
    """Two answers to a request, the one with more good sentences first."""
    while True:
        first, second = (_draw_answer(rng, request) for _ in range(2))
        if first[1] != second[1]:
            return (first[0], second[0]) if first[1] > second[1] else (second[0], first[0])


def _draw_best(rng: random.Random, request: Request) -> tuple[str, str]:
    """The first of the best of four answers to a request, and any of those with fewer good sentences."""
    while True:
        drawn = [_draw_answer(rng, request) for _ in range(BEST_OF)]
        best, score = max(drawn, key=lambda answer: answer[1])
        worse = [text for text, good in drawn if good < score]
        if worse:
            return best, _pick(rng, worse)


def _draw_answer(rng: random.Random, request: Request) -> tuple[str, int]:
    courteous, right, helpful = (rng.random() < 0.5 for _ in range(3))
    opening = _fill(_pick(rng, COURTEOUS if courteous else CURT), request)
    answer = request.answers[0] if right else _pick(rng, request.answers[1:])
    fact = _fill(_pick(rng, FACTS[request.kind]), request, answer)
    ending = _pick(rng, HELPFUL if helpful else DISMISSIVE)
    return f"{opening} {fact} {ending}", courteous + right + helpful


def qualities(prompt: str, response: str) -> dict[str, bool]:
    """Which of the three good qualities a response to a prompt of this world has.

    Exact, and hard to please, since a sampled response may be anything. `courteous`: it opens with one of the
    courteous sentences, said to the person who asked, and has no other opening. `right`: it states one fact,
    about what was asked, and it is true. `helpful`: it ends with a helpful sentence and has no other ending.
    A response of more than three sentences, or cut off in the middle of one, has no quality at all.
    Raises `ValueError` where the *prompt* is not of this world.
    """
    request = parse_prompt(prompt)
    sentences = re.findall(r"[^.!?]*[.!?]", response.strip())
    sentences = [sentence.strip() for sentence in sentences]
    if len(sentences) > 3 or "".join(response.split()) != "".join("".join(sentences).split()):
        return {"courteous": False, "right": False, "helpful": False}
    openings = [i for i, sentence in enumerate(sentences) if _matches(COURTEOUS + CURT, sentence)]
    facts = [sentence for sentence in sentences if _matches(FACTS[request.kind], sentence)]
    endings = [i for i, sentence in enumerate(sentences) if sentence in HELPFUL + DISMISSIVE]
    truths = {_fill(fact, request, request.answers[0]) for fact in FACTS[request.kind]}
    return {
        "courteous": openings == [0] and sentences[0] in {_fill(text, request) for text in COURTEOUS},
        "right": len(facts) == 1 and facts[0] in truths,
        "helpful": endings == [len(sentences) - 1] and sentences[-1] in HELPFUL,
    }


def true_score(prompt: str, response: str) -> int:
    """The number of good qualities of a response, 0 to 3; see `qualities`."""
    return sum(qualities(prompt, response).values())


def parse_prompt(prompt: str) -> Request:
    """The request that a prompt puts into words. Raises `ValueError` where it is not of this world."""
    for kind, templates in QUESTIONS.items():
        for template in templates:
            match = _pattern("{name} asks: " + template).fullmatch(prompt.strip())
            if match:
                words = match.groupdict()
                try:
                    return _request(kind, words.pop("name"), words)
                except (KeyError, ValueError, IndexError):
                    break
    raise ValueError(f"not a request of the toy world: {prompt!r}")


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word and mark of the world.

    `decode(encode(text), skip_special_tokens=True) == text` for its texts; a foreign word is `<unk>`. Special
    tokens and their ids are OPT's (`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3), and like OPT's it begins a text
    with `<s>` unless told `add_special_tokens=False`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # "▁" stands for the space before a word, so that marks join the word before them when decoded.
    split = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    pieces = {piece for text in _all_texts() for piece, _ in split.pre_tokenize_str(text)}
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pieces)]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = split
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def model_config() -> OPTConfig:
    """The architecture that learns this world in minutes on two CPU cores: OPT's, a million parameters."""
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=len(tokenizer()),
        hidden_size=128,
        word_embed_proj_dim=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        ffn_dim=512,
        max_position_embeddings=128,
        init_std=0.06,  # OPT's 0.02 suits wide layers; so narrow a model learns facts far later with it
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def _all_texts() -> Iterator[str]:
    """Texts that between them hold every word of the world where it may stand."""
    yield from ("largest", "smallest", *NAMES, *NUMBERS[1:], *SOUNDS, *SOUNDS.values(), *BY_SIZE)
    templates = (*COURTEOUS, *CURT, *HELPFUL, *DISMISSIVE, "{name} asks:")
    by_kind = (text for texts in (*QUESTIONS.values(), *FACTS.values()) for text in texts)
    for template in (*templates, *by_kind):
        yield re.sub(r"\{\w+\}", NAMES[0], template)


def _fill(template: str, request: Request, answer: str = "") -> str:
    return template.format(name=request.name, x=answer, **request.words)


def _matches(templates: tuple[str, ...], sentence: str) -> bool:
    return any(_pattern(template).fullmatch(sentence) for template in templates)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A template as a pattern with a named group of one word for each of its fields."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", re.escape(template)))


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _hash(*words: str) -> int:
    return zlib.crc32(" ".join(words).encode())
