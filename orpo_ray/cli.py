"""The commands. No logic: each reads its configuration and calls the layer that does the work.

What a command needs is imported inside it, so that `--help` and a misspelt key answer at once. The commands on what is
there already are in `cli_results.py`.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from orpo_ray import __version__, cli_results
from orpo_ray.cli_common import EXIT_CODES, OVERRIDES, ConfigArgument, OverridesArgument
from orpo_ray.errors import UserError
from orpo_ray.masking import masked
from orpo_ray.visible import have_libraries_do_so, say, tell_of_a_bug

app = typer.Typer(
    name="orpo-ray",
    help="Align a language model with ORPO on Ray, and measure what it bought.",
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,  # plain help keeps rich out of the start-up
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"orpo-ray {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(
    short_help="Train a model as CONFIG says.",
    epilog=EXIT_CODES,
    help=f"""\
Train a model as CONFIG says, on this machine or on the Ray cluster that it belongs to.

The run's folder, storage.path/name, receives the configuration, metrics.jsonl, checkpoints/, model/ (Hugging
Face format), TensorBoard events and report.html. Ctrl-C saves a checkpoint first; again, it stops at once. The
same command continues a run that was interrupted, from its last checkpoint.

{OVERRIDES}
\b
Examples:
  orpo-ray train configs/toy-base.yaml
  orpo-ray train configs/opt-125m-hh-orpo.yaml objective.lambda=0.5 scaling.num_workers=8
""",
)
def train(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    from orpo_ray.config import load_config

    resolved = load_config(config, overrides)
    from orpo_ray.data.names import require_there

    require_there(source.source for source in resolved.data.sources)
    from orpo_ray.cluster.connection import ENGINES, begin  # after the configuration, whose mistakes need no wait

    begin(resolved.cpus, later=ENGINES if resolved.eval.win_rate else ())
    from orpo_ray.evaluation.in_training import validate_checkpoint
    from orpo_ray.storage.mirror import mirrored
    from orpo_ray.training import launcher

    with mirrored(resolved.storage, resolved.name):
        folder = launcher.train(resolved, validation=validate_checkpoint)
        from orpo_ray.report import write_report  # not before: drawing takes a second to import

        say(write_report(folder.path))


@app.command(
    short_help="Show what a training run would read.",
    epilog=EXIT_CODES,
    help=f"""\
Show what a training run of CONFIG would read: no model, no Ray, nothing trained.

Prints the records read, kept, dropped for each reason and quarantined, the token lengths of prompt, chosen
and rejected (median, p90, p99, longest), the share of tokens that prefix sharing saves, and two examples with
their boundaries visible. The tokens are cached, so the training that follows does not do it again.

{OVERRIDES}
\b
Examples:
  orpo-ray data configs/toy-orpo.yaml
  orpo-ray data configs/small-orpo.yaml data.train=pairs.jsonl.gz data.on_bad_record=quarantine
""",
)
def data(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    from orpo_ray.config import load_config

    resolved = load_config(config, overrides)
    from orpo_ray.data.names import require_there

    require_there(source.source for source in resolved.data.sources)
    from orpo_ray.data.summary import print_summary
    from orpo_ray.modeling.loading import load_tokenizer
    from orpo_ray.terminal import Console

    print_summary(resolved, Console(), load_tokenizer(resolved.model))


@app.command(
    short_help="Compare models by reward win-rate.",
    epilog=EXIT_CODES,
    help=f"""\
Compare models as CONFIG says: generate with vLLM, judge with reward models or with models that judge in words
(`judges`: local ones, or any OpenAI-compatible server), and say who wins by how much. `benchmark: alpaca-eval-2`,
mt-bench, ifeval or a file of your own brings prompts, settings and its own numbers.

Engines and scorers work at the same time, on this machine or on the Ray cluster that it belongs to. The folder,
storage.path/name, receives every response with its rewards (results.parquet), winrates.json (win-rates with
intervals, length-controlled win-rates, ratings, diversity) and report.html. The same command continues an
evaluation that was interrupted; adding a model computes that model's responses alone.

{OVERRIDES}
\b
Examples:
  orpo-ray evaluate configs/toy-winrate.yaml
  orpo-ray evaluate configs/paper/opt-125m-hh-winrate.yaml sampling.rounds=5 scaling.generators=7
""",
)
def evaluate(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    from orpo_ray.config import EvaluationConfig, load_as

    resolved = load_as(EvaluationConfig, config, overrides)
    from orpo_ray.cluster.connection import ENGINES, begin

    begin(resolved.cpus, now=ENGINES)
    from orpo_ray.evaluation.evaluate import evaluate as run
    from orpo_ray.storage.mirror import mirrored

    with mirrored(resolved.storage, resolved.name):
        folder = run(resolved)
        from orpo_ray.report import write_evaluation_report

        say(write_evaluation_report(folder.path))


@app.command(
    short_help="Search for the best settings of a run.",
    epilog=EXIT_CODES,
    help=f"""\
Search for the best settings of a training run, such as λ and the learning rate, as CONFIG says.

