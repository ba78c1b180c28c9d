"""The claim of the first example, at a size for tests: an ordinary GPT's two skills are a cut of its co-usage tree."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "two_skills.py"


def load():
    spec = importlib.util.spec_from_file_location("two_skills", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["two_skills"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_two_skills_are_found_without_labels_and_not_where_usage_is_shuffled():
    two_skills = load()
    result = two_skills.study(0, steps=1500, random=12, powers=(1, 4), say=False)
    assert "refused" not in result, result
    trees = result["trees"]
    real, null = trees["co-usage, p = 4, real"], trees["co-usage, p = 4, shuffled"]
    assert real["conductance"][0] < 0.6 * null["conductance"][0]
    assert real["side"] > 50 and real["ari"] > 0.4 and real["ari_selective"] > 0.9
    assert abs(null["ari_selective"]) < 0.3
    # Magnitudes alone, and a blunt exponent, give stars: single units.
    for name in ("weights alone", "co-usage, p = 1, real"):
        assert trees[name]["side"] == 1
    functional, weights = result["partitions"]["functional"], result["partitions"]["weights (spectral)"]
    assert functional["tv"] > 2 * functional["random_tv"] and functional["p"] <= 2 / 13
    assert functional["tv"] > 2 * weights["tv"]
    assert result["eigenvalues"][0] > 5 * result["null_eigenvalue"]


def test_skills_that_are_not_learned_are_not_reported():
    two_skills = load()
    result = two_skills.study(0, steps=2, say=False)
    assert "not learned" in result["refused"] and "trees" not in result
    assert "Not reported" in two_skills.report([result])


def test_the_example_trains_the_same_network_from_the_same_seed():
    two_skills = load()
    a, b = (two_skills.train(3, 2, say=False).state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)
