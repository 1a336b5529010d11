#!/usr/bin/env bash
# alpaca-eval 0.6.6 with pandas 2.2.3 (of the time when it came out): which of two outputs a judge sees first is drawn
# by the instruction and a seed. `PairwiseAnnotator`, which `evaluate` uses, has the seed 0 by default; the classes that
# it makes for that, `SinglePairwiseAnnotator` and `RandomSwitchTwoColumnsProcessor`, have 123. So whoever makes one of
# these by itself (to read a published annotation again, whose log-probs are of the order shown) has the wrong order of
# about half of the pairs, and the preference of these the wrong way round.
#
# Seen, of 1000 instructions, those whose order is that of PairwiseAnnotator(): "SinglePairwiseAnnotator(): 494",
# "SinglePairwiseAnnotator(seed=0): 1000", "RandomSwitchTwoColumnsProcessor(): 494", "PairwiseAnnotator(seed=123): 494".
# Exits with 1 where that has changed. Needs Python 3.11 and 1 GB; takes a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile --disable-pip-version-check 'alpaca-eval==0.6.6' 'scikit-learn==1.5.2' \
    'pandas==2.2.3' 'numpy==1.26.4' 'scipy==1.14.1' 'patsy==1.0.1' 'datasets==3.1.0' 'huggingface_hub==0.26.5' \
    'pyarrow==18.1.0' 'openai==1.57.1' 'setuptools==75.6.0'
export HF_HUB_OFFLINE=1 HF_HOME="$folder/huggingface"
cd "$folder" && venv/bin/python -W ignore - <<'PYTHON'
import logging
import sys

import alpaca_eval
import pandas as pd
from alpaca_eval.annotators import PairwiseAnnotator
from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator
from alpaca_eval.processors import RandomSwitchTwoColumnsProcessor
from alpaca_eval.utils import load_configs

print("alpaca-eval", alpaca_eval.__version__, "pandas", pd.__version__)
logging.getLogger().setLevel(logging.ERROR)
judge, outputs = "weighted_alpaca_eval_gpt4_turbo", ("output_1", "output_2")
pairs = pd.DataFrame({"instruction": [f"instruction {i}" for i in range(1000)], "output_1": "one", "output_2": "other"})


def switch_of(annotator):
    [switch] = [each for each in annotator.processors if isinstance(each, RandomSwitchTwoColumnsProcessor)]
    return switch


def pool(**options):
    return PairwiseAnnotator(annotators_config=judge, caching_path=None, **options)


def single(**options):
    return SinglePairwiseAnnotator(**load_configs(pool().annotators_config)[judge], **options)


shown = switch_of(pool().annotators[judge]).preprocess(pairs)["output_1"]
switches = {
    "SinglePairwiseAnnotator()": switch_of(single()),
    "SinglePairwiseAnnotator(seed=0)": switch_of(single(seed=0)),
    "RandomSwitchTwoColumnsProcessor()": RandomSwitchTwoColumnsProcessor(
        outputs, random_seed_columns=["instruction"], _switch_column="is_switched_outputs"
    ),
    "PairwiseAnnotator(seed=123)": switch_of(pool(seed=123).annotators[judge]),
}
found = {name: int((switch.preprocess(pairs)["output_1"] == shown).sum()) for name, switch in switches.items()}
for name, same in found.items():
    print(f"{name}: {same}")
sys.exit(0 if list(found.values()) == [494, 1000, 494, 494] else "not what was seen: has it changed?")
PYTHON
