"""The questions to language models: jinja2 files in ``prompts/``, any of which a folder of the user's may replace."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from modcut.reading.clients import Message

if TYPE_CHECKING:
    from modcut.reading.judges import Item

NAMES = ("module", "interface", "group", "judge")
QUESTIONS = {
    "active": "how active the module is on it",
    "breaks": "how much worse the network gets at it when the module is switched off",
    "signal": "how strong the signal on this interface is on it",
}


class Prompts:
    """Prompt templates: ``NAME.j2`` for chat models, ``NAME_completion.j2`` for models that continue a text.

    Args:
        folder: files in it are used instead of the package's of the same name.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no file with the name of a prompt: most likely a mistake.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        loaders: list[jinja2.BaseLoader] = [jinja2.PackageLoader("modcut.reading", "prompts")]
        if folder is not None:
            if not Path(folder).is_dir():
                raise FileNotFoundError(f"prompts must be an existing folder, got {os.fspath(folder)!r}")
            known = {f"{n}{style}.j2" for n in NAMES for style in ("", "_completion")}
            if not known & {p.name for p in Path(folder).iterdir()}:
                raise ValueError(f"prompts must be a folder with some of {sorted(known)}, got {os.fspath(folder)!r}")
            loaders.insert(0, jinja2.FileSystemLoader(os.fspath(folder)))
        # Prompts are plain text: escaping for HTML would change the evidence.
        self._environment = jinja2.Environment(
            loader=jinja2.ChoiceLoader(loaders),
            autoescape=False,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["line"] = _line

    def render(self, name: str, *, completion: bool, **values: Any) -> list[Message]:
        """Return the messages of one prompt; a completion prompt does not end in white space (models stumble on it)."""
        text = self._environment.get_template(f"{name}{'_completion' if completion else ''}.j2").render(**values)
        return [{"role": "user", "content": text.rstrip() if completion else text}]

    def write(self, name: str, evidence: Mapping[str, Any], *, completion: bool) -> list[Message]:
        """Return the question for a text (``module``, ``interface`` or ``group``)."""
        return self.render(name, completion=completion, evidence=rounded(evidence))

    def judge(self, text: str, question: str, items: Sequence[Item], *, completion: bool) -> list[Message]:
        """Return the question for ratings."""
        shown = [i.text for i in items]
        return self.render(
            "judge", completion=completion, text=text, question=QUESTIONS[question], kind=question, items=shown
        )


def _line(text: Any) -> str:
    """One line: a completion prompt is read line by line, and data must not begin a new one."""
    return " ".join(str(text).split())


def rounded(value: Any) -> Any:
    """Return the value with floats cut to three digits."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return value
