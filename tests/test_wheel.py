"""A wheel carries every file that the package reads: prompts, schema, templates, data. Without compiling anything."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "python" / "modcut").is_dir(),
    reason="the sources are not beside the tests",
)


def data_files() -> set[str]:
    """Files beside the modules that are no code: what a wrong packaging rule would drop."""
    package = ROOT / "python" / "modcut"
    skipped = {".py", ".so", ".pyd", ".pyc", ".pyi", ".tmp"}
    return {
        p.relative_to(package.parent).as_posix()
        for p in package.rglob("*")
        if p.is_file() and p.suffix not in skipped and "__pycache__" not in p.parts
    }


def test_the_list_is_not_empty_where_it_matters() -> None:
    folders = {name.rsplit("/", 1)[0] for name in data_files()}
    assert {"modcut/reading/prompts", "modcut/reading/schema", "modcut/reporting/templates"} <= folders


def test_a_wheel_carries_every_data_file(tmp_path: Path) -> None:
    for name in ("pip", "scikit_build_core"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the package {name} is not installed")
    command = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--config-settings=wheel.cmake=false", "-w"]
    built = subprocess.run(
        [sys.executable, "-m", "pip", *command, str(tmp_path), str(ROOT)], capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        missing = data_files() - set(archive.namelist())
    assert not missing, sorted(missing)
