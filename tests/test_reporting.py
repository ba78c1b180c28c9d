"""Reports are one whole file: well-formed, self-contained, escaped, and complete for whatever was given."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modcut
from modcut.reporting import draw, partition_view, render, report, svg
from modcut.reporting.cells import cell
from modcut.reporting.html import token
from modcut.reporting.views import read_tables
from reading_toys import TwoSkills, letters, partition_of

EVIL = '<script>alert("x")</script>\' onload="alert(1)" &amp; <img src=x onerror=alert(1)> 日本語 \n\t\x00\x1b ]]>'
VOID = {"meta", "img", "br", "hr", "input", "link", "circle", "rect", "line", "path"}
NAMES = ["Results", "Modules", "Cut tree", "Cards", "Trace of one decision", "Effects of ablation"]


class Page(HTMLParser):
    """Checks nesting, and collects ids, links and everything that could load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")
        if tag not in VOID or (self.open and tag in {"circle", "rect", "path", "line"}):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def checked(text: str) -> Page:
    """Parse a page and check what holds for every report."""
    page = Page(re.sub("<meta([^>]*)>", r"<meta\1/>", text))
    assert page.tags["script"] == 2 and len(page.scripts) == 2, "a script beside the page's own"
    data, script = page.scripts
    assert isinstance(json.loads(data), dict) and not set("<>&") & set(data)
    policy = next(v for tag, name, v in page.attributes if (tag, name) == ("meta", "content") and "default-src" in v)
    (sheet,) = re.findall("<style>(.*?)</style>", text, flags=re.S)
    for kind, body in (("script", script), ("style", sheet)):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy, f"the policy refuses the page's own {kind}"
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not {"iframe", "object", "embed", "link", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"an event handler on <{tag}>"
        assert name != "style", f"<{tag} style> is refused by the policy"
        assert name not in ("src", "srcset", "action", "data", "xlink:href"), f"<{tag} {name}> loads something"
        assert "javascript:" not in value.lower()
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids), "a link into nowhere"
    assert len(page.ids) == len(set(page.ids)), "an id is used twice"
    labelled = [v for _, n, v in page.attributes if n == "aria-labelledby"]
    assert all(part in page.ids for v in labelled for part in v.split())
    assert "url(" not in sheet and "@import" not in sheet
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    used, given_ = set(re.findall(r"var\((--[\w-]+)\)", text)), set(re.findall(r"(--[\w-]+):", text))
    assert used <= given_, f"undefined colours: {used - given_}"
    return page


def effect(value: float) -> dict[str, Any]:
    return {"value": value, "control_mean": 0.1, "control_sd": 0.05, "p": 0.06, "n": 16}


def a_trace(k: int = 3, text: str = " FINE") -> dict[str, Any]:
    top = [{"target": 1, "text": text, "probability": 0.9}]
    decision = {"target": 1, "text": text, "logit": 1.0, "log_probability": -0.1, "probability": 0.9, "top": top}
    modules = [
        {
            "module": i,
            "units": 4,
            "logit": effect(i),
            "probability": effect(i / 4),
            "log_probability": effect(1 - i),
            "beyond_controls": i > 1,
            "without": decision,
        }
        for i in range(k)
    ]
    return {
        "kind": "trace",
        "decision": decision,
        "modules": modules,
        "steps": [{"depth": d, "site": f"layers.{d}.{text}", "taps": [], "effects": modules} for d in range(3)],
        "skipped": {"9": text},
        "inputs": [text, text],
        "record": {"n": 1, "seed": 0, "control": text},
    }


def effects_table(text: str = "deception") -> dict[str, Any]:
    rows = [{"module": i, "units": 4, "behaviour": text, "mode": "mean", "drop": effect(0.5 - i)} for i in range(3)]
    return {"kind": "effect_table", "rows": rows, "skipped": {}, "record": {"seed": 0}}


