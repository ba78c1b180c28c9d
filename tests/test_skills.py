"""Claims about skills: how many kinds of window there are, which modules they use, and when the answer is "none"."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import modcut
from hand_built import gpt
from modcut._kmeans import lloyd, nearest
from modcut.clustering import unit_profiles
from modcut.controls import matched_labels
from modcut.graph.edges import shuffled
from modcut.graph.statistics import collect
from modcut.graph.units import units_of
from modcut.partition import Partition, adjusted_rand
from modcut.skills import hierarchy, judge, window_kinds
from modcut.skills.evidence import Kept, by_index, held_out_windows, rows_of


def planted(k: int, windows: int = 160, units: int = 60, noise: float = 0.5, seed: int = 0):
    """Standardised usage with k kinds of window, and the kind of each."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.arange(windows) % k
    z = torch.randn(k, units, generator=g)[kind] + noise * torch.randn(windows, units, generator=g)
    z = z - z.mean(0)
    return z / z.norm(dim=0), kind


@pytest.mark.parametrize("k", [2, 3, 5])
def test_planted_kinds_are_counted_and_found(k):
    z, kind = planted(k)
    found = window_kinds(z, max_k=6, splits=3)
    assert found.k == k and adjusted_rand(found.label, kind) == 1.0
    assert torch.equal(found.of(z), found.label)
    for c, windows in enumerate(found.typical(z, 3)):
        assert len(windows) == 3 and bool((found.label[windows] == c).all())


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_one_cloud_is_one_kind_however_long_it_is(spread):
    """A gap of the spectrum or the best k-means would divide it; prediction strength and tightness do not."""
    g = torch.Generator().manual_seed(1)
    z = torch.randn(200, 40, generator=g) + spread * torch.randn(200, 1, generator=g) * torch.randn(40, generator=g)
    found = window_kinds(z - z.mean(0), splits=3, max_k=4)
    assert found.k == 1 and ("one cloud" in found.reason or "prediction strength" in found.reason)


def test_what_cannot_be_known_is_not_said():
    z, _ = planted(2)
    assert window_kinds(torch.zeros(50, 8)).k == 1 and "alike" in window_kinds(torch.zeros(50, 8)).reason
    assert window_kinds(z[:1]).k == 1 and "too few" in window_kinds(z[:10]).reason
    with pytest.raises(ValueError, match="z must be a finite matrix"):
        window_kinds(torch.full((30, 4), float("nan")))
    with pytest.raises(ValueError, match="k must be between 1 and the number of windows"):
        window_kinds(z, k=1000)
    assert window_kinds(z, k=4, splits=2).k == 4  # what is asked for is given


def test_plain_k_means_agrees_with_scipy_on_clear_clusters():
    from scipy.cluster.vq import kmeans2

    z, kind = planted(4, noise=0.2)
    x = z.double().numpy()
    import numpy as np

    centre, label = lloyd(x, 4, np.random.default_rng(0))
    reference = kmeans2(x, np.stack([x[kind.numpy() == c].mean(0) for c in range(4)]), minit="matrix")[1]
    assert adjusted_rand(torch.from_numpy(label), torch.from_numpy(reference).long()) == 1.0
    assert (nearest(x, centre) == label).all()


def skilled(k: int = 2, windows: int = 96):
    """A net with random weights and usage as if it had k skills; module labels of the units."""
    model, graph = gpt()
    statistics = collect(graph, model, [torch.randint(12, (8, 10), generator=torch.Generator().manual_seed(0))])
    units = units_of(graph)
    g = torch.Generator().manual_seed(0)
    group = torch.zeros(units.count, dtype=torch.int64)
    for _, _, ids in units.members():
        group[ids[torch.randperm(len(ids), generator=g)]] = torch.arange(len(ids)) % k
    topic = torch.arange(windows) % k
    profile = (0.2 + (topic[:, None] == group[units.unit][None])) * (0.5 + torch.rand(windows, graph.n, generator=g))
    from dataclasses import replace

    return model, graph, replace(statistics, profile=profile, slice=torch.zeros(windows, dtype=torch.int64)), group


