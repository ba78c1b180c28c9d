"""One self-contained HTML page from results: no network, no scripts, everything that came from data escaped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from modcut import __version__
from modcut._files import write_text
from modcut.provenance import stamp
from modcut.reporting import draw, results, svg, views

# A tree with more vertices than this is summed up in words: its drawing would be a hedge.
TREE_LIMIT = 64
_SHOWN_METRICS = (
    ("leak", "Leak"),
    ("ncut", "Normalised cut"),
    ("modularity", "Modularity Q"),
)
_METRIC_NOTE = (
    "Leak: the share of a unit's incoming edge strength that comes from other modules, mean over the units of a layer, "
    "then over layers. Normalised cut: the share of a module's edge strength that leaves it, summed over modules (0 to "
    "their number). Modularity Q: the share of edge strength inside modules minus what it would be by chance. Low leak "
    "and cut, high Q: separable; random partitions have as many units of every layer in each module; p: the share of "
    "partitions, this one included, that are at least as separable."
)
# Where a reader's question is "of which model?", by section.
SECTIONS = ("results", "modules", "tree", "cards", "trace", "effects", "comparison")


def report(
    path: str | os.PathLike[str],
    *,
    partition: Any = None,
    cards: Any = None,
    trace: Any = None,
    comparison: Any = None,
    effects: Any = None,
    table: Any = None,
    tree: Any = None,
    significance: Mapping[str, Any] | None = None,
    about: Mapping[str, str] | None = None,
    title: str = "modcut report",
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML file that shows the given results; what is not given is left out.

    The file needs no network, runs no script and follows the reader's light or dark style. Every text that comes from
    data, models or language models is escaped.

    Args:
        path: the file to write; folders are made, an existing file is replaced in one step.
        partition: a :class:`modcut.Partition`, or its saved view (:func:`modcut.reporting.partition_view`).
        cards: :class:`modcut.ModuleCards` or their ``to_dict()``.
        trace: the result of :func:`modcut.trace` (or its ``to_dict()``), or a list of them.
        comparison: the result of :func:`modcut.compare`, or its ``to_dict()``.
        effects: an effect table of :mod:`modcut.auditing`, or its ``to_dict()``.
        table: ``{"title", "columns", "rows", "note"}``, a sequence of dicts (one per row), or a list of such tables.
        tree: a :class:`modcut.CutTree` or its ``to_dict()``; drawn up to 64 vertices.
        significance: what :meth:`modcut.Partition.significance` returned (or its entries as dicts): the metrics of
            random partitions, written beside those of ``partition``. Without it the page says that none was measured.
        about: a sentence for the head of a section (one of :data:`SECTIONS`), such as which model it speaks about.
        title: of the page.
        meta: further entries for the record (command, data, ...). ``meta["summary"]``, a text or a list of
            sentences, is printed under the title.

    Returns:
        The path written.

    Raises:
        TypeError: a result is of another kind.
        ValueError: a malformed table; ``about`` names a section that does not exist.
    """
    page = render(
        partition=partition,
        cards=cards,
        trace=trace,
        comparison=comparison,
        effects=effects,
        table=table,
        tree=tree,
        significance=significance,
        about=about,
        title=title,
        meta=meta,
    )
    return write_text(path, page)


