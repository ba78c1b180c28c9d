"""A small module as Python source: one line a unit, which runs and equals the module's forward pass.

The source is made from ``torch.fx``'s trace of the model and the graph's matrices. What the module receives from units
of other modules is an argument (``incoming``); without it the text is the module on its own.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from modcut.graph.types import Matrix
from modcut.partition import Partition

MAX_WEIGHTS = 4000
_WIDTH = 100

_HELPERS = {
    "relu": "def apply_relu(x):\n    return np.maximum(x, 0.0)\n",
    "gelu": "def apply_gelu(x):\n    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))\n",
    "gelu_tanh": "def apply_gelu_tanh(x):\n"
    "    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))\n",
    "silu": "def apply_silu(x):\n    return x / (1.0 + np.exp(-x))\n",
    "sigmoid": "def apply_sigmoid(x):\n    return 1.0 / (1.0 + np.exp(-x))\n",
    "tanh": "def apply_tanh(x):\n    return np.tanh(x)\n",
}
_MODULES = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}
_FUNCTIONS = {
    torch.relu: "relu",
    F.relu: "relu",
    F.silu: "silu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
}
_SAME = (nn.Identity, nn.Dropout)


class CodeError(ValueError):
    """The module cannot be written as code; the message says why."""


def module_code(model: nn.Module, P: Partition, i: int, *, max_weights: int = MAX_WEIGHTS) -> str:
    """Return a module of a small feed-forward net as Python source that needs NumPy only.

    The source defines ``module(x, incoming=None) -> dict``. ``x`` is the model's input, float [..., features]
    (flattened behind the batch axis); ``incoming[name]`` [..., units] is what units of other modules add to the
    module's units in the linear layer ``name`` (0 where left out); the result holds, by layer, the values of the
    module's units [..., units], in the order of the comment above each layer. With the true ``incoming`` they equal the
    model's (tests: to 1e-5); without, those of the model whose cross-module weights are deleted.

    Supported: Linear, ReLU, GELU, SiLU, Tanh, Sigmoid, additions of values on the same units, Flatten, Identity and
    Dropout (as in evaluation mode). Weights that are exactly 0 are left out; all others are written so that
    they read back bit for bit.

    Args:
        model: the model that ``P.graph`` was traced from.
        P: a partition.
        i: the module.
        max_weights: refuse modules with more inner weights.

    Raises:
        CodeError: too large, or an operation that is not supported (a ValueError).
        ValueError: ``i`` is no module.
    """
    if not 0 <= i < P.k:
        raise ValueError(f"i must be a module in [0, {P.k}), got {i}")
    labels = P.labels.cpu()
    matrices = {m.name: m for m in P.graph.matrices}
    size = sum(_inner(m, labels, i) for m in matrices.values())
    if size > max_weights:
        raise CodeError(f"module {i} has {size} inner weights; modules of at most {max_weights} are written as code")
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # fx raises many kinds for models that it cannot follow
        raise CodeError(f"torch.fx cannot trace {type(model).__name__}: {str(error).splitlines()[0][:200]}") from error
    return _Writer(traced, P, i, labels, matrices).text(type(model).__name__)


def _inner(m: Matrix, labels: Tensor, i: int) -> int:
    r, c = m.row_vertex.cpu(), m.col_vertex.cpu()
    rows = (r >= 0) & (labels[r.clamp_min(0)] == i)
    cols = (c < 0) | (labels[c.clamp_min(0)] == i)
    return int(rows.sum()) * int(cols.sum())


Value = list[str | None]
"""The expression of every position; None: another module's."""


