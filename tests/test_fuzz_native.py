"""A short run of the fuzz target; ``python tests/fuzz_native.py --minutes 10`` is the long one."""

from __future__ import annotations

import pytest

pytest.importorskip("modcut._native")


def test_lying_arrays_are_refused_or_answered_and_crash_nothing() -> None:
    import fuzz_native

    counts = fuzz_native.supervise(seed=0, calls=4000, minutes=2)
    assert not counts.get("failures")
    for which in ("flow", "tree", "values", "degree"):  # both happen often, or nothing was tested
        assert counts[f"{which}_answered"] > 100
        assert counts[f"{which}_refused"] > 100
