"""What judges have said, in the places of the answers: as a table, and as arrays for statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orpo_ray.judging.places import Answered, Place
from orpo_ray.judging.verdict import Judgement, Verdict

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_JUDGEMENTS = pa.schema(
    [("judge", pa.string()), ("prompt", pa.int64()), ("round", pa.int64()), ("turn", pa.int64()),
     ("model", pa.string()), ("against", pa.string()), ("shown_first", pa.bool_()), ("repeat", pa.int64()),
     ("probability", pa.float64()), ("rating", pa.float64()), ("words", pa.string())]
)  # fmt: skip
TABLE = 2
"""Of `verdicts.parquet`: raised by one whenever the same verdicts would be other rows; 1 counted turns from 0."""
_WORDS_TOLD = 60


@dataclass(frozen=True)
class Counts:
    """Of one judge."""

    asked: int
    """Judgements that were asked for, each in its place."""
    same: int
    """Pairs of answers that are the same: ties without asking."""
    unreadable: int
    """Of those asked for, such as say neither what is better nor how good it is."""
    too_long: int
    """Of those asked for, such as the judge's context had no room for, so that it said nothing."""
    refused: int
    """Of those asked for, such as the judge's server would not answer, as when they are too long for it."""
    prompt_tokens: int
    tokens: int
    """Of prompts and of answers, of each verdict once, as far as the judge told."""
    served_by: dict[str, int]
    """Verdicts by the model that a server says has answered."""
    elsewhere: dict[str, int]
    """Verdicts by the address of a server at which they were given, where that is not the judge's address now."""


@dataclass(frozen=True)
class Judged:
    """All judgements, by judge, models, prompt, round, turn, order and repeat."""

    judgements: list[Judgement]
    counts: dict[str, Counts]
    """By judge."""
    shape: tuple[int, int, int, int]
    """Prompts, rounds, turns, repeats."""
    answered: Answered
    """What was judged."""

    def characters(self, model: str) -> Floats:
        """Of each answer of a model, as judges are shown it: `(prompts, rounds, turns)`, NaN where there is none. One
        that is there once, such as from a file, stands in every round."""
        found = np.full(self.shape[:3], np.nan)
        for prompt, rounds in enumerate(self.answered.answers[model]):
            for round in range(self.shape[1] if len(rounds) == 1 else len(rounds)):
                answers = rounds[round if len(rounds) > 1 else 0] or []
                found[prompt, round, : len(answers)] = [len(text) for text in answers[: self.shape[2]]]
        return found

    def of_pair(self, judge: str, model: str, against: str, turn: int = 1) -> tuple[Floats, Flags, Flags]:
        """That the answer shown FIRST is better, whether a verdict was asked for, and whether the judge said nothing of
        it: all `(prompts, rounds, 2, repeats)`.

        Of the third axis 0 is `model` shown first, 1 is `against`. NaN: not asked, unjudged, or unreadable. Answers
        that are the same are 0.5 in the place of the first, and not asked.
        """
        prompts, rounds, _, repeats = self.shape
        first = np.full((prompts, rounds, 2, repeats), np.nan)
        asked, unjudged = np.zeros(first.shape, bool), np.zeros(first.shape, bool)
        for each in self.judgements:
            if each.judge != judge or each.turn != turn or {each.model, each.against} != {model, against}:
                continue
            shown = each.shown_first is not False  # of its `model`
            place = (each.prompt, each.round, int(shown != (each.model == model)), each.repeat)
            if each.probability is not None:
                first[place] = each.probability if shown else 1 - each.probability
            asked[place], unjudged[place] = each.shown_first is not None, each.unjudged
        return first, asked, unjudged

    def ratings(self, judge: str, model: str) -> tuple[Floats, Flags, Flags]:
        """Ratings, whether one was asked for, and whether the judge said nothing of it: all
        `(prompts, rounds, turns, repeats)`. NaN: none."""
        ratings = np.full(self.shape, np.nan)
        asked, unjudged = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        for each in self.judgements:
            if each.judge == judge and each.model == model and each.against is None:
                place = (each.prompt, each.round, each.turn - 1, each.repeat)
                ratings[place] = np.nan if each.rating is None else each.rating
                asked[place], unjudged[place] = True, each.unjudged
        return ratings, asked, unjudged

    def table(self) -> pa.Table:
        """A row for each judgement."""
        return pa.Table.from_pylist([asdict(each) for each in self.judgements], _JUDGEMENTS)

    def notes(self, question_ids: Sequence[str | None] = ()) -> list[str]:
        """What a reader of the numbers must know. `question_ids`: of the prompts, where they have any."""
        notes = []
        for judge, counts in self.counts.items():
            if counts.unreadable:
                first = next(each for each in self.judgements if each.judge == judge and _unreadable(each))
                notes.append(
                    f"{counts.unreadable} of {counts.asked} verdicts of the judge {judge} cannot be read (the first: "
                    f"{self._place(first, question_ids)}: {_told(first)!r}); they count in none of its numbers."
                )
            if len(counts.served_by) > 1:
                models = ", ".join(f"{model} {count}" for model, count in counts.served_by.items())
                notes.append(f"The server of the judge {judge} answered by several models ({models}).")
            if counts.refused:
                first = next(each for each in self.judgements if each.judge == judge and each.words and each.unjudged)
                notes.append(
                    f"{counts.refused} of {counts.asked} verdicts were refused by the server of the judge {judge} (the "
                    f"first: {self._place(first, question_ids)}: {_told(first)!r}); they count in none of its numbers."
                )
            if counts.elsewhere:
                places = ", ".join(f"{count} at {address}" for address, count in counts.elsewhere.items())
                notes.append(
                    f"Verdicts of the judge {judge} were given at other addresses than its base_url ({places}): they "
                    "are found by the model's name, on the word of its servers."
                )
            if counts.too_long:
                notes.append(
                    f"{counts.too_long} of {counts.asked} judgements are too long for the judge {judge}, and count in "
                    "none of its numbers."
                )
        return notes

    def _place(self, judgement: Judgement, question_ids: Sequence[str | None]) -> str:
        """As its reader finds it again; without a `question_id` by its number in `prompts.parquet`."""
        known_by = dict(enumerate(question_ids)).get(judgement.prompt)
        prompt = f"prompt {judgement.prompt}" if known_by is None else f"question_id {known_by}"
        turn = f", turn {judgement.turn}" if self.shape[2] > 1 else ""
        return f"{prompt}{turn}, {_of(judgement)}"


