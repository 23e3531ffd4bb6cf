"""State that belongs to the rows of a batch: rows leave it by `take`, and enter it by `join`.

A running batch stays full in this way: an utterance that has ended makes room for another one, and
no row notices the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor


class PerRow:
    """The base of a frozen dataclass whose tensors have the batch as their first dimension: caches
    of encoders and of their parts.

    Fields are tensors (B, ...) whose sizes behind B are the same in every batch, tuples and
    mappings of those, other `PerRow`, `Padded`, None, or numbers and names that all rows share.
    Where a size grows with what was seen, a subclass overrides `join`.
    """

    def take(self, rows: Tensor) -> Self:
        """The state of rows (N,) alone, in that order."""
        return dataclasses.replace(self, **{k: take(v, rows) for k, v in _fields(self).items()})

    def join(self, other: Self) -> Self:
        """The rows of `other` behind those of this one. Raises `ValueError` where the two were made
        with other settings, such as another size of chunks.
        """
        mine, more = _fields(self), _fields(other)
        return dataclasses.replace(self, **{k: join(v, more[k]) for k, v in mine.items()})


def take(value: Any, rows: Tensor) -> Any:
    """Rows (N,) of whatever a `PerRow` may hold."""
    if isinstance(value, Tensor):
        return value[rows]
    if hasattr(value, "take"):
        return value.take(rows)
    if isinstance(value, tuple):
        return tuple(take(part, rows) for part in value)
    if isinstance(value, Mapping):
        return {name: take(part, rows) for name, part in value.items()}
    _check_shared(value)
    return value


def join(one: Any, other: Any) -> Any:
    """The rows of `other` behind those of `one`, which are alike."""
    if isinstance(one, Tensor):
        return torch.cat([one, other])
    if hasattr(one, "join"):
        return one.join(other)
    if isinstance(one, tuple):
        return tuple(join(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, Mapping):
        return {name: join(part, other[name]) for name, part in one.items()}
    _check_shared(one)
    if one != other:
        raise ValueError(f"rows of states that differ cannot be joined: {one} and {other}")
    return one


def _fields(state: Any) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _check_shared(value: Any) -> None:
    """What all rows share is a number, a name or None; anything else would keep rows that left."""
    if not isinstance(value, int | float | str | None):
        raise TypeError(
            f"{type(value).__name__} holds state of rows, but has no take and join; derive it from "
            "asrtool.nn.rows.PerRow"
        )
