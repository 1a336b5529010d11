#!/usr/bin/env bash
# transformers 5.19.0 (with huggingface_hub 2.4.0): MPT's attention dropout is declared as a whole number, and since
# configurations check their types, every fraction is refused, 0.0 too. A config.json that says `"attn_pdrop": 0.0`, as
# trainers write it, cannot be read any more; 0 can, and 1, which drops everything. Other architectures' dropouts
# (OPT, GPT-2) are fractions as ever, and so are MPT's own resid_pdrop and emb_pdrop.
#
# Seen: "mpt attn_pdrop=0: read", "mpt attn_pdrop=0.0: refused", "mpt attn_pdrop=0.1: refused", "mpt resid_pdrop=0.1: read",
# "gpt2 attn_pdrop=0.1: read". Exits with 1 where that has changed. Needs Python 3.11 and 200 MB; takes a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check 'transformers==5.19.0' 'huggingface_hub==2.4.0'
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import huggingface_hub
import transformers
from transformers import AutoConfig

print("transformers", transformers.__version__, "huggingface_hub", huggingface_hub.__version__)
cases = {
    "mpt attn_pdrop=0": {"model_type": "mpt", "attn_config": {"attn_pdrop": 0}},
    "mpt attn_pdrop=0.0": {"model_type": "mpt", "attn_config": {"attn_pdrop": 0.0}},
    "mpt attn_pdrop=0.1": {"model_type": "mpt", "attn_config": {"attn_pdrop": 0.1}},
    "mpt resid_pdrop=0.1": {"model_type": "mpt", "resid_pdrop": 0.1},
    "gpt2 attn_pdrop=0.1": {"model_type": "gpt2", "attn_pdrop": 0.1},
}
found = {}
for name, content in cases.items():
    file = Path(sys.argv[1]) / "config.json"
    file.write_text(json.dumps(content))
    try:
        AutoConfig.from_pretrained(file.parent)
        found[name] = "read"
    except Exception as error:  # of huggingface_hub: StrictDataclassFieldValidationError
        found[name] = "refused"
        last = str(error).strip().splitlines()[-1].strip()
    print(f"{name}: {found[name]}" + (f" ({last})" if found[name] == "refused" else ""))
sys.exit(list(found.values()) != ["read", "refused", "refused", "read", "read"])
PYTHON
