from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from asrtool.nn.attention import KeyValue
from asrtool.nn.conformer import Memory
from asrtool.nn.rows import PerRow
from asrtool.types import Padded


@dataclass(frozen=True)
class Inner(PerRow):
    seen: Tensor


@dataclass(frozen=True)
class Outer(PerRow):
    chunk: int
    pending: Padded
    parts: tuple[Inner, ...]
    named: dict[str, Tensor]
    nothing: None = None


def outer(*numbers: int, chunk: int = 4) -> Outer:
    """A state of rows that are numbered."""
    rows = torch.tensor(numbers)
    pending = Padded.stack([torch.full((number,), number) for number in numbers])
    return Outer(chunk, pending, (Inner(rows), Inner(10 * rows)), {"a": rows[:, None]})


def test_rows_are_taken_in_the_order_that_is_asked_for_and_joined_behind():
    found = outer(1, 3, 2).take(torch.tensor([2, 0])).join(outer(4))
    expected = outer(2, 1, 4)
    assert found.chunk == 4 and found.nothing is None
    assert [row.tolist() for row in found.pending.unpad()] == [[2, 2], [1], [4] * 4]
    assert found.parts[1].seen.tolist() == expected.parts[1].seen.tolist()
    assert found.named["a"].tolist() == [[2], [1], [4]]


def test_no_row_is_legal():
    none = outer(1, 2).take(torch.tensor([], dtype=torch.int64))
    assert none.parts[0].seen.shape == (0,)
    assert none.join(outer(3)).parts[0].seen.tolist() == [3]


def test_states_of_other_settings_are_not_joined():
    with pytest.raises(ValueError, match="states that differ cannot be joined: 4 and 8"):
        outer(1).join(outer(2, chunk=8))


def test_state_without_rows_is_named():
    @dataclass(frozen=True)
    class Lost(PerRow):
        rows: list

    with pytest.raises(TypeError, match="list holds state of rows, but has no take and join"):
        Lost([1, 2]).take(torch.tensor([0]))


def test_fewer_keys_stand_on_the_right_and_what_is_before_them_is_not_valid():
    def keys(batch: int, size: int) -> tuple[KeyValue, Memory]:
        part = torch.ones(batch, 2, size, 3)
        return KeyValue(part, part), Memory(
            torch.arange(size).expand(batch, -1), torch.ones(batch, size, dtype=torch.bool)
        )

    (seen, memory), (more, others) = keys(2, 1), keys(1, 3)
    both, joined = seen.join(more), memory.join(others)
    assert both.key.shape == both.value.shape == (3, 2, 3, 3)
    assert both.key[:, 0, :, 0].tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1]]
    assert joined.valid.tolist() == [[False, False, True]] * 2 + [[True] * 3]
    assert joined.positions.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 2]]


def test_keys_that_are_the_last_of_every_row_are_kept_without_a_copy():
    positions = torch.arange(8).repeat(2, 1)
    alike = Memory(positions, torch.ones(2, 8, dtype=torch.bool))
    kept = alike.keep(2, left_chunks=1)
    assert kept == slice(6, 8)
    assert alike.gather(kept).positions.data_ptr() == positions[:, 6:].data_ptr()
    assert alike.keep(2, None, most=3) == slice(5, 8)
    # the second row ended in the middle of the piece: its padding goes to the left
    valid = alike.valid.clone()
    valid[1, 7] = False
    kept = Memory(positions, valid).keep(2, left_chunks=1)
    assert kept.tolist() == [[6, 7], [7, 6]]
