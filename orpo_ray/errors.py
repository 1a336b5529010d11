"""The errors that are the user's to mend, and what is told of others."""

import re

from orpo_ray.masking import masked

_OF_MEMORY = re.compile(r"low on memory\. Memory on the node \(IP: ([^,]+),.*?\) was ([\d.]+)GB used / ([\d.]+)GB")
"""In what Ray says of a process that its memory monitor has ended, before a page of advice."""


class UserError(Exception):
    """A mistake in a configuration, a data file or a command, said in one plain line.

    The message names the file, the key or the record, and the next step where there is one. The command
    line prints it without a traceback and exits with 2; anything else that escapes exits with 1. Credentials
    of URLs are masked in it: messages end up in logs and in run folders.
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class Diverged(UserError):
    """Training lost its way: the loss or its gradient is no number any more. So its settings are at fault."""


def last_line(error: BaseException) -> str:
    """Of what an error says, such as a traceback that came from a worker, the line that says what went wrong."""
    return last_line_of(str(error)) or type(error).__name__


def last_line_of(text: str) -> str:
    """See `last_line`; empty where `text` says nothing."""
    return want_of_memory(text) or next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def want_of_memory(text: str) -> str:
    """What an error of Ray says of a process that its memory monitor has ended, in a line; empty: it is another."""
    if found := _OF_MEMORY.search(text):
        node, used, most = found.groups()
        return f"Ray has ended it, as its node ({node}) was low on memory: {used} of {most} GB were in use"
    return ""
