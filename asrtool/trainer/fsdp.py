"""FSDP2: each rank holds 1/n of every weight, gradient and optimizer state.

With `hsdp` the n ranks are those of one machine, and each machine holds the whole model: weights
are gathered inside it, and only gradients, of which a rank has 1/n, cross the network.

It is a separate file because importing torch's FSDP takes longer than importing torch, and only a
run with `parallel: fsdp` needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from asrtool.errors import UserError
from asrtool.trainer.parallel import Replicas, units


class Shards(Replicas):
    """FSDP2: each layer of the model's outermost module lists is gathered separately."""

    lockstep = True
    repeats = False

    def __init__(self, per_group: int | None = None) -> None:
        """per_group: ranks that share one copy of the model; None: all."""
        self._per_group = per_group

    def _mesh(self, device: torch.device) -> DeviceMesh:
        world = dist.get_world_size()
        if self._per_group in (None, world):
            return init_device_mesh(device.type, (world,))
        if world % self._per_group:
            raise UserError(
                "trainer.parallel: hsdp needs the same number of processes on every machine; there "
                f"are {world}, {self._per_group} of them on this one"
            )
        shape = (world // self._per_group, self._per_group)
        return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))

    def prepare(self, model: nn.Module, device: torch.device) -> nn.Module:
        mesh = self._mesh(device)
        for parameter in model.parameters():  # FSDP2 does not support channels-last kernels
            parameter.data = parameter.data.contiguous()
        # Layer by layer: each one is moved to the GPU, and all but this rank's shard is freed. So
        # the whole model is never on one GPU.
        for unit in (*units(model), model):
            unit.register_forward_hook(_no_view)  # before FSDP2's own hook
            fully_shard(unit, mesh=mesh)
        return model.to(device)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        return model

    @contextlib.contextmanager
    def accumulating(self, wrapped: FSDPModule, last: bool) -> Iterator[None]:
        wrapped.set_requires_gradient_sync(last)
        yield

    def reduce(self, model: nn.Module) -> None:
        """Done in the last backward pass."""


def _no_view(module: nn.Module, inputs: object, output: object) -> object:
    """A forward hook: what a unit returns is no view of another tensor.

    FSDP2 gathers the weights for the backward pass of a unit by hooks on its outputs. An operation
    in place on a view loses them, and gradients may be wrong; FSDP2 warns of every view. Beside
    the work of a layer, a copy of its output is nothing.
    """
    return _copied(output) if torch.is_grad_enabled() else output


def _copied(value: object) -> object:
    """The same with every view among its tensors copied."""
    if isinstance(value, Tensor):
        return value.clone() if value.requires_grad and value._is_view() else value
    if isinstance(value, Mapping):
        return {name: _copied(one) for name, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copied, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _copied(one) for name, one in parts.items()})
    return value