@pytest.mark.parametrize("k", [2, 4])
def test_modules_are_paired_with_the_kinds_that_use_them(k):
    _, graph, statistics, group = skilled(k)
    P = modcut.find_modules(graph, statistics=statistics)
    assert P.k == k and P.meta["verdict"] == f"{k} skills found" and P.meta["finder"] == "kinds of window"
    inner = torch.cat([torch.arange(graph.n)[s.vertices] for s in graph.spaces if s.kind == "hidden"])
    truth = group[units_of(graph).unit]
    assert adjusted_rand(P.labels[inner], truth[inner]) == 1.0
    kinds = torch.tensor(P.meta["windows"])
    used = statistics.profile[:, inner]
    for c in range(k):  # module c is what the windows of kind c use
        assert used[kinds == c][:, P.labels[inner] == c].mean() > 2 * used[kinds == c][:, P.labels[inner] != c].mean()
    assert min(P.meta["evidence"]["stability"]) > 0.9
    assert P.meta["spectrum"][k - 2] > P.meta["null_spectrum"][0]


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_usage_has_no_skills(seed):
    _, graph, statistics, _ = skilled(2)
    P = modcut.find_modules(graph, statistics=shuffled(statistics, seed, graph), seed=seed)
    assert P.k == 1 and P.meta["verdict"].startswith("no skills found")


def two_parts(seed: int = 0):
    """A net of two halves that share no weight, and windows that ask one half or the other; the half of every unit."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight[::2, 4:] = model[0].weight[1::2, :4] = 0
        model[0].bias.zero_()
    half = torch.arange(240) % 2
    x = torch.randn(240, 8)
    x[half == 0, 4:] = x[half == 1, :4] = 0
    y = (model(x) + 0.05 * torch.randn(240, 4)).detach()
    return model, [(a, b) for a, b in zip(x.split(40), y.split(40), strict=True)], half


def test_skills_of_a_net_stand_up_on_held_out_windows_and_random_modules_do_not():
    model, data, half = two_parts()
    P = modcut.find_modules(model, data=(b for b in data))  # a generator is read once
    evidence = P.meta["evidence"]
    assert P.k == 2 and evidence["found"] and evidence["held_out"] == 80
    hidden = next(s for s in P.graph.spaces if s.kind == "hidden")
    assert adjusted_rand(P.labels[hidden.vertices], torch.arange(32) % 2) == 1.0
    assert adjusted_rand(torch.tensor(P.meta["windows"]), half) == 1.0
    assert evidence["specialisation"]["p"] == 0.05 and evidence["specialisation"]["tv"] > 0.95
    # The same test given modules dealt at random: the evidence speaks against them.
    graph = P.graph
    profile = graph.statistics.profile
    kinds = window_kinds(unit_profiles(graph, profile), k=2)
    kept = Kept(data, windows=1000)
    list(kept)
    held = {f"kind {c}": kept.select(kinds.label == c) for c in range(2)}
    dealt = Partition(matched_labels(graph, P.labels, torch.Generator().manual_seed(3)), graph, 2)
    verdict = judge(model, dealt, kinds, profile, held=held)
    assert not verdict.found and any("resampled windows agree little" in x for x in verdict.against)
    swapped = judge(model, Partition(1 - P.labels, graph, 2), kinds, profile, held=held, bootstraps=0)
    assert not swapped.found and any("does not matter most to its own kind" in x for x in swapped.against)
    assert "no skills found" in str(verdict) and verdict.to_dict()["held_out"] == 240


def test_a_pair_must_hold_in_both_directions():
    """Planted: modules matter most to their own kinds, yet kind 1 is hurt most by module 0 (two skills, one kind)."""
    from modcut.skills.evidence import _unpaired
    from modcut.specialise import Specialisation

    def reasons(damage):
        named = {f"kind {i}": d for i, d in enumerate(damage)}
        return _unpaired(Specialisation(0.9, (0.1,) * 19, named, dict.fromkeys(named, 1.0), "zero", 0, 10, len(damage)))

    assert reasons([(2.0, 0.1), (0.1, 2.0)]) == []
    assert reasons([(9.0, 0.01), (2.13, 0.02)]) == ["kind 1 is hurt most by module 0, not by its own"]
    assert "module 1 does not matter most to its own kind" in reasons([(1.0, 2.0), (0.9, 0.1)])


def test_an_untrained_net_has_no_skills():
    for seed in range(3):
        model, _ = gpt(seed=seed)
        g = torch.Generator().manual_seed(seed)
        # Two vocabularies: the windows do fall into two kinds, but no module works on either.
        data = [torch.cat([torch.randint(6, (8, 12), generator=g), torch.randint(6, 12, (8, 12), generator=g)])] * 4
        P = modcut.find_modules(model, data=data, seed=seed)
        assert P.k == 1 and P.meta["verdict"].startswith("no skills found")


def test_a_number_of_modules_is_obeyed_and_the_verdict_stays_honest():
    model, _ = gpt()
    g = torch.Generator().manual_seed(0)
    P = modcut.find_modules(model, 3, data=[torch.randint(12, (32, 12), generator=g)])
    assert P.k == 3 and P.labels.max() == 2
    assert P.meta["verdict"].startswith("no skills found: 3 kinds of window were asked for, their prediction strength")


def test_bad_input_is_an_error_or_no_skills():
    model, _ = gpt()
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(12, (24, 12), generator=g)
    one = modcut.find_modules(model, data=[tokens[:1]])
    assert one.k == 1 and "no skills found" in one.meta["verdict"]
    assert "alike" in modcut.find_modules(model, data=[tokens[:1].repeat(30, 1)]).meta["verdict"]
    with pytest.raises(ValueError, match="at least one batch"):
        modcut.find_modules(model, data=[])
    with pytest.raises(ValueError, match="k must be between 1 and"):
        modcut.find_modules(model, 25, data=[tokens])
    with pytest.raises(ValueError, match="controls must be an integer"):
        modcut.find_modules(model, data=[tokens], controls=-1)
    frozen, _ = gpt()
    for p in frozen.parameters():
        p.requires_grad_(False)
    with torch.inference_mode():
        assert modcut.find_modules(frozen, data=[tokens]).k == 1
    with torch.no_grad():
        model.layers[0].up.weight[:4] = 0  # dead units
        model.layers[0].up.bias[:4] = 0
    assert modcut.find_modules(model, data=[tokens]).k == 1
    with torch.no_grad():
        model.emb.weight[0] = float("nan")
    with pytest.raises(ValueError, match="loss must be finite"):
        modcut.find_modules(model, data=[tokens])


class Noisy(nn.Module):
    """Draws noise in every forward pass: two passes over the same window differ."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h + torch.randn_like(h))


