"""What every language model behind modcut looks like: a request, a reply, or an error that says why there is none."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Message = Mapping[str, str]
Style = Literal["chat", "completion"]
Reason = Literal[
    "connection",
    "timeout",
    "auth",
    "rate_limit",
    "server",
    "request",
    "malformed",
    "empty",
    "not_cached",
    "not_asked",
    "client",
]


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


@dataclass(frozen=True)
class Request:
    """One question, as :meth:`Client.complete` takes it."""

    messages: Sequence[Message]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 512
    seed: int = 0


@runtime_checkable
class Client(Protocol):
    """What :func:`modcut.describe` needs of a language model.

    A client may also have ``style``: ``"chat"`` (the default: instructions, answers in JSON), or ``"completion"`` (a
    few examples, continued by one line: small models do this far better than they follow instructions).
    """

    @property
    def model(self) -> str:
        """Name that cards carry as their origin."""
        ...

    def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, max_tokens: int = 512, seed: int = 0
    ) -> Reply:
        """Answer a chat, in JSON of the given schema where there is one; raise :class:`ClientError` otherwise."""
        ...


def ask(client: Client, request: Request) -> Reply:
    """Ask a client of anybody's writing: whatever it raises or returns instead of a reply is one failed call.

    Raises:
        ClientError: its own, or (``client``) the name of what it raised (its words may hold a key: they stay in
            ``__cause__``), or (``malformed``) no :class:`Reply`.
    """
    try:
        reply: Any = client.complete(request.messages, request.schema, request.max_tokens, request.seed)
    except ClientError:
        raise
    except Exception as error:
        raise ClientError("client", f"{type(client).__name__}.complete raised {type(error).__name__}") from error
    if not isinstance(reply, Reply) or not isinstance(reply.text, str):
        got = type(reply).__name__ if not isinstance(reply, Reply) else f"one whose text is {type(reply.text).__name__}"
        raise ClientError("malformed", f"{type(client).__name__}.complete must return a Reply with a text, got {got}")
    return reply


def style_of(client: Client) -> Style:
    """Return which kind of prompt suits a client."""
    style: Style = "completion" if getattr(client, "style", "chat") == "completion" else "chat"
    return style


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
    raise ClientError("malformed", f"the reply must hold a JSON object, got {brief(text)!r}")


def brief(text: str, limit: int = 120) -> str:
    """Return the text cut to ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
