"""Every command that README and the guides show is one that exists, with its options, files and overrides."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from documented import ROOT, lines

from orpo_ray.cli import app
from orpo_ray.config import (
    EvaluationConfig,
    ScoreConfig,
    load_as,
    load_benchmark,
    load_config,
    load_pipeline,
    load_sweep,
)

LOADERS: dict[str, Callable[[Path, list[str]], Any]] = {
    "train": load_config, "data": load_config, "evaluate": lambda path, keys: load_as(EvaluationConfig, path, keys),
    "score": lambda path, keys: load_as(ScoreConfig, path, keys),
    "sweep": load_sweep, "pipeline": load_pipeline, "bench": load_benchmark,
}  # fmt: skip
IMAGES = {"orpo-ray:gpu", "registry.example.com/orpo-ray:gpu"}


def words_of(line: str) -> list[str]:
    """The command in a shell's words, without the variables before it. What the shell would put in stands as it is."""
    filled = re.sub(r"\$\([^)]*\)", "filled-in", line)
    words = shlex.split(filled, comments=True)
    settings = list(takewhile(lambda word: re.match(r"\w+=", word), words))
    return words[len(settings) :]


@pytest.mark.parametrize(("page", "line"), lines())
def test_a_command_is_one_that_exists(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = words_of(line)
    assert words[0] in CHECKS, f"{page}: nothing checks commands such as {line}"
    CHECKS[words[0]](words[1:])


def test_the_tasks_of_readme_name_commands_and_pages_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    table = (ROOT / "README.md").read_text().partition("## I want to …\n")[2].partition("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in table.strip().splitlines()[2:]]
    assert len(rows) > 10
    for _, command, _ in rows:
        for program, *words in (found.split() for found in re.findall(r"`((?:make|orpo-ray) [^`]*)`", command)):
            CHECKS[program](words)
    linked = set(re.findall(r"\]\(docs/([\w-]+)\.md", (ROOT / "README.md").read_text()))
    assert linked == {path.stem for path in (ROOT / "docs").glob("*.md")}, "a page without a link, or a dead link"


def test_ray_is_told_where_to_send_the_token_before_a_job_is_named() -> None:
    told: dict[str, bool] = {}
    for page, line in lines():
        if re.match(r"export .*RAY_AUTH_MODE=token .*RAY_API_SERVER_ADDRESS=http", line):
            told[page] = True
        if re.search(r"\bray job ", line):
            assert told.get(page) or line.startswith("RAY_AUTH_MODE=token "), f"{page}: {line}"


def test_the_pages_show_commands() -> None:
    shown = {words_of(line)[0] for _, line in lines()}
    assert {"orpo-ray", "make", "ray", "docker", "kubectl"} <= shown


@pytest.mark.parametrize(
    "line",
    [
        "orpo-ray trian configs/toy-base.yaml", "orpo-ray train configs/nowhere.yaml", "orpo-ray demo --to /tmp",
        "orpo-ray train configs/toy-base.yaml optim.lrr=1", "make nonsense", "make venv LOCK=requirements/tpu.lock",
        "ray job submit --work-dir . -- python jobs/train.py configs/toy-base.yaml", "ray up clusters.yaml",
        "ray job submit --working-dir . -- python jobs/tran.py configs/toy-base.yaml", "ray job halt x",
        "ray job submit --runtime-env jobs/env.yaml -- python jobs/train.py configs/toy-base.yaml",
        "docker build -f Dockerfile -t orpo-ray:gpu .", "kubectl apply -f deploy/nowhere.yaml", "helm install",
        "python -m orpo_ray.nothing", "orpo-ray doctor --gpus",
        "kubectl delete -f deploy/kuberay-volume.yaml", "kubectl get rayjob nothing",
        "kubectl port-forward service/x 8265",
        "aws cloudformation deploy --stack-name x --template-file deploy/aws-iam.yaml --capabilities CAPABILITY_IAM",
    ],
)  # fmt: skip
def test_a_command_that_does_not_exist_is_noticed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception):  # noqa: B017 (each program has a kind of its own)
        test_a_command_is_one_that_exists("a page", line, monkeypatch)


def check_own(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    name, *arguments = words
    registered = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert name in registered, name
    parsed = group.commands[name].make_context(name, arguments).params
    if name in LOADERS:
        LOADERS[name](Path(parsed["config"]), list(parsed["overrides"] or ()))


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [word for word in words if "=" not in word]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), targets
    for name, _, value in (word.partition("=") for word in words if "=" in word):
        assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), name
        assert name != "LOCK" or Path(value).is_file(), value


