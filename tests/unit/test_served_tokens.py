"""Tokens as served: prompt and responses have the ids that `apply_chat_template` gives the whole conversation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import FAMILIES, SLOW, family
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_data_prepare import account_of

from orpo_ray.config import parse_config
from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data.encoding import Encoder
from orpo_ray.data.named_templates import NAMED_TEMPLATES
from orpo_ray.data.prepare import Highest, prepare
from orpo_ray.data.prompts import read_prompts
from orpo_ray.data.templates import TEXT_RULE, Renderer, write_text_rule
from orpo_ray.data.tokenization import PairTokenizer
from orpo_ray.errors import UserError
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.inference.scoring import Judged, judged_rows
from orpo_ray.inference.speaking import Completion, Speaker

Messages = list[dict[str, str]]

plain = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co"]), max_size=12)
text = st.one_of(
    plain,
    st.sampled_from(
        [" Once", "The cat sat.", "\n\nYes.", "\t", " ", "a  b\n", "Où est le café?", "e\u0301", "猫🙂", "(a)"]
    ),
    st.lists(st.sampled_from([" ", "\n", "the", " cat", ".", "é", "1", ":)", "\r\n"]), max_size=6).map("".join),
)


def chat(*texts: str) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def answer(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def served(renderer: Renderer, messages: Messages, **options: Any) -> list[int]:
    """Ids as a server makes them."""
    applied = renderer.tokenizer.apply_chat_template(messages, chat_template=renderer.template, **options)
    return list(applied["input_ids"])


def through_end(ids: list[int], end: int) -> list[int]:
    return ids[: len(ids) - ids[::-1].index(end)]


def encoded(renderer: Renderer, prompt: Messages, *answers: str) -> Any:
    [found] = Encoder(renderer.tokenizer)([renderer.rendered(prompt, [answer(text) for text in answers])])
    return found


def holds_no_token(renderer: Renderer, *texts: str) -> bool:
    return not any(renderer._special.search(text) for text in texts)


@pytest.mark.parametrize("name", [*FAMILIES, SLOW])
def test_prompt_and_response_are_the_whole_conversation(name: str) -> None:
    """`tokenize=True` of all messages, up to the end of turn; the prompt is what a server asks."""
    made = family(name)
    renderer = Renderer(made.tokenizer, None)
    end = made.tokenizer.convert_tokens_to_ids(made.end)
    assert renderer.end_ids == (end,)

    @settings(max_examples=80, deadline=None)
    @given(st.lists(text, min_size=1, max_size=3).filter(lambda turns: len(turns) % 2 == 1), text, text)
    def check(turns: list[str], chosen: str, rejected: str) -> None:
        assume(holds_no_token(renderer, *turns, chosen, rejected))
        prompt = chat(*turns)
        found = encoded(renderer, prompt, chosen, rejected)
        assert found.prompt == served(renderer, prompt, add_generation_prompt=True)
        straddled = False
        for response, said in zip(found.responses, (chosen, rejected), strict=True):
            whole = through_end(served(renderer, prompt + answer(said)), end)
            if whole[: len(found.prompt)] == found.prompt:
                assert found.prompt + response == whole
            else:  # one token holds the prompt's end and the answer's beginning
                straddled = True
                assert response[-1] == end
                assert made.tokenizer.decode(found.prompt + response) == made.tokenizer.decode(whole)
        assert found.straddled == straddled

    check()


@pytest.mark.parametrize("name", [*FAMILIES, SLOW])
def test_special_tokens_that_the_data_hold_stay_text(name: str) -> None:
    made = family(name)
    renderer = Renderer(made.tokenizer, None)
    special = set(made.tokenizer.all_special_ids) | set(renderer.end_ids)
    spelled = [str(token) for token in made.tokenizer.added_tokens_decoder.values()]
    pieces = st.lists(st.one_of(st.sampled_from(spelled), st.sampled_from(["a", " the", "\n", " "])), max_size=5)

    def controls(ids: list[int]) -> list[int]:
        return [each for each in ids if each in special]

    @settings(max_examples=40, deadline=None)
    @given(pieces.map("".join), pieces.map("".join))
    def check(question: str, said: str) -> None:
        found = encoded(renderer, chat(question), said)
        bare = encoded(renderer, chat("q"), "a")
        assert controls(found.prompt) == controls(bare.prompt)
        assert controls(found.responses[0]) == controls(bare.responses[0])
        # No space comes before what goes on, so that the text comes back as it was.
        back = made.tokenizer.decode(found.prompt + found.responses[0])
        if name not in ("phi-3", "llama-3", "gemma"):  # whose templates and tokens take white space off
            assert question in back and said in back

    check()


@pytest.mark.parametrize("name", FAMILIES)
def test_training_evaluation_and_scoring_have_the_same_tokens(name: str, tmp_path: Path) -> None:
    made = family(name)
    renderer = Renderer(made.tokenizer, None)
    pairs = [("Once", "The cat", " The dog"), ("Two\n", "\nYes.", "No:)"), ("</s>e\u0301 <|end|>", "é</s>", " ")]
    rows = [{"prompt": chat(q), "chosen": answer(a), "rejected": answer(b + "!")} for q, a, b in pairs]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made.tokenizer.save_pretrained(tmp_path / "model")
    config = parse_config(
        {
            "name": "t", "model": {"name_or_path": str(tmp_path / "model")}, "storage": {"path": str(tmp_path)},
            "data": {"train": str(file), "eval": str(file), "eval_split": "train"},
        }, [], "test",
    )  # fmt: skip
    data = prepare(config, made.tokenizer)
    speaker = speaker_of(tmp_path / "model", len(made.tokenizer))
    prompts, _ = read_prompts(PromptsConfig(source=str(file)), with_messages=True)
    for i, prompt in enumerate(prompts):
        trained = [ids.tolist() for ids in data.train.pair(i)]
        assert judged_rows(speaker, Judged(prompt, ())) == trained
        assert speaker.rows(speaker.question(prompt).prompt) == trained[:1]
        if holds_no_token(renderer, *pairs[i]):
            assert trained[0] == served(renderer, rows[i]["prompt"], add_generation_prompt=True)
    assert speaker.stop_ids(prompts) == tuple(i for i in renderer.end_ids if i != made.tokenizer.eos_token_id)


def speaker_of(folder: Path, embeddings: int, template: str | None = None) -> Speaker:
    model = EvaluatedModel("m", "m", folder, "", "float32", "float32", None, False, embeddings=embeddings)
    return Speaker(model, template)


# BOS, the end of turn, prefills --------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", NAMED_TEMPLATES)
@pytest.mark.parametrize("name", FAMILIES)
def test_named_templates_begin_as_the_tokenizer_begins_a_text(name: str, template: str) -> None:
    made = family(name)
    renderer = Renderer(made.tokenizer, template)
    start = Encoder(made.tokenizer).start
    found = encoded(renderer, chat("q"), "a")
    assert found.prompt[: len(start)] == start
    assert found.prompt == served(renderer, chat("q"), add_generation_prompt=True)
    assert found.responses[0][-1] in (made.tokenizer.eos_token_id, *renderer.end_ids)
    # A template that is kept with the model gives the same to a server that knows nothing of this project.
    kept = copy.deepcopy(made.tokenizer)
    kept.chat_template = renderer.template
    assert encoded(Renderer(kept, None), chat("q"), "a") == found


@pytest.mark.parametrize(
    ("name", "starts"),
    [("llama-3", True), ("chatml-qwen", False), ("gemma", True), ("mistral-inst", True), ("phi-3", False),
     ("zephyr-sentencepiece", True), ("opt", True), ("gpt-2", False)],
)  # fmt: skip
def test_text_begins_as_the_tokenizer_begins_it(name: str, starts: bool) -> None:
    tokenizer = family(name).tokenizer
    [found] = Encoder(tokenizer)([Renderer(tokenizer, None).rendered("Once", [" upon", " a time"])])
    assert found.prompt == tokenizer("Once")["input_ids"]
    assert (found.prompt[0] == tokenizer.bos_token_id) == starts
    for response, said in zip(found.responses, (" upon", " a time"), strict=True):
        assert found.prompt + response == [*tokenizer("Once" + said)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_ends_with_an_assistants_turn_is_a_prefill(name: str, tmp_path: Path) -> None:
    made = family(name)
    renderer = Renderer(made.tokenizer, None)
    prompt = chat("What is the largest sea?", "It is")
    found = encoded(renderer, prompt, " the Pacific.", " wet.")
    assert found.prompt == served(renderer, prompt, continue_final_message=True)
    for response, said in zip(found.responses, (" the Pacific.", " wet."), strict=True):
        whole = served(renderer, chat("What is the largest sea?", "It is" + said))
        assert found.prompt + response == through_end(whole, renderer.end_ids[0])
    made.tokenizer.save_pretrained(tmp_path)
    speaker = speaker_of(tmp_path, len(made.tokenizer))
    assert speaker.rows(prompt, [Completion(answer(" wet."), cut=False)]) == [found.prompt, found.responses[1]]
    [cut] = speaker.rows(prompt, [Completion(answer(" wet."), cut=True)])[1:]
    assert cut == found.responses[1][:-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_conversation_is_what_the_template_writes(name: str) -> None:
    made = family(name)
    renderer = Renderer(made.tokenizer, None)
    for said in ("Yes.", " a </s> b"):
        segments = renderer.conversation(chat("q"), answer(said))
        rendered = made.tokenizer.apply_chat_template(chat("q", said), chat_template=renderer.template, tokenize=False)
        assert "".join(segment.text for segment in segments) == rendered
        if holds_no_token(renderer, said):
            assert Encoder(made.tokenizer).whole([segments]) == [served(renderer, chat("q", said))]


# Templates of odd shapes ---------------------------------------------------------------------------------------------

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
OPENER = "{{ '<|im_start|>assistant\n' }}"
CHATML = TURNS + "{% if add_generation_prompt %}" + OPENER + "{% endif %}"
BLOCK = "<think>\n\n</think>\n\n"
ODD = {  # template; the prompt's end; the response; what is said
    "always-prompts": (
        TURNS + OPENER,
        "<|im_start|>assistant\n", "Yes.<|im_end|>", "ends every conversation with '\\n<|im_start|>assistant\\n'",
    ),
    "never-prompts": (
        TURNS,
        "q<|im_end|>\n", "<|im_start|>assistant\nYes.<|im_end|>",
        "no generation prompt: '<|im_start|>assistant\\n' is part of each response",
    ),
    "empty-think-block": (
        CHATML.replace("+ m.content", f"+ ({BLOCK!r} if m.role == 'assistant' else '') + m.content"),
        "<|im_start|>assistant\n", f"{BLOCK}Yes.<|im_end|>", f"writes {BLOCK!r} into each response",
    ),
    "prompt-opens-think-block": (
        CHATML.replace("assistant\n", "assistant\n<think>\n"),
        "<|im_start|>assistant\n", "Yes.<|im_end|>", "generation prompt adds '<think>\\n'",
    ),
    "text-alone": (
        "{% for m in messages %}{{ '\n\n' + m.role + ': ' + m.content }}{% endfor %}{{ '\n\nassistant: ' }}",
        "\n\nassistant: ", "Yes.<|im_end|>", "ends every conversation with '\\n\\nassistant: '",
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", ODD)
def test_odd_templates_are_parted_and_said_aloud(shape: str) -> None:
    template, prompt_end, response, remark = ODD[shape]
    tokenizer = family("chatml-qwen").tokenizer
    renderer = Renderer(tokenizer, template)
    found = encoded(renderer, chat("q"), "Yes.")
    assert tokenizer.decode(found.prompt).endswith(prompt_end)
    assert tokenizer.decode(found.responses[0]) == response
    assert [line for line in renderer.remarks if remark in line], renderer.remarks
    shown = response.removesuffix("<|im_end|>").replace("<|im_start|>", "")  # as an engine shows it
    assert renderer.said(shown).removeprefix("<think>\n") == "Yes."


def test_an_opened_think_block_belongs_to_the_prompt_where_both_responses_have_it() -> None:
    tokenizer = family("chatml-qwen").tokenizer
    renderer = Renderer(tokenizer, ODD["prompt-opens-think-block"][0])
    both = encoded(renderer, chat("q"), "<think>\nHm.</think>Yes.", "<think>\nNo.")
    assert tokenizer.decode(both.prompt).endswith("<think>\n")
    assert tokenizer.decode(both.responses[0]) == "Hm.</think>Yes.<|im_end|>"
    one = encoded(renderer, chat("q"), "<think>\nHm.</think>Yes.", "No.")
    assert tokenizer.decode(one.prompt).endswith("assistant\n")
    assert tokenizer.decode(one.responses[0]) == "<think>\nHm.</think>Yes.<|im_end|>"
    assert encoded(renderer, chat("q")).prompt == served(renderer, chat("q"), add_generation_prompt=True)


def test_a_bos_that_nobody_writes_is_none(tmp_path: Path) -> None:
    tokenizer = family("zephyr-sentencepiece").tokenizer
    assert encoded(Renderer(tokenizer, CHATML), chat("q"), "a").prompt.count(tokenizer.bos_token_id) == 0
    assert any("writes no <s>" in line for line in Renderer(tokenizer, CHATML).remarks)
    assert not any("writes no" in line for line in Renderer(tokenizer, "zephyr").remarks)
    tokenizer.save_pretrained(tmp_path)
    write_text_rule(tmp_path, True)
    assert speaker_of(tmp_path, 999).bos is None
    assert speaker_of(tmp_path, 999, "zephyr").bos == tokenizer.bos_token_id


def test_pairs_with_a_token_over_the_boundary_are_counted(tmp_path: Path) -> None:
    made = family("chatml-qwen")
    rows = [
        {"prompt": chat("q"), "chosen": answer(a), "rejected": answer("No.")} for a in ("Yes.", "\nYes.", "\n\nYes.")
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(
        {"name": "t", "model": {"name_or_path": "x"}, "storage": {"path": str(tmp_path)},
         "data": {"train": str(file), "eval": str(file), "eval_split": "train", "chat_template": "chatml"}}, [], "test",
    )  # fmt: skip
    for _ in range(2):  # and from the cache
        data = prepare(config, made.tokenizer)
        assert account_of(data).straddled == 2
        assert any("holds the end of the prompt and the beginning" in line for line in data.remarks)


def test_text_beside_a_template_is_said(tmp_path: Path) -> None:
    said = "records are text, taken as it stands: the tokenizer's chat template is for message lists"
    rows = {"text": {"prompt": "q", "chosen": "Yes.", "rejected": "No."},
            "messages": {"prompt": chat("q"), "chosen": answer("Yes."), "rejected": answer("No.")}}  # fmt: skip
    for name, row in rows.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    sources = [{"source": str(tmp_path / name), "name": name} for name in rows]
    for template, bare, told in ((None, False, True), ("chatml", False, False), ("chatml", True, False)):
        tokenizer = family("chatml-qwen").tokenizer
        tokenizer.chat_template = None if bare else tokenizer.chat_template
        config = parse_config(
            {"name": "t", "model": {"name_or_path": "x"}, "storage": {"path": str(tmp_path)},
             "data": {"train": sources, "eval": sources, "chat_template": template}}, [], "test",
        )  # fmt: skip
        lines = [line for line in prepare(config, tokenizer).remarks if said in line]
        assert len(lines) == told and all(line.startswith(f"{tmp_path}/text: ") for line in lines)


def test_a_cut_prompt_keeps_its_bos_where_it_has_one() -> None:
    for name in ("llama-3", "chatml-qwen"):
        tokenizer = family(name).tokenizer
        rendered = Renderer(tokenizer, None).rendered(chat("the cat " * 40), [answer("a"), answer("b")])
        [(pair, whole)] = PairTokenizer(tokenizer, 40, 20)([rendered])
        assert (pair.prompt_cut, pair.responses_cut) == (True, (False, False))
        assert (pair.prompt[0] == tokenizer.bos_token_id) == (name == "llama-3")
        assert len(pair.prompt) + len(pair.responses[0]) == 40
        assert pair.prompt[1:] == whole.prompt[len(whole.prompt) - len(pair.prompt) + 1 :]


# Models of earlier versions, and tokens that a model lacks ------------------------------------------------------------


@pytest.mark.parametrize("name", ["phi-3", "zephyr-sentencepiece", "gpt-2"])
def test_a_model_of_an_earlier_version_is_spoken_to_as_it_was_trained(name: str, tmp_path: Path) -> None:
    """BOS first and EOS last, once each, whatever its template writes."""
    made = family(name)
    bos, eos = made.tokenizer.bos_token_id, made.tokenizer.eos_token_id
    made.tokenizer.save_pretrained(tmp_path)
    completions = [Completion(answer("a"), cut=False), Completion(answer("a"), cut=True)]
    for written, first, last in ((None, [], []), ({}, [bos], [eos]), ({"tokens": "as served"}, [], [])):
        if written is not None:
            (tmp_path / TEXT_RULE).write_text(json.dumps({"chat_template_for_text": True, **written}))
        prompt, whole, cut = speaker_of(tmp_path, 999).rows(chat("q"), completions)
        found = encoded(Renderer(made.tokenizer, None), chat("q"), "a")
        last = [each for each in last if found.responses[0][-1] != each]
        assert (prompt, whole) == (first + found.prompt, found.responses[0] + last)
        assert cut == found.responses[0][: len(cut)]
    write_text_rule(tmp_path, False)
    assert speaker_of(tmp_path, 999).rows("q")[0] == made.tokenizer("q")["input_ids"]
    (tmp_path / TEXT_RULE).write_text(json.dumps({"chat_template_for_text": False}))
    assert speaker_of(tmp_path, 999).rows("q")[0] == [bos, *made.tokenizer("q", add_special_tokens=False)["input_ids"]]


def test_a_token_that_the_model_does_not_embed_is_refused_where_it_stands(tmp_path: Path) -> None:
    tokenizer = family("gpt-2").tokenizer
    size = len(tokenizer)
    tokenizer.add_tokens(["[IMAGE]"])
    rows = [{"prompt": "q", "chosen": said, "rejected": "c"} for said in ("a", "b [IMAGE]", "b [IMAGE][IMAGE]")]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(
        {"name": "t", "model": {"name_or_path": "x"}, "storage": {"path": str(tmp_path)},
         "data": {"train": str(file), "eval": str(file), "eval_split": "train"}}, [], "test",
    )  # fmt: skip
    for _ in range(2):  # and from the cache
        assert prepare(config, tokenizer).highest == (Highest(str(file), size, 1),) * 2
    tokenizer.save_pretrained(tmp_path / "model")
    speaker = speaker_of(tmp_path / "model", size)
    assert speaker.rows("q")
    with pytest.raises(UserError, match=rf"'\[IMAGE\]' \({size}\), but m has embeddings for {size} tokens"):
        speaker.rows("q [IMAGE]")


# Dates ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "written"),
    [("strftime_now('%d %b %Y')", "26 Jul 2024"), ('strftime_now("%Y-%m-%d")', "2024-07-26"),
     ("strftime_now(format='%A')", "Friday"), ("strftime_now('%d %H \"x\" ñ')", '26 00 "x" ñ')],
)  # fmt: skip
def test_todays_date_is_a_fixed_one(call: str, written: str) -> None:
    tokenizer = family("chatml-qwen").tokenizer
    for template in ("\n{{ " + call + " }}" + CHATML, "{% set today = " + call + " %}{{ '\n' + today }}" + CHATML):
        renderer = Renderer(tokenizer, template)
        assert renderer.conversation(chat("q"), answer("a"))[0].text.startswith(f"\n{written}<|im_start|>")
        assert any("today's date" in line for line in renderer.remarks)
        other = Renderer(tokenizer, template, date="2025-03-04")
        assert other.template != renderer.template
        # Kept with the model, it needs no clock and is not changed again.
        tokenizer.chat_template = other.template
        kept = Renderer(tokenizer, None)
        assert kept.template == other.template and kept.remarks == []


def test_dates_that_cannot_be_fixed_are_refused() -> None:
    tokenizer = family("chatml-qwen").tokenizer
    for call in ("strftime_now(messages[0]['content'])", "strftime_now('%Y' + '-%m')", "strftime_now()"):
        with pytest.raises(UserError, match="strftime_now with something else than a text"):
            Renderer(tokenizer, "{{ " + call + " }}" + CHATML)
    assert Renderer(tokenizer, "{{ 'strftime_now' }}" + CHATML).remarks == []


def test_a_date_is_one() -> None:
    def date(value: Any) -> str:
        mapping = {"name": "t", "model": {"name_or_path": "toy"}, "data": {"train": "toy", "date": value}}
        return parse_config(mapping, [], "test").data.date

    assert date("2025-03-04") == "2025-03-04"
    for wrong in ("4 March", "2025-13-01", 3, None):
        with pytest.raises(UserError, match=r"data\.date"):
            date(wrong)
