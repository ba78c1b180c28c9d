"""Language models behind one small protocol: any OpenAI-compatible server, with a cache on disk that can be replayed.

A failed call raises :class:`ClientError`; it never becomes an empty text or a low score. No API key is kept in a cache,
a representation or a message.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from modcut._require import require

Message = Mapping[str, str]
Reason = Literal["connection", "timeout", "auth", "rate_limit", "server", "request", "malformed", "empty", "not_cached"]


class ClientError(RuntimeError):
    """A language model gave no usable answer; ``reason`` says why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Reply:
    """One answer."""

    text: str
    model: str
    usage: dict[str, int] = field(default_factory=dict)
    """Tokens: prompt and completion, where the server says."""
    cached: bool = False


@runtime_checkable
class Client(Protocol):
    """What :func:`modcut.describe` needs of a language model."""

    @property
    def model(self) -> str:
        """Name that cards carry as their origin."""
        ...

    def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, max_tokens: int = 512, seed: int = 0
    ) -> Reply:
        """Answer a chat, in JSON of the given schema where there is one; raise :class:`ClientError` otherwise."""
        ...


def request_key(
    model: str, messages: Sequence[Message], schema: Mapping[str, Any] | None, max_tokens: int, seed: int
) -> str:
    """Return the SHA-256 of a request: equal requests to equal models have equal keys, wherever the server is."""
    request = {
        "model": model,
        "messages": [dict(m) for m in messages],
        "schema": schema,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def parse_json(text: str) -> dict[str, Any]:
    """Return the first JSON object in a reply, also from inside prose or a code fence.

    Raises:
        ClientError: (``malformed``) there is none.
    """
    decoder = json.JSONDecoder()
    for start in (m.start() for m in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    raise ClientError("malformed", f"the reply must hold a JSON object, got {_brief(text)!r}")


class Cache:
    """Replies on disk, one JSON object a line, keyed by :func:`request_key`; only ever appended to."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._replies[entry["key"]] = Reply(entry["text"], entry["model"], entry["usage"], cached=True)
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # the half line of a run that was killed while it wrote: that call is made again

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """Return the stored reply, marked as cached, or None."""
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Store a reply; it is on disk when this returns."""
        entry = {"key": key, **{k: v for k, v in asdict(reply).items() if k != "cached"}}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and self.path.stat().st_size > 0 and not self._ends_with_newline()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if torn else "") + json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._replies[key] = Reply(reply.text, reply.model, reply.usage, cached=True)

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


class ReplayClient:
    """Answers from a cache only: the same cards again, offline.

    Args:
        cache: a JSONL file that an earlier run wrote.
        model: name of the model that was asked then.
    """

    def __init__(self, cache: str | os.PathLike[str], model: str) -> None:
        if not Path(cache).is_file():
            raise FileNotFoundError(f"cache must be an existing file, got {os.fspath(cache)!r}")
        self.model = model
        self._cache = Cache(cache)

    def __repr__(self) -> str:
        return f"ReplayClient(cache={str(self._cache.path)!r}, model={self.model!r}, replies={len(self._cache)})"

    def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, max_tokens: int = 512, seed: int = 0
    ) -> Reply:
        """Return the stored reply; ClientError (``not_cached``) where this request was never answered."""
        reply = self._cache.get(request_key(self.model, messages, schema, max_tokens, seed))
        if reply is None:
            raise ClientError("not_cached", f"no stored reply of {self.model!r} for this request in {self._cache.path}")
        return reply