def a_tree(n: int) -> dict[str, Any]:
    return {"kind": "CutTree", "n": n, "parent": [-1, *range(n - 1)], "weight": [None, *[1.5] * (n - 1)], "exact": True}


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    model = TwoSkills()
    P = partition_of(model)
    cards = modcut.describe(model, P, letters(6))
    table = [{"model": "plain", "loss": 1.5, "random": "1 ± 0.1"}, {"model": "modular", "loss": 1.6, "random": None}]
    return {
        "partition": P,
        "cards": cards,
        "trace": a_trace(),
        "effects": effects_table(),
        "table": table,
        "tree": a_tree(2),
    }


def test_a_full_report_is_whole_and_self_contained(parts: dict[str, Any], tmp_path: Path) -> None:
    path = report(tmp_path / "new" / "report.html", **parts, title="All", meta={"command": "modcut demo"})
    page = checked(path.read_text(encoding="utf-8"))
    for name in [*NAMES, "modcut demo", "evidence only", "matched random modules"]:
        assert name in page.text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_summary_is_a_text_or_a_list_of_sentences() -> None:
    assert checked(render(meta={"summary": ["One.", "Two <b>."]})).text.count("Two <b>.") == 1
    assert "All in one." in checked(render(meta={"summary": "All in one."})).text


def test_a_report_of_nothing_is_still_a_page() -> None:
    page = checked(render())
    assert "How this was made" in page.text and not any(name in page.text for name in NAMES[1:])


@pytest.mark.parametrize("name", ["partition", "cards", "trace", "effects", "table", "tree"])
def test_every_part_stands_alone(parts: dict[str, Any], name: str) -> None:
    section = {"partition": "modules", "table": "results"}.get(name, name)
    page = checked(render(**{name: parts[name]}))
    assert section in page.ids
    others = {"results", "tree", "trace", "effects"} - {section}
    assert not others & set(page.ids)


def test_saved_json_gives_the_same_pictures(parts: dict[str, Any]) -> None:
    saved = {k: v if isinstance(v, (dict, list)) else v.to_dict() for k, v in parts.items() if k != "partition"}
    saved["partition"] = partition_view(parts["partition"])
    again = json.loads(json.dumps(saved, allow_nan=False))

    def without_dates(text: str) -> str:
        return re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "", text)

    assert without_dates(render(**again)) == without_dates(render(**parts))


def test_text_from_data_and_models_runs_nothing(parts: dict[str, Any]) -> None:
    cards = parts["cards"].to_dict()
    for card in cards["cards"]:
        card |= {"title": EVIL, "text": EVIL, "origin": EVIL, "error": EVIL, "confidence": 0.5}
        card["interfaces"] = [{"text": EVIL}]
        card["evidence"]["inputs"]["contexts"][0] |= {"before": EVIL, "token": EVIL, "after": EVIL, "slice": EVIL}
        card["evidence"]["inputs"]["more_on"][0]["text"] = EVIL
        card["evidence"]["effect"]["slices"][0]["slice"] = EVIL
        card["evidence"]["effect"]["loses"] = [{"output": 1, "text": EVIL, "change": -1.0, "control_mean": 0.0}]
    view = partition_view(parts["partition"])
    view["not_covered"] = [[EVIL, EVIL]]
    view["edge"] = EVIL
    for family in view["families"]:
        family["family"] = EVIL
    text = render(
        partition=view,
        cards=cards,
        trace=a_trace(text=EVIL),
        effects=effects_table(EVIL),
        comparison={EVIL: [{EVIL: EVIL, "change": effect(1.0)}]},
        table={"title": EVIL, "columns": [EVIL, "b"], "rows": [[EVIL, 1.0]], "note": EVIL},
        title=EVIL,
        meta={"summary": EVIL, EVIL: EVIL},
    )
    page = checked(text)
    assert text.count("<script") == 2 and "alert(" in page.text and page.tags["img"] == 0
    shown = text.count("&lt;img src=x onerror=") + text.count("\\u003cimg src=x onerror=")  # in HTML and in the data
    assert text.count("onerror=") == shown > 0


