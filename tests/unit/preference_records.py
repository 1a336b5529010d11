"""A record of each public source, with its field names, and what it says. Texts are our own.

`python tests/unit/preference_records.py` rewrites the table of docs/data.md.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orpo_ray.data.formats.shapes import shape_named

PAGE = Path(__file__).resolve().parents[2] / "docs/data.md"
MARK = "<!-- made by tests/unit/test_data_shapes.py -->\n"


def turns(*texts: str) -> list[dict[str, Any]]:
    """Messages of the user's and the assistant's in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def said(*items: tuple[str, str]) -> list[dict[str, str]]:
    """Messages as ShareGPT has them."""
    return [{"from": name, "value": text} for name, text in items]


@dataclass(frozen=True)
class Source:
    """Every `win` and every other record asks "Why?" and has "Because." as the better answer, "No" as the worse."""

    name: str
    format: str
    win: dict[str, Any]
    reversed: dict[str, Any] = field(default_factory=dict)
    """What to change so that "No" wins."""
    tie: dict[str, Any] = field(default_factory=dict)
    """What to change so that neither does; nothing: there is no such record."""
    dropped: str = "tie"
    """The reason that such a record is counted under."""
    settings: dict[str, Any] = field(default_factory=dict)
    prompt: list[dict[str, Any]] = field(default_factory=lambda: turns("Why?"))


LISTS = {"chosen": turns("Why?", "Because."), "rejected": turns("Why?", "No")}
SWAPPED = {"chosen": turns("Why?", "No"), "rejected": turns("Why?", "Because.")}
TEXTS = {"chosen": "Because.", "rejected": "No"}
SWAPPED_TEXTS = {"chosen": "No", "rejected": "Because."}
HH = "\n\nHuman: Why?\n\nAssistant: "


def _arena(encode: Any = lambda messages: messages) -> dict[str, Any]:
    return {
        "question_id": "q", "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "arena_user_1", "turn": 1,
        "conversation_a": encode(LISTS["chosen"]), "conversation_b": encode(LISTS["rejected"]), "language": "English",
    }  # fmt: skip


def _prism(first: float, second: float, chosen: bool | None) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = [
        {"turn": 0, "role": "user", "content": "Why?", "model_name": None, "score": None, "if_chosen": None,
         "within_turn_id": 0},
        {"turn": 0, "role": "model", "content": "No", "model_name": "m", "score": second,
         "if_chosen": chosen is False, "within_turn_id": 0},
        {"turn": 0, "role": "model", "content": "Because.", "model_name": "n", "score": first,
         "if_chosen": chosen is True, "within_turn_id": 1},
        {"turn": 1, "role": "user", "content": "And?", "model_name": None, "score": None, "if_chosen": None,
         "within_turn_id": 0},
    ]  # fmt: skip
    return history


def _ranked(*ranks: float) -> list[dict[str, Any]]:
    answers = ("Because.", "Perhaps", "No")
    return [{"answer": text, "model": "m", "rank": rank} for text, rank in zip(answers, ranks, strict=True)]


