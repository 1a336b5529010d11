"""The model card, README.md beside the weights: what was trained how, on what, and how to ask it.

It is made to be published with the weights: no secret is in it, and no path of this machine.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import transformers
import yaml
from jinja2 import Template
from transformers import PreTrainedTokenizerBase as Tokenizer

from orpo_ray import __version__
from orpo_ray.config import TrainConfig
from orpo_ray.config.paths import expanded
from orpo_ray.data.names import hub_data_set
from orpo_ray.data.templates import Renderer
from orpo_ray.modeling.loading import hub_id
from orpo_ray.training.loop import Line

_CARD = Template(
    """---
{{ front }}---
# {{ config.name }}

{{ base }}{% if config.model.init == "random" %} (architecture only, random weights){% endif %}
trained with {{ config.objective.name }} by orpo_ray {{ version }}.

```python
{% if config.objective.model == "reward" -%}
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path = "."  # this folder, or its id on the Hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path, dtype="auto")
{% if chats -%}
chat = [{"role": "user", "content": "What does the cow say?"}, {"role": "assistant", "content": "Moo."}]
text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip(){{ "" if closes else " + tokenizer.eos_token" }}
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
{% else -%}
inputs = tokenizer("What does the cow say? Moo." + tokenizer.eos_token, return_tensors="pt")
{% endif -%}
print(model(**inputs).logits.item())  # the reward
{%- else -%}
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or its id on the Hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
{% if chats -%}
chat = [{"role": "user", "content": "What does the cow say?"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
{% else -%}
inputs = tokenizer("What does the cow say?", return_tensors="pt")
{% endif -%}
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
{%- endif %}
```

| setting | value |
|---|---|
| base model | `{{ base }}` ({{ config.model.init }}, {{ config.model.dtype }}) |
{%- for source in sources %}
| data | `{{ source.source }}`, split {{ source.split }}{% if source.weight %}, weight {{ source.weight }}{% endif %} |
{%- endfor %}
| objective | {{ objective }} |
{%- if lora %}
| LoRA, merged here | {{ lora }} |
{%- endif %}
| learning rate | {{ config.optim.lr }}, {{ config.optim.schedule }}, warm-up {{ config.optim.warmup_steps }} |
{%- if config.rollouts %}
| prompts in a step | {{ config.train.global_batch_size }}, {{ config.rollouts.samples }} response(s) to each |
| longest text | {{ config.data.max_length }} tokens, response {{ config.rollouts.max_tokens }} |
{%- else %}
| pairs in a step | {{ config.train.global_batch_size }} |
| longest text | {{ config.data.max_length }} tokens, prompt {{ config.data.max_prompt_length }} |
{%- endif %}
| chat template | {{ template }} |
| seed | {{ config.seed }} |
| weights of step | {{ step }}{% if total_steps %} of {{ total_steps }}{% endif %} ({{ why }}) |
{%- if hardware %}
| trained on | {{ hardware }} |
{%- endif %}
| written | {{ date }}, with torch {{ torch }}, transformers {{ transformers }} |
{% if evaluation %}
Held-out {{ 'prompts' if config.rollouts else 'pairs' }} at that step:

| metric | value |
|---|---|
{%- for name, value in evaluation.items() %}
| {{ name }} | {{ "%.4f" | format(value) }} |
{%- endfor %}
{% else %}
The held-out {{ 'prompts' if config.rollouts else 'pairs' }} were not evaluated at that step.
{% endif %}"""
)


def card(
    config: TrainConfig,
    tokenizer: Tokenizer,
    evaluation: Line,
    total_steps: int | None,
    why: str,
    hardware: str | None,
) -> str:
    """`tokenizer`: as it was loaded; `hardware`: None where it is not known. See `export_model` for the others."""
    config = TrainConfig.model_validate(config.for_a_file())  # without secrets
    settings = config.objective.model_dump(by_alias=True, exclude={"name"}, exclude_none=True)
    for section in (settings, settings.get("pairs", {})):
        section |= {key: published(section[key]) for key in ("reference", "critic") if key in section}
    described = [f"{'λ' if key == 'lambda' else key} = {value}" for key, value in settings.items()]
    name, template, lora = config.model.name_or_path, config.data.chat_template, config.model.lora
    adapted = lora and ("all-linear" if lora.target_modules == "all-linear" else ", ".join(lora.target_modules))
    sources = config.data.train_sources
    base = published(name)
    renderer = Renderer(tokenizer, template, date=config.data.date)
    text: str = _CARD.render(
        front=_front_matter(config, [source.source for source in sources]),
        config=config,
        version=__version__,
        chats=renderer.template is not None,
        closes=bool(renderer.end_ids),
        objective=", ".join([config.objective.name, *described]),
        base=base if config.model.revision is None else f"{base}@{config.model.revision}",
        sources=[source.model_copy(update={"source": published(source.source)}) for source in sources],
        template=f"`{template.splitlines()[0][:60]}`" if template else "the tokenizer's own, none for plain text",
        lora=lora and f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {adapted}",
        step=evaluation["step"],
        total_steps=total_steps,
        why=why,
        hardware=hardware,
        date=time.strftime("%Y-%m-%d"),
        torch=torch.__version__,
        transformers=transformers.__version__,
        evaluation={name: value for name, value in evaluation.items() if name != "step"},
    )
    return text


def hardware_of(device: torch.device, ranks: int) -> str:
    """What all ranks compute on together, each on a `device` like this one's."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} x {ranks}"
    cores = ranks * torch.get_num_threads()
    return f"{cores} CPU core{'' if cores == 1 else 's'}"


def published(place: str) -> str:
    """What a card calls a model or a source: of a path of this machine the name alone, for a run's `model/` or
    `adapter/` with the run's; else as it is (a Hub id, an address, a name)."""
    path = expanded(place)
    if "://" in place or not (path.is_absolute() or place.startswith(".") or os.path.exists(path)):
        return place
    own = path.name.startswith(("model", "adapter")) and os.path.isfile(path.parent / "config.yaml")
    return f"{path.parent.name}/{path.name}" if own else path.name


def _front_matter(config: TrainConfig, sources: list[str]) -> str:
    """YAML of what the Hub reads."""
    name = hub_id(config.model.name_or_path)[0]
    on_hub = config.model.init == "pretrained" and name.count("/") == 1 and published(name) == name
    data_sets = list(dict.fromkeys(filter(None, map(hub_data_set, sources))))
    found: dict[str, Any] = {"library_name": "transformers", "tags": ["orpo_ray", config.objective.name]}
    found |= {"base_model": name} if on_hub else {}
    found |= {"datasets": data_sets} if data_sets else {}
    return yaml.safe_dump(found, sort_keys=False)
