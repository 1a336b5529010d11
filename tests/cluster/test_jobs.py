"""Jobs on a real cluster of two nodes: nobody without the token, nothing beyond loopback, and resubmitting resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import free_ports, wait_for
from documented import SHORT_PIPELINE

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
STEPS = 60
HH = [
    "configs/hh-small-orpo.yaml", f"data.train={SHARED / 'data/hh_rlhf/harmless-base-test.jsonl.gz'}", "data.limit=400",
    f"model.tokenizer={SHARED / 'tokenizers/opt'}", "data.max_length=96", "data.max_prompt_length=64",
]  # fmt: skip
TOY = ["configs/toy-base.yaml", "data.limit=400"]
RUN = [*(HH if SHARED.is_dir() else TOY), "train.global_batch_size=8", "train.checkpoint_every_steps=5"]


class Jobs:
    """The cluster, as a person has it before them."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        # Agents, who take jobs, would all listen on one port; another cluster of this machine may have it.
        here, there = ({"node_ip_address": "127.0.0.1", "dashboard_agent_listen_port": port} for port in free_ports(2))
        dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
        # A folder each, as on machines of their own: a node puts the working directory anew into its own.
        second = folder / "second"
        head = {"num_cpus": 1, **dashboard, **here}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.head_node, self._cluster.add_node(num_cpus=2, temp_dir=str(second), **there)]
        # As `ray start` does: the driver of a job on this node looks here for its cluster.
        self.address = self._cluster.address
        (second / "ray_current_cluster").write_text(self._cluster.address)
        self.url = f"http://{self._cluster.head_node.webui_url}"
        try:
            wait_for(self._takes_jobs, "the job server", seconds=300)
        except BaseException:
            self.stop()
            raise

    def _takes_jobs(self) -> bool:
        """Until an agent has come up, jobs are refused with a 500."""
        from ray.job_submission import JobSubmissionClient

        try:
            JobSubmissionClient(self.url).submit_job(entrypoint="true")
        except RuntimeError:
            return False
        return True

    def stop(self) -> None:
        self._cluster.shutdown()

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job VERB …`, at this cluster."""
        command = ["ray", *arguments[:2], "--address", self.url, *arguments[2:]]
        return subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )

    def submit(self, name: str, job: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What the documentation says, and waiting for the job's end."""
        return subprocess.run(
            [
                "ray", "job", "submit", "--address", self.url, "--submission-id", name, "--runtime-env",
                "jobs/runtime_env.yaml", "--metadata-json", json.dumps({"run": name}), "--", "python", f"jobs/{job}.py",
                *arguments,
            ],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, env={**os.environ, **environment},
        )  # fmt: skip

    def begin(self, name: str, job: str, *arguments: str) -> None:
        """As `submit`, without waiting."""
        from ray.job_submission import JobSubmissionClient

        runtime_env = yaml.safe_load((REPOSITORY / "jobs/runtime_env.yaml").read_text())
        JobSubmissionClient(self.url).submit_job(
            entrypoint=" ".join(["python", f"jobs/{job}.py", *arguments]), submission_id=name,
            runtime_env={**runtime_env, "working_dir": str(REPOSITORY)},
        )  # fmt: skip

    def status(self, name: str) -> str:
        from ray.job_submission import JobSubmissionClient

        return str(JobSubmissionClient(self.url).get_job_status(name).value)

    def log(self, name: str) -> str:
        from ray.job_submission import JobSubmissionClient

        return str(JobSubmissionClient(self.url).get_job_logs(name))

    def listens(self, besides: str | None = None) -> set[str]:
        """The addresses that any process of the cluster listens on; `besides`: leave out those of this name."""
        found = set()
        for node in self._nodes:
            for service in (service for services in node.all_processes.values() for service in services):
                process = psutil.Process(service.process.pid)
                for each in (process, *process.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        if besides is not None and besides in " ".join(each.cmdline()):
                            continue
                        found |= {c.laddr.ip for c in each.net_connections(kind="inet") if c.status == "LISTEN"}
        return {address.removeprefix("::ffff:") for address in found}


@pytest.fixture(scope="module")
def jobs(temporary: Path) -> Iterator[Jobs]:
    cluster = Jobs(temporary)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(jobs: Jobs, storage: Path) -> Path:
    """A run whose job was stopped and submitted again."""
    folder = storage / "hh"
    run = [*RUN, "name=hh", f"storage.path={storage}", f"train.max_steps={STEPS}", "train.eval_every_steps=60"]
    jobs.begin("first", "train", *run)

    def going() -> bool:
        assert jobs.status("first") in ("PENDING", "RUNNING"), jobs.log("first")[-4000:]
        return True

    wait_for(lambda: going() and (folder / "driver.lock").is_file(), "the driver")
    double = jobs.submit("double", "train", *run)
    assert double.returncode == 1 and "another driver" in double.stdout, double.stdout + double.stderr
    wait_for(lambda: going() and list(folder.glob("checkpoints/*/manifest.json")), "a checkpoint")
    # The store in which torch's ranks meet is rank 0's, and listens everywhere, whatever it is told.
    assert jobs.listens(besides="RayTrainWorker") == {"127.0.0.1"}
    stopped = jobs.ray("job", "stop", "first")
    assert stopped.returncode == 0, stopped.stderr
    wait_for(lambda: jobs.status("first") == "STOPPED", "the job to stop")
    before = lines(folder)
    kept = max(int(path.parent.name.removeprefix("step-")) for path in folder.glob("checkpoints/*/manifest.json"))
    assert kept == before[-1]["step"] < STEPS, jobs.log("first")[-4000:]
    assert "stopping: saving a checkpoint" in jobs.log("first")
    assert not (folder / "summary.json").exists()
    again = jobs.submit("second", "train", *run)
    assert again.returncode == 0, again.stdout[-4000:]
    after = lines(folder)
    assert [line["step"] for line in after if "loss" in line] == list(range(1, STEPS + 1))
    done = [line for line in before if line["step"] <= kept]
    assert after[: len(done)] == done  # timings too: these steps were not computed again
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize(
    "environment",
    [{"RAY_AUTH_TOKEN": "0" * 32}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}],
    ids=["another token", "no token"],
)
def test_a_job_without_the_token_is_refused(jobs: Jobs, environment: dict[str, str]) -> None:
    refused = jobs.submit("intruder", "train", *RUN, **environment)
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()
    assert "intruder" not in jobs.ray("job", "list").stdout


@pytest.mark.parametrize("token", ["0" * 32, None])
def test_a_command_without_the_token_is_told_so_in_one_line(jobs: Jobs, tmp_path: Path, token: str | None) -> None:
    own = {"RAY_ADDRESS": jobs.address, "HOME": str(tmp_path), **({"RAY_AUTH_TOKEN": token} if token else {})}
    environment = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | own
    command = [sys.executable, "-m", "orpo_ray.cli", "train", "configs/toy-base.yaml", f"storage.path={tmp_path}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"RAY_ADDRESS={jobs.address}: no Ray cluster there lets this process in" in done.stderr
    assert "Traceback" not in done.stderr


DRIVER = """
import os, sys
from orpo_ray.cluster import connection
connection.begin(1)
connection.connect()
import ray

@ray.remote(num_cpus=0, max_retries=0)
def parent() -> str:
    return open(f"/proc/{os.getppid()}/cmdline").read()

own = open("/proc/self/cmdline").read()
told = [ray.get(parent.remote()) == own]
os.unlink(connection._forks.path)

@ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": {"OTHER": "1"}})
def of_another_environment() -> bool:
    return "deepspeed" in sys.modules

told.append(ray.get(of_another_environment.remote()))
print(told)
"""


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="workers are not forked beside GPUs")
def test_workers_on_somebody_else_s_cluster_are_forked_too_where_the_server_is(jobs: Jobs) -> None:
    """Without the server, as on a node that joins later, they are plain processes."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"RAY_ADDRESS": jobs.address},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[True, False]"


def test_everything_listens_on_loopback_alone(jobs: Jobs) -> None:
    assert jobs.listens() == {"127.0.0.1"}


def test_a_job_that_was_stopped_resumes_when_it_is_submitted_again(trained: Path) -> None:
    assert json.loads((trained / "summary.json").read_text())["steps"] == STEPS
    assert (trained / "report.html").is_file() and not (trained / "driver.lock").exists()


def test_a_sweep_is_a_job(jobs: Jobs, storage: Path, trained: Path) -> None:
    file = storage / "sweep.yaml"
    overrides = [*RUN[1:], "train.max_steps=4", "train.eval_every_steps=4", "scaling.num_workers=1"]
    sweep = {
        "name": "sweep", "train": RUN[0], "overrides": overrides, "space": {"optim.lr": "choice(1e-4, 1e-3)"},
        "trials": 2, "scheduler": "none", "concurrency": 2, "storage": {"path": str(storage)},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(sweep))
    done = jobs.submit("sweep", "sweep", str(file))
    assert done.returncode == 0, done.stdout[-4000:]
    assert (storage / "sweep/best.yaml").is_file()


@pytest.mark.parametrize("models", [["one"], pytest.param(["one", "same"], marks=pytest.mark.long)], ids="+".join)
def test_an_evaluation_is_a_job(jobs: Jobs, storage: Path, trained: Path, models: list[str]) -> None:
    """Each model takes an engine of its own."""
    name = f"winrate-{len(models)}"
    file = storage / f"{name}.yaml"
    found = {"one": str(trained), "same": str(trained / "model")}
    evaluation = {
        "name": name, "models": {label: found[label] for label in models}, "embedder": None,
        "prompts": {"source": "toy-test", "limit": 4},
        "reward_models": {"truth": "toy"}, "sampling": {"max_tokens": 8, "rounds": 1},
        "scaling": {"generators": 1, "scorers": 1}, "storage": {"path": str(storage)},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(evaluation))
    done = jobs.submit(name, "evaluate", str(file))
    assert done.returncode == 0, done.stdout[-4000:]
    assert json.loads((storage / name / "winrates.json").read_text())["prompts"] == 4


def test_a_pipeline_is_a_job_and_tells_its_log(jobs: Jobs, storage: Path) -> None:
    """As docs/deployment.md submits it, with less to do."""
    environment = {"working_dir": ".", "env_vars": {"TOKENIZERS_PARALLELISM": "false"}}
    done = jobs.ray(
        "job", "submit", "--submission-id", "pipeline", "--runtime-env-json", json.dumps(environment), "--", "python",
        "jobs/pipeline.py", "configs/toy-pipeline.yaml", f"storage.path={storage}",
        *SHORT_PIPELINE, "evaluate.models={orpo: ./runs/toy-orpo}",
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert (storage / "toy-pipeline/report.html").is_file() and (storage / "toy-orpo/report.html").is_file()
    told = jobs.ray("job", "logs", "pipeline", "--follow")
    assert told.returncode == 0 and "toy-orpo: done" in told.stdout
