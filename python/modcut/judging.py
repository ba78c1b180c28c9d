"""``modcut trace``, ``compare`` and ``audit``: from a model a user names to the saved result."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from modcut._files import write_json
from modcut.describing import _partition_file
from modcut.loading import Loaded
from modcut.pipeline import _named, _reader, _unlabelled, _vocab, read_text

_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class Bench:
    """A loaded model with its partition, text to observe it on, and what reads and writes its tokens."""

    def __init__(
        self, loaded: Loaded, partition: Path | None, k: int, data: Path | None, windows: int, length: int, seed: int
    ) -> None:
        import modcut
        from modcut.graph.edges import with_edge
        from modcut.graph.statistics import collect

        if windows < 4 or length < 2:
            raise ValueError(f"windows must be at least 4 and length at least 2, got {windows} and {length}")
        file = _partition_file(partition)
        self.model = loaded.model
        self.tokenizer, _ = _reader(loaded.tokenizer, _vocab(loaded.model))
        slices, self.origin = read_text(self.tokenizer, data, windows=windows, length=length, seed=seed)
        self.named = _named(loaded.model)
        self.data: Any = slices if self.named else {s: [b["input_ids"] for b in part] for s, part in slices.items()}
        ids = next(iter(slices.values()))[0]["input_ids"][:1]
        graph = modcut.weight_graph(
            loaded.model, {"input_ids": ids} if self.named else ids, include_inputs=False, include_outputs=False
        )
        if file is not None:
            self.P = modcut.Partition.load(file, graph)
        else:
            statistics = collect(graph, loaded.model, self.data)
            graph = with_edge(graph, "contribution", statistics)
            self.P = modcut.find_modules(graph, k, method="functional", seed=seed, statistics=_unlabelled(statistics))

    def prompt(self, text: str) -> Any:
        """Return a text as one sample."""
        ids = torch.tensor([list(self.tokenizer.encode(text))], dtype=torch.int64)
        if not ids.numel():
            raise ValueError("prompt must hold at least one token")
        return {"input_ids": ids} if self.named else ids


def read_condition(text: str) -> tuple[str, str, float]:
    """Return ``(figure, operator, number)`` of a condition such as ``p_harm>0.5``.

    Raises:
        ValueError: it is none; figures are ``p_harm`` and ``supported`` (number of supported claims of use).
    """
    found = re.fullmatch(r"\s*(p_harm|supported)\s*(>=|<=|>|<)\s*(\d*\.?\d+)\s*", text)
    if not found:
        raise ValueError(
            f"--fail-on must be p_harm or supported, one of > >= < <=, and a number, as in 'p_harm>0.5'; got {text!r}"
        )
    return found[1], found[2], float(found[3])


def holds(condition: str, report: Mapping[str, Any]) -> bool:
    """Return whether a condition holds of a saved audit."""
    figure, sign, limit = read_condition(condition)
    supported = sum(f["verdict"] == "supported" and not str(f["id"]).startswith("carried:") for f in report["findings"])
    value = float(report["p_harm"]) if figure == "p_harm" else float(supported)
    return bool(_OPERATORS[sign](value, limit))


def audit_model(
    bench: Bench,
    *,
    concepts: Sequence[Path] = (),
    harmless: Loaded | None = None,
    calibration: Path | None = None,
    controls: int = 99,
    prior: float = 0.5,
    seed: int = 0,
    out: Path = Path("audit.json"),
    progress: bool = False,
) -> dict[str, Any]:
    """Audit a model and write ``out``; the claims are written beside it (``<out>.claims.json``) before any test."""
    import modcut
    from modcut.auditing import Calibration, load_concept

    curve = None
    if calibration is not None:
        import json

        curve = Calibration.from_dict(json.loads(calibration.read_text(encoding="utf-8")))
    verdict = modcut.audit(
        bench.model, bench.P, [load_concept(p) for p in concepts] or None, bench.data,
        harmless=None if harmless is None else harmless.model, calibration=curve, tokenizer=bench.tokenizer,
        controls=controls, prior=prior, seed=seed, declare=out.with_name(out.name + ".claims.json"), progress=progress,
    )  # fmt: skip
    saved: dict[str, Any] = verdict.to_dict()
    write_json(out, saved)
    print(verdict)
    return saved


__all__ = ["Bench", "audit_model", "holds", "read_condition"]
