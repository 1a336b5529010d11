"""The table of shapes: by which columns a record is recognised, what reads it, who wins, and what a tie is.

An entry is all there is to a shape but its reading; `docs/data.md` is made from these and from records of each source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orpo_ray.data.formats import conversations, labelled, lists, texts
from orpo_ray.data.formats.columns import missing
from orpo_ray.data.formats.comparison import Comparison
from orpo_ray.data.formats.messages import checked_text, text_field, turn
from orpo_ray.data.formats.reading import Reading
from orpo_ray.data.records import BadRecord

Record = dict[str, Any]


def _always(value: Record) -> bool:
    return True


@dataclass(frozen=True)
class Shape:
    name: str
    """What `data.format` calls it."""
    columns: tuple[str, ...]
    """All of them are there; dotted: of that struct only this member is read."""
    read: Callable[[Record, Reading], Comparison]
    """Raises `BadRecord`, and `NoPreference` where the record is sound and nothing wins."""
    winner: str
    ties: str = "none"
    also: tuple[str, ...] = ()
    """Columns that are read where they are there."""
    told: Callable[[Record], bool] = _always
    """Whether it is this one, where columns alone do not tell."""

    def fits(self, value: Record) -> bool:
        return all(column.partition(".")[0] in value for column in self.columns) and self.told(value)


def _texts_alone(value: Record) -> bool:
    return isinstance(value["chosen"], str) and isinstance(value["rejected"], str) and value.get("prompt") is None


def _lists(value: Record) -> bool:
    return isinstance(value["chosen"], list) and isinstance(value["rejected"], list)


def _lists_of_text(value: Record) -> bool:
    return _lists(value) and all(side and isinstance(side[0], str) for side in (value["chosen"], value["rejected"]))


def _several(value: Record) -> bool:
    rejected, chosen = value["rejected"], value["chosen"]
    items = isinstance(rejected, list) and bool(rejected) and all(isinstance(item, str | list) for item in rejected)
    return items and isinstance(chosen, str) == isinstance(rejected[0], str)


def _with_ranks(value: Record) -> bool:
    return isinstance(value["responses"], list) and any(value.get(name) is not None for name in lists.BETTER)


def _rated(value: Record) -> bool:
    return _lists(value) and isinstance(value["prompt"], str) and not value.keys().isdisjoint(_ARGILLA)


_ARGILLA = ("chosen-rating", "chosen-model")
_NAMED = "`chosen`"
_TIE = "dropped: tie"

PAIRS = (
    Shape(
        "hh-rlhf", ("chosen", "rejected"), texts.hh_rlhf, _NAMED,
        told=lambda value: _texts_alone(value)
        and all(texts.ASSISTANT_TURN in value[name] for name in ("chosen", "rejected")),
    ),
    Shape(
        "rewardbench2", ("prompt", "chosen", "rejected"), texts.rewardbench2,
        "every one of `chosen` above every one of `rejected`",
        told=_lists_of_text,
    ),
    Shape(
        "several", ("prompt", "chosen", "rejected"), lists.several, "`chosen` above every one of `rejected`",
        told=_several,
    ),
    Shape(
        "sharegpt", ("conversations", "chosen", "rejected"), conversations.sharegpt, _NAMED,
        told=lambda value: value.get("prompt") is None and _lists(value),
    ),
    Shape(
        "alpaca", ("instruction", "chosen", "rejected"), texts.alpaca, _NAMED, also=("input", "history"),
        told=_texts_alone,
    ),
    Shape(
        "orca", ("chosen", "rejected"), texts.orca, _NAMED, also=("question", "input", "status"),
        ties=f"`status` tie: {_TIE}",
        told=lambda value: _texts_alone(value) and ("question" in value or "input" in value),
    ),
    Shape("argilla", ("prompt", "chosen", "rejected"), conversations.conversational, _NAMED, told=_rated),
    Shape(
        "ultrafeedback", ("prompt", "chosen", "rejected"), conversations.conversational, _NAMED,
        told=lambda value: _lists(value) and isinstance(value["prompt"], str),
    ),
    Shape(
        "conversational", ("chosen", "rejected"), conversations.conversational, _NAMED, also=("prompt",), told=_lists,
    ),
    Shape(
        "plain", ("prompt", "chosen", "rejected"), texts.plain, _NAMED,
        told=lambda value: isinstance(value["prompt"], str | list)
        and all(isinstance(value[name], str) for name in ("chosen", "rejected")),
    ),
    Shape(
        "ranked", ("prompt", "responses"), lists.ranked,
        "`ranks`: 1 is best; or `scores` or `ratings`: higher is better", "tied answers are not compared; all: "
        + _TIE, also=tuple(lists.BETTER), told=_with_ranks,
    ),
    Shape(
        "labelled", ("prompt", "label"), lists.labelled, "`label`: true or 1 is desirable (for `objective: kto`)",
        also=lists.COMPLETIONS, told=lambda value: any(value.get(name) is not None for name in lists.COMPLETIONS),
    ),
    Shape(
        "webgpt", ("question.full_text", "answer_0", "answer_1", "score_0", "score_1"), labelled.webgpt,
        "the higher score", _TIE,
    ),
    Shape(
        "shp", ("history", "human_ref_A", "human_ref_B", "labels"), labelled.shp,
        "`labels` 1: `human_ref_A`, 0: `human_ref_B`", "no label: dropped: no winner",
    ),
    Shape(
        "nectar", ("prompt", "answers"), texts.nectar, "the lowest `rank`", _TIE,
        told=lambda value: isinstance(value["answers"], list)
        and all(isinstance(item, dict) and "rank" in item for item in value["answers"]),
    ),
    Shape(
        "helpsteer2", ("prompt", "response_1", "response_2", "preference_strength"), labelled.helpsteer2,
        "negative: `response_1`, positive: `response_2`", f"0: {_TIE}",
    ),
    Shape(
        "helpsteer3", ("context", "response1", "response2", "overall_preference"), conversations.helpsteer3,
        "negative: `response1`, positive: `response2`", f"0: {_TIE}",
    ),
    Shape(
        "arena", ("conversation_a", "conversation_b", "winner"), conversations.arena,
        "the one that `winner` names", f"tie, tie (bothbad): {_TIE}",
    ),
    Shape(
        "arena-55k",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        conversations.arena_55k, "`winner_model_a`, `winner_model_b`: the one that is 1", f"`winner_tie`: {_TIE}",
    ),
    Shape(
        "prism", ("conversation_history",), conversations.prism, "`if_chosen`, then `score`",
        "none chosen: dropped: no winner",
    ),
    Shape(
        "pku-saferlhf",
        ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"), labelled.pku_saferlhf,
        "`data.prefer`: better, safer, or both", "`both`: dropped: better and safer disagree",
    ),
)  # fmt: skip


def recognise(value: Record) -> Shape:
    """The shape of a pair, by its columns and what they hold. Raises `BadRecord` where it is none of them."""
    for shape in PAIRS:
        if shape.fits(value):
            return shape
    for name in ("chosen", "rejected"):
        if name not in value:
            raise missing(value, name)
        if not isinstance(value[name], list):
            checked_text(value[name], name)
    if isinstance(value["chosen"], list) != isinstance(value["rejected"], list):
        raise BadRecord("unknown shape", "one of chosen and rejected is text, the other a list")
    if "prompt" not in value:
        raise missing(value, "prompt")
    text_field(value, "prompt")
    raise BadRecord("unknown shape", "of chosen and rejected")


def shape_named(name: str) -> Shape:
    return next(shape for shape in PAIRS if shape.name == name)


# Records that only ask --------------------------------------------------------------------------------------------


def _prompt(value: Record, reading: Reading) -> Comparison:
    if isinstance(value["prompt"], list):
        return Comparison(reading.messages(value, "prompt"), ())
    text = text_field(value, "prompt")
    return Comparison(turn("user", text) if reading.as_messages else text, ())


def _instruction(value: Record, reading: Reading) -> Comparison:
    return Comparison(texts.instruction(value), ())


def _turns(value: Record, reading: Reading) -> Comparison:
    column = "prompt" if _are_turns(value.get("prompt")) else "turns"
    first, *further = (checked_text(text, f"{column}[{i}]") for i, text in enumerate(value[column][: reading.turns]))
    if value[column][reading.turns :]:
        reading.account.noted["have further turns, which are not asked"] += 1
    return Comparison(turn("user", first), (), further=tuple(further))


def _are_turns(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and isinstance(found[0], str)


QUESTIONS = (
    Shape("prompts", ("prompt",), _turns, "", told=lambda value: _are_turns(value["prompt"])),  # MT-Bench on the Hub
    Shape("prompts", ("prompt",), _prompt, ""),
    Shape("prompts", ("instruction",), _instruction, "", also=("input", "history")),  # AlpacaEval
    Shape("prompts", ("turns",), _turns, "", told=lambda value: _are_turns(value["turns"])),  # MT-Bench
)  # fmt: skip


def recognise_question(value: Record) -> Shape:
    """The shape of a record that only asks. Raises `BadRecord` where it does not."""
    for shape in QUESTIONS:
        if shape.fits(value):
            return shape
    raise BadRecord("no prompt", "none of the fields prompt, instruction, turns; the key columns says where else")
