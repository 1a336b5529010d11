"""What commands have in common: their arguments, and paragraphs of their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_CODES = """\
\b
Exit codes:
  0    done
  2    your mistake (command, configuration or data), told in one line
  1    anything else, with its traceback
  130  stopped by Ctrl-C or SIGTERM
"""

OVERRIDES = """\
An override is a dotted key and a YAML value and wins over the file: optim.lr=1e-5, data.eval=null,
'objective={name: sft}'. An unknown key is refused with the nearest valid one.
"""

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; configs/ has ready ones.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as optim.lr=1e-5.")
]
