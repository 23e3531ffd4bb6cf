from __future__ import annotations

import random

import pytest
import torch

from asrtool.nn.masks import (
    attention_mask,
    causal_mask,
    chunk_mask,
    random_chunk,
    span_mask,
    valid_mask,
    window_mask,
)


def drawn(mask) -> list[str]:
    return ["".join(".x"[bool(cell)] for cell in row) for row in mask[0]]


@pytest.fixture
def six():
    return torch.arange(6)[None]


def test_valid_frames_are_those_before_the_length():
    assert valid_mask(torch.tensor([2, 0]), 3).tolist() == [
        [True, True, False],
        [False, False, False],
    ]


def test_a_causal_query_sees_itself_and_the_past():
    assert drawn(causal_mask(torch.tensor([[2, 3]]), torch.tensor([[1, 2, 3, 4]]))) == [
        "xx..",
        "xxx.",
    ]


def test_an_odd_window_is_symmetric(six):
    assert drawn(window_mask(six, six, 3)) == [
        "xx....",
        "xxx...",
        ".xxx..",
        "..xxx.",
        "...xxx",
        "....xx",
    ]


def test_an_even_window_has_one_more_frame_in_the_past(six):
    assert drawn(window_mask(six, six, 4)) == [
        "xx....",
        "xxx...",
        "xxxx..",
        ".xxxx.",
        "..xxxx",
        "...xxx",
    ]


def test_chunks_see_themselves_and_what_came_before(six):
    assert drawn(chunk_mask(six, six, 2)) == [
        "xx....",
        "xx....",
        "xxxx..",
        "xxxx..",
        "xxxxxx",
        "xxxxxx",
    ]


def test_left_chunks_limit_the_past(six):
    assert drawn(chunk_mask(six, six, 2, left_chunks=1)) == [
        "xx....",
        "xx....",
        "xxxx..",
        "xxxx..",
        "..xxxx",
        "..xxxx",
    ]


def test_chunks_are_cut_by_position_not_by_row():
    positions = torch.tensor([[0, 3, 4, 9]])
    assert drawn(chunk_mask(positions, positions, 4)) == ["xx..", "xx..", "xxx.", "xxxx"]


def test_a_query_that_sees_nothing_is_opened():
    mask = attention_mask(torch.tensor([[True, False], [False, False]]))
    assert mask.tolist() == [[[[True, False]]], [[[True, True]]]]


def test_random_chunks_may_be_limited_to_some_sizes():
    random.seed(0)
    chunks = [random_chunk(25, (4, 16)) for _ in range(400)]
    assert set(chunks) == {None, 4, 16} and 150 < chunks.count(None) < 250


def test_half_the_random_chunks_are_the_whole_and_the_rest_covers_every_size():
    random.seed(0)
    chunks = [random_chunk(4) for _ in range(4000)]
    counts = [chunks.count(size) / 4000 for size in (None, 1, 2, 3, 4)]
    # 4 standard deviations
    assert counts == pytest.approx([1 / 2, 1 / 8, 1 / 8, 1 / 8, 1 / 8], abs=0.03)


def test_spans_cover_whole_stretches_within_their_row():
    torch.manual_seed(0)
    lengths = torch.tensor([50, 20, 3, 0])
    for _ in range(20):
        mask = span_mask(lengths, 50, share=0.4, length=5)
        assert not mask[1, 20:].any() and not mask[2].any() and not mask[3].any()
        for row in mask[:2]:
            edges = torch.nn.functional.pad(row.float(), (1, 1)).diff().nonzero()
            stretches = edges.view(-1, 2).diff(dim=1)
            assert (stretches >= 5).all()


def test_the_number_of_spans_is_the_share_on_average():
    torch.manual_seed(0)
    lengths = torch.full((4000,), 40)
    covered = span_mask(lengths, 40, share=0.25, length=10).float().sum(1)
    assert abs(float(covered.mean()) - 10) < 0.05  # one span each: it cannot overlap another
    one_or_two = span_mask(lengths, 40, share=0.3, length=8).float().sum(1)
    assert set(one_or_two.tolist()) <= set(range(8, 17))
    assert abs(float((one_or_two > 8).float().mean()) - 0.5) < 0.05
