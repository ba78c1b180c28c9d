"""``modcut describe``: cards of every module from as much text as wanted, stopped and gone on with at any time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modcut import __version__, provenance
from modcut._files import write_json
from modcut.loading import Loaded
from modcut.pipeline import AS_BYTES, Clock, _named, _reader, _unlabelled, _vocab

ClientName = Literal["none", "local", "openai"]
Measure = Literal["use", "activity"]
# Samples that the modules are found on: what `modcut cut` takes, from the beginning of the same text.
_FINDING = 24
_BATCH = 4


def describe_model(
    loaded: Loaded,
    *,
    out: Path = Path("modcut-describe/cards.json"),
    partition: Path | None = None,
    k: int = 8,
    data: Sequence[Path] = (),
    tokens: int = 20_000,
    length: int = 128,
    edge: str = "contribution",
    client: ClientName = "none",
    model: str | None = None,
    base_url: str | None = None,
    judge: str = "lexical",
    prompts: Path | None = None,
    controls: int = 5,
    ablation_controls: int = 2,
    measure: Measure = "use",
    windows: int = 256,
    samples: int = 32,
    shuffles: int = 20,
    threads: int | None = None,
    seed: int = 0,
    resume: bool = False,
) -> dict[str, Any]:
    """Describe the modules of a model and write ``out`` (cards) with ``partition.safetensors`` and ``map.json`` beside.

    What is done is kept in ``<out>.work`` as it comes: the partition, the evidence, every reply of a language model.
    With ``resume`` a stopped run goes on from there; a run with other settings is refused in a sentence.

    Args:
        loaded: what :func:`modcut.loading.load_model` returned.
        out: the cards to write.
        partition: ``partition.safetensors``, or the folder of ``modcut cut`` that holds it. Default: found here.
        k: number of modules, where they are found here.
        data: text files, each a slice of its own. Default: English prose, documentation and Python source.
        tokens: tokens to read over all slices, in samples of ``length`` that do not overlap.
        length: tokens per sample.
        edge: ``contribution``, ``abs`` or ``square``: the strength of an edge in metrics and interfaces.
        client: who writes the texts: nobody (evidence only), a local model, or a server that speaks OpenAI's protocol.
        model: name of the server's model, or folder or GGUF file of the local one (default: the carried SmolLM2).
        base_url: of the server; the key is read from the environment and written nowhere.
        judge: who predicts from the texts: ``lexical``, ``none``, or ``client``.
        prompts: folder of prompts that replace the package's.
        controls: random modules per module.
        ablation_controls: how many of them are ablated too.
        measure: ``use`` (|activation x gradient|: a forward and a backward pass) or ``activity`` (forward only).
        windows: samples kept per half of the text for scores and readers; the whole text goes into the evidence.
        samples: of these, run again for ablations and signals: (1 + ``ablation_controls``) * k times.
        shuffles: random partitions that the partition's figures are compared with.
        threads: of torch, where given.
        seed: of samples, clustering, controls.
        resume: go on with what ``<out>.work`` holds.

    Returns:
        ``{"cards": dict, "map": dict, "stages": list}``.

    Raises:
        ValueError: an argument out of range, too little text, or a work folder of another run.
        FileNotFoundError: a file does not exist.
        MissingDependencyError: the client needs an optional package.
    """
    import modcut
    from modcut.graph.edges import with_edge
    from modcut.graph.statistics import collect
    from modcut.reporting import partition_view

    if tokens < 4 * length:
        raise ValueError(f"tokens must be at least 4 samples of {length}, got {tokens}")
    if length < 2:
        raise ValueError(f"length must be at least 2, got {length}")
    if controls < 1:
        raise ValueError(f"controls must be at least 1 (no effect is given without one), got {controls}")
    if edge not in ("contribution", "abs", "square"):
        raise ValueError(f"edge must be 'contribution', 'abs' or 'square', got {edge!r}")
    if judge not in ("lexical", "none", "client"):
        raise ValueError(f"judge must be 'lexical', 'none' or 'client', got {judge!r}")
    if judge == "client" and client == "none":
        raise ValueError("judge 'client' needs a client: pass --client local or openai")
    if measure not in ("use", "activity"):
        raise ValueError(f"measure must be 'use' or 'activity', got {measure!r}")
    if not 0 < ablation_controls <= controls:
        raise ValueError(f"ablation_controls must be 1 to the {controls} controls, got {ablation_controls}")
    if min(windows, samples) < 2:
        raise ValueError(f"windows and samples must be at least 2, got {windows} and {samples}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if out.is_dir():
        raise ValueError(f"out must be a file such as {out / 'cards.json'}, {out} is a folder")
    longest = getattr(getattr(loaded.model, "config", None), "max_position_embeddings", None)
    if isinstance(longest, int) and length > longest:
        raise ValueError(f"length must be at most the model's {longest} positions, got {length}")
    file = _partition_file(partition)
    tokenizer, as_bytes = _reader(loaded.tokenizer, _vocab(loaded.model))
    slices, origin = stream(tokenizer, data, tokens=tokens, length=length)
    digest = provenance.digest(loaded.model)
    settings = {
        "model": digest, "text": _hash(slices), "k": k, "edge": edge, "controls": controls, "shuffles": shuffles,
        "ablation_controls": ablation_controls, "measure": measure, "windows": windows, "samples": samples,
        "seed": seed, "partition": hashlib.sha256(file.read_bytes()).hexdigest() if file else None,
        "modcut": __version__,
    }  # fmt: skip
    work = claim(out.with_name(out.name + ".work"), settings, resume)
    writer = _client(client, model, base_url, work)
    named = _named(loaded.model)
    batches: Any = slices if named else {s: [b["input_ids"] for b in part] for s, part in slices.items()}
    read = sum(b["input_ids"].numel() for part in slices.values() for b in part)
    if as_bytes:
        origin += AS_BYTES
        print(AS_BYTES[2:])
    print(f"text: {origin}; {read:,} tokens in samples of {length}")
    clock, progress = Clock(), sys.stderr.isatty()
    first = {s: part[: max(1, _FINDING // (len(slices) * _BATCH))] for s, part in batches.items()}
    example = next(iter(slices.values()))[0]["input_ids"][:1]
    with clock("graph"):
        graph = modcut.weight_graph(
            loaded.model, {"input_ids": example} if named else example, include_inputs=False, include_outputs=False
        )
    with clock("statistics"):
        statistics = collect(graph, loaded.model, first, progress=progress)
    graph = with_edge(graph, edge, statistics)
    kept = file or (work / "partition.safetensors")
    with clock("partition"):
        if kept.is_file():
            P = modcut.Partition.load(kept, graph)
        else:
            P = modcut.find_modules(graph, k, method="functional", seed=seed, statistics=_unlabelled(statistics))
            P.save(kept)
        P.save(out.parent / "partition.safetensors")
    del statistics
    with clock("map"):
        page = {
            **partition_view(P),
            "significance": {n: asdict(s) for n, s in P.significance(shuffles=shuffles, seed=seed).items()},
            "tree": modcut.quotient_tree(P.graph, P.labels).to_dict(),
        }
        write_json(out.parent / "map.json", page)
    with clock("cards"):
        cards = modcut.describe(
            loaded.model,
            P,
            batches,
            writer,
            tokenizer=tokenizer,
            seed=seed,
            max_batches=None,
            controls=controls,
            judge=writer if judge == "client" else judge,
            prompts=prompts,
            resume=work / "replies.jsonl",
            progress=progress,
            evidence=work / "evidence",
            ablation_controls=ablation_controls,
            measure=measure,
            windows=windows,
            samples=samples,
        )
    cards.meta |= {"text": origin, "tokens": read, "length": length, "stages": clock.rows}
    facts = {"model": loaded.facts.get("name", loaded.facts.get("class")), **loaded.facts}
    cards.meta |= {key: facts[key] for key in ("model", "source", "format") if key in facts}
    cards.save(out)
    total = sum(row["seconds"] for row in clock.rows)
    failed = len(cards.failed)
    print(
        f"{len(cards)} cards in {out} ({read:,} tokens, {total:.0f} s, peak {clock.rows[-1]['peak_gib']:.2f} GiB)"
        + (f"; {failed} calls failed: their cards say so, --resume asks again" if failed else "")
    )
    return {"cards": cards.to_dict(), "map": page, "stages": clock.rows}


def stream(
    tokenizer: Any, paths: Sequence[Path], *, tokens: int, length: int
) -> tuple[dict[str, list[dict[str, Tensor]]], str]:
    """Return samples that do not overlap, ``{slice: [{"input_ids": int64 [4, length]}]}``, and where they came from.

    Raises:
        ValueError: a file is not UTF-8, or the texts are shorter than ``tokens``.
        FileNotFoundError: a path is no file.
    """
    from modcut.organisms import text

    sources: list[text.Source] = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"data must be a text file, {path} is {'a folder' if path.is_dir() else 'missing'}")
        try:
            sources.append(text.Source(path.name, str(path), path.read_text(encoding="utf-8-sig")))
        except UnicodeDecodeError as error:
            raise ValueError(f"data must be text in UTF-8, {path} is not: {error.reason} at {error.start}") from error
    if len({s.name for s in sources}) < len(sources):
        raise ValueError(f"data must be files of different names, got {', '.join(str(p) for p in paths)}")
    if not paths:
        each = 8 * tokens
        english = text.english(each)
        sources = [english, text.python_source(each)]
        if "pydoc" not in english.origin:
            manual = text.Source("Documentation", "Python's language reference (pydoc_data.topics)", text.manual(each))
            sources.insert(1, manual)
    rows: dict[str, list[Tensor]] = {s.name: [] for s in sources}
    want = -(-tokens // length)
    for at, source in enumerate(sources):
        # What a short text lacks, the texts after it make up for.
        share = -(-(want - sum(map(len, rows.values()))) // (len(sources) - at))
        rows[source.name] = _samples(tokenizer, source.text, share, length)
    found = sum(map(len, rows.values()))
    if found < want:
        raise ValueError(
            f"tokens must be at most what the texts hold: {tokens:,} asked for, {found * length:,} found in "
            f"{', '.join(s.origin for s in sources)}"
        )
    out = {
        name: [{"input_ids": torch.stack(part[i : i + _BATCH])} for i in range(0, len(part), _BATCH)]
        for name, part in rows.items()
        if part
    }
    return out, "; ".join(f"{s.name}: {s.origin}" for s in sources)


def _samples(tokenizer: Any, text: str, count: int, length: int) -> list[Tensor]:
    """The first ``count`` runs of ``length`` tokens; encoded piece by piece: tokenizers slow down on long texts."""
    ids: list[int] = []
    piece = 40_000
    for start in range(0, len(text), piece):
        if len(ids) >= count * length:
            break
        ids += list(tokenizer.encode(text[start : start + piece]))
    return [torch.tensor(ids[i * length : (i + 1) * length]) for i in range(min(count, len(ids) // length))]


def claim(work: Path, settings: Mapping[str, Any], resume: bool) -> Path:
    """Return the work folder, emptied without ``resume``, after checking that it is ours and of this run."""
    mark = work / "run.json"
    if work.exists() and not mark.is_file():
        raise ValueError(f"{work} exists and is no work folder of modcut describe; move it away or pass another --out")
    if mark.is_file() and resume:
        theirs = json.loads(mark.read_text(encoding="utf-8"))
        changed = sorted(key for key in settings if theirs.get(key) != settings[key])
        if changed:
            raise ValueError(f"{work} holds a run with other {', '.join(changed)}; leave out --resume to start anew")
    elif work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(mark, dict(settings))
    return work


def _partition_file(path: Path | None) -> Path | None:
    if path is None:
        return None
    file = path / "partition.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"partition must be a file of modcut, or a folder that holds one; {file} is missing")
    return file


def _hash(slices: Mapping[str, Sequence[Mapping[str, Tensor]]]) -> str:
    total = hashlib.sha256()
    for name, part in slices.items():
        total.update(name.encode())
        for b in part:
            total.update(b["input_ids"].numpy().tobytes())
    return total.hexdigest()


def _client(name: ClientName, model: str | None, base_url: str | None, work: Path) -> Any:
    from modcut.reading import clients

    if name == "none":
        if model or base_url:
            raise ValueError("--model and --base-url need --client openai or local")
        return None
    if name == "local":
        if base_url:
            raise ValueError("--base-url needs --client openai")
        return clients.LocalClient(model)
    if name != "openai":
        raise ValueError(f"client must be 'none', 'local' or 'openai', got {name!r}")
    if not model:
        raise ValueError("--client openai needs --model, the name of the server's model")
    return clients.OpenAIClient(model, base_url, cache=os.fspath(work / "calls.jsonl"))


__all__ = ["claim", "describe_model", "stream"]
