#!/usr/bin/env bash
# datasets 5.2.0: a column of JSON Lines whose records hold text in one place and a list in another becomes the type
# `Json`, and each of its texts that is itself valid JSON is read as what it says. Preference data are such: an answer
# "42" beside one that is a list of messages comes back as the number 42, "null" as nothing, and a quoted word without
# its quotation marks. Where all values are text, the same texts come back as they were.
#
# Seen: "mixed: [[{'role': 'assistant', 'content': 'a'}], 42, None, 'quoted', 'plain words']", "texts alone: ['42',
# 'null', '\"quoted\"', 'plain words']".
# Exits with 1 where that has changed. Needs Python 3.11 and 1 GB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check 'datasets==5.2.0' 'pyarrow==26.0.1'
export HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$folder/cache"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets

datasets.disable_progress_bars()
texts = ["42", "null", '"quoted"', "plain words"]
folder = Path(sys.argv[1])


def read(name, values):
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"chosen": value}) + "\n" for value in values))
    found = datasets.load_dataset("json", data_files=str(file), split="train")["chosen"]
    print(f"{name.replace('_', ' ')}: {list(found)}")
    return list(found)


print("datasets", datasets.__version__)
message = [{"role": "assistant", "content": "a"}]
mixed, alone = read("mixed", [message, *texts]), read("texts_alone", texts)
expected = [message, 42, None, "quoted", "plain words"]
sys.exit(0 if (mixed, alone) == (expected, texts) else "not what was seen: has it changed?")
PYTHON
