"""Claims about partitions: exact balance, metrics against independent references, files, cross masks."""

from __future__ import annotations

import json

import igraph
import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment

from hand_built import Builder, gpt, mlp
from modcut._transport import balanced_assignment
from modcut.clustering import choose_k, functional_labels, slice_labels, spectral_labels
from modcut.graph.types import Space, WeightGraph
from modcut.graph.units import units_of
from modcut.partition import Partition, adjusted_rand, cross_masks


def planted(k: int = 3, width: int = 24, layers: int = 3, noise: float = 0.15, seed: int = 0):
    """Hidden layers whose weights lie inside k blocks (neurons in random order), and the blocks."""
    g = torch.Generator().manual_seed(seed)
    b = Builder()
    kinds = ["input", *["hidden"] * layers]
    spaces = [b.space(f"layer{i}", width, kind) for i, kind in enumerate(kinds)]
    truth = [torch.arange(width)[torch.randperm(width, generator=g)] % k for _ in spaces]
    for i in range(layers):
        same = truth[i + 1][:, None] == truth[i][None]
        w = torch.randn(width, width, generator=g) * torch.where(same, 1.0, noise)
        b.matrix(f"{i}.weight", w, [spaces[i + 1]], [spaces[i]])
        b.tap(str(i), "input", [spaces[i]])
    return b.graph(), torch.cat(truth)


# -- exact balanced assignment ----------------------------------------------------------------------------------------