def render(
    *,
    partition: Any = None,
    cards: Any = None,
    trace: Any = None,
    comparison: Any = None,
    effects: Any = None,
    table: Any = None,
    tree: Any = None,
    significance: Mapping[str, Any] | None = None,
    about: Mapping[str, str] | None = None,
    title: str = "modcut report",
    meta: Mapping[str, Any] | None = None,
) -> str:
    """Return the page that :func:`report` writes."""
    about = dict(about or {})
    if unknown := [name for name in about if name not in SECTIONS]:
        raise ValueError(f"about must name sections among {', '.join(SECTIONS)}, got {unknown[0]!r}")
    view = views.read_partition(partition)
    beside = {name: views.plain_effect(s) for name, s in (significance or {}).items()}
    deck = views.plain(cards, "cards")
    forest = views.plain(tree, "tree")
    tables = views.read_tables(table)
    traces = trace if isinstance(trace, (list, tuple)) else [trace] if trace is not None else []
    sections = [_trace(views.plain(t, "trace") or {}, at, len(traces)) for at, t in enumerate(traces)]
    if (measured := views.plain(effects, "effects")) is not None:
        sections.append(results.section("effects", "Effects of ablation", measured))
    if (compared := views.plain(comparison, "comparison")) is not None:
        sections.append(results.section("comparison", "Comparison by module", compared))
    for s in sections:  # made by modcut.reporting.svg, which escapes every text
        s |= {key: Markup(s[key]) for key in ("svg", "steps_svg") if s.get(key)}
    meta = dict(meta or {})
    summary = meta.pop("summary", "")
    shown = [_card(c) for c in deck["cards"]] if deck else []
    not_covered = _not_covered(view, deck)
    context: dict[str, Any] = {
        "version": __version__,
        "title": title,
        "lead": [summary] if isinstance(summary, str) and summary else list(summary),
        "facts": _facts(view, deck, beside),
        "facts_note": " ".join(t for t in (about.get("modules", ""), _METRIC_NOTE) if t) if view else "",
        "about": about,
        "style": Markup(_environment().loader.get_source(_environment(), "style.css")[0]),  # type: ignore[union-attr]
        "partition": view,
        "tables": tables,
        "cards": shown,
        "cards_note": _cards_note(deck) if deck else "",
        "traces": sections,
        "not_covered": not_covered,
        **_pictures(view, shown, forest),
        "provenance": _provenance(meta, view, deck, forest),
    }
    context["sections"] = [
        (name, words)
        for name, words, there in (
            ("results", "Results", tables),
            ("modules", "Modules", context["graph_svg"]),
            ("tree", "Cut tree", context["tree_facts"]),
            ("cards", "Cards", shown),
            *((t["id"], t["nav"] if "nav" in t else t["title"], True) for t in sections),
            ("limits", "Not covered", not_covered),
            ("provenance", "Record", True),
        )
        if there
    ]
    # The palette reaches every module that a picture or a card is coloured by.
    drawn = [v for v in context.values() if isinstance(v, Markup)]
    drawn += [s[key] for s in sections for key in ("svg", "steps_svg") if s.get(key)]
    k = max([draw.coloured(*drawn), *(c["index"] + 1 for c in shown)])
    context |= {"light": Markup(draw.palette(k, dark=False)), "dark": Markup(draw.palette(k, dark=True))}
    return _environment().get_template("report.html.j2").render(context)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("modcut.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters.update(cell=cell, signed=signed, percent=percent, token=token)
    return environment


def _clean(value: Any) -> Any:
    """Control characters are not allowed in HTML; text from data may hold any."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return draw.clean(value)


def cell(value: Any) -> str:
    """Return a value as a table shows it: three or four significant digits, words for truth and absence."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "n/a" if math.isnan(value) else "∞" if value > 0 else "−∞"
        if value == 0:
            return "0"
        if abs(value) < 1e-3 or abs(value) >= 1e6:
            return f"{value:.2e}"
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(v) for v in value)
    return str(value)


def signed(value: Any) -> str:
    """Return a change with its sign."""
    return f"+{cell(value)}" if isinstance(value, (int, float)) and value > 0 else cell(value)


def percent(value: Any) -> str:
    """Return a share in percent."""
    return "n/a" if value is None else f"{100 * float(value):.1f} %"


def token(value: Any) -> str:
    """Return text with its line breaks and other unprintable characters visible."""
    return "".join(
        c if c.isprintable() else {"\n": "⏎", "\t": "⇥"}.get(c, c.encode("unicode_escape").decode()) for c in str(value)
    )


