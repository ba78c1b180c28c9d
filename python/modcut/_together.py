"""Many small networks of one architecture trained as one: their parameters stacked, their steps vmapped.

A network of ten thousand weights keeps a core busy for microseconds a step; what takes the time is Python. A hundred of
them side by side cost little more than one, so a population of models with known ground truth is a matter of seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

Parameters = Mapping[str, Tensor]


class Together:
    """Networks of one architecture whose parameters are stacked along a first axis, [nets, ...].

    Args:
        models: at least one module; all must have the same parameters and buffers. They are copied.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        if not models:
            raise ValueError("models must hold at least one network, got none")
        shapes = [{name: v.shape for name, v in m.state_dict().items()} for m in models]
        for i, found in enumerate(shapes):
            if found != shapes[0]:
                raise ValueError(f"models must have the same parameters, number {i} differs from number 0")
        parameters, buffers = stack_module_state(list(models))
        self.parameters: dict[str, Tensor] = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
        """name -> [nets, ...], leaves that require gradients."""
        self.buffers = {k: v.detach().clone() for k, v in buffers.items()}
        self._model = copy.deepcopy(models[0])
        self._skeleton = copy.deepcopy(models[0]).to("meta")

    def __len__(self) -> int:
        return next(iter(self.parameters.values())).shape[0]

    def __call__(self, x: Tensor, parameters: Parameters | None = None) -> Tensor:
        """Run network i on ``x[i]``: [nets, batch, ...] -> [nets, batch, ...], with other parameters if given."""

        def one(p: dict[str, Tensor], b: dict[str, Tensor], rows: Tensor) -> Tensor:
            out: Tensor = functional_call(self._skeleton, (p, b), (rows,))
            return out

        run: Tensor = vmap(one, randomness="different")(
            dict(self.parameters if parameters is None else parameters), self.buffers, x
        )
        return run

    def model(self, i: int) -> nn.Module:
        """Return a copy of network ``i`` as an ordinary module in evaluation mode."""
        twin = copy.deepcopy(self._model)
        state = {**{k: v[i] for k, v in self.parameters.items()}, **{k: v[i] for k, v in self.buffers.items()}}
        twin.load_state_dict({k: v.detach().clone() for k, v in state.items()}, strict=False)
        return twin.eval().requires_grad_(True)

    def models(self) -> list[nn.Module]:
        """Return copies of all networks."""
        return [self.model(i) for i in range(len(self))]

    def load(self, state: Parameters) -> None:
        """Overwrite all parameters, name -> [nets, ...]."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state[name])

    def fit(
        self,
        loss: Callable[[int], Tensor],
        *,
        steps: int,
        rate: float = 3e-3,
        decay: float = 0.0,
        masks: Parameters | None = None,
        tick: Callable[[], None] | None = None,
    ) -> list[float]:
        """Minimise ``loss(step)``, a scalar that is a sum over the networks, by Adam with cosine decay of the rate.

        Adam works element by element, so no network sees another's gradient.

        Args:
            loss: step -> scalar.
            steps: optimizer steps.
            rate: of Adam at the start; it falls to a twentieth.
            decay: decoupled weight decay.
            masks: name -> [nets, ...], zero where a weight is held at zero.
            tick: called after every step.

        Returns:
            The mean loss per network of every tenth step.
        """
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=rate, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1), eta_min=rate / 20)
        losses = []
        self._hold(masks)
        for step in range(steps):
            value = loss(step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            self._hold(masks)
            if step % 10 == 0:
                losses.append(float(value.detach()) / len(self))
            if tick is not None:
                tick()
        return losses

    def _hold(self, masks: Parameters | None) -> None:
        with torch.no_grad():
            for name, mask in (masks or {}).items():
                self.parameters[name].mul_(mask)


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Run a block under a seed of its own (torch's CPU generator), and put the generator's state back."""
    import numpy as np

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1))
        yield


def generator_of(*parts: int) -> torch.Generator:
    """Return a generator that depends on all of ``parts``; neighbouring seeds give unrelated streams."""
    import numpy as np

    seed = int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def draw_batches(
    rows: Sequence[int], size: int, steps: int, seeds: Sequence[int], chunk: int = 50
) -> Callable[[int], Tensor]:
    """Return a function step -> int64 [nets, size] of row indices; net i's depend on ``seeds[i]`` alone.

    Drawn ``chunk`` steps at a time: a draw per net and step would cost more than the step.
    """
    generators = [generator_of(seed, 1) for seed in seeds]
    held: list[Tensor] = []

    def at(step: int) -> Tensor:
        if step % chunk == 0:
            drawn = [
                torch.randint(n, (min(chunk, steps - step), size), generator=g)
                for n, g in zip(rows, generators, strict=True)
            ]
            held[:] = [torch.stack(drawn, dim=1)]
        return held[0][step % chunk]

    return at


__all__ = ["Parameters", "Together", "draw_batches", "generator_of", "seeded"]
