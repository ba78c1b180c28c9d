"""What holds on a CUDA device; skipped where there is none (``benchmarks/gpu_check.sh`` runs these first)."""

from __future__ import annotations

import pytest
import torch

import modcut
from modcut import _native
from modcut._arrays import capsule

pytestmark = pytest.mark.gpu


def degree(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # NaN, so that an entry that the kernel leaves unwritten shows.
    rows = torch.full((w.shape[0],), float("nan"), dtype=torch.float64, device=w.device)
    cols = torch.full((w.shape[1],), float("nan"), dtype=torch.float64, device=w.device)
    _native.degree_cuda(capsule(w), capsule(rows), capsule(cols), torch.cuda.current_stream(w.device).cuda_stream)
    return rows, cols


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (31, 33), (257, 1023), (70000, 3), (768, 3072)])
def test_strengths_on_the_device_equal_the_sums(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = torch.randn(shape, dtype=dtype, device="cuda")
    rows, cols = degree(w)
    torch.testing.assert_close(rows, w.double().abs().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(cols, w.double().abs().sum(0), rtol=1e-12, atol=0)


def test_rows_may_be_strided() -> None:
    w = torch.randn(64, 200, device="cuda")[:, 40:170]
    rows, cols = degree(w)
    torch.testing.assert_close(rows, w.double().abs().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(cols, w.double().abs().sum(0), rtol=1e-12, atol=0)


def test_the_same_bits_every_time_and_on_any_stream() -> None:
    w = torch.randn(1000, 777, device="cuda")
    first = degree(w)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        again = degree(w)
    torch.cuda.synchronize()
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_an_output_on_the_host_is_refused() -> None:
    w = torch.randn(4, 5, device="cuda")
    out = torch.zeros(4, dtype=torch.float64), torch.zeros(5, dtype=torch.float64, device="cuda")
    with pytest.raises((ValueError, TypeError), match="row_out"):
        _native.degree_cuda(capsule(w), capsule(out[0]), capsule(out[1]), 0)


def test_trees_of_device_weights_equal_those_of_host_weights() -> None:
    a = torch.rand(60, 60, dtype=torch.float64)
    a = a + a.T
    host, device = modcut.gomory_hu_tree(a), modcut.gomory_hu_tree(a.cuda())
    assert torch.equal(host.parent, device.parent) and torch.equal(host.weight, device.weight)


def test_graph_and_loss_of_a_device_model_equal_those_on_the_host() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU())
    model.append(torch.nn.Linear(32, 3))
    host = modcut.weight_graph(model).to_dense()
    value = float(modcut.ModularityLoss(model, k=4, partition=modcut.find_modules(model, k=4))())
    model.cuda()
    torch.testing.assert_close(modcut.weight_graph(model).to_dense(), host)
    loss = modcut.ModularityLoss(model, k=4, partition=modcut.find_modules(model, k=4))()
    assert loss.device.type == "cuda"
    assert float(loss) == pytest.approx(value, rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
