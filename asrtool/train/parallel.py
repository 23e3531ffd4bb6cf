"""One process, replicas (DDP) or shards (FSDP2): the same gradient, the same checkpoints.

Replicas hold the whole model on every rank. Shards hold 1/n of each weight, gradient and optimizer state on each of n
ranks, and gather a layer when it is computed: for models that do not fit one GPU. Every forward pass of a sharded model
is a collective, so all ranks do equally many of them (`lockstep`).
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


class Replicas:
    """DDP, or the bare model in a single process."""

    lockstep = False

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Called once, before the optimizer sees the parameters."""
        return model.to(device)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Called whenever other parameters are trained than before: DDP fixes them when it is built."""
        if not dist.is_initialized():
            return model
        gc.collect()  # the former wrapper's hooks go with it
        where = [device.index] if device.type == "cuda" else None
        # A depthwise kernel's gradient differs from it in the stride of a dimension of size 1, which costs nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(model, device_ids=where, gradient_as_bucket_view=True)

    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Gradients are summed over ranks in the last backward pass of a step only."""
        if last or not isinstance(wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return wrapped.no_sync()


class Shards(Replicas):
    """FSDP2: each element of the model's outermost module lists is gathered by itself, the rest together."""

    lockstep = True

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for parameter in model.parameters():  # FSDP2 takes no channels-last kernels
            parameter.data = parameter.data.contiguous()
        for unit in _units(model):  # moves a layer to the GPU, cuts it, and lets go of the rest
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model.to(device)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        return model

    @contextlib.contextmanager
    def accumulating(self, wrapped: FSDPModule, last: bool) -> Iterator[None]:
        wrapped.set_requires_gradient_sync(last)
        yield


def choose(name: str) -> Replicas:
    """By `trainer.parallel`; a single process has nothing to share out."""
    return Shards() if name == "fsdp" and dist.is_initialized() else Replicas()


def _units(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from (unit for unit in child if any(True for _ in unit.parameters()))
        else:
            yield from _units(child)


def settle(model: nn.Module) -> None:
    """After a forward pass without a backward pass: let go of what was gathered, so that names lead to the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


# -- tensors, whole or sharded ---------------------------------------------


def gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU where `keep`, else nothing; all ranks call it together where any tensor is sharded."""
    found = {}
    for name, value in tensors.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            found[name] = whole.detach().cpu()
    return found


@torch.no_grad()
def fill(own: Tensor, value: Tensor) -> Tensor:
    """Copy a whole tensor into `own`, or this rank's share of it."""
    if isinstance(own, DTensor):
        mine = distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
        own.to_local().copy_(mine.to_local())
    else:
        own.copy_(value)
    return own


def like(value: Tensor, own: Tensor) -> Tensor:
    """A whole tensor in the place, the shards and the memory layout of `own`, a tensor of the same shape."""
    return fill(torch.empty_like(own, requires_grad=False), value)


def number(value: Tensor) -> float:
    """Of a tensor with one element."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