def test_a_planted_unescaped_text_is_caught(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (draw, svg.maps, svg.tree, svg.charts):
        monkeypatch.setattr(module, "escape", lambda text: str(text))
    view = partition_view(parts["partition"])
    view["families"][0]["family"] = "<script>alert(1)</script>"
    with pytest.raises(AssertionError):
        checked(render(partition=view))


@pytest.mark.parametrize("k", [1, 2, 3, 9, 30])
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "no interfaces"])
def test_any_number_of_modules_can_be_drawn(k: int, connected: bool) -> None:
    strength = [[float(connected and i != j) for j in range(k)] for i in range(k)]
    view = {"k": k, "n": 10 * k, "edge": "abs", "sizes": [10] * k, "strength": strength, "families": []}
    page = checked(render(partition=view, trace=a_trace(k + 3), tree=a_tree(k)))
    assert ("No weight connects two modules." in page.text) is not (connected and k > 1)
    assert f"{k} modules with {10 * k} units" in page.text


def test_long_names_are_cut_in_the_drawing_and_whole_in_its_hint() -> None:
    name = "model.layers.11." + "very_long_" * 12 + "q_proj"
    drawn = svg.occupancy([name], [[3, 1]])
    texts = [t.text or "" for t in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert name in drawn and all(len(t) < 40 for t in texts)


def test_a_tree_too_large_to_draw_is_told_in_words() -> None:
    page = checked(render(tree=a_tree(5000)))
    assert "5,000" in page.text and "1.5 to 1.5" in page.text
    assert len(render(tree=a_tree(5000))) < 40_000


# -- pictures ---------------------------------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[], str]] = {
    "graph": lambda: svg.module_graph([3, 5, 2], [[1, 2, 0], [0.5, 3, 1], [0, 0, 1]], names=[EVIL, "b", "c"]),
    "empty graph": lambda: svg.module_graph([], []),
    "occupancy": lambda: svg.occupancy([EVIL, "b"], [[1, 2], [0, 0]]),
    "no layer": lambda: svg.occupancy([], []),
    "tree": lambda: svg.cut_tree([-1, 0, 0, 1], [None, 3.0, 1.0, math.inf], names=[EVIL] * 4),
    "forest": lambda: svg.cut_tree([-1, -1, 0], [None, None, 0.0]),
    "deep path": lambda: svg.cut_tree([-1, *range(3000)], [None, *[1.0] * 3000]),
    "bars": lambda: svg.effect_bars([{"label": EVIL, "value": -1.0, "low": -0.5, "high": 0.2, "module": 1}]),
    "equal bars": lambda: svg.effect_bars([{"label": "a", "value": 0.0, "low": None, "high": None}]),
    "no bars": lambda: svg.effect_bars([]),
    "dots": lambda: svg.dots(
        [{"label": EVIL, "value": None}, {"label": "b", "value": 0.7, "random": [0.5, None], "shuffled": [0.4]}],
        title="t",
    ),
    "steps": lambda: svg.steps(
        [{"label": EVIL, "effects": [{"module": 0, "value": -1.0, "control": 0.2, "beyond": True}]}], [0, 4]
    ),
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES.keys())
def test_every_picture_is_a_valid_file_of_its_own(picture: Callable[[], str]) -> None:
    text = draw.standalone(picture())
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].tag.endswith("style") or root[0].tag.endswith("title")
    assert any(child.tag.endswith("title") for child in root) and "http" not in text.replace(
        "http://www.w3.org/2000/svg", ""
    )
    numbers = [v for node in root.iter() for a, v in node.attrib.items() if a not in ("id", "aria-labelledby", "fill")]
    assert not any(word in value for value in numbers for word in ("nan", "inf"))
    used, given_ = set(re.findall(r"var\((--[\w-]+)\)", text)), set(re.findall(r"(--[\w-]+):", text))
    assert used <= given_


def test_a_picture_is_a_function_of_its_data() -> None:
    assert PICTURES["graph"]() == PICTURES["graph"]()


def test_strengths_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strength must have shape \[2, 2\], got \[1, 2\]"):
        svg.module_graph([1, 2], [[1.0, 2.0]])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=12))
