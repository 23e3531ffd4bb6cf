"""One process, replicas or shards (FSDP2): the same gradient, the same checkpoints.

Replicas hold the whole model on every rank. Their gradients are summed over ranks after the last
backward pass of a step, so that a rank that runs out of memory before can repeat its passes
(`repeats`), or during that pass, by DDP, which hides the time that it takes. Shards hold 1/n of
each weight, gradient and optimizer state on each of n ranks, and gather a layer when it is
computed, for models that do not fit on one GPU. Every forward pass of a sharded model is a
collective, so all ranks must run equally many (`lockstep`).
"""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from asrtool import distributed


class Replicas:
    """The whole model on every rank, with gradients that are summed at the end of a step."""

    lockstep = False
    repeats = True  # whether a rank may repeat its passes of a step while the others wait

    def prepare(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Prepare the model for the device, once and before the optimizer is built."""
        return model.to(device)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the model, whose weights become those of rank 0. Called again whenever the set of
        trained parameters changes, because DDP fixes that set.
        """
        if dist.is_initialized():
            _broadcast([value.detach() for value in (*model.parameters(), *model.buffers())])
        return model

    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """A context for one of a step's passes, forward and backward."""
        return contextlib.nullcontext()

    def reduce(self, model: nn.Module) -> None:
        """After the passes of a step: gradients become their mean over ranks, and buffers, such as
        running statistics, those of rank 0.
        """
        if dist.is_initialized():
            _average_gradients([value for value in model.parameters() if value.requires_grad])
            _broadcast(list(model.buffers()))


class Overlapping(Replicas):
    """DDP: each gradient is summed over ranks while the backward pass computes the next one."""

    repeats = False

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        # reference cycles keep the hooks of the former wrapper alive
        gc.collect()
        device_ids = [device.index] if device.type == "cuda" else None
        # The gradient of a depthwise kernel differs in the stride of a dimension of size 1, which
        # costs nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def accumulating(
        self, wrapped: DistributedDataParallel, last: bool
    ) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else wrapped.no_sync()

    def reduce(self, model: nn.Module) -> None:
        """Done in the last backward pass."""


def choose(name: str, out_of_memory: str = "cut") -> Replicas:
    """The implementation of `trainer.parallel` and `trainer.out_of_memory`; a single process shares
    nothing.
    """
    if not dist.is_initialized():
        return Replicas()
    if name == "ddp":
        return Replicas() if out_of_memory == "cut" else Overlapping()
    from asrtool.trainer.fsdp import Shards

    return Shards(distributed.ranks_here() if name == "hsdp" else None)


def units(model: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost module lists: the layers of a model, which are gathered, or
    computed again, one at a time.
    """
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from (unit for unit in child if any(True for _ in unit.parameters()))
        else:
            yield from units(child)


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile each of the model's `units`, or its parts if it has none (`trainer.compile`)."""
    # Not the whole model: its inputs contain ids and texts, and every new one would trigger a
    # recompilation. Layers of a kind share what is compiled, and whether one is dropped is decided
    # outside.
    for layer in list(units(model)) or model.children():
        layer.compile(backend=backend)


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


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this rank holds; it shares its memory."""
    return value.to_local() if is_share(value) else value


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


# -- collectives on many tensors --------------------------------------------

BUCKET = 2**25  # numbers that are sent together


def _broadcast(tensors: Sequence[Tensor]) -> None:
    """Rank 0's values, in place, on every rank."""
    for bucket in _buckets(tensors):
        flat = _joined(bucket)
        dist.broadcast(flat, 0)
        _spread(flat, bucket)


@torch.no_grad()
def _average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over ranks. One that a rank lacks counts as 0, and one that
    all lack stays None.
    """
    missing = [index for index, value in enumerate(parameters) if value.grad is None]
    ranks = torch.ones(len(parameters), device=parameters[0].device)  # that have each gradient
    for index in missing:
        parameters[index].grad = torch.zeros_like(parameters[index])
        ranks[index] = 0
    # all are on their way before the first one is waited for
    sums = [
        (flat := _joined(bucket), bucket, dist.all_reduce(flat, async_op=True))
        for bucket in _buckets([parameter.grad for parameter in parameters])
    ]
    dist.all_reduce(ranks)
    for flat, bucket, sending in sums:
        sending.wait()
        _spread(flat.div_(dist.get_world_size()), bucket)
    for index in missing:  # only these, because reading a number waits for the device
        if not ranks[index]:
            parameters[index].grad = None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of tensors of one type, of up to `BUCKET` numbers or one tensor."""
    bucket, size = [], 0
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """The inverse of `_joined`, into tensors of any memory layout."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(
        list(tensors), [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]
    )
