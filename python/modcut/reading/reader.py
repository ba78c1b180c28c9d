"""Describe every module of a partition: evidence first, then words, then a held-out score of the evidence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from modcut import _batches
from modcut.graph.interventions import Mode
from modcut.partition import Partition
from modcut.provenance import digest, stamp
from modcut.reading.cards import EVIDENCE_ONLY, ModuleCard, ModuleCards
from modcut.reading.clients import Client
from modcut.reading.collect import Evidence, collect_evidence
from modcut.reading.evidence import decoder
from modcut.reading.judges import Judge
from modcut.reading.sentences import sentence
from modcut.reading.store import labels_digest
from modcut.reading.telling import Telling, tell
from modcut.reading.watch import Measure
from modcut.reading.writing import SCHEMA, prompt


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
    evidence: Evidence | str | os.PathLike[str] | None = None,
    ablation_controls: int | None = None,
    measure: Measure = "use",
    windows: int = 256,
    samples: int = 256,
    judge: Judge | Client | Literal["lexical", "none"] = "lexical",
    prompts: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    text_items: int = 24,
    random_texts: int = 0,
) -> ModuleCards:
    """Return a card for every module of ``P``: evidence, effect beside random modules, a held-out score, and a text.

    Evidence is chosen on one half of the samples; effects and scores are measured on the other. Without a ``client``
    the text is written by rule from the evidence and says so (``origin`` "evidence only"). With one, the evidence of
    the selection half is sent to it, one call for every module, interface and group (see :class:`ModuleCards`); a
    failed call leaves that card with its evidence-only text and ``error`` set, and a second run with the same
    ``resume`` (or a client with a ``cache``) asks only for what is missing.

    Each text is then given to a ``judge``, who predicts from it alone where the module is active on held-out data and
    what breaks without it: ``scores["text_detection"]``, ``["text_simulation"]`` and ``["causal"]``, each beside the
    scores of other modules' texts, of random modules and of the evidence-only text. A text that failed has none.

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
        evidence: evidence gathered before, or a folder: what it holds is used again where the digests of model,
            partition, data and settings fit, and refused otherwise; a stream that was interrupted goes on; new evidence
            is stored there (:func:`modcut.reading.collect_evidence`).
        ablation_controls: random modules that are ablated too (default: at most 3 of ``controls``).
        measure: ``use`` (forward and backward passes) or ``activity`` (forward only, for long streams).
        windows: samples kept per half for scores and readers, whatever the length of the data.
        samples: of these, run again for ablations and signals.
        judge: who predicts from the texts: ``"lexical"`` (words compared by rule, no language model), a client, any
            object with ``name`` and ``rate``, or ``"none"``. Many calls where it is a client: about ``text_items / 12``
            for each of 2 to 5 texts a module.
        prompts: folder of jinja2 files that replace the package's of the same name (``module.j2``, ``interface.j2``,
            ``group.j2``, ``judge.j2``, each also as ``NAME_completion.j2``).
        resume: JSONL file for the replies of client and judge, written as they come.
        text_items: pieces of held-out data that a judge is shown per module.
        random_texts: random modules per module that the client describes too, as a control of its texts; without it
            the texts of random modules are written by rule.

    Raises:
        ValueError: fewer than two samples, labels of another graph, or no loss where one is needed.
        TypeError: a client or a judge that is none.
    """
    if client is not None and not isinstance(client, Client):
        raise TypeError(
            "client must have a name model and a method complete(messages, schema, max_tokens, seed), as OpenAIClient "
            f"and LocalClient do, got {type(client).__name__}"
        )
    decode = decoder(tokenizer)
    with _progress(progress) as say:
        telling = Telling(client, judge, prompts, resume, seed, text_items, random_texts, say)
        telling.check()
        known = _known(
            model,
            P,
            data,
            evidence,
            loss_fn=loss_fn,
            tokenizer=tokenizer,
            seed=seed,
            max_batches=max_batches,
            controls=controls,
            ablation=ablation,
            ablation_controls=ablation_controls,
            measure=measure,
            windows=windows,
            samples=samples,
            step=say,
        )
        cards = [
            ModuleCard(i, sentence(e), evidence=e, scores=s, interfaces=f)
            for i, (e, s, f) in enumerate(zip(known.modules, known.scores, known.interfaces, strict=True))
        ]
        told = tell(telling, cards, known.windows, known.carried, known.groups, min(controls, 3), decode)
    meta = {
        **stamp(seed=seed, digest=digest(model)),
        **{key: known.meta[key] for key in ("n", "held_out", "positions", "slices", "objective", "measured")},
        "evidence": known.meta["evidence"],
        "control": f"{controls} random modules with as many units in every space and whole heads",
        "ablation": ablation,
        "client": None if client is None else client.model,
        **told.meta,
        "edge": P.graph.edge,
        "not_covered": [list(entry) for entry in P.graph.not_covered],
    }
    return ModuleCards(cards, meta, told.interfaces, told.groups)


def _known(
    model: nn.Module,
    P: Partition,
    data: _batches.Data,
    evidence: Evidence | str | os.PathLike[str] | None,
    **settings: Any,
) -> Evidence:
    if not isinstance(evidence, Evidence):
        return collect_evidence(model, P, data, path=evidence, **settings)
    if evidence.meta["partition"] != labels_digest(P.labels) or evidence.meta["model"] != digest(model):
        raise ValueError("evidence must be of this model and partition, their digests differ from the stored ones")
    return evidence


@contextmanager
def _progress(show: bool) -> Iterator[Callable[[str], None]]:
    if not show:
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("describe") as status:
        yield lambda words: status.update(f"describe: {words}")


__all__ = ["EVIDENCE_ONLY", "SCHEMA", "describe", "prompt"]