Each trial is a whole training run; several run at a time, and the worse ones stop early. The folder,
storage.path/name, receives results.csv and results.parquet (every evaluation of every trial), best.yaml (what to
train with), the best trials' run folders in trials/, and report.html. The same command continues a sweep that was
interrupted.

{OVERRIDES}
\b
Examples:
  orpo-ray sweep configs/toy-sweep.yaml
  orpo-ray sweep configs/opt-125m-hh-sweep.yaml trials=48 train.train.epochs=3 hours=12
""",
)
def sweep(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    from orpo_ray.config import load_sweep

    resolved = load_sweep(config, overrides)
    from orpo_ray.cluster.connection import ENGINES, TRIALS, begin

    begin(resolved.cpus, now=TRIALS, later=ENGINES if resolved.finalists else ())
    from orpo_ray.storage.mirror import mirrored
    from orpo_ray.tuning.sweep import sweep as run

    with mirrored(resolved.storage, resolved.name):
        folder = run(resolved)
        from orpo_ray.report import write_sweep_report

        say(write_sweep_report(folder.path))


@app.command(
    short_help="Train, evaluate and report as one.",
    epilog=EXIT_CODES,
    help=f"""\
Train the runs of CONFIG, each behind those that it begins from, and evaluate what they made, as one command.

Each stage has its own folder with its report, as if it had been run by itself; where the cluster holds several at a
time, those that need not wait for each other run at once, each told in its log.txt. One that fails stops those that
need it, and no other. The same command continues a pipeline that was interrupted: stages that are finished are left as
they are. A mistake in any stage's configuration is told before the first one starts.

{OVERRIDES}
\b
Examples:
  orpo-ray pipeline configs/toy-pipeline.yaml
  orpo-ray pipeline configs/toy-pipeline.yaml train.orpo.objective.lambda=0.5 storage.path=/shared/runs
""",
)
def pipeline(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    from orpo_ray.config import load_pipeline

    resolved = load_pipeline(config, overrides)
    from orpo_ray.cluster.connection import ENGINES, begin

    begin(resolved.cpus, later=ENGINES)
    from orpo_ray.pipeline import run_pipeline

    say(run_pipeline(resolved))


@app.command(
    short_help="Remake the paper's tables and figures.",
    epilog=EXIT_CODES,
    help=f"""\
Remake the tables and figures of the ORPO paper as CONFIG says, from base models to one page: SFT, DPO, PPO and ORPO at
each size, on each data set, for each seed, reward models, who wins, a sweep of λ.

First a plan is printed: stages, steps, hours and disk. Then the stages run, as many at a time as the cluster holds,
each in its own folder in storage.path/name/stages. The page, its tables (CSV, Markdown, LaTeX) and figures (SVG, PNG)
are in storage.path/name/paper, the paper's own numbers beside. The same command goes on where it was interrupted;
where a setting has changed, what depends on it is made again, and nothing else.

{OVERRIDES}
\b
Examples:
  orpo-ray paper configs/paper/toy.yaml
  orpo-ray paper configs/paper/hh.yaml --plan
  orpo-ray paper configs/paper/hh.yaml 'seeds=[42, 43, 44]' storage.path=/shared/runs
""",
)
def paper(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan, and do nothing.")] = False,
) -> None:
    from orpo_ray.config.paper import load_paper

    resolved = load_paper(config, overrides)
    from orpo_ray.paper.stages import PaperStages

    stages = PaperStages(resolved, str(config))
    if not plan:
        from orpo_ray.cluster.connection import ENGINES, begin

        begin(max(stage.config.cpus for stage in stages.graph), later=ENGINES)
    from orpo_ray.paper.done import finished
    from orpo_ray.paper.plan import plan_of
    from orpo_ray.paper.plan_table import print_plan
    from orpo_ray.terminal import Console

    planned = plan_of(stages, finished(stages))
    print_plan(planned, Console())
    if not plan:
        from orpo_ray.paper.run import run_paper

        say(run_paper(stages, planned, Console(stderr=True)))


@app.command(
    short_help="Measure this package beside others.",
    epilog=EXIT_CODES,
    help=f"""\
Measure what CONFIG says: trainers side by side (this package, TRL, padded baselines, on the same pairs), or a stage of
an evaluation beside the plain way (generation, scoring, both at once).

Trainers have a process each; they take turns, one optimizer step each, so that only one computes at a time. Seconds,
rates, memory, MFU and the ratio of the first contestant to each other go to DIR/name.json, with every round. A trainer
that cannot run here is told as not measured, with the reason.

{OVERRIDES}
\b
Examples:
  orpo-ray bench configs/bench/hh-opt-52m.yaml
  orpo-ray bench configs/bench/hh-opt-52m.yaml steps=10 run.train.global_batch_size=16
  orpo-ray bench configs/bench/evaluation-scoring.yaml
