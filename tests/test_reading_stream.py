"""Evidence of a stream: bounded, mergeable, sharded, stopped and continued, stored and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modcut
from modcut.reading import Evidence, collect_evidence, token_batches
from modcut.reading.sketch import Sketch, Window, from_arrays, is_selection, of_windows, to_arrays
from reading_toys import VOCAB, TwoSkills, Vectors, letters, partition_of


def random_windows(count: int, seed: int, *, tokens: bool = True, k: int = 3, draws: int = 2) -> list[Window]:
    rng = np.random.default_rng(seed)
    out = []
    for n in range(count):
        length = int(rng.integers(1, 6)) if tokens else 1
        use = rng.random((length, draws, k)).astype(np.float32) * (rng.random((length, draws, k)) < 0.8)
        ids = rng.integers(0, 7, length) if tokens else None
        vector = None if tokens else rng.random(4).astype(np.float32)
        name = "ab"[n % 2]
        out.append(Window(n, name, is_selection(0, name, n // 2), ids, vector, use))
    return out


def same(a: Sketch, b: Sketch) -> None:
    x, x_plain = to_arrays(a)
    y, y_plain = to_arrays(b)
    assert x_plain == y_plain and x.keys() == y.keys()
    for name in x:
        if np.issubdtype(x[name].dtype, np.floating) and not name.startswith(("kept", "spots")):
            np.testing.assert_allclose(x[name], y[name], rtol=1e-12, err_msg=name)  # sums: to rounding
        else:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)  # choices: exactly


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(0, 10**6), st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False))
def test_the_sketch_of_a_stream_is_the_merge_of_its_pieces_in_any_order(
    count: int, seed: int, parts: int, tokens: bool, rnd: Any
) -> None:
    windows = random_windows(count, seed, tokens=tokens)
    whole = of_windows(windows, keep=5)
    pieces = [Sketch(3, 2, 0, 5) for _ in range(parts)]
    for w in windows:
        rnd.choice(pieces).add(w)
    rnd.shuffle(pieces)
    merged = pieces[0]
    for p in pieces[1:]:
        merged.merge(p)
    same(whole, merged.close())


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 20), st.integers(0, 10**6), st.booleans())
def test_a_sketch_survives_being_written_as_arrays(count: int, seed: int, tokens: bool) -> None:
    sketch = of_windows(random_windows(count, seed, tokens=tokens), keep=4)
    arrays, plain = to_arrays(sketch)
    same(sketch, from_arrays(arrays, json.loads(json.dumps(plain))))


def test_sums_are_those_of_the_windows() -> None:
    windows = random_windows(60, 3)
    s = of_windows(windows, keep=4)
    held = [w for w in windows if not w.selection]
    total, count, positions = s.use(None, selection=False)
    np.testing.assert_allclose(total, sum(w.use.sum(0, dtype=np.float64) for w in held))
    assert (count, positions) == (len(held), sum(len(w.use) for w in held))
    assert len(s.sample) == 4 * 4 and s.windows == 60  # 2 slices x 2 halves x 4, however long the stream


def test_of_every_two_neighbours_exactly_one_is_held_out() -> None:
    for seed in range(20):
        for pair in range(20):
            assert is_selection(seed, "x", 2 * pair) != is_selection(seed, "x", 2 * pair + 1)


def stream(batches: int, size: int = 4) -> Iterator[torch.Tensor]:
    g = torch.Generator().manual_seed(9)
    for _ in range(batches):
        yield torch.randint(0, VOCAB, (size, 6), generator=g)


def test_memory_does_not_grow_with_the_stream() -> None:
    model = TwoSkills()
    kept = []
    for batches in (20, 200):
        E = collect_evidence(
            model, partition_of(model), stream(batches), windows=16, samples=4, controls=2, measure="activity"
        )
        assert E.meta["n"] == 4 * batches and E.meta["positions"] == 24 * batches
        kept.append((len(E.windows), E.meta["samples"], len(E.carried)))
    assert kept[0] == kept[1] == (32, 8, 8)


class Stops:
    """Data that is interrupted after some batches, as by Ctrl-C."""

    def __init__(self, data: list[Any], after: int) -> None:
        self.data, self.after = data, after

    def __iter__(self) -> Iterator[Any]:
        for n, batch in enumerate(self.data):
            if n == self.after:
                raise KeyboardInterrupt
            yield batch


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    model, data = TwoSkills(), list(stream(8))
    P = partition_of(model)
    whole = collect_evidence(model, P, data, controls=2)
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(KeyboardInterrupt):
        collect_evidence(model, P, Stops(data, 5), controls=2, path=tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    calls.clear()
    done = collect_evidence(model, P, data, controls=2, path=tmp_path)
    handle.remove()
    first = len(calls)
    assert first < len(data) + 200 and (done.modules, done.scores, done.groups) == (
        whole.modules,
        whole.scores,
        whole.groups,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evidence.json", "evidence.safetensors"]
    assert not any(p.suffix in (".pkl", ".pt", ".bin") for p in tmp_path.rglob("*"))


def test_a_run_is_not_continued_with_other_data_or_settings(tmp_path: Path) -> None:
    model, data = TwoSkills(), list(stream(8))
    P = partition_of(model)
    with pytest.raises(KeyboardInterrupt):
        collect_evidence(model, P, Stops(data, 5), controls=2, path=tmp_path)
    with pytest.raises(ValueError, match="its first 5 batches have another digest"):
        collect_evidence(model, P, data[::-1], controls=2, path=tmp_path)
    with pytest.raises(ValueError, match="begun with another model, partition or other settings"):
        collect_evidence(model, P, data, controls=3, path=tmp_path)


def test_stored_evidence_is_used_again_without_running_the_model(tmp_path: Path) -> None:
    model = TwoSkills()
    P = partition_of(model)
    cards = modcut.describe(model, P, letters(6), evidence=tmp_path)
    handle = model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    again = modcut.describe(model, P, letters(6), evidence=tmp_path)
    third = modcut.describe(model, P, letters(6), evidence=Evidence.load(tmp_path))
    handle.remove()
    assert cards.to_dict()["cards"] == again.to_dict()["cards"] == third.to_dict()["cards"]


def test_stored_evidence_of_something_else_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = TwoSkills()
    P = partition_of(model)
    modcut.describe(model, P, letters(6), evidence=tmp_path)
    with pytest.raises(ValueError, match="the stored data differ"):
        modcut.describe(model, P, letters(6, seed=1), evidence=tmp_path)
    with pytest.raises(ValueError, match=r"settings \(seed: stored 0\) differ"):
        modcut.describe(model, P, letters(6), evidence=tmp_path, seed=1)
    with pytest.raises(ValueError, match="the stored partition differ"):
        modcut.describe(model, modcut.Partition(1 - P.labels, P.graph, 2), letters(6), evidence=tmp_path)
    with torch.no_grad():
        model.up.weight[0, 0] += 1
    with pytest.raises(ValueError, match="the stored model differ"):
        modcut.describe(model, P, letters(6), evidence=tmp_path)
    (tmp_path / "evidence.json").write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        Evidence.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"evidence\.json"):
        Evidence.load(tmp_path / "none")


_RANK = """
import json, sys, torch
sys.path.insert(0, {tests!r})
from reading_toys import *
from modcut.reading import collect_evidence
torch.distributed.init_process_group("gloo")
model = TwoSkills() if {tokens} else Vectors()
g = torch.Generator().manual_seed(1)
data = letters(24) if {tokens} else [(torch.rand(8, 8, generator=g), torch.zeros(8, 2)) for _ in range(5)]
if {tokens}:
    data = {{n: list(b[0].split(5)) for n, b in data.items()}}