SOURCES = (
    Source(
        "HH-RLHF", "hh-rlhf", {"chosen": f"{HH}Because.", "rejected": f"{HH}No"},
        {"chosen": f"{HH}No", "rejected": f"{HH}Because."},
    ),
    Source(
        "UltraFeedback, binarized", "ultrafeedback",
        {"prompt": "Why?", "prompt_id": "x", **LISTS, "messages": LISTS["chosen"], "score_chosen": 8.0,
         "score_rejected": 4.0},
        SWAPPED,
    ),
    Source(
        "UltraFeedback, argilla", "argilla",
        {"source": "flan", "prompt": "Why?", **LISTS, "chosen-rating": 5.0, "chosen-model": "m", "rejected-rating": 2.0,
         "rejected-model": "n"},
        SWAPPED,
    ),
    Source("Skywork reward preference", "conversational", {**LISTS, "source": "magpie"}, SWAPPED),
    Source(
        "Capybara DPO", "ultrafeedback",
        {"source": "Airoboros", "conversation": [{"input": "Why?", "output": "Because."}], "original_response": "x",
         "generation_prompt": ["p"], "raw_generation_responses": ["r"], "prompt": "Why?", **LISTS,
         "generations": ["a", "b"], "models": ["m", "n"], "rating_chosen": 5, "rating_rejected": 4},
        SWAPPED,
    ),
    Source(
        "Tülu 3 mixtures", "ultrafeedback", {"id": "x", "source": "tulu", "prompt": "Why?", **LISTS}, SWAPPED,
    ),
    Source("orpo-dpo-mix", "ultrafeedback", {"source": "x", **LISTS, "prompt": "Why?", "question": ""}, SWAPPED),
    Source(
        "RewardBench", "plain",
        {"id": 1, "prompt": "Why?", **TEXTS, "chosen_model": "m", "rejected_model": "n", "subset": "alpacaeval-easy"},
        SWAPPED_TEXTS,
    ),
    Source(
        "RewardBench 2", "rewardbench2",
        {"id": "1", "prompt": "Why?", "chosen": ["Because."], "rejected": ["No", "Never", "Not so"], "num_correct": 1,
         "num_incorrect": 3, "total_completions": 4, "models": ["m"], "subset": "Math", "additional_metadata": None},
        {"chosen": ["No"], "rejected": ["Because."]},
    ),
    Source(
        "WebGPT comparisons", "webgpt",
        {"question": {"dataset": "eli5", "id": "x", "full_text": "Why?"},
         "quotes_0": {"title": [], "extract": []}, "answer_0": "Because.", "tokens_0": {}, "score_0": 0.5,
         "quotes_1": {"title": [], "extract": []}, "answer_1": "No", "tokens_1": {}, "score_1": -0.5},
        {"score_0": -1.0, "score_1": 1.0}, {"score_0": 0.0, "score_1": 0.0},
    ),
    Source(
        "SHP", "shp",
        {"post_id": "x", "domain": "askphysics_train", "upvote_ratio": 0.9, "history": "Why?", "score_A": 9,
         "score_B": 2, "human_ref_A": "Because.", "human_ref_B": "No", "labels": 1, "seconds_difference": 1.0,
         "score_ratio": 4.5},
        {"labels": 0}, {"labels": None}, "no winner",
    ),
    Source(
        "Nectar", "nectar",
        {"prompt": "\n\nHuman: Why?\n\nAssistant: ", "answers": _ranked(1.0, 2.0, 3.0), "turns": 1,
         "num_responses": 3, "source": ["lmsys"], "good_natured": True},
        {"answers": _ranked(3.0, 2.0, 1.0)}, {"answers": _ranked(1.0, 1.0, 1.0)},
    ),
    Source(
        "HelpSteer2 preference", "helpsteer2",
        {"split": "train", "prompt": "Why?", "response_1": "Because.", "response_2": "No", "preference_strength": -2,
         "preference_statement": "Response 1 is better.", "preference_elaboration": "It answers.",
         "three_most_similar_preferences": [], "all_preferences_unprocessed": []},
        {"preference_strength": 3}, {"preference_strength": 0},
    ),
    Source(
        "HelpSteer3 preference", "helpsteer3",
        {"domain": "general", "language": "english", "context": turns("Why?"), "response1": "Because.",
         "response2": "No", "overall_preference": -1, "individual_preference": [{"score": -1, "reasoning": "r"}]},
        {"overall_preference": 1}, {"overall_preference": 0},
    ),
    Source(
        "Chatbot Arena, 33k and 140k", "arena", _arena(), {"winner": "model_b"}, {"winner": "tie (bothbad)"},
    ),
    Source(
        "Chatbot Arena, 100k (conversations as text)", "arena", _arena(json.dumps), {"winner": "model_b"},
        {"winner": "tie"},
    ),
    Source(
        "Chatbot Arena, 55k (CSV)", "arena-55k",
        {"id": "1", "model_a": "m", "model_b": "n", "prompt": '["Why?"]', "response_a": '["Because."]',
         "response_b": '["No"]', "winner_model_a": "1", "winner_model_b": "0", "winner_tie": "0"},
        {"winner_model_a": "0", "winner_model_b": "1"}, {"winner_model_a": "0", "winner_tie": "1"},
    ),
    Source(
        "PRISM", "prism",
        {"conversation_id": "c", "user_id": "u", "conversation_type": "unguided", "opening_prompt": "Why?",
         "conversation_turns": 2, "conversation_history": _prism(90, 20, True)},
        {"conversation_history": _prism(90, 20, False)}, {"conversation_history": _prism(50, 50, None)}, "no winner",
    ),
    Source(
        "PKU-SafeRLHF", "pku-saferlhf",
        {"prompt": "Why?", "response_0": "Because.", "response_1": "No", "prompt_source": "x",
         "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 0},
        {"better_response_id": 1, "safer_response_id": 1}, {"safer_response_id": 1}, "better and safer disagree",
        {"prefer": "both"},
    ),
    Source(
        "Orca DPO pairs", "orca", {"system": "Be brief.", "question": "Why?", **TEXTS}, SWAPPED_TEXTS,
        prompt=[{"role": "system", "content": "Be brief."}, *turns("Why?")],
    ),
    Source(
        "Orca DPO pairs, argilla", "orca",
        {"system": "", "input": "Why?", **TEXTS, "generations": ["a", "b"], "order": ["x", "y"], "rating": [9.0, 7.0],
         "labelling_prompt": turns("Rate."), "rationale": "r", "status": "unchanged", "chosen_score": 9.0,
         "original_chosen": "Because.", "original_rejected": "No", "in_gsm8k_train": False},
        SWAPPED_TEXTS, {"status": "tie"},
    ),
    Source(
        "Alpaca-shaped pairs", "alpaca", {"instruction": "Answer.", "input": "Why?", **TEXTS}, SWAPPED_TEXTS,
        prompt=turns("Answer.\n\nWhy?"),
    ),
    Source(
        "ShareGPT-shaped pairs", "sharegpt",
        {"conversations": said(("human", "Why?")), "chosen": said(("gpt", "Because."))[0],
         "rejected": said(("gpt", "No"))[0]},
        {"chosen": said(("gpt", "No"))[0], "rejected": said(("gpt", "Because."))[0]},
    ),
    Source(
        "Ranked or rated lists", "ranked", {"prompt": "Why?", "responses": ["Because.", "No"], "ranks": [1, 2]},
        {"ranks": [2, 1]}, {"ranks": [1, 1]},
    ),
    Source(
        "Several rejected answers", "several", {"prompt": "Why?", "chosen": "Because.", "rejected": ["No"]},
        {"chosen": "No", "rejected": ["Because."]},
    ),
)  # fmt: skip
LABELLED = "Answers with a label (TRL's unpaired format)"


def table() -> str:
    """The rows of docs/data.md: what each source has, as the table of shapes and its record say."""
    lines = ["| source | `data.format` | columns that are read | who wins | ties and the like |", "|---" * 5 + "|"]
    for source in SOURCES:
        shape = shape_named(source.format)
        found = [name for name in shape.also if name in source.win]
        columns = ", ".join(f"`{name}`" for name in [*shape.columns, *found, *(("system",) * ("system" in source.win))])
        lines.append(f"| {source.name} | `{shape.name}` | {columns} | {shape.winner} | {shape.ties} |")
    alone = shape_named("labelled")
    lines.append(f"| {LABELLED} | `labelled` | `prompt`, `completion`, `label` | {alone.winner} | {alone.ties} |")
    return "\n".join(lines) + "\n"


def page_with(rows: str, page: str) -> str:
    """`page` with its table replaced."""
    return re.sub(re.escape(MARK) + r"\n(?:\|.*\n)*\n*", lambda _: f"{MARK}\n{rows}\n", page)


if __name__ == "__main__":
    PAGE.write_text(page_with(table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
