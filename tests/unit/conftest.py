"""Fixtures of the unit tests. Nothing heavy is imported here: a process that only deals tests out reads this too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # an example takes as long as the machine is busy
settings.load_profile("untimed")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chromium import Chromium
    from transformers import PretrainedConfig


def pytest_collection() -> None:
    import torch

    torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        from families import FAMILIES

        metafunc.parametrize("family", FAMILIES, indirect=True)


@pytest.fixture
def family(request: pytest.FixtureRequest) -> PretrainedConfig:
    from families import FAMILIES

    return FAMILIES[request.param]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a stranger's code would write."""
    return tmp_path / "the-code-ran"


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of the embedded world's tokens."""
    from test_evaluation_models import save_toy

    return save_toy(tmp_path_factory.mktemp("judge"), labels=1)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of another family, with other tokens and a template."""
    from test_foreign_judges import save_judge

    return save_judge(tmp_path_factory.mktemp("stranger"), "qwen")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    from chromium import CHROMIUM, Chromium

    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()