class _Writer:
    def __init__(
        self, traced: fx.GraphModule, P: Partition, i: int, labels: Tensor, matrices: dict[str, Matrix]
    ) -> None:
        self.traced, self.P, self.i, self.labels, self.matrices = traced, P, i, labels, matrices
        self.values: dict[fx.Node, Value | None] = {}
        """None: the model's input, whose width is not known yet."""
        self.lines: list[str] = []
        self.used: set[str] = set()
        self.results: list[str] = []

    def text(self, name: str) -> str:
        modules = dict(self.traced.named_modules())
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                if self.values:
                    raise CodeError(f"{name} has several inputs; models of one input are written as code")
                self.values[node] = None
            elif node.op == "call_module":
                self._call(node, modules[str(node.target)])
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            elif node.op == "output":
                continue
            else:
                raise CodeError(f"{node.op} {node.target!r} is not supported")
        units = int((self.labels == self.i).sum())
        helpers = "\n\n".join(_HELPERS[h] for h in sorted(self.used))
        body = "\n".join(f"    {line}" if line else "" for line in self.lines) or "    pass"
        found = ", ".join(f"{r!r}: {_variable(r)}" for r in self.results)
        return (
            f'"""Module {self.i} of {name}: {units} of {self.P.n} units, as code."""\n\n'
            "import math\n\nimport numpy as np\n\n\n"
            + (helpers + "\n\n" if helpers else "")
            + "def module(x, incoming=None):\n"
            "    incoming = incoming or {}\n"
            "    x = np.asarray(x, dtype=np.float64)\n"
            f"{body}\n"
            f"    return {{{found}}}\n"
        )

    def _call(self, node: fx.Node, layer: nn.Module) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if isinstance(layer, nn.Linear):
            self._linear(node, layer, source)
        elif isinstance(layer, _SAME):
            self.values[node] = self.values[source]
        elif isinstance(layer, nn.Flatten) and layer.start_dim == 1 and self.values[source] is None:
            self.values[node] = None
        elif isinstance(layer, nn.GELU):
            self._map(node, source, "gelu_tanh" if layer.approximate == "tanh" else "gelu")
        elif type(layer) in _MODULES:
            self._map(node, source, _MODULES[type(layer)])
        else:
            raise CodeError(f"{type(layer).__name__} ({node.target}) is not supported")

    def _function(self, node: fx.Node) -> None:
        target, source = node.target, node.args[0]
        if not isinstance(source, fx.Node):
            raise CodeError(f"{_name(target)} of a constant is not supported")
        if target in ("relu", "sigmoid", "tanh"):
            self._map(node, source, str(target))
        elif target is F.gelu:
            self._map(node, source, "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu")
        elif target in _FUNCTIONS:
            self._map(node, source, _FUNCTIONS[target])
        elif target is F.dropout:
            self.values[node] = self.values[source]
        elif (target is torch.flatten or target == "flatten") and node.args[1:] == (1,) and self.values[source] is None:
            self.values[node] = None
        elif target in (operator.add, torch.add, operator.iadd, "add") and not node.kwargs:
            self._add(node, source, node.args[1])
        else:
            raise CodeError(f"{_name(target)} is not supported")

    def _linear(self, node: fx.Node, layer: nn.Linear, source: fx.Node) -> None:
        m = self.matrices.get(f"{node.target}.weight")
        if m is None or tuple(m.weight.shape) != tuple(layer.weight.shape):
            raise CodeError(f"the graph has no matrix for {node.target}")
        weight, rows, cols = layer.weight.detach().cpu(), m.row_vertex.cpu(), m.col_vertex.cpu()
        given = self.values[source]
        if given is None:  # the model's input: features of this module, and features that the graph has no vertex for
            given = [f"x[..., {n}]" if v < 0 or int(self.labels[v]) == self.i else None for n, v in enumerate(cols)]
        if len(given) != len(cols):
            raise CodeError(f"{node.target} reads {len(cols)} values, its input has {len(given)}")
        own = [n for n, v in enumerate(rows.tolist()) if v >= 0 and int(self.labels[v]) == self.i]
        value: Value = [None] * len(rows)
        if own:
            self._heading(node.name, rows, own)
            self.lines.append(f'in_{node.name} = incoming.get("{node.name}", np.zeros({len(own)}))')
        bias = None if layer.bias is None else layer.bias.detach().cpu()
        for at, n in enumerate(own):
            terms = [f"in_{node.name}[..., {at}]"]
            for w, g in zip(weight[n], given, strict=True):
                if g is not None and float(w) != 0.0:
                    terms.append(f"{_number(w)} * {g}")
            if bias is not None and float(bias[n]) != 0.0:
                terms.append(_number(bias[n]))
            value[n] = f"{_variable(node.name)}_{n}"
            self._assign(f"{_variable(node.name)}_{n}", terms)
        self._keep(node, value)

    def _map(self, node: fx.Node, source: fx.Node, helper: str) -> None:
        given = self._known(source, helper)
        self.used.add(helper)
        value: Value = [None] * len(given)
        for n, g in enumerate(given):
            if g is not None:
                value[n] = f"{_variable(node.name)}_{n}"
                self.lines.append(f"{value[n]} = apply_{helper}({g})")
        self._keep(node, value)

    def _add(self, node: fx.Node, a: fx.Node, b: Any) -> None:
        if not isinstance(b, fx.Node):
            raise CodeError("adding a constant is not supported")
        left, right = self._known(a, "addition"), self._known(b, "addition")
        if [x is None for x in left] != [x is None for x in right]:
            raise CodeError(f"{node.name} adds values that belong to different modules")
        value: Value = [None] * len(left)
        for n, (x, y) in enumerate(zip(left, right, strict=True)):
            if x is not None:
                value[n] = f"{_variable(node.name)}_{n}"
                self.lines.append(f"{value[n]} = {x} + {y}")
        self._keep(node, value)

    def _known(self, node: fx.Node, what: str) -> Value:
        value = self.values[node]
        if value is None:
            raise CodeError(f"{what} of the model's input is not supported")
        return value

    def _heading(self, name: str, rows: Tensor, own: list[int]) -> None:
        self.lines.append("")
        space, _ = self.P.graph.space_of(int(rows[own[0]]))
        self.lines.append(f"# {name}: units {', '.join(map(str, own[:24]))}{' ...' * (len(own) > 24)} of {space.name}")

    def _assign(self, name: str, terms: list[str]) -> None:
        line = f"{name} = ("
        for n, term in enumerate(terms):
            piece = term if n == 0 else f" + {term}" if not term.startswith("-") else f" - {term[1:]}"
            if len(line) + len(piece) > _WIDTH:
                self.lines.append(line)
                line = "    " + piece.lstrip()
            else:
                line += piece
        self.lines.append(line + ")")

    def _keep(self, node: fx.Node, value: Value) -> None:
        self.values[node] = value
        own = [v for v in value if v is not None]
        if own:
            self.results.append(node.name)
            self.lines.append(f"{_variable(node.name)} = np.stack(np.broadcast_arrays({', '.join(own)}), axis=-1)")


def _variable(name: str) -> str:
    """A name that hides nothing that the text uses."""
    return f"{name}_" if name in ("x", "np", "math", "incoming") or name.startswith(("in_", "apply_")) else name


def _number(w: Tensor) -> str:
    return str(w.float().numpy()) if w.dtype != torch.float64 else repr(float(w))


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))


__all__ = ["MAX_WEIGHTS", "CodeError", "module_code"]