def reference_cost(cost: np.ndarray) -> float:
    """The same problem as an assignment of units to columns: low columns per bin are worth a large bonus."""
    m, k = cost.shape
    low, high = m // k, -(-m // k)
    bonus = 1e4
    columns = [(b, -bonus if r < low else 0.0) for b in range(k) for r in range(high)]
    c = np.stack([cost[:, b] + extra for b, extra in columns], 1)
    rows, chosen = linear_sum_assignment(c)
    return float(sum(cost[i, columns[j][0]] for i, j in zip(rows, chosen, strict=True)))


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 25), st.integers(1, 7), st.integers(0, 2**31), st.sampled_from(["normal", "ties", "constant rows"])
)
def test_balanced_assignment_is_a_minimum(m, k, seed, how):
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(m, k)) if how == "normal" else rng.integers(0, 3, size=(m, k)).astype(float)
    if how == "constant":
        cost = cost[:, :1] + np.zeros((m, k))
    label = balanced_assignment(cost)
    sizes = np.bincount(label, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    assert cost[np.arange(m), label].sum() == pytest.approx(reference_cost(cost), abs=1e-7)


def test_the_largest_layers_are_assigned_in_seconds():
    rng = np.random.default_rng(0)
    label = balanced_assignment(rng.normal(size=(49152, 8)))
    assert set(np.bincount(label).tolist()) == {6144}


def test_impossible_sizes_are_errors():
    with pytest.raises(ValueError, match="cannot hold 5 units"):
        balanced_assignment(np.zeros((5, 2)), high=2)
    with pytest.raises(ValueError, match="finite matrix"):
        balanced_assignment(np.full((3, 2), np.nan))


# -- clustering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_labels_are_balanced_in_every_family_and_heads_stay_whole(k):
    _, graph = gpt()
    profile = torch.rand(40, graph.n, generator=torch.Generator().manual_seed(k))
    for labels in (functional_labels(graph, profile, k, seed=1), spectral_labels(graph, k, seed=1)):
        balance = Partition(labels, graph, k).balance
        assert sum(int(c.sum()) for c in balance.values()) == units_of(graph).count
        for counts in balance.values():
            assert int(counts.max() - counts.min()) <= 1
        for head in {s.head for s in graph.spaces if s.head}:
            found = torch.cat([labels[s.vertices] for s in graph.spaces if s.head == head])
            assert len(set(found.tolist())) == 1


def test_equal_seeds_give_equal_labels():
    _, graph = gpt()
    profile = torch.rand(30, graph.n)
    assert torch.equal(functional_labels(graph, profile, 3, seed=5), functional_labels(graph, profile, 3, seed=5))
    assert torch.equal(spectral_labels(graph, 3, seed=5), spectral_labels(graph, 3, seed=5))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_spectral_labels_find_planted_blocks_and_not_layers(k):
    graph, truth = planted(k)
    labels = spectral_labels(graph, k)
    assert adjusted_rand(truth, labels) > 0.95
    assert choose_k(graph)[0] == k


def test_spectral_labels_do_not_move_when_neurons_are_rescaled():
    graph, _ = planted(3, noise=0.4)
    before = spectral_labels(graph, 3)
    with torch.no_grad():
        factor = torch.rand(24) * 9 + 0.2
        graph.matrices[0].weight.mul_(factor[:, None])
        graph.matrices[1].weight.div_(factor)
    assert adjusted_rand(before, spectral_labels(graph, 3)) > 0.9


def test_functional_labels_find_units_used_together_whatever_the_weights():
    _, graph = gpt()
    units = units_of(graph)
    g = torch.Generator().manual_seed(0)
    # Half of each family's units is used in half of the windows; single-window noise on top.
    group = torch.zeros(units.count, dtype=torch.int64)
    for _, _, ids in units.members():
        group[ids[torch.randperm(len(ids), generator=g)[: len(ids) // 2]]] = 1
    topic = torch.arange(60) % 2
    on = (topic[:, None] == group[units.unit][None]).float()
    profile = (0.3 + on) * torch.rand(60, graph.n, generator=g)
    labels = functional_labels(graph, profile, 2)
    inner = torch.cat([torch.arange(graph.n)[s.vertices] for s in graph.spaces if s.kind in ("hidden", "head")])
    assert adjusted_rand(group[units.unit][inner], labels[inner]) == 1.0
    assert choose_k(graph, profile)[0] == 2
    labelled = slice_labels(graph, profile, topic)
    assert torch.equal(labelled[inner], group[units.unit][inner])  # module i is what slice i uses


def test_impossible_clusterings_are_errors():
    _, graph = gpt()
    with pytest.raises(ValueError, match=r"k must be between 1 and .*\(24\), got 25"):
        spectral_labels(graph, 25)
    with pytest.raises(ValueError, match="got 0"):
        functional_labels(graph, torch.rand(4, graph.n), 0)
    with pytest.raises(ValueError, match=r"shape \[windows, 152\]"):
        functional_labels(graph, torch.rand(4, 3), 2)
    with pytest.raises(ValueError, match="usage that varies"):
        functional_labels(graph, torch.zeros(4, graph.n), 2)
    linear = Builder()
    linear.matrix("weight", torch.randn(3, 4), [linear.space("y", 3, "output")], [linear.space("x", 4, "input")])
    with pytest.raises(ValueError, match="hidden units or attention heads"):
        spectral_labels(linear.graph(), 2)
    graph.matrices[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.q\.weight must be finite"):
        spectral_labels(graph, 2)


# -- metrics ----------------------------------------------------------------------------------------------------------


def random_partition(k: int = 3, seed: int = 0) -> Partition:
    _, graph = gpt()
    return Partition(torch.randint(k, (graph.n,), generator=torch.Generator().manual_seed(seed)), graph, k)


def test_metrics_agree_with_networkx_and_dense_sums():
    P = random_partition()
    dense = P.graph.to_dense()
    G = nx.from_numpy_array(dense.numpy())
    parts = [set(m.units.tolist()) for m in P.modules]
    assert P.modularity == pytest.approx(nx.community.modularity(G, parts), abs=1e-6)
    ncut = sum(nx.cut_size(G, p, weight="weight") / nx.volume(G, p, weight="weight") for p in parts)
    assert P.ncut == pytest.approx(ncut, rel=1e-6)
    for p, c in zip(parts, P.conductance.tolist(), strict=True):
        assert c == pytest.approx(nx.conductance(G, p, weight="weight"), rel=1e-6)
    for (i, j), face in P.interfaces.items():
        block = dense[P.labels == i][:, P.labels == j]
        assert face.strength == pytest.approx(float(block.sum()), rel=1e-6)
        pair = [P.labels[m.row_vertex][:, None] * 3 + P.labels[m.col_vertex] for m in P.graph.matrices]
        assert face.edges == sum(int(((p == 3 * i + j) | (p == 3 * j + i)).sum()) for p in pair)
        assert face.forward + face.backward == pytest.approx(face.strength)
        assert face.fraction == pytest.approx(float(block.sum() / dense.sum() * 2), rel=1e-6)
        strongest = max(
            float((m.weight.abs() * ((p == 3 * i + j) | (p == 3 * j + i))).max())
            for m, p in zip(P.graph.matrices, pair, strict=True)
        )
        source, target, value = face.top[0]
        assert value == pytest.approx(strongest, rel=1e-6)
        assert {int(P.labels[source]), int(P.labels[target])} == {i, j}
    assert P.interfaces[2, 0] == P.interfaces[0, 2]


def test_leak_is_the_mean_share_of_strength_from_other_modules():
    model, graph = mlp((3, 4, 2))
    labels = torch.tensor([0, 1, 0, 0, 0, 1, 1, 0, 1])
    P = Partition(labels, graph, 2)
    families = []
    for w, rows, cols in ((model[0].weight, slice(3, 7), slice(0, 3)), (model[2].weight, slice(7, 9), slice(3, 7))):
        a = w.detach().abs()
        cross = labels[rows][:, None] != labels[cols][None]
        families.append(float(((a * cross).sum(1) / a.sum(1)).mean()))
    assert P.leak == pytest.approx(sum(families) / 2, rel=1e-5)


def test_a_matrix_without_a_model_has_metrics_too():
    s = Space("x", 6, "hidden", 0)
    a = torch.zeros(6, 6)
    a[:3, :3] = a[3:, 3:] = 1
    a[0, 5] = a[5, 0] = 0.5
    from modcut.graph.types import Block

    i = torch.arange(6)[:, None]
    g = WeightGraph((s,), (Block(s, s, a, "matrix", i, i, lambda b: b.weight.abs(), symmetric=True),))
    P = Partition(torch.tensor([0, 0, 0, 1, 1, 1]), g, 2)
    assert P.ncut == pytest.approx(2 * 0.5 / 6.5)
    assert P.leak == pytest.approx(2 * (0.5 / 2.5) / 6)
    assert P.interfaces[0, 1].edges == 1
    assert P.interfaces[0, 1].strength == pytest.approx(0.5)


def test_dead_vertices_are_found():
    model, graph = mlp((6, 8, 4))
    with torch.no_grad():
        model[0].weight[3] = 0
        model[2].weight[:, 3] = 1e-9
    assert Partition(torch.zeros(18, dtype=torch.int64), graph, 1).dead.tolist() == [9]


def test_significance_tells_a_planted_partition_from_a_random_one():
    graph, truth = planted(3)
    real = Partition(truth, graph, 3).significance(60, seed=1)
    assert {m: s.p for m, s in real.items()} == dict.fromkeys(("leak", "ncut", "modularity"), 1 / 61)
    assert real["leak"].effect < -0.5 and real["leak"].z < -10
    # On a graph without structure p-values are uniform: 20 random partitions are not all in the tail.
    _, plain = gpt()
    g = torch.Generator().manual_seed(0)
    ps = []
    for _ in range(20):
        P = Partition(torch.randint(3, (plain.n,), generator=g), plain, 3)
        ps.append(P.significance(19, metrics=["ncut"])["ncut"].p)
    assert 0.25 < sum(ps) / 20 < 0.75


def test_an_empty_module_is_not_free():
    _, graph = mlp()
    everything = Partition(torch.zeros(graph.n, dtype=torch.int64), graph, 2)
    assert everything.ncut == 1.0
    assert everything.conductance.tolist() == [1.0, 1.0]


def test_metrics_follow_the_live_weights():
    model, graph = mlp((6, 8, 4))
    P = Partition(torch.arange(18) % 2, graph, 2)
    before = P.leak
    masks = cross_masks(graph, P.labels)
    with torch.no_grad():
        model[0].weight.masked_fill_(masks["0.weight"], 0)
        model[2].weight.masked_fill_(masks["2.weight"], 0)
    assert before > 0.3 and P.leak == pytest.approx(0, abs=1e-7) and P.ncut == pytest.approx(0, abs=1e-7)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_the_adjusted_rand_index_is_that_of_igraph(pairs):
    a, b = (list(x) for x in zip(*pairs, strict=True))
    if len(set(a)) > 1 or len(set(b)) > 1:
        expected = igraph.compare_communities(a, b, method="adjusted_rand")
        if not np.isnan(expected):  # igraph: 0 / 0 where both are all singletons
            assert adjusted_rand(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)


# -- masks, labels, files ---------------------------------------------------------------------------------------------


def test_cross_masks_mark_weights_whose_ends_differ():
    P = random_partition()
    masks = cross_masks(P.graph, P.labels)
    for m in P.graph.matrices:
        expected = P.labels[m.row_vertex][:, None] != P.labels[m.col_vertex][None, :]
        assert torch.equal(masks[m.name], expected)


def test_bad_labels_are_errors():
    _, graph = gpt()
    for labels, error, message in (
        (torch.zeros(3, dtype=torch.int64), ValueError, r"shape \[152\], got \[3\]"),
        (torch.zeros(152), TypeError, "integers, got torch.float32"),
        (torch.full((152,), 2), ValueError, r"in \[0, 2\), got 2"),
        (torch.full((152,), -1), ValueError, "got -1"),
    ):
        with pytest.raises(error, match=message):
            Partition(labels, graph, 2)
    with pytest.raises(ValueError, match="one entry per vertex"):
        cross_masks(graph, torch.zeros(5, dtype=torch.int64))


def test_a_partition_comes_back_from_its_file(tmp_path):
    P = Partition(random_partition().labels, random_partition().graph, 4, {"method": "test", "seed": 3})
    P.save(tmp_path / "p.safetensors")
    Q = Partition.load(tmp_path / "p.safetensors", P.graph)
    assert torch.equal(P.labels, Q.labels) and Q.k == 4 and Q.meta == P.meta and Q.ncut == P.ncut
    bare = Partition.load(tmp_path / "p.safetensors")
    assert bare.graph.n == P.n and bare.graph.spaces == P.graph.spaces
    json.dumps(P.to_dict())
    assert "k=4" in repr(P)


def test_foreign_files_and_other_models_are_told_apart(tmp_path):
    random_partition().save(tmp_path / "p")
    with pytest.raises(ValueError, match="belongs to another model"):
        Partition.load(tmp_path / "p", mlp()[1])
    save_file({"labels": torch.zeros(3)}, tmp_path / "other")
    (tmp_path / "junk").write_bytes(b"not a tensor file")
    for name in ("other", "junk"):
        with pytest.raises(ValueError, match="must be a modcut partition"):
            Partition.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Partition.load(tmp_path / "none")
