"""Where a response ends: vLLM stops at the tokens that it is told, and leaves them out of the text."""

from __future__ import annotations

from pathlib import Path

from vllm_script import printed

from orpo_ray.data import toyworld

_SCRIPT = """
import json, sys
from orpo_ray.config.evaluation import SamplingConfig
from orpo_ray.inference.generation import EngineOptions, Generator, Request
from orpo_ray.data import toyworld

def answer(*stop):
    options = EngineOptions(sys.argv[1], "float32", 64, stop_ids=stop)
    generator = Generator(options, SamplingConfig(temperature=0, max_tokens=8))
    [response] = generator.advance([Request(0, 0, [0, 5, 6, 7], 1)])
    assert generator._words is not None and generator.at_once() == options.cpu_batch
    generator._words = None  # as where there are stop texts: vLLM makes the text
    [by_vllm] = generator.advance([Request(0, 0, [0, 5, 6, 7], 1)])
    assert by_vllm == response
    return response

whole = answer()
words = toyworld.tokenizer()(whole.text, add_special_tokens=False)["input_ids"]
cut = answer(words[2])
print(json.dumps([whole._asdict(), words, cut._asdict()]))
"""


def test_a_response_ends_with_the_template_s_token(tmp_path: Path) -> None:
    config = toyworld.model_config()
    config.num_hidden_layers = 1
    whole, words, cut = printed(_SCRIPT, tmp_path, config, seed=3)
    first = words.index(words[2])  # a small model repeats itself
    assert (whole["ended"], whole["tokens"]) == ("length", 8)
    assert (cut["ended"], cut["tokens"]) == ("stop", first + 1)
    assert whole["text"].startswith(cut["text"]) and len(cut["text"]) < len(whole["text"])
