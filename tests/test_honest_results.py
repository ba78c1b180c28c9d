"""Results say what they are: no figure where nothing was measured, no nan in JSON, how each was made."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import modcut
from modcut.modules import specialisation


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


X, Y = torch.randn(64, 8), torch.randint(0, 4, (64,))


def test_a_partition_loaded_without_its_model_has_no_figures(tmp_path) -> None:
    found = modcut.find_modules(mlp(), 2)
    found.save(tmp_path / "p")
    loaded = modcut.Partition.load(tmp_path / "p")
    for metric in ("leak", "ncut", "modularity"):
        with pytest.raises(ValueError, match="must have edges to be measured"):
            getattr(loaded, metric)
        assert loaded.to_dict()[metric] is None


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_k_of_a_partition_is_a_positive_integer(k) -> None:
    graph = modcut.weight_graph(mlp())
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        modcut.Partition(torch.zeros(graph.n, dtype=torch.int64), graph, k)


def test_one_module_leaks_nothing_and_never_less() -> None:
    assert modcut.find_modules(mlp(), 1).leak >= 0


def test_self_loops_of_a_matrix_count_neither_as_inside_nor_as_strength() -> None:
    w = torch.rand(20, 20, dtype=torch.float64)
    w = w + w.T
    labels = torch.arange(20) % 3
    bare = w.clone().fill_diagonal_(0)
    same = labels[:, None] == labels
    expected = 1 - ((bare * same).sum(1) / bare.sum(1)).mean()
    found = modcut.Partition(labels, modcut.WeightGraph.from_matrix(w), 3)
    assert found.leak == pytest.approx(float(expected), rel=1e-6)


def test_specialisation_without_shares_is_null_in_json_and_left_out_of_the_mean() -> None:
    model = mlp()
    found = modcut.find_modules(model, 4)
    result = specialisation(model, found, {"a": [(X, Y)], "b": [(X + 1, Y)]}, random=4)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert len(plain["model"]) == 64
    known = [r for r in plain["random_tv"] if r is not None]
    assert plain["random_mean"] == (pytest.approx(sum(known) / len(known)) if known else None)


def test_healing_and_significance_say_how_they_were_made() -> None:
    model = mlp()
    found = modcut.find_modules(model, 2)
    one = json.loads(json.dumps(found.significance(8)["ncut"].to_dict(), allow_nan=False))
    assert one["n"] == 8
    assert one["control"]
    healed = modcut.cut_and_heal(model, found, lambda: float("nan"), steps=1)
    plain = json.loads(json.dumps(healed.to_dict(), allow_nan=False))
    assert plain["losses"] == [None]
    assert {"n", "seed", "control", "ablation", "model", "stamp"} <= plain.keys()
    healed.release()


@pytest.mark.parametrize("bad", [{"train_step": None}, {"steps": 1.5}])
def test_healing_refuses_bad_arguments_before_it_touches_a_weight(bad) -> None:
    model = mlp()
    found = modcut.find_modules(model, 2)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TypeError, match="must be"):
        modcut.cut_and_heal(model, found, **{"train_step": lambda: None, "steps": 1, **bad})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_comparing_a_model_with_something_else_is_a_sentence() -> None:
    with pytest.raises(TypeError, match="both models must be"):
        modcut.compare(mlp(), 3)
