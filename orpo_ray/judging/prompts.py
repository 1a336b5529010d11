"""The prompt of a judge: this project's own wording, or a file, filled in with a conversation.

Three kinds of file are read: YAML with `system` and `user` in Jinja, whose variables are `turns` (each with `question`,
`reference`, and `first` and `second`, or `answer`) and `labels`; AlpacaEval's `.txt` in ChatML, with `{instruction}`,
`{output_1}` and `{output_2}`; and FastChat's `judge_prompts.jsonl`, with a prompt for each number of turns, with and
without a reference answer. Text of others is put in as it is: nothing in it is a template.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orpo_ray.config.judges import JudgingConfig
from orpo_ray.config.paths import expanded
from orpo_ray.data.records import one_line
from orpo_ray.data.templates import RENDER_SECONDS
from orpo_ray.data.time_limit import TimeOut, limited
from orpo_ray.errors import UserError
from orpo_ray.judging.asking import Asked, Reads
from orpo_ray.parsing import member, read_lines, read_text

_OWN = Path(__file__).parent / "wording"
_HOLE = re.compile(r"\{(\w+)\}")
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_WRITES = {"pairs": "[[A]]", "rates": "[[rating]]"}  # of FastChat's prompts, those that are read here


class Turn(NamedTuple):
    """One turn of a conversation, as a judge is shown it."""

    question: str
    answers: tuple[str, ...]
    """The one that is shown first, and the other; or the one that is rated."""
    reference: str | None = None


Fill = Callable[[Sequence[Turn]], tuple[str, str]]
"""System and user text for a conversation."""


class JudgePrompt:
    """Makes of a conversation what judges are asked."""

    def __init__(self, config: JudgingConfig, turns: int = 1) -> None:
        """`turns`: of a conversation at most. Raises `UserError`, naming the file, where `config.prompt` cannot be read
        or does not fit `config`, such as one that does not show what is to be judged."""
        pairs = config.compares == "pairs"
        by_labels = pairs and config.reads == "labels"
        self.reads: Reads = "labels" if by_labels else "preference" if pairs else "rating"
        self._labels = config.labels if by_labels else None
        self.path = expanded(config.prompt) if config.prompt else _OWN / _own_name(config)
        text = read_text(self.path)
        self.digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        """Of the file."""
        if self.path.suffix == ".jsonl":
            self._fill = _of_fastchat(self.path, config.compares)
        elif self.path.suffix in (".yaml", ".yml"):
            self._fill = _of_yaml(self.path, text, config.labels)
        else:
            self._fill = _of_alpaca_eval(self.path, text, pairs=pairs)
        for reference in (None, "qzwreferencezwq") if config.references else (None,):
            for count in range(1, turns + 1):
                self._try_it(pairs, count, reference)

    @property
    def name(self) -> str:
        """As it is named beside numbers."""
        return f"orpo_ray: {self.path.stem}" if self.path.parent == _OWN else self.path.name

    def asked(self, turns: Sequence[Turn], repeat: int = 0) -> Asked:
        """What a judge is asked about the last of `turns`. Raises `UserError` where the prompt does not fit them."""
        system, user = self._fill(turns)
        return Asked(system, user, self.reads, self._labels, repeat)

    def _try_it(self, pairs: bool, count: int, reference: str | None) -> None:
        """Raises `UserError` where a judge of the last of `count` turns is shown less than it is to judge."""
        before = Turn("before", ("before",) * (1 + pairs), reference and "before")
        last = Turn("qzwquestionzwq", ("qzwfirstzwq", "qzwsecondzwq")[: 1 + pairs], reference)
        shown = "".join(self._fill([before] * (count - 1) + [last]))
        answers = ("the answer shown first", "the other") if pairs else ("the answer",)
        wanted = {"the question": last.question, **dict(zip(answers, last.answers, strict=True))}
        if reference is not None:
            wanted["the reference answer (judging.references)"] = reference
        missing = [what for what, text in wanted.items() if text not in shown]
        if missing:
            turn = f" of turn {count}" if count > 1 else ""
            raise UserError(f"{self.path}: the judge's prompt does not show {missing[0]}{turn}")


def _own_name(config: JudgingConfig) -> str:
    return "rates.yaml" if config.compares == "rates" else f"pairs-{config.reads}.yaml"


def _of_yaml(path: Path, text: str, labels: tuple[str, str]) -> Fill:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        found = yaml.safe_load(text)
        if not isinstance(found, dict) or found.keys() - {"system", "user"}:
            raise ValueError("expected the keys system and user alone")
        system, user = member({"system": "", **found}, "system", str), member(found, "user", str)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    # A template is a program of others: no attribute leads out of the sandbox.
    jinja = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        templates = [jinja.from_string(each) for each in (system, user)]
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{path}: line {error.lineno} of a text: {error.message}") from None
    except RecursionError:
        raise UserError(f"{path}: the template is nested too deep") from None

    def fill(turns: Sequence[Turn]) -> tuple[str, str]:
        shown = [
            {"question": turn.question, "reference": turn.reference}
            | dict(zip(("first", "second") if len(turn.answers) == 2 else ("answer",), turn.answers, strict=True))
            for turn in turns
        ]
        try:
            with limited(RENDER_SECONDS):
                first, second = (template.render(turns=shown, labels=labels) for template in templates)
        except TimeOut:
            raise UserError(f"{path}: takes over {RENDER_SECONDS} seconds to fill in") from None
        except (RecursionError, MemoryError) as error:
            raise UserError(f"{path}: the template cannot be filled in: {type(error).__name__}") from None
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path}: the template cannot be filled in: {one_line(error)}") from None
        return first, second

    return fill


def _of_alpaca_eval(path: Path, text: str, *, pairs: bool) -> Fill:
    if not pairs:
        raise UserError(f"{path}: a judge's prompt for single answers is YAML or FastChat's judge_prompts.jsonl")
    spoken = {role: content.strip() for role, content in _CHATML.findall(text)}
    if spoken.keys() - {"system", "user"}:
        raise UserError(f"{path}: a judge's prompt has a system and a user message alone")
    system, user = spoken.get("system", ""), spoken.get("user", text.strip())

    def fill(turns: Sequence[Turn]) -> tuple[str, str]:
        if len(turns) > 1:
            raise UserError(f"{path}: AlpacaEval's prompts show one turn, and the conversation has {len(turns)}")
        question, (first, second), _ = turns[0]
        values = {"instruction": question, "output_1": first, "output_2": second}
        return _filled(path, system, values, strict=False), _filled(path, user, values, strict=False)

    return fill


def _of_fastchat(path: Path, compares: str) -> Fill:
    """By whether they show a reference and a second question, as the names of their own say."""
    prompts: dict[tuple[int, bool], dict[str, Any]] = {}
    for number, line in read_lines(path).items():
        try:
            template = member(line, "prompt_template", str)
            member(line, "system_prompt", str)
            if member(line, "output_format", str) == _WRITES[compares]:
                prompts.setdefault((2 if "{question_2}" in template else 1, "{ref_answer_1}" in template), line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if (1, False) not in prompts:
        raise UserError(f"{path}: holds no prompt that {_WHAT[compares]} and asks for {_WRITES[compares]}")

    def fill(turns: Sequence[Turn]) -> tuple[str, str]:
        with_reference = all(turn.reference is not None for turn in turns)
        found = prompts.get((len(turns), with_reference), prompts.get((len(turns), False)))
        if found is None:
            raise UserError(f"{path}: holds no prompt for {len(turns)} turns")
        values: dict[str, str] = {}
        sides = ("answer_a", "answer_b") if compares == "pairs" else ("answer",)
        for number, turn in enumerate(turns, start=1):
            values[f"question_{number}"] = turn.question
            values[f"ref_answer_{number}"] = turn.reference or ""
            values |= {f"{side}_{number}": text for side, text in zip(sides, turn.answers, strict=True)}
        values["question"] = turns[0].question
        values |= dict(zip(sides, turns[0].answers, strict=True))
        return found["system_prompt"], _filled(path, found["prompt_template"], values, strict=True)

    return fill


_WHAT = {"pairs": "compares two answers", "rates": "rates one answer"}


def _filled(path: Path, template: str, values: Mapping[str, str], *, strict: bool) -> str:
    """`template` with each `{name}` of `values` put in. `strict`: another name is an error, and not text."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values and strict:
            raise UserError(f"{path}: the judge's prompt wants {match[0]}, which is not known")
        return values.get(match[1], match[0])

    return _HOLE.sub(value, template)
