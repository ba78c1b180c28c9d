"""``modcut cut``: from any model to its modules, cut tree, cards and report, with the time and memory of each stage."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modcut import provenance
from modcut._files import plain, write_json
from modcut.loading import Loaded

AS_BYTES = "; as bytes, because the model came without a tokenizer: if it was trained on other tokens, this is noise"


def cut_model(
    loaded: Loaded,
    *,
    k: int = 8,
    data: Path | None = None,
    edge: str = "contribution",
    windows: int = 24,
    length: int = 64,
    shuffles: int = 20,
    out: Path = Path("modcut-cut"),
    seed: int = 0,
) -> dict[str, Any]:
    """Cut a whole model into ``k`` modules and write ``partition.safetensors``, ``tree``, cards, report and results.

    The partition is functional: from what every neuron and head does on ``windows`` windows of text. The quotient tree
    over the modules is exact. Every number is written beside its control.

    Args:
        loaded: What :func:`modcut.loading.load_model` returned.
        k: Number of modules.
        data: A text file (one document; split into windows). Default: English prose and Python source, half each.
        edge: ``contribution``, ``abs`` or ``square``: the strength of an edge in metrics and tree.
        windows: Number of text windows; half of them are kept for scoring the cards.
        length: Tokens per window.
        shuffles: Random partitions of the same make-up that the metrics are compared with.
        out: Folder of the results; files in it are overwritten.
        seed: Seed of windows, clustering and controls.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: an argument is out of range, or the text is not UTF-8 or shorter than the windows.
        FileNotFoundError: ``data`` does not exist.
    """
    import modcut
    from modcut.graph.edges import with_edge
    from modcut.graph.statistics import collect
    from modcut.reporting import partition_view

    if windows < 4:
        raise ValueError(f"windows must be at least 4 (half are kept for scores), got {windows}")
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    if edge not in ("contribution", "abs", "square"):
        raise ValueError(f"edge must be 'contribution', 'abs' or 'square', got {edge!r}")
    model, tokenizer = loaded.model, loaded.tokenizer
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(longest, int) and length > longest:
        raise ValueError(f"length must be at most the model's {longest} positions, got {length}")
    tokenizer, as_bytes = _reader(tokenizer, _vocab(model))
    slices, origin = read_text(tokenizer, data, windows=windows, length=length, seed=seed)
    windows = sum(len(b["input_ids"]) for part in slices.values() for b in part)
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{loaded.facts.get('class')} from {loaded.facts.get('source')}: {parameters:,} parameters")
    print(f"text: {origin}; {windows} windows of {length} tokens")
    if as_bytes:
        origin += AS_BYTES
        print(AS_BYTES[2:])
    examples = {"input_ids": next(iter(slices.values()))[0]["input_ids"][:1]}
    example: Any = examples if _named(model) else examples["input_ids"]
    batches = slices if _named(model) else {s: [b["input_ids"] for b in part] for s, part in slices.items()}
    with clock("graph"):
        # A vocabulary of 50,000 tokens would be most of the graph and belongs to every module: it is left out.
        graph = modcut.weight_graph(model, example, include_inputs=False, include_outputs=False)
    print(f"graph: {graph.n:,} vertices in {len(graph.spaces)} spaces, {len(graph.not_covered)} parts not covered")
    for name, reason in graph.not_covered:
        print(f"  not covered: {name}: {reason}")
    with clock("statistics"):
        statistics = collect(graph, model, batches, progress=sys.stderr.isatty())
    graph = with_edge(graph, edge, statistics)
    with clock("partition"):
        # One loader, not labelled slices: the modules are found without being told which text is which.
        P = modcut.find_modules(graph, k, method="functional", seed=seed, statistics=_unlabelled(statistics))
        P.save(out / "partition.safetensors")
    with clock("tree"):
        tree = modcut.quotient_tree(P.graph, P.labels)
        tree.save(out / "tree.safetensors")
    with clock("significance"):
        significance = P.significance(shuffles=shuffles, seed=seed)
    with clock("cards"):
        cards = modcut.describe(
            model, P, batches, tokenizer=tokenizer, seed=seed, controls=2, progress=sys.stderr.isatty()
        )
        cards.save(out / "cards.json")
    results: dict[str, Any] = {
        "kind": "cut",
        "model": loaded.facts | {"digest": provenance.digest(model), "parameters": parameters},
        "text": origin,
        "graph": {"n": graph.n, "spaces": len(graph.spaces), "not_covered": [list(x) for x in graph.not_covered]},
        "partition": partition_view(P),
        "significance": {name: asdict(s) for name, s in significance.items()},
        "tree": tree.to_dict(),
        "cards": cards.to_dict(),
        "not_in_the_graph": "token vocabulary (embedding and output matrix are shared by all modules)",
        "stages": clock.rows,
        "stamp": provenance.stamp(seed=seed, command=provenance.command()),
    }
    results = plain(results)
    with clock("report"):
        write_report(results, out / "report.html")
    write_json(out / "results.json", results)
    _print(P, tree, cards, significance, clock, out)
    return results


def write_report(results: dict[str, Any], path: Path, *, format: Any = None) -> None:
    """Write the page of a cut from its ``results.json``."""
    import modcut

    model, k = results["model"], results["partition"]["k"]
    modcut.report(
        path,
        format=format,
        **{name: results[name] for name in ("partition", "significance", "tree", "cards")},
        title=f"modcut: {model.get('name', model.get('class'))} cut into {k} modules",
        meta={
            **{name: results[name] for name in ("text", "not_in_the_graph")},
            **model,
            **results["stamp"],
        },
    )


class _Bytes:
    """Text as its UTF-8 bytes, for models that came without a tokenizer."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) if i < 128 else f"#{i}" for i in ids)


