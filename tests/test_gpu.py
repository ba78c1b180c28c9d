"""What holds on a CUDA device; skipped where there is none (``benchmarks/gpu_check.sh`` runs these first)."""

from __future__ import annotations

import pytest
import torch

import modcut
from modcut import _native
from modcut._arrays import capsule
from modcut.cuts import gomory_hu_trees

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_fused_loss_equals_the_reference(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from modcut.ops import reference
    from modcut.ops.triton_share import TritonShare

    shapes = [(70, 64), (33, 1024), (9, 4096), (5, 8200), (17, 33), (4, 0), (0, 4)]
    weights = [torch.randn(s, device="cuda").to(dtype) for s in shapes]
    weights += [torch.randn(s, device="cuda").to(dtype).t() for s in ((300, 128), (31, 45))]
    rows, cols = (sum(w.shape[i] for w in weights) for i in (0, 1))
    row, col = torch.randint(-1, 3, (rows,), device="cuda"), torch.randint(-1, 3, (cols,), device="cuda")
    scales, a = torch.rand(cols, device="cuda") + 0.1, torch.randn(rows, device="cuda")
    kernel = TritonShare(weights, row, col, 3)
    runs = []
    for _ in range(2):
        grads = [torch.full_like(w, float("nan")) for w in weights]
        runs.append((*kernel.run(weights, grads, scales, a), *grads))
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True)), "the same bits every time"
    shrunk = [w.clone() for w in weights]
    kernel.shrink_(shrunk, scales, a.abs())
    leak, i, j = runs[0][1], 0, 0
    tight = 2e-5 if dtype == torch.float32 else 1e-2
    for w, grad, small in zip(weights, runs[0][3:], shrunk, strict=True):
        r, c = slice(i, i + w.shape[0]), slice(j, j + w.shape[1])
        known = (w.double(), scales[c].double(), row[r], col[c])
        torch.testing.assert_close(leak[r].double(), reference.leak_of(*known)[0], rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(grad.double(), reference.gradient_of(a[r].double(), *known), rtol=tight, atol=1e-6)
        want = reference.shrunk(*known, a.abs()[r, None].double())
        torch.testing.assert_close(small.double(), want, rtol=tight, atol=1e-6)
        i, j = r.stop, c.stop


def test_the_loss_and_its_proximal_step_do_not_wait_for_the_device() -> None:
    pytest.importorskip("triton")
    from modcut.optim import Proximal

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)
    ).cuda()
    crit = modcut.ModularityLoss(model, k=4, partition=modcut.find_modules(model, k=4), inputs=1.0)
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), crit)
    x = torch.randn(32, 8, device="cuda")
    for i in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        # The first rounds measure norms, compile the kernels and lay out tables.
        torch.cuda.set_sync_debug_mode("error" if i == 3 else "default")
        try:
            crit().backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert crit._choice == "triton"


def test_the_kernels_can_be_captured_in_a_graph() -> None:
    pytest.importorskip("triton")
    from modcut.ops.triton_share import TritonShare

    w = torch.randn(64, 128, device="cuda")
    labels = torch.arange(64, device="cuda") % 2, torch.arange(128, device="cuda") % 2
    kernel = TritonShare([w], *labels, 2)
    scales, steps = torch.ones(128, device="cuda"), torch.full((64,), 0.5, device="cuda")
    want = w.clone()
    for _ in range(2):
        kernel.shrink_([want], scales, steps)
    kernel.shrink_([w], scales, torch.zeros_like(steps))  # compiles, and lays out the table
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.shrink_([w], scales, steps)
    for _ in range(2):
        graph.replay()
    torch.testing.assert_close(w, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize("n", [1, 2, 31, 33, 130, 256])
def test_batched_trees_equal_the_hosts_bit_for_bit(n: int, dtype: torch.dtype) -> None:
    w = torch.rand(5, n, n) if dtype.is_floating_point else torch.randint(0, 1000, (5, n, n))
    w = (torch.triu(w) + torch.triu(w, 1).transpose(1, 2)).to(dtype)
    host, device = gomory_hu_trees(w), gomory_hu_trees(w.cuda())
    for a, b in zip((host.parent, host.weight, host.lower), (device.parent, device.weight, device.lower), strict=True):
        assert torch.equal(a, b.cpu())


def test_batched_trees_refuse_mixed_devices_and_a_short_workspace() -> None:
    w = torch.ones(2, 600, 600, device="cuda")
    parent = torch.zeros(2, 600, dtype=torch.int64, device="cuda")
    weight, lower = torch.zeros(2, 2, 600, dtype=torch.float64, device="cuda")
    status, room = torch.zeros(2, 4, dtype=torch.int64, device="cuda"), torch.zeros(8, dtype=torch.uint8, device="cuda")
    with pytest.raises(ValueError, match="parent_out must be on a CUDA device"):
        _native.gomory_hu_batch_cuda(*map(capsule, (w, parent.cpu(), weight, lower, status, room)), 0)
    with pytest.raises(RuntimeError, match="needs a workspace of"):
        _native.gomory_hu_batch_cuda(*map(capsule, (w, parent, weight, lower, status, room)), 0)
