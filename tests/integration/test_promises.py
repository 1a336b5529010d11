"""What docs/security.md promises of a command's processes, over every command that starts some."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import yaml
from documented import FEW, ROOT
from secret_scan import leaks
from watched_command import Seen, watch

from orpo_ray.config import ModelConfig
from orpo_ray.data import toyworld
from orpo_ray.modeling.loading import load_policy

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA1234ofsomebody", "AWS_SECRET_ACCESS_KEY": "aws/Sec+ret/KeyXYZ0",
    "AWS_SESSION_TOKEN": "aws-session-5f3a", "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQr",
    "WANDB_API_KEY": "0123wandb4567secret", "RAY_AUTH_TOKEN": "token-of-another-cluster",
}  # fmt: skip
# As a person has it who uses clusters too, on which all of this is well.
OF_ANOTHER_CLUSTER = {"RAY_AUTH_MODE": "disabled", "GLOO_SOCKET_IFNAME": "eth0", "VLLM_HOST_IP": "0.0.0.0"}
RUN: dict[str, Any] = {
    "name": "toy",
    "model": {"name_or_path": "toy", "dtype": "float32"},
    "data": {"train": "toy", "eval": "toy-test", "max_length": 128, "max_prompt_length": 64, "limit": 300},
    "train": {"max_steps": 4, "global_batch_size": 16, "eval_every_steps": 2},
    "scaling": {"num_workers": 2},
}
PROMPTS = {"source": "toy-test", "limit": 2}
SPACE = {"optim.lr": "loguniform(1e-4, 1e-3)"}
EVALUATION = {"name": "judged", "prompts": PROMPTS, "reward_models": {"truth": "toy"}}
REFUSALS = {"UNAUTHENTICATED", "UNIMPLEMENTED", "401"}


class Place(NamedTuple):
    """Where a command is typed."""

    folder: Path

    def with_storage(self, content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "storage": {"path": str(self.folder / "runs")}}

    def written(self, name: str, content: dict[str, Any]) -> str:
        """A YAML file of that name."""
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(self.with_storage(content)))
        return str(file)

    @property
    def steps(self) -> bool:
        """Whether a run has begun."""
        return any(self.folder.glob("demo/*/metrics.jsonl"))


def sweep(place: Place) -> list[str]:
    return ["sweep", place.written("sweep", {"name": "s", "train": RUN, "space": SPACE, "trials": 2, "grace_steps": 2})]


def evaluate(place: Place) -> list[str]:
    model = load_policy(ModelConfig(name_or_path="toy"), seed=0).model
    model.save_pretrained(place.folder / "model")
    toyworld.tokenizer().save_pretrained(place.folder / "model")
    return ["evaluate", place.written("evaluate", {**EVALUATION, "models": {"toy": str(place.folder / "model")}}), *FEW]


def pipeline(place: Place) -> list[str]:
    judged = {**EVALUATION, "models": {"toy": str(place.folder / "runs/toy")}}
    file = place.written(
        "pipeline", {"train": {"toy": place.with_storage(RUN)}, "evaluate": place.with_storage(judged)}
    )
    return ["pipeline", file, *(f"evaluate.{key}" for key in FEW)]


def bench(place: Place) -> list[str]:
    setting = {"name": "generation", "measures": "generation", "policy": "toy", "tokenizer": "toy", "rounds": 1}
    sampling = {"max_tokens": 2, "rounds": 1}
    file = place.folder / "bench.yaml"
    file.write_text(yaml.safe_dump({**setting, "prompts": PROMPTS, "sampling": sampling}))
    return ["bench", str(file), "--out", str(place.folder / "results")]


LIBRARY = """
import ray, sys
from orpo_ray.config import load_config
from orpo_ray.training.launcher import train
train(load_config(sys.argv[1]))
"""
CLI = ("-m", "orpo_ray.cli")
COMMANDS: dict[str, Callable[[Place], list[str]]] = {
    "train": lambda place: [*CLI, "train", place.written("run", RUN)],
    "evaluate": lambda place: [*CLI, *evaluate(place)],
    "sweep": lambda place: [*CLI, *sweep(place)],
    "pipeline": lambda place: [*CLI, *pipeline(place)],
    "bench": lambda place: [*CLI, *bench(place)],
    "demo": lambda place: [*CLI, "demo", "--out", str(place.folder / "demo")],
    "doctor": lambda place: [*CLI, "doctor"],
    "a program that imported Ray before": lambda place: ["-c", LIBRARY, place.written("run", RUN)],
}


class Watched(NamedTuple):
    command: str
    seen: Seen
    home: Path
    folder: Path


LONG = {"train", "evaluate", "bench", "demo", "a program that imported Ray before"}
"""What begins as others do; a pipeline trains and evaluates."""


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in COMMANDS
])  # fmt: skip
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    command, folder = request.param, tmp_path_factory.mktemp("promises")
    (home := folder / "home").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_", "VLLM_", "HF_HOME"))}
    environment |= {**SECRETS, **OF_ANOTHER_CLUSTER, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    place = Place(folder)
    with TemporaryDirectory(prefix="op-", dir="/tmp") as temporary:
        seen = watch(
            COMMANDS[command](place), environment, Path(temporary), SECRETS,
            (lambda: place.steps) if command == "demo" else None, signal.SIGINT,
        )  # fmt: skip
    print(command, seen)
    # A doctor may find fault with the machine.
    assert seen.status in {"demo": (130,), "doctor": (0, 1)}.get(command, (0,)), seen.said[-3000:]
    return Watched(command, seen, home, folder)


def test_nothing_listens_beyond_loopback(watched: Watched) -> None:
    assert any("gcs_server" in title for title in watched.seen.listening.values()) == (watched.command != "doctor")
    addresses = {place: ip_address(place[0].removeprefix("::ffff:")) for place in watched.seen.listening}
    assert {watched.seen.listening[place] for place, address in addresses.items() if not address.is_loopback} == set()


def test_nobody_is_answered_without_the_token(watched: Watched) -> None:
    """But for metrics, which Ray gives to everybody on this machine."""
    said = {(title, answer) for place, title in watched.seen.listening.items()
            for answer in watched.seen.answers[place].values()}  # fmt: skip
    answers = {answer for _, answer in said}
    assert watched.command == "doctor" or {"UNAUTHENTICATED", "401"} <= answers
    assert {(title, answer) for title, answer in said if answer not in REFUSALS | {"metrics"}} == set()


def test_what_is_temporary_is_nobody_elses_and_goes(watched: Watched) -> None:
    assert watched.seen.modes
    assert [name for name, mode in watched.seen.modes.items() if mode & 0o077] == []
    assert watched.seen.left == []


def test_no_secret_is_written(watched: Watched) -> None:
    assert watched.seen.leaks == set()
    assert leaks(watched.folder, SECRETS) == []


def test_no_token_lies_in_the_home_folder(watched: Watched) -> None:
    assert [path for path in watched.home.rglob("*") if "ray" in path.parts[len(watched.home.parts)].lower()] == []
