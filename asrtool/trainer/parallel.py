"""One process, replicas (DDP) or shards (FSDP2): the same gradient, the same checkpoints.

Replicas hold the whole model on every rank. Shards hold 1/n of each weight, gradient and optimizer
state on each of n ranks, and gather a layer when it is computed, for models that do not fit on one
GPU. Every forward pass of a sharded model is a collective, so all ranks must run equally many
(`lockstep`).
"""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Replicas:
    """DDP, or the bare model in a single process."""

    lockstep = False

    def prepare(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Prepare the model for the device, once and before the optimizer is built."""
        return model.to(device)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the model. Called again whenever the set of trained parameters changes, because DDP
        fixes that set.
        """
        if not dist.is_initialized():
            return model
        # reference cycles keep the hooks of the former wrapper alive
        gc.collect()
        device_ids = [device.index] if device.type == "cuda" else None
        # The gradient of a depthwise kernel differs in the stride of a dimension of size 1, which
        # costs nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """A context that sums gradients over ranks only in the last backward pass of a step."""
        if last or not isinstance(wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return wrapped.no_sync()


def choose(name: str) -> Replicas:
    """The implementation of `trainer.parallel`; a single process shares nothing."""
    if name != "fsdp" or not dist.is_initialized():
        return Replicas()
    from asrtool.trainer.fsdp import Shards

    return Shards()


def settle(model: nn.Module) -> None:
    """Free gathered weights after a forward pass without a backward pass, which would free them."""
    for module in model.modules():
        if _loaded("torch.distributed.fsdp", "FSDPModule", module):
            module.reshard()


def _loaded(module: str, kind: str, value: object) -> bool:
    """Whether a value is an instance of a class that only a sharded run imports.

    Before that import, no value can be one.
    """
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], kind))


# -- tensors, whole or sharded ---------------------------------------------


def is_share(value: Tensor) -> bool:
    """Whether a tensor is sharded over ranks."""
    return _loaded("torch.distributed.tensor", "DTensor", value)


def gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU if `keep`, else nothing. A collective if any tensor is sharded."""
    gathered = {}
    for name, value in tensors.items():
        value = whole(value)
        if keep:
            gathered[name] = value.detach().cpu()
    return gathered


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> Tensor:
    """Copy the whole tensor `value`, or this rank's shard of it, into `target`."""
    if is_share(target):
        from torch.distributed.tensor import distribute_tensor

        shard = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
        target.to_local().copy_(shard.to_local())
    else:
        target.copy_(value)
    return target


def like(value: Tensor, target: Tensor) -> Tensor:
    """The whole tensor `value` with device, shards and memory layout of `target`."""
    return fill(torch.empty_like(target, requires_grad=False), value)


def whole(value: Tensor) -> Tensor:
    """The whole tensor; a collective if it is sharded."""
    return value.full_tensor() if is_share(value) else value
