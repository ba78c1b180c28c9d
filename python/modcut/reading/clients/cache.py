"""Replies on disk: recorded as they come, answered from there ever after."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modcut.reading.clients.protocol import Client, ClientError, Message, Reply, Request, ask, request_key, style_of


class Cache:
    """Replies on disk, one JSON object a line, keyed by :func:`request_key`; only ever appended to."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
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
        style: prompts that the model was asked with, see :class:`Client`.
    """

    def __init__(self, cache: str | os.PathLike[str], model: str, style: str = "chat") -> None:
        if not Path(cache).is_file():
            raise FileNotFoundError(f"cache must be an existing file, got {os.fspath(cache)!r}")
        self.model = model
        self.style = style
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


class RecordingClient:
    """Any client, with every usable reply on disk: a run that was stopped goes on where it stopped.

    Args:
        client: who is asked.
        path: JSONL file; an equal request is answered from it without a call. Only replies that kept to their schema
            (where there is one) are stored, so a second run asks again for what failed.
    """

    def __init__(self, client: Client, path: str | os.PathLike[str]) -> None:
        self.client = client
        self.style = style_of(client)
        self._cache = Cache(path)

    @property
    def model(self) -> str:
        """The name of the model that is asked."""
        return self.client.model

    @property
    def usage(self) -> dict[str, Any]:
        """What the wrapped client counted."""
        return dict(getattr(self.client, "usage", {}))

    @property
    def parse_failures(self) -> int:
        """Replies of the wrapped client that held no JSON."""
        return int(getattr(self.client, "parse_failures", 0))

    def __repr__(self) -> str:
        return f"RecordingClient({self.client!r}, path={str(self._cache.path)!r}, replies={len(self._cache)})"

    def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, max_tokens: int = 512, seed: int = 0
    ) -> Reply:
        """Return the stored reply, or ask and store it."""
        key = request_key(self.model, messages, schema, max_tokens, seed)
        stored = self._cache.get(key)
        if stored is None:
            stored = ask(self.client, Request(messages, schema, max_tokens, seed))
            self._cache.put(key, stored)
        return stored

    def submit(self, request: Request) -> Future[Reply]:
        """Return the future of a reply; it is on disk before the future is done."""
        key = request_key(self.model, request.messages, request.schema, request.max_tokens, request.seed)
        done: Future[Reply] = Future()
        if (stored := self._cache.get(key)) is not None:
            done.set_result(stored)
            return done
        begin = getattr(self.client, "submit", None)
        if begin is None:
            try:
                done.set_result(self.complete(request.messages, request.schema, request.max_tokens, request.seed))
            except ClientError as error:
                done.set_exception(error)
            return done
        inner: Future[Reply] = begin(request)
        return _Stored(inner, self._cache, key)


class _Stored(Future[Reply]):
    """A future that has its result stored before it says that it is done; to cancel it cancels the call."""

    def __init__(self, inner: Future[Reply], cache: Cache, key: str) -> None:
        super().__init__()
        self._inner, self._cache, self._key = inner, cache, key
        inner.add_done_callback(self._finish)

    def cancel(self) -> bool:
        """Cancel the call."""
        return self._inner.cancel()

    def _finish(self, inner: Future[Reply]) -> None:
        if inner.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = inner.exception()
        if error is None:
            try:
                self._cache.put(self._key, inner.result())
            except OSError as failed:  # a full disk must not look like a missing answer
                error = failed
        if error is None:
            self.set_result(inner.result())
        else:
            self.set_exception(error)
