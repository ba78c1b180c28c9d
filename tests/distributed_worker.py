"""Run by torchrun on two gloo processes: every way of sharding against the same step in one process."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

import modcut
from modcut.integrations import distributed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.mid(torch.relu(self.up(x)))))
        return y


def build() -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    model = Net().double()
    graph = modcut.weight_graph(model, torch.zeros(1, 6, dtype=torch.float64))
    return model, torch.arange(graph.n) % 2


def batch(step: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def single(steps: int, proximal: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    model, labels = build()
    crit = modcut.ModularityLoss(model, partition=labels, inputs=0.5, lam=3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    value, grads = 0.0, {}
    for i in range(steps):
        optimizer.zero_grad()
        model(batch(i)).square().mean().backward()
        if not proximal:
            value = crit.backward_()
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        if proximal:
            crit.shrink_({id(p): 0.05 for p in model.parameters()})
        crit.step()
    return {n: p.detach().clone() for n, p in model.named_parameters()}, grads, value


def several(kind: str, steps: int, proximal: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    rank, world = dist.get_rank(), dist.get_world_size()
    model, labels = build()
    crit = modcut.ModularityLoss(model, partition=labels, inputs=0.5, lam=3.0)
    run: nn.Module = model
    if kind == "ddp":
        run = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (world,))
        if kind == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for part in (model.up, model.mid, model.down):
                fully_shard(part, mesh=mesh)
            fully_shard(model, mesh=mesh)
        else:
            from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

            parallelize_module(model, mesh, {"mid": ColwiseParallel(), "down": RowwiseParallel()})
    distributed.attach(crit)
    optimizer = torch.optim.SGD(run.parameters(), lr=0.05)
    value, grads = 0.0, {}
    for i in range(steps):
        optimizer.zero_grad()
        x = batch(i)
        x = x if kind == "tp" else x.chunk(world)[rank]
        run(x).square().mean().backward()
        if not proximal:
            value = distributed.backward_(crit)
        grads = {n: full(p.grad) for n, p in model.named_parameters()}
        optimizer.step()
        if proximal:
            distributed.shrink_(crit, {id(p): 0.05 for p in model.parameters()})
        distributed.step(crit)
    return {n: full(p.detach()) for n, p in model.named_parameters()}, grads, value


def full(t: Tensor) -> Tensor:
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).clone()


def main() -> None:
    kind = sys.argv[1]
    dist.init_process_group("gloo")
    for proximal in (False, True):
        want, have = single(4, proximal), several(kind, 4, proximal)
        for a, b in zip(want[:2], have[:2], strict=True):
            for name, t in a.items():
                torch.testing.assert_close(b[name], t, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{kind} {n}: {m}")
        assert abs(want[2] - have[2]) < 1e-9, (kind, want[2], have[2])
    print(f"{kind} equal on rank {dist.get_rank()}", flush=True)
    dist.barrier()  # nobody leaves while another still waits for a message
    dist.destroy_process_group()
    # gloo may leave a running thread behind (seen under tensor parallel), which would abort the interpreter's exit
    os._exit(0)


if __name__ == "__main__":
    main()