seen = []
handle = model.register_forward_pre_hook(lambda *_: seen.append(1))
E = collect_evidence(model, partition_of(model), data, controls=4, measure={measure!r})
rank = torch.distributed.get_rank()
E.save({out!r} + str(rank))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(("tokens", "measure"), [(True, "use"), (False, "activity")])
def test_two_ranks_give_the_evidence_of_one_process(tokens: bool, measure: Any, tmp_path: Path) -> None:
    model: Any = TwoSkills() if tokens else Vectors()
    g = torch.Generator().manual_seed(1)
    data: Any = [(torch.rand(8, 8, generator=g), torch.zeros(8, 2)) for _ in range(5)]
    if tokens:
        data = {n: list(b[0].split(5)) for n, b in letters(24).items()}
    one = collect_evidence(model, partition_of(model), data, controls=4, measure=measure)
    script = tmp_path / "rank.py"
    out = str(tmp_path / "rank")
    script.write_text(_RANK.format(tests=str(Path(__file__).parent), tokens=tokens, measure=measure, out=out))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    path = os.pathsep.join([str(Path(modcut.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        two = Evidence.load(f"{out}{rank}")
        assert [w.index for w in two.windows] == [w.index for w in one.windows]
        for a, b in zip(two.windows, one.windows, strict=True):
            np.testing.assert_array_equal(a.use, b.use)
        alike(two.modules, json.loads(json.dumps(one.modules)))
        alike(two.scores, json.loads(json.dumps(one.scores)))
        assert two.meta["data"] == one.meta["data"] and two.meta["evidence"] == one.meta["evidence"]


def alike(a: Any, b: Any) -> None:
    """Equal, numbers to 1e-9 of themselves: sums of shards are added in another order."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            alike(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            alike(x, y)
    elif isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)
    else:
        assert a == b


# -- texts ------------------------------------------------------------------------------------------------------------


class Letters:
    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(c) - 96 for c in text]


class Rows:
    """A stand-in for ``datasets.Dataset``: rows are dicts, and it can be read again."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"id": n, "text": t} for n, t in enumerate(self.texts))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("abc", max_size=9), min_size=1, max_size=8), st.integers(2, 5), st.integers(1, 3))
def test_windows_hold_the_texts_one_after_the_other(texts: list[str], length: int, batch: int) -> None:
    flat = [t for text in texts for t in [*Letters().encode(text), 0]]
    expected = flat[: len(flat) // length * length]
    for source in (texts, Rows(texts), iter(texts)):
        rows = [row for b in token_batches(source, Letters(), length=length, batch=batch) for row in b.tolist()]
        assert [t for row in rows for t in row] == expected


def test_splits_become_slices_and_limits_hold() -> None:
    data = token_batches({"x": Rows(["abcabc"] * 9), "y": ["ab"] * 9}, Letters(), length=4, max_tokens=8, named=True)
    assert isinstance(data, dict) and {n: [b["input_ids"].numel() for b in p] for n, p in data.items()} == {
        "x": [8],
        "y": [8],
    }
    assert modcut.describe(
        TwoSkills(), partition_of(TwoSkills()), {n: [b["input_ids"] for b in p] for n, p in data.items()}
    )


def test_rows_of_the_datasets_library_are_read() -> None:
    datasets = pytest.importorskip("datasets", reason="the optional library datasets is not installed")
    pa = pytest.importorskip("pyarrow")
    rows = [{"text": "abc"}, {"text": "bca"}]
    streamed = datasets.IterableDataset.from_generator(lambda: iter(rows))
    # With a fingerprint of its own: hashing by dill fails for some pairs of dill and pyarrow.
    stored = datasets.Dataset(datasets.table.InMemoryTable(pa.Table.from_pylist(rows)), fingerprint="0")
    for source in (streamed, stored, datasets.DatasetDict({"a": stored})["a"]):
        assert [b.tolist() for b in token_batches(source, Letters(), length=4)] == [[[1, 2, 3, 0], [2, 3, 1, 0]]]
    both = token_batches(datasets.DatasetDict({"a": stored, "b": stored}), Letters(), length=4)
    assert list(both) == ["a", "b"]


@pytest.mark.parametrize(
    ("source", "how", "message"),
    [
        ("abc", {}, "got one string"),
        ([3], {}, r"must hold texts, or rows with a text in column 'text', got int"),
        ([{"body": "abc"}], {}, r"got NoneType \(columns \['body'\]\)"),
        (["abc"], {"length": 1}, "length must be at least 2"),
    ],
)
def test_what_holds_no_text_is_refused(source: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        list(token_batches(source, Letters(), **how))
