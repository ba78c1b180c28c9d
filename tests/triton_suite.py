"""The Triton kernels under Triton's interpreter; run by test_triton.py in a process of its own.

``TRITON_INTERPRET=1`` must be set before triton is imported, and would change it for every other test of a session.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

import hand_built
from modcut import _fused
from modcut.loss import ModularityLoss
from modcut.ops import reference, share_rows, triton_share
from modcut.ops.triton_share import TritonShare
from modcut.optim import Proximal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What every path of the kernels is for; (rows, columns), with how many kinds of path they make for 4-byte entries.
SHAPES = [
    (1, 1), (3, 7), (17, 33), (70, 256), (65, 252), (5, 260), (9, 1000), (3, 1028), (2, 4096), (2, 4100), (3, 8200),
    (2, 5001), (1, 300), (300, 1),
]  # fmt: skip


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype], "atol": 1e-6}


class Problem:
    """Weights with labels, scales and row weights, and what the reference says about them in float64."""

    def __init__(self, weights: list[Tensor], k: int = 3, seed: int = 0, outside: bool = True) -> None:
        g = torch.Generator().manual_seed(seed)
        self.weights, self.k = weights, k
        self.rows, self.cols = sum(w.shape[0] for w in weights), sum(w.shape[1] for w in weights)
        low = -1 if outside else 0
        self.row, self.col = (torch.randint(low, k, (n,), generator=g) for n in (self.rows, self.cols))
        self.scales = torch.rand(self.cols, generator=g) + 0.1
        self.row_weights = torch.randn(self.rows, generator=g)
        self.kernel = TritonShare(weights, self.row, self.col, k)

    def parts(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        out, i, j = [], 0, 0
        for w in self.weights:
            r, c = slice(i, i + w.shape[0]), slice(j, j + w.shape[1])
            out.append((w.double(), self.scales[c].double(), self.row[r], self.col[c], self.row_weights[r].double()))
            i, j = r.stop, c.stop
        return out

    def outputs(self, fill: float = float("nan")) -> list[Tensor]:
        """NaN, so that an entry that a kernel leaves unwritten shows."""
        return [torch.empty_strided(w.shape, w.stride(), dtype=w.dtype).fill_(fill) for w in self.weights]

    def check_values(self) -> None:
        value, leak, strength = self.kernel.run(self.weights, None, self.scales, self.row_weights)
        want = [reference.leak_of(w, s, r, c) for w, s, r, c, _ in self.parts()]
        torch.testing.assert_close(leak.double(), torch.cat([x[0] for x in want]), rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(strength.double(), torch.cat([x[1] for x in want]), rtol=2e-5, atol=0)
        torch.testing.assert_close(value, (leak * self.row_weights).sum())

    def check_gradients(self) -> None:
        grads = self.outputs()
        self.kernel.run(self.weights, grads, self.scales, self.row_weights)
        added = self.outputs(1.0)
        self.kernel.run(self.weights, added, self.scales, self.row_weights, accumulate=True)
        again = self.outputs(1.0)
        self.kernel.add_gradient_(self.weights, again, self.scales, self.row_weights)
        for grad, more, same, (w, s, r, c, g) in zip(grads, added, again, self.parts(), strict=True):
            want = reference.gradient_of(g, w, s, r, c)
            torch.testing.assert_close(grad.double(), want, **tolerance(grad.dtype))
            torch.testing.assert_close(more.double(), want + 1, **tolerance(grad.dtype))
            assert torch.equal(more, same)

    def check_proximal(self) -> None:
        steps = torch.where(torch.arange(self.rows) % 5 == 0, 0.0, self.row_weights.abs())
        wants, i = [], 0
        for w, s, r, c, _ in self.parts():
            step = steps[i : i + w.shape[0]].double()
            # The step of a row scales like its strength, inverted.
            row = [reference.shrunk(w[j : j + 1], s, r[j : j + 1], c, float(step[j])) for j in range(w.shape[0])]
            wants.append(torch.cat(row) if row else w)
            i += w.shape[0]
        before = [w.clone() for w in self.weights]
        self.kernel.shrink_(self.weights, self.scales, steps)
        for w, want, old in zip(self.weights, wants, before, strict=True):
            torch.testing.assert_close(w.double(), want, **tolerance(w.dtype))
            exact = want == old.double()
            assert torch.equal(w[exact], old[exact]), "what does not cross is left alone, to the bit"

    def check(self) -> None:
        self.check_values()
        self.check_gradients()
        self.check_proximal()


def weight(rows: int, cols: int, dtype: torch.dtype, transposed: bool, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(*((cols, rows) if transposed else (rows, cols)), generator=g).to(dtype)
    return w.t() if transposed else w


class TestAnswers:
    @pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [(s, torch.float32) for s in SHAPES] + [(s, d) for s in SHAPES[2::4] for d in DTYPES[1:]],
        ids=str,
    )
    def test_everything_equals_the_reference(
        self, shape: tuple[int, int], transposed: bool, dtype: torch.dtype
    ) -> None:
        Problem([weight(*shape, dtype, transposed)]).check()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_all_matrices_of_a_model_in_one_launch(self, dtype: torch.dtype) -> None:
        shapes = [(70, 64, False), (64, 70, True), (33, 1024, False), (0, 5, False), (4, 0, False), (9, 4096, False)]
        weights = [weight(r, c, dtype, t, i) for i, (r, c, t) in enumerate(shapes)]
        weights += [torch.randn(6, 5, 3, 3).to(dtype), torch.randn(8, 30).to(dtype)[1::2, 3:25]]
        problem = Problem(weights, k=4)
        calls = []
        share = problem.kernel._kernels.share

        class Counted:
            def __getitem__(self, grid: tuple[int, ...]) -> object:
                calls.append(grid)
                return share[grid]

        problem.kernel._kernels = type("kernels", (), {"share": Counted(), "STEPS": problem.kernel._kernels.STEPS})
        problem.check()
        assert len(calls) == 5, "one launch for the value, the gradient, two additions and the proximal step each"

    @settings(max_examples=12)  # interpreted programs take milliseconds each
    @given(
        shapes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 70), st.booleans()), min_size=1, max_size=4),
        k=st.sampled_from([1, 2, 7, 255]), dtype=st.sampled_from(DTYPES), zeros=st.floats(0, 1),
        seed=st.integers(0, 10_000),
    )  # fmt: skip
    def test_on_drawn_matrices(
        self, shapes: list[tuple[int, int, bool]], k: int, dtype: torch.dtype, zeros: float, seed: int
    ) -> None:
        weights = [weight(r, c, dtype, t, seed + i) for i, (r, c, t) in enumerate(shapes)]
        g = torch.Generator().manual_seed(seed)
        for w in weights:
            w.mul_(torch.rand(w.shape, generator=g) >= zeros)
        Problem(weights, k, seed).check()

    def test_against_the_kernel_of_the_cpu(self) -> None:
        weights = [weight(130, 257, torch.float32, False), weight(70, 96, torch.float32, True)]
        p = Problem(weights)
        native = _fused.FusedShare(weights, p.row, p.col, p.k)
        ours, theirs = p.outputs(), p.outputs()
        a = p.kernel.run(weights, ours, p.scales, p.row_weights)
        b = native.run(weights, theirs, p.scales, p.row_weights)
        torch.testing.assert_close(float(a[0]), b[0], rtol=1e-5, atol=1e-6)
        for x, y in zip((*a[1:], *ours), (*b[1:], *theirs), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


class TestContract:
    def test_the_same_bits_every_time_and_in_any_company(self) -> None:
        w = weight(66, 96, torch.float32, False)
        one = Problem([w], seed=3)
        first = one.kernel.run([w], grads := one.outputs(), one.scales, one.row_weights)
        twice = one.kernel.run([w], again := one.outputs(), one.scales, one.row_weights)
        assert all(torch.equal(a, b) for a, b in zip((*first, *grads), (*twice, *again), strict=True))
        other = weight(5, 5000, torch.float32, True)
        both = Problem([w, other])
        both.row[:66], both.col[:96] = one.row, one.col
        both.scales[:96], both.row_weights[:66] = one.scales, one.row_weights
        kernel = TritonShare([w, other], both.row, both.col, 3)
        _, leak, _ = kernel.run([w, other], mixed := both.outputs(), both.scales, both.row_weights)
        assert torch.equal(leak[:66], first[1]) and torch.equal(mixed[0], grads[0])

    def test_nan_is_not_hidden_and_rows_outside_count_nothing(self) -> None:
        w = weight(4, 8, torch.float32, False)
        w[1, 2] = torch.nan
        p = Problem([w], outside=False)
        p.row[3] = -1
        kernel = TritonShare([w], p.row, p.col, 3)
        _, leak, strength = kernel.run([w], None, p.scales, p.row_weights)
        assert leak.isnan().tolist() == [False, True, False, False] and leak[3] == 0 and strength[3] == 0
        before = w.clone()
        kernel.shrink_([w], p.scales, torch.ones(4))
        assert torch.equal(w[[1, 3]].nan_to_num(), before[[1, 3]].nan_to_num()), "a row with NaN is left alone"

    def test_rows_that_count_nothing_and_matrices_without_output_are_not_written(self) -> None:
        weights = [weight(20, 32, torch.float32, t) for t in (False, True)]
        p = Problem(weights)
        grads = p.outputs()
        p.kernel.run(weights, [None, grads[1]], p.scales, p.row_weights)
        assert bool(grads[0].isnan().all()) and not bool(grads[1].isnan().any())
        before = [w.clone() for w in weights]
        p.kernel.shrink_(weights, p.scales, torch.zeros(40))
        assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))

    def test_nothing_around_a_view_is_written(self) -> None:
        for view in (lambda x: x[2:9, 4:36], lambda x: x.t()[3:17, 5:20]):
            base = torch.randn(40, 40)
            w = view(base)
            p = Problem([w], outside=False)
            inside = torch.zeros(40, 40, dtype=torch.bool)
            view(inside).fill_(True)
            before = base.clone()
            p.kernel.shrink_([w], p.scales, torch.full((p.rows,), 5.0))
            assert torch.equal(base[~inside], before[~inside]) and not torch.equal(base, before)

    def test_tables_of_weights_that_lie_still_serve_again(self) -> None:
        p = Problem([weight(20, 32, torch.float32, False)])
        for _ in range(3):
            p.check_values()
        assert len(p.kernel._tables) == 1
        for _ in range(9):
            p.check_gradients()
        assert len(p.kernel._tables) <= 4

    def test_refusals_are_sentences(self) -> None:
        w, row, col = torch.randn(3, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
        for weights, k, sentence in (
            ([w], 256, "k must be between 1 and 255 .* got 256"),
            ([w.double()], 2, r"weights\[0\] is torch.float64"),
            ([w, w.half()], 2, r"weights\[1\] is torch.float16"),
            ([torch.randn(6, 8)[::2, ::2]], 2, r"weights\[0\] must have contiguous rows or contiguous columns"),
            ([torch.randn(1, 4).expand(3, 4)], 2, r"weights\[0\] must have contiguous rows or contiguous columns"),
            ([w.to("meta")], 2, r"weights\[0\] is on meta"),
            ([], 2, "at least one matrix, got none"),
        ):
            with pytest.raises(ValueError, match=sentence):
                TritonShare(weights, row, col, k)
        kernel = TritonShare([w], row, col, 2)
        with pytest.raises(ValueError, match=r"col_labels must have shape \[4\]"):
            TritonShare([w], row, row, 2)
        with pytest.raises(ValueError, match=r"scales must be contiguous float32 \[4\] on cpu, got torch.float64"):
            kernel.run([w], None, torch.ones(4).double(), torch.ones(3))
        with pytest.raises(ValueError, match=r"grads\[0\] must have the shape and strides"):
            kernel.run([w], [torch.empty(4, 3).t()], torch.ones(4), torch.ones(3))
        with pytest.raises(TypeError, match=r"grads\[0\] must be torch.float32"):
            kernel.run([w], [torch.empty(3, 4).half()], torch.ones(4), torch.ones(3))


class TestLoss:
    """The whole loss on these kernels (MODCUT_KERNEL=triton) and on the plain operators."""

    def twins(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, **kwargs: object) -> list[ModularityLoss]:
        pair = []
        for _ in range(2):
            torch.manual_seed(0)
            model, x = hand_built.mlp((5, 36, 33, 40, 4))[0], torch.randn(32, 5)
            crit = ModularityLoss(model, k=3, warmup=0, inputs=0.5, **kwargs)  # type: ignore[arg-type]
            model.train()
            model(x)
            model.to(dtype)
            crit.keep = model  # type: ignore[assignment]
            pair.append(crit)
        return pair

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_value_gradients_and_proximal_step(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        pair = self.twins(dtype, monkeypatch, lam=0.7)
        tight = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-4}
        values, grads, shrunk = [], [], []
        for crit, kernel in zip(pair, ("triton", "torch"), strict=True):
            monkeypatch.setenv("MODCUT_KERNEL", kernel)
            mine = []
            for dead in (False, True, False):  # rows that receive nothing any more, and again
                crit.model.zero_grad()
                with torch.no_grad():
                    crit.model[2].weight[3:9] = 0.0 if dead else 0.3
                (2 * crit()).backward()
                mine += [crit.backward_(0.5), crit().item(), crit.add_gradient_(0.0)]
                grads.append([p.grad.double() for p in crit.model.parameters() if p.grad is not None])
            assert crit._choice == kernel
            values.append(mine)
            optimizer = Proximal(torch.optim.SGD(crit.model.parameters(), lr=0.3), crit)
            crit.model.zero_grad(set_to_none=False)
            for p in crit.model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
            shrunk.append([p.detach().double() for p in crit.model.parameters()])
        assert values[0] == pytest.approx(values[1], rel=1e-4)
        for a, b in zip(grads[:3], grads[3:], strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, **tight)
        for x, y in zip(*shrunk, strict=True):
            torch.testing.assert_close(x, y, **tight)

    def test_the_operators_under_autograd_and_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        p = Problem([weight(7, 5, torch.float32, False), weight(6, 5, torch.float32, True)])

        def gradients(kernel: str, compiled: bool) -> list[Tensor]:
            monkeypatch.setenv("MODCUT_KERNEL", kernel)
            learn = [w.detach().clone().requires_grad_() for w in p.weights]

            def f(w: list[Tensor]) -> Tensor:
                return (share_rows(w, p.scales, p.row, p.col, p.k)[0] * p.row_weights).sum()

            g = torch.compile(f, fullgraph=True, backend="aot_eager") if compiled else f
            return [*torch.autograd.grad(g(learn), learn)]

        want = gradients("reference", False)
        for compiled in (False, True):
            for x, y in zip(gradients("triton", compiled), want, strict=True):
                torch.testing.assert_close(x, y)

    def test_library_checks_pass_with_this_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODCUT_KERNEL", "triton")
        p = Problem([weight(7, 5, torch.float32, False), weight(6, 5, torch.float32, True)])
        learn = [w.detach().requires_grad_() for w in p.weights]
        torch.library.opcheck(torch.ops.modcut.share_pass.default, (learn, p.scales, p.row, p.col, p.row_weights, p.k))
        steps = p.row_weights.abs()
        torch.library.opcheck(torch.ops.modcut.share_proximal_.default, (p.weights, p.scales, p.row, p.col, steps, p.k))


class TestPlantedBugs:
    """Each of these must make the comparison with the reference fail."""

    def problem(self) -> Problem:
        return Problem([weight(37, 64, torch.float32, False), weight(70, 33, torch.float32, True)])

    def test_without_a_bug_the_comparison_passes(self) -> None:
        self.problem().check()

    def test_a_wrong_label_table(self) -> None:
        p = self.problem()
        p.kernel.col_labels = p.kernel.col_labels.roll(1)
        with pytest.raises(AssertionError):
            p.check_values()

    def test_a_dropped_tail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        p = self.problem()
        upload = p.kernel._upload
        monkeypatch.setattr(
            p.kernel, "_upload", lambda rows, dtype: upload(rows[:-1] if dtype == torch.int32 else rows, dtype)
        )
        with pytest.raises(AssertionError):
            p.check_gradients()

    def test_a_last_chunk_of_columns_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        p = self.problem()
        upload = p.kernel._upload

        def short(rows: list[tuple[int, ...]], dtype: torch.dtype) -> Tensor:
            return upload([(*r[:3], r[3] - 1, *r[4:]) if dtype == torch.int64 else r for r in rows], dtype)

        monkeypatch.setattr(p.kernel, "_upload", short)
        with pytest.raises(AssertionError):
            p.check_values()

    def test_a_stride_that_is_taken_for_aligned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        w = torch.randn(20, 37)[:, :32]
        p = Problem([w])
        monkeypatch.setattr(p.kernel, "_kind", lambda *_: (0, 64))
        with pytest.raises(AssertionError):
            p.check_values()


def test_the_interpreter_is_what_ran() -> None:
    assert triton_share.interpreted()
    assert type(triton_share.kernels().share).__name__ == "InterpretedFunction"
