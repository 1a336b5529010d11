"""Which chat template a model has: its tokenizer's own, one by name, or a text."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING

from orpo_ray.config.data import DATE
from orpo_ray.data.special_tokens import text_start
from orpo_ray.data.template_dates import with_fixed_date
from orpo_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Layout of the authors' code for a tokenizer without a template: `<|role|>`, newline, text, EOS, newline.
_ORPO = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NAMED_TEMPLATES = {
    "orpo": _ORPO,
    # The same with a system turn first, empty where the messages have none, as Zephyr was trained.
    "zephyr": "{% if messages[0]['role'] != 'system' %}{{ '<|system|>\n' + eos_token + '\n' }}{% endif %}" + _ORPO,
    # Turns are parted, not ended, by a newline, so that a response ends with its mark.
    "chatml": (
        "{% for message in messages %}"
        "{% if not loop.first %}{{ '\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Anthropic's dialogues, as HH-RLHF stands.
    "hh-rlhf": (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] }}"
        "{% elif message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
        "{% else %}{{ message['content'] }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
    ),
}


def resolve_template(setting: str | None, tokenizer: PreTrainedTokenizerBase, date: str = DATE) -> str | None:
    """The Jinja text for message lists: `data.chat_template` (a name or a text), or the tokenizer's own.

    It needs nothing but a tokenizer: a named one writes what this tokenizer puts before text, and one that writes
    today's date writes `date` (YYYY-MM-DD). None where there is none. Raises `UserError` for an unknown name.
    """
    template = template_as_given(setting, tokenizer)
    return template and with_fixed_date(template, date)


def template_as_given(setting: str | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """As `resolve_template`, before today's date is replaced."""
    if setting is None:
        try:
            return str(tokenizer.get_chat_template())
        except ValueError:  # it has none, or several and no default
            return None
    if "{{" in setting or "{%" in setting:
        return setting
    if setting not in NAMED_TEMPLATES:
        close = difflib.get_close_matches(setting, NAMED_TEMPLATES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        names = ", ".join(NAMED_TEMPLATES)
        raise UserError(f"data.chat_template: {setting!r} is neither one of {names} nor a Jinja text{hint}")
    start = text_start(tokenizer)
    if start == [tokenizer.bos_token_id]:
        return "{{ bos_token }}" + NAMED_TEMPLATES[setting]
    written = "".join(tokenizer.convert_ids_to_tokens(start))
    return (f"{{{{ {json.dumps(written, ensure_ascii=False)} }}}}" if written else "") + NAMED_TEMPLATES[setting]
