"""Attention within windows equals attention to everybody with a mask, and costs no more than its
windows.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asrtool.nn import windows
from asrtool.nn.attention import windowed_attention
from asrtool.nn.windows import adaptive_attention, streamed_attention


def masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    window: int,
    spans=None,
    ramp=1.0,
    back=False,
) -> Tensor:
    """The definition, frame by frame over all T x T pairs."""
    rows, before = [], window - 1 if back else window // 2
    for row, length in enumerate(lengths.tolist()):
        heads = 0 * value[row]
        if length:
            q, k, v = (x[row, :, :length] for x in (query, key, value))
            offset = torch.arange(length) - torch.arange(length)[:, None]
            scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
            scores = scores.masked_fill(
                (offset < -before) | (offset >= window - before), -torch.inf
            )
            weights = scores.softmax(-1)
            if spans is not None:
                fade = ((ramp + spans[row, :, :length, None] - offset.abs()) / ramp).clamp(0, 1)
                weights = weights * fade.masked_fill(offset == 0, 1.0)
                weights = weights / weights.sum(-1, keepdim=True)
            heads[:, :length] = weights @ v
        rows.append(heads)
    return torch.stack(rows)


def drawn(seed: int, dtype: torch.dtype):
    """Random sizes of every kind: (query, key, value), lengths, window."""
    random.seed(seed)
    torch.manual_seed(seed)
    batch, num_heads = random.choice([1, 2, 3]), random.choice([1, 2, 4])
    frames = random.choice([1, 2, 17, 129, 200, 333, 500])
    window = random.choice([1, 2, 3, 4, 7, 16, 31, 64, 100, frames, 2 * frames])
    lengths = torch.randint(0, frames + 1, (batch,)) if seed % 3 else torch.full((batch,), frames)
    heads = tuple(
        torch.randn(batch, num_heads, frames, 8, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    return heads, lengths, window


def compare(found: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], atol: float) -> None:
    """Values and gradients."""
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        other = torch.zeros_like(one) if other is None else other  # where all lengths are 0
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("back", [False, True], ids=["around", "back"])
def test_a_window_is_a_mask(seed, dtype, atol, back):
    heads, lengths, window = drawn(seed, dtype)
    found = windowed_attention(*heads, lengths, window, back)
    compare(found, masked(*heads, lengths, window, back=back), heads, atol)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("back", [False, True], ids=["around", "back"])
def test_a_span_is_a_mask_that_fades(seed, back):
    heads, lengths, window = drawn(seed, torch.float64)
    farthest = window if back else window / 2
    spans = torch.rand(heads[0].shape[:3], dtype=torch.float64) * (farthest + 3) - 3
    spans.requires_grad_()
    found = adaptive_attention(*heads, lengths, window, spans, 3.0, back)
    compare(found, masked(*heads, lengths, window, spans, 3.0, back), (*heads, spans), 1e-9)


@pytest.mark.parametrize("adaptive", [False, True], ids=["window", "spans"])
@pytest.mark.parametrize("seed", range(12))
def test_a_piece_of_a_stream_sees_what_the_whole_utterance_shows_it(seed, adaptive):
    heads, _, window = drawn(seed, torch.float64)
    frames = heads[0].shape[2]
    cut = random.randrange(frames)
    spans = torch.rand(heads[0].shape[:3], dtype=torch.float64) * (window + 3) - 3
    settings = (window, spans, 3.0, True) if adaptive else (window, True)
    way = adaptive_attention if adaptive else windowed_attention
    expected = way(*heads, None, *settings)[:, :, cut:]
    # the cache holds window - 1 frames, or nothing of what would be in front of the utterance
    first = max(0, cut - window + 1)
    empty = window - 1 - (cut - first)
    key, value = (
        torch.nn.functional.pad(x[:, :, first:], (0, 0, empty, 2), value=9.0) for x in heads[1:]
    )
    query = torch.nn.functional.pad(heads[0][:, :, cut:], (0, 0, 0, 2))
    valid = torch.zeros(key.shape[0], key.shape[2], dtype=torch.bool)
    valid[:, empty : key.shape[2] - 2] = True
    after = torch.nn.functional.pad(spans[:, :, cut:], (0, 2))
    found = streamed_attention(query, key, value, valid, window, after if adaptive else None, 3.0)
    torch.testing.assert_close(found[:, :, : frames - cut], expected, atol=1e-12, rtol=0)
    assert found.isfinite().all()


@pytest.mark.parametrize("seed", range(0, 24, 3))
def test_spans_wide_open_are_the_whole_window_and_narrow_ones_the_frame_itself(seed):
    heads, lengths, window = drawn(seed, torch.float32)
    wide = torch.full(heads[0].shape[:3], window / 2)
    torch.testing.assert_close(
        adaptive_attention(*heads, lengths, window, wide, 2.0),
        windowed_attention(*heads, lengths, window),
        atol=1e-5,
        rtol=0,
    )
    narrow = adaptive_attention(*heads, lengths, window, torch.full_like(wide, -1.0), 2.0)
    valid = (torch.arange(wide.shape[2]) < lengths[:, None])[:, None, :, None]
    torch.testing.assert_close(narrow, heads[2] * valid, atol=1e-6, rtol=0)


@pytest.mark.parametrize("frames, window", [(50, 9), (400, 16), (40, 200)])
def test_what_stands_in_the_padding_changes_nothing(frames, window):
    heads = [torch.randn(2, 2, frames, 8) for _ in range(3)]
    lengths = torch.tensor([frames // 3, frames])
    dirty = [x.clone() for x in heads]
    for x in dirty:
        x[0, :, frames // 3 :] = torch.nan
        x.requires_grad_()
    found = windowed_attention(*dirty, lengths, window)
    assert (
        torch.equal(found, windowed_attention(*heads, lengths, window))
        and not found[0, :, frames // 3 :].any()
    )
    found.sum().backward()
    assert all(x.grad.isfinite().all() and not x.grad[0, :, frames // 3 :].any() for x in dirty)


def test_no_lengths_are_full_lengths():
    heads = [torch.randn(2, 2, 150, 8) for _ in range(3)]
    full = windowed_attention(*heads, torch.tensor([150, 150]), 16)
    assert torch.equal(windowed_attention(*heads, None, 16), full)


@pytest.mark.parametrize("shape", [(0, 2, 30, 8), (2, 2, 0, 8)])
def test_nothing_gives_nothing(shape):
    empty, lengths = torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64)
    assert windowed_attention(empty, empty, empty, lengths, 4).shape == shape
    assert adaptive_attention(empty, empty, empty, lengths, 4, empty[..., 0], 1.0).shape == shape


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"window": 0}, "at least 1 frame"),
        ({"lengths": torch.tensor([3])}, r"lengths \(1,\) must be \(B,\) = \(2,\)"),
        ({"key": torch.zeros(2, 2, 4, 8)}, "must have one shape"),
    ],
)
def test_arguments_that_do_not_fit_are_named(wrong, says):
    heads = {name: torch.zeros(2, 2, 5, 8) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=says):
        windowed_attention(**{**heads, "lengths": torch.tensor([5, 5]), "window": 3, **wrong})


@pytest.mark.parametrize("window", [1, 16, 64, 256])
def test_the_work_is_linear_in_the_frames(window):
    def work(frames: int) -> int:
        heads = [torch.randn(1, 2, frames, 8, requires_grad=True) for _ in range(3)]
        with FlopCounterMode(display=False) as counter:
            windowed_attention(*heads, None, window).sum().backward()
        return counter.get_total_flops()

    one, four = work(2048), work(8192)
    assert four == 4 * one
    keys = max(32, 4 * window)  # of each query, masked ones included
    assert one <= 2 * 7 * 2 * 2048 * keys * 8  # 7 products of 2 heads, forward and backward


def test_bfloat16_stays_bfloat16():
    heads = [torch.randn(1, 2, 300, 8, dtype=torch.bfloat16) for _ in range(3)]
    found = windowed_attention(*heads, torch.tensor([280]), 16)
    exact = windowed_attention(*(x.float() for x in heads), torch.tensor([280]), 16)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0)


@pytest.mark.parametrize("seed", range(0, 24, 2))
def test_portions_change_nothing(seed, monkeypatch):
    monkeypatch.setattr("asrtool.nn.windows._PORTION", 1 << 12)
    heads, lengths, window = drawn(seed, torch.float64)
    compare(
        windowed_attention(*heads, lengths, window), masked(*heads, lengths, window), heads, 1e-12
    )
    spans = torch.rand(heads[0].shape[:3], dtype=torch.float64, requires_grad=True)
    found = adaptive_attention(*heads, lengths, window, spans, 4.0)
    compare(found, masked(*heads, lengths, window, spans, 4.0), (*heads, spans), 1e-9)


def test_a_mask_of_all_frames_is_not_kept_where_it_is_large():
    heads = [torch.randn(1, 1, 1400, 4) for _ in range(3)]
    found = windowed_attention(*heads, None, 1300)
    torch.testing.assert_close(found, masked(*heads, torch.tensor([1400]), 1300), atol=1e-5, rtol=0)
    assert (
        windows._new_band(8, 8, 3, 1, torch.float32, torch.device("cpu")).isinf().sum() == 64 - 22
    )
    kept = windows._kept_band.cache_info().currsize
    windowed_attention(*heads, None, 1200)
    assert windows._kept_band.cache_info().currsize == kept


def test_lengths_beyond_the_frames_are_all_frames():
    heads = [torch.randn(2, 2, 150, 8) for _ in range(3)]
    found = windowed_attention(*heads, torch.tensor([900, 20]), 16)
    assert torch.equal(found, windowed_attention(*heads, torch.tensor([150, 20]), 16))


@pytest.mark.parametrize("frames", [60, 300])
def test_training_goes_on_behind_validation(frames):
    windows._kept_band.cache_clear()
    heads = [torch.randn(1, 2, frames, 8, requires_grad=True) for _ in range(3)]
    with torch.inference_mode():
        windowed_attention(*heads, None, 16)
    windowed_attention(*heads, None, 16).sum().backward()
    assert all(x.grad is not None for x in heads)
