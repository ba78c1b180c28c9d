"""Any OpenAI-compatible server: many calls at once, retries, rate limits, streams, cost, and a cache on disk.

The calls run on an event loop of the client's own, in a thread of its own: they work the same from a script, from a
notebook (whose loop is taken) and from `async` code, and a call that hangs never blocks the caller's Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modcut._require import require
from modcut.reading.clients.cache import Cache
from modcut.reading.clients.pacing import Pace, pause, retry_after
from modcut.reading.clients.protocol import (
    ClientError,
    Message,
    Reason,
    Reply,
    Request,
    Style,
    brief,
    parse_json,
    request_key,
)

# No server is waited for longer than this between two attempts: a quota that resets tomorrow is an error today.
_LONGEST_PAUSE = 120.0


@dataclass
class _Failure:
    error: ClientError
    again: bool
    """Whether another attempt may help."""
    after: float | None = None
    """Seconds that the server asked to wait for."""


class OpenAIClient:
    """A model behind an OpenAI-compatible server (OpenAI, vLLM, llama.cpp, Ollama, ``transformers serve``, ...).

    Args:
        model: its name on the server.
        base_url: address of the server, up to and including ``/v1``; OpenAI's own by default.
        api_key: defaults to the environment variable ``OPENAI_API_KEY``; a server given by ``base_url`` may need none.
        timeout: seconds for one attempt, from the first byte sent to the last received.
        retries: further attempts after a lost or refused connection, a half reply, a timeout, 408, 409, 429 and 5xx:
            after what ``Retry-After`` says, else after pauses that double, with jitter.
        cache: JSONL file: answers are stored there, and equal requests are answered from it without a call.
        concurrency: calls at once (:meth:`submit`).
        stream: receive the answer piece by piece. The result is the same; some servers and proxies need it.
        requests_per_minute, tokens_per_minute: limits kept by this client over all its calls, evenly spaced. Tokens
            are estimated before a call (3 characters each, and all of ``max_tokens``) and settled after it.
        prices: dollars per million ``(prompt, completion)`` tokens, for :attr:`usage`; there is no built-in list, which
            would be wrong within weeks.
        style: ``"chat"``, or ``"completion"`` for base models: few-shot prompts to ``/completions``, one line back.
        backoff: seconds of the first pause.

    Raises:
        ValueError: no key and no ``base_url``; a limit that is not positive.
        MissingDependencyError: the package ``openai`` is not installed (extra ``llm``).
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 2,
        cache: str | os.PathLike[str] | None = None,
        concurrency: int = 4,
        stream: bool = False,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        prices: tuple[float, float] | None = None,
        style: Style = "chat",
        backoff: float = 0.5,
    ) -> None:
        openai = require("openai", extra="llm", why="OpenAIClient")
        key = api_key or os.environ.get("OPENAI_API_KEY")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        if not key and base_url is None:
            raise ValueError("api_key must be given (or set in OPENAI_API_KEY) when base_url is not, got none")
        if retries < 0 or timeout <= 0:
            raise ValueError(f"retries must be >= 0 and timeout > 0, got {retries} and {timeout}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        if style not in ("chat", "completion"):
            raise ValueError(f"style must be 'chat' or 'completion', got {style!r}")
        if prices is not None and (len(prices) != 2 or min(prices) < 0):
            raise ValueError(f"prices must be two numbers >= 0 (prompt, completion), got {prices}")
        self.model = model
        self.style: Style = style
        self.concurrency = concurrency
        self.stream = stream
        self.parse_failures = 0
        self.calls = 0
        self._counts = {"prompt": 0, "completion": 0, "retries": 0, "cached": 0, "uncounted": 0}
        self._prices = prices
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._where = _without_password(base_url) if base_url else "api.openai.com"
        self._openai = openai
        self._secrets = tuple(s for s in (key, _password(base_url)) if s)
        self._api = openai.AsyncOpenAI(api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=0)
        self._cache = None if cache is None else Cache(cache)
        self._pace = Pace(requests_per_minute, tokens_per_minute)
        # Become False when the server refuses a field: the schema then stands in the prompt alone.
        self._structured = True
        self._counts_streams = True
        # Pauses need to differ between processes, results do not depend on them: this is the one unseeded draw.
        self._jitter = random.Random()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._slots: asyncio.Semaphore | None = None

    def __repr__(self) -> str:
        return f"OpenAIClient(model={self.model!r}, server={self._where!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an OpenAIClient holds an API key and cannot be pickled; make a new one where it is needed")

    def __enter__(self) -> OpenAIClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def usage(self) -> dict[str, Any]:
        """Attempts sent, retries, answers from the cache, tokens, parse failures, and the cost where prices were given.

        ``uncounted`` answers came without a token count: tokens and cost are then lower bounds.
        """
        total: dict[str, Any] = {"calls": self.calls, **self._counts, "parse_failures": self.parse_failures}
        if self._prices is not None:
            total["cost"] = sum(
                self._counts[n] * p / 1e6 for n, p in zip(("prompt", "completion"), self._prices, strict=True)
            )
        return total

    @property
    def cache_path(self) -> Path | None:
        """Where answers are stored."""
        return None if self._cache is None else self._cache.path

    def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, max_tokens: int = 512, seed: int = 0
    ) -> Reply:
        """Ask the model, or return the stored answer to an equal request.

        With a ``schema`` the reply holds a JSON object; a reply without one is counted in ``parse_failures``, asked for
        once more with the next seed, and then an error. Only usable replies are stored.

        Raises:
            ClientError: refused connection, timeout, 401/403, 429, 5xx, another refusal, malformed or empty reply.
        """
        future = self.submit(Request(messages, schema, max_tokens, seed))
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting: the call is not left running
            raise

    async def acomplete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, max_tokens: int = 512, seed: int = 0
    ) -> Reply:
        """Do as :meth:`complete` from `async` code, on any event loop."""
        return await asyncio.wrap_future(self.submit(Request(messages, schema, max_tokens, seed)))

    def submit(self, request: Request) -> Future[Reply]:
        """Return the future of a reply; at most ``concurrency`` calls are under way. Cancelling it ends the call."""
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._running())

    def close(self) -> None:
        """End the calls under way and close the connections to the server."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()

    async def _shut_down(self) -> None:
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._api.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                if self._api.is_closed():
                    raise ClientError("connection", f"{self!r} was closed")
                self._loop = asyncio.new_event_loop()
                self._slots = asyncio.Semaphore(self.concurrency)
                # A daemon: a client that nobody closed must not keep the process alive.
                self._thread = threading.Thread(target=self._loop.run_forever, name="modcut-client", daemon=True)
                self._thread.start()
            return self._loop

    async def _answer(self, request: Request) -> Reply:
        key = request_key(self.model, request.messages, request.schema, request.max_tokens, request.seed)
        if self._cache is not None and (stored := self._cache.get(key)) is not None:
            self._counts["cached"] += 1
            return stored
        assert self._slots is not None
        async with self._slots:
            reply = await self._ask(request, request.seed)
            if request.schema is not None:
                try:
                    parse_json(reply.text)
                except ClientError:
                    self.parse_failures += 1
                    reply = await self._ask(request, request.seed + 1)
                    try:
                        parse_json(reply.text)
                    except ClientError:
                        self.parse_failures += 1
                        raise
            if self._cache is not None:
                self._cache.put(key, reply)
            return reply

    async def _ask(self, request: Request, seed: int) -> Reply:
        body: dict[str, Any] = {"model": self.model, "max_tokens": request.max_tokens, "seed": seed, "temperature": 0.0}
        if self.style == "completion":
            body |= {"prompt": "".join(m["content"] for m in request.messages), "stop": ["\n"]}
        else:
            body["messages"] = [dict(m) for m in request.messages]
        schema = request.schema
        if schema is not None and self._structured and self.style == "chat":
            shape = {"name": str(schema.get("title", "reply")), "schema": dict(schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        if self.stream:
            body["stream"] = True
            if self._counts_streams:
                body["stream_options"] = {"include_usage": True}
        outcome = await self._attempts(body)
        # A server that does not know a field refuses the request: ask without it, once, and from then on.
        for name, flag in (("stream_options", "_counts_streams"), ("response_format", "_structured")):
            if isinstance(outcome, _Failure) and outcome.error.reason == "request" and name in body:
                del body[name]
                outcome = await self._attempts(body)
                if not isinstance(outcome, _Failure):
                    setattr(self, flag, False)
        if isinstance(outcome, _Failure):
            # Outside of every `except`: the transport's exception, whose request holds the key, is gone.
            raise outcome.error
        if not outcome.text.strip():
            raise ClientError("empty", f"{self.model!r} at {self._where} gave an empty reply")
        return outcome

    async def _attempts(self, body: dict[str, Any]) -> Reply | _Failure:
        size = sum(len(m["content"]) for m in body["messages"]) if "messages" in body else len(body["prompt"])
        expected = size // 3 + int(body["max_tokens"])
        for attempt in range(self._retries + 1):
            await asyncio.sleep(self._pace.reserve(expected))
            outcome = await self._send(body)
            if not isinstance(outcome, _Failure):
                if outcome.usage:
                    self._counts["prompt"] += outcome.usage["prompt"]
                    self._counts["completion"] += outcome.usage["completion"]
                    self._pace.settle(expected, sum(outcome.usage.values()))
                else:
                    self._counts["uncounted"] += 1
                return outcome
            if not outcome.again or attempt == self._retries:
                return outcome
            wait = outcome.after
            if wait is None:
                wait = pause(attempt, self._backoff, _LONGEST_PAUSE, self._jitter.random())
            elif wait > _LONGEST_PAUSE:
                message = (
                    f"{outcome.error}; it asks to wait {wait:.0f} s, longer than the {_LONGEST_PAUSE:.0f} s allowed"
                )
                return _Failure(ClientError(outcome.error.reason, message), again=False)
            if outcome.error.reason == "rate_limit":
                self._pace.hold(wait)
            self._counts["retries"] += 1
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns")

    async def _send(self, body: dict[str, Any]) -> Reply | _Failure:
        """One attempt; what went wrong comes back as a value, without the request in it."""
        o = self._openai
        self.calls += 1
        where = self._where
        api = self._api.completions if "prompt" in body else self._api.chat.completions
        read = self._read_stream if body.get("stream") else self._read

        async def attempt() -> Reply | _Failure:
            return await read(await api.create(**body))

        try:
            return await asyncio.wait_for(attempt(), self._timeout)
        except (o.APITimeoutError, asyncio.TimeoutError):
            return _Failure(ClientError("timeout", f"{where} did not answer within {self._timeout} s"), again=True)
        except o.APIStatusError as error:
            status = int(error.status_code)
            message = f"{where} answered {status}: {self._clean(str(error.message))}"
            again = status in (408, 409, 429) or status >= 500
            return _Failure(ClientError(_reason(status), message), again, retry_after(error.response.headers))
        except o.APIConnectionError as error:
            why = self._clean(str(error.__cause__ or error))
            return _Failure(ClientError("connection", f"cannot reach {where}: {why}"), again=True)
        except (asyncio.CancelledError, CancelledError):
            raise
        except Exception as error:
            why = self._clean(f"{type(error).__name__}: {error}")
            # The transport's own exceptions come through while a body or a stream is read.
            if type(error).__module__.split(".")[0].startswith(("httpx", "httpcore")):
                return _Failure(ClientError("connection", f"{where} broke off its reply: {why}"), again=True)
            message = f"{where} answered with something that is no chat completion: {why}"
            return _Failure(ClientError("malformed", message), again=False)

    async def _read(self, answer: Any) -> Reply | _Failure:
        try:
            choice = answer.choices[0]
            text = choice.text if self.style == "completion" else choice.message.content
            counts = _counts(answer.usage)
        except (AttributeError, IndexError, TypeError, ValueError):
            return self._no_completion()
        return Reply(text or "", self.model, counts) if text is None or isinstance(text, str) else self._no_completion()

    async def _read_stream(self, stream: Any) -> Reply | _Failure:
        pieces: list[str] = []
        counts: dict[str, int] = {}
        finished = False
        async for chunk in stream:
            try:
                counts = _counts(chunk.usage) or counts
                for choice in chunk.choices[:1]:
                    piece = choice.text if self.style == "completion" else choice.delta.content
                    pieces.append(piece or "")
                    finished = finished or choice.finish_reason is not None
            except (AttributeError, IndexError, TypeError, ValueError):
                return self._no_completion()
        if not finished:
            error = ClientError("connection", f"{self._where} broke off its reply after {len(pieces)} pieces")
            return _Failure(error, again=True)
        return Reply("".join(pieces), self.model, counts)

    def _no_completion(self) -> _Failure:
        message = f"{self._where} answered with something that is no chat completion"
        return _Failure(ClientError("malformed", message), again=False)

    def _clean(self, message: str) -> str:
        """Take every secret out of a message; servers like to quote the key they refuse, or a part of it."""
        for secret in self._secrets:
            message = message.replace(secret, "***")
        message = re.sub(r"\b(sk|key|Bearer)[-_ ][\w*.\-]{6,}", r"\1-***", message)
        return brief(message, 300)


def _counts(usage: Any) -> dict[str, int]:
    return {"prompt": int(usage.prompt_tokens), "completion": int(usage.completion_tokens)} if usage else {}


def _reason(status: int) -> Reason:
    if status in (401, 403):
        return "auth"
    if status == 429:
        return "rate_limit"
    return "server" if status >= 500 else "request"


def _password(url: str | None) -> str | None:
    found = re.match(r"\w+://[^/@]*:([^/@]+)@", url or "")
    return found.group(1) if found else None


def _without_password(url: str) -> str:
    return re.sub(r"(\w+://)[^/@]+@", r"\1***@", url)
