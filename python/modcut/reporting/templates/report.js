// The page's only script: the map, its outline and inspector, more examples, the drawer. It adds elements with
// textContent and setAttribute alone, so nothing that came from data, a model or a reply can become markup.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("data").textContent);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const find = (name) => document.getElementById(name);
  document.documentElement.classList.add("js");

  function make(name, attributes, ...children) {
    const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) if (value !== null) node.setAttribute(key, value);
    node.append(...children.filter((c) => c !== null));
    return node;
  }
  const figure = (x) =>
    x === null || x === undefined ? "n/a" : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(3));

  // -- drawer --------------------------------------------------------------------------------------------------------
  const drawer = find("method");
  for (const link of document.querySelectorAll('a[href="#method"]')) {
    link.setAttribute("role", "button");
    link.setAttribute("aria-haspopup", "dialog");
    const open = (event) => {
      event.preventDefault();
      drawer.showModal();
    };
    link.addEventListener("click", open);
    link.addEventListener("keydown", (event) => event.key === " " && open(event));
  }
  drawer.querySelector("button").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", (event) => event.target === drawer && drawer.close());

  // -- links into closed details -------------------------------------------------------------------------------------
  function reveal() {
    const target = location.hash && find(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target.scrollIntoView();
    const head = target.querySelector("summary, h3[tabindex]");
    if (head) head.focus({ preventScroll: true });
  }
  addEventListener("hashchange", reveal);
  // A second click on the same link changes no hash.
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) reveal();
  });
  addEventListener("load", reveal);

  // -- more examples -------------------------------------------------------------------------------------------------
  function heat([tokens, levels, at, slice, times]) {
    const text = make("p", { class: "heat" });
    tokens.forEach((token, i) => {
      const level = levels.charAt(i);
      if (level === "0" && i !== at) text.append(token);
      else text.append(make(i === at ? "mark" : "i", { class: `h${level}` }, token));
    });
    const said = [times === null ? "" : `${figure(times)} × mean`, slice].filter(Boolean).join(" · ");
    return make("li", {}, text, make("small", {}, said));
  }
  for (const button of document.querySelectorAll("button[data-more]")) {
    const examples = data.examples[button.dataset.more] || [];
    const list = button.parentElement.querySelector("ol");
    let shown = 0;
    button.hidden = false;
    button.addEventListener("click", () => {
      const first = list.children.length;
      list.append(...examples.slice(shown, shown + 25).map(heat));
      shown = Math.min(shown + 25, examples.length);
      button.textContent = `Show more examples (${examples.length - shown} left)`;
      button.hidden = shown >= examples.length;
      list.children[first].setAttribute("tabindex", "-1");
      list.children[first].focus({ preventScroll: true });
    });
  }

  // -- map -----------------------------------------------------------------------------------------------------------
  if (!data.map) return;
  const { nodes, strength, width, height } = data.map;
  const node = new Map(nodes.map((n) => [n.id, n]));
  const groups = nodes.filter((n) => n.children.length);
  const folded = new Set();
  let chosen = null;
  const stage = find("map");
  const world = make("svg:g", {});
  const lines = make("svg:g", { class: "lines" });
  const dots = make("svg:g", { class: "dots" });
  stage.append(world);
  world.append(lines, dots);
  stage.setAttribute("viewBox", `0 0 ${width} ${height}`);

  const nameOf = (n) => (n.children.length ? n.title || short(`Modules ${leaves(n).map((m) => m.module).sort((a, b) => a - b).join(" · ")}`, 30) : `Module ${n.module}`);
  const fullName = (n) => (n.children.length || !n.title ? nameOf(n) : `Module ${n.module}: ${n.title}`);
  const short = (text, limit) => (text.length > limit ? `${text.slice(0, limit - 1)}…` : text);
  function leaves(n) {
    return n.children.length ? n.children.flatMap((c) => leaves(node.get(c))) : [n];
  }
  function ancestors(n) {
    const out = [];
    for (let up = n.parent; up !== undefined; up = node.get(up).parent) out.unshift(up);
    return out;
  }
  const shownAs = (n) => node.get(ancestors(n).find((a) => folded.has(a)) || n.id);
  const visible = (n) => shownAs(n) === n;
  const isOpen = (n) => n.children.length > 0 && !folded.has(n.id);

  // Elements are made once; folding only shows and hides them.
  const drawn = new Map();
  for (const n of nodes) {
    const group = n.children.length > 0;
    const label = make("svg:text", { class: "name", "text-anchor": "middle" }, short(n.title || (group ? nameOf(n) : ""), 26));
    const g = make(
      "svg:g",
      { class: group ? `node group${n.parent === undefined ? "" : " deep"}` : `node leaf m${n.module}`, role: "button", tabindex: "-1", "data-id": n.id },
      make("svg:circle", { cx: n.x, cy: n.y }),
      group ? null : make("svg:text", { class: "number", x: n.x, y: n.y, dy: ".36em", "text-anchor": "middle" }, String(n.module)),
      label,
    );
    dots.append(g);
    drawn.set(n.id, g);
  }
  function paintNodes() {
    for (const n of nodes) {
      const g = drawn.get(n.id);
      const open = isOpen(n);
      const r = open || !n.children.length ? n.r : n.whole;
      g.classList.toggle("gone", !visible(n));
      g.classList.toggle("open", open);
      g.classList.toggle("chosen", !!chosen && chosen.id === n.id);
      g.firstChild.setAttribute("r", r);
      const label = g.querySelector(".name");
      label.setAttribute("x", n.x);
      label.setAttribute("y", open ? n.y - r + 4 : n.children.length ? n.y + 4 : n.y + r + 4);
      label.setAttribute("dy", n.children.length ? "0" : ".9em");
      const count = n.children.length ? `${leaves(n).length} modules, ` : "";
      g.setAttribute("aria-label", `${fullName(n)}, ${count}${n.units.toLocaleString("en")} units`);
      if (n.children.length) g.setAttribute("aria-expanded", String(open));
      g.setAttribute("aria-pressed", String(!!chosen && chosen.id === n.id));
    }
  }

  // Strength between what is shown: that of all the modules in it.
  const slider = find("weakest");
  let links = [];
  function countLinks() {
    const sums = new Map();
    strength.forEach((row, i) =>
      row.forEach((value, j) => {
        if (i === j || !value) return;
        const [a, b] = [shownAs(node.get(String(i))), shownAs(node.get(String(j)))];
        if (a === b) return;
        const [p, q] = a.id < b.id ? [a, b] : [b, a];
        const link = sums.get(`${p.id} ${q.id}`) || { p, q, into: 0, outOf: 0 };
        link[a === p ? "into" : "outOf"] += value;
        sums.set(`${p.id} ${q.id}`, link);
      }),
    );
    links = [...sums.values()].sort((a, b) => b.into + b.outOf - a.into - a.outOf);
    slider.max = String(links.length);
    slider.value = String(Math.min(links.length, Math.ceil(1.5 * nodes.filter((n) => visible(n) && !isOpen(n)).length)));
    paintLines();
  }
  function paintLines() {
    const most = links.length ? links[0].into + links[0].outOf : 1;
    const count = Number(slider.value);
    find("weakest-told").textContent = `${count} of ${links.length}`;
    lines.replaceChildren(
      ...links.flatMap((link, at) => {
        const mine = chosen && (chosen.id === link.p.id || chosen.id === link.q.id || chosen.link === link);
        if (at >= count && !mine) return [];
        const { p, q } = link;
        const part = (link.into + link.outOf) / most;
        const [mx, my] = [(p.x + q.x) / 2 + (q.y - p.y) * 0.09, (p.y + q.y) / 2 - (q.x - p.x) * 0.09];
        const d = `M${p.x} ${p.y}Q${mx.toFixed(1)} ${my.toFixed(1)} ${q.x} ${q.y}`;
        const line = make(
          "svg:path",
          { d, "stroke-width": (0.8 + 6 * part).toFixed(2), class: mine ? "on" : chosen ? "dim" : "" },
          make("svg:title", {}, `${nameOf(p)} and ${nameOf(q)}: ${figure(link.into + link.outOf)}`),
        );
        line.addEventListener("click", () => choose({ link }));
        return [line];
      }),
    );
  }
  slider.addEventListener("input", paintLines);

  // -- view: x, y of the middle and the scale ---------------------------------------------------------------------------
  const home = { x: width / 2, y: height / 2, k: 1 };
  let view = { ...home };
  let frame = 0;
  function look(next) {
    view = next;
    const { x, y, k } = view;
    world.setAttribute("transform", `translate(${width / 2 - x * k} ${height / 2 - y * k}) scale(${k})`);
    // Names keep their size on the screen; where circles are small there, only groups are named.
    const px = pixel();
    world.style.setProperty("--px", Math.min(px, 4).toFixed(3));
    stage.classList.toggle("crowded", px > 0.95);
    stage.classList.toggle("zoomed", k > 1.01);
  }
  function glide(next) {
    cancelAnimationFrame(frame);
    if (calm.matches) return look(next);
    const from = { ...view };
    const start = performance.now();
    const step = (now) => {
      const t = Math.min(1, (now - start) / 180);
      const e = t * (2 - t);
      look({ x: from.x + (next.x - from.x) * e, y: from.y + (next.y - from.y) * e, k: from.k * (next.k / from.k) ** e });
      if (t < 1) frame = requestAnimationFrame(step);
    };
    frame = requestAnimationFrame(step);
  }
  const bounded = (v) => ({
    k: Math.min(8, Math.max(0.6, v.k)),
    x: Math.min(width, Math.max(0, v.x)),
    y: Math.min(height, Math.max(0, v.y)),
  });
  function zoomed(factor, at = view) {
    const k = Math.min(8, Math.max(0.6, view.k * factor));
    const f = view.k / k;
    return bounded({ k, x: at.x + (view.x - at.x) * f, y: at.y + (view.y - at.y) * f });
  }
  function spot(event) {
    // The svg keeps its proportions: its own matrix knows where the margins are.
    const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(world.getScreenCTM().inverse());
    return { x: p.x, y: p.y };
  }
  const pixel = () => 1 / (world.getScreenCTM().a || 1);

  stage.addEventListener(
    "wheel",
    (event) => {
      // The page scrolls as ever until the reader is in the map, or holds the zoom key.
      if (!event.ctrlKey && !event.metaKey && !stage.contains(document.activeElement)) return;
      event.preventDefault();
      cancelAnimationFrame(frame);
      look(zoomed(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0022)), spot(event)));
    },
    { passive: false },
  );
  const fingers = new Map();
  let moved = false;
  stage.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    moved = false;
  });
  stage.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    if (fingers.size === 1) {
      const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
      if (!moved && Math.hypot(dx, dy) < 5) return;
      if (!moved) stage.setPointerCapture(event.pointerId);
      moved = true;
      look(bounded({ ...view, x: view.x - dx * pixel(), y: view.y - dy * pixel() }));
    } else if (fingers.size === 2) {
      const other = [...fingers.values()].find((f) => f.pointerId !== event.pointerId);
      const gap = (f) => Math.hypot(f.clientX - other.clientX, f.clientY - other.clientY) || 1;
      const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
      moved = true;
      look(zoomed(gap(event) / gap(before), spot(middle)));
    }
    fingers.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"])
    stage.addEventListener(name, (event) => fingers.delete(event.pointerId));
  stage.addEventListener("click", (event) => {
    if (moved) return;
    const g = event.target.closest("[data-id]");
    if (g) act(node.get(g.dataset.id));
    else if (event.target === stage) choose(null);
  });
  find("zoom-in").addEventListener("click", () => glide(zoomed(1.5)));
  find("zoom-out").addEventListener("click", () => glide(zoomed(1 / 1.5)));
  find("zoom-fit").addEventListener("click", () => glide({ ...home }));

  // -- choosing and folding ------------------------------------------------------------------------------------------
  const inspector = find("inspector");
  function act(n) {
    if (n.children.length) fold(n, isOpen(n));
    choose({ id: n.id });
  }
  function fold(n, shut) {
    if (shut) folded.add(n.id);
    else folded.delete(n.id);
    refresh();
  }
  function refresh() {
    if (chosen && chosen.id && !visible(node.get(chosen.id))) chosen = { id: shownAs(node.get(chosen.id)).id };
    if (chosen && chosen.link) chosen = null;
    countLinks();
    paintNodes();
    paintOutline();
  }
  function choose(what) {
    chosen = what;
    paintNodes();
    paintLines();
    paintOutline();
    inspect();
  }
  const button = (text, run, more) => {
    const b = make("button", { type: "button", ...more }, text);
    b.addEventListener("click", run);
    return b;
  };
  function linkRow(link, other, from) {
    const told = `${fullName(other)}`;
    const part = make("meter", { min: 0, max: links[0].into + links[0].outOf, value: link.into + link.outOf, "aria-hidden": "true" });
    return make("li", {}, button(told, () => choose({ link, from })), part, make("small", {}, figure(link.into + link.outOf)));
  }
  function cardLink(reader, source) {
    const name = `interface-${reader}-${source}`;
    return find(name) ? make("a", { href: `#${name}` }, `Module ${reader} reads from module ${source}`) : null;
  }
  function inspect() {
    const out = [];
    if (!chosen) {
      out.push(make("p", { class: "note" }, "Choose a module, a group or a line: its facts stand here."));
    } else if (chosen.link) {
      const { p, q, into, outOf } = chosen.link;
      out.push(make("h3", {}, `${nameOf(p)} and ${nameOf(q)}`));
      const facts = make("dl", { class: "record" });
      facts.append(make("dt", {}, `${nameOf(p)} reads`), make("dd", {}, figure(into)));
      facts.append(make("dt", {}, `${nameOf(q)} reads`), make("dd", {}, figure(outOf)));
      out.push(facts);
      if (!p.children.length && !q.children.length) {
        const cards = [cardLink(p.module, q.module), cardLink(q.module, p.module)].filter(Boolean);
        for (const key of [`${p.module}-${q.module}`, `${q.module}-${p.module}`])
          if (data.interfaces[key]) out.push(make("p", {}, data.interfaces[key]));
        if (cards.length) out.push(make("p", {}, "Cards: ", cards[0], ...(cards[1] ? [", ", cards[1]] : [])));
      }
    } else {
      const n = node.get(chosen.id);
      const own = data.modules[n.module];
      out.push(
        make("h3", {}, n.children.length ? null : make("span", { class: `chip m${n.module}`, "aria-hidden": "true" }, String(n.module)), fullName(n)),
      );
      if (n.children.length) {
        out.push(button(isOpen(n) ? "Fold this group" : "Open this group", () => (fold(n, isOpen(n)), inspect())));
        if (n.text) out.push(make("p", {}, n.text));
        out.push(make("p", { class: "note" }, `${leaves(n).length} modules, ${n.units.toLocaleString("en")} units.`));
        out.push(make("ul", { class: "plain" }, ...n.children.map((c) => make("li", {}, button(fullName(node.get(c)), () => (folded.has(n.id) && fold(n, false), choose({ id: c })))))));
      } else if (own) {
        for (const line of own.lines.slice(0, 4)) out.push(make("p", {}, short(line, 420)));
        for (const [name, value, beside] of own.scores)
          out.push(make("p", { class: "score" }, make("b", {}, `${name} ${value}`), make("small", {}, beside)));
        if (find(`module-${n.module}`)) out.push(make("p", {}, make("a", { class: "go", href: `#module-${n.module}` }, "Read the card")));
      }
      const mine = links.filter((l) => l.p === n || l.q === n).slice(0, 6);
      if (mine.length) {
        out.push(make("h4", {}, "Strongest interfaces"));
        out.push(make("ul", { class: "plain" }, ...mine.map((l) => linkRow(l, l.p === n ? l.q : l.p, n))));
      }
    }
    inspector.replaceChildren(...out);
  }

  // -- outline: the same tree as a list ------------------------------------------------------------------------------
  const outline = find("outline");
  const rows = new Map();
  for (const n of nodes) {
    const depth = ancestors(n).length;
    const row = make(
      "li",
      { role: "treeitem", "aria-level": depth + 1, tabindex: "-1", "data-id": n.id, class: `d${Math.min(depth, 8)}` },
      n.children.length ? make("span", { class: "twist", "aria-hidden": "true" }) : make("span", { class: `chip m${n.module}`, "aria-hidden": "true" }, String(n.module)),
      make("span", {}, short(n.children.length ? nameOf(n) : n.title || `Module ${n.module}`, 48)),
    );
    row.setAttribute("aria-label", fullName(n));
    rows.set(n.id, row);
    outline.append(row);
  }
  let current = nodes[0].id;
  function paintOutline() {
    if (!visible(node.get(current))) current = shownAs(node.get(current)).id;
    for (const n of nodes) {
      const row = rows.get(n.id);
      row.hidden = !visible(n);
      row.setAttribute("aria-selected", String(!!chosen && chosen.id === n.id));
      row.setAttribute("tabindex", n.id === current ? "0" : "-1");
      drawn.get(n.id).setAttribute("tabindex", n.id === current ? "0" : "-1");
      if (n.children.length) row.setAttribute("aria-expanded", String(isOpen(n)));
    }
  }
  function focusRow(id) {
    current = id;
    paintOutline();
    rows.get(id).focus();
  }
  outline.addEventListener("click", (event) => {
    const row = event.target.closest("[data-id]");
    if (!row) return;
    current = row.dataset.id;
    const n = node.get(current);
    if (event.target.classList.contains("twist")) fold(n, isOpen(n));
    else choose({ id: n.id });
  });
  outline.addEventListener("keydown", (event) => {
    const n = node.get(current);
    const list = nodes.filter(visible);
    const at = list.indexOf(n);
    const keys = {
      ArrowDown: () => focusRow(list[Math.min(at + 1, list.length - 1)].id),
      ArrowUp: () => focusRow(list[Math.max(at - 1, 0)].id),
      Home: () => focusRow(list[0].id),
      End: () => focusRow(list[list.length - 1].id),
      ArrowRight: () => n.children.length && (isOpen(n) ? focusRow(n.children[0]) : fold(n, false)),
      ArrowLeft: () => (isOpen(n) ? fold(n, true) : n.parent !== undefined && focusRow(n.parent)),
      Enter: () => choose({ id: n.id }),
      " ": () => choose({ id: n.id }),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  // -- keys in the map -------------------------------------------------------------------------------------------------
  const DIRECTION = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const n = node.get(current);
    const way = DIRECTION[event.key];
    if (way && event.shiftKey) look(bounded({ ...view, x: view.x + (way[0] * 60) / view.k, y: view.y + (way[1] * 60) / view.k }));
    else if (way) step(n, way);
    else if (event.key === "Enter" || event.key === " ") act(n);
    else if (event.key === "+" || event.key === "=") glide(zoomed(1.5));
    else if (event.key === "-") glide(zoomed(1 / 1.5));
    else if (event.key === "0") glide({ ...home });
    else return;
    event.preventDefault();
  });
  function step(n, [dx, dy]) {
    // The nearest in that half of the plane; what lies aside counts double.
    const where = (m) => (isOpen(m) ? [m.x, m.y - m.r] : [m.x, m.y]);
    const [x, y] = where(n);
    let best = null;
    for (const m of nodes) {
      if (m === n || !visible(m)) continue;
      const [along, aside] = [(where(m)[0] - x) * dx + (where(m)[1] - y) * dy, (where(m)[0] - x) * dy - (where(m)[1] - y) * dx];
      const far = along + 2 * Math.abs(aside);
      if (along > 1 && (!best || far < best.far)) best = { m, far };
    }
    if (!best) return;
    current = best.m.id;
    paintOutline();
    drawn.get(current).focus({ preventScroll: true });
    const half = { x: width / 2 / view.k, y: height / 2 / view.k };
    const [tx, ty] = where(best.m);
    if (Math.abs(tx - view.x) > half.x || Math.abs(ty - view.y) > half.y) glide({ ...view, x: tx, y: ty });
  }
  // Not on the svg: Chromium lets the tab key stop at svg elements that listen for the focus.
  stage.parentElement.addEventListener("focusin", (event) => {
    const g = event.target.closest("[data-id]");
    if (!g) return;
    current = g.dataset.id;
    for (const other of nodes) drawn.get(other.id).setAttribute("tabindex", other.id === current ? "0" : "-1");
  });

  if (groups.length) {
    find("open-all").addEventListener("click", () => (folded.clear(), refresh(), inspect()));
    find("fold-all").addEventListener("click", () => (groups.forEach((g) => folded.add(g.id)), refresh(), inspect()));
  }
  addEventListener("resize", () => look(view));
  look(view);
  refresh();
  inspect();
})();
