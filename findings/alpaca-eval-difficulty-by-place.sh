#!/usr/bin/env bash
# alpaca-eval 0.6.6 with scikit-learn 1.5.2 and pandas 2.2.3 (of the time when it came out): AlpacaEval 2's
# length-controlled win-rate looks the difficulty of an instruction up by a number, `index`. What `evaluate` makes has
# no such column, so the number is the row's place. Where the model has no output for an instruction, all that come
# after it are fitted with the difficulty of another one; `max_instances`, which shuffles before it cuts, gives nearly
# all rows a wrong one, even where it cuts nothing. Here the weight of difficulty goes to 0, and the number moves. It is
# said that outputs are fewer, and of difficulties nothing.
#
# The data are made up: 200 instructions with difficulties, put where huggingface_hub looks when it is offline; a model
# that wins where it is easy; verdicts that are read from `caching_path`, so that no judge is asked.
# Seen, the length-controlled win-rate and the weight of difficulty: "all outputs: 40.22, -1.26", "last one missing:
# 39.91, -1.27", "first one missing: 41.62, 0.01", "all outputs, max_instances of 200: 41.42, 0.0"; of the same rows,
# given to get_length_controlled_winrate with a column `index`: "first one missing, numbered: 40.36, -1.26",
# "max_instances of 200, numbered: 40.22, -1.26"; and "a warning says how many outputs: True", "a warning of difficulty
# or order: False". Exits with 1 where that has changed. Needs Python 3.11 and 1 GB; takes a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --no-compile --disable-pip-version-check 'alpaca-eval==0.6.6' 'scikit-learn==1.5.2' \
    'pandas==2.2.3' 'numpy==1.26.4' 'scipy==1.14.1' 'patsy==1.0.1' 'datasets==3.1.0' 'huggingface_hub==0.26.5' \
    'pyarrow==18.1.0' 'openai==1.57.1' 'setuptools==75.6.0'
export HF_HUB_OFFLINE=1 HF_HOME="$folder/huggingface" TQDM_DISABLE=1
cd "$folder" && venv/bin/python -W ignore - "$folder" <<'PYTHON'
import logging
import sys
from pathlib import Path

import alpaca_eval
import numpy as np
import pandas as pd
import sklearn
from alpaca_eval.metrics import get_length_controlled_winrate

print("alpaca-eval", alpaca_eval.__version__, "scikit-learn", sklearn.__version__, "pandas", pd.__version__)
folder, size, draw = Path(sys.argv[1]), 200, np.random.default_rng(0)
hard, judge = draw.exponential(size=size), "weighted_alpaca_eval_gpt4_turbo"

# The data set's rows of two gamed references, in the hub's folder of files that it has downloaded.
hub, commit = folder / "huggingface/hub/datasets--tatsu-lab--alpaca_eval", "0" * 40
(hub / "refs").mkdir(parents=True)
(hub / "refs/main").write_text(commit)
(hub / "snapshots" / commit).mkdir(parents=True)
pd.DataFrame([
    {
        "model": model, "index": i, "preference": draw.uniform(0.4, 0.6), "std_delta_len": sign * abs(draw.normal()),
        "instruction_difficulty": hard[i], "not_gamed_baseline": False,
    }
    for model, sign in (("verbose", -1), ("concise", 1)) for i in range(size)
]).to_csv(hub / "snapshots" / commit / "df_gamed.csv", index=False)

won = 1 / (1 + np.exp(3 * hard - 2)) > draw.uniform(size=size)
instructions = [f"instruction {i}" for i in range(size)]
texts = [[letter * length for length in draw.integers(100, 300, size)] for letter in "ab"]
reference, model = (
    pd.DataFrame({"instruction": instructions, "output": text, "generator": name})
    for name, text in zip(("reference", "mine"), texts)
)
verdicts = pd.DataFrame({
    "instruction": instructions, "output_1": texts[0], "output_2": texts[1],
    "annotator": judge, "preference": 1.0 + won,
})
verdicts.to_json(folder / "verdicts.json", orient="records")

said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().handlers = [handler]
found = {}


def note(name, number):
    [weights] = (folder / name / "length_controlled_v1").glob("*.csv")
    difficulty = pd.read_csv(weights)["instruction_difficulty"].item()
    found[name] = round(float(number), 2), round(difficulty, 2)
    print(f"{name}: {found[name][0]}, {found[name][1]}")


def evaluated(name, outputs, **options):
    board, rows = alpaca_eval.evaluate(
        outputs, reference, annotators_config=judge, output_path=None, precomputed_leaderboard=None,
        caching_path=folder / "verdicts.json", is_return_instead_of_print=True,
        metric_kwargs={"save_weights_dir": folder / name}, **options,
    )
    note(name, board.loc["mine", "length_controlled_winrate"])
    return rows


def numbered(name, rows):
    rows = pd.DataFrame(rows)
    rows["index"] = rows["instruction"].map(instructions.index)
    note(name, get_length_controlled_winrate(rows, save_weights_dir=folder / name)["length_controlled_winrate"])


evaluated("all outputs", model)
evaluated("last one missing", model[:-1])
without = evaluated("first one missing", model[1:])
shuffled = evaluated("all outputs, max_instances of 200", model, max_instances=size)
numbered("first one missing, numbered", without)
numbered("max_instances of 200, numbered", shuffled)
fewer = any("length of outputs" in message for message in said)
silent = not any(word in message for message in said for word in ("difficult", "order", "index"))
print(f"a warning says how many outputs: {fewer}")
print(f"a warning of difficulty or order: {not silent}")
misplaced = ["first one missing", "all outputs, max_instances of 200"]
whole, _ = found["all outputs"]
seen = all(
    abs(number - whole) > 1 and abs(weight) < 0.3 if name in misplaced else abs(number - whole) < 0.5 and weight < -1
    for name, (number, weight) in found.items()
)
sys.exit(0 if seen and fewer and silent else "not what was seen: has it changed?")
PYTHON
