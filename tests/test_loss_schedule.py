"""The schedule's end, the commit, and the budget: what they promise, and that an interrupted run goes on exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import hand_built
import modcut
from modcut.loss import ModularityLoss
from modcut.optim import Budget, Proximal
from modcut.surgery import removed


def task(n: int = 512) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=g)
    return x, torch.cat([torch.sin(2 * x[:, :4]).cumsum(1), torch.sin(2 * x[:, 4:]).cumsum(1)], 1)


X, Y = task()


def mlp(seed: int = 0) -> nn.Sequential:
    return hand_built.mlp((8, 16, 16, 16, 8), seed)[0]


def evaluate(model: nn.Module) -> float:
    with torch.no_grad():
        return float(F.mse_loss(model(X), Y))


def train(model: nn.Module, crit: ModularityLoss, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for i in steps:
        g = torch.Generator().manual_seed(i)
        j = torch.randint(0, len(X), (64,), generator=g)
        loss = F.mse_loss(model(X[j]), Y[j])
        if not isinstance(optimizer, Proximal):
            loss = loss + crit()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        crit.step()


# ---- schedule --------------------------------------------------------------------------------------------------------
def test_steps_follow_from_the_length_of_training() -> None:
    crit = ModularityLoss(mlp(), k=2, total_steps=1000, interface=0.1)
    s = crit.schedule
    assert (s.warmup, s.ramp, s.commit) == (100, 300, 780)
    assert ModularityLoss(mlp(), k=2, total_steps=100_000).schedule.warmup == 200
    assert ModularityLoss(mlp(), k=2, total_steps=1000).schedule.commit is None
    given = ModularityLoss(mlp(), partition=torch.arange(64) % 2, total_steps=1000, interface=0.0)
    assert (given.schedule.warmup, given.schedule.ramp) == (0, 300)


def test_phases_come_in_their_order() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, total_steps=50, interface=0.0)
    phases = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for i in range(50):
        phases.append(crit.phase)
        train(model, crit, optimizer, range(i, i + 1))
    assert list(dict.fromkeys(phases)) == ["warm-up", "ramp", "hold", "committed"]
    assert [phases.index(p) for p in ("ramp", "hold", "committed")] == [5, 5 + 14, 39]
    assert crit().item() == 0 and crit.weight == 0


def test_a_schedule_longer_than_training_is_refused() -> None:
    for kwargs, sentence in (
        (
            {"warmup": 80, "ramp": 30, "total_steps": 100},
            r"warmup \+ ramp must fit before total_steps \(100\), got 80 \+ 30",
        ),
        ({"warmup": 60, "ramp": 30, "commit": 70}, r"warmup \+ ramp must fit before commit \(70\), got 60 \+ 30"),
        ({"commit": 200, "total_steps": 100, "ramp": 10}, r"commit must be at most total_steps \(100\), got 200"),
        ({"interface": 0.1}, r"interface=0.1 needs total_steps \(or commit\)"),
        ({"interface": 1.5, "total_steps": 10}, r"interface must be in \[0, 1\], got 1.5"),
        ({"total_steps": 0}, "total_steps must be an integer of at least 1, got 0"),
        ({"refresh": 0}, "refresh must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ModularityLoss(mlp(), k=2, **kwargs)  # type: ignore[arg-type]


def test_refresh_stops_half_way_to_the_commit() -> None:
    s = ModularityLoss(mlp(), k=2, total_steps=1000, interface=0.0, refresh=50).schedule
    assert s.refreshes(150, 100, 50) and s.refreshes(400, 100, 50)
    assert not s.refreshes(450, 100, 50) and not s.refreshes(175, 100, 50)


# ---- commit ----------------------------------------------------------------------------------------------------------
OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.95, weight_decay=0.01, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("interface", [0.0, 0.1])
def test_held_weights_stay_exactly_zero_whatever_the_optimizer_remembers(name: str, interface: float) -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, warmup=5, ramp=5, interface=interface, commit=40)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, crit, optimizer, range(41))
    assert crit.committed and crit.partition is not None
    masks = modcut.partition.cross_masks(crit.graph, crit.partition.labels)  # type: ignore[attr-defined]
    inner = ("2.weight", "4.weight")
    cross = sum(int(masks[n].sum()) for n in inner)
    assert crit.cross_edges == cross and crit.interface_edges == round(interface * cross)
    kept = {n: masks[n] & (model.get_parameter(n) != 0) for n in inner}
    before = {n: model.get_parameter(n).detach().clone() for n in inner}
    for i in range(41, 60):
        train(model, crit, optimizer, range(i, i + 1))
        for n in inner:
            assert torch.equal(masks[n] & (model.get_parameter(n) != 0), kept[n])
    assert sum(int(k.sum()) for k in kept.values()) == crit.interface_edges
    for n in inner:
        moved = model.get_parameter(n) != before[n]
        assert bool(moved[~masks[n]].all()) and bool(moved[kept[n]].all()), "everything else still learns"


def test_the_interface_is_the_largest_shares_over_all_layers() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, warmup=0)
    model(X)
    strengths, crossing = crit.cross_parts()
    shares = torch.cat([(a / a.sum(1, keepdim=True))[c] for a, c in zip(strengths, crossing, strict=True)])
    values = torch.cat([model[i].weight.detach()[c] for i, c in zip((2, 4), crossing, strict=True)])
    assert crit.commit(0.25) == round(0.25 * len(shares))
    left = torch.cat([model[i].weight.detach()[c] for i, c in zip((2, 4), crossing, strict=True)]) != 0
    assert float(shares[left].min()) >= float(shares[~left].max())
    assert torch.equal(
        values[left], torch.cat([model[i].weight.detach()[c] for i, c in zip((2, 4), crossing, strict=True)])[left]
    )


def test_cut_and_run_changes_nothing_after_a_commit_to_zero() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, total_steps=60, interface=0.0)
    train(model, crit, torch.optim.AdamW(model.parameters(), lr=1e-2), range(60))
    assert crit.partition is not None
    masks = modcut.partition.cross_masks(crit.graph, crit.partition.labels)  # type: ignore[attr-defined]
    inner = {n: masks[n] for n in ("2.weight", "4.weight")}  # inputs and outputs are on a dial of 0
    model.eval()
    uncut = evaluate(model)
    with removed(model, crit.graph, inner):
        assert evaluate(model) == uncut


def test_commit_asks_for_what_it_needs() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, warmup=5)
    with pytest.raises(RuntimeError, match="no partition to commit to before the warm-up is over"):
        crit.commit(0.1)
    crit = ModularityLoss(model, k=2, warmup=0)
    with pytest.raises(ValueError, match="interface must say which share"):
        crit.commit()
    with pytest.raises(ValueError, match=r"interface must be in \[0, 1\], got 2"):
        crit.commit(2)
    crit.commit(0.0)
    with pytest.raises(RuntimeError, match="the interface of 0 weights is fixed already"):
        crit.commit(0.1)


def test_closing_after_a_commit_leaves_no_hook() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, warmup=0)
    crit.commit(0.0)
    crit.close()
    model(X).sum().backward()
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert bool((model[2].weight.grad[crit.cross_parts()[1][0]] != 0).any())


def test_proximal_holds_the_interface_too() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, total_steps=60, interface=0.05)
    optimizer = Proximal(torch.optim.AdamW(model.parameters(), lr=1e-2), crit)
    train(model, crit, optimizer, range(55))
    crossing = crit.cross_parts()[1]
    F.mse_loss(model(X), Y).backward()
    optimizer.step()  # without crit.step(): zero all the same
    count = sum(int((model[i].weight[c] != 0).sum()) for i, c in zip((2, 4), crossing, strict=True))
    assert count == crit.interface_edges
    with pytest.raises(ValueError, match=r'crit must use method "share" with hard labels, got \'ncut\''):
        Proximal(torch.optim.SGD(model.parameters(), lr=0.1), ModularityLoss(mlp(), k=2, warmup=0, method="ncut"))


# ---- resume ----------------------------------------------------------------------------------------------------------
SETTINGS = {
    "share": {"total_steps": 60, "interface": 0.1, "refresh": 6},
    "soft": {"total_steps": 60, "interface": 0.1, "assignment": "soft"},
    "tree": {"total_steps": 60, "interface": 0.1, "method": "tree"},
    "proximal": {"total_steps": 60, "interface": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("stop", [3, 15, 50], ids=["in the warm-up", "in the ramp", "after the commit"])
def test_an_interrupted_run_goes_on_exactly(name: str, stop: int) -> None:
    def start(seed: int) -> tuple[nn.Module, ModularityLoss, torch.optim.Optimizer]:
        model = mlp(seed)
        crit = ModularityLoss(model, k=2, **SETTINGS[name])  # type: ignore[arg-type]
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        return model, crit, Proximal(optimizer, crit) if name == "proximal" else optimizer

    whole = start(0)
    train(*whole, range(60))
    first = start(0)
    train(*first, range(stop))
    saved = copy.deepcopy([part.state_dict() for part in first])
    again = start(5)
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    train(*again, range(stop, 60))
    for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole[1].labels, again[1].labels) and whole[1].interface_edges == again[1].interface_edges


def test_a_state_of_another_kind_is_refused_and_changes_nothing() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, warmup=0)
    for other, sentence in (
        (ModularityLoss(model, k=3, warmup=0), r"k = 2\), got k = 3"),
        (ModularityLoss(model, k=2, warmup=0, method="ncut"), "same method"),
    ):
        with pytest.raises(ValueError, match=sentence):
            crit.set_extra_state(other.get_extra_state())
    with pytest.raises(ValueError, match="must be of format"):
        crit.set_extra_state(torch.zeros(4, dtype=torch.uint8))
    dialled = ModularityLoss(model, k=2, warmup=0, inputs=1.0)
    dialled.commit(0.5)
    with pytest.raises(ValueError, match="same inputs dial"):
        crit.set_extra_state(dialled.get_extra_state())
    assert crit.steps == 0 and not crit.committed and crit().item() > 0


# ---- budget ----------------------------------------------------------------------------------------------------------
def test_the_budget_holds_the_increase_it_was_given() -> None:
    plain = mlp()
    off = ModularityLoss(plain, k=2, warmup=0, lam=0.0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3)
    curve = []
    for i in range(900):
        train(plain, off, optimizer, range(i, i + 1))
        curve.append(evaluate(plain))
    for nats in (0.02, 0.1):
        model = mlp()
        crit = ModularityLoss(model, k=2, warmup=0, ramp=1, lam=0.1)
        budget = Budget(crit, evaluate, nats, baseline=lambda step: curve[step - 1], every=10)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for i in range(900):
            train(model, crit, optimizer, range(i, i + 1))
            budget.step()
        increase = sum(h[2] for h in budget.history[-20:]) / 20
        assert increase < 1.3 * nats, budget.history[-5:]
        assert increase > 0.3 * nats or crit.leak().item() < 0.01, "what is left is left because nothing crosses"
        assert crit.leak().item() < (0.25 if nats < 0.05 else 0.1), "and spends it"


def test_lambda_moves_by_the_rule_and_within_its_bounds() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, warmup=0, lam=2.0)
    losses = iter([1.1, 1.1, 1.4, 0.0])
    budget = Budget(crit, lambda model: next(losses), 0.2, baseline=1.0, every=1, rate=0.5, high=1.2)
    want = [2.0 * torch.e**0.25]  # half the budget is used: a move of 0.5 * (0.2 - 0.1) / 0.2
    crit.step()
    budget.step()
    assert crit.lam == pytest.approx(min(want[0], 2.4))
    crit.step()
    budget.step()
    assert crit.lam == pytest.approx(2.4), "the upper bound"
    crit.step()
    budget.step()
    assert budget.increase == pytest.approx(0.25)
    assert crit.lam == pytest.approx(2.4 * torch.e ** (0.5 * (0.2 - 0.25) / 0.2))
    assert [h[0] for h in budget.history] == [1, 2, 3]


@pytest.mark.parametrize("bad", ["raises", "nan"])
def test_an_evaluate_that_fails_leaves_everything_as_it_was(bad: str) -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, warmup=0)
    train(model, crit, torch.optim.AdamW(model.parameters(), lr=1e-3), range(5))

    def broken(model: nn.Module) -> float:
        torch.rand(3)
        if bad == "nan":
            return float("nan")
        raise KeyError("no such file")

    budget = Budget(crit, broken, 0.1, baseline=1.0, every=5)
    before = (copy.deepcopy(model.state_dict()), crit.lam, crit.steps, torch.get_rng_state(), model.training)
    sentence = (
        "it raised KeyError at step 5: 'no such file'" if bad == "raises" else "finite task loss, got nan at step 5"
    )
    with pytest.raises(RuntimeError, match=sentence):
        budget.step()
    after = (model.state_dict(), crit.lam, crit.steps, torch.get_rng_state(), model.training)
    assert all(torch.equal(before[0][n], after[0][n]) for n in after[0]) and before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3]) and before[4] == after[4] and not budget.history


def test_the_budget_refuses_what_makes_no_sense_and_round_trips() -> None:
    model = mlp()
    crit = ModularityLoss(model, k=2, warmup=0)
    for kwargs, sentence in (
        ({"nats": 0.0}, "nats must be above 0 and finite, got 0.0"),
        ({"nats": 0.1, "every": 0}, "every must be an integer of at least 1"),
        ({"nats": 0.1, "rate": -1.0}, "rate must be above 0"),
        ({"nats": 0.1, "low": 2.0}, "low and high must enclose 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Budget(crit, evaluate, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="evaluate must be a function"):
        Budget(crit, 3.0, 0.1)  # type: ignore[arg-type]
    budget = Budget(crit, evaluate, 0.1, baseline=1.0, every=1)
    crit.step()
    budget.step()
    other = Budget(crit, evaluate, 0.1, baseline=1.0, every=1)
    other.load_state_dict(budget.state_dict())
    assert other.history == budget.history and other.increase == budget.increase and other.bounds == budget.bounds
    warm = Budget(ModularityLoss(mlp(), k=2, warmup=2), evaluate, 0.1)
    with pytest.raises(RuntimeError, match="no baseline before the warm-up is over"):
        warm.reference  # noqa: B018
