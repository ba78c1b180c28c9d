"""Cards say what the evidence says, beside controls, and nothing is lost or invented."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modcut
from modcut.reading import ModuleCards, scores
from modcut.reading.sentences import quoted
from reading_toys import TwoSkills, Vectors, letters, mixed, partition_of


def spell(ids: list[int]) -> str:
    return "".join(chr(97 + i) for i in ids)


def with_own_targets(model: torch.nn.Module, data: dict[str, list[torch.Tensor]]) -> dict[str, list[Any]]:
    """The model's own predictions as targets: then every unit that is used helps."""
    with torch.no_grad():
        return {name: [(x, model(x).argmax(-1)) for x in batches] for name, batches in data.items()}


@pytest.fixture(scope="module")
def cards() -> ModuleCards:
    model = TwoSkills()
    data = with_own_targets(model, letters())
    return modcut.describe(model, partition_of(model), data, tokenizer=spell, seed=1)


def test_every_module_has_a_card_that_says_it_is_evidence_only(cards: ModuleCards) -> None:
    assert [c.index for c in cards] == [0, 1]
    assert {c.origin for c in cards} == {"evidence only"}
    assert cards.meta["client"] is None and cards.meta["n"] == 48 and cards.meta["held_out"] == 24


@pytest.mark.parametrize(("module", "own", "other"), [(0, "low", "high"), (1, "high", "low")])
def test_a_module_with_one_function_is_used_and_needed_on_its_slice_only(
    cards: ModuleCards, module: int, own: str, other: str
) -> None:
    use = {s["slice"]: s["share"] for s in cards[module].evidence["use"]["slices"]}
    assert use[own] == pytest.approx(1.0) and use[other] == pytest.approx(0.0, abs=1e-6)
    rise = {s["slice"]: s for s in cards[module].evidence["effect"]["slices"]}
    assert rise[own]["rise"] > rise[own]["control_mean"] > 0
    assert abs(rise[other]["rise"]) < rise[other]["control_mean"]


def test_the_listed_tokens_are_those_of_the_function(cards: ModuleCards) -> None:
    for module, alphabet in enumerate((range(10), range(10, 20))):
        inputs = cards[module].evidence["inputs"]
        assert inputs["more_on"] and all(t["token"] in alphabet for t in inputs["more_on"])
        assert inputs["less_on"] and not any(t["token"] in alphabet for t in inputs["less_on"])
        assert all(ord(c["token"]) - 97 in alphabet for c in inputs["contexts"])


def test_detection_on_held_out_text_beats_the_shuffled_evidence() -> None:
    model = TwoSkills()
    for card in modcut.describe(model, partition_of(model), mixed()):
        score = card.scores["detection"]
        assert score["value"] > 0.95 and score["shuffled_mean"] < 0.1
        assert score["low"] <= score["value"] <= score["high"]
        assert len(score["random"]) == 3 and score["random_mean"] < score["value"]


def test_detection_is_at_chance_where_the_evidence_says_nothing() -> None:
    # Planted bug: evidence taken from labels that have nothing to do with the input must score at chance.
    model = TwoSkills()
    P = partition_of(model)
    seen = modcut.reading.observe.observe(model, P, mixed(96), seed=0)
    rng = np.random.default_rng(0)
    for w in seen.windows:
        w.use[:] = rng.random(w.use.shape)
    _, found = scores.score_all(seen.windows, 2, 3, seed=0)
    assert all(0.4 < f["detection"]["value"] < 0.6 for f in found)


def test_evidence_and_scores_come_from_different_samples() -> None:
    seen = modcut.reading.observe.observe(TwoSkills(), partition_of(TwoSkills()), letters(10), seed=3)
    assert sum(w.selection for w in seen.windows) == 10 and seen.scored_windows == 10
    chosen = {w.index for w in seen.windows if w.selection}
    cards = modcut.describe(TwoSkills(), partition_of(TwoSkills()), letters(10), seed=3)
    assert {c["window"] for card in cards for c in card.evidence["inputs"]["contexts"]} <= chosen


