"""One self-contained HTML page from results: nothing loads, one script of its own, everything from data escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from modcut import __version__
from modcut._files import write_json, write_text
from modcut.reporting import deck as _deck
from modcut.reporting import draw, explorer, record, results, saved, svg, views
from modcut.reporting.cells import cell, percent, signed, spread
from modcut.reporting.heat import visible as token

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
    format: Literal["html", "json", "md"] | None = None,
) -> Path:
    """Write one file that shows the given results, as HTML, JSON or Markdown; what is not given is left out.

    The HTML file needs no network and follows the reader's light or dark style. Its content security policy lets
    nothing load and nothing run but the page's own script and style, by their hashes; without the script the page
    still shows everything but the zoomable map. Every text that comes from data, models or language models is escaped.

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
        format: ``html``, ``json`` (everything given, to be read again by ``modcut report``) or ``md``; by the suffix
            of ``path`` where it is not given.

    Returns:
        The path written.

    Raises:
        TypeError: a result is of another kind.
        ValueError: no known format; a malformed table; ``about`` names a section that does not exist.
    """
    parts = {
        "partition": partition,
        "cards": cards,
        "trace": trace,
        "comparison": comparison,
        "effects": effects,
        "table": table,
        "tree": tree,
        "significance": significance,
        "about": about,
        "meta": meta,
    }
    kind = saved.format_of(path, format)
    if kind == "json":
        return write_json(path, saved.bundle(parts, title))
    if kind == "md":
        return write_text(path, saved.markdown(parts, title))
    return write_text(path, render(**parts, title=title))


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
    cards = _deck.cards_of(deck)
    interfaces = _deck.interfaces_of(deck)
    if view is None and deck:
        view = views.from_cards(cards, deck)
    own = partition is not None
    not_covered = record.not_covered(view, deck)
    pictures = _pictures(view, cards, forest)
    context: dict[str, Any] = {
        "version": __version__,
        "title": title,
        "lead": [summary] if isinstance(summary, str) and summary else list(summary),
        "facts": _facts(view, deck, beside),
        "facts_note": about.get("modules", "") if own else "",
        "about": about,
        "partition": view,
        "tables": tables,
        "cards": cards,
        "cards_note": record.cards_note(deck) if deck else "",
        "interfaces": interfaces,
        "traces": sections,
        "not_covered": not_covered,
        "metric_note": _METRIC_NOTE if view and view.get("leak") is not None else "",
        **pictures,
        "method": record.method(deck, cards, interfaces),
        "provenance": record.provenance(meta, view if own else None, deck, forest),
    }
    shown = _explorer(view, cards, deck)
    context["map_note"] = shown["note"] if shown else ""
    context["grouped"] = shown is not None and any(n["children"] for n in shown["nodes"])
    context["map"] = shown
    context["sections"] = [
        (name, words)
        for name, words, there in (
            ("results", "Results", tables),
            ("modules", "Modules", context["graph_svg"]),
            ("cards", "Cards", cards),
            ("interfaces", "Interfaces", interfaces),
            ("tree", "Cut tree", context["tree_facts"]),
            *((t["id"], t["nav"] if "nav" in t else t["title"], True) for t in sections),
            ("limits", "Not covered", not_covered),
        )
        if there
    ]
    # The palette reaches every module that a picture or a card is coloured by.
    drawn = [v for v in context.values() if isinstance(v, Markup)]
    drawn += [c["svg"] for c in context["score_charts"]]
    drawn += [s[key] for s in sections for key in ("svg", "steps_svg") if s.get(key)]
    k = max([draw.coloured(*drawn), *(c["index"] + 1 for c in cards), view["k"] if view else 0])
    context["data"] = Markup(_data(shown, cards, interfaces))
    context["style"], context["script"] = Markup(_style(k)), Markup(_source("report.js"))
    context["policy"] = _policy(context["style"], context["script"])
    return _environment().get_template("report.html.j2").render(context)


def _source(name: str) -> str:
    text: str = _environment().loader.get_source(_environment(), name)[0]  # type: ignore[union-attr]
    return text


def _style(k: int) -> str:
    """The page's style: colours of ``k`` modules, light and dark, and a class per module that sets its tone."""
    tones = "\n".join(f".m{i} {{ --tone: var(--module-{i}); }}" for i in range(k))
    light, dark = draw.palette(k, dark=False), draw.palette(k, dark=True)
    return (
        f"\n:root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media print {{ :root {{ {light} }} }}\n{tones}\n{_source('style.css')}"
    )