""",
)
def bench(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the result goes.")] = Path("benchmarks/results"),
) -> None:
    from orpo_ray.config import load_benchmark

    resolved = load_benchmark(config, overrides)
    from orpo_ray.bench.results import write
    from orpo_ray.bench.run import run
    from orpo_ray.bench.table import print_result
    from orpo_ray.terminal import Console

    result = run(resolved, Console(stderr=True))
    print_result(result, Console())
    say(write(result, out))


# Here, so that the help lists them between what makes results and what checks a machine.
app.registered_commands += cli_results.app.registered_commands


@app.command(
    short_help="Check this machine, or every node of a cluster.",
    epilog=EXIT_CODES.replace("its traceback", "its traceback; here also: a check failed"),
    help=f"""\
Check whether this machine is fit for a run; where RAY_ADDRESS names a Ray cluster, each of its nodes.

Versions, compiler, GPUs, /dev/shm, free disk, storage that every node writes and sees, clocks, Ray's token, ports,
and whether the nodes reach each other. Each check is a line, OK, WARN or FAIL, with what to do. CONFIG is that of a
run, an evaluation or a sweep: its storage is looked at, and whether the cluster has room for it.

With --gpu instead: one GPU is measured for nine minutes, a JSON object a line, and packing held against plain
forwards there; with --toy the same on the CPU, at toy size.

{OVERRIDES}
\b
Examples:
  orpo-ray doctor configs/toy-orpo.yaml
  orpo-ray doctor --gpu
  RAY_ADDRESS=auto orpo-ray doctor configs/mistral-7b-orpo-beta.yaml storage.path=/shared/runs
""",
)
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="YAML file of what is to run.")] = None,
    overrides: OverridesArgument = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Measure one GPU, and nothing else.")] = False,
    toy: Annotated[bool, typer.Option("--toy", help="With --gpu: on the CPU, at toy size.")] = False,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", min=1, help="With --gpu: stop after S seconds; default: 520.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --gpu: for the lines; default: a new one here.")
    ] = None,
) -> None:
    start = time.perf_counter()
    if gpu and config is not None:
        raise UserError("doctor: --gpu looks at no configuration; leave CONFIG out")
    if not gpu and (toy or seconds is not None or out is not None):
        raise UserError("doctor: --toy, --seconds and --out say how --gpu is done; add it, or leave them out")
    if gpu:
        from orpo_ray.doctor.gpu import SECONDS
        from orpo_ray.doctor.gpu.run import check_gpu

        raise typer.Exit(check_gpu(seconds or SECONDS, out, toy=toy, start=start))
    from orpo_ray.config import StorageConfig, TrainConfig, load_any

    resolved = None if config is None else load_any(config, overrides)
    from orpo_ray.doctor.examine import examine, print_findings
    from orpo_ray.terminal import Console

    storage = StorageConfig() if resolved is None else resolved.storage
    scaling = resolved.scaling if isinstance(resolved, TrainConfig) else None
    if print_findings(examine(storage, scaling), Console()):
        raise typer.Exit(1)


@app.command(
    short_help="Show it all in minutes, on two CPU cores.",
    epilog=EXIT_CODES,
    help="""\
Show the whole thing in minutes, on two CPU cores and without a download.

Makes a base model in the embedded preference world, trains SFT, DPO, ORPO and a reward model through the real
stack (Ray Train with two workers, DeepSpeed), lets all answer by vLLM, and compares them by the reward model and
by the ground truth: win-rates with intervals, the log-probs of chosen and rejected answers, every response.

\b
Example:
  orpo-ray demo --out /tmp/demo
""",
)
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the run folders go.")] = Path("runs/demo"),
) -> None:
    from orpo_ray.cluster.connection import ENGINES, begin

    begin(cpus=3, later=ENGINES)
    from orpo_ray.demo import run_demo

    run_demo(out)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console entry: run a command and exit with its code (see `EXIT_CODES`).

    `arguments` default to the process's own; a bare `orpo-ray` shows the help.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    have_libraries_do_so()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of Slurm, Kubernetes, `timeout`: as Ctrl-C
    try:
        code = app(arguments or ["--help"], prog_name="orpo-ray", standalone_mode=False)
    except UserError as error:
        code = _complain(str(error))
    except typer.TyperException as error:  # a misspelt command or option
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        code = _complain(error.format_message().rstrip(".") + hint)
    except Exception as error:
        code = tell_of_a_bug(error)
    if code == 130:
        _complain(_interrupted(arguments))
    sys.exit(code)


_KEEP_NOTHING = {"data", "doctor", "export", "outputs", "report", "status", "verdicts"}
"""Commands that are over in little time, and leave nothing half done that another call would go on with."""


def _interrupted(arguments: Sequence[str]) -> str:
    if arguments[0] in _KEEP_NOTHING:
        return "interrupted"
    again = "starts anew" if arguments[0] == "bench" else "continues where it stopped"
    return f"interrupted; the same command {again}: {shlex.join(['orpo-ray', *arguments])}"


def _complain(message: str) -> int:
    say(f"orpo-ray: {masked(' '.join(message.split()))}", error=True)
    return 2


if __name__ == "__main__":
    main()
