"""What docs/evaluation.md says of bits: a wide model's log-probs depend on what is computed together, and how far."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_script import printed

from orpo_ray.data import toyworld

PROMPTS, ALONE, TOKENS = 96, 8, 24
_SCRIPT = f"""
import json, sys
from orpo_ray.inference.generation import EngineOptions, load_engine
from vllm import SamplingParams

engine = load_engine(EngineOptions(sys.argv[1], "float32", 64))
params = SamplingParams(temperature=0, max_tokens={TOKENS}, ignore_eos=True, logprobs=0)
prompts = [{{"prompt_token_ids": [0, *range(5 + at, 9 + at + at % 5)]}} for at in range({PROMPTS})]

def drawn(some):
    engine.reset_prefix_cache()
    outputs = [output.outputs[0] for output in engine.generate(some, params, use_tqdm=False)]
    return [[(token, at[token].logprob) for token, at in zip(one.token_ids, one.logprobs)] for one in outputs]

alone = [drawn([one])[0] for one in prompts[:{ALONE}]]
print(json.dumps([drawn(prompts)[:{ALONE}], drawn(prompts)[:{ALONE}], alone]))
"""


def drawn(folder: Path, width: int, layers: int) -> list[list[list[tuple[int, float]]]]:
    """Greedy tokens and their log-probs of the first prompts: with all others at once, so again, and each by itself, as
    the last responses of an engine are computed."""
    config = toyworld.model_config()
    config.hidden_size = config.word_embed_proj_dim = width
    config.num_hidden_layers, config.num_attention_heads, config.ffn_dim = layers, width // 64, 4 * width
    found: list[list[list[tuple[int, float]]]] = printed(_SCRIPT, folder, config, seed=0)
    return found


def differences(ours: list[list[tuple[int, float]]], theirs: list[list[tuple[int, float]]]) -> list[float]:
    """Of log-probs, up to where a response takes another token: from there on both are of different texts."""
    found = []
    for one, other in zip(ours, theirs, strict=True):
        for (token, log_prob), (other_token, other_log_prob) in zip(one, other, strict=True):
            if token != other_token:
                break
            found.append(abs(log_prob - other_log_prob))
    return found


@pytest.mark.long
def test_a_wide_model_s_log_probs_depend_on_what_is_computed_together(tmp_path: Path) -> None:
    """At the shape of a model of 52 million parameters, but for its vocabulary."""
    together, again, alone = drawn(tmp_path, width=512, layers=8)
    assert again == together  # the same requests at once give the same bits
    found = differences(together, alone)
    share = sum(difference > 0 for difference in found) / len(found)
    print(f"{share:.0%} of {len(found)} log-probs differ, by {max(found):.1e} at most")
    assert len(found) > 0.9 * ALONE * TOKENS  # hardly any token is another
    assert share > 0.1, "docs/evaluation.md says that they differ"
    assert max(found) < 1e-5


@pytest.mark.long
def test_a_small_model_s_do_not(tmp_path: Path) -> None:
    together, _, alone = drawn(tmp_path, width=128, layers=5)
    assert together == alone
