from __future__ import annotations

import numpy as np
import pytest

from asrtool.data.shapes import recurring, recurring_lengths


@pytest.mark.parametrize(
    ("size", "padded"),
    [(0, 0), (1, 1), (32, 32), (33, 34), (200, 200), (201, 208), (1000, 1024), (1025, 1088)],
)
def test_a_size_keeps_five_binary_digits(size: int, padded: int) -> None:
    assert recurring(size) == padded


def test_sizes_are_few_and_near() -> None:
    sizes = np.arange(100, 3201)  # 1 to 32 seconds
    padded = np.array([recurring(int(size)) for size in sizes])
    assert np.all(padded >= sizes)
    assert (padded / sizes).max() <= 1 + 2**-4
    assert len(np.unique(padded)) < 85
    assert 1 - (sizes / padded).mean() < 0.03


def test_tokens_have_fewer_digits() -> None:
    assert [recurring(size, 4) for size in (15, 16, 17, 33)] == [15, 16, 18, 36]


def test_lengths_are_padded_as_their_frames_are() -> None:
    frames = np.arange(1, 4000)
    expected = [recurring(int(count)) for count in frames]
    assert recurring_lengths(frames * 0.01, 0.01) / 0.01 == pytest.approx(expected)
    assert recurring_lengths(frames.astype(float), 1.0).tolist() == expected
    assert recurring_lengths(np.array([0.0, 1e-4]), 0.01).tolist() == [0.01, 0.01]
