"""Describe every module of a partition: evidence first, then words, then a held-out score of the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jinja2
import numpy as np
from torch import nn

from modcut import _batches
from modcut.graph.interventions import Mode
from modcut.partition import Partition
from modcut.provenance import digest, stamp
from modcut.reading import evidence as _evidence
from modcut.reading.cards import EVIDENCE_ONLY, ModuleCard, ModuleCards
from modcut.reading.clients import Client, ClientError, parse_json
from modcut.reading.observe import observe
from modcut.reading.scores import score_all
from modcut.reading.sentences import sentence

SCHEMA: dict[str, Any] = {
    "title": "module_description",
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "description": {"type": "string"},
        "confidence": {"type": "number"},
    },
    "required": ["title", "description", "confidence"],
    "additionalProperties": False,
}
# After an error of the first kind no later call can succeed; after some of the second kind in a row, we stop asking.
_FATAL = ("auth",)
_UNREACHABLE = ("connection", "timeout")
_PATIENCE = 2


def describe(
    model: nn.Module,
    P: Partition,
    data: _batches.Data,
    client: Client | None = None,
    *,
    loss_fn: _batches.LossFn | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    max_batches: int | None = 8,
    controls: int = 3,
    ablation: Mode = "mean",
    progress: bool = False,
) -> ModuleCards:
    """Return a card for every module of ``P``: evidence, effect beside random modules, a held-out score, and a text.

    Evidence is chosen on one half of the samples; effects and scores are measured on the other. Without a ``client``
    the text is written by rule from the evidence and says so (``origin`` "evidence only"). With one, the same evidence
    is sent to it, one call a module; a failed call leaves that card with its evidence-only text and ``error`` set, and
    a second run with the client's ``cache`` asks only for what is missing.

    Args:
        model: the model that ``P.graph`` was traced from. It is left as it was.
        P: a partition.
        data: batches, or a dict of them by slice (see :mod:`modcut._batches`); at least two samples.
        client: a language model, or None.
        loss_fn: ``loss_fn(model, batch) -> scalar`` (a mean over the batch), where the model returns no loss.
        tokenizer: ``decode(list[int]) -> str`` or a callable, to show tokens as text.
        seed: of the split, the random modules and the bootstrap.
        max_batches: read at most this many batches per slice.
        controls: random modules per module, at least 1.
        ablation: how a module is switched off to measure its effect (see :func:`modcut.ablate`).
        progress: show progress.

    Raises:
        ValueError: fewer than two samples, labels of another graph, or no loss where one is needed.
    """
    decode = _evidence.decoder(tokenizer)
    with _progress(progress) as say:
        seen = observe(
            model,
            P,
            data,
            loss_fn=loss_fn,
            seed=seed,
            max_batches=max_batches,
            controls=controls,
            mode=ablation,
            step=say,
        )
        say("scores of the evidence")
        signatures, scores = score_all(seen.windows, P.k, controls, seed)
        say("interfaces")
        blocks = _evidence.block_strengths(P)
        matrix = sum((m for _, _, m in blocks), np.zeros((P.k, P.k)))
        found = _evidence.gather(P, seen, signatures, matrix, decode)
        cards = [
            ModuleCard(i, sentence(e), evidence=e, scores=s, interfaces=_evidence.interfaces(P, i, matrix, blocks))
            for i, (e, s) in enumerate(zip(found, scores, strict=True))
        ]
        if client is not None:
            _write(cards, client, seed, tokens=seen.tokens, say=say)
    meta = {
        **stamp(seed=seed, digest=digest(model)),
        "n": len(seen.windows),
        "held_out": seen.scored_windows,
        "positions": int(sum(len(w.use) for w in seen.windows)),
        "slices": list(seen.slices),
        "control": f"{controls} random modules with as many units in every space and whole heads",
        "ablation": ablation,
        "objective": seen.objective,
        "client": None if client is None else client.model,
        "failed": sum(c.error is not None for c in cards),
        "parse_failures": getattr(client, "parse_failures", 0),
        "edge": P.graph.edge,
        "not_covered": [list(entry) for entry in P.graph.not_covered],
    }
    return ModuleCards(cards, meta)


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    # Prompts are plain text: escaping for HTML would change the evidence.
    loader = jinja2.PackageLoader("modcut.reading", "prompts")
    return jinja2.Environment(loader=loader, autoescape=False, undefined=jinja2.StrictUndefined)


def prompt(card: ModuleCard, *, tokens: bool) -> list[dict[str, str]]:
    """Return the chat messages that ask a language model to describe one module."""
    shown = _shown(card.evidence)
    text = _templates().get_template("module.j2").render(evidence=shown, tokens=tokens)
    return [{"role": "user", "content": text}]


def _shown(e: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence as a reader needs it: three digits, contexts as marked text, the longest lists cut short."""
    inputs = dict(e["inputs"])
    inputs["contexts"] = [
        {"text": f"{c['before']}>>>{c['token']}<<<{c['after']}", "times_mean": c["times_mean"], "slice": c["slice"]}
        if "token" in c
        else c
        for c in inputs["contexts"]
    ]
    for name in ("more_on", "less_on"):
        if name in inputs:
            inputs[name] = [[t["text"], t["relative_share"]] for t in inputs[name][:12]]
    shown = {**e, "inputs": inputs, "make_up": {**e["make_up"], "spaces": e["make_up"]["spaces"][:12]}}
    result: dict[str, Any] = _rounded(shown)
    return result


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value


def _write(cards: Sequence[ModuleCard], client: Client, seed: int, *, tokens: bool, say: Callable[[str], None]) -> None:
    """Let the client write the cards' texts; what fails is marked and nothing that was done is lost."""
    failures, stopped = 0, ""
    for card in cards:
        if stopped:
            card.error = f"not asked: {stopped}"
            continue
        say(f"description of module {card.index}")
        try:
            reply = client.complete(prompt(card, tokens=tokens), SCHEMA, 512, seed)
            title, text, confidence = _fields(parse_json(reply.text))
        except ClientError as error:
            card.error = f"{error.reason}: {error}"
            failures = failures + 1 if error.reason in _UNREACHABLE else 0
            if error.reason in _FATAL or failures >= _PATIENCE:
                stopped = str(error)
            continue
        failures = 0
        card.title, card.text, card.confidence, card.origin = title, text, confidence, reply.model


def _fields(value: Mapping[str, Any]) -> tuple[str, str, float | None]:
    """Check a reply against :data:`SCHEMA`: servers that ignore `response_format` may send anything."""
    text, title, confidence = value.get("description"), value.get("title", ""), value.get("confidence")
    if not isinstance(text, str) or not text.strip():
        raise ClientError("malformed", f"the reply must have a text 'description', got {sorted(value)}")
    number = isinstance(confidence, (int, float)) and not isinstance(confidence, bool) and 0 <= confidence <= 1
    return (title.strip() if isinstance(title, str) else ""), text.strip(), float(confidence) if number else None  # type: ignore[arg-type]


@contextmanager
def _progress(show: bool) -> Iterator[Callable[[str], None]]:
    if not show:
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("describe") as status:
        yield lambda words: status.update(f"describe: {words}")


__all__ = ["EVIDENCE_ONLY", "SCHEMA", "describe", "prompt"]