def test_bars_stay_inside_the_picture(values: list[float]) -> None:
    text = svg.effect_bars([{"label": "x", "value": v, "low": -1.0, "high": 1.0} for v in values])
    for r in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}rect"):
        assert float(r.attrib["x"]) >= -0.1 and float(r.attrib["x"]) + float(r.attrib["width"]) <= 762.1


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=40))
def test_any_text_can_be_a_name(name: str) -> None:
    drawn = ET.fromstring(draw.standalone(svg.module_graph([1, 2], [[0, 1], [0, 0]], names=[name, name])))
    said = draw.clean(name).replace("\r", "\n")  # as an XML reader gives line ends back
    hints = [t.text or "" for t in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert any(hint.startswith(f"{said}: 1 units") for hint in (h.replace("\r", "\n") for h in hints))
    page = checked(render(title=name, table=[{"a": name}]))
    assert page.text.replace("\r", "\n").count(said) >= 2  # the title and the cell


# -- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "n/a"), (True, "yes"), (1234567, "1,234,567"), (0.123456, "0.123"), (1e-7, "1.00e-07"), (0.0, "0"),
        (123.456, "123.5"), (float("nan"), "n/a"), (float("inf"), "∞"), ("x", "x"), ([1, 0.5], "1, 0.5"),
    ],
)  # fmt: skip
def test_cells_show_figures_as_a_reader_needs_them(value: Any, shown: str) -> None:
    assert cell(value) == shown


def test_tokens_show_their_line_breaks() -> None:
    assert token("a\n\tb\x00") == "a⏎⇥b\\x00"


def test_tables_come_in_three_shapes() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2.5}]
    (one,) = read_tables(rows)
    assert one["columns"] == ["a", "b"] and one["rows"] == [[1, "x"], [2.5, None]] and one["numeric"] == [True, False]
    two = read_tables([{"title": "t", "columns": ["a"], "rows": [[1]]}, {"columns": ["b"], "rows": []}])
    assert [t["title"] for t in two] == ["t", ""] and read_tables(None) == []


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"table": 3}, TypeError, "table must be a dict"),
        ({"table": {"columns": ["a"], "rows": [[1, 2]]}}, ValueError, "must have 1 cells, got 2"),
        ({"cards": 3}, TypeError, "cards must be a modcut result"),
        ({"partition": "x"}, TypeError, "partition must be a modcut result"),
    ],
)
def test_other_things_are_refused_in_a_sentence(given_: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        render(**given_)


def test_a_failed_report_leaves_the_old_one(parts: dict[str, Any], tmp_path: Path) -> None:
    path = report(tmp_path / "r.html", title="old")
    with pytest.raises(TypeError):
        report(path, title="new", cards=3)
    assert "old" in path.read_text() and len(list(tmp_path.iterdir())) == 1


def test_the_partition_view_adds_up(parts: dict[str, Any]) -> None:
    P, view = parts["partition"], partition_view(parts["partition"])
    strength = torch.tensor(view["strength"], dtype=torch.float64)
    assert torch.allclose(strength + strength.T, P.table)
    assert [sum(c) for c in zip(*(f["counts"] for f in view["families"]), strict=True)] == view["sizes"]


def test_metrics_stand_beside_their_control_or_say_that_there_is_none() -> None:
    P = partition_of(TwoSkills())
    bare = render(partition=P)
    assert "no control measured" in bare
    page = checked(
        render(partition=P, significance=P.significance(shuffles=3), about={"modules": "Of <b>that</b> model."})
    )
    assert "no control measured" not in page.text
    assert "3 random partitions" in page.text
    assert "Of <b>that</b> model." in page.text  # escaped
    with pytest.raises(ValueError, match="about must name sections"):
        render(partition=P, about={"nowhere": ""})


def test_layers_that_differ_in_a_number_are_told_apart_in_the_picture() -> None:
    names = [f"model.layers.{i}.self_attn.heads" for i in range(31)]
    shown = ET.fromstring(svg.occupancy(names, [[1, 2]] * 31)).iter("{http://www.w3.org/2000/svg}text")
    assert set(names) <= {"".join(t.itertext()) for t in shown}
