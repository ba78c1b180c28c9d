"""What every result of this package carries and how it is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from modcut.provenance import digest, stamp


def record(model: nn.Module, *, n: int, controls: int, seed: int, ablation: str, **extra: Any) -> dict[str, Any]:
    """Return how a result was made: ``n`` measurements, the control, the ablation, digest and versions."""
    control = f"{controls} random modules with as many units in every space, whole heads for whole heads"
    return stamp(n=n, seed=seed, control=control, ablation=ablation, model=digest(model), **extra)


def footer(made: dict[str, Any]) -> str:
    """Return the lines under every printed table."""
    return (
        f"n {made['n']}, seed {made['seed']}, ablation {made['ablation']}; control: {made['control']}\n"
        f"model {made['model'][:12]}, modcut {made['modcut']}; p is the rank among the controls, not corrected for the "
        "number of rows"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns of strings: the first to the left, the others to the right."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in [header, *rows]
    ]
    return "\n".join([lines[0].rstrip(), "-" * (sum(widths) + 2 * (len(widths) - 1)), *(s.rstrip() for s in lines[1:])])


@contextmanager
def bar(title: str, total: int, show: bool) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of ``total`` measurements; a bar on standard error where ``show``."""
    if not show:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=total)
        yield lambda: shown.advance(task)
