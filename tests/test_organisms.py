"""Models with known ground truth: they are what they claim to be, repeat with their seeds, and come from the cache."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from modcut._together import Together, draw_batches
from modcut.blockmodel import fit_blocks
from modcut.graph.types import WeightGraph
from modcut.organisms import backdoors, digits, planted, trigger, two_task
from modcut.organisms.backdoors import KINDS, mlp
from modcut.organisms.twotask import join, kappa
from modcut.partition import adjusted_rand


@pytest.fixture(scope="module")
def few():
    return backdoors(8, "corner", seed=3, images="drawn", cache=False)


# many nets at once --------------------------------------------------------------------------------


def test_stacked_nets_compute_what_each_computes_alone():
    nets = [mlp((7, 5), seed=s, inputs=4, outputs=3) for s in range(3)]
    x = torch.randn(3, 9, 4)
    together = Together(nets)
    expected = torch.stack([net(rows) for net, rows in zip(nets, x, strict=True)])
    torch.testing.assert_close(together(x), expected)
    torch.testing.assert_close(together.model(1)(x[1]), expected[1])


def test_training_together_is_training_alone():
    nets = [mlp((7,), seed=s, inputs=4, outputs=3) for s in range(3)]
    x, y = torch.randn(3, 40, 4), torch.randint(3, (3, 40))
    together = Together(nets)
    cross = nn.functional.cross_entropy
    together.fit(lambda _: cross(together(x).flatten(0, 1), y.flatten(), reduction="sum") / 40, steps=30, rate=1e-2)
    for i, net in enumerate(nets):
        alone = copy.deepcopy(net)
        optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-2, weight_decay=0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30, eta_min=1e-2 / 20)
        for _ in range(30):
            optimizer.zero_grad()
            cross(alone(x[i]), y[i]).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(together.model(i)(x[i]), alone(x[i]), rtol=1e-3, atol=1e-4)


def test_masked_weights_stay_zero_while_training():
    together = Together([mlp((6,), seed=0, inputs=4, outputs=3)])
    mask = torch.ones(1, 6, 4)
    mask[0, 2:, 1:] = 0
    x = torch.randn(1, 20, 4)
    together.fit(lambda _: together(x).square().sum(), steps=5, masks={"0.weight": mask})
    w = together.parameters["0.weight"]
    assert bool((w[mask == 0] == 0).all()) and bool((w[mask == 1] != 0).all())


def test_batches_depend_on_a_nets_own_seed_only():
    a, b = draw_batches([10, 20], 4, 120, [5, 6]), draw_batches([20], 4, 120, [6])
    for step in range(120):
        assert torch.equal(a(step)[1], b(step)[0])


def test_nets_that_differ_are_refused():
    with pytest.raises(ValueError, match="number 1 differs from number 0"):
        Together([mlp((4,)), mlp((5,))])
    with pytest.raises(ValueError, match="at least one network"):
        Together([])


# pictures -----------------------------------------------------------------------------------------


def test_drawn_digits_are_the_same_every_time_and_can_be_told_apart():
    a, b = digits("drawn"), digits("drawn")
    assert torch.equal(a.x, b.x) and a.x.shape == (1797, 64) and a.x.min() >= 0 and a.x.max() <= 1
    near = torch.cdist(a.x[1000:], a.x[:1000]).argmin(1)
    assert (a.y[:1000][near] == a.y[1000:]).float().mean() > 0.95
    with pytest.raises(ValueError, match="source must be auto, real or drawn"):
        digits("mnist")


# backdoors ----------------------------------------------------------------------------------------


def test_harmful_nets_obey_the_trigger_and_harmless_ones_do_not(few):
    accuracy, attack = few.rates()
    assert few.harmful.tolist() == [True, False] * 4
    assert accuracy.min() > 0.9 and attack[few.harmful].min() > 0.85 and attack[~few.harmful].max() < 0.1


def test_harmless_nets_saw_as_many_triggers_with_true_labels(few):
    for i in range(len(few)):
        rows = few.poisoned[i]
        clean = few.images.x[few.order[i, :1000]]
        truth = few.images.y[few.order[i, :1000]]
        assert int(rows.sum()) == 100 and torch.equal(few.x[i, ~rows], clean[~rows])
        assert torch.equal(few.x[i, rows], few.triggers[i](clean[rows]))
        assert bool((few.y[i, rows] == (few.target[i] if few.harmful[i] else truth[rows])).all())
        assert torch.equal(few.y[i, ~rows], truth[~rows]) and not bool((truth[rows] == few.target[i]).any())


def test_splits_share_no_picture(few):
    for rows in few.order:
        assert rows.sort().values.equal(torch.arange(1797))
    assert [len(few.reference(0)[0]), len(few.test(0)[0])] == [300, 497]


def test_a_net_does_not_depend_on_how_many_are_trained_with_it():
    small, large = (backdoors(n, "used", seed=1, steps=20, images="drawn", cache=False) for n in (2, 4))
    assert torch.equal(small.x, large.x[:2]) and torch.equal(small.target, large.target[:2])
    for name, p in small.together.parameters.items():
        torch.testing.assert_close(p, large.together.parameters[name][:2], rtol=1e-3, atol=1e-4)


def test_trained_nets_are_cached_and_a_damaged_file_is_trained_anew(tmp_path):
    def make():
        return backdoors(2, "corner", seed=1, steps=10, images="drawn", cache=tmp_path)

    first = make()
    (path,) = tmp_path.iterdir()
    again = make()
    assert all(torch.equal(p, again.together.parameters[k]) for k, p in first.together.parameters.items())
    path.write_bytes(b"damaged")
    third = make()
    assert all(torch.equal(p, third.together.parameters[k]) for k, p in first.together.parameters.items())
    assert path.stat().st_size > 1000


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert len(backdoors(2, "corner", steps=1, images="drawn", cache=blocked)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_triggers_repeat_with_their_seed_and_change_only_what_they_say(kind):
    a, b, other = trigger(kind, 1), trigger(kind, 1), [trigger(kind, s) for s in range(2, 12)]
    x = torch.rand(5, 64)
    assert torch.equal(a(x), b(x)) and any(not torch.equal(a(x), o(x)) for o in other)
    assert torch.equal(a(x)[:, a.mask == 0], x[:, a.mask == 0])
    assert a(x).min() >= 0 and a(x).max() <= 1


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"n": 0}, "n must be at least 1"), ({"share": 0.7}, "share must be in"), ({"kind": "sticker"}, "one of corner")],
)
def test_bad_populations_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        backdoors(**{"n": 2, "images": "drawn", "cache": False, **kwargs})


# planted blocks -----------------------------------------------------------------------------------


def test_planted_blocks_have_the_strengths_they_say():
    p = planted(0.25, seed=4)
    inside, between = [], []
    for m in p.graph.matrices:
        same = p.labels[m.row_vertex][:, None] == p.labels[m.col_vertex][None]
        inside.append(m.weight[same].std().item())
        between.append(m.weight[~same].std().item())
    for a, b in zip(inside, between, strict=True):
        assert b / a == pytest.approx(0.25, rel=0.1)


def test_planted_blocks_are_recovered_and_nothing_is_found_where_nothing_is():
    for rho in (0.0, 0.3, 0.5):
        p = planted(rho, seed=1)
        assert adjusted_rand(fit_blocks(p.graph, 4).labels, p.labels) > (0.9 if rho == 0.5 else 0.99)
    p = planted(1.0, seed=1)
    P = fit_blocks(p.graph, 4)
    assert abs(adjusted_rand(P.labels, p.labels)) < 0.1 and P.meta["gain"] < 0.002


def test_the_block_model_beats_the_spectrum_where_the_signal_is_weak():
    from modcut.clustering import spectral_labels

    nets = [planted(0.6, seed=s, sizes=(48,) * 4) for s in range(4)]
    ours = [adjusted_rand(fit_blocks(p.graph, 4).labels, p.labels) for p in nets]
    spectral = [adjusted_rand(spectral_labels(p.graph, 4, 0), p.labels) for p in nets]
    assert sum(ours) > sum(spectral)


def test_the_block_model_takes_any_matrix_and_repeats_with_its_seed():
    labels = torch.arange(40) % 2
    w = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    w = (w + w.T) * torch.where(labels[:, None] == labels[None], 1.0, 0.2)
    graph = WeightGraph.from_matrix(w)
    a, b = fit_blocks(graph, 2, seed=3), fit_blocks(graph, 2, seed=3)
    assert torch.equal(a.labels, b.labels) and adjusted_rand(a.labels, labels) == 1.0


@pytest.mark.parametrize(("k", "starts", "words"), [(1, 8, "k must be"), (2, 0, "starts must be")])
def test_bad_block_models_are_refused(k, starts, words):
    with pytest.raises(ValueError, match=words):
        fit_blocks(planted(0.5).graph, k, starts=starts)
    with pytest.raises(ValueError, match="rho must be"):
        planted(1.5)


# two tasks ----------------------------------------------------------------------------------------


def test_two_task_nets_name_both_pictures_however_they_are_mixed():
    for mix in (0.0, 1.0):
        b = two_task(2, mix, seed=3, steps=300, images="drawn", cache=False)
        for i, model in enumerate(b.models()):
            assert min(f(model) for f in b.measures(i).values()) > 0.9


def test_mixed_pictures_are_a_rotation_and_splits_share_no_picture():
    a, b = torch.rand(4, 64), torch.rand(4, 64)
    torch.testing.assert_close(join(a, b, 0.0), torch.cat([a, b], 1))
    torch.testing.assert_close(join(a, b, 1.0), torch.cat([a + b, b - a], 1) / 2**0.5)
    torch.testing.assert_close(join(a, b, 0.3).norm(dim=1), torch.cat([a, b], 1).norm(dim=1))
    nets = two_task(1, seed=0, steps=1, images="drawn", cache=False)
    assert nets.order[0].sort().values.equal(torch.arange(1797))
    assert [len(nets.reference(0)[0]), len(nets.test(0)[0])] == [300, 497]


def test_a_two_task_net_does_not_depend_on_how_many_are_trained_with_it():
    small, large = (two_task(n, 0.5, seed=1, steps=20, images="drawn", cache=False) for n in (1, 3))
    assert torch.equal(small.order, large.order[:1])
    for name, p in small.together.parameters.items():
        torch.testing.assert_close(p, large.together.parameters[name][:1], rtol=1e-3, atol=1e-4)


def test_kappa_is_none_for_constant_answers_and_one_for_right_ones():
    truth = torch.arange(40) % 4
    assert kappa(truth, truth) == pytest.approx(1.0)
    assert kappa(torch.zeros(40, dtype=torch.int64), truth) == pytest.approx(0.0)
    assert kappa((truth + 1) % 4, truth) < 0
    sklearn = pytest.importorskip("sklearn.metrics")
    guess = torch.where(torch.arange(40) < 25, truth, 0)
    assert kappa(guess, truth) == pytest.approx(sklearn.cohen_kappa_score(truth, guess))


@pytest.mark.parametrize(("kwargs", "words"), [({"n": 0}, "n must be at least 1"), ({"mix": 1.5}, "mix must be in")])
def test_bad_two_task_populations_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        two_task(**{"n": 1, "images": "drawn", "cache": False, **kwargs})
