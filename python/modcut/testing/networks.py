"""Neural networks as graphs: untrained, trained, pruned, and of GPT's shape.

Graphs come as a :class:`modcut.WeightGraph` of layer x layer blocks; nothing is densified.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modcut._require import require
from modcut.testing.graphs import generator

if TYPE_CHECKING:
    from modcut.graph.types import WeightGraph


def _keep_strongest(w: Tensor, keep: float) -> Tensor:
    """A copy of ``w`` in which only the share ``keep`` of largest magnitude is not zero."""
    w, dropped = w.clone(), w.numel() - round(keep * w.numel())
    if dropped:
        w[w.abs() <= torch.kthvalue(w.abs().flatten(), dropped).values] = 0.0
    return w


def mlp_weights(widths: Sequence[int], seed: int = 0, keep: float = 1.0) -> list[Tensor]:
    """The signed weight matrices of an untrained perceptron, float32 [widths[i + 1], widths[i]].

    Of each, the strongest share ``keep`` is left.
    """
    rng = generator(seed)
    layers = [torch.randn(rows, cols, generator=rng) / max(cols, 1) ** 0.5 for cols, rows in pairwise(widths)]
    return [_keep_strongest(w, keep) for w in layers]


def mlp(widths: Sequence[int], seed: int = 0, keep: float = 1.0) -> Tensor:
    """|weights| of such a perceptron as one float64 matrix [sum(widths), sum(widths)]."""
    return layer_graph(mlp_weights(widths, seed, keep), widths).to_dense()


def pruned(widths: Sequence[int], seed: int = 0, keep: float = 0.1) -> Tensor:
    """A perceptron of which pruning left the strongest share ``keep`` of each layer's weights."""
    return mlp(widths, seed, keep)


def mlp_graph(widths: Sequence[int], seed: int = 0, keep: float = 1.0) -> WeightGraph:
    """The same perceptron as a :class:`modcut.WeightGraph`: layer x layer blocks."""
    return layer_graph(mlp_weights(widths, seed, keep), widths)


def layer_graph(weights: Sequence[Tensor], widths: Sequence[int]) -> WeightGraph:
    """The graph of consecutive layers: ``weights[i]`` [widths[i + 1], widths[i]] joins layers i and i + 1."""
    net = _Net()
    layers = [net.space(f"layer{i}", width) for i, width in enumerate(widths)]
    for i, w in enumerate(weights):
        net.block(layers[i + 1], layers[i], w, f"w{i}")
    return net.graph()


class _Net:
    """Collects spaces and blocks; capacities are |weight|."""

    def __init__(self) -> None:
        # Above this layer: only for whoever asks for such a graph.
        from modcut.graph import assemble, types

        self._strength = assemble.magnitude
        self._types, self._spaces, self._blocks, self._n = types, [], [], 0  # type: ignore[var-annotated]

    def space(self, name: str, size: int, kind: Any = "hidden", family: str = "", head: str = "") -> Any:
        self._spaces.append(self._types.Space(name, size, kind, self._n, family=family or name, head=head))
        self._n += size
        return self._spaces[-1]

    def block(self, rows: Any, cols: Any, weight: Tensor, source: str, first_row: int = 0, first_col: int = 0) -> None:
        at = (first_row + torch.arange(rows.size))[:, None], (first_col + torch.arange(cols.size))[:, None]
        self._blocks.append(self._types.Block(rows, cols, weight, source, *at, strength=self._strength))

    def graph(self) -> WeightGraph:
        return self._types.WeightGraph(tuple(self._spaces), tuple(self._blocks))


