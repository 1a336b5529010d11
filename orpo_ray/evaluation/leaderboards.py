"""A benchmark's own numbers of an evaluation, by way of the files that the benchmark itself has.

Answers and verdicts are written to `leaderboards/BENCHMARK/` as the benchmark's own tools read them, and its numbers
are made of these files by what `orpo-ray verdicts` calls: whoever has the folder can make them again. None of the three
knows of rounds, so each round is a set of files of its own.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orpo_ray.config import EvaluationConfig
from orpo_ray.config.paths import expanded
from orpo_ray.data.prompts import Prompt, readable
from orpo_ray.errors import UserError
from orpo_ray.evaluation.judged import Judged
from orpo_ray.evaluation.store import EvaluationFolder
from orpo_ray.judging.places import Answered
from orpo_ray.judging.verdict import Judgement
from orpo_ray.leaderboards.files import (
    Annotation,
    Judgment,
    Question,
    Response,
    of_round,
    write_annotations,
    write_judgments,
    write_questions,
    write_responses,
)
from orpo_ray.leaderboards.ifeval import Prompt as Instructed
from orpo_ray.leaderboards.ifeval import measure, prompt_of, require_checkers, write_prompts
from orpo_ray.leaderboards.length_controlled import read_difficulty
from orpo_ray.leaderboards.published import ranked, read_published
from orpo_ray.leaderboards.verdicts import Files, aggregate
from orpo_ray.statistics.judged_pairs import Verdicts, outcomes_of_verdicts

Row = dict[str, Any]

RANKED_BY = {
    "alpaca-eval-1": "win_rate",
    "alpaca-eval-2": "length_controlled_winrate",
    "mt-bench": "score",
    "ifeval": "prompt_strict",
}
"""The number that a leaderboard is in order of."""


def require_benchmarks(config: EvaluationConfig, prompts: Sequence[Prompt]) -> None:
    """Raises `UserError` where `prompts` are none of a benchmark's of `config.measures`, and where a file of
    `config.leaderboard` cannot be read, or does not have them: better before hours of generation."""
    for name in config.measures:
        _published(config, name)
        if name == "ifeval":
            asked = [readable(prompt.as_found.prompt) for prompt in prompts]
            _require_once(prompts, "prompt", asked)
            require_checkers(_instructed(prompts, asked))
        elif name == "mt-bench":
            _require_once(prompts, "question_id", [_question_id(prompt) for prompt in prompts])
        else:
            asked = [readable(prompt.as_found.prompt) for prompt in prompts]
            _require_once(prompts, "instruction", asked)
            if (difficulty := _difficulty(config, name)) is not None:
                read_difficulty(difficulty, None).of(asked)


class Leaderboards:
    """The numbers of `config.measures`.

    What was too long for a judge, or refused by its server, stands in no file: it has said nothing of it, which is
    another thing than a verdict that cannot be read. It is counted, `unjudged`, and said.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        folder: EvaluationFolder,
        prompts: Sequence[Prompt],
        answered: Answered,
        judged: Judged | None,
    ) -> None:
        self._config, self._prompts, self._answered = config, prompts, answered
        self._folder = folder.leaderboards
        self._judged = judged
        self._judgements = judged.judgements if judged else []

    def measured(self) -> dict[str, Row]:
        """By benchmark: `rows`, one for each model, round and judge, and `published` numbers.

        Raises `UserError` where the prompts are none of the benchmark's, or a file of `config.leaderboard` cannot be
        read.
        """
        makers: Mapping[str, Callable[[Path], list[Row]]] = {
            "alpaca-eval-1": lambda folder: self._alpaca_eval("alpaca-eval-1", folder),
            "alpaca-eval-2": lambda folder: self._alpaca_eval("alpaca-eval-2", folder),
            "mt-bench": self._mt_bench,
            "ifeval": self._ifeval,
        }
        found: dict[str, Row] = {}
        shutil.rmtree(self._folder, ignore_errors=True)  # of models and rounds that are no more
        for name in self._config.measures:
            rows = makers[name](self._folder / name)
            found[name] = {"ranked_by": RANKED_BY[name], "rows": rows, "published": _published(self._config, name)}
        return found

    def _alpaca_eval(self, name: str, folder: Path) -> list[Row]:
        """None of a model of which no verdict could be read, which the judge's notes say."""
        difficulty = _difficulty(self._config, name)
        rows = []
        for (judge, model, round), judgements in self._of_first_turn().items():
            path = folder / judge / f"{of_round(model, round)}.json"
            annotations = self._annotations(judge, model, judgements)
            write_annotations(path, annotations)
            if all(each.preference is None for each in annotations):
                continue
            files = Files(path, difficulty)
            long = len({each.prompt for each in judgements}) - len(annotations)
            rows += [_row(judge, round, row, long) for row in aggregate(name, files)["results"]]
        return rows

    def _of_first_turn(self) -> dict[tuple[str, str, int], list[Judgement]]:
        """What each judge said of each model against the reference, by round."""
        found: dict[tuple[str, str, int], list[Judgement]] = defaultdict(list)
        for each in self._judgements:
            if each.against is not None and each.turn == 1:
                found[each.judge, each.model, each.round].append(each)
        return found

    def _annotations(self, judge: str, model: str, judgements: Sequence[Judgement]) -> list[Annotation]:
        """Of each prompt one, of all its orders and repeats, as everywhere (see `outcomes_of_verdicts`), but for those
        without an outcome since an order was not judged."""
        against = judgements[0].against
        assert self._judged is not None and against is not None
        outcomes = outcomes_of_verdicts(Verdicts(*self._judged.of_pair(judge, model, against)))
        by_prompt: dict[int, list[Judgement]] = defaultdict(list)
        for each in judgements:
            by_prompt[each.prompt].append(each)
        found = []
        for number, own in sorted(by_prompt.items()):
            outcome = float(outcomes[number, own[0].round])
            if np.isnan(outcome) and any(each.unjudged for each in own):
                continue
            found.append(Annotation(
                instruction=self._answered.questions[number][0],
                output_1=self._text(against, number, own[0].round), output_2=self._text(model, number, own[0].round),
                preference=None if np.isnan(outcome) else 1 + outcome,
                generator_1=against, generator_2=model, annotator=judge,
                raw_completion=own[0].words,
            ))  # fmt: skip
        return found

    def _text(self, model: str, prompt: int, round: int) -> str:
        """An answer to the first turn; one that stands in every round is there once."""
        rounds = self._answered.answers[model][prompt]
        answer = rounds[round if len(rounds) > 1 else 0]
        assert answer is not None  # it was judged
        return answer[0]

    def _mt_bench(self, folder: Path) -> list[Row]:
        ids = [_question_id(prompt) for prompt in self._prompts]
        questions = folder / "question.jsonl"
        write_questions(questions, [
            Question(question_id=number, category=prompt.category, turns=tuple(turns))
            for number, prompt, turns in zip(ids, self._prompts, self._answered.questions, strict=True)
        ])  # fmt: skip
        by_judge: dict[tuple[str, int], list[Judgment]] = defaultdict(list)
        long: Counter[tuple[str, int, str]] = Counter()
        for each in self._judgements:
            if each.unjudged:
                long[each.judge, each.round, each.model] += 1
            elif each.against is None:
                by_judge[each.judge, each.round].append(Judgment(
                    question_id=ids[each.prompt], model=each.model, turn=each.turn, score=each.rating,
                    judgment=each.words, judge=each.judge, tstamp=float(each.repeat),
                ))  # fmt: skip
        rows = []
        for (judge, round), judgments in by_judge.items():
            path = folder / f"{of_round(judge, round)}_single.jsonl"
            write_judgments(path, judgments)
            found = aggregate("mt-bench", Files(path, prompts=questions))["results"]
            rows += [_row(judge, round, row, long[judge, round, row["model"]]) for row in found]
        return rows

    def _ifeval(self, folder: Path) -> list[Row]:
        prompts = _instructed(self._prompts, [questions[0] for questions in self._answered.questions])
        write_prompts(folder / "input_data.jsonl", prompts)
        rows = []
        for label, of_prompts in self._answered.answers.items():
            for round in range(max(map(len, of_prompts), default=0)):
                texts = [answers[round] if round < len(answers) else None for answers in of_prompts]
                responses = [
                    Response(prompt=prompt.text, response=text[0])
                    for prompt, text in zip(prompts, texts, strict=True)
                    if text
                ]
                path = folder / f"{of_round(label, round)}.jsonl"
                write_responses(path, responses)
                found = measure(responses, prompts, source=str(path)).to_json()
                rows.append({"model": label, "round": round, **found})
        return rows


