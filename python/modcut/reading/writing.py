"""A language model writes the texts of module, interface and group cards; what fails is marked and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modcut.reading.asking import Prompts
from modcut.reading.cards import EVIDENCE_ONLY, GroupCard, InterfaceCard, ModuleCard
from modcut.reading.clients import Client, ClientError, Message, Request, ask_all, brief, parse_json, style_of

SCHEMA: dict[str, Any] = {
    "title": "module_description",
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "description": {"type": "string"},
        "confidence": {"type": "number"},
    },
    "required": ["title", "description", "confidence"],
    "additionalProperties": False,
}
# Characters of a reply that are kept: more is no title and no description, and would drown the page.
TITLE, TEXT = 120, 4000
# A title of a completion is one line of a few words.
_LINE = 24
Say = Callable[[str], None]


class Writer:
    """Asks one client for texts.

    Args:
        client: a language model.
        prompts: the questions.
        seed: sent with every call.
        say: told what is being asked for.
    """

    def __init__(self, client: Client, prompts: Prompts, seed: int, say: Say = lambda _: None) -> None:
        self.client, self.prompts, self.seed, self.say = client, prompts, seed, say
        self.stopped = ""

    def modules(self, cards: Sequence[ModuleCard], materials: Sequence[Mapping[str, Any]]) -> None:
        """Write the text of every module card."""
        self._write("module", cards, [module_view(c, m) for c, m in zip(cards, materials, strict=True)])

    def interfaces(
        self, cards: Sequence[InterfaceCard], modules: Sequence[ModuleCard], signals: Mapping[tuple[int, int], Any]
    ) -> None:
        """Write the text of every interface card, from the words of its two modules and the signal it carries."""
        views = []
        for card in cards:
            reader, source = (modules[i] for i in card.modules)
            view = {"reader": _named(reader), "source": _named(source), "places": card.evidence.get("places", [])}
            if card.modules in signals:
                view["signal"] = signals[card.modules]
            views.append(view)
        self._write("interface", cards, views)

    def groups(self, cards: Sequence[GroupCard], modules: Sequence[ModuleCard]) -> None:
        """Write the texts of the groups from the bottom up: a group is told what its children are called."""
        known: dict[int, ModuleCard | GroupCard] = {c.index: c for c in modules}
        left = list(cards)
        while left:
            ready = [g for g in left if all(c in known for c in g.children)]
            if not ready:  # a tree whose children are missing: described as far as it goes
                break
            self._write("group", ready, [{"children": [_named(known[c]) for c in g.children]} for g in ready])
            known |= {g.id: g for g in ready}
            left = [g for g in left if g.id not in known]

    def texts(self, materials: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Return the texts of random modules (a control of the describer); None where a call failed."""
        found = [ModuleCard(i, "") for i in range(len(materials))]
        self._write("module", found, [{"inputs": dict(m)} for m in materials])
        return [None if c.error is not None else judged(c, "") for c in found]

    def _write(self, name: str, cards: Sequence[Any], views: Sequence[Mapping[str, Any]]) -> None:
        completion = style_of(self.client) == "completion"
        requests = []
        for view in views:
            messages = self.prompts.write(name, view, completion=completion)
            requests.append(Request(messages, None if completion else SCHEMA, _LINE if completion else 512, self.seed))
        if self.stopped:  # an earlier round found that nobody answers
            for card in cards:
                card.error = f"not asked: {self.stopped}"
            return
        done = 0
        for index, outcome in ask_all(self.client, requests):
            card, done = cards[index], done + 1
            self.say(f"texts: {name} {done} of {len(cards)}")
            try:
                if isinstance(outcome, ClientError):
                    raise outcome
                if completion:
                    title, text, confidence = _theme(outcome.text)
                else:
                    title, text, confidence = _fields(parse_json(outcome.text))
            except ClientError as error:
                if error.reason == "not_asked":
                    self.stopped = str(error)
                    card.error = f"not asked: {error}"
                else:
                    card.error = f"{error.reason}: {error}"
                continue
            card.title, card.text, card.confidence, card.origin = title, text, confidence, outcome.model


def judged(card: ModuleCard | InterfaceCard, template: str) -> str:
    """Return the words of a card that a judge is given: never those that repeat a held-out measurement.

    The evidence-only text of a card quotes effects measured on the held-out half; its place takes ``template``, the
    evidence-only text of the selection half.
    """
    if card.origin == EVIDENCE_ONLY and card.error is None and not card.title:
        return template
    return f"{card.title}. {card.text}" if card.title and card.title not in card.text else card.text


def module_view(card: ModuleCard, material: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a describer is shown of a module: nothing that was measured on the held-out half."""
    e = card.evidence
    view: dict[str, Any] = {"module": card.index, "inputs": dict(material)}
    if "make_up" in e:
        view["make_up"] = {**e["make_up"], "spaces": e["make_up"]["spaces"][:12]}
    for name in ("direct", "code"):
        if e.get(name):
            view[name] = e[name]
    for name in ("reads_from", "writes_to"):
        view[name] = [{k: x[k] for k in ("module", "share") if k in x} for x in e.get(name, [])[:4]]
    return view


def prompt(card: ModuleCard, material: Mapping[str, Any] | None = None, *, completion: bool = False) -> list[Message]:
    """Return the messages that ask a language model to describe one module."""
    shown = {"mean_share": 0.0, "slices": []} if material is None else material
    return Prompts().write("module", module_view(card, shown), completion=completion)


def _named(card: ModuleCard | GroupCard) -> dict[str, Any]:
    """How a card is told to a later question: title and text by a language model, else its first tokens."""
    text = card.text if card.origin != EVIDENCE_ONLY else ""
    if not text and isinstance(card, ModuleCard):
        listed = card.evidence.get("inputs", {}).get("more_on", [])
        text = " ".join(str(t["text"]) for t in listed[:6])
    return {"title": card.title or text[:80], "text": text}


def _theme(text: str) -> tuple[str, str, float | None]:
    """The line that continues a few-shot prompt is title and text in one; it comes without a confidence."""
    line = text.strip().split("\n", 1)[0].strip()
    if not line:
        raise ClientError("empty", "the reply is an empty line")
    return brief(line, TITLE), brief(line, TEXT), None


def _fields(value: Mapping[str, Any]) -> tuple[str, str, float | None]:
    """Check a reply against :data:`SCHEMA`: servers that ignore `response_format` may send anything."""
    text, title, confidence = value.get("description"), value.get("title", ""), value.get("confidence")
    if not isinstance(text, str) or not text.strip():
        raise ClientError("malformed", f"the reply must have a text 'description', got {sorted(value)}")
    number = isinstance(confidence, (int, float)) and not isinstance(confidence, bool) and 0 <= confidence <= 1
    title = brief(title.strip(), TITLE) if isinstance(title, str) else ""
    return title, brief(text.strip(), TEXT), float(confidence) if number else None  # type: ignore[arg-type]
