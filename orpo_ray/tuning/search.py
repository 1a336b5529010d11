"""Ray Tune at work: which trial is next, which stops, and what becomes of one that is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher as TuneSearcher

from orpo_ray.cluster.leftovers import leftovers_removed
from orpo_ray.config import SweepConfig
from orpo_ray.errors import UserError
from orpo_ray.storage.driver_lock import is_lost
from orpo_ray.terminal import Console
from orpo_ray.training.stopping import StopRequest, saving_when_stopped
from orpo_ray.tuning.folder import SweepFolder
from orpo_ray.tuning.ledger import Ledger
from orpo_ray.tuning.points import Searcher
from orpo_ray.tuning.room import OF_A_TRIAL, Share
from orpo_ray.tuning.trial import crash, run_trial


class _NotStored:
    """Ray Tune writes down what it is given, to go on by itself. A sweep goes on from its trials' folders."""

    def __reduce__(self) -> Any:
        return str, (type(self).__name__,)


class Source(_NotStored, TuneSearcher):  # type: ignore[misc]
    """Gives Ray Tune the trials in their order, without those that are over."""

    def __init__(
        self,
        config: SweepConfig,
        folder: SweepFolder,
        ledger: Ledger,
        searcher: Searcher,
        lag: int,
        share: Share,
        stop: StopRequest | None = None,
    ) -> None:
        """`share`: what each trial has of the cluster. `stop`: the request that its trials hear, and after which none
        follows."""
        super().__init__(metric=None, mode=None)
        self._config = config
        self._folder = folder
        self._ledger = ledger
        self._searcher = searcher
        self._lag = lag
        self._share = share
        self._stop = stop

    def suggest(self, trial_id: str) -> Any:
        """The next trial, None while it depends on one that is running, or that there is none."""
        ledger, config = self._ledger, self._config
        if self._stop is not None and self._stop.made:
            return TuneSearcher.FINISHED
        while (index := len(ledger.trials)) < config.number_of_trials:
            # What depends on outcomes depends on those `lag` trials back, whichever others are known: so the same
            # trials follow whatever the speed of each.
            upto = max(0, index - self._lag + 1)
            if (config.searcher == "optuna" or config.steps) and ledger.first_over() < upto:
                return None
            if config.steps and sum(ledger.steps(trial) for trial in ledger.trials[:upto]) >= config.steps:
                break
            trial = ledger.begin(self._searcher.settings(index, ledger.outcomes(upto)))
            if not ledger.over(trial):
                run = self._share.given(self._folder.training(index, trial.settings))
                stop = self._stop and self._stop.name
                return {"index": index, "run": run.model_dump_json(by_alias=True), "given": time.time(), "stop": stop}
        return TuneSearcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The scheduler has been told."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: run folders are what a sweep continues from."""


class InOrder(_NotStored, FIFOScheduler):  # type: ignore[misc]
    """Stops the trials that the ledger says are to stop, as soon as it does."""

    def __init__(self, ledger: Ledger, folder: SweepFolder, changed: Callable[[], None]) -> None:
        super().__init__()
        self._ledger = ledger
        self._folder = folder
        self._changed = changed
        self.mistake = ""
        """What is wrong with a host that a trial was given to, and so with no trial."""

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if "mistake" in result:
            self.mistake = result["mistake"]
            tune_controller.request_stop_experiment()
            return str(self.STOP)
        if "failure" in result:
            self._folder.fail(trial.config["index"], result["failure"], diverged=result["diverged"])
        self._look(tune_controller, trial)
        stop = self._ledger.stops[trial.config["index"]] is not None
        return str(self.STOP if stop else self.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        self._look(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """The trial's own process was lost more often than is tried again."""
        self._folder.fail(trial.config["index"], crash(RuntimeError(trial.error_msg or "its process was lost")))
        self._look(tune_controller, trial)

    def _look(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._ledger.refresh(trial.config["index"])
        for other in tune_controller.get_live_trials():
            if other is not trial and self._ledger.stops[other.config["index"]] is not None:
                tune_controller.request_stop_trial(other)
        self._changed()


def search(
    config: SweepConfig,
    folder: SweepFolder,
    ledger: Ledger,
    searcher: Searcher,
    concurrency: int,
    lag: int,
    share: Share,
    seconds: float | None,
    changed: Callable[[], None],
    console: Console,
) -> None:
    """Run trials, each on its `share`, until there are no more, or `seconds` have passed. `changed` is called whenever
    more is known. Raises `KeyboardInterrupt` where they were stopped, their checkpoints saved; `UserError` where a
    trial's host does not see the sweep's folder."""
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C stops a sweep like any other command
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one greets even where it is to be silent
    # Ray Tune by itself puts AWS keys into its trials' runtime environment, which Ray writes into its logs. Trials have
    # the keys of the machine they run on, as the workers of any run.
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in os.environ if name.startswith("AWS_")}
    training = folder.training(0, config.first_point)
    stop, in_order = StopRequest(), InOrder(ledger, folder, changed)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, OF_A_TRIAL),
        tune_config=tune.TuneConfig(
            search_alg=Source(config, folder, ledger, searcher, lag, share, stop),
            scheduler=in_order,
            num_samples=config.number_of_trials,
            max_concurrent_trials=concurrency,
            time_budget_s=seconds,
            trial_dirname_creator=lambda trial: f"{trial.config['index']:03d}",
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=folder.ray.name,
            storage_path=str(folder.path),
            failure_config=tune.FailureConfig(max_failures=training.scaling.max_failures),
            verbose=0,
        ),
    )
    with (
        leftovers_removed(),
        saving_when_stopped(stop, console, config.name, lambda: is_lost(folder.path), several=True) as stopping,
    ):
        tuner.fit()
    if in_order.mistake:
        raise UserError(in_order.mistake)
    if stopping.asked:
        raise KeyboardInterrupt