def judged(
    found: Sequence[tuple[Place, bool]],
    verdicts: Mapping[str, Sequence[Verdict | None]],
    answered: Answered,
    repeats: int,
    servers: Mapping[str, str] = MappingProxyType({}),
) -> Judged:
    """`found`: all places, and whether the answers there are the same; `verdicts`: of each judge one for each place,
    None where it was not asked; `servers`: where judges are asked now, by judge."""
    judgements = [
        _judgement(label, place, same, verdict)
        for label, given in verdicts.items()
        for (place, same), verdict in zip(found, given, strict=True)
    ]
    counts = {}
    for label, given in verdicts.items():
        asked = [verdict for (_, same), verdict in zip(found, given, strict=True) if not same]
        once = {verdict.key: verdict for verdict in asked if verdict is not None}
        counts[label] = Counts(
            asked=len(asked),
            same=len(found) - len(asked),
            unreadable=sum(verdict is not None and not verdict.readable and not verdict.refused for verdict in asked),
            refused=sum(verdict is not None and verdict.refused for verdict in asked),
            too_long=sum(verdict is None for verdict in asked),
            prompt_tokens=sum(verdict.prompt_tokens or 0 for verdict in once.values()),
            tokens=sum(verdict.tokens or 0 for verdict in once.values()),
            served_by=_counted(verdict.served_by for verdict in once.values()),
            elsewhere=_counted(
                verdict.server if verdict.server != servers.get(label) else None for verdict in once.values()
            ),
        )
    return Judged(judgements, counts, (len(answered.questions), answered.rounds, answered.turns, repeats), answered)


def _counted(names: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(name for name in names if name).items()))


def _judgement(label: str, place: Place, same: bool, verdict: Verdict | None) -> Judgement:
    said = verdict or Verdict("", 0.5 if same else None, None, "")
    probability = said.probability
    if probability is not None and place.shown_first is False:
        probability = 1 - probability
    return Judgement(
        judge=label, prompt=place.prompt, round=place.round, turn=place.turn, model=place.model, against=place.against,
        shown_first=place.shown_first, repeat=place.repeat, probability=probability, rating=said.rating,
        words=None if verdict is None else verdict.words,
    )  # fmt: skip


def _unreadable(judgement: Judgement) -> bool:
    return judgement.words is not None and not judgement.readable and not judgement.unjudged


def _told(judgement: Judgement) -> str:
    return " ".join((judgement.words or "").split())[:_WORDS_TOLD]


def _of(judgement: Judgement) -> str:
    return judgement.model if judgement.against is None else f"{judgement.model} against {judgement.against}"
