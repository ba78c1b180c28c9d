"""Language models behind one small protocol: any OpenAI-compatible server or a local model, with replies on disk.

A failed call raises :class:`ClientError`; it never becomes an empty text or a low score. No API key is kept in a cache,
a representation or a message.
"""

from __future__ import annotations

from modcut.reading.clients.cache import Cache, RecordingClient, ReplayClient
from modcut.reading.clients.fanout import ask_all
from modcut.reading.clients.local_client import LocalClient
from modcut.reading.clients.openai_client import OpenAIClient
from modcut.reading.clients.protocol import (
    Client,
    ClientError,
    Message,
    Reason,
    Reply,
    Request,
    brief,
    parse_json,
    request_key,
    style_of,
)

__all__ = [
    "Cache",
    "Client",
    "ClientError",
    "LocalClient",
    "Message",
    "OpenAIClient",
    "Reason",
    "RecordingClient",
    "ReplayClient",
    "Reply",
    "Request",
    "ask_all",
    "brief",
    "parse_json",
    "request_key",
    "style_of",
]
