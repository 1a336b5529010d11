"""What the policy has said by the token ids that it drew."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from chat_tokenizers import FAMILIES, SLOW, family
from reward_sources import ASKED, CHAT, EOS, TEXT, plain, scores
from test_foreign_judges import make_tokenizer

from orpo_ray.data import toyworld
from orpo_ray.data.formats import Message
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.prompts import Prompt, Question
from orpo_ray.data.templates import Renderer
from orpo_ray.inference.drawn import answer_of
from orpo_ray.inference.speaking import Answer


def test_eos_is_not_searched_in_the_prompt() -> None:
    """The prompt holds EOS, the response none: it was cut, and is whole in the text."""
    tokenizer = copy.deepcopy(toyworld.tokenizer())
    tokenizer.chat_template = NAMED_TEMPLATES["orpo"]
    renderer = Renderer(tokenizer, None)
    asked = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert EOS in asked
    drawn = tokenizer("The answer is three.", add_special_tokens=False)["input_ids"]
    text = " The answer is three."
    assert answer_of(CHAT, asked, drawn, "length", renderer) == Answer(text, cut=True, is_text=False)
    assert answer_of(CHAT, asked, [*drawn, EOS], "stop", renderer) == Answer(text, cut=False, is_text=False)
    assert answer_of(CHAT, asked, [EOS], "stop", renderer) == Answer("", False, is_text=False)


@pytest.mark.parametrize("name", [*FAMILIES, SLOW])
def test_text_goes_on_behind_the_prompt_as_engines_decode_it(name: str) -> None:
    """SentencePiece's first space stands where there is one."""
    tokenizer = family(name).tokenizer
    renderer = Renderer(tokenizer, None, overrides_text=False)
    asked = tokenizer("Human: Hi\n\nAssistant:")["input_ids"]
    for text in (" sat on the mat.", "s sat", " où est le café? 猫", " ", ""):
        whole = tokenizer("Human: Hi\n\nAssistant:" + text)["input_ids"]
        if whole[: len(asked)] == asked:  # no token holds the end of one and the beginning of the other
            drawn = whole[len(asked) :]
            ended = answer_of(TEXT, asked, [*drawn, tokenizer.eos_token_id], "stop", renderer)
            assert ended == Answer(text, False, is_text=True)
            assert answer_of(TEXT, asked, drawn, "length", renderer) == Answer(text, True, is_text=True)


def test_a_cut_character_is_no_text() -> None:
    tokenizer = make_tokenizer(None, bos_token="<s>", eos_token="</s>")
    asked, drawn = (tokenizer(text)["input_ids"] for text in ("Hello", " 🦜 yes 🦜"))
    renderer = Renderer(tokenizer, None, overrides_text=False)
    assert answer_of(TEXT, asked, drawn[:-1], "length", renderer).text == " 🦜 yes "
    broken = [*drawn[:2], *drawn[5:]]  # the first byte of a bird, and words
    assert answer_of(TEXT, asked, broken, "length", renderer).text.endswith(" yes 🦜")


def test_ids_drawn_are_not_made_of_the_text_again(judge: Path) -> None:
    """Letters in place of words: another token sequence than the tokenizer's, of which the text alone is judged."""
    tokenizer = make_tokenizer(None, bos_token="<s>", eos_token="</s>")
    renderer = Renderer(tokenizer, None, overrides_text=False)
    asked = tokenizer(str(TEXT.as_found.prompt))["input_ids"]
    drawn = [*tokenizer(" Gladly!")["input_ids"], tokenizer.eos_token_id]
    before = list(drawn)
    answer = answer_of(TEXT, asked, drawn, "stop", renderer)
    assert (answer, drawn) == (Answer(" Gladly!", False, is_text=True), before)
    [scored] = scores({"r": str(judge)}, TEXT, answer)
    words = toyworld.tokenizer()
    ids = [*words(f"{TEXT.as_found.prompt} Gladly!")["input_ids"], EOS]
    assert scored.score == pytest.approx(plain(judge, ids), abs=1e-5)


@pytest.mark.parametrize("template", [None, "orpo", "chatml"])
def test_an_answer_is_what_the_policys_speaker_makes_of_the_text(
    template: str | None, judge: Path, tmp_path: Path
) -> None:
    """For policies that are trained on text as it stands, and through a template that ends turns in its own way."""
    tokenizer = make_tokenizer(template and NAMED_TEMPLATES[template], bos_token="<s>", eos_token="</s>")
    renderer = Renderer(tokenizer, None, overrides_text=template is not None)
    messages = Question([Message(role="user", content="Hello")], ())
    prompt = Prompt("here:1", Question("Hello", ()), messages)
    if template is None:
        asked, end = tokenizer("Hello")["input_ids"], "</s>"
    else:
        asked = tokenizer.apply_chat_template(messages.prompt, add_generation_prompt=True, return_dict=False)
        end = {"orpo": "</s>", "chatml": "<|im_end|>"}[template]
    drawn = [*tokenizer(" Good morning.")["input_ids"], tokenizer.convert_tokens_to_ids(end)]
    expected = Answer(" Good morning.", False, is_text=template is None)
    assert answer_of(prompt, asked, drawn, "stop", renderer) == expected
    assert answer_of(prompt, asked, drawn[:-1], "length", renderer) == expected._replace(cut=True)