def _policy(style: str, script: str) -> str:
    """The page's content security policy: nothing loads, and only these two texts take effect."""

    def of(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {of(script)}; style-src {of(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _data(
    shown: Mapping[str, Any] | None, cards: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]
) -> str:
    """What the script reads, as JSON that no text in it can leave: no ``<``, ``>`` or ``&`` is left in it."""
    told = {
        "map": None if shown is None else {key: shown[key] for key in ("nodes", "strength", "width", "height")},
        "modules": {c["index"]: {"lines": c["lines"][:4], "scores": _briefly(c["score_rows"])} for c in cards},
        "interfaces": {f"{f['reader']}-{f['source']}": f["texts"][0][:400] for f in links if f["texts"]},
        "examples": {c["index"]: c["more"] for c in cards if c["more"]},
    }
    text = json.dumps(_plain(told), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", text)


def _plain(value: Any) -> Any:
    """Clean every text of the data, as jinja2 does for the page's own."""
    if isinstance(value, str):
        return draw.clean(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _briefly(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Name, value and controls of every score, as words."""
    out = []
    for r in rows:
        if r["value"] is None:
            continue
        spread = f" [{cell(r['low'])}, {cell(r['high'])}]" if r["low"] is not None else ""
        beside = ", ".join(f"{c['name']} {cell(c['mean'])}" for c in r["controls"])
        out.append([r["name"], f"{cell(r['value'])}{spread}", beside])
    return out


def _explorer(
    view: Mapping[str, Any] | None, cards: Sequence[Mapping[str, Any]], deck: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    if not view or "strength" not in view or not view["k"]:
        return None
    titles = {c["index"]: str(c["title"] or "") for c in cards}
    groups = [g for g in (deck or {}).get("groups") or [] if isinstance(g, Mapping)]
    return explorer.build(view["sizes"], view["strength"], [titles.get(i, "") for i in range(view["k"])], groups)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("modcut.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters.update(cell=cell, signed=signed, percent=percent, token=token, spread=spread)
    return environment


def _clean(value: Any) -> Any:
    """Control characters are not allowed in HTML; text from data may hold any."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return draw.clean(value)


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
    out: dict[str, Any] = dict.fromkeys(("graph_svg", "occupancy_svg", "tree_svg"), "")
    out |= {"tree_facts": [], "tree_caption": "", "interface_table": None, "score_charts": _charts(shown)}
    titles = {c["index"]: c["title"] for c in shown if c.get("title")}
    if view:
        names = [titles.get(i) or f"Module {i}" for i in range(view["k"])]
        if "strength" in view:
            out["graph_svg"] = Markup(svg.module_graph(view["sizes"], view["strength"], names=names))
            out["interface_table"] = _interfaces(view["strength"])
        if view.get("families"):
            rows = [f for f in view["families"] if sum(f["counts"])]
            out["occupancy_svg"] = Markup(svg.occupancy([f["family"] for f in rows], [f["counts"] for f in rows]))
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


def _charts(cards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One chart per score: every module's value and interval, beside its controls."""
    out = []
    for name in _deck.score_names(cards):
        rows = _deck.chart_rows(cards, name)
        known = next(r for r in rows if r.get("value") is not None)
        chance = float(known.get("chance", 0.5 if name == "detection" else 0.0))
        low, high = _deck.span(rows, chance)
        words, many = name.replace("_", " "), known.get("n")
        caption = f"{words.capitalize()} on held-out data"
        if known.get("measure"):
            caption += f" ({known['measure']}{f'; n = {many:,}' if isinstance(many, int) else ''})"
        caption += (
            ". Filled dots: the module, with its 95 % interval. Rings: random modules of the same make-up with "
            "evidence of their own. Ticks: this module with the evidence of another one. Dashed: chance."
        )
        title = f"{words.capitalize()}: every module beside its controls"
        drawn = svg.dots(rows, title=title, low=low, high=high, chance=chance)
        out.append({"name": words, "svg": Markup(drawn), "caption": caption})
    return out


def _trace(t: Mapping[str, Any], at: int, total: int) -> dict[str, Any]:
    title = "Trace of one decision" if total == 1 else f"Trace {at + 1} of {total}"
    return results.trace_section("trace" if total == 1 else f"trace-{at + 1}", title, t)
