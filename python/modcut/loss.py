"""The modularity loss: how much of what each neuron receives comes from outside its own module.

    A_ij = |W_ij| s_j      P_ij = A_ij / sum_j A_ij      leak_i = 1 - sum_{j: c_j = c_i} P_ij      L = mean_i leak_i

``s_j`` is the root mean square of the input that the weight actually reads (running, not differentiated), so no
rescaling of neurons, normalisation gains or value/output pairs moves L. The mean is over the live target neurons of
each axis class and then over classes; labels are one per neuron over the whole network. L is in [0, 1], 0 exactly when
no weight crosses modules and no module is dead (:mod:`modcut.ops.share` has the operator and its closed-form gradient,
:mod:`modcut._objective` the other forms).

A low leak is not independence: judge a network by deleting its cross-module weights (:func:`modcut.cut_and_run`).
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from modcut import _commit, _schedule, _soft, _state
from modcut._batches import unwrap
from modcut._coarse import CoarseTree
from modcut._labels import aligned, check_k, find_labels, given_labels, largest_layer
from modcut._objective import ASSIGNMENTS, METHODS, Objective
from modcut.clustering import refined_labels
from modcut.graph.edges import with_edge
from modcut.graph.statistics import Recorder, Statistics, collect
from modcut.graph.types import WeightGraph
from modcut.partition import Partition
from modcut.provenance import stamp

EDGES = ("contribution", "abs", "square")

# Norms change slowly once training has settled: after so many steps, only every so many passes are measured.
_SETTLED, _EVERY = 128, 8
_HYSTERESIS = 0.98  # a refreshed partition must lower the leak by 2 % to replace the old one
_STRUCTURE = 20  # steps between updates of soft labels and of the coarse tree, which are frozen in between


class ModularityLoss(Objective):
    """The contribution-share loss with its schedule: warm up, find the partition, ramp up, hold, commit.

    ::

        crit = modcut.ModularityLoss(model, k=8, total_steps=5000, interface=0.03)
        for batch in data:
            loss = task_loss(model, batch) + crit()
            loss.backward(); optimizer.step(); optimizer.zero_grad(); crit.step()

    During the warm-up ``crit()`` is 0 (and still supports ``backward``). In its last ``gather`` steps, hooks note which
    neurons are used in which samples (activation times gradient); then the partition is found from that *function*, or,
    where nothing could be gathered, from the weights alone. ``crit.partition_origin`` says which. With an ``interface``
    the schedule ends in a *commit* (:meth:`commit`): that share of the cross-module weights stays, all others are held
    at exactly zero while training goes on. :class:`modcut.optim.Proximal` applies the same loss without a graph,
    :class:`modcut.optim.Budget` finds ``lam`` from a budget of task loss.

    The model is held weakly. Frozen parameters count in the value and receive no gradient; weights without a place in
    the graph do not count (``crit.graph.not_covered``). Dead neurons (no incoming weight, or an output that was never
    anything but 0) are not averaged in: they cannot pose as isolated modules. A module all of whose neurons in a layer
    are dead counts there as leaking entirely.

    Args:
        model: any module; wrappers of torch.compile and DistributedDataParallel are looked through.
        k: number of modules; that of ``partition`` where one is given.
        method: ``"share"``, the leak. For comparison: ``"ncut"`` (normalised cut), ``"tree"`` (conductance of the best
            cuts of an exact Gomory-Hu tree on super-nodes), ``"spectral"`` (eigenvalues of the Laplacian, Filan 2021).
        edge: ``"contribution"`` (invariant to rescaling). ``"abs"`` and ``"square"``, |W| and W^2 with normalisation
            gains, can be faked by rescaling neurons: for reproducing papers.
        assignment: ``"hard"``, or ``"soft"``: labels that start soft and harden as the ramp rises (share, ncut).
        partition: a :class:`~modcut.Partition` or int64 labels [n] to use from the start; then there is no warm-up.
        graph: the model's weight graph, where it is at hand already.
        seed: of the clustering.
        lam: factor on the loss.
        total_steps: length of training, from which the other steps get their defaults: a tenth of it (at most 200) of
            warm-up, three tenths of ramp, a commit after 78 %.
        warmup: steps before the partition is found. Default: 0 with ``partition`` or ``data``, else 200 or see above.
        ramp: steps over which the loss grows from 0 to its full weight. Default: 300 after a warm-up, else 0; or above.
        commit: step at which the interface is fixed. Default: never, or see above where there is an ``interface``.
        interface: share of all cross-module weights that stay at the commit, in [0, 1].
        refresh: look for a better partition every so many steps, until half way to the commit or the end (kept only if
            it lowers the leak by 2 %); ``None``: the first one stays, which is what worked.
        gather: steps before a partition is looked for in which usage is gathered.
        inputs: dial in [0, 1] for weights that start at inputs or embeddings, 0 leaves them out. Default: 0, or 1 where
            the network has no other weights (one hidden layer).
        outputs: the same for weights that end at outputs. Default: as ``inputs``.
        example_inputs: for tracing the graph, see :func:`modcut.weight_graph`.
        data: batches to find the functional partition on, instead of gathering while training.
        loss_fn: ``loss_fn(model, batch)`` for ``data``, where the model returns no loss.

    Raises:
        ValueError: an argument is out of range, ``k`` exceeds the units of the largest layer, labels of another graph,
            a schedule that does not fit into training.
        TypeError: ``model`` is no module.

    Memory: labels and one number per column; one bit per weight after a commit. Each call reads every weight once.
    """

    _factor: Tensor

    @torch.inference_mode(False)  # buffers that are made here live on in training
    def __init__(
        self,
        model: nn.Module,
        k: int = 8,
        *,
        method: str = "share",
        edge: str = "contribution",
        assignment: str = "hard",
        partition: Partition | Tensor | None = None,
        graph: WeightGraph | None = None,
        seed: int = 0,
        lam: float = 1.0,
        total_steps: int | None = None,
        warmup: int | None = None,
        ramp: int | None = None,
        commit: int | None = None,
        interface: float | None = None,
        refresh: int | None = None,
        gather: int = 64,
        inputs: float | None = None,
        outputs: float | None = None,
        example_inputs: Any = None,
        data: Any = None,
        loss_fn: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        model = unwrap(model)
        for name, choice, known in (
            ("method", method, METHODS),
            ("edge", edge, EDGES),
            ("assignment", assignment, ASSIGNMENTS),
        ):
            if choice not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {choice!r}")
        _check_range("lam", lam, 0.0, math.inf)
        _check_range("inputs", inputs, 0.0, 1.0)
        _check_range("outputs", outputs, 0.0, 1.0)
        _check_range("interface", interface, 0.0, 1.0)
        for name, value in (("refresh", refresh), ("gather", gather)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        early = partition is not None or data is not None
        schedule = _schedule.make(
            early=early, warmup=warmup, ramp=ramp, commit=commit, total=total_steps, interface=interface
        )
        if next(model.parameters(), None) is None:
            raise ValueError(f"model must have parameters to be partitioned, {type(model).__name__} has none")
        if graph is None:
            from modcut.graph.trace import weight_graph

            graph = weight_graph(model, example_inputs)
        labels = None
        if partition is not None:
            labels, k = given_labels(graph, partition)
        check_k(graph, k)
        super().__init__(model, graph, k, edge, inputs, outputs, method=method, assignment=assignment)
        self.seed, self._lam = seed, float(lam)
        self._data, self._loss_fn = data, loss_fn
        self.schedule, self.interface = schedule, 0.0 if interface is None and commit is not None else interface
        self.refresh, self.gather = refresh, gather

        self._steps = 0
        self._start = -1  # the step at which the partition was set
        # A tensor, so that a compiled loss sees a new value and not a new constant at every step.
        factor = torch.zeros((), dtype=self.norms.mass.dtype, device=self.labels.device)
        self.register_buffer("_factor", factor, persistent=False)
        self._calls = 0
        self._usage: Statistics | None = None
        self._recorder: Recorder | None = None
        self._partition: Partition | None = None
        self._commitment: _commit.Commitment | None = None
        self.partition_origin = f"none yet: warm-up of {schedule.warmup} steps"
        try:
            if labels is not None:
                self._set(labels, "given")
            elif schedule.warmup == 0:
                self._find()
            self._watch()
        except BaseException:
            self.close()
            raise

    # -- value ---------------------------------------------------------------------------------------------------------

    def forward(self) -> Tensor:
        """Return ``lam * weight * objective`` as a differentiable scalar; 0 before the partition and after the commit.

        Raises:
            ValueError: a weight is NaN or infinite (checked on the CPU; on other devices by :meth:`step`).
            RuntimeError: the model is gone or its parameters changed shape.
        """
        self._count_call()
        if not self.labelled or self._commitment is not None:
            return torch.zeros((), device=self.labels.device, requires_grad=True)
        if self.method == "share" and self._soft is None and not torch.compiler.is_compiling():
            return self.scaled_leak(self._lam * self.weight)
        value = self.objective()
        return value * self._factor.to(value.device, value.dtype)

    def backward_(self, scale: float = 1.0) -> float:
        """Add ``scale`` times the gradient of :meth:`forward` to every ``.grad``; return the value.

        The same numbers as ``(scale * crit()).backward()``; for the share form in closed form, without an autograd
        graph. Frozen parameters are skipped.
        """
        self._count_call()
        factor = self.lam * self.weight
        if not self.labelled or self._commitment is not None:
            return 0.0
        if self.method == "share" and self._soft is None:
            return self.add_gradient_(factor * scale) * factor
        with torch.enable_grad():
            value = self.objective()
            if value.requires_grad:
                (value * (factor * scale)).backward()  # type: ignore[no-untyped-call]
        return float(value.detach()) * factor

    def shrink_(self, rate: Mapping[int, Tensor | float]) -> None:
        """Shrink the cross-module weights of parameters in place, by ``rate * lam * weight * s_j / r_i``.

        After a commit: set what is held at zero to zero. Args:
            rate: learning rate by ``id`` of the parameter; parameters that are missing are left alone.
                (:class:`modcut.optim.Proximal` calls this after each optimizer step.)
        """
        if self._commitment is not None:
            self._commitment.apply()
            return
        factor = self.lam * self.weight
        if factor and rate:
            self.shrink_cross_({p: float(lr) * factor for p, lr in rate.items()})

    @property
    def weight(self) -> float:
        """The schedule's multiplier in [0, 1]: 0 in the warm-up, rising over ``ramp`` steps, 0 after the commit."""
        return self.schedule.weight(self._steps, self._start, self._commitment is not None)

    @property
    def phase(self) -> str:
        """``warm-up``, ``ramp``, ``hold`` or ``committed``."""
        return self.schedule.phase(self._steps, self._start, self._commitment is not None)

    @property
    def steps(self) -> int:
        """How often :meth:`step` was called."""
        return self._steps

    @property
    def lam(self) -> float:
        """The factor on the loss; may be changed at any time."""
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        _check_range("lam", value, 0.0, math.inf)
        self._lam = float(value)
        self._update()

    # -- schedule ------------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def step(self) -> None:
        """Advance the schedule by one training step; call it after ``optimizer.step()``.

        Raises:
            ValueError: a weight is NaN or infinite (looked at every 100 steps and whenever a partition is found).
        """
        self._steps += 1
        if self._steps % 100 == 0:
            self._check_weights()
        if self._commitment is not None:
            self._commitment.apply()
        elif self._start < 0:
            if self._steps >= self.schedule.warmup:
                self._find()
        else:
            if self.schedule.refreshes(self._steps, self._start, self.refresh):
                self._find()
            if (self._steps - self._start) % _STRUCTURE == 0:
                self._follow()
            if self.schedule.commit is not None and self._steps >= self.schedule.commit:
                self.commit()
        self._watch()

    @torch.inference_mode(False)
    def commit(self, interface: float | None = None) -> int:
        """Fix the interface: keep the strongest cross-module weights, hold all others at zero from now on.

        Strength is the share of what the target receives, ranked over the whole network. Held weights are zero at
        once, get no gradient, and are set back after every :meth:`step` (and every step of
        :class:`modcut.optim.Proximal`), whatever momentum an optimizer has left. The loss is 0 from then on.

        Args:
            interface: share of all cross-module weights to keep; default that of the constructor.

        Returns:
            How many cross-module weights stay.

        Raises:
            RuntimeError: there is no partition yet, or the interface is fixed already.
            ValueError: the share is out of range or was never given.
        """
        budget = self.interface if interface is None else interface
        _check_range("interface", budget, 0.0, 1.0)
        if budget is None:
            raise ValueError("interface must say which share of the cross-module weights stays, it was never given")
        if not self.labelled:
            raise RuntimeError("there is no partition to commit to before the warm-up is over")
        if self._commitment is not None:
            raise RuntimeError(f"the interface of {self._commitment.kept} weights is fixed already")
        self._check_weights()
        self.harden()
        strengths, crossing = self.cross_parts()
        self._commitment = _commit.choose(self._terms.weights, strengths, crossing, float(budget))
        self.interface = float(budget)
        self._commitment.apply()
        self._partition = None
        self._watch()
        return self._commitment.kept

    @property
    def committed(self) -> bool:
        """Whether the interface is fixed."""
        return self._commitment is not None

    @property
    def interface_edges(self) -> int | None:
        """How many cross-module weights were kept at the commit; ``None`` before."""
        return None if self._commitment is None else self._commitment.kept

    @property
    def cross_edges(self) -> int:
        """How many weights there are between different modules, zero or not, among those the loss counts."""
        if self._commitment is not None:
            return self._commitment.cross
        return sum(int(c.sum()) for c in self.cross_parts()[1]) if self.labelled else 0

    def close(self) -> None:
        """Remove every hook from the model. The loss stays usable with the norms it has."""
        self.norms.close()
        self._drop_recorder()
        if self._commitment is not None:
            self._commitment.release()

    @property
    def partition(self) -> Partition | None:
        """The partition in use, or ``None`` during the warm-up."""
        if self._start < 0:
            return None
        if self._partition is None:
            meta = {"method": self.partition_origin, "seed": self.seed, "step": self._start, "stamp": stamp()}
            graph = self.graph
            if self._usage is not None and self.edge == "contribution":
                graph = with_edge(graph, "contribution", self._usage)
            self._partition = Partition(self.labels.to("cpu", copy=True), graph, self.k, meta)
        return self._partition

    # -- inside --------------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        self._factor.fill_(self._lam * self.weight)

    def _watch(self) -> None:
        """Decide what the hooks gather in the next training pass: input norms, and usage before a search is due."""
        self._update()
        self._age = self._steps
        self.norms.recording = self._commitment is None and (self._steps < _SETTLED or self._steps % _EVERY == 0)
        due: int | None = None
        if self._start < 0:
            due = self.schedule.warmup - self._steps
        elif self.refresh is not None and self.partition_origin.startswith("functional"):
            left = self.refresh - (self._steps - self._start) % self.refresh
            due = left if self.schedule.refreshes(self._steps + left, self._start, self.refresh) else None
        wanted = due is not None and due <= self.gather and self._data is None and self._commitment is None
        if wanted and self._recorder is None:
            self._recorder = Recorder(self.graph, self.model).attach()
        elif not wanted:
            self._drop_recorder()

    def _drop_recorder(self) -> None:
        if self._recorder is not None:
            self._recorder.detach()
            self._recorder = None

    def _find(self) -> None:
        self._check_weights()
        statistics = None
        if self._data is not None:
            statistics = collect(self.graph, self.model, self._data, self._loss_fn)
        elif self._recorder is not None:
            statistics = self._recorder.statistics()
            self._drop_recorder()
        parts = self.supernodes() if self.method == "tree" else self.k
        labels, origin = find_labels(self.graph, parts, self.seed, statistics, self.measured_inputs())
        if statistics is not None and origin.startswith("functional"):
            # Input strengths and means stay with the partition; profiles are large and have done their work.
            self._usage = replace(statistics, profile=statistics.profile[:0], slice=statistics.slice[:0])
        if self.method == "tree":
            if self._start < 0:
                self._set_tree(self.grow_tree(labels))
                self._set(self.labels, f"tree of {parts} super-nodes, {origin}")
        elif self._start < 0:
            self._set(labels, origin)
        else:
            self._replace(labels, origin)

    def _replace(self, labels: Tensor, origin: str) -> None:
        """Take new labels, or the old ones improved class by class, where they leak 2 % less."""
        old = self.labels.clone()
        refined = refined_labels(self.graph, old, self.k, input_mean_square=self.measured_inputs())
        candidates = [(aligned(old.cpu(), labels, self.k), origin), (refined, self.partition_origin.split(",")[0])]
        with torch.no_grad():
            best, name, limit = old, self.partition_origin, _HYSTERESIS * float(self.leak())
            for new, source in candidates:
                self.set_labels(new)
                value = float(self.leak())
                if value < limit:
                    best, name, limit = new, f"{source}, refreshed at step {self._steps}", value
        self.partition_origin = name
        self._put(best)

    def _follow(self) -> None:
        """Let soft labels and the coarse tree follow the weights."""
        if self.method == "tree":
            self.update_tree()
            self._partition = None
        elif self._soft is not None:
            if self.weight < 1:
                self.update_soft(_soft.temperature_at(self.weight))
            else:
                self.harden()
                self._partition = None

    def _set(self, labels: Tensor, origin: str) -> None:
        self._start, self.partition_origin = self._steps, origin
        self._put(labels)
        if self.assignment == "soft":
            self.update_soft(_soft.HOT)

    def _put(self, labels: Tensor) -> None:
        self.set_labels(labels)
        self._partition = None

    def _count_call(self) -> None:
        if torch.compiler.is_compiling():
            return
        self._calls += 1
        if self._start < 0 and self._steps == 0 and self._calls == max(100, 2 * self.schedule.warmup):
            warnings.warn(
                f"crit() was called {self._calls} times but crit.step() never: the loss stays 0 in its warm-up "
                "(call crit.step() after optimizer.step(), or pass warmup=0)",
                stacklevel=3,
            )

    # -- state ---------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Return everything but labels and norms (which are buffers) as a byte tensor: resuming goes on exactly."""
        plain: dict[str, Any] = {
            "k": self.k,
            "method": self.method,
            "assignment": self.assignment,
            "steps": self._steps,
            "start": self._start,
            "origin": self.partition_origin,
            "lam": self._lam,
            "interface": self.interface,
        }
        tensors: dict[str, Tensor] = {
            f"balanced.{i}.{j}": t for i, x in self._balanced.items() for j, t in enumerate(x)
        }
        if self._recorder is not None:
            tensors |= {f"usage.{name}": t for name, t in self._recorder.state().items()}
        if self._soft is not None:
            tensors["soft"] = self._soft
        if self._tree is not None:
            tensors |= {"tree.node": self._tree.node, "tree.sides": self._tree.sides}
            plain["trivial"] = self._tree.trivial
        if self._commitment is not None:
            tensors["held"] = self._commitment.pack()
            plain |= {"kept": self._commitment.kept, "cross": self._commitment.cross}
        return _state.pack(plain, tensors)

    def set_extra_state(self, state: Any) -> None:
        """Take over what :meth:`get_extra_state` returned.

        Raises:
            ValueError: the state is of another format, k, method or assignment.
        """
        plain, tensors = _state.unpack(state)
        if plain["k"] != self.k:
            raise ValueError(f"the state must be of the same number of modules (k = {self.k}), got k = {plain['k']}")
        for name in ("method", "assignment"):
            if plain[name] != getattr(self, name):
                raise ValueError(f"the state must be of the same {name} ({getattr(self, name)!r}), got {plain[name]!r}")
        held = None
        if "held" in tensors:
            shapes = list(zip(self._terms.heights, self._terms.widths, strict=True))
            held = _commit.Commitment.unpack(
                self._terms.weights, tensors["held"], shapes, plain["kept"], plain["cross"]
            )
        self._steps, self._start, self.partition_origin = plain["steps"], plain["start"], plain["origin"]
        self._lam, self.interface = plain["lam"], plain["interface"]
        self.labelled = self._start >= 0
        self._partition = None
        self._forget()
        keys = {int(name.split(".")[1]) for name in tensors if name.startswith("balanced.")}
        self._balanced = {i: (tensors[f"balanced.{i}.0"], tensors[f"balanced.{i}.1"]) for i in keys}
        soft = tensors.get("soft")
        self._soft = None if soft is None else soft.to(self.labels.device)
        node = tensors.get("tree.node")
        self._tree = None if node is None else CoarseTree(node, tensors["tree.sides"], plain["trivial"])
        if self._commitment is not None:
            self._commitment.release()
        self._commitment = held
        if held is not None:
            held.apply()
        self._drop_recorder()
        self._watch()
        if self._recorder is not None:
            usage = {name.removeprefix("usage."): t for name, t in tensors.items() if name.startswith("usage.")}
            self._recorder.restore(usage)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModularityLoss:
        """Copy the loss: for the copied model where that is copied along (a copied trainer), else for the same one."""
        model = memo.get(id(self._model()))
        if model is not None and "_parameters" not in vars(model):  # half-built: this loss is a part of it
            raise RuntimeError(
                "a ModularityLoss that is a submodule of its own model cannot be copied with it: keep it beside the "
                "model (a trainer that holds both can be copied)"
            )
        copied = type(self)(
            self.model if model is None else model,
            self.k,
            method=self.method,
            edge=self.edge,
            assignment=self.assignment,
            partition=self.labels.cpu() if self._start >= 0 else None,
            graph=self.graph if model is None else None,
            seed=self.seed,
            lam=self.lam,
            warmup=max(self.schedule.warmup, 1),
            refresh=self.refresh,
            gather=self.gather,
            inputs=self.inputs,
            outputs=self.outputs,
            data=self._data,
            loss_fn=self._loss_fn,
        )
        copied.schedule = self.schedule
        copied.load_state_dict(self.state_dict())
        memo[id(self)] = copied
        return copied.train(self.training)

    def __reduce__(self) -> Any:
        raise TypeError("a ModularityLoss belongs to a live model and is not pickled: save crit.state_dict() instead")

    def extra_repr(self) -> str:
        """Return what the printed module shows."""
        return (
            f"k={self.k}, method={self.method!r}, edge={self.edge!r}, lam={self.lam}, phase={self.phase}, "
            f"partition: {self.partition_origin}"
        )