def test_a_model_that_draws_noise_has_no_skills():
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    P = modcut.find_modules(Noisy(), data=[(x, torch.randint(2, (64,)))])
    assert P.k == 1


def test_kinds_within_kinds_come_out_one_level_down():
    _, graph, statistics, _ = skilled(2, windows=192)
    inner = torch.arange(192)
    # Inside either kind, half of the windows use every third unit less: small beside the first division.
    weak = (inner // 2) % 2 == 0
    thirds = torch.arange(graph.n) % 3 == 0
    statistics.profile[weak[:, None] & thirds[None]] *= 0.35
    tree = hierarchy(graph, statistics.profile, max_k=3, depth=2)
    assert len(tree.parts) in (2, 3) or len(tree.leaves) >= 2
    truth = (inner % 2) * 2 + weak.long()
    assert len(tree.leaves) == 4 and adjusted_rand(tree.labels(), truth) > 0.9
    assert tree.to_dict()["windows"] == 192


def test_windows_are_held_out_and_taken_from_batches_of_every_form():
    held = held_out_windows(100, 60)
    assert int(held.sum()) == 20 and not bool(held[60:].any())
    assert int(held_out_windows(5000, 5000).sum()) == 256 and not bool(held_out_windows(5, 2).any())
    rows = torch.tensor([0, 2])
    x, y = torch.arange(6).reshape(3, 2), torch.arange(3)
    assert torch.equal(rows_of(x, rows), x[rows])
    assert torch.equal(rows_of((x, y), rows)[1], y[rows])
    taken = rows_of({"input_ids": x, "flag": True}, rows)
    assert torch.equal(taken["input_ids"], x[rows]) and taken["flag"] is True


def test_the_partition_by_index_has_the_same_make_up():
    _, graph = gpt()
    P = modcut.find_modules(graph, 2)
    index = by_index(P)
    for a, b in zip(P.balance.values(), index.balance.values(), strict=True):
        assert torch.equal(a, b)
    hidden = next(s for s in graph.spaces if s.kind == "hidden")
    assert bool((index.labels[hidden.vertices].diff() >= 0).all())


def test_the_example_runs(capsys):
    """In a short form: after 4 steps there is nothing to find, and it says so."""
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parent.parent / "examples" / "find_skills.py"
    spec = importlib.util.spec_from_file_location("find_skills", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(steps=4, windows_shown=96).k == 1
    assert "no skills found" in capsys.readouterr().out


def test_training_without_the_other_core_makes_it_unnecessary():
    """One linear map serves two kinds with all units; module drop makes each kind live on its own half."""
    from modcut.skills import cores, without_others

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=g)
    y, kind = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], 1), (x[:, 3] > 0).long()
    graph = modcut.weight_graph(model, x[:2])
    labels = torch.zeros(graph.n, dtype=torch.int64)
    hidden = next(s for s in graph.spaces if s.kind == "hidden")
    labels[hidden.vertices] = torch.arange(16) % 2
    P = Partition(labels, graph, 2)

    def loss_of(c: int) -> torch.Tensor:
        return (model(x[kind == c]) - y[kind == c]).square().mean()

    def alone(c: int) -> torch.Tensor:
        with without_others(model, P, c):
            return loss_of(c)

    before = model(x)
    start = [float(alone(c).detach()) for c in range(2)]
    assert torch.equal(model(x), before)  # nothing stays behind
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        sum(loss_of(c) + alone(c) for c in range(2)).backward()
        optimizer.step()
    assert all(float(alone(c).detach()) < 0.3 * start[c] for c in range(2))
    with without_others(model, P, 0):  # the other half is off, and receives no gradient
        optimizer.zero_grad()
        loss_of(0).backward()
    assert float(model[2].weight.grad[:, 1::2].abs().max()) == 0 < float(model[2].weight.grad[:, ::2].abs().max())
    profile = torch.rand(32, graph.n, generator=g)
    core = cores(P, profile, torch.arange(32) % 2)
    assert core.k == 3 and torch.bincount(core.labels[hidden.vertices], minlength=3).tolist() == [4, 4, 8]
    for bad in (lambda: cores(P, profile, torch.zeros(3)), lambda: cores(P, profile, torch.arange(32) % 2, share=0.0)):
        with pytest.raises(ValueError, match=r"kinds must have|share must be"):
            bad()
    with pytest.raises(ValueError, match="kind must be between"), without_others(model, P, 2):
        pass
    with pytest.raises(ValueError, match="modules must be between"), without_others(model, P, 0, 3):
        pass


