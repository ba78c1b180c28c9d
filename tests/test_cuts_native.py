"""The compiled engine refuses what breaks its contract (python/modcut/_native.pyi): no crash, no silent answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import maximum_flow

from modcut import testing
from modcut._arrays import capsule

native = pytest.importorskip("modcut._native")

W = testing.dense(6, 0)


def flow(**change: Any) -> Any:
    side = change.pop("side", None)
    side = torch.zeros(change.get("n", 6), dtype=torch.bool) if side is None else side
    block = (capsule(W), 0, 0, True)
    call = {"n": 6, "blocks": [block], "csr": None, "s": 0, "t": 5, "settings": {}} | change
    side_out = side if not isinstance(side, torch.Tensor) else capsule(side)
    return native.max_flow(call["n"], call["blocks"], call["csr"], call["s"], call["t"], side_out, call["settings"])


def tree(n: int = 6, **outputs: torch.Tensor) -> Any:
    given = {
        "parent": torch.zeros(n, dtype=torch.int64),
        "weight": torch.zeros(n, dtype=torch.float64),
        "lower": torch.zeros(n, dtype=torch.float64),
        "certified": torch.zeros(n, dtype=torch.uint8),
    } | outputs
    return native.gomory_hu(n, [(capsule(W), 0, 0, True)], None, *[capsule(x) for x in given.values()], {})


def csr(indptr: list[int], indices: list[int], data: list[float]) -> Any:
    arrays = torch.tensor(indptr), torch.tensor(indices), torch.tensor(data, dtype=torch.float64)
    return tuple(capsule(x) for x in arrays)


def test_the_contract_is_met_by_good_input() -> None:
    assert flow()["exact"]
    assert flow(blocks=[], csr=csr([0, 1, 2], [1, 0], [2.0, 2.0]), n=2, t=1)["value"] == 2.0
    assert tree()["exact"]


@pytest.mark.parametrize(
    "block",
    [
        (W, 0, 0, True),  # not a capsule
        (None, 0, 0, True),
        (capsule(W.to(torch.float16)), 0, 0, True),
        (capsule(W.to(torch.complex64)), 0, 0, True),
        (capsule(W.to(torch.int32)), 0, 0, True),
        (capsule(W.flatten()), 0, 0, True),
        (capsule(W[:, :5]), 0, 0, True),  # symmetric, not square
        (capsule(W), 0, 1, True),  # symmetric, offsets differ
        (capsule(W), 1, 1, True),  # runs over the end
        (capsule(W), -1, -1, True),
        (capsule(W[:2, :3].clone()), 0, 4, False),
        (capsule(W.double().T[:, ::2]), 0, 0, False),  # columns with a stride
        (capsule(W), 0, 0),
        (capsule(W), "0", 0, True),
    ],
    ids=[
        "tensor",
        "none",
        "float16",
        "complex",
        "int32",
        "vector",
        "not square",
        "offsets differ",
        "over the end",
        "negative offset",
        "columns over the end",
        "column stride",
        "three fields",
        "offset of text",
    ],
)
def test_bad_blocks_are_refused(block: tuple[Any, ...]) -> None:
    with pytest.raises((ValueError, TypeError)):
        flow(blocks=[block])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bad_entries_are_refused_with_their_place(value: float, dtype: torch.dtype) -> None:
    w = W.to(dtype)
    w[1, 3] = w[3, 1] = value
    with pytest.raises(ValueError, match=r"1, 3|3, 1"):
        flow(blocks=[(capsule(w), 0, 0, True)])


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (([0, 1], [1, 0], [1.0, 1.0]), "indptr too short"),
        (([0, 1, 5], [1, 0], [1.0, 1.0]), "indptr over the end"),
        (([0, 2, 1], [1, 0], [1.0, 1.0]), "indptr falls"),
        (([1, 1, 2], [1, 0], [1.0, 1.0]), "indptr starts late"),
        (([0, 1, 2], [1, 7], [1.0, 1.0]), "index over the end"),
        (([0, 1, 2], [-1, 0], [1.0, 1.0]), "negative index"),
        (([0, 1, 2], [1, 0], [1.0]), "data too short"),
        (([0, 1, 2], [1, 0], [float("nan"), 1.0]), "NaN"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_rows_are_refused(rows: tuple[list[int], list[int], list[float]], what: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        flow(n=2, t=1, blocks=[], csr=csr(*rows))


@pytest.mark.parametrize("change", [{"s": 6}, {"t": -1}, {"s": 5}, {"n": -1}, {"n": 3}, {"csr": 3}, {"blocks": None}])
def test_bad_arguments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        flow(side=torch.zeros(6, dtype=torch.bool), **change)


@pytest.mark.parametrize(
    "outputs",
    [
        {"parent": torch.zeros(6, dtype=torch.int32)},
        {"parent": torch.zeros(5, dtype=torch.int64)},
        {"weight": torch.zeros(6)},
        {"lower": torch.zeros(12, dtype=torch.float64)[::2]},
        {"certified": torch.zeros(6, dtype=torch.int64)},
    ],
    ids=["dtype", "length", "float32", "stride", "int64"],
)
def test_bad_outputs_are_refused(outputs: dict[str, torch.Tensor]) -> None:
    with pytest.raises((ValueError, TypeError)):
        tree(**outputs)


def test_a_bad_side_is_refused() -> None:
    for side in (torch.zeros(5, dtype=torch.bool), torch.zeros(6), np.zeros(6, dtype=bool)):
        with pytest.raises((ValueError, TypeError)):
            flow(side=side)


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": "2"}, {"flow": "magic"}, {"representation": "dense"}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        flow(settings=settings)


def test_one_flow_over_rows_does_not_crawl() -> None:
    """Parallel chains of random capacities, cross-linked (Washington's random level graphs): blocking flows crawl."""
    rng, width, levels = np.random.default_rng(0), 16, 300
    n = width * levels + 2
    r, c = np.divmod(np.arange(width * (levels - 1)), width)
    x, y = np.repeat(r * width + c, 3), np.repeat((r + 1) * width, 3) + rng.integers(0, width, 3 * len(r))
    s, t = np.full(width, n - 2), np.full(width, n - 1)
    first, last = np.arange(width), width * (levels - 1) + np.arange(width)
    i, j = np.concatenate([x, s, last]), np.concatenate([y, first, t])
    upper = sp.coo_array((np.concatenate([rng.integers(1, 10_000, len(x)), np.full(2 * width, 10**6)]), (i, j)), (n, n))
    a = sp.csr_array(upper + upper.T)
    rows = tuple(torch.from_numpy(v.astype(np.int64)) for v in (a.indptr, a.indices, a.data))
    found = {}
    for method in ("auto", "augment", "push_relabel"):
        side = torch.zeros(n, dtype=torch.bool)
        found[method] = native.max_flow(
            n, [], tuple(capsule(v) for v in rows), n - 2, n - 1, capsule(side), {"flow": method}
        )
    assert found["auto"]["flow"] == "push_relabel"
    assert found["auto"]["work"] < found["augment"]["work"] / 2
    expected = maximum_flow(a.astype(np.int32), n - 2, n - 1).flow_value
    assert {r["value"] for r in found.values()} == {expected}


@pytest.mark.parametrize("representation", ["block", "csr"])
@pytest.mark.parametrize("method", ["augment", "push_relabel"])
@pytest.mark.parametrize("family", sorted(testing.FAMILIES))
def test_every_way_to_run_a_flow_gives_the_same_value(family: str, method: str, representation: str) -> None:
    w = testing.FAMILIES[family](15, 1)
    n = w.shape[0]
    side = torch.zeros(n, dtype=torch.bool)
    how = {"representation": representation, "flow": method}
    r = native.max_flow(n, [(capsule(w), 0, 0, True)], None, 0, n - 1, capsule(side), how)
    assert (r["representation"], r["flow"]) == (representation, method)
    assert r["value"] == pytest.approx(testing.reference_min_cut(w, 0, n - 1)[0], rel=1e-12)
    assert w[side][:, ~side].sum().item() == pytest.approx(r["value"], rel=1e-12)
    assert side[0]
    assert not side[n - 1]