def check_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    command: Any = cli
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    parsed = command.make_context(name, list(words)).params
    if "cluster_config_file" in parsed:
        assert Path(parsed["cluster_config_file"]).is_file()
    if parsed.get("runtime_env"):
        assert set(yaml.safe_load(Path(parsed["runtime_env"]).read_text())) <= {"working_dir", "env_vars"}
    for key in ("runtime_env_json", "metadata_json"):
        json.loads(parsed.get(key) or "{}")
    if parsed.get("entrypoint"):
        python, script, *arguments = parsed["entrypoint"]
        if script == "-c":
            compile(arguments[0], "entrypoint", "exec")
            return
        assert python == "python" and Path(script).is_file() and Path(script).parent == Path("jobs")
        check_own([Path(script).stem, *arguments])


def check_docker(words: list[str]) -> None:
    verb, *rest = words
    if verb == "build":
        assert rest[0] == "-f" and Path(rest[1]).is_file() and rest[-1] == "."
    images = [word for word in rest if "orpo-ray:" in word]
    assert images and set(images) <= IMAGES
    after = rest[rest.index(images[-1]) + 1 :]
    if verb == "run":
        assert after[0] == "orpo-ray"
        check_own(after[1:])


def check_kubectl(words: list[str]) -> None:
    documents = [
        one for path in (ROOT / "deploy").glob("kuberay-*.yaml") for one in yaml.safe_load_all(path.read_text())
    ]
    names = {(one["kind"].lower(), one["metadata"]["name"]) for one in documents}
    verb, what, *rest = words
    if verb in {"apply", "delete"}:
        assert what == "-f" and Path(rest[0]).is_file() and len(rest) == 1
        assert verb == "apply" or "volume" not in rest[0]  # a page that shows it would take somebody's runs
    elif verb == "create":
        assert (what, *rest[:2]) == ("secret", "generic", "orpo-secrets")
        keys = {word.removeprefix("--from-literal=").partition("=")[0] for word in rest[2:]}
        assert keys == {"auth_token", "hf_token"}
    elif verb in {"port-forward", "exec"}:
        head = what.removeprefix("service/").removesuffix("-head-svc")  # what KubeRay calls a head's service
        assert ("raycluster", head) in names or head == "filled-in"  # a job's cluster has a name that KubeRay draws
        if verb == "port-forward":
            assert rest == ["8265"]
        else:
            assert rest[:2] in (["--", "orpo-ray"], ["--", "tar"])
            if rest[1] == "orpo-ray":
                check_own(rest[2:])
    else:
        assert verb == "get" and (what, *rest) in names


def check_aws(words: list[str]) -> None:
    assert words[:2] == ["cloudformation", "deploy"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert set(options) == {"--stack-name", "--template-file", "--capabilities", "--parameter-overrides"}
    template = Path(options["--template-file"]).read_text()
    assert re.search(rf"^  {options['--parameter-overrides'].partition('=')[0]}:$", template, re.MULTILINE)
    assert options["--capabilities"] == "CAPABILITY_NAMED_IAM"  # roles with names are made


def check_pip(words: list[str]) -> None:
    assert words == ["install", "boto3"]  # for `ray up`; cluster.yaml pins the head's


def check_python(words: list[str]) -> None:
    if words[0] == "llama.cpp/convert_hf_to_gguf.py":
        assert words[1] == "runs/NAME/model" and options_of(words[2:]) == {"--outfile", "--outtype"}
        return
    from orpo_ray.doctor.gpu.__main__ import parser

    assert words[:2] == ["-m", "orpo_ray.doctor.gpu"]
    parser().parse_args(words[2:])


def check_vllm(words: list[str]) -> None:
    assert words[:2] == ["serve", "runs/NAME/model"] and options_of(words[2:]) == {"--served-model-name", "--host"}


def check_ollama(words: list[str]) -> None:
    assert words in (["create", "NAME", "-f", "Modelfile"], ["run", "NAME", "What does the cow say?"])


def options_of(words: list[str]) -> set[str]:
    """Those of `--option value …`."""
    return set(dict(zip(words[::2], words[1::2], strict=True)))


def check_export(words: list[str]) -> None:
    assert all(re.fullmatch(r"(RAY|HF)_\w+=.+", word) for word in words), words


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "orpo-ray": check_own, "make": check_make, "ray": check_ray, "docker": check_docker, "kubectl": check_kubectl,
    "aws": check_aws, "pip": check_pip, "export": check_export, "python": check_python,
    "vllm": check_vllm, "ollama": check_ollama,
}  # fmt: skip


def test_the_short_table_of_speeds_is_that_of_scaling() -> None:
    table = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8").partition("pairs a second on 8 H100")[2]
    scaling = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for model in ("OPT-1.3B", "Mistral-7B"):
        short = re.search(rf"^\| {model} \|.*\| ([\d–]+) \|$", table, re.MULTILINE)
        whole = re.search(rf"^\| {model} \| 8 \|.*\| ([\d–]+) \|$", scaling, re.MULTILINE)
        assert short and whole and short[1] == whole[1], model