# ---- the one-line form -----------------------------------------------------------------------------------------------
_cache: weakref.WeakKeyDictionary[nn.Module, tuple[dict[str, Any], Any, ModularityLoss]] = weakref.WeakKeyDictionary()


def modularity_loss(model: nn.Module, **kwargs: Any) -> Tensor:
    """Return the leak of a model as a differentiable scalar in [0, 1], straight away: no schedule, no data needed.

    ::

        loss = task_loss + 0.5 * modcut.modularity_loss(model)

    The first call traces the model and finds a partition from its weights; both are cached with the model (weakly: the
    cache keeps no model alive) and used by later calls with the same arguments. Hooks then keep the running norms of
    its inputs in training passes; until there were any, sources count as balanced (see :class:`ModularityLoss` for the
    loss with warm-up and functional partition). Another set of arguments, or parameters that were replaced or reshaped,
    start anew; so does :func:`reset`.

    Args:
        model: any module.
        kwargs: of :class:`ModularityLoss`. Defaults here: ``k`` = 8 or as many as the largest layer has units,
            ``warmup=0``, ``ramp=0``.

    Raises:
        As :class:`ModularityLoss`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    state = tuple((name, id(p), tuple(p.shape), p.stride()) for name, p in model.named_parameters())
    known = _cache.get(model)
    if known is None or known[1] != state or not _same(known[0], kwargs):
        reset(model)
        settings = {"warmup": 0, "ramp": 0, **kwargs}
        if "k" not in settings and settings.get("partition") is None:
            graph = settings.get("graph")
            if graph is None:
                from modcut.graph.trace import weight_graph

                graph = settings["graph"] = weight_graph(model, settings.get("example_inputs"))
            most = largest_layer(graph)
            if most < 2:
                raise ValueError(
                    f"model must have a layer of at least 2 neurons or heads to be split into modules, the largest of "
                    f"{type(model).__name__} has {most}"
                )
            settings["k"] = min(8, most)
        known = (kwargs, state, ModularityLoss(model, **settings))
        _cache[model] = known
    value: Tensor = known[2]()
    return value


def reset(model: nn.Module | None = None) -> None:
    """Forget the cached state of :func:`modularity_loss` for one model, or for all, and remove its hooks."""
    for m in [unwrap(model)] if model is not None else list(_cache):
        known = _cache.pop(m, None)
        if known is not None:
            known[2].close()


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    plain = (int, float, str, type(None))
    return a.keys() == b.keys() and all(
        a[name] is b[name] or (isinstance(a[name], plain) and isinstance(b[name], plain) and a[name] == b[name])
        for name in a
    )


# ---- checks ----------------------------------------------------------------------------------------------------------
def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")