def test_use_is_activation_times_gradient_summed_over_the_module() -> None:
    # Reference: finite differences in float64 of the loss with respect to the hidden units of one sample.
    model = TwoSkills().double()
    P = partition_of(model)
    x = torch.tensor([[3, 12, 7]])
    seen = modcut.reading.observe.observe(model, P, [torch.cat([x, x])], seed=0)

    def loss_at(h: torch.Tensor) -> float:
        logits = h @ model.down.weight.T
        return float(torch.nn.functional.cross_entropy(logits[0, :-1], x[0, 1:]))

    with torch.no_grad():
        embedded = model.embed(x)
        h = torch.relu(model.up(embedded))
        expected = np.zeros((3, 2))
        for p in range(3):
            for unit in range(8):
                step = torch.zeros_like(h)
                step[0, p, unit] = 1e-6
                slope = (loss_at(h + step) - loss_at(h - step)) / 2e-6
                expected[p, unit // 4] += abs(slope * float(h[0, p, unit]))
        # The embedding channels, from autograd on the same net without hooks; outputs are not counted.
    inner = embedded.clone().requires_grad_(True)
    out = torch.relu(model.up(inner)) @ model.down.weight.T
    loss = torch.nn.functional.cross_entropy(out[0, :-1], x[0, 1:])
    (gradient,) = torch.autograd.grad(loss, [inner])
    use = (inner.detach() * gradient).abs()[0]
    expected += np.stack([use[:, :4].sum(1), use[:, 4:].sum(1)], axis=1)
    assert seen.windows[0].use[:, 0] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_inputs_that_are_not_tokens_are_described_by_their_features() -> None:
    torch.manual_seed(0)
    model = Vectors()
    data = [(torch.rand(128, 8), torch.zeros(128, 2))]
    cards = modcut.describe(model, partition_of(model), data)
    for module, own in enumerate((range(4), range(4, 8))):
        raising = {f["feature"] for f in cards[module].evidence["inputs"]["features"] if f["correlation"] > 0.2}
        assert raising and raising <= set(own)
        assert cards[module].scores["detection"]["value"] > 0.9
        assert cards[module].evidence["effect"]["loses"] == []  # a regression has no probabilities


def test_the_model_is_left_as_it_was() -> None:
    model = TwoSkills().train()
    model.up.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modcut.describe(model, partition_of(model), letters(4))
    assert model.training and not model.up.weight.requires_grad and model.down.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model.up._forward_pre_hooks and not model.down._forward_hooks and not model._forward_hooks


def test_frozen_models_can_be_described() -> None:
    model = TwoSkills().requires_grad_(False)
    assert modcut.describe(model, partition_of(model), letters(4))[0].evidence["use"]["share"] is not None
    assert not any(p.requires_grad for p in model.parameters())


def test_the_same_seed_gives_the_same_cards() -> None:
    model = TwoSkills()
    a, b = (modcut.describe(model, partition_of(model), letters(6), seed=5) for _ in range(2))
    assert a.to_dict()["cards"] == b.to_dict()["cards"]


def test_cards_survive_saving(cards: ModuleCards, tmp_path: Path) -> None:
    cards.save(tmp_path / "deep" / "cards.json")
    again = ModuleCards.load(tmp_path / "deep" / "cards.json")
    assert again.to_dict() == cards.to_dict()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["cards.json"]


def test_cards_hold_only_numbers_that_json_knows(cards: ModuleCards) -> None:
    assert json.loads(json.dumps(cards.to_dict(), allow_nan=False)) == cards.to_dict()


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "modcut cards", "version": 99}', "not json", '"x"'])
def test_files_that_hold_no_cards_are_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="must be"):
        ModuleCards.load(tmp_path / "x.json")


def test_interfaces_name_the_layers_that_carry_them() -> None:
    model = TwoSkills()
    with torch.no_grad():
        model.up.weight[4:, :4] = 0.5  # module 1 now reads embedding channels of module 0
    P = partition_of(model)
    cards = modcut.describe(model, P, letters(6))
    read = [f for f in cards[1].interfaces if f["direction"] == "reads"]
    assert [f["module"] for f in read] == [0]
    assert read[0]["strength"] == pytest.approx(16 * 0.5)
    assert read[0]["places"][0] | {"strength": 0} == {"into": "hidden", "from": "in", "strength": 0}
    assert cards[0].evidence["writes_to"][0]["module"] == 1 and not cards[0].evidence["reads_from"]
    assert cards[0].evidence["cut"]["leaving"] == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([torch.zeros(1, 4, dtype=torch.int64)], "at least two samples"),
        ([], "at least one batch"),
    ],
)
def test_too_little_data_is_refused(data: list[torch.Tensor], message: str) -> None:
    model = TwoSkills()
    with pytest.raises(ValueError, match=message):
        modcut.describe(model, partition_of(model), data)


def test_no_effect_is_given_without_a_control() -> None:
    model = TwoSkills()
    with pytest.raises(ValueError, match="controls must be at least 1"):
        modcut.describe(model, partition_of(model), letters(4), controls=0)


def test_a_tokenizer_that_cannot_decode_is_refused() -> None:
    with pytest.raises(TypeError, match="tokenizer must have decode"):
        modcut.describe(TwoSkills(), partition_of(TwoSkills()), letters(4), tokenizer=3)


def test_batches_of_one_sample_fill_both_halves() -> None:
    data = [torch.randint(0, 20, (1, 8)) for _ in range(6)]
    cards = modcut.describe(TwoSkills(), partition_of(TwoSkills()), data)
    assert cards.meta["n"] == 6 and cards.meta["held_out"] == 3


def test_padding_is_not_evidence() -> None:
    class Padded(TwoSkills):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(input_ids)

    model = Padded()
    mask = torch.ones(8, 6, dtype=torch.int64)
    mask[:, 4:] = 0
    batch = {"input_ids": torch.randint(0, 20, (8, 6)), "attention_mask": mask}
    cards = modcut.describe(model, partition_of(model), [batch], loss_fn=lambda m, b: m(**b).logsumexp(-1).mean())
    assert cards.meta["positions"] == 8 * 4


# -- scores -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_chance_that_a_positive_outranks_a_negative(items: list[tuple[int, bool]]) -> None:
    s = np.array([a for a, _ in items])
    y = np.array([b for _, b in items])
    pairs = [(a > b) + 0.5 * (a == b) for a in s[y] for b in s[~y]]
    value = scores.auroc(s, y)
    assert math.isnan(value) if not pairs else value == pytest.approx(float(np.mean(pairs)))


@pytest.mark.parametrize(("text", "shown"), [("a\n", "“a\\n”"), ("é", "“é”"), ("\x00", "“\\x00”"), ("", "“”")])
def test_tokens_are_shown_with_their_unprintable_characters(text: str, shown: str) -> None:
    assert quoted(text) == shown


def test_few_controls_are_said_to_be_no_evidence() -> None:
    from modcut.reading.sentences import _effect

    def told(controls: list[float]) -> str:
        piece = {"slice": "", "rise": 1.0, "controls": controls}
        return _effect({"slices": [piece], "ablation": "mean", "objective": "the loss", "loses": []})

    assert "67 % would lie outside such a range: no evidence by itself" in told([0.1, 0.2])
    assert "no evidence" not in told([0.0, 2.0])  # inside
    assert "no evidence" not in told([i / 100 for i in range(40)])
