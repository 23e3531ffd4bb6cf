"""FSDP2: each rank holds 1/n of every weight, gradient and optimizer state.

It is a separate file because importing torch's FSDP takes longer than importing torch, and only a
run with `parallel: fsdp` needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from asrtool.trainer.parallel import Replicas


class Shards(Replicas):
    """FSDP2: each layer of the model's outermost module lists is gathered separately."""

    lockstep = True

    def prepare(self, model: nn.Module, device: torch.device) -> nn.Module:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for parameter in model.parameters():  # FSDP2 does not support channels-last kernels
            parameter.data = parameter.data.contiguous()
        # Layer by layer: each one is moved to the GPU, and all but this rank's shard is freed. So
        # the whole model is never on one GPU.
        for unit in _units(model):
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model.to(device)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        return model

    @contextlib.contextmanager
    def accumulating(self, wrapped: FSDPModule, last: bool) -> Iterator[None]:
        wrapped.set_requires_gradient_sync(last)
        yield


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost module lists: the layers that are gathered separately."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from (unit for unit in child if any(True for _ in unit.parameters()))
        else:
            yield from _units(child)
