"""Read the modules of a network: evidence, language-model clients, cards and their scores."""

from __future__ import annotations

from modcut.reading.cards import ModuleCard, ModuleCards
from modcut.reading.clients import Client, ClientError, LocalClient, OpenAIClient, RecordingClient, ReplayClient, Reply
from modcut.reading.reader import describe

__all__ = [
    "Client",
    "ClientError",
    "LocalClient",
    "ModuleCard",
    "ModuleCards",
    "OpenAIClient",
    "RecordingClient",
    "ReplayClient",
    "Reply",
    "describe",
]
