"""The locks serve each Python that `make venv` takes and hold what the project asks for; `make` finds the newest."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED_EXTRAS = ("embedder", "ifeval", "test", "dev")
PYTHONS = re.search(r"^PYTHONS := (.*)$", MAKEFILE, re.MULTILINE)[1].split()  # type: ignore[index]


def lock_program() -> Any:
    """`requirements/lock.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location("lock_program", ROOT / "requirements/lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCK = lock_program()


def environment(python: str, extra: str = "") -> dict[str, str]:
    """What markers see under a release of `python` ("3.12")."""
    # With typing's own types the update would be one of a TypedDict.
    found: dict[str, Any] = {**default_environment()}
    return {**found, "python_version": python, "python_full_version": f"{python}.9", "extra": extra}


@cache
def pins(lock: str, python: str) -> dict[str, str]:
    """The version of each package by name, as pip reads the lock under `python`; a name that comes twice is refused."""
    found: dict[str, str] = {}
    for line in (ROOT / f"requirements/{lock}.lock").read_text().splitlines():
        if line.startswith("#"):
            continue
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(environment(python)):
            (exact,) = wanted.specifier
            assert exact.operator == "==" and wanted.name not in found, line
            found[wanted.name] = exact.version
    return found


def unmet(wanted: Requirement, lock: str, python: str) -> str:
    """What the lock lacks of a requirement under `python`, "" where nothing."""
    name = canonicalize_name(wanted.name)
    if name in LOCK.LEFT_OUT[lock]:
        return ""
    version = pins(lock, python).get(name)
    if version is None:
        return f"{name} is not there"
    fits = wanted.specifier.contains(version, prereleases=True)
    return "" if fits else f"{name} is {version}, not {wanted.specifier}"


@cache
def installed() -> dict[str, tuple[str, SpecifierSet, list[Requirement]]]:
    """Of each package that is installed its version, which Pythons it is for, and what it asks for."""
    found: dict[str, tuple[str, SpecifierSet, list[Requirement]]] = {}
    for package in metadata.distributions():
        pythons = SpecifierSet(package.metadata["Requires-Python"] or "")
        wanted = [Requirement(text) for text in package.requires or []]
        found[canonicalize_name(package.metadata["Name"])] = (package.version, pythons, wanted)
    return found


def test_one_list_of_pythons() -> None:
    assert list(LOCK.PYTHONS) == PYTHONS[::-1]
    assert PROJECT["classifiers"] == [f"Programming Language :: Python :: {python}" for python in LOCK.PYTHONS]
    assert PROJECT["requires-python"] == f">={LOCK.PYTHONS[0]}"
    image = re.search(r"^FROM python:(\d\.\d+)-", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert image is not None and image[1] in PYTHONS


@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_a_lock_is_as_the_program_writes_it(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.lock").read_text()
    found = {python: pins(lock, python) for python in LOCK.PYTHONS}
    assert text == LOCK.HEADERS[lock] + "\n".join(LOCK.merged(found)) + "\n"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_a_lock_holds_what_the_project_asks_for(lock: str, python: str) -> None:
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *LOCK.BUILD_TOOLS]
    for extra in (lock, *LOCKED_EXTRAS):
        texts += extras[extra]
    lacks = [unmet(Requirement(text), lock, python) for text in texts]
    assert [lack for lack in lacks if lack] == []


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_what_the_packages_ask_for_is_pinned_for_each_python(lock: str, python: str) -> None:
    """By what installed packages say of themselves; of the GPU lock those are seen that have the CPU's version."""
    pinned = pins(lock, python)
    same = {name: package for name, package in installed().items() if pinned.get(name) == package[0]}
    lacks = []
    for name, (_, pythons, wanted) in same.items():
        if not pythons.contains(f"{python}.9"):
            lacks.append(f"{name} wants Python {pythons}")
        for requirement in wanted:
            if requirement.marker is None or requirement.marker.evaluate(environment(python)):
                lack = unmet(requirement, lock, python)
                lacks += [f"{name}: {lack}"] if lack else []
    assert lacks == []
    assert len(same) > 0.7 * len(pinned)


def test_what_one_python_needs_otherwise_has_a_marker() -> None:
    found = {
        "3.11": {"both": "1", "old": "1", "parted": "2"},
        "3.12": {"both": "1", "parted": "1"},
        "3.13": {"both": "1", "parted": "1"},
    }
    assert LOCK.merged(found) == [
        "both==1",
        'old==1 ; python_version == "3.11"',
        'parted==2 ; python_version == "3.11"',
        'parted==1 ; python_version == "3.12" or python_version == "3.13"',
    ]


@pytest.mark.parametrize(
    ("version", "fit"),
    [
        ((3, 11, 9, "final", 0), True), ((3, 13, 0, "final", 0), True), ((3, 11, 0, "candidate", 1), False),
        ((3, 10, 9, "final", 0), False), ((3, 14, 1, "final", 0), False),
    ],
)  # fmt: skip
def test_make_takes_a_release_of_python_alone(
    version: tuple[Any, ...], fit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ubuntu 22.04's python3.11 is the candidate, with which `import torch._dynamo` fails."""
    (program,) = re.findall(r"^FIT := (.*)$", MAKEFILE, re.MULTILINE)
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as ended:
        exec(program.replace("$(PYTHONS)", " ".join(PYTHONS)))
    assert (not ended.value.code) == fit


def machine(folder: Path, pythons: dict[str, int]) -> dict[str, str]:
    """An environment whose PATH holds make, what it needs, and Pythons that end with these codes when asked."""
    folder.mkdir()
    for tool in ("cat", "git", "grep", "make", "sed", "sort", "wc"):
        found = shutil.which(tool)
        assert found is not None, tool
        (folder / tool).symlink_to(found)
    for name, code in pythons.items():
        (folder / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


def make(place: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`make` of the project's Makefile, in an empty folder that has the lock and pyproject.toml alone."""
    (place / "requirements").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements/cpu.lock"):
        shutil.copy(ROOT / name, place / name)
    command = [f"{environment['PATH']}/make", *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3.11": 0, "python3.12": 0, "python3.13": 0, "python3": 0}, "python3.13"),
        # pyenv has a command for each version that it holds, which fails where the version is not chosen.
        ({"python3.11": 0, "python3.12": 0, "python3.13": 127}, "python3.12"),
        ({"python3.11": 0, "python3.12": 1}, "python3.11"),
        ({"python3": 0}, "python3"),
    ],
)
def test_make_takes_the_newest_python_that_is_fit(pythons: dict[str, int], taken: str, tmp_path: Path) -> None:
    done = make(tmp_path / "project", machine(tmp_path / "bin", pythons), "--dry-run", "venv")
    assert done.returncode == 0, done.stderr
    assert f'python="{taken}"' in done.stdout


@pytest.mark.parametrize(
    ("pythons", "words", "refusal"),
    [
        ({}, [], "make: no Python of 3.13 3.12 3.11 with venv is here (Debian, Ubuntu: apt-get install python3-venv)"),
        ({"python3": 1}, [], "make: no Python of 3.13 3.12 3.11 with venv is here"),
        ({"python3": 0, "old": 1}, ["PYTHON=old"], "make: old is no release of Python 3.13 3.12 3.11 with venv"),
        ({"python3": 0}, ["PYTHON=gone"], "make: gone is no release of Python 3.13 3.12 3.11 with venv"),
    ],
)
def test_make_says_in_one_line_that_no_python_is_fit(
    pythons: dict[str, int], words: list[str], refusal: str, tmp_path: Path
) -> None:
    done = make(tmp_path / "project", machine(tmp_path / "bin", pythons), "venv", *words)
    assert done.returncode == 2
    told, from_make = done.stderr.splitlines()
    assert told.startswith(refusal) and from_make.startswith("make: *** ")
    assert not (tmp_path / "project/.venv").exists()
