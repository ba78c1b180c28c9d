"""Read the modules of a network: evidence, language-model clients, cards and their scores."""

from __future__ import annotations

from modcut.reading.cards import ModuleCard, ModuleCards
from modcut.reading.clients import Client, ClientError, LocalClient, OpenAIClient, RecordingClient, ReplayClient, Reply
from modcut.reading.code import CodeError, module_code
from modcut.reading.collect import Evidence, collect_evidence
from modcut.reading.reader import describe
from modcut.reading.texts import TokenBatches, token_batches

__all__ = [
    "Client",
    "ClientError",
    "CodeError",
    "Evidence",
    "LocalClient",
    "ModuleCard",
    "ModuleCards",
    "OpenAIClient",
    "RecordingClient",
    "ReplayClient",
    "Reply",
    "TokenBatches",
    "collect_evidence",
    "describe",
    "module_code",
    "token_batches",
]
