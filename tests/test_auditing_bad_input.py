"""Every function of the audit on the mistakes of users: one clear error each, and no hook is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import modcut
from auditing_nets import sides, wide
from modcut.auditing import effect_table


def data(net_seed: int = 0):
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(net_seed))
    return [(x, (x[:, ::2].sum(1) > 0).long() * 2)]


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


X = torch.randn(1, 16)
CALLS = {
    "ablate": lambda m, P, r: modcut.ablate(m, P, 0, "mean", r).__enter__(),
    "trace": lambda m, P, r: modcut.trace(m, X, P, reference=r, controls=2),
    "compare": lambda m, P, r: modcut.compare(m, m, P, r, controls=2),
    "effects": lambda m, P, r: effect_table(m, P, {"a": lambda n: float(n(X)[0, 0].detach())}, "mean", r, 2),
    "audit": lambda m, P, r: modcut.audit(m, P, {"A": sides(0, 8)}, r, controls=19),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_empty_reference_is_refused(name):
    model, P = wide()
    with pytest.raises(ValueError, match="at least one batch"):
        CALLS[name](model, P, [])
    assert not hooks(model)


@pytest.mark.parametrize("name", [n for n in CALLS if n != "audit"])
def test_a_reference_of_another_shape_is_an_error_and_leaves_no_hook(name):
    model, P = wide()
    with pytest.raises((ValueError, RuntimeError), match=r"shape|size"):
        CALLS[name](model, P, [(torch.randn(8, 5), torch.zeros(8, dtype=torch.int64))])
    assert not hooks(model)


@pytest.mark.parametrize("name", [n for n in CALLS if n != "ablate"])
def test_activations_that_are_not_numbers_are_refused(name):
    model, P = wide()
    with torch.no_grad():
        model[0].bias[3] = torch.nan
    with pytest.raises(ValueError, match=r"finite|NaN"):
        CALLS[name](model, P, data())
    assert not hooks(model)


@pytest.mark.parametrize("name", [n for n in CALLS if n != "ablate"])
def test_hooks_of_other_tools_stay_and_dropout_is_off_while_measuring(name):
    model, P = wide()
    model = nn.Sequential(*model, nn.Dropout(0.5)).train()
    seen = []
    handle = model[0].register_forward_hook(lambda m, a, o: seen.append(m.training))
    CALLS[name](model, P, data())
    assert hooks(model) == [model[0]._forward_hooks[handle.id]] and model.training and model[3].training
    assert seen and not any(seen)


def test_models_of_other_architecture_are_refused():
    model, P = wide()
    other = nn.Sequential(nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 4))
    for call in (
        lambda: modcut.compare(model, other, P, data(), controls=2),
        lambda: modcut.audit(model, P, {"A": sides(0, 8)}, harmless=other, controls=19),
        lambda: modcut.find_concept(other, P, *sides(0, 8), controls=2),
        lambda: modcut.auditing.bake(other, P, 0),
    ):
        with pytest.raises(ValueError, match=r"architecture|belong to this model"):
            call()
