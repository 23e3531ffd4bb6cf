"""A device that nobody can wait for: what would wait for a GPU raises an error here.

Tensors on torch's device `meta` have shapes and no numbers, so that `.item()`, `.tolist()`,
`bool()` and `nonzero()` fail by themselves. `Unawaited` also refuses copies between host and device
that wait, and CTC with lengths of the device, which torch would copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
aten = torch.ops.aten
# whose results have as many elements as the numbers say
SIZED = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive, aten.bincount}


class Waited(AssertionError):
    """The host would wait for the device here."""


class Unawaited(TorchDispatchMode):
    """Raises `Waited` where a GPU would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, function.overloadpacket
        if packet is aten._to_copy:
            device = kwargs.get("device") or args[0].device
            crosses(args[0].device, device, kwargs.get("non_blocking", False), function)
        elif packet is aten.copy_:
            blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            crosses(args[1].device, args[0].device, blocking, function)
        elif packet in (aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_):
            for index in args[1]:
                if index is not None and args[0].device == META:
                    refuse(index.dtype == torch.bool, function, "by a mask")
                    refuse(index.device != META, function, "by an index of the host")
        elif packet is aten.repeat_interleave and args[0].device == META:
            refuse(kwargs.get("output_size") is None, function, "without output_size")
        elif packet in SIZED or packet is aten._local_scalar_dense:
            refuse(args[0].device == META, function, "")
        return function(*args, **kwargs)


def crosses(source: torch.device, target: torch.device, waits_not: bool, function) -> None:
    if torch.device(target).type != source.type:
        refuse(not waits_not or source == META, function, f"from {source} to {target}")


def refuse(wrong: bool, function: object, why: str) -> None:
    if wrong:
        raise Waited(f"{function} {why} waits for the device")


def ctc_loss(
    log_probs: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, *rest, **options
) -> Tensor:
    """A stand-in for torch's, whose kernels have no form without numbers: (B,)."""
    refuse({lengths.device.type, target_lengths.device.type} != {"cpu"}, "ctc_loss", "with lengths")
    return log_probs.sum((0, 2))


def autocast(kind: str, *rest: object, **options: object) -> AbstractContextManager:
    """torch's, which `meta` has not."""
    return nullcontext() if kind == "meta" else torch.amp.autocast(kind, *rest, **options)


@contextmanager
def unawaited(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Nothing may wait but the read of a step; yields the number of values of each such read."""
    reads: list[int] = []

    def numbers(values: Tensor) -> list[float]:
        reads.append(len(values))
        return [0.0] * len(values)

    with patch.context() as inside, Unawaited():
        inside.setattr("torch.nn.functional.ctc_loss", ctc_loss)
        inside.setattr("torch.autocast", autocast)
        inside.setattr("asrtool.trainer.step.numbers", numbers)
        yield reads
