"""Text of others is shown on a terminal, not obeyed.

A name, an event or a path may hold escape sequences that move the cursor, rewrite what stands there or fill the
clipboard, the C1 codes that do the same in one character, line ends that forge a line, and marks that show a text in
another order than it has.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from typing import Any

from orpo_ray.masking import masked

LAYOUT = "\n\t"
"""What text of our own is laid out by."""

# C0, DEL and C1; marks, embeddings, overrides and isolates of direction; line and paragraph separators; bytes of a path
# that are no UTF-8, which Python keeps as surrogates and in some locales writes out as they were.
_OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, keep: str = "") -> str:
    r"""`text` with what a terminal would obey written out, as `\x1b` or `\u202e`, but for the characters of `keep`."""
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def say(text: object, *, error: bool = False) -> None:
    """One line on stdout, or on stderr; all that is printed goes through here or through `terminal.Console`."""
    print(visible(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def tell_of_a_bug(error: Exception) -> int:
    """The traceback on stderr, since a message may quote what was read; returns the process's exit code."""
    sys.stderr.write(visible(masked("".join(traceback.format_exception(error))), LAYOUT))
    return 1


def have_libraries_do_so() -> None:
    """From now on what libraries of this process warn of and log is shown, not obeyed, too; secrets in it are masked,
    such as in the address that could not be read."""
    plain = warnings.formatwarning

    def shown(*warning: Any, **more: Any) -> str:
        return visible(masked(plain(*warning, **more)), LAYOUT)

    warnings.formatwarning = shown
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(masked(super().getMessage()), LAYOUT)
