"""Judges behind OpenAI-compatible servers: every call is made until it has an answer, and none that has one again.

The library `openai` sends a request and reads the answer. When to send, what to do about an answer that is none, and
what to believe of it is decided here: its own retries would be counted by nobody, and what it takes from the
environment (other keys, organisations, headers, a base URL) reaches no server.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from orpo_ray.config.judges import ServerJudge
from orpo_ray.errors import UserError
from orpo_ray.inference.generation import request_seed
from orpo_ray.judging.asking import Asked
from orpo_ray.judging.budget import Budget
from orpo_ray.judging.reading import TOP_TOKENS, read
from orpo_ray.judging.verdict import REFUSED, Verdict
from orpo_ray.masking import MASK, masked
from orpo_ray.parsing import NUMBER, member, object_from_json

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before a lost call is asked again: doubled with each try."""
_MOST_ASKED_FOR = 3600.0  # seconds that a server may have all calls wait
_REFUSED = (400, 413, 422)
_LOST = (408, 409, 425, 429)  # and 500 and above
_REFUSALS = 10  # calls that may be refused before any is answered: it is the request then, and not a prompt
_CHARACTERS_TOLD = 300
_HEADERS = (
    "accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent",
    "x-stainless-raw-response",  # by which the library knows that it is to leave the answer to us
)  # fmt: skip
_KEPT = "the verdicts that are there are kept, and the same command asks for the others"


class Call(NamedTuple):
    """One verdict that is wanted."""

    key: str
    asked: Asked
    tokens: int
    """Of prompt and answer, as forecast."""


@dataclass
class Account:
    """What became of calls."""

    answered: int = 0
    again: Counter[str] = field(default_factory=Counter)
    """Calls that had to be asked again, by why."""
    refused: int = 0
    """That the server would not answer, such as prompts that are too long for it."""


class _LostCall(Exception):
    def __init__(self, why: str, told: str = "", *, wait: float | None = None, computed: bool = False) -> None:
        super().__init__(told or why)
        self.why = why
        self.wait = wait
        """Seconds that the server asks for."""
        self.computed = computed
        """Whether the server may have answered, and counts the tokens."""


class _RefusedCall(Exception):
    pass


