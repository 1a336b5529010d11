"""Shapes of preference records: recognised by content, and read into a prompt and answers that are rated.

`shapes.py` is the table of them all; `docs/data.md` shows it. `reader.py` reads the records of one source.
"""

from orpo_ray.data.formats.comparison import Answer, Comparison, NoPreference, PreferencePair, require_short
from orpo_ray.data.formats.messages import Message, Tools, Turns
from orpo_ray.data.formats.reader import RecordReader

__all__ = [
    "Answer",
    "Comparison",
    "Message",
    "NoPreference",
    "PreferencePair",
    "RecordReader",
    "Tools",
    "Turns",
    "require_short",
]