class OpenAIClient:
    """A model behind an OpenAI-compatible server (OpenAI, vLLM, llama.cpp, Ollama, ``transformers serve``, ...).

    Args:
        model: its name on the server.
        base_url: address of the server, up to and including ``/v1``; OpenAI's own by default.
        api_key: defaults to the environment variable ``OPENAI_API_KEY``; a server given by ``base_url`` may need none.
        timeout: seconds for one attempt.
        retries: further attempts after a refused connection, a timeout, 408, 409, 429 and 5xx, with growing pauses.
        cache: JSONL file: answers are stored there, and equal requests are answered from it without a call.

    Raises:
        ValueError: no key and no ``base_url``.
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
    ) -> None:
        openai = require("openai", extra="llm", why="OpenAIClient")
        key = api_key or os.environ.get("OPENAI_API_KEY")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        if not key and base_url is None:
            raise ValueError("api_key must be given (or set in OPENAI_API_KEY) when base_url is not, got none")
        if retries < 0 or timeout <= 0:
            raise ValueError(f"retries must be >= 0 and timeout > 0, got {retries} and {timeout}")
        self.model = model
        self.parse_failures = 0
        self.calls = 0
        self._where = _without_password(base_url) if base_url else "api.openai.com"
        self._openai = openai
        self._secrets = tuple(s for s in (key, _password(base_url)) if s)
        self._api = openai.OpenAI(api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=retries)
        self._cache = None if cache is None else Cache(cache)
        # Becomes False when the server refuses `response_format`: the schema then stands in the prompt alone.
        self._structured = True

    def __repr__(self) -> str:
        return f"OpenAIClient(model={self.model!r}, server={self._where!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an OpenAIClient holds an API key and cannot be pickled; make a new one where it is needed")

    def close(self) -> None:
        """Close the connections to the server."""
        self._api.close()

    def __enter__(self) -> OpenAIClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, max_tokens: int = 512, seed: int = 0
    ) -> Reply:
        """Ask the model, or return the stored answer to an equal request.

        With a ``schema`` the reply holds a JSON object; a reply without one is counted in ``parse_failures``, asked for
        once more with the next seed, and then an error. Only usable replies are stored.

        Raises:
            ClientError: refused connection, timeout, 401/403, 429, 5xx, another refusal, malformed or empty reply.
        """
        key = request_key(self.model, messages, schema, max_tokens, seed)
        if self._cache is not None and (stored := self._cache.get(key)) is not None:
            return stored
        reply = self._ask(messages, schema, max_tokens, seed)
        if schema is not None:
            try:
                parse_json(reply.text)
            except ClientError:
                self.parse_failures += 1
                reply = self._ask(messages, schema, max_tokens, seed + 1)
                try:
                    parse_json(reply.text)
                except ClientError:
                    self.parse_failures += 1
                    raise
        if self._cache is not None:
            self._cache.put(key, reply)
        return reply

    def _ask(self, messages: Sequence[Message], schema: Mapping[str, Any] | None, max_tokens: int, seed: int) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(m) for m in messages],
            "max_tokens": max_tokens,
            "seed": seed,
            "temperature": 0.0,
        }
        if schema is not None and self._structured:
            shape = {"name": str(schema.get("title", "reply")), "schema": dict(schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        answer, failure = self._send(body)
        if failure is not None and failure.reason == "request" and "response_format" in body:
            del body["response_format"]
            answer, failure = self._send(body)
            if failure is None:
                self._structured = False
        if failure is not None:
            raise failure  # outside of every `except`: the transport's exception, whose request holds the key, is gone
        try:
            text = answer.choices[0].message.content
            usage = answer.usage
            counts = {"prompt": int(usage.prompt_tokens), "completion": int(usage.completion_tokens)} if usage else {}
        except (AttributeError, IndexError, TypeError, ValueError):
            text, counts = None, {}
            malformed = True
        else:
            malformed = text is not None and not isinstance(text, str)
        if malformed:
            raise ClientError("malformed", f"{self._where} answered with something that is no chat completion")
        if not text or not text.strip():
            raise ClientError("empty", f"{self.model!r} at {self._where} gave an empty reply")
        return Reply(text, self.model, counts)

    def _send(self, body: dict[str, Any]) -> tuple[Any, ClientError | None]:
        """One call with the package's own retries; what went wrong comes back as a value, without the request in it."""
        o = self._openai
        self.calls += 1
        try:
            return self._api.chat.completions.create(**body), None
        except o.APITimeoutError:
            return None, ClientError("timeout", f"{self._where} did not answer within {self._api.timeout} s")
        except o.APIConnectionError as error:
            why = self._clean(str(error.__cause__ or error))
            return None, ClientError("connection", f"cannot reach {self._where}: {why}")
        except o.APIStatusError as error:
            return None, ClientError(
                _reason(error.status_code),
                f"{self._where} answered {error.status_code}: {self._clean(str(error.message))}",
            )
        except (o.OpenAIError, json.JSONDecodeError, ValueError, TypeError, AttributeError) as error:
            why = self._clean(f"{type(error).__name__}: {error}")
            return None, ClientError(
                "malformed", f"{self._where} answered with something that is no chat completion: {why}"
            )

    def _clean(self, message: str) -> str:
        """Take every secret out of a message; servers like to quote the key they refuse, or a part of it."""
        for secret in self._secrets:
            message = message.replace(secret, "***")
        message = re.sub(r"\b(sk|key|Bearer)[-_ ][\w*.\-]{6,}", r"\1-***", message)
        return _brief(message, 300)


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


def _brief(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
