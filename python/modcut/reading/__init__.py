"""Read the modules of a network: evidence, language-model clients, cards and their scores."""

from __future__ import annotations

from modcut.reading.cards import ModuleCard, ModuleCards
from modcut.reading.clients import Client, ClientError, OpenAIClient, ReplayClient, Reply
from modcut.reading.reader import describe

__all__ = ["Client", "ClientError", "ModuleCard", "ModuleCards", "OpenAIClient", "ReplayClient", "Reply", "describe"]
