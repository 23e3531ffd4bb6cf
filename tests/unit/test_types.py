"""What the host knows of numbers on a device."""

from __future__ import annotations

import pytest
import torch

from asrtool.types import Batch, Padded, both, on_host, sent

META = torch.device("meta")


def batch() -> Batch:
    inputs = Padded.stack([torch.randn(5, 3), torch.randn(2, 3)])
    targets = Padded.stack([torch.tensor([4, 5]), torch.tensor([6])])
    labels = {"accent": torch.tensor([1, -1])}
    return Batch(ids=("a", "b"), inputs=inputs, targets=targets, labels=labels)


def test_lengths_tokens_and_labels_of_a_batch_stay_known_on_the_host():
    ours = batch()
    there = ours.to(META, non_blocking=True)
    assert there.inputs.lengths.device == there.targets.data.device == META
    assert on_host(there.inputs.lengths).tolist() == [5, 2]
    assert on_host(there.targets.lengths).tolist() == [2, 1]
    assert on_host(there.targets.data).tolist() == [[4, 5], [6, 0]]
    assert on_host(there.labels["accent"]).tolist() == [1, -1]
    assert on_host(there.inputs.data) is None  # no copy of the audio is kept
    assert on_host(there.targets.append(9).lengths).tolist() == [3, 2]
    # with the lengths of another sequence, or sent again
    assert on_host(Padded(torch.empty(2, 5), there.inputs.lengths).lengths).tolist() == [5, 2]
    assert on_host(there.to(META).inputs.lengths).tolist() == [5, 2]


def test_on_the_cpu_numbers_are_their_own_copy():
    lengths = torch.tensor([5, 2])
    assert on_host(lengths) is lengths and on_host(sent(lengths, "cpu")) is lengths
    assert not vars(lengths)


def test_arithmetic_is_known_where_all_of_its_numbers_are():
    known, unknown = sent(torch.tensor([5, 2]), META), torch.empty(2, device=META).long()
    assert on_host(both(lambda n: (n + 1) // 2, known)).tolist() == [3, 1]
    assert on_host(both(lambda n, more: n + more, known, known)).tolist() == [10, 4]
    assert on_host(both(lambda n, more: n + more, known, unknown)) is None
    assert on_host(known + 1) is None


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_arithmetic_stays_on_its_device(device):
    assert both(lambda n: n * 2, sent(torch.tensor([1]), device)).device.type == device