class Server:
    """One judge."""

    def __init__(
        self,
        label: str,
        config: ServerJudge,
        answer_tokens: int,
        say: Callable[[str], None],
        *,
        has_answered: bool = False,
    ) -> None:
        """`answer_tokens`: of one answer at most; `say`: takes lines for the user; `has_answered`: such calls before,
        so that the few that are left may be what it refuses. Raises `UserError` where the environment lacks the key."""
        self._label, self._config, self._answer_tokens, self._say = label, config, answer_tokens, say
        self._has_answered = has_answered
        self._key = key_of(label, config)
        self._budget = Budget(label, config)
        self._todo: deque[Call] = deque()
        self._failure: UserError | None = None
        self._over = asyncio.Event()
        """Set with the first failure: nobody waits any longer."""
        self._said_to_be_away = False
        self._refused: list[Verdict] = []
        self._next_slot = 0.0
        self._not_before = 0.0
        self.account = Account()

    async def ask(self, calls: Iterable[Call], keep: Callable[[Verdict], None]) -> None:
        """Have all `calls` answered; `keep` is given each verdict as soon as it is there.

        Raises `UserError` where one cannot be had. What is at work then comes to its end before, and is kept.
        """
        self._todo.extend(calls)
        async with self._client() as client:
            self._create = client.chat.completions.with_raw_response.create
            workers = [
                asyncio.create_task(self._work(keep)) for _ in range(min(self._config.concurrency, len(self._todo)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        if self._failure is None and self._refused:  # all that were asked
            if self._has_answered:
                self._keep_refused(keep)
            else:
                self._failure = self._told_of_refusals()
        if self._failure is not None:
            raise self._failure

    async def _work(self, keep: Callable[[Verdict], None]) -> None:
        while self._todo and self._failure is None:
            call = self._todo.popleft()
            try:
                verdict = await self._answered(call)
            except _RefusedCall as refusal:
                self.account.refused += 1
                self._refused.append(Verdict(call.key, None, None, f"{REFUSED}{refusal}]"))
                if not self.account.answered and len(self._refused) >= _REFUSALS:
                    self._fail(self._told_of_refusals())
            except UserError as error:
                self._fail(error)
            else:
                self.account.answered += 1
                keep(verdict)
            if self.account.answered:
                self._keep_refused(keep)

    def _keep_refused(self, keep: Callable[[Verdict], None]) -> None:
        while self._refused:
            keep(self._refused.pop())

    def _fail(self, error: UserError) -> None:
        self._failure = self._failure or error
        self._over.set()

    def _told_of_refusals(self) -> UserError:
        return UserError(f"judges.{self._label}: the server answers none of the calls: {self._refused[0].words}")

    async def _answered(self, call: Call) -> Verdict:
        """Raises `UserError` where there is no answer after all tries, `_RefusedCall` where there will be none."""
        tries, answered = 0, self.account.answered
        while True:
            await self._wait_for_a_slot()
            if self._failure is not None:
                raise self._failure
            self._budget.pay(call.tokens)
            try:
                verdict = await self._once(call)
            except _LostCall as lost:
                self._budget.settle(call.tokens, call.tokens if lost.computed else 0)
                self.account.again[lost.why] += 1
                # A server that tells this one to wait while it answers others is not failing.
                tries = 0 if lost.why == _LIMITED and self.account.answered > answered else tries + 1
                answered = self.account.answered
                if tries > self._config.retries:
                    raise UserError(
                        f"judges.{self._label}: a call to {self._config.base_url} got no answer in {tries} tries; the "
                        f"last: {lost}; {_KEPT}"
                    ) from None
                await self._wait_after(lost, tries)
            except _RefusedCall:
                self._budget.settle(call.tokens, 0)
                raise
            else:
                used = None if verdict.prompt_tokens is None else verdict.prompt_tokens + (verdict.tokens or 0)
                self._budget.settle(call.tokens, call.tokens if used is None else used)
                return verdict

    async def _wait_for_a_slot(self) -> None:
        """Until a call may begin, by `calls_per_minute` and by what the server asked for."""
        apart = 60 / self._config.calls_per_minute if self._config.calls_per_minute else 0.0
        while True:
            now = time.monotonic()
            begin = max(now, self._not_before, self._next_slot)
            self._next_slot = begin + apart
            await self._sleep(begin - now)
            if time.monotonic() >= self._not_before or self._over.is_set():
                return

    async def _wait_after(self, lost: _LostCall, tries: int) -> None:
        if not self.account.answered and not self._said_to_be_away:
            self._said_to_be_away = True
            self._say(
                f"judge {self._label}: no answer yet ({lost}); it is asked again up to {self._config.retries} times"
            )
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** max(tries - 1, 0)) * random.uniform(0.5, 1)
        if lost.wait is not None:
            if lost.wait > _MOST_ASKED_FOR:
                raise UserError(
                    f"judges.{self._label}: the server asks to wait for {lost.wait:,.0f} s; {_KEPT}"
                ) from None
            wait = lost.wait
        if lost.wait is not None or lost.why == _LIMITED:  # it is meant for every call
            if wait > LONGEST_WAIT and time.monotonic() + wait > self._not_before:
                self._say(f"judge {self._label}: the server asks to wait for {wait:,.0f} s")
            self._not_before = max(self._not_before, time.monotonic() + wait)
        else:
            await self._sleep(wait)

    async def _sleep(self, seconds: float) -> None:
        """For so long, or until there is nothing left to wait for."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), seconds)

    async def _once(self, call: Call) -> Verdict:
        import openai

        body = self.body(call.asked)
        needed = {key: body.pop(key) for key in ("model", "messages")}
        try:
            async with asyncio.timeout(self._config.timeout):
                response = await self._create(**needed, extra_body=body)
        except (TimeoutError, openai.APITimeoutError):
            raise _LostCall("no answer in time", computed=True) from None
        except openai.APIConnectionError as error:
            why = "no connection"
            raise _LostCall(why, f"{why}: {self._shown(error.__cause__ or error)}", computed=True) from None
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        try:
            return self._verdict(call, response.http_response.content)
        except ValueError as error:
            why = "an answer that is none"
            raise _LostCall(why, f"{why}: {self._shown(error)}", computed=True) from None

    def body(self, asked: Asked) -> dict[str, Any]:
        """What is sent to the server."""
        config = self._config
        body: dict[str, Any] = {
            "model": config.model, "messages": asked.messages, config.max_tokens_key: self._answer_tokens,
            "temperature": config.temperature,
        }  # fmt: skip
        if config.temperature:
            body["seed"] = request_seed(config.seed, asked.user, 0, asked.repeat)
        if asked.reads == "labels":
            body |= {"logprobs": True, "top_logprobs": TOP_TOKENS}
        return {key: value for key, value in {**body, **config.extra_body}.items() if value is not None}

    def _verdict(self, call: Call, content: bytes) -> Verdict:
        """Raises `ValueError` where `content` is no chat completion."""
        found = object_from_json(content)
        choices = member(found, "choices", list)
        if not choices or not isinstance(choices[0], dict):
            raise ValueError("choices is empty")
        words = member({"content": None, **member(choices[0], "message", dict)}, "content", str, type(None)) or ""
        words = self._without_key(words).encode("utf-8", "replace").decode()
        likely = _likely(choices[0]) if call.asked.reads == "labels" else []
        probability, rating = read(call.asked, words, likely)
        usage = found.get("usage") or {}
        counts = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
        prompt, answer = (count if type(count) is int and 0 <= count < 2**40 else None for count in counts)
        model = found.get("model")
        return Verdict(
            call.key, probability, rating, words, prompt, answer, self._shown(model) if isinstance(model, str) else None
        )

    def _of_status(self, error: Any) -> Exception:
        """What an answer with an error's status means: a `_LostCall`, a `_RefusedCall`, or a `UserError`."""
        status, told = error.status_code, self._shown(_message(error))
        if status == 429 and "insufficient_quota" in told:
            return UserError(f"judges.{self._label}: {told}; {_KEPT}")
        if status in _LOST or status >= 500:
            why = _LIMITED if status == 429 else f"status {status}"
            return _LostCall(why, f"status {status}: {told}", wait=_seconds_asked_for(error.response.headers))
        if status in _REFUSED:
            return _RefusedCall(told)
        hints = {401: f" (the key of {self._config.api_key_env})" if self._key else " (set api_key_env)"}
        if not urlsplit(self._config.base_url).path.strip("/"):
            hints[404] = " (it mostly ends in /v1)"
        return UserError(
            f"judges.{self._label}: {self._config.base_url} answers with status {status}{hints.get(status, '')}: {told}"
        )

    def _shown(self, text: object) -> str:
        """What a server or the library says, in one line, without the key."""
        return masked(self._without_key(" ".join(str(text).split())))[:_CHARACTERS_TOLD]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, MASK) if self._key else text

    def _client(self) -> Any:
        import openai

        async def ours_alone(request: Any) -> None:
            """Nothing that the library found in the environment goes to the server."""
            for name in [name for name in request.headers if name.lower() not in _HEADERS]:
                del request.headers[name]
            if self._key:
                request.headers["authorization"] = f"Bearer {self._key}"

        proxy = proxy_for(self._config)
        if proxy:
            self._say(f"judge {self._label} is asked through the proxy that the environment names: {masked(proxy)}")
        try:
            http = openai.DefaultAsyncHttpxClient(
                trust_env=False, follow_redirects=False, proxy=proxy, timeout=self._config.timeout,
                event_hooks={"request": [ours_alone]},
            )  # fmt: skip
        except (ImportError, ValueError) as error:
            raise UserError(f"judges.{self._label}: its proxy cannot be used: {self._shown(error)}") from None
        return openai.AsyncOpenAI(
            api_key="none",
            base_url=self._config.base_url,
            max_retries=0,
            timeout=self._config.timeout,
            http_client=http,
        )


_LIMITED = "asked to wait (429)"


async def ask_all(servers: Sequence[tuple[Server, Sequence[Call], Callable[[Verdict], None]]]) -> None:
    """Several judges at once, each by its own limits. Raises the first `UserError` once all have come to their end."""
    done = await asyncio.gather(*(server.ask(calls, keep) for server, calls, keep in servers), return_exceptions=True)
    for found in done:
        if isinstance(found, BaseException):
            raise found


def key_of(label: str, config: ServerJudge) -> str:
    """The key from the environment; empty where the server wants none. Raises `UserError` where there is none."""
    if config.api_key_env is None:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(f"judges.{label}.api_key_env: the environment has no {config.api_key_env}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"judges.{label}.api_key_env: what the environment has as {config.api_key_env} is no key")
    return key


def proxy_for(config: ServerJudge) -> str | None:
    """That the environment names for the judge's server; none for one on this machine."""
    parts = urlsplit(config.base_url)
    if config.is_here or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _likely(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """Texts and log-probs of the likeliest first tokens. Raises `ValueError` where there are none, or they are no
    numbers."""
    try:
        content = member(member(choice, "logprobs", dict), "content", list)
        first = content[0] if content else None
        tokens = member(first, "top_logprobs", list) if isinstance(first, dict) else []
        return [(member(token, "token", str), float(member(token, "logprob", *NUMBER))) for token in tokens]
    except (AttributeError, OverflowError, TypeError, ValueError):
        raise ValueError("it tells no log-probs; where the server has none, set judging.reads=text") from None


def _message(error: Any) -> str:
    """Of an error: what its body says, or what the library does."""
    body = error.body
    if isinstance(body, dict):
        told = body.get("message") or body.get("detail") or body.get("error")
        code = body.get("code")
        if told:
            return f"{told} ({code})" if isinstance(code, str) else str(told)
    return str(error.message)


def _seconds_asked_for(headers: Any) -> float | None:
    """`Retry-After`, in seconds or as a date; None where there is none, or it is no such thing."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (OverflowError, TypeError, ValueError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
