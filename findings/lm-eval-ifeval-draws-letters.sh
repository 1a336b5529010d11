#!/usr/bin/env bash
# lm-eval 0.4.13: two of IFEval's 541 published prompts ask for a character that is no letter (key 1122 for four `#`, key
# 1129 for six `!`), and its checker of `keywords:letter_frequency`, like the original one, puts a letter drawn from
# Python's generator in the character's place, once for the strict number and once more for the loose one. So a response
# that does what the prompt asks is judged by whether it happens to have four of some letter: the same text is followed
# in one process and not in another, and may be followed strictly and not loosely. (Seeding langdetect, the other known
# source of chance, changes nothing here.) And a response of a thousand opening brackets, as a model writes that repeats
# itself, ends the whole run with a RecursionError where JSON is asked for: json_format catches ValueError alone.
#
# Seen: "four hashtags, of 50 judgements: strict and loose 2, strict alone 10, loose alone 8, neither 30" (numbers
# vary; key 1122's instruction alone), "brackets: RecursionError".
# Exits with 1 where that has changed. Needs Python 3.11 and 1 GB; takes a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile --disable-pip-version-check 'lm-eval[ifeval]==0.4.13' 'langdetect==1.0.9' 'nltk==3.10.4'
# It downloads a model of sentences as it is imported, unless this folder is there; what is shown here needs none.
mkdir -p "$folder/nltk/tokenizers/punkt_tab"
export NLTK_DATA="$folder/nltk" HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from collections import Counter
from importlib.metadata import version

import langdetect
from lm_eval.tasks.ifeval.utils import process_results

langdetect.DetectorFactory.seed = 0
print("lm-eval", version("lm-eval"))
hashtags = {
    "key": 1122, "prompt": "Include at least 4 hashtags, starting with '#'",
    "instruction_id_list": ["keywords:letter_frequency"],
    "kwargs": [{"let_relation": "at least", "letter": "#", "let_frequency": 4}],
}
found = Counter()
for _ in range(50):
    result = process_results(hashtags, ["sunset over the sea and the sand is still warm #sunset #beach #holiday #sand"])
    found[result["prompt_level_strict_acc"], result["prompt_level_loose_acc"]] += 1
print(
    f"four hashtags, of 50 judgements: strict and loose {found[True, True]}, strict alone {found[True, False]}, "
    f"loose alone {found[False, True]}, neither {found[False, False]}"
)
as_json = {"key": 0, "prompt": "", "instruction_id_list": ["detectable_format:json_format"], "kwargs": [{}]}
try:
    process_results(as_json, ["[" * 1000])
    ended = "judged"
except RecursionError:
    ended = "RecursionError"
print(f"brackets: {ended}")
sys.exit(0 if len(found) > 1 and ended == "RecursionError" else "not what was seen: has it changed?")
PYTHON
