"""A figure of the paper remade: its picture for the page and as files, what it says, and what becomes of its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from orpo_ray.atomic import new_file
from orpo_ray.errors import UserError
from orpo_ray.paper.figure_drawing import Drawing
from orpo_ray.paper.verdicts import Claim, Verdict, Word, overall


@dataclass(frozen=True)
class Figure:
    name: str
    """Of its files, such as `figure-7`."""
    title: str
    caption: str
    """What is drawn, where our curves and the paper's begin and end, and what is missing."""
    drawing: Drawing | None
    claims: tuple[Claim, ...] = ()
    verdict: Verdict | None = None
    """Of all claims; None where the paper says nothing that ours could be held against."""
    missing: str = ""
    """What could not be drawn, and why; empty where nothing is missing."""

    @cached_property
    def svg(self) -> Markup | None:
        """For the page."""
        return None if self.drawing is None else self.drawing.svg(f"{self.title}. {self.caption}")

    def write(self, folder: Path) -> list[Path]:
        """`name.svg` and `name.png`, white and readable without the page, the same bytes whenever they are drawn; none
        where there is nothing to draw. Raises `UserError` where they cannot be written."""
        kinds: tuple[Literal["svg", "png"], ...] = ("svg", "png")
        files = [folder / f"{self.name}.{kind}" for kind in kinds]
        try:
            for kind, file in zip(kinds, files, strict=True):
                if self.drawing is None:
                    file.unlink(missing_ok=True)  # of an earlier configuration
                    continue
                with new_file(file) as new:
                    new.write_bytes(self.drawing.file(kind))
        except OSError as error:
            raise UserError(f"{folder}: figures cannot be written: {error.strerror or error}") from None
        return files if self.drawing is not None else []


def made(name: str, title: str, caption: str, drawing: Drawing | None, claims: Sequence[Claim], missing: str) -> Figure:
    """What is missing stands in the caption too, and where nothing is drawn it is all of the verdict."""
    lacking = f" Missing: {missing}." if missing and drawing else f" Not drawn: {missing}." if missing else ""
    verdict = overall(claims) if claims else None
    return Figure(name, title, " ".join(f"{caption}{lacking}".split()), drawing, tuple(claims), verdict, missing)


def not_run(why: str) -> Claim:
    return Claim("", Verdict(Word.NOT_RUN, why))


def listed(missing: Mapping[str, str]) -> str:
    """Each reason once, behind whose it is."""
    by_reason: dict[str, list[str]] = {}
    for label, why in missing.items():
        if why:
            by_reason.setdefault(why, []).append(label)
    return "; ".join(f"{', '.join(labels)}: {why}" for why, labels in by_reason.items())
