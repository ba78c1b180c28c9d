"""What the page on cuts shows, runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "cuts.md").read_text(encoding="utf-8")


def test_the_snippets_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(snippets) >= 6
    for i, code in enumerate(snippets):
        exec(compile(code, f"docs/cuts.md, snippet {i}", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_every_public_cut_is_on_the_page() -> None:
    import modcut.cuts

    functions = {n for n in modcut.cuts.__all__ if callable(getattr(modcut, n)) and n.islower()} | {"improve_partition"}
    assert not {n for n in functions - {"quotient_matrix"} if n not in PAGE}
