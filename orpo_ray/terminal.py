"""rich's console, as all of the package prints by it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Span, Text

from orpo_ray.visible import LAYOUT, visible


class Console(rich.console.Console):
    """A console for text of others: nothing in it is markup or the name of an emoji, or is obeyed by a terminal.

    rich's own codes, such as colours and the cursor of a progress bar, are no text to it.
    """

    def __init__(self, **options: Any) -> None:
        """`options`: rich's."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def say(self, text: str) -> None:
        """Print one line, however long it is and whatever line ends are in it."""
        self.print(visible(text), soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Before rich drops some of the control characters, so that all are shown."""
        return super().render_str(visible(text, LAYOUT), **options)

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Where everything that is shown comes by, whatever it is made of; texts before they are laid out."""
        renderable = _written_out(renderable) if isinstance(renderable, Text) else renderable
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, LAYOUT))


def _written_out(text: Text) -> Text:
    """`text` with what a terminal would obey written out, in the same styles."""
    shown = [visible(character, LAYOUT) for character in text.plain]
    at = [0, *accumulate(map(len, shown))]
    found = text.blank_copy("".join(shown))
    found.spans = [Span(at[span.start], at[min(span.end, len(shown))], span.style) for span in text.spans]
    return found
