"""The largest amount of memory that tensors take during a computation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak:
    """Within the block, the largest number of bytes that a device has held: `bytes`.

    On a GPU it is what torch's allocator has reserved. Elsewhere the tensors are counted, as each
    operation leaves them; what a kernel takes while it runs is not seen. given: tensors that exist
    before, such as the weights.
    """

    def __init__(self, device: torch.device, given: Iterable[Tensor] = ()) -> None:
        self.bytes = 0
        self._device = device
        self._counter = None if device.type == "cuda" else Counter(given)

    def __enter__(self) -> Peak:
        if self._counter is None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._counter.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._counter is None:
            self.bytes = torch.cuda.max_memory_reserved(self._device)
        else:
            self._counter.__exit__(kind, error, trace)
            self.bytes = self._counter.peak


class Counter(TorchDispatchMode):
    """Counts the bytes of storages from the operation that returns them to their end."""

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        for tensor in given:
            self._count(tensor)

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self._count(value)
        return output

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def end(reference: weakref.ref) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, end)
        self.now += size
        self.peak = max(self.peak, self.now)
