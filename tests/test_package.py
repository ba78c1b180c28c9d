"""The package as a whole: importing it, its public names, and which part may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modcut

PACKAGE = Path(modcut.__file__).parent

# From the bottom up: a part imports from parts above its own line only. A new file gets a line here, with thought.
LAYERS = (
    ("_native", "_require", "_batches", "_arrays", "_transport", "_files", "_notebook", "_together", "provenance"),
    ("_problem",),
    ("tree",),
    ("_contract",),
    ("_engine",),
    ("_isolate", "_recheck", "_batch"),
    ("_recertify",),
    ("cuts",),
    ("graph",),
    ("testing", "controls", "metrics", "_affinity", "_kmeans", "treecut"),
    ("partition",),
    ("clustering", "improve"),
    ("blockmodel",),
    ("_fused",),
    ("ops", "_norms", "_terms", "_held", "_schedule", "_state", "_coarse", "_soft"),
    ("_leak", "_labels", "_forms", "_commit", "_sever"),
    ("_objective",),
    ("loss",),
    ("_budget",),
    ("optim",),
    ("integrations",),
    ("surgery", "specialise"),
    ("skills",),
    ("modules", "organisms", "capability", "data", "symmetries"),
    ("reading",),
    ("auditing",),
    ("reporting",),
    ("info",),
    ("loading",),
    ("pipeline", "demo"),
    ("training",),
    ("describing",),
    ("judging",),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imported_parts(source: str) -> set[str]:
    """The parts of modcut (first name after ``modcut.``) that a source file imports, at any depth of nesting."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "modcut":
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            parts.update(names)
        elif isinstance(node, ast.Import):
            parts.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("modcut."))
    return parts & (LEVEL.keys() | {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir()})


def backward_imports(part: str, source: str) -> list[str]:
    return [f"{part} imports {other}" for other in imported_parts(source) - {part} if LEVEL[other] >= LEVEL[part]]


def files() -> list[tuple[str, Path]]:
    found = [(p.relative_to(PACKAGE), p) for p in sorted(PACKAGE.rglob("*.py"))]
    return [(r.parts[0].removesuffix(".py"), p) for r, p in found if r.parts != ("__init__.py",)]


def test_every_part_has_a_layer() -> None:
    assert {part for part, _ in files()} <= LEVEL.keys()


def test_nothing_imports_from_a_layer_above_it() -> None:
    wrong = [w for part, path in files() for w in backward_imports(part, path.read_text(encoding="utf-8"))]
    assert not wrong


def test_the_layer_test_sees_a_backward_import_inside_a_function() -> None:
    assert backward_imports("cuts", "def f():\n    from modcut.graph.types import Space\n") == ["cuts imports graph"]
    assert backward_imports("graph", "from modcut import loss, provenance\n") == ["graph imports loss"]


@pytest.mark.parametrize("name", [n for n in modcut.__all__ if n != "__version__"])
def test_public_name_exists(name: str) -> None:
    assert getattr(modcut, name) is not None
    assert name in dir(modcut)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gomory'"):
        modcut.gomory  # noqa: B018


def test_version_has_one_value() -> None:
    from importlib.metadata import PackageNotFoundError, version

    assert re.fullmatch(r"\d+\.\d+\.\d+", modcut.__version__)
    try:
        installed = version("modcut")
    except PackageNotFoundError:
        pytest.skip("modcut runs from its source folder")
    assert installed == modcut.__version__


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent
    )


def test_importing_is_silent_and_loads_neither_torch_nor_the_compiled_part() -> None:
    done = run_python("import sys, modcut; print(sorted({'torch', 'numpy', 'modcut._native'} & set(sys.modules)))")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_optional_packages_are_not_imported_by_the_core() -> None:
    # torch itself imports triton, where it is installed, with parts that every user of torch.compiler loads
    optional = ("transformers", "openai", "igraph", "networkx", "matplotlib", "cupy", "modcut.ops.triton_kernels")
    code = (
        "import sys, modcut; [getattr(modcut, n) for n in modcut.__all__]; "
        f"print(sorted(set({optional}) & sys.modules.keys()))"
    )
    done = run_python(code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_no_path_of_anyones_machine_is_in_the_package() -> None:
    assert not [p.name for _, p in files() if re.search(r"/(home|Users|work)/\w+", p.read_text(encoding="utf-8"))]


class TestProvenance:
    def test_digest_is_of_names_shapes_types_and_bytes(self) -> None:
        import torch

        from modcut.provenance import digest

        a = torch.arange(6.0).reshape(2, 3)
        base = digest({"w": a})
        assert digest({"w": a.T.contiguous().T}) == base, "memory layout does not count"
        others = [
            {"v": a},
            {"w": a.reshape(3, 2)},
            {"w": a.double()},
            {"w": a + 1e-6},
            {"w": a, "b": torch.zeros(0)},
            {"w": -0.0 * a},
        ]
        assert len({base, *map(digest, others)}) == 1 + len(others)

    def test_digest_is_what_sha256_of_the_record_is(self) -> None:
        import hashlib

        import torch

        from modcut.provenance import digest

        record = b"w|torch.int64|[2]\n" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
        assert digest({"w": torch.tensor([1, 2])}) == hashlib.sha256(record).hexdigest()

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "bool", "uint8", "complex64"])
    def test_digest_takes_every_dtype(self, dtype: str) -> None:
        import torch

        from modcut.provenance import digest

        assert len(digest({"w": torch.zeros((), dtype=getattr(torch, dtype))})) == 64

    def test_digest_refuses_what_has_no_weights(self) -> None:
        from modcut.provenance import digest

        with pytest.raises(TypeError, match=r"model must be an nn\.Module or a state dict, got int"):
            digest(3)  # type: ignore[arg-type]

    def test_stamp_has_versions_and_is_json(self) -> None:
        import json

        from modcut.provenance import stamp

        made = stamp(seed=3)
        assert made["modcut"] == modcut.__version__
        assert made["seed"] == 3
        assert json.loads(json.dumps(made)) == made

    def test_stamp_survives_a_machine_without_git(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from modcut.provenance import stamp

        monkeypatch.setenv("PATH", "")
        assert stamp()["commit"] is None
