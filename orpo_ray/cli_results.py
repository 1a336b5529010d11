"""The commands on what is there already: responses, verdicts and folders, made here or elsewhere. No logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orpo_ray.cli_common import EXIT_CODES, OVERRIDES, ConfigArgument, OverridesArgument
from orpo_ray.visible import say

app = typer.Typer()


@app.command(
    short_help="Score responses by reward models.",
    epilog=EXIT_CODES,
    help=f"""\
Score the responses that CONFIG names by its reward models, from here or from elsewhere; nothing is generated.

Pairs (then: how often the better response wins, with an interval, by subset, and RewardBench's own averages), or any
number of responses to each prompt. The folder, storage.path/name, receives scores.parquet (a row for every response:
its record's index and fields, every reward) and scores.json. The same command continues what was interrupted.

{OVERRIDES}
\b
Examples:
  orpo-ray score configs/score-toy.yaml
  orpo-ray score configs/score-toy.yaml prompts.source=answers.jsonl reward_models.mine=runs/hh-rm
""",
)
def score(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    from orpo_ray.config import ScoreConfig, load_as

    resolved = load_as(ScoreConfig, config, overrides)
    from orpo_ray.cluster.connection import ENGINES, SCORERS, begin

    begin(resolved.cpus, now=ENGINES if resolved.scoring.engine == "vllm" else SCORERS)
    from orpo_ray.evaluation.score import read_scores
    from orpo_ray.evaluation.score import score as run
    from orpo_ray.evaluation.scores import print_scores
    from orpo_ray.storage.mirror import mirrored
    from orpo_ray.terminal import Console

    with mirrored(resolved.storage, resolved.name):
        folder = run(resolved)
        print_scores(read_scores(folder), Console())
        say(folder.scores)


@app.command(
    short_help="Write an evaluation's answers for others.",
    epilog=EXIT_CODES,
    help="""\
Write the answers of the finished evaluation in the folder EVALUATION as AlpacaEval, MT-Bench or IFEval read them, a
file for each model, and print where. What was judged is written; prompts without an answer are left out and told.

\b
Examples:
  orpo-ray outputs runs/toy-winrate --benchmark alpaca-eval
  orpo-ray outputs runs/mt-bench --benchmark mt-bench --out model_answer
""",
)
def outputs(
    evaluation: Annotated[Path, typer.Argument(metavar="EVALUATION", help="Folder of a finished evaluation.")],
    benchmark: Annotated[str, typer.Option(metavar="NAME", help="alpaca-eval (1 or 2), mt-bench or ifeval.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: outputs/NAME in EVALUATION.")] = None,
) -> None:
    from orpo_ray.evaluation.export import export_outputs

    for path, lacking in export_outputs(evaluation, benchmark, out):
        say(f"{path}: {lacking} prompts have no answer, and are left out" if lacking else path)


@app.command(
    short_help="Make a leaderboard's numbers of verdicts.",
    epilog=EXIT_CODES,
    help="""\
Make a leaderboard's numbers of FILE, which may come from elsewhere, and print them as JSON: AlpacaEval's annotations,
MT-Bench's judgments of single answers, responses to IFEval's prompts. No model is asked anything.

Beside each number stands what it is of: rows left out and why, a bootstrap interval, another reference or judge than
the leaderboard's. AlpacaEval 2's length-controlled win-rate takes the instructions' difficulty, and published weights
or (in a df_gamed.csv) the rows of gamed references; docs/leaderboards.md says how each number is made.

\b
Examples:
  orpo-ray verdicts annotations.json --benchmark alpaca-eval-2 --difficulty difficulty.json --weights weights.csv
  orpo-ray verdicts gpt-4_single.jsonl --benchmark mt-bench --prompts question.jsonl
  orpo-ray verdicts responses.jsonl --benchmark ifeval --prompts input_data.jsonl
""",
)
def verdicts(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Annotations, judgments or responses.")],
    benchmark: Annotated[
        str, typer.Option(metavar="NAME", help="alpaca-eval-1, alpaca-eval-2, mt-bench or ifeval.", show_default=False)
    ],
    difficulty: Annotated[Path | None, typer.Option(metavar="F", help="Of AlpacaEval's instructions.")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="F", help="Published ones of length control.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="F", help="The benchmark's, to count what is missing.")
    ] = None,
) -> None:
    from orpo_ray.leaderboards.verdicts import Files, aggregate, as_json

    for line in as_json(aggregate(benchmark, Files(file, difficulty, weights, prompts))).splitlines():
        say(line)


@app.command(
    short_help="Draw a run's report, or several runs side by side.",
    epilog=EXIT_CODES,
    help="""\
Draw report.html anew from what the folder RUN of a run, an evaluation or a sweep holds, and print its path. Of the
folder of a paper remade: its page, tables and figures, of the stages that are finished.

The page is one self-contained file: loss, log-probs of chosen and rejected, log odds ratio; or win-rates and
responses; or a sweep's landscape. Each writes it by itself; this is for a run that is still going or was interrupted.

Of two or more training runs, finished or not: one page of them all, compare.html in the folder that holds them. It has
the settings that differ, the curves that compare over each other, and held-out pairs run against run, with intervals.

\b
Examples:
  orpo-ray report runs/opt-125m-hh-orpo
  orpo-ray report runs/toy-sft runs/toy-orpo --out toy.html
""",
)
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folder of a run, evaluation or sweep; or of several runs.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Of the page of several runs.")] = None,
) -> None:
    from orpo_ray.config import read_yaml
    from orpo_ray.config.kinds import kind_of
    from orpo_ray.errors import UserError
    from orpo_ray.report import write_comparison, write_evaluation_report, write_report, write_sweep_report

    run = runs[0]
    if len(runs) > 1:
        say(write_comparison(runs, out))
    elif out is not None:
        raise UserError(f"--out: is for a page of several runs; that of one is in its folder, {run}")
    elif (run / "sweep.json").is_file():
        say(write_sweep_report(run))
    elif (config := run / "config.yaml").is_file() and kind_of(read_yaml(config)) == "paper":
        from orpo_ray.paper.page import write_paper
        from orpo_ray.paper.stages import read_stages

        say(write_paper(read_stages(run), {}))
    else:
        say(write_evaluation_report(run) if (run / "winrates.json").is_file() else write_report(run))


@app.command(
    short_help="Say where a run, or each of a folder, stands.",
    epilog=EXIT_CODES,
    help="""\
Say where the training run, the evaluation, the scores or the sweep in the folder RUN stands, from its files alone.

State and step, last loss and evaluation, speed and time left, the newest finished checkpoint, what happened, and the
command to type next; of an evaluation the responses done and who wins, of a sweep the trials and the best of them. Of
a folder of such folders: a line for each. Works for a run on another machine too, if its folder is on a shared disk.

\b
Examples:
  orpo-ray status runs
  orpo-ray status runs/opt-125m-hh-orpo
  orpo-ray status runs/toy-sweep --json
""",
)
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, evaluation or sweep, or of many.")],
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each.")] = False,
) -> None:
    from orpo_ray.status import read
    from orpo_ray.terminal import Console

    if folders := read.folders_in(run):
        found = read.read_list(folders)
        if as_json:
            for each in found:
                say(read.as_json(each))
        else:
            read.print_list(found, Console())
    elif as_json:
        say(read.as_json(read.read_status(run)))
    else:
        read.print_status(read.read_status(run), Console())


@app.command(
    short_help="Make a model of a checkpoint.",
    epilog=EXIT_CODES,
    help="""\
Write a checkpoint of the training run in the folder RUN as a Hugging Face model, and print where: safetensors,
tokenizer, chat template and card, as the run keeps its best.

Any checkpoint that is whole, of any ZeRO stage and number of workers, read on this machine's CPUs and without Ray.
Adapters are merged into their base. A folder that is there already is left as it is, and told.

\b
Examples:
  orpo-ray export runs/opt-125m-hh-orpo
  orpo-ray export runs/opt-125m-hh-orpo --step 2000 --out /models/step-2000
""",
)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    step: Annotated[
        int | None, typer.Option(metavar="N", help="Its checkpoint of this step; default: the newest.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: model-step-N in RUN.")] = None,
) -> None:
    from orpo_ray.training.from_checkpoint import export_checkpoint

    say(export_checkpoint(run, step, out))
