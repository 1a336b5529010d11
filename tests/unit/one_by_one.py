"""Commands after each other in one process, as a person types them, but for what is imported once for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# Between two commands it says on both streams that one is over, and with which code.
_SCRIPT = """
import json, sys
from orpo_ray.cli import main

for arguments in json.loads(sys.argv[1]):
    code = None
    try:
        main(arguments)
    except SystemExit as ended:
        code = ended.code
    print(f"== {code or 0}", flush=True)
    print("==", file=sys.stderr, flush=True)
"""


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def typed(*commands: list[str], cwd: Path) -> list[Done]:
    """What came of each of `commands`, which are the arguments of `orpo-ray`."""
    process = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(commands)],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    found, said = [], ""
    *errors, rest = process.stderr.split("==\n")
    assert rest == "", "the end of the process says nothing"
    for line in process.stdout.splitlines(keepends=True):
        if line.startswith("== "):
            found.append(Done(int(line[3:]), said, errors[len(found)]))
            said = ""
        else:
            said += line
    assert (said, len(found)) == ("", len(commands))
    return found