def _row(judge: str, round: int, row: Row, unjudged: int) -> Row:
    """A row of `aggregate`; `unjudged`: of how much of it the judge said nothing."""
    said = [f"{unjudged} were too long for the judge, or refused by its server, and are left out"] if unjudged else []
    return {**row, "judge": judge, "round": round, "unjudged": unjudged, "remarks": [*row["remarks"], *said]}


def _published(config: EvaluationConfig, name: str) -> list[Row]:
    """Of `leaderboard.published`, highest first."""
    path, by = config.leaderboard.published, RANKED_BY[name]
    if path is None:
        return []
    entries = read_published(expanded(path), ("win_rate", by))
    return [asdict(entry) for entry in ranked(entries, by)]


def _difficulty(config: EvaluationConfig, name: str) -> Path | None:
    path = config.leaderboard.difficulty
    return None if path is None or name != "alpaca-eval-2" else expanded(path)


def _require_once(prompts: Sequence[Prompt], key: str, values: Sequence[int | str]) -> None:
    """Raises `UserError` where two prompts have the same: the benchmark's files have one place for both."""
    first: dict[int | str, str] = {}
    for prompt, value in zip(prompts, values, strict=True):
        if (before := first.setdefault(value, prompt.location)) != prompt.location:
            raise UserError(
                f"{prompt.location}: has the {key} {value!r:.80}, as {before} has; measures wants each once"
            )


def _instructed(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Instructed]:
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        try:
            found.append(prompt_of(prompt.location, {**prompt.fields, "prompt": text}))
        except ValueError as error:
            raise UserError(f"{prompt.location}: {error}; is it a prompt of IFEval?") from None
    return found


def _question_id(prompt: Prompt) -> int | str:
    known_by = prompt.fields.get("question_id")
    if not isinstance(known_by, int | str):
        raise UserError(f"{prompt.location}: has no question_id; is it a question of MT-Bench?")
    return known_by
