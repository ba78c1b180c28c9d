"""Results read back from files, and written as JSON or Markdown: what a page is made of, without the page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from modcut import __version__
from modcut.provenance import stamp
from modcut.reporting import deck as _deck
from modcut.reporting import views
from modcut.reporting.cells import cell
from modcut.reporting.draw import clean

Format = Literal["html", "json", "md"]
FORMATS: tuple[Format, ...] = ("html", "json", "md")
_SUFFIX: dict[str, Format] = {".html": "html", ".htm": "html", ".json": "json", ".md": "md", ".markdown": "md"}
_BUNDLE = "modcut report"
_PARTS = ("partition", "cards", "trace", "comparison", "effects", "table", "tree", "significance", "about", "meta")


def format_of(path: str | os.PathLike[str], wanted: str | None) -> Format:
    """Return the format of a report: what is asked for, else by the file's suffix.

    Raises:
        ValueError: neither says one of ``html``, ``json``, ``md``.
    """
    if wanted is not None:
        if wanted not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {wanted!r}")
        return wanted
    suffix = Path(path).suffix.lower() or ".html"
    if suffix not in _SUFFIX:
        raise ValueError(f"path must end in .html, .json or .md, or format be given, got {os.fspath(path)!r}")
    return _SUFFIX[suffix]


def bundle(parts: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Return all given results as plain values: what ``modcut report FILE.json`` reads back."""
    out: dict[str, Any] = {"format": _BUNDLE, "version": 1, "title": title, "stamp": stamp()}
    for name in _PARTS:
        value = parts.get(name)
        if value is None:
            continue
        if name == "partition":
            out[name] = views.read_partition(value)
        elif name == "significance":
            out[name] = {key: views.plain_effect(s) for key, s in value.items()}
        elif name == "trace":
            many = value if isinstance(value, (list, tuple)) else [value]
            out[name] = [views.plain(t, name) for t in many]
        elif name == "table":
            out[name] = views.read_tables(value)
        elif name in ("about", "meta"):
            out[name] = dict(value)
        else:
            out[name] = views.plain(value, name)
    return out


