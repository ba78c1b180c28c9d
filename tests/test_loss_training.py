"""The loss in training: its schedule, state, hooks, and every way of taking a step."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import hand_built
import modcut
from modcut.loss import ModularityLoss


def mlp(*sizes: int, seed: int = 0) -> nn.Sequential:
    return hand_built.mlp(sizes, seed)[0]


def two_tasks(n: int = 512, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two independent problems side by side: the first half of the outputs depends on the first half of the inputs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=g)
    y = torch.cat([torch.sin(2 * x[:, :4]).cumsum(1), torch.sin(2 * x[:, 4:]).cumsum(1)], 1)
    return x, y


def train(model: nn.Module, crit: ModularityLoss | None, steps: int = 200, lr: float = 3e-3, seed: int = 0) -> float:
    """Train on two_tasks and return the task loss at the end."""
    x, y = two_tasks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        i = torch.randint(0, len(x), (64,), generator=g)
        loss = F.mse_loss(model(x[i]), y[i])
        (loss if crit is None else loss + crit()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if crit is not None:
            crit.step()
    with torch.no_grad():
        return float(F.mse_loss(model(x), y))


def halves(model: nn.Module) -> Tensor:
    """Labels 0 and 1 for the first and second half of every layer."""
    graph = modcut.weight_graph(model)
    labels = torch.zeros(graph.n, dtype=torch.int64)
    for s in graph.spaces:
        labels[s.offset + s.size // 2 : s.offset + s.size] = 1
    return labels


# ---- it does its job -------------------------------------------------------------------------------------------------
def test_training_with_the_loss_lowers_the_leak_at_nearly_the_same_task_loss() -> None:
    plain, modular = mlp(8, 24, 24, 24, 8), mlp(8, 24, 24, 24, 8)
    labels = halves(plain)
    without = train(plain, None, 600)
    crit = ModularityLoss(modular, partition=labels, lam=1.0, inputs=0.5)
    before = crit.leak().item()
    with_loss = train(modular, crit, 600)
    assert before > 0.4 and crit.leak().item() < 0.1
    assert with_loss < without * 1.1 + 0.02, (with_loss, without)


def test_gradient_descent_on_the_loss_alone_reaches_zero_leak() -> None:
    model = mlp(6, 8, 8, 8, 4)
    crit = ModularityLoss(model, partition=halves(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        crit().backward()
        optimizer.step()
    assert crit.leak().item() < 0.01


# ---- schedule --------------------------------------------------------------------------------------------------------
def test_warm_up_then_functional_partition_then_ramp_then_hold() -> None:
    model = mlp(8, 16, 16, 8)
    crit = ModularityLoss(model, k=2, warmup=5, ramp=4, lam=0.5)
    x, y = two_tasks()
    assert crit.partition is None and crit.phase == "warm-up"
    weights = []
    for i in range(10):
        value = crit()
        weights.append(crit.weight)
        if i < 5:
            assert value.item() == 0
            value.backward()  # zero still supports backward
            with pytest.raises(RuntimeError, match="needs a partition"):
                crit.leak()
        else:
            assert value.item() == pytest.approx(0.5 * crit.weight * crit.leak().item())
        F.mse_loss(model(x[:32]), y[:32]).backward()
        crit.step()
    assert weights == [0] * 5 + [0.25, 0.5, 0.75, 1, 1] and crit.phase == "hold"
    assert crit.partition_origin == "functional, from 160 samples"
    assert crit.partition is not None and crit.partition.k == 2 and crit.partition.meta["step"] == 5
    crit.close()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_without_usage_the_partition_comes_from_the_weights_and_says_so() -> None:
    model = mlp(8, 16, 16, 8)
    crit = ModularityLoss(model, k=2, warmup=2)
    crit.step()
    crit.step()
    assert crit.partition_origin.startswith("spectral, from the weights alone (0 samples with a backward pass")
    assert ModularityLoss(model, k=2, warmup=0).partition_origin.startswith(
        "spectral, from the weights alone (no usage"
    )


def test_data_gives_a_functional_partition_at_once() -> None:
    model = mlp(8, 16, 16, 8)
    x, y = two_tasks(64)
    crit = ModularityLoss(model, k=2, data=[(x, y)])
    assert crit.partition_origin == "functional, from 64 samples" and crit.weight == 1


def test_functional_partition_finds_two_planted_tasks() -> None:
    torch.manual_seed(0)
    model = mlp(8, 16, 16, 8)
    labels = halves(model)
    graph = modcut.weight_graph(model)
    with torch.no_grad():
        for name, mask in modcut.partition.cross_masks(graph, labels).items():  # type: ignore[attr-defined]
            model.get_parameter(name)[mask] = 0
    x, _ = two_tasks(256)
    task = torch.arange(256) % 2  # each sample asks for one of the two halves
    want = torch.zeros(256, 8)
    for t in (0, 1):
        want[task == t, 4 * t : 4 * t + 4] = 3.0
    x[task == 0, 4:] = 0
    x[task == 1, :4] = 0

    def loss_fn(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        mask = (batch[1] != 0).float()
        return ((m(batch[0]) - batch[1]) * mask).square().sum()

    crit = ModularityLoss(model, k=2, data=[(x, want)], loss_fn=loss_fn)
    hidden = torch.cat([torch.arange(s.offset, s.offset + s.size) for s in graph.spaces if s.kind == "hidden"])
    agreement = (crit.labels[hidden] == labels[hidden]).float().mean().item()
    assert max(agreement, 1 - agreement) > 0.9


def test_refresh_keeps_names_and_never_raises_the_leak() -> None:
    model = mlp(8, 16, 16, 16, 8)
    crit = ModularityLoss(model, k=2, warmup=0, refresh=3, seed=1)
    for _ in range(7):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
        old, before = crit.labels.clone(), crit.leak().item()
        crit.step()
        if not torch.equal(old, crit.labels):
            assert crit.leak().item() < before and (old == crit.labels).float().mean() >= 0.5
            assert "refreshed at step" in crit.partition_origin


def test_warns_once_when_the_schedule_never_advances() -> None:
    crit = ModularityLoss(mlp(8, 16, 16, 8), k=2, warmup=10)
    with pytest.warns(UserWarning, match=r"crit\.step\(\) never"):
        for _ in range(100):
            crit()
    with warnings.catch_warnings(record=True) as later:
        warnings.simplefilter("always")
        for _ in range(100):
            crit()
    assert not [w for w in later if "crit.step()" in str(w.message)]


# ---- hooks and norms -------------------------------------------------------------------------------------------------
def test_norms_are_gathered_in_training_passes_only() -> None:
    model = mlp(4, 6, 6, 3)
    crit = ModularityLoss(model, partition=halves(model))
    model.eval()
    model(torch.randn(8, 4))
    assert not crit.norms.mass.any()
    model.train()
    crit.eval()
    model(torch.randn(8, 4))
    assert not crit.norms.mass.any()
    crit.train()
    x = torch.randn(8, 4)
    model(x)
    want = torch.relu(model[0](x)).square().mean(0).sqrt()
    torch.testing.assert_close(crit.scales()["2.weight"], want.detach())
    crit.close()
    mass = crit.norms.mass.clone()
    model(x)
    assert torch.equal(crit.norms.mass, mass) and crit().item() > 0


def test_an_overflowing_pass_does_not_poison_the_norms() -> None:
    model = mlp(4, 6, 6, 3)
    crit = ModularityLoss(model, partition=halves(model))
    x = torch.randn(8, 4)
    model(x)
    want = crit.scales()["2.weight"].clone()
    model(x * torch.inf)
    torch.testing.assert_close(crit.scales()["2.weight"], want)


def test_every_kind_of_input_is_measured() -> None:
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(5, 2, 8, 8)
    crit = ModularityLoss(conv, k=2, warmup=0, inputs=1.0, example_inputs=x)
    conv(x)
    scales = crit.scales()
    torch.testing.assert_close(scales["0.weight"], x.square().mean((0, 2, 3)).sqrt())
    torch.testing.assert_close(scales["2.weight"], torch.relu(conv[0](x)).square().mean((0, 2, 3)).sqrt().detach())
    model, tokens = hand_built.gpt()[0], torch.randint(12, (4, 10))
    crit = ModularityLoss(model, k=2, warmup=0, inputs=1.0, example_inputs=tokens)
    model(tokens)
    share = torch.bincount(tokens.flatten(), minlength=12).float() / 40
    torch.testing.assert_close(crit.scales()["emb.weight"], share.sqrt())


def test_the_loss_and_its_model_do_not_keep_each_other_alive() -> None:
    model = mlp(4, 6, 6, 3)
    crit = ModularityLoss(model, partition=halves(model))
    gone = weakref.ref(crit)
    del crit
    gc.collect()
    assert gone() is None
    model(torch.randn(2, 4))  # orphaned hooks do nothing
    crit = ModularityLoss(model, partition=halves(model))
    model_gone = weakref.ref(model)
    del model
    gc.collect()
    assert model_gone() is None and crit.labels.numel() == 19


# ---- state -----------------------------------------------------------------------------------------------------------
def test_state_round_trip_through_safetensors(tmp_path: Path) -> None:
    model = mlp(8, 16, 16, 8)
    crit = ModularityLoss(model, k=2, warmup=3, ramp=10)
    train(model, crit, 7)
    save_file(crit.state_dict(), tmp_path / "crit.safetensors")
    other = ModularityLoss(model, k=2, warmup=3, ramp=10)
    other.load_state_dict(load_file(tmp_path / "crit.safetensors"))
    assert torch.equal(other.labels, crit.labels) and other.steps == 7 and other.weight == crit.weight == 0.5
    assert other.partition_origin == crit.partition_origin and other.phase == "ramp"
    assert other().item() == crit().item() > 0
    with pytest.raises(ValueError, match=r"k = 3\), got k = 2"):
        ModularityLoss(model, k=3).load_state_dict(crit.state_dict())


def test_resumed_training_goes_on_exactly(tmp_path: Path) -> None:
    def run(stop: int | None) -> tuple[nn.Module, ModularityLoss]:
        model = mlp(8, 16, 16, 8)
        crit = ModularityLoss(model, partition=halves(model), ramp=20)
        x, y = two_tasks()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for i in range(30):
            if i == stop:
                state = copy.deepcopy((model.state_dict(), crit.state_dict(), optimizer.state_dict()))
                model = mlp(8, 16, 16, 8, seed=9)
                crit = ModularityLoss(model, partition=halves(model).flip(0), ramp=20)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
                for thing, s in zip((model, crit, optimizer), state, strict=True):
                    thing.load_state_dict(s)
            (F.mse_loss(model(x[i * 8 : i * 8 + 8]), y[i * 8 : i * 8 + 8]) + crit()).backward()
            optimizer.step()
            optimizer.zero_grad()
            crit.step()
        return model, crit

    a, b = run(None), run(13)
    assert a[1]().item() == b[1]().item()
    assert all(torch.equal(p, q) for p, q in zip(a[0].parameters(), b[0].parameters(), strict=True))


def test_a_copied_loss_belongs_to_the_copied_model() -> None:
    model = mlp(4, 6, 6, 3)
    crit = ModularityLoss(model, partition=halves(model), ramp=7)
    crit.step()
    alone = copy.deepcopy(crit)
    assert alone.model is model and alone().item() == crit().item() and alone.steps == 1
    pair = copy.deepcopy(nn.ModuleDict({"model": model, "crit": crit}))
    assert pair["crit"].model is pair["model"]
    pair["crit"]().backward()
    assert model[2].weight.grad is None and pair["model"][2].weight.grad is not None
    with pytest.raises(TypeError, match="state_dict"):
        copy.copy(crit).__reduce__()


def test_model_with_hooks_can_be_saved_whole(tmp_path: Path) -> None:
    model = mlp(4, 6, 6, 3)
    crit = ModularityLoss(model, partition=halves(model))
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded(x), model(x))
    assert crit().item() > 0


def test_follows_its_model_to_another_dtype() -> None:
    model = mlp(4, 6, 6, 3)
    crit = ModularityLoss(model, partition=halves(model))
    model(torch.randn(8, 4))
    single = crit().item()
    model.double()
    assert crit().dtype == torch.float64 and crit().item() == pytest.approx(single, rel=1e-6)
    model.to(torch.bfloat16)
    assert crit().dtype == torch.float32 and crit().item() == pytest.approx(single, rel=2e-2)
    crit().backward()
    assert model[2].weight.grad is not None and model[2].weight.grad.dtype == torch.bfloat16


# ---- ways of taking a step -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["AdamW", "SGD", "LBFGS"])
def test_optimizers(name: str) -> None:
    model = mlp(8, 16, 16, 8)
    crit = ModularityLoss(model, partition=halves(model), inputs=0.5)
    x, y = two_tasks(128)
    lr = {"AdamW": 1e-2, "SGD": 0.3, "LBFGS": 0.5}[name]
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=lr)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y) + crit()
        loss.backward()
        return loss

    before = crit().item(), F.mse_loss(model(x), y).item()
    for _ in range(40 if name != "LBFGS" else 5):
        optimizer.step(closure)
        crit.step()
    assert crit().item() < before[0] and F.mse_loss(model(x), y).item() < before[1]


def test_autocast_with_bfloat16() -> None:
    model = mlp(8, 16, 16, 8)
    crit = ModularityLoss(model, partition=halves(model))
    x, y = two_tasks(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = crit()
        (F.mse_loss(model(x), y) + value).backward()
    outside = ModularityLoss(model, partition=halves(model))()
    assert value.dtype == torch.float32 and value.item() == outside.item()


def test_accumulated_micro_batches_give_the_gradient_of_one_batch() -> None:
    model = mlp(8, 16, 16, 8)
    crit = ModularityLoss(model, partition=halves(model))
    model(two_tasks(64)[0])
    crit.close()
    want = torch.autograd.grad(crit(), model[2].weight)[0]
    for _ in range(4):
        (crit() / 4).backward()
    torch.testing.assert_close(model[2].weight.grad, want)


def test_compiled_loss_and_compiled_model() -> None:
    model = mlp(8, 16, 16, 8)
    crit = ModularityLoss(model, partition=halves(model))
    x, y = two_tasks(64)
    model(x)
    value, grad = crit(), torch.autograd.grad(crit(), model[2].weight)[0]
    compiled = torch.compile(crit, backend="aot_eager", fullgraph=True)
    out = compiled()
    torch.testing.assert_close(out, value)
    torch.testing.assert_close(torch.autograd.grad(out, model[2].weight)[0], grad)
    crit.step()
    crit.lam = 3.0
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(), 3 * value)
    fast = torch.compile(model, backend="aot_eager")
    wrapped = ModularityLoss(fast, partition=crit.labels)
    assert wrapped.model is model
    (F.mse_loss(fast(x), y) + wrapped()).backward()
    torch.testing.assert_close(wrapped.scales()["2.weight"], crit.scales()["2.weight"])


def test_activation_checkpointing_changes_nothing() -> None:
    from torch.utils.checkpoint import checkpoint_sequential

    model = mlp(8, 16, 16, 8)
    crit = ModularityLoss(model, partition=halves(model))
    x = two_tasks(64)[0].requires_grad_()
    checkpoint_sequential(model, 2, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(crit.scales()["2.weight"], torch.relu(model[0](x)).square().mean(0).sqrt().detach())
