"""What the README says can be done, can be done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def test_the_ten_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_the_two_commands_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    assert "pip install -c constraints.txt '.[demo]' && modcut demo" in text
    assert "pip install -c constraints.txt '.[test]' && pytest" in text


def test_links_lead_somewhere() -> None:
    for page in (README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"):
        if not page.is_file():
            continue
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_command_of_the_readme_exists() -> None:
    from modcut.cli import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert {"demo", "cut", "info", "selftest"} <= known
    assert set(re.findall(r"`modcut (\w+)", README.read_text(encoding="utf-8"))) <= known
