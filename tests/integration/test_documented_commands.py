"""The commands that README and the guides show, typed as they stand, with less to do where they would take long."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from documented import FEW, ROOT, SHORT_PIPELINE, TINY, lines

from orpo_ray.data import toyworld

DIALOGUES = ["data.max_length=96", "data.max_prompt_length=64"]
ONE_MODEL, MODELS = "models={orpo: ./runs/toy-orpo}", "models={base: ./runs/toy-base, orpo: ./runs/toy-orpo}"
TRUTH = "reward_models={truth: toy}"
FEW_ROLLOUTS = [
    "rollouts.prompts=8", "rollouts.max_tokens=4", "rollouts.eval_prompts=2", "rollouts.rewards={truth: toy}",
    "rollouts.engine=transformers", "objective.critic=./runs/toy-sft",
]  # fmt: skip

RUN_HERE: dict[str, list[str]] = {
    "orpo-ray pipeline configs/toy-pipeline.yaml": [*SHORT_PIPELINE, f"evaluate.{ONE_MODEL}"],
    "orpo-ray train configs/toy-orpo.yaml name=toy-lora": TINY,
    "orpo-ray train configs/toy-ppo.yaml  ": [*TINY, *FEW_ROLLOUTS],
    "orpo-ray train configs/small-orpo.yaml": [*TINY, *DIALOGUES],
    "orpo-ray data configs/small-orpo.yaml": DIALOGUES,
    "orpo-ray evaluate configs/toy-winrate.yaml": [*FEW, ONE_MODEL, TRUTH],
    "orpo-ray outputs runs/toy-winrate": [],
    "orpo-ray score configs/score-toy.yaml": [TRUTH, "prompts.limit=3", "scaling.scorers=1"],
    "orpo-ray sweep configs/toy-sweep.yaml": [
        "trials=1", "finalists=null", "grace_steps=1", *(f"train.{key}" for key in TINY), "overrides=[]"
    ],
    "orpo-ray status runs/NAME": [],
    "orpo-ray status runs ": [],
    "orpo-ray report runs/toy-base runs/toy-orpo": [],
    "orpo-ray export runs/NAME": [],
    "orpo-ray doctor  ": [],
    "ray get-auth-token --generate": [],
}  # fmt: skip
"""How a command begins, and what is typed behind it; in an order in which each finds what it needs."""

LONGER = {
    "orpo-ray train configs/hh-small-orpo.yaml": [*TINY, *DIALOGUES],
    "orpo-ray pipeline configs/toy-pipeline.yaml": SHORT_PIPELINE,
    "orpo-ray evaluate configs/toy-winrate.yaml": [*FEW, MODELS, TRUTH],
}
"""By `make test-all` alone: dialogues of the Hub's shape, and the same with every model, each of which takes
an engine of its own."""

ELSEWHERE = {
    r"make (demo|test)": "by CI: the first from time to time, the second always",
    r"orpo-ray train configs/toy-(base|sft|reward)\.yaml ": "as stages of the pipelines are",
    r"orpo-ray train configs/toy-ppo.yaml name=toy-rloo": "as toy-ppo is",
    r"orpo-ray sweep configs/toy-ppo-sweep": "by unit/test_rollout_sweeps.py",
    r"orpo-ray pipeline configs/toy-rlhf-pipeline": "as its stages and the other pipeline are",
    r"orpo-ray (paper configs/paper/toy\.yaml|(status|report) runs/paper-toy)": "by test_paper.py, as small as can be",
    r"orpo-ray \w+ configs/(opt-|mistral-|paper/(opt-|hh))": "needs GPUs and the Hub",
    r"RAY_A\w+=.* orpo-ray train configs/opt-": "needs GPUs and the Hub",
    r"RAY_ADDRESS=auto orpo-ray doctor": "by test_doctor_cluster.py",
    r"orpo-ray doctor --gpu|PYTHONPATH=. python -m orpo_ray.doctor.gpu": "at toy size, by test_gpu_check_toy.py",
    r"orpo-ray verdicts ": "with files of each benchmark, by unit/test_verdicts.py and unit/test_ifeval.py",
    r"ray job submit .* jobs/(train|sweep|evaluate|pipeline)\.py": "with other runs, by tests/cluster/test_jobs.py",
    r"ray job submit -- python -c .*request_resources": "by tests/cluster/test_autoscaling.py",
    r"ray job (logs|stop)": "by tests/cluster/test_jobs.py",
    r"RAY_AUTH_MODE=token ray start": "with ports of its own, by tests/cluster/test_autoscaling.py",
    r"ray (up|down|dashboard|exec|attach|rsync-down) cluster\.yaml|aws ": "needs AWS",
    r"make venv LOCK=requirements/gpu\.lock": "needs CUDA's packages",
    r"docker |kubectl ": "needs Docker, or Kubernetes",
    r"vllm serve runs/NAME/model": "waits for requests; vLLM loads and asks runs' models in test_evaluate.py",
    r"python llama\.cpp/|ollama ": "needs llama.cpp, and Ollama, which do not come along",
    r"pip install boto3": "needs nothing else",
    r"export ": "is the shell's",
}


def shown(beginning: str) -> list[str]:
    return [line for _, line in lines() if f"{line}  ".startswith(beginning)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A folder as a clone has it, with pairs of one's own; its commands find the tests' cluster."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def test_every_command_is_run_or_said_why_not() -> None:
    for page, line in lines():
        here = [beginning for beginning in RUN_HERE | LONGER if f"{line}  ".startswith(beginning)]
        there = [pattern for pattern in ELSEWHERE if re.match(pattern, line)]
        assert len(here) + len(there) == 1, f"{page}: {line}: {here}, {there}"
    assert all(shown(beginning) for beginning in RUN_HERE | LONGER)
    assert all(any(re.match(pattern, line) for _, line in lines()) for pattern in ELSEWHERE)


@pytest.mark.parametrize(
    ("beginning", "behind"),
    [
        *(pytest.param(*command, id=command[0]) for command in RUN_HERE.items()),
        *(pytest.param(*command, id=f"{command[0]} longer", marks=pytest.mark.long) for command in LONGER.items()),
    ],
)
def test_as_it_stands(beginning: str, behind: list[str], place: Path, shared: Path) -> None:
    dialogues = (shared / "data/hh_rlhf/harmless-base-test.jsonl.gz").read_bytes()
    (place / "dialogues.jsonl").write_bytes(gzip.decompress(dialogues))
    pairs = "\n".join(json.dumps(pair) for pair in toyworld.records("toy-test")).encode()  # {prompt, chosen, rejected}
    (place / "pairs.jsonl").write_bytes(pairs)
    (place / "pairs.jsonl.gz").write_bytes(gzip.compress(pairs))
    tokenizer = [f"model.tokenizer={shared / 'tokenizers/opt'}"] if "small-orpo" in beginning else []
    address = "" if beginning.startswith("orpo-ray doctor") else ray.get_runtime_context().gcs_address
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        **({"RAY_ADDRESS": address} if address else {}),
        **({"HOME": str(place)} if "get-auth-token" in beginning else {}),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    shown_words = [shlex.split(line.replace("runs/NAME", "runs/toy-base"), comments=True) for line in shown(beginning)]
    for line, words in {shlex.join(words): words for words in shown_words}.items():
        done = subprocess.run(
            [*words, *behind, *tokenizer], cwd=place, env=environment, capture_output=True, text=True,
            timeout=400, check=False,
        )  # fmt: skip
        # A doctor may find fault with the machine, and says so by a 1.
        assert done.returncode in ((0, 1) if "doctor" in line else (0,)), f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout
    if beginning.endswith("small-orpo.yaml") and beginning.startswith("orpo-ray train"):
        assert (place / "runs" / Path(beginning.split()[-1]).stem / "report.html").is_file()
    shutil.rmtree(place / ".ray", ignore_errors=True)
