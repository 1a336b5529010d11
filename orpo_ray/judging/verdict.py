"""What a judge said in one call."""

from __future__ import annotations

from dataclasses import dataclass

REFUSED = "[refused by the server: "
"""How what is kept in place of words begins where a server would not answer, with its reason behind."""


@dataclass(frozen=True)
class Verdict:
    """One call's answer, as it is kept. One of which nothing could be read has neither probability nor rating."""

    key: str
    """A hash of all that decides the answer: judge, what it was asked, sampling, and the number of the repeat."""
    probability: float | None
    """Of two answers, that the one shown FIRST is better: in [0, 1] by labels; 0, 0.5 or 1 by text."""
    rating: float | None
    """Of a single answer."""
    words: str
    """What the judge wrote, as it wrote it."""
    prompt_tokens: int | None = None
    """As the judge counts them; None: it did not say."""
    tokens: int | None = None
    """Of its answer."""
    served_by: str | None = None
    """The model that a server says has answered: more than a name that stands for one version after another."""
    server: str | None = None
    """The address at which it was asked, which is no part of `key`; None of a local judge."""

    @property
    def readable(self) -> bool:
        return self.probability is not None or self.rating is not None

    @property
    def refused(self) -> bool:
        return not self.readable and self.words.startswith(REFUSED)


@dataclass(frozen=True)
class Judgement:
    """A verdict in its place: on which answers it was, whose they are, and which was shown first."""

    judge: str
    prompt: int
    round: int
    turn: int
    """Of the conversation, from 1; the turns before it are in the judge's view."""
    model: str
    against: str | None
    """None: the judge saw one answer alone."""
    shown_first: bool | None
    """Whether `model`'s answer was; None where nothing was asked, or of one answer."""
    repeat: int
    probability: float | None
    """That `model`'s answer is better than that of `against`."""
    rating: float | None
    words: str | None
    """Of the judge; None: it was not asked, since both answers are the same (a tie) or too long for its context."""

    @property
    def readable(self) -> bool:
        return self.probability is not None or self.rating is not None

    @property
    def unjudged(self) -> bool:
        """Whether the judge said nothing: its context had no room, or its server refused the call."""
        return not self.readable and (self.words is None or self.words.startswith(REFUSED))
