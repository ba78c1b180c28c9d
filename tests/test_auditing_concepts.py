"""find_concept: what can be read from a module and what the model uses are two things, each beside its control."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import hand_built
import modcut
from auditing_nets import random_gpt, random_mlp, sides, wide
from modcut.auditing import Concept, concept_sets, find_concept, load_concept
from modcut.auditing.probe import decode, ranks_above
from modcut.partition import Partition


def with_a_copy_nobody_reads() -> tuple[nn.Sequential, Partition]:
    """Module 0 computes the answer; module 1 holds the same values in units whose outgoing weights are zero."""
    model, graph = hand_built.mlp((2, 24, 2))
    w1, w2 = torch.zeros(24, 2), torch.zeros(2, 24)
    for unit in range(24):
        sign = 1.0 if (unit // 2) % 2 else -1.0
        w1[unit] = torch.tensor([sign, -sign])
        if unit % 2 == 0:
            w2[0 if sign > 0 else 1, unit] = 1.0
    with torch.no_grad():
        model[0].weight.copy_(w1)
        model[0].bias.zero_()
        model[2].weight.copy_(w2)
        model[2].bias.zero_()
    labels = torch.cat([torch.full((2,), 2), torch.arange(24) % 2, torch.full((2,), 2)])
    return model.eval(), Partition(labels, graph, 3)


@pytest.mark.parametrize("task", [0, 1])
def test_the_module_of_a_task_is_used_for_its_concept_and_the_other_is_not(task):
    model, P = wide()
    hits = find_concept(model, P, *sides(task), name="first", controls=40)
    assert hits.used == (task,) and hits.modules[0].module == task
    other = hits[1 - task]
    assert other.finding == "neither" and abs(other.use.value) < 0.2 * hits[task].use.value
    assert hits[task].decodable.value > 0.95 and hits[task].low > 0


def test_what_can_be_read_but_is_read_by_nothing_is_called_decodable_but_not_used():
    model, P = with_a_copy_nobody_reads()
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    yes = x[:, 0] > x[:, 1]
    hits = find_concept(model, P, x[yes][:40], x[~yes][:40], controls=20)
    assert hits[1].finding == "decodable but not used" and hits[1].use.value == pytest.approx(0.0, abs=1e-9)
    assert hits[1].decodable.value > 0.95
    assert 1 in hits.decodable_only and 1 not in hits.used
    assert hits[0].low > 0  # the copy that is read


def test_a_concept_of_the_other_task_shuffled_examples_show_nothing():
    model, P = wide()
    x = torch.randn(80, 16, generator=torch.Generator().manual_seed(3))
    hits = find_concept(model, P, x[:40], x[40:], controls=40)
    assert hits.used == ()


def test_false_uses_on_random_nets_are_rare():
    found = tests = 0
    for seed in range(12):
        model, P = random_mlp((6, 24, 24, 4), seed=seed, k=3)
        x = torch.randn(24, 6, generator=torch.Generator().manual_seed(seed))
        hits = find_concept(model, P, x[:12], x[12:], controls=20, shuffles=19, seed=seed)
        found += len(hits.used)
        tests += len(hits.modules)
    assert found <= 0.1 * tests


def test_the_use_is_what_two_swaps_measure_in_the_plainest_way():
    model, P = wide()
    positives, negatives = sides(0, 8)
    hits = find_concept(model, P, positives, negatives, controls=1, modules=[0])
    x = torch.cat([positives, negatives])
    with torch.no_grad():
        hidden, intact = model[1](model[0](x)), model(x).double().log_softmax(1)
    own_in, own_hid = P.labels[:16] == 0, P.labels[16:40] == 0
    fold, values = torch.arange(8).repeat(2) % 2, torch.zeros(16, dtype=torch.float64)
    for i in range(16):
        moved = []
        for side in (slice(0, 8), slice(8, 16)):
            source = torch.zeros(16, dtype=torch.bool)
            source[side] = True
            source &= fold != fold[i]
            xi = x[i].clone()
            xi[own_in] = x[source].mean(0)[own_in]
            hi = model[1](model[0](xi)).clone()
            hi[own_hid] = hidden[source].mean(0)[own_hid]
            with torch.no_grad():
                z = model[2](hi).double().log_softmax(0)
            moved.append(float((intact[i].exp() * (intact[i] - z)).sum()))
        values[i] = moved[1] - moved[0] if i < 8 else moved[0] - moved[1]
    want = float((values[:8].mean() + values[8:].mean()) / 2)
    assert hits[0].use.value == pytest.approx(want, rel=1e-4)


def test_a_score_of_ones_own_is_signed():
    model, P = wide()
    positives, negatives = sides(0)

    def yes(z):
        return z[:, 2] - z[:, 0]

    hits = find_concept(model, P, positives, negatives, score=yes, controls=20)
    assert hits.used == (0,)
    against = find_concept(model, P, positives, negatives, score=lambda z: -yes(z), controls=20)
    assert against[0].use.value == pytest.approx(-hits[0].use.value) and against.used == ()
    with pytest.raises(ValueError, match="one number per sample"):
        find_concept(model, P, positives, negatives, score=lambda z: z, controls=1)


def test_the_probe_is_held_out_and_its_null_is_centred():
    g = torch.Generator().manual_seed(0)
    side = torch.arange(24) < 12
    noise = [decode(torch.randn(24, 50, generator=g), side)[0] for _ in range(60)]
    assert np.mean(noise) == pytest.approx(0.5, abs=0.06)
    x = torch.randn(24, 50, generator=g)
    z = (x / x.std(0, unbiased=False)).double()
    ridge = 0.3 * (z - z.mean(0)).square().sum(1).mean()
    y, scores = side.double() * 2 - 1, []
    for i in range(24):  # the primal problem, without the pair of each example
        keep = torch.arange(24) % 12 != i % 12
        rows = z[keep] - z[keep].mean(0)
        w = torch.linalg.solve(rows.T @ rows + ridge * torch.eye(50, dtype=torch.float64), rows.T @ y[keep])
        scores.append((z[i] - z[keep].mean(0)) @ w)
    want = float(ranks_above(torch.stack(scores)[:, None], side[:, None])[0])
    assert decode(x, side)[0] == pytest.approx(want)
    assert decode(torch.ones(24, 3), side, 5)[1].tolist() == [0.5] * 5


def test_pairs_of_near_twins_do_not_push_the_probe_below_chance():
    g = torch.Generator().manual_seed(0)
    scene = torch.randn(12, 50, generator=g)  # what both texts of a pair share
    twins = [torch.cat([scene, scene]) + 0.05 * torch.randn(24, 50, generator=g) for _ in range(30)]
    found = [decode(x, torch.arange(24) < 12, 19) for x in twins]
    assert np.mean([f[0] for f in found]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([f[1].mean() for f in found]) == pytest.approx(0.5, abs=0.03)
    uneven = torch.randn(24, 50, generator=g)
    assert len(decode(uneven, torch.arange(24) < 10, 3)[1]) == 3


def test_texts_of_different_lengths_are_read_token_by_token(tmp_path):
    model, P = random_gpt()

    class Letters:
        def encode(self, text):
            return [ord(c) % 12 for c in text]

    concept = concept_sets()["arithmetic"]
    short = [t[:6] for t in concept.positives[:5]], [t[-5:] for t in concept.negatives[:5]]
    hits = find_concept(model, P, *short, name="sums", tokenizer=Letters(), controls=2, shuffles=19)
    assert hits.record["n"] == 10 and len(hits.modules) == 3
    again = find_concept(model, P, *short, name="sums", tokenizer=Letters(), controls=2, shuffles=19)
    assert again.modules == hits.modules
    hits.save(tmp_path / "hits.json")
    saved = json.loads((tmp_path / "hits.json").read_text())
    assert saved["kind"] == "concept" and saved["record"]["concept"] == hits.record["concept"]
    text = str(hits)
    assert "random modules" in text and "shuffled" in text and hits.record["model"][:12] in text


def test_the_sets_of_the_package_are_balanced_documented_and_public_domain():
    sets = concept_sets()
    assert set(sets) == {"arithmetic", "deception", "harm", "place_names", "power_seeking"}
    for c in sets.values():
        assert len(c.positives) == len(c.negatives) == 12 and c.about
        words = [np.mean([len(t.split()) for t in side]) for side in (c.positives, c.negatives)]
        assert abs(words[0] - words[1]) < 1.7, c.name  # length alone must not tell the sides apart
        assert len({*c.positives, *c.negatives}) == 24
    assert [c.name for c in sets.values() if not c.harmful] == ["arithmetic", "place_names"]
    assert len({c.digest for c in sets.values()}) == 5
    from importlib import resources

    for f in (resources.files("modcut") / "data" / "concepts").iterdir():
        assert json.loads(f.read_text(encoding="utf-8"))["license"].startswith("CC0-1.0")


def test_a_concept_of_ones_own_is_read_from_a_file(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"name": "rain", "positives": list("abcd"), "negatives": list("efgh")}))
    assert load_concept(path).name == "rain" and load_concept(path).harmful
    for text, words in [
        ("{", "is not JSON"),
        ("[]", "must be an object"),
        (json.dumps({"name": "x", "positives": ["a"] * 4, "negatives": []}), "one-sided"),
        (json.dumps({"name": "x", "positives": [1], "negatives": []}), "lists of texts"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_concept(path)


X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("positives", "negatives", "kwargs", "error", "words"),
    [
        (X, X[:0], {}, ValueError, "one-sided: negatives must hold at least 4 examples, got 0"),
        (X[:2], X, {}, ValueError, "one-sided: positives"),
        (X, X, {}, ValueError, "share 8 examples"),
        (["a"] * 4, ["b"] * 4, {}, ValueError, "pass tokenizer="),
        ("abcd", ["b"] * 4, {}, TypeError, "must be a sequence of examples, got str"),
        ([None] * 4, X, {}, TypeError, "got NoneType|Could not infer"),
        (X * torch.nan, X, {}, ValueError, "must be finite"),
        (X, -X, {"controls": 0}, ValueError, "controls must be at least 1"),
        (X, -X, {"modules": [7]}, ValueError, r"indices in \[0, 2\)"),
        (X, -X, {"name": ""}, TypeError, "name must be a text"),
        (["a"] * 4, ["b"] * 4, {"tokenizer": 3}, TypeError, "tokenizer must have encode"),
    ],
)
def test_bad_input_is_named(positives, negatives, kwargs, error, words):
    model, P = wide()
    with pytest.raises((error, RuntimeError) if error is TypeError else error, match=words):
        find_concept(model, P, positives, negatives, **kwargs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_activations_that_are_not_finite_are_refused_and_no_hook_is_left():
    model, P = wide()
    with torch.no_grad():
        model[0].bias[3] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        find_concept(model, P, *sides(0, 4), controls=1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_dropout_does_not_blur_it_and_the_mode_comes_back():
    model, P = wide()
    model = nn.Sequential(*model, nn.Dropout(0.5)).train()
    one, two = (find_concept(model, P, *sides(0, 8), controls=2) for _ in range(2))
    assert one.modules == two.modules and model.training and model[3].training


def test_it_is_public():
    assert modcut.find_concept is find_concept
    assert Concept("x", (), ()).harmful