def _reader(tokenizer: Any | None, vocab: int | None) -> tuple[Any, bool]:
    """Return what encodes and decodes text for the model, and whether it is bytes for want of a tokenizer."""
    from modcut.organisms import text

    if tokenizer is not None:
        return tokenizer, False
    if vocab == len(text.ALPHABET):
        return text.CharTokenizer(), False
    if vocab is None or vocab >= 256:
        return _Bytes(), True
    raise ValueError(
        f"the model reads {vocab} tokens and came without a tokenizer: let package.module:function return "
        "(model, tokenizer)"
    )


def read_text(
    tokenizer: Any, path: Path | None, *, windows: int, length: int, seed: int
) -> tuple[dict[str, list[dict[str, Tensor]]], str]:
    """Return windows of text per source, ``{source: [{"input_ids": int64 [4, length]}]}``, and where it came from.

    Raises:
        ValueError: the text is not UTF-8, or shorter than a window.
        FileNotFoundError: ``path`` is no file.
    """
    from modcut.organisms import text

    if path is None:
        sources = [text.english(400_000), text.python_source(400_000)]
    else:
        if not path.is_file():
            raise FileNotFoundError(f"data must be a text file, {path} is {'a folder' if path.is_dir() else 'missing'}")
        try:
            sources = [text.Source(path.name, str(path), path.read_text(encoding="utf-8-sig"))]
        except UnicodeDecodeError as error:
            raise ValueError(f"data must be text in UTF-8, {path} is not: {error.reason} at {error.start}") from error
    encode = tokenizer.encode
    generator = torch.Generator().manual_seed(seed)
    out: dict[str, list[dict[str, Tensor]]] = {}
    each = max(2, windows // len(sources))
    for source in sources:
        # Characters are drawn generously and cut after encoding: a token is rarely more than 8 characters.
        need = 8 * length
        rows: list[Tensor] = []
        if len(source.text) < need:
            raise ValueError(
                f"data must hold at least {need} characters for windows of {length} tokens, "
                f"{source.origin} has {len(source.text)}"
            )
        while len(rows) < each:
            start = int(torch.randint(len(source.text) - need + 1, (1,), generator=generator))
            ids = list(encode(source.text[start : start + need]))[:length]
            if len(ids) < length:
                raise ValueError(f"the tokenizer made {len(ids)} tokens of {need} characters, {length} are needed")
            rows.append(torch.tensor(ids))
        tokens = torch.stack(rows)
        out[source.name] = [{"input_ids": tokens[i : i + 4]} for i in range(0, len(tokens), 4)]
    return out, str(path) if path is not None else "; ".join(f"{s.name}: {s.origin}" for s in sources)


class Clock:
    """Wall time, CPU time and peak memory of each stage."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block and print its line."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        row = {
            "stage": name,
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
        self.rows.append(row)
        print(f"  {name:<14} {row['seconds']:7.1f} s   peak {row['peak_gib']:.2f} GiB", flush=True)


def _print(P: Any, tree: Any, cards: Any, significance: Any, clock: Clock, out: Path) -> None:
    print(f"\nleak {P.leak:.4f}, n-cut {P.ncut:.4f} (k = {P.k}; 0 = no edge crosses)")
    for s in significance.values():
        print(
            f"  {s.metric:<10} {s.value:.4g}; mean of {s.shuffles} random partitions of the same make-up "
            f"{s.null_mean:.4g} (sd {s.null_std:.2g}), difference {s.value - s.null_mean:+.2g}, p {s.p:.3g}"
        )
    print("exact cut tree over the modules (minimum cut between a module and its parent):")
    for i, (parent, weight) in enumerate(zip(tree.parent.tolist(), tree.weight.tolist(), strict=True)):
        print(f"  module {i}: " + ("root" if parent < 0 else f"parent {parent}, cut {weight:.4g}"))
    for card in cards:
        print(f"\n{card}")
    total = sum(row["seconds"] for row in clock.rows)
    print(f"\n{total:.0f} s in all, peak {clock.rows[-1]['peak_gib']:.2f} GiB; {out / 'report.html'} has the rest")


def _named(model: nn.Module) -> bool:
    """Whether the model takes ``input_ids=``, as those of transformers do."""
    import inspect

    return "input_ids" in inspect.signature(model.forward).parameters


def _vocab(model: nn.Module) -> int | None:
    found = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return max(found) if found else None


def _unlabelled(statistics: Any) -> Any:
    from dataclasses import replace

    return replace(statistics, slice=torch.zeros_like(statistics.slice), slice_names=("",))
