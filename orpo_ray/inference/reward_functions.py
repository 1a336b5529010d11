"""Rewards by a Python function of the user's own: `FILE.py:FUNCTION`, called with prompts and responses as text.

The file is run in the processes that score, and once where the run begins, to see that the function is there. Only a
configuration names such a file: no model, data set or run folder that comes from elsewhere does.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import math
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from orpo_ray.config.paths import expanded
from orpo_ray.data.prompts import readable
from orpo_ray.data.records import one_line
from orpo_ray.errors import UserError
from orpo_ray.inference.scoring import Judged

_NAMED = re.compile(r"(?P<file>.+\.py):(?P<function>.*)", re.DOTALL)
_ASYNCHRONOUS: dict[str, Callable[[Any], bool]] = {
    "async": inspect.iscoroutinefunction,
    "an async generator": inspect.isasyncgenfunction,
    "a generator": inspect.isgeneratorfunction,
}
# What a stranger's function may raise; sys.exit() too is to end nothing but this call.
_RAISED = (Exception, SystemExit)


@dataclass(frozen=True)
class RewardFunction:
    """A function, found and checked on the driver's host."""

    key: str
    """Of the configuration, which names it."""
    file: Path
    function: str
    digest: str
    """Of the file's bytes. What the file imports is not in it."""

    @property
    def name(self) -> str:
        return f"{self.file}:{self.function}"


def names_function(path: str) -> bool:
    """Whether `path` has the form of a function's rather than a model's."""
    return _NAMED.fullmatch(path) is not None or path.endswith(".py")


def find_function(key: str, path: str) -> RewardFunction:
    """The function that `path` (FILE.py:FUNCTION) names. Raises `UserError`, naming `key`, where there is none that can
    be called with prompts and responses. What the file prints when it is run is not shown."""
    named = _NAMED.fullmatch(path)
    if named is None or not named["function"].isidentifier():
        raise UserError(f"{key}: {path} names no function; write it as FILE.py:FUNCTION")
    file = expanded(named["file"]).absolute()
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{key}: {file}: no such file") from None
    except OSError as error:
        raise UserError(f"{key}: {file} cannot be read: {error.strerror}") from None
    found = RewardFunction(key, file, named["function"], _digest(content))
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        function = _function(found, content)
    for kind, is_so in _ASYNCHRONOUS.items():
        if is_so(function) or is_so(getattr(function, "__call__", None)):  # noqa: B004 the method itself is asked for
            raise UserError(f"{key}: {found.name} is {kind} function; it should return a list of numbers")
    try:
        inspect.signature(function).bind(prompts=[], responses=[])
    except TypeError as error:
        raise UserError(f"{key}: {found.name} cannot be called with prompts and responses: {error}") from None
    except ValueError:  # one of C, which does not say what it takes
        pass
    return found


class FunctionJudge:
    """Rewards by a function; see `scoring.Judge`. It gives every text a number, so none is None."""

    def __init__(self, found: RewardFunction) -> None:
        """Raises `UserError`, naming the host, where the file is not there, or is not what it was."""
        self._found = found
        try:
            content = found.file.read_bytes()
        except OSError as error:
            raise UserError(
                f"{found.key}: on {socket.gethostname()}: {found.file} cannot be read: {error.strerror}; it has to be "
                "at the same place on every host"
            ) from None
        if _digest(content) != found.digest:
            raise UserError(
                f"{found.key}: on {socket.gethostname()}: {found.file} is another file than when the run began here"
            )
        self._function = _function(found, content)

    def rewards(self, block: Sequence[Judged]) -> list[list[float | None]]:
        """One call for all of the block. Raises `UserError` for what the function raises, or returns in place of
        numbers."""
        texts = [
            [*map(readable, prompt.as_found.completions), *(answer.text for answer in answers)]
            for prompt, answers in block
        ]
        prompts = [readable(prompt.as_found.prompt) for (prompt, _), of in zip(block, texts, strict=True) for _ in of]
        responses = [text for of in texts for text in of]
        given = iter(self._numbers(prompts, responses) if responses else [])
        return [[next(given) for _ in of] for of in texts]

    def _numbers(self, prompts: list[str], responses: list[str]) -> list[float]:
        count = len(responses)
        try:
            returned: Any = self._function(prompts=prompts, responses=responses)
            listed = _listed(returned)
        except _RAISED as error:
            raise self._error(f"raised {type(error).__name__}: {one_line(error)}") from None
        if listed is None:
            raise self._error(f"returned {type(returned).__name__}, and should return a list of {count} numbers")
        if len(listed) != count:
            raise self._error(f"returned {len(listed)} numbers for {count} responses")
        numbers = []
        for place, value in enumerate(listed):
            number = _number(value)
            if number is None:
                raise self._error(f"returned {value!r:.80} for response {place} of {count}, which is no number")
            numbers.append(number)
        return numbers

    def _error(self, told: str) -> UserError:
        return UserError(f"{self._found.key}: {self._found.name} {told}")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _function(found: RewardFunction, content: bytes) -> Callable[..., Any]:
    """What the file, whose bytes are `content`, has under the name. Raises `UserError`, naming the key."""
    module = _module(found, content)
    function = getattr(module, found.function, None)
    if function is None:
        raise UserError(f"{found.key}: {found.file} has no function {found.function}")
    if not callable(function):
        raise UserError(f"{found.key}: {found.name} is {type(function).__name__}, and cannot be called")
    return function  # type: ignore[no-any-return]


def _module(found: RewardFunction, content: bytes) -> ModuleType:
    """The file, run as a module: once in a process, whatever functions of it are named. Exactly the bytes whose digest
    is known are run, so no compiled file of an earlier one."""
    name = f"orpo_ray_reward_{_digest(str(found.file).encode())}_{found.digest}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(found.file)
    if (folder := str(found.file.parent)) not in sys.path:
        sys.path.append(folder)  # last, so that what it imports from beside it takes no other module's place
    sys.modules[name] = module
    try:
        exec(compile(content, str(found.file), "exec"), vars(module))
    except _RAISED as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            raise UserError(f"{found.key}: {error.filename}, line {error.lineno}: {error.msg}") from None
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{found.key}: {found.file} cannot be run: {told}") from None
    return module


def _listed(returned: Any) -> list[Any] | None:
    """A list, tuple, array or tensor as a list; None: it is no such thing."""
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__getitem__"):
        if inspect.iscoroutine(returned):
            returned.close()  # or Python warns that nobody has waited for it
        return None
    return list(returned)


def _number(value: Any) -> float | None:
    """A number of Python, numpy or torch, which may be infinite or NaN; None: it is none."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, Real):
        return None
    number: Any = value
    try:
        return float(number)
    except OverflowError:  # a whole number past what a float holds
        return math.inf if number > 0 else -math.inf