def gpt_graph(
    d: int = 16,
    layers: int = 2,
    heads: int = 2,
    mlp: int | None = None,
    vocab: int = 0,
    seed: int = 0,
    power: float = 1.0,
) -> WeightGraph:
    """A graph of GPT's shape with random weights: residual stream, query, key and value per head, MLP, embedding.

    GPT-2 small is ``gpt_graph(768, 12, 12)``: 768 + 12 * (3 * 768 + 3072) = 65,280 vertices, 84,934,656 weights in 600
    blocks (340 MB of float32); its token embedding is ``vocab=50257`` more vertices. A value or MLP neuron is both read
    from the residual stream and written to it, and the two weights add up to one edge.

    Args:
        d: width of the residual stream, a multiple of ``heads``.
        layers: number of transformer layers.
        heads: attention heads per layer.
        mlp: neurons of a layer's MLP, 4 * d by default.
        vocab: tokens of the embedding; 0 leaves it out.
        seed: of the weights.
        power: weights are sign(x) * |x|^power / sqrt(fan-in) for normal x. 1 is light-tailed, as at initialisation; 6
            is as heavy-tailed as :func:`modcut.testing.heavy_tailed`.

    Raises:
        ValueError: ``d`` is not a multiple of ``heads``.
    """
    if heads < 1 or d % heads:
        raise ValueError(f"d must be a multiple of heads, got d={d} and heads={heads}")
    hidden, size = 4 * d if mlp is None else mlp, d // heads
    rng, net = generator(seed), _Net()

    def weight(rows: int, cols: int) -> Tensor:
        w = torch.randn(rows, cols, generator=rng)
        if power != 1.0:
            w = w.sign() * w.abs_().pow_(power)
        return w.div_(cols**0.5)

    residual = net.space("residual", d, "residual")
    if vocab:
        net.block(net.space("vocab", vocab, "input"), residual, weight(vocab, d), "embedding")
    for i in range(layers):
        attention, project = weight(3 * d, d), weight(d, d)
        for k, part in enumerate(("query", "key", "value")):
            for h in range(heads):
                name, at = f"layer{i}.head{h}", k * d + h * size
                space = net.space(f"{name}.{part}", size, "head", f"layer{i}.heads", name)
                net.block(space, residual, attention[at : at + size], f"layer{i}.attention", at)
                if part == "value":
                    columns = slice(h * size, (h + 1) * size)
                    net.block(residual, space, project[:, columns], f"layer{i}.project", 0, h * size)
        neurons = net.space(f"layer{i}.mlp", hidden)
        net.block(neurons, residual, weight(hidden, d), f"layer{i}.up")
        net.block(residual, neurons, weight(d, hidden), f"layer{i}.down")
    return net.graph()


class DigitsNet:
    """A perceptron trained on scikit-learn's handwritten digits (1,797 images of 8 x 8 pixels).

    Equal seeds give equal nets. Training takes about a second: ``steps`` AdamW steps of 64 images. Its graph is live:
    edges follow the weights.

    Args:
        hidden: widths of the hidden layers, between 64 inputs and 10 outputs.
        seed: of the weights and of the order of the images.
        steps: training steps.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """

    def __init__(self, hidden: Sequence[int] = (256, 64), seed: int = 0, steps: int = 400) -> None:
        datasets = require("sklearn.datasets", extra="bench", why="a net trained on handwritten digits")
        images, labels = datasets.load_digits(return_X_y=True)
        self.images = torch.as_tensor(images, dtype=torch.float32) / 16
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.widths = (64, *hidden, 10)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(a, b) for a, b in pairwise(self.widths)]
        self.model = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self._rng = generator(seed)
        self.step(steps)

    def step(self, count: int = 1) -> float:
        """Train for ``count`` more steps and return the last loss."""
        loss = torch.zeros(())
        for _ in range(count):
            at = torch.randint(len(self.images), (64,), generator=self._rng)
            loss = nn.functional.cross_entropy(self.model(self.images[at]), self.labels[at])
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        return float(loss.detach())

    def accuracy(self) -> float:
        """Share of all images that the net names rightly (it was trained on them)."""
        with torch.no_grad():
            return float((self.model(self.images).argmax(1) == self.labels).double().mean())

    def graph(self, keep: float = 1.0) -> WeightGraph:
        """The net's graph; with ``keep`` < 1, of a copy in which each layer keeps its strongest share of weights."""
        weights = [m.weight.detach() for m in self.model if isinstance(m, nn.Linear)]
        return layer_graph([_keep_strongest(w, keep) for w in weights] if keep < 1 else weights, self.widths)
