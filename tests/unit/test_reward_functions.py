"""Functions that score responses: what they may return, and what is told of those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from reward_sources import TEXT, found, function, run_config, said, scores

from orpo_ray.errors import UserError
from orpo_ray.inference.reward_functions import RewardFunction
from orpo_ray.inference.rewards import Rewards


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [len(text) for text in responses]", [5, 0]),
        ("return [text.startswith(' ') for text in responses]", [1, 0]),
        ("return (0.5 for _ in responses).__class__ and (0.5, -2)", [0.5, -2]),
        ("return numpy.array([1, 2], dtype='float32')", [1, 2]),
        ("return numpy.array([True, False])", [1, 0]),
        ("return [numpy.float32(0.25), numpy.int8(3)]", [0.25, 3]),
        ("return torch.tensor([0.5, 0.25], requires_grad=True)", [0.5, 0.25]),
        ("print('said', flush=True); return [prompts[0].endswith('two?'), len(prompts)]", [1, 2]),
        ("responses.clear(); prompts.clear(); return [1, 2]", [1, 2]),
    ],
)
def test_numbers_of_a_function(body: str, expected: list[float], tmp_path: Path) -> None:
    assert [each.score for each in scores({"f": function(tmp_path, body)}, TEXT, *said(" four", ""))] == expected


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return [1]", "returned 1 numbers for 2 responses"),
        ("return [1, 2, 3]", "returned 3 numbers for 2 responses"),
        ("return 1", "returned int, and should return a list of 2 numbers"),
        ("return None", "returned NoneType, and should return a list of 2 numbers"),
        ("return '12'", "returned str, and should return a list of 2 numbers"),
        ("return {0: 1, 1: 2}", "returned dict, and should return a list of 2 numbers"),
        ("return (1 for _ in responses)", "returned generator, and should return a list of 2 numbers"),
        ("return [1, None]", "returned None for response 1 of 2, which is no number"),
        ("return ['1', 2]", "returned '1' for response 0 of 2, which is no number"),
        ("return [1j, 2]", "returned 1j for response 0 of 2, which is no number"),
        ("return [[1], [2]]", "returned [1] for response 0 of 2, which is no number"),
        ("raise ValueError('first line\\nsecond line')", "raised ValueError: first line"),
        ("raise KeyError", "raised KeyError: KeyError"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    ],
)
def test_what_is_no_number_for_each_is_told_in_one_line(body: str, told: str, tmp_path: Path) -> None:
    path = function(tmp_path, body)
    with pytest.raises(UserError) as raised:
        scores({"f": path}, TEXT, *said(" a", " b"))
    assert str(raised.value) == f"rollouts.rewards.f: {path} {told}"


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        (None, "f", "{file}: no such file"),
        ("", "f", "{file} has no function f"),
        ("", "", "{file}: names no function; write it as FILE.py:FUNCTION"),
        ("", "a.b", "{file}:a.b names no function; write it as FILE.py:FUNCTION"),
        ("f = 3", "f", "{file}:f is int, and cannot be called"),
        ("def f(:", "f", "{file}, line 1: invalid syntax"),
        ("import nowhere_at_all", "f", "{file} cannot be run: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise SystemExit('no')", "f", "{file} cannot be run: SystemExit: no"),
        ("async def f(prompts, responses): ...", "f", "{file}:f is async function; it should return a list"),
        ("def f(prompts, responses): yield 1", "f", "{file}:f is a generator function; it should return a list"),
        ("async def f(prompts, responses): yield 1", "f", "{file}:f is an async generator function; it should"),
        ("class F:\n    async def __call__(self, prompts, responses): ...\nf = F()", "f", "{file}:f is async function"),
        ("def f(prompts): ...", "f", "{file}:f cannot be called with prompts and responses: got an unexpected keyword"),
        ("def f(prompts, responses, gold): ...", "f", "prompts and responses: missing a required argument: 'gold'"),
    ],
)
def test_functions_that_are_none_are_told_in_one_line(
    content: str | None, name: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "rules.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as raised:
        found({"f": f"{file}:{name}"})
    line = str(raised.value)
    assert line.startswith("rollouts.rewards.f: ") and "\n" not in line
    assert told.replace("{file}", str(file)).replace(": names", ": names") in line


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (
            "rules.txt:score",
            r"^rollouts\.rewards\.x: rules\.txt:score: no such folder .*; a function is FILE\.py:FUNCTION, ",
        ),
        ("./nowhere", r"^rollouts\.rewards\.x: \./nowhere: no such folder .*; a function is FILE\.py:FUNCTION, "),
        ("rules.py", r"^rollouts\.rewards\.x: rules\.py names no function; write it as FILE\.py:FUNCTION$"),
    ],
)
def test_a_path_that_is_neither_a_model_nor_a_function(path: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        found({"x": path})


def test_a_file_is_run_once_and_sees_what_lies_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "counted_beside.py").write_text("runs = []\n")
    (tmp_path / "both.py").write_text(
        "import counted_beside\nfrom dataclasses import dataclass\ncounted_beside.runs.append(1)\nprint('run')\n"
        "@dataclass\nclass Held:\n    value: 'int'\n"
        "def runs(prompts, responses): return [len(counted_beside.runs)] * len(responses)\n"
        "def more(prompts, responses): return [Held(7).value] * len(responses)\n"
    )
    sources = found({"a": f"{tmp_path}/both.py:runs", "b": f"{tmp_path}/both.py:more"})
    assert capsys.readouterr() == ("", ""), "what it prints is not the command's"
    [[scored]] = Rewards(sources).score([(TEXT, said(" a"))])
    assert scored.rewards == {"a": 1, "b": 7}
    assert not (tmp_path / "__pycache__/both.cpython-311.pyc").exists()


def test_the_digest_is_of_the_function_that_is_run(tmp_path: Path, judge: Path) -> None:
    file = tmp_path / "rules.py"
    text = "def f(prompts, responses): return [{}] * len(responses)\ng = f\n"
    file.write_text(text.format(1))
    [first, other, model, truth] = found({"f": f"{file}:f", "g": f"{file}:g", "r": str(judge), "t": "toy"})
    assert len({first.digest, other.digest, model.digest, truth.digest}) == 4
    file.write_text(text.format(2))  # as long as before, in the same second perhaps
    with pytest.raises(UserError, match=r"^rollouts\.rewards\.f: on \S+: .*rules\.py is another file than when"):
        Rewards([first])
    [changed] = found({"f": f"{file}:f"})
    assert changed.digest != first.digest
    assert Rewards([changed]).score([(TEXT, said(" a"))])[0][0].score == 2
    file.unlink()
    with pytest.raises(UserError, match=r"^rollouts\.rewards\.f: on \S+: .* cannot be read: No such file"):
        Rewards([changed])
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/rules.py").write_text(text.format(1))
    assert found({"f": f"{tmp_path}/moved/rules.py:f"})[0].digest == first.digest, "content counts, not the place"


def test_a_run_names_its_function_from_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function(tmp_path, "return [1] * len(responses)")
    monkeypatch.chdir(tmp_path)
    config = run_config({"f": "rule.py:rule", "g": {"path": "rule.py:rule", "weight": 2}, "t": "toy"})
    path = f"{tmp_path}/rule.py:rule"
    absolute = config.with_absolute_paths().rollouts
    assert absolute is not None and [each.path for each in absolute.rewards.values()] == [path, path, "toy"]
    assert config.local_paths() == {"rollouts.rewards.f": path, "rollouts.rewards.g": path}
    [source] = found({"f": "rule.py:rule"})
    assert isinstance(source.judge, RewardFunction) and source.judge.name == path
