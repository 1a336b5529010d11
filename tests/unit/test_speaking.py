"""How a model is spoken to: its prompts, completions and answers are what it was trained on."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_models import save_toy
from transformers import AutoModelForCausalLM, AutoTokenizer

from orpo_ray.config import parse_config
from orpo_ray.config.evaluation import PromptsConfig
from orpo_ray.data import toyworld
from orpo_ray.data.named_templates import resolve_template
from orpo_ray.data.prepare import prepare
from orpo_ray.data.prompts import read_prompts, readable
from orpo_ray.data.templates import write_text_rule
from orpo_ray.errors import UserError
from orpo_ray.inference.models import find_policy
from orpo_ray.inference.scoring import Judged, judged_rows
from orpo_ray.inference.speaking import Answer, Speaker, prompt_ids


@pytest.mark.parametrize(
    ("source", "template"),
    [("hh_rlhf/harmless-base-test.jsonl.gz", None), ("ultrafeedback/test-200.jsonl", "zephyr"),
     pytest.param("hh_rlhf/harmless-base-test.jsonl.gz", "orpo", marks=pytest.mark.long),
     pytest.param("ultrafeedback/test-200.jsonl", "chatml", marks=pytest.mark.long)],
)  # fmt: skip
def test_prompts_and_completions_are_the_trainers_tokens(
    source: str, template: str | None, shared: Path, tmp_path: Path
) -> None:
    """The same ids as `data.prepare` makes of the same records: one BOS, one EOS, the same template."""
    path = str(shared / "data" / source)
    folder = save_toy(tmp_path / "model", template=template)
    AutoTokenizer.from_pretrained(shared / "tokenizers/opt").save_pretrained(folder)
    write_text_rule(folder, template is not None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = resolve_template(template, tokenizer)
    tokenizer.save_pretrained(folder)
    training = parse_config(
        {
            "name": "t", "model": {"name_or_path": str(folder)}, "storage": {"path": str(tmp_path)},
            "data": {"train": path, "eval": path, "chat_template": template, "max_length": 10**6,
                     "max_prompt_length": 10**5, "on_bad_record": "quarantine", "limit": 60},
        }, [], "test",
    )  # fmt: skip
    pairs = prepare(training, tokenizer).train
    speaker = Speaker(find_policy("a", str(_with_weights(folder)), tmp_path), None)
    prompts, _ = read_prompts(PromptsConfig(source=path, limit=60, on_bad_record="quarantine"), with_messages=True)
    by_location = {prompt.location: prompt for prompt in prompts}
    locations = [record.location for record in islice(_records(path), 60)]
    assert len(pairs) > 50
    for i in range(len(pairs)):
        prompt = by_location[locations[pairs.record_ids[i]]]
        rows = judged_rows(speaker, Judged(prompt, ()))
        assert [row.tolist() for row in pairs.pair(i)] == rows


def _with_weights(folder: Path) -> Path:
    """The same folder with a model whose vocabulary holds the tokenizer's."""
    config = toyworld.model_config()
    config.num_hidden_layers, config.vocab_size = 1, 50272
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _records(path: str) -> Any:
    from orpo_ray.data.sources import open_source

    return open_source(path, "test").records()


def speaker_of(tmp_path: Path, template: str | None, through_template: bool) -> Speaker:
    folder = save_toy(tmp_path / f"{template}-{through_template}", template=template)
    write_text_rule(folder, through_template)
    return Speaker(find_policy("a", str(folder), tmp_path), None)


