"""The folder of an evaluation as a real one leaves it, made up: what the tests of its report read."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from orpo_ray.evaluation.comparisons import pairs as pairs_of
from orpo_ray.evaluation.comparisons import ratings as ratings_of
from orpo_ray.evaluation.judge_results import judge_numbers, judged_outcomes, of_what_was_judged
from orpo_ray.evaluation.judged import Judged, judged
from orpo_ray.judging.places import Answered, Place
from orpo_ray.judging.verdict import Verdict

QUALITY = {"sft": 0.0, "orpo": 0.8, "dpo": 0.35, "chosen": 0.9, "rejected": -0.9}
NASTY = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>\"double\" 'single' `back` ${alert(1)} &amp; & {{ 7 * 7 }}",
    "emoji 🦜👩‍🔬, combining e\u0301, line\u2028and paragraph\u2029separators, \x00 zero, \ufeff mark",
    "שלום עולם \u202eabc مرحبا",
    "x" * 5_000 + " " + "word " * 1_000,
    "",
]
OPENINGS = ["Thank you for asking.", "Sure.", "No idea.", "Let me think about that for a moment."]


def make_evaluation(
    folder: Path, models=("sft", "orpo", "dpo"), prompts: int = 60, rounds: int = 3, *, data: bool = True, seed: int = 0
) -> Path:
    """A folder such as a real evaluation leaves: two judges, one of whole numbers, and texts of every nasty kind."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    own = ("chosen", "rejected") if data else ()
    rows = []
    for prompt in range(prompts):
        hardness = rng.normal()
        for model in (*models, *own):
            for turn in range(1 if model in own else rounds):
                quality = QUALITY.get(model, rng.normal()) - hardness + rng.normal()
                tokens = int(min(48, rng.gamma(5, 4 + 2 * (model == "dpo"))))
                text = f" {OPENINGS[prompt % 4]} {model} says {prompt} in round {turn}." + " and more" * (tokens // 4)
                if turn == 0 and prompt < len(NASTY) and model in ("orpo", "chosen"):
                    text = NASTY[prompt]
                ended = "data" if model in own else "length" if tokens == 48 else "stop"
                scored = not (model == "sft" and prompt == 9)
                rows.append({
                    "prompt": prompt, "model": model, "round": turn, "text": text, "tokens": tokens, "ended": ended,
                    "reward:truth": float(np.clip(np.round(1.7 + quality), 0, 3)) if scored else None,
                    "reward:opt-1.3b": float(quality + 0.02 * tokens) if scored else None,
                })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    texts = {(row["prompt"], row["model"]): row["text"] for row in rows}
    asked = [
        {
            "prompt": i, "text": f"Question {i}: what is it? {NASTY[i] if i < 5 else ''}",
            **{name: texts.get((i, name)) for name in ("chosen", "rejected")},
        }
        for i in range(prompts)
    ]  # fmt: skip
    schema = pa.schema([("prompt", pa.int64()), *((name, pa.string()) for name in ("text", "chosen", "rejected"))])
    pq.write_table(pa.Table.from_pylist(asked, schema), folder / "prompts.parquet")
    (folder / "winrates.json").write_text(json.dumps(_numbers(folder.name, rows, models, own, prompts, rounds)))
    config = {"name": folder.name, "models": {m: f"runs/toy-{m}" for m in models}, "prompts": {"source": NASTY[0]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def add_judges(folder: Path) -> Path:
    """Two judges in words beside the reward models: one that compares in both orders, by labels and with a liking for
    the first place, and one that rates, twice."""
    content, rows = numbers(folder), pq.read_table(folder / "results.parquet").to_pylist()
    models, prompts, rounds = list(content["models"]), content["prompts"], content["rounds"]
    characters = {
        model: np.array([len(row["text"]) for row in rows if row["model"] == model], dtype=float).reshape(prompts, -1)
        for model in models
    }
    every = [made_up(models, prompts, rounds, compares=True), made_up(models, prompts, rounds, compares=False)]
    judgements = [one for each in every for one in each.judgements]
    said = Judged(judgements, every[0].counts | every[1].counts, every[1].shape, every[1].answered)
    described = {
        "labels": {"kind": "vllm", "model": NASTY[0], "dtype": "float32", "temperature": 0.0, "prompt": "own"},
        "rater": {"kind": "openai", "model": "big", "base_url": "https://api.example/v1", "seed": None},
    }
    categories = [["math", "coding", "roleplay"][i % 3] for i in range(prompts)]
    compared = judged_outcomes(said, of_what_was_judged(said, models))
    content["judges"] = judge_numbers(said, described, models, categories)
    content["pairs"] += pairs_of(compared, characters)
    content["ratings"] |= ratings_of(compared)
    (folder / "winrates.json").write_text(json.dumps(content))
    pq.write_table(said.table(), folder / "verdicts.parquet")
    return folder


def made_up(models, prompts: int, rounds: int, *, compares: bool) -> Judged:
    """What `labels` or `rater` would say of responses of the models' qualities; some of it is not readable."""
    rng = np.random.default_rng(compares)
    answered = Answered([["Why?"]] * prompts, {m: [[[m]] * rounds] * prompts for m in models}, [None] * prompts)
    compared = list(combinations(models, 2)) if compares else [(model, None) for model in models]
    orders = (True, False) if compares else (None,)
    found, verdicts = [], []
    for model, against in compared:
        for prompt in range(prompts):
            for round in range(rounds):
                for first in orders:
                    for repeat in range(1 if compares else 2):
                        place = Place(model, against, prompt, round, 1, first, repeat)
                        quality = QUALITY.get(model, 0) - QUALITY.get(against, 0)
                        won = 1 / (1 + np.exp(-(quality if first else -quality) - 0.4 - rng.normal()))
                        rating = float(np.clip(np.round(6 + 2 * quality + rng.normal()), 1, 10))
                        odd = rng.random() < 0.02
                        words = NASTY[prompt % len(NASTY)] or "Rating: [[5]]"
                        found.append((place, compares and prompt == 3))
                        read = (None, None) if odd else (float(won), None) if compares else (None, rating)
                        verdicts.append(Verdict(f"{place}", *read, words, 100, 5))
    verdicts = [None if same else verdict for (_, same), verdict in zip(found, verdicts, strict=True)]
    found = [(place._replace(shown_first=None) if same else place, same) for place, same in found]
    return judged(found, {"labels" if compares else "rater": verdicts}, answered, 1 if compares else 2)


def _numbers(name, rows, models, own, prompts, rounds):
    judges = ("truth", "opt-1.3b")
    scores = {
        (judge, model): np.array(
            [np.nan if r[f"reward:{judge}"] is None else r[f"reward:{judge}"] for r in rows if r["model"] == model]
        ).reshape(prompts, -1)
        for judge in judges
        for model in (*models, *own)
    }
    pairs = []
    for judge in judges:
        for model in models:
            for against in models:
                if model == against:
                    continue
                margin = scores[judge, model] - scores[judge, against]
                margin = margin[~np.isnan(margin).any(axis=1)]
                won = np.where(np.abs(margin) <= 1e-4, 0.5, margin > 0)
                rate, by_prompt = float(won.mean()), won.mean(axis=1)
                half = 1.96 * float(by_prompt.std(ddof=1)) / np.sqrt(len(won))
                p = float(np.exp(-0.5 * ((rate - 0.5) / (half / 1.96)) ** 2))
                pairs.append({
                    "model": model, "against": against, "reward_model": judge, "prompts": len(won),
                    "wins": int((won == 1).sum()), "ties": int((won == 0.5).sum()), "losses": int((won == 0).sum()),
                    "win_rate": rate, "sd": float(won.mean(axis=0).std(ddof=1)) if rounds > 1 else None,
                    "ci95": [rate - half, rate + half], "p_value": p, "p_holm": min(1.0, 6 * p),
                    "length_controlled": 0.5 + 0.9 * (rate - 0.5) if judge == "truth" else None,
                    "length_controlled_ci95": [rate - half, rate + half] if judge == "truth" else None,
                    "length_controlled_unknown": None if judge == "truth" else "the longer response won in all",
                    "rounds": won.mean(axis=0).tolist(),
                })  # fmt: skip
    strength = {
        judge: {m: np.mean([p["win_rate"] for p in pairs if (p["model"], p["reward_model"]) == (m, judge)] or [0.5])
                for m in models}
        for judge in judges
    }  # fmt: skip
    ratings = {
        judge: sorted(
            ({"model": m, "rating": 600 * (s - 0.5), "ci95": [600 * (s - 0.55), 600 * (s - 0.45)]}
             for m, s in strength[judge].items()),
            key=lambda entry: -entry["rating"],
        )
        for judge in judges
    }  # fmt: skip
    described = {}
    for model in models:
        tokens = np.array([r["tokens"] for r in rows if r["model"] == model])
        described[model] = {
            "path": f"runs/toy-{model}", "digest": "ab12cd34" * 8, "template": "none", "bos": True,
            "asked": prompts * rounds, "responses": len(tokens), "not_generated": {"prompt too long": 0},
            "empty": sum(r["text"] == "" for r in rows if r["model"] == model), "cut": int((tokens == 48).sum()),
            "mean_tokens": float(tokens.mean()), "mean_characters": 4 * float(tokens.mean()),
            "lengths": {"p10": float(np.quantile(tokens, 0.1)), "median": float(np.median(tokens)),
                        "p90": float(np.quantile(tokens, 0.9)), "max": float(tokens.max())},
            "odds": {"log_odds_ratio": 0.36, "chosen_likelier": 0.81, "logps_chosen": -0.4, "logps_rejected": -0.6,
                     "pairs": prompts} if own else None,
            "diversity": {"per_input_cosine": 0.8123, "across_input_cosine": None, "embedder": "all-MiniLM-L6-v2",
                          "distinct_1": 0.12, "distinct_2": 0.34, "self_bleu": 0.56, "repetition": 0.078},
        }  # fmt: skip
    return {
        "name": name, "prompts": prompts, "rounds": rounds, "tie": 1e-4, "statistics": 2,
        "sampling": {"temperature": 1.0, "top_p": 0.95, "max_tokens": 48, "rounds": rounds, "seed": 0},
        "models": described,
        "reward_models": {
            "truth": {"path": "toy", "not_scored": {"too long": 0},
                      "data_accuracy": {"accuracy": 0.9123, "ci95": [0.8765, 0.9432], "pairs": prompts}},
            "opt-1.3b": {"path": "runs/hh-rm", "not_scored": {"too long": 3}, "data_accuracy": None},
        },
        "pairs": pairs, "ratings": ratings,
        "rewards": {
            judge: {m: {"mean": float(np.nanmean(scores[judge, m])), "sd": float(np.nanstd(scores[judge, m])),
                        "median": float(np.nanmedian(scores[judge, m]))} for m in models}
            for judge in judges
        },
        "agreement": [{"reward_models": list(judges), "agree": 0.8762, "kappa": 0.7531, "spearman": 0.6543,
                       "comparisons": 1234, "ties": [321, 0]}],
        "notes": [f"sft and orpo were trained with different chat templates: none and {NASTY[0]}",
                  "orpo: 1 of 180 responses is empty"],
    }  # fmt: skip


def numbers(run: Path) -> dict:
    return json.loads((run / "winrates.json").read_text())


def change(run: Path, edit) -> None:
    """Edit `winrates.json` in place."""
    content = numbers(run)
    edit(content)
    (run / "winrates.json").write_text(json.dumps(content))