def _facts(
    view: Mapping[str, Any] | None, deck: Mapping[str, Any] | None, beside: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """Name, value and control of the figures under the title."""
    facts = []
    if view:
        facts += [("Modules", cell(view["k"]), ""), ("Units", cell(view["n"]), "")]
        for name, words in _SHOWN_METRICS:
            if view.get(name) is None:
                continue
            s, control = beside.get(name), "no control measured"
            if s is not None:
                spread = f"{cell(float(s['null_mean']))} ± {float(s['null_std']):.1g}"
                control = f"{s['shuffles']} random partitions: {spread}; p {float(s['p']):.2g}"
            facts.append((words, cell(float(view[name])), control))
    if deck:
        meta = deck.get("meta", {})
        if meta.get("held_out") is not None:
            facts.append(("Held-out samples", cell(meta["held_out"]), ""))
    return facts


def _pictures(
    view: Mapping[str, Any] | None, shown: Sequence[Mapping[str, Any]], forest: Mapping[str, Any] | None
) -> dict[str, Any]:
    out: dict[str, Any] = dict.fromkeys(("graph_svg", "occupancy_svg", "scores_svg", "tree_svg"), "")
    out |= {"tree_facts": [], "tree_caption": "", "interface_table": None}
    titles = {c["index"]: c["title"] for c in shown if c.get("title")}
    if view:
        names = [titles.get(i) or f"Module {i}" for i in range(view["k"])]
        if "strength" in view:
            out["graph_svg"] = Markup(svg.module_graph(view["sizes"], view["strength"], names=names))
            out["interface_table"] = _interfaces(view["strength"])
        if view.get("families"):
            rows = [f for f in view["families"] if sum(f["counts"])]
            out["occupancy_svg"] = Markup(svg.occupancy([f["family"] for f in rows], [f["counts"] for f in rows]))
    rows = [
        {"label": f"Module {c['index']}", "module": c["index"], **c["scores"]["detection"]}
        for c in shown
        if c.get("scores", {}).get("detection")
    ]
    if rows:
        out["scores_svg"] = Markup(svg.dots(rows, title="How well the evidence finds the module on held-out data"))
        out["scores_caption"] = (
            f"Detection on held-out data (AUROC, n = {rows[0]['n']:,} positions in {rows[0]['windows']} samples): "
            "from the evidence alone, find the positions where the module's share of use is in the highest tenth. "
            "Filled dots: the module, with the 95 % interval over samples. Rings: random modules of the same make-up "
            "with evidence of their own. Ticks: this module with the evidence of another one. Dashed: chance."
        )
    if forest:
        n = int(forest["n"])
        finite = [w for w in forest["weight"] if w is not None and math.isfinite(w)]
        exact, stats = forest.get("exact"), forest.get("stats") or {}
        facts: list[tuple[str, Any]] = [("vertices", f"{n:,}")]
        if finite:
            facts.append(("minimum cuts", f"{cell(float(min(finite)))} to {cell(float(max(finite)))}"))
        if exact is not None:
            facts.append(("exact", cell(exact)))
        if stats.get("trivial_fraction") is not None:
            # Where all are of this kind the tree is a star: it says how strong each vertex is, nothing about groups.
            facts.append(("cuts that part a single vertex from all others", percent(stats["trivial_fraction"])))
        if stats.get("flows") is not None:
            facts.append(("flows run", f"{stats['flows']:,} for {max(n - 1, 0):,} edges"))
        out["tree_facts"] = facts
        if 0 < n <= TREE_LIMIT:
            named = [names[i] for i in range(n)] if view and n == view["k"] else None
            out["tree_svg"] = Markup(svg.cut_tree(forest["parent"], forest["weight"], names=named))
            out["tree_caption"] = "Cut tree of the modules." if named else f"Cut tree of {n} vertices."
    return out


def _interfaces(strength: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    k = len(strength)
    total = sum(map(sum, strength)) or 1.0
    rows: list[dict[str, Any]] = [
        {
            "from module": j,
            "to module": i,
            "strength": float(strength[i][j]),
            "share of all weights": f"{100 * strength[i][j] / total:.2f} %",
        }
        for i in range(k)
        for j in range(k)
        if i != j and strength[i][j] > 0
    ]
    rows.sort(key=lambda r: -r["strength"])
    read = views.read_table(rows) if rows else None
    return None if read is None else {**read, "title": "Strength of the weights from module to module"}


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card with what the template needs beside it; cards of other origins may lack any part."""
    evidence = dict(card.get("evidence") or {})
    use = evidence.get("use") or {}
    slices = [{"slice": "all data", **use}, *use.get("slices", [])] if use.get("share") is not None else []
    rows = []
    for s in slices:
        known = [c for c in s.get("controls") or [] if c is not None]
        told = f"{percent(min(known))} to {percent(max(known))}" if known else "n/a"
        rows.append({"slice": s["slice"], "share": s["share"], "controls": told})
    return {
        "title": "",
        "error": None,
        "confidence": None,
        "scores": {},
        "interfaces": [],
        **card,
        "evidence": evidence,
        "use_rows": rows,
        "sliced": bool(use.get("slices")),
    }


def _cards_note(deck: Mapping[str, Any]) -> str:
    meta = deck.get("meta", {})
    client, failed = meta.get("client"), sum(c.get("error") is not None for c in deck["cards"])
    if client:
        words = f"Texts by {client} from the evidence shown; a language model can be wrong where the evidence is thin."
    else:
        words = (
            "Texts are written by rule from the evidence alone; no language model read them, nothing is interpreted."
        )
    if failed:
        words += f" {failed} of {len(deck['cards'])} calls failed: those cards keep the evidence-only text."
    if meta.get("held_out") is not None:
        chosen = meta.get("n", 0) - meta["held_out"]
        words += (
            f" Evidence was chosen on {chosen} samples; effects and scores were measured on {meta['held_out']} others."
        )
    if meta.get("control"):
        words += f" Control: {meta['control']}."
    return words


def _trace(t: Mapping[str, Any], at: int, total: int) -> dict[str, Any]:
    title = "Trace of one decision" if total == 1 else f"Trace {at + 1} of {total}"
    return results.trace_section("trace" if total == 1 else f"trace-{at + 1}", title, t)


def _not_covered(view: Mapping[str, Any] | None, deck: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    entries = [
        *((view or {}).get("not_covered") or []),
        *((deck or {}).get("meta", {}).get("not_covered") or []),
    ]
    return list(dict.fromkeys((str(a), str(b)) for a, b in entries))


def _provenance(meta: Mapping[str, Any], *parts: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    merged: dict[str, Any] = {}
    for part in parts:
        for key in ("meta", "record", "stamp"):
            inner = (part or {}).get(key)
            if isinstance(inner, Mapping):
                merged |= {k: v for k, v in inner.items() if k != "not_covered"}
    page = {f"page {k}" if k in merged else k: v for k, v in stamp().items() if v != merged.get(k)}
    entries = results.record_entries({**merged, **meta, **page})
    return [(k, json.dumps(v) if isinstance(v, (dict, list)) else v) for k, v in entries]