def read_parts(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the arguments of :func:`modcut.report` from saved files, each recognised by what it holds.

    Raises:
        ValueError: a file is not one of modcut's, or two hold the same kind.
        FileNotFoundError: a path does not exist.
    """
    parts: dict[str, Any] = {}
    for path in paths:
        for name, value in _read(path).items():
            if name == "trace" and name in parts:
                parts[name] += value
            elif name in parts and name not in ("title", "meta"):
                raise ValueError(f"{path} holds a second {name}; a report shows one")
            else:
                parts[name] = value
    return parts


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return _read_tensors(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(value, Mapping):
        kind = value.get("format") if isinstance(value.get("format"), str) else value.get("kind")
        if kind == _BUNDLE:
            return {k: v for k, v in value.items() if k in (*_PARTS, "title")}
        if kind == "modcut cards":
            return {"cards": dict(value)}
        if value.get("kind") == "partition_view":
            split = {k: value[k] for k in ("significance", "tree") if value.get(k)}
            return {"partition": {k: v for k, v in value.items() if k not in split}, **split}
        names = {"trace": "trace", "passage": "trace", "effect_table": "effects", "comparison": "comparison"}
        name = (names | {"CutTree": "tree"}).get(str(value.get("kind")))
        if name is not None:
            return {name: [dict(value)] if name == "trace" else dict(value)}
        if isinstance(value.get("columns"), list) and isinstance(value.get("rows"), list):
            return {"table": [dict(value)]}
    got = value.get("kind", value.get("format")) if isinstance(value, Mapping) else None
    raise ValueError(
        f"{path} must be saved cards, a trace, effects, a comparison, a partition, a cut tree, a report as JSON, or "
        f"the results.json of `modcut demo` or `modcut cut`, got kind {got!r}"
    )


def _read_tensors(path: Path) -> dict[str, Any]:
    from modcut.partition import Partition
    from modcut.tree import CutTree

    try:
        return {"partition": Partition.load(path)}
    except ValueError:
        try:
            return {"tree": CutTree.load(path)}
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} must be a partition or a cut tree of modcut: {error}") from error


# -- Markdown ----------------------------------------------------------------------------------------------------------


def words(text: Any) -> str:
    """Return text that stands for itself in Markdown and in the HTML that is made of it; one line."""
    flat = " ".join(clean(str(text)).split())
    for a, b in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        flat = flat.replace(a, b)
    return "".join(f"\\{c}" if c in "\\`*_[]()#|!~$" else c for c in flat)


def markdown(parts: Mapping[str, Any], title: str) -> str:
    """Return the results as Markdown: cards, scores beside controls, tables and the record."""
    told = bundle(parts, title)
    lines = [f"# {words(title)}", ""]
    summary = (told.get("meta") or {}).get("summary", "")
    for line in [summary] if isinstance(summary, str) and summary else list(summary):
        lines += [words(line), ""]
    view = told.get("partition")
    if view:
        lines += ["## Modules", ""]
        beside = told.get("significance") or {}
        rows = []
        for name in ("leak", "ncut", "modularity"):
            if view.get(name) is None:
                continue
            s = beside.get(name)
            control = f"{cell(s['null_mean'])} ± {cell(s['null_std'])} ({s['shuffles']})" if s else "not measured"
            rows.append([name, cell(view[name]), control])
        lines += _grid(["figure", "value", "random partitions"], rows)
        lines += _grid(["module", "units"], [[i, cell(n)] for i, n in enumerate(view.get("sizes") or [])])
    for t in told.get("table") or []:
        lines += [
            f"## {words(t['title'] or 'Results')}",
            "",
            *_table(t),
        ]
        lines += [words(t["note"]), ""] if t.get("note") else []
    cards = _deck.cards_of(told.get("cards"))
    for c in cards:
        lines += [f"## Module {c['index']}" + (f": {words(c['title'])}" if c["title"] else ""), ""]
        lines += [f"Origin: {words(c['origin'])}", ""]
        lines += [x for line in c["lines"] for x in (words(line), "")]
        lines += [f"No model text: {words(c['error'])}", ""] if c["error"] else []
        lines += _scores(c["score_rows"])
        lines += [x for h in c["heats"][:3] for x in (f"> {_quote(h)}", "")]
    links = _deck.interfaces_of(told.get("cards"))
    if links:
        lines += ["## Interfaces", ""]
        for f in links:
            name = f"module {f['reader']} reads from module {f['source']}"
            lines += [f"- **{name}**{': ' + words(f['title']) if f['title'] else ''}. {words(' '.join(f['texts']))}"]
        lines += [""]
    for name in ("trace", "effects", "comparison"):
        value = told.get(name)
        for one in value if isinstance(value, list) else [value] if value else []:
            from modcut.reporting import results

            made = (
                results.trace_section(name, "Trace of one decision", one)
                if name == "trace"
                else results.section(name, name.capitalize(), one)
            )
            lines += [f"## {words(made['title'])}", ""]
            for t in made["tables"]:
                lines += [
                    f"### {words(t['title'])}",
                    "",
                    *_table(t),
                ]
    record = {**((told.get("cards") or {}).get("meta") or {}), **(told.get("meta") or {}), "modcut": __version__}
    plain = [[k, cell(v)] for k, v in record.items() if isinstance(v, (str, int, float)) and k != "summary"]
    return "\n".join([*lines, "## Record", "", *_grid(["entry", "value"], plain)]).rstrip() + "\n"


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    table = [
        [
            r["name"],
            cell(r["value"]),
            f"{cell(r['low'])} to {cell(r['high'])}" if r["low"] is not None else "n/a",
            "; ".join(f"{c['name']} {cell(c['mean'])}" for c in r["controls"]) or "none measured",
            cell(r["p"]),
            cell(r["n"]),
        ]
        for r in rows
    ]
    return _grid(["score", "value", "95 % interval", "controls (mean)", "p", "n"], table)


def _quote(h: Mapping[str, Any]) -> str:
    shown = enumerate(t for t, _, _ in h["tokens"])
    # Spaces at the ends of a token belong to the text, and ** does not hold them.
    return "".join(
        f"{t[: len(t) - len(t.lstrip())]}**{words(t)}**" if at == h["at"] and t.strip() else _inner(t)
        for at, t in shown
    )


def _inner(text: str) -> str:
    return "".join(" " if c == " " else words(c) for c in text)


def _table(t: Mapping[str, Any]) -> list[str]:
    return _grid(t["columns"], [[cell(c) for c in row] for row in t["rows"]])


def _grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["| " + " | ".join(words(h) for h in head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(words(c) for c in row) + " |" for row in rows), ""]