def test_answers_cross_from_text_to_messages_and_back(tmp_path: Path) -> None:
    source = tmp_path / "dialogues.jsonl"
    dialogue = "\n\nHuman: Hello\n\nAssistant:"
    source.write_text(json.dumps({"chosen": f"{dialogue} Yes.", "rejected": f"{dialogue} No."}) + "\n")
    [prompt], _ = read_prompts(PromptsConfig(source=str(source)), with_messages=True)
    text = speaker_of(tmp_path, None, False)
    chat = speaker_of(tmp_path, "chatml", True)
    said = text.answer(prompt, " Good morning.", cut=False)
    assert said == Answer(" Good morning.", cut=False, is_text=True)
    assert chat.completion(prompt, said).turns == [{"role": "assistant", "content": "Good morning."}]
    replied = chat.answer(prompt, "Good morning.<|im_end|>", cut=True)
    assert replied == Answer("Good morning.", cut=True, is_text=False)
    assert text.completion(prompt, replied) == (" Good morning.", True)
    assert text.completion(prompt, said) == (" Good morning.", False)


def test_tools_and_calls_reach_a_model_in_training_s_tokens(tmp_path: Path) -> None:
    """Tools are asked, and judged, as they are trained on; a template without a place for them is refused."""
    template = (
        "{{ tools | tojson if tools else '' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{{ m.tool_calls | tojson if m.tool_calls else '' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    record = {
        "prompt": [{"role": "user", "content": "one plus two"}], "tools": [{"name": "add", "description": "one plus"}],
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}],
        "rejected": [{"role": "assistant", "content": "two"}],
    }  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps({**record, "tools": None}) + "\n")
    run = parse_config(
        {"name": "r", "model": {"name_or_path": "toy"}, "storage": {"cache": str(tmp_path)},
         "data": {"train": str(file), "eval": str(file), "chat_template": template}}, [], "test",
    )  # fmt: skip
    trained = prepare(run, toyworld.tokenizer()).train
    model = find_policy("a", str(save_toy(tmp_path / "toy")), tmp_path)
    speaker = Speaker(model, template)
    prompts, _ = read_prompts(PromptsConfig(source=str(file)), with_messages=True)
    for i, prompt in enumerate(prompts):
        assert judged_rows(speaker, Judged(prompt, ())) == [part.tolist() for part in trained.pair(i)]
    assert trained.pair(0)[0].size > trained.pair(1)[0].size
    with pytest.raises(UserError, match=r"pairs\.jsonl:1: not written by the chat template: tools"):
        prompt_ids(Speaker(model, "chatml"), prompts)


def test_answers_end_at_every_eos_of_the_model(tmp_path: Path) -> None:
    folder = save_toy(tmp_path / "ends")
    prompts, _ = read_prompts(PromptsConfig(source="toy-test", limit=2), with_messages=True)
    for ends, stops in ((2, ()), ([2, 7, 5], (5, 7)), (9, (9,)), (None, ())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        model = find_policy("a", str(folder), tmp_path)
        assert Speaker(model, None).stop_ids(prompts) == stops


def test_prompts_of_other_shapes(tmp_path: Path) -> None:
    source = tmp_path / "ask.jsonl"
    shapes = [{"prompt": "Plain"}, {"instruction": "Do it", "output": "-"}, {"turns": ["First", "Second"]},
              {"prompt": [{"role": "user", "content": "Hi"}]}, {"question": "?"}, {"prompt": "  "}]  # fmt: skip
    source.write_text("".join(json.dumps(shape) + "\n" for shape in shapes))
    prompts, account = read_prompts(PromptsConfig(source=str(source), on_bad_record="quarantine"), with_messages=True)
    assert [readable(prompt.as_found.prompt) for prompt in prompts] == ["Plain", "Do it", "First", "Hi"]
    assert [isinstance(prompt.as_found.prompt, str) for prompt in prompts] == [True, False, False, False]
    assert all(prompt.as_messages and not prompt.as_messages.completions for prompt in prompts)
    assert (account.read, account.kept, dict(account.quarantined)) == (6, 4, {"no prompt": 1, "empty prompt": 1})
    with pytest.raises(UserError, match=r"ask\.jsonl:5: no prompt"):
        read_prompts(PromptsConfig(source=str(source)), with_messages=False)
