"""State of the rows of a batch: rows leave by `take` and enter by `join`.

This keeps a running batch full: an utterance that has ended makes room for another one, and no row
depends on the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor


class PerRow:
    """Base of frozen dataclasses whose tensors have the batch as their first dimension: caches of
    encoders and of their parts.

    Fields are tensors (B, ...) whose other sizes are the same in every batch, tuples and mappings
    of those, other `PerRow`, `Padded`, None, or numbers and names that all rows share. If a size
    grows with the input, the subclass overrides `join`.
    """

    def take(self, rows: Tensor) -> Self:
        """The state of rows (N,) alone, in that order."""
        return dataclasses.replace(self, **{k: take(v, rows) for k, v in _fields(self).items()})

    def join(self, other: Self) -> Self:
        """The rows of this state, then those of `other`. Raises `ValueError` if the two have
        different settings, such as chunk sizes.
        """
        mine, more = _fields(self), _fields(other)
        return dataclasses.replace(self, **{k: join(v, more[k]) for k, v in mine.items()})


def take(value: Any, rows: Tensor) -> Any:
    """Rows (N,) of any value that a `PerRow` may hold."""
    if isinstance(value, Tensor):
        return chosen(value, rows)
    if hasattr(value, "take"):
        return value.take(rows)
    if isinstance(value, tuple):
        return tuple(take(part, rows) for part in value)
    if isinstance(value, Mapping):
        return {name: take(part, rows) for name, part in value.items()}
    _check_shared(value)
    return value


def chosen(value: Tensor, rows: Tensor) -> Tensor:
    """Rows (N,) of a tensor (B, ...); a third of the time of `value[rows]` on a CPU."""
    return value.index_select(0, rows.to(value.device))


def join(first: Any, second: Any) -> Any:
    """The rows of `first`, then those of `second`, which has the same structure."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if hasattr(first, "join"):
        return first.join(second)
    if isinstance(first, tuple):
        return tuple(join(*pair) for pair in zip(first, second, strict=True))
    if isinstance(first, Mapping):
        return {name: join(part, second[name]) for name, part in first.items()}
    _check_shared(first)
    if first != second:
        raise ValueError(f"rows of states that differ cannot be joined: {first} and {second}")
    return first


def _fields(state: Any) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _check_shared(value: Any) -> None:
    """Raise `TypeError` unless all rows can share a value: it could keep rows that have left."""
    if not isinstance(value, int | float | str | None):
        raise TypeError(
            f"{type(value).__name__} holds state of rows, but has no take and join; derive it from "
            "asrtool.nn.rows.PerRow"
        )