@pytest.mark.parametrize("k", [2, 4])
def test_the_tree_of_windows_cuts_between_kinds_and_is_a_star_without_them(k):
    from modcut.skills import window_tree

    z, kind = planted(k, windows=120)
    T = window_tree(z)
    found = T.labels()
    assert int(found.max()) + 1 == k and adjusted_rand(found, kind) == 1.0
    assert adjusted_rand(T.labels(k), kind) == 1.0 and max(T.conductance[: k - 1]) < 0.05
    g = torch.Generator().manual_seed(0)
    mixed = z.gather(0, torch.rand(z.shape, generator=g).argsort(0))
    assert int(window_tree(mixed).labels().max()) == 0
    # The certificate, against a flow that is not the tree's: the best edge is a minimum cut of its two ends.
    import networkx as nx

    G = T.tree.to_networkx()
    edge = int(T.edges[0])
    assert G.number_of_edges() == 119 and nx.is_tree(G)
    assert float(T.tree.weight[edge]) == pytest.approx(float(T.tree.lower[edge]))


def test_the_tree_of_windows_refuses_what_it_cannot_read():
    from modcut.skills import window_tree

    z, _ = planted(2)
    for bad, words in ((z[:10], "at least 16 windows"), (z * float("nan"), "finite matrix")):
        with pytest.raises(ValueError, match=words):
            window_tree(bad)
    with pytest.raises(ValueError, match="neighbours must be between"):
        window_tree(z, neighbours=1000)
    with pytest.raises(ValueError, match="k must be between 1"):
        window_tree(z).labels(0)
    assert int(window_tree(torch.zeros(40, 8)).labels().max()) == 0  # windows all alike: one kind
