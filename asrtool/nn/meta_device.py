"""Models without weights: torch's device `meta`, on which tensors have shapes alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# torch has it as a function and as a method
FILLS = frozenset({nn.init.normal_, Tensor.normal_})


class _Unfilled(TorchFunctionMode):
    """Leaves tensors as they are that would be filled with normal numbers.

    On device `meta` there is nothing to fill, but torch would import its compiler for it, which
    takes as long as importing torch itself.
    """

    def __torch_function__(
        self, function: Callable, types: Sequence, args: tuple = (), kwargs: Mapping | None = None
    ) -> object:
        given = kwargs or {}
        if function in FILLS:
            return args[0] if args else given["tensor"]
        return function(*args, **given)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built within have no weights, only their shapes."""
    with torch.device("meta"), _Unfilled():
        yield


def on_meta() -> bool:
    """Whether modules are being built without weights."""
    return torch.empty(0).device.type == "meta"
