from __future__ import annotations

import pytest
import torch

from asrtool.downsamplers import Keyframe, KeyframeConfig, select_keyframes
from asrtool.downsamplers.keyframe import FrameFusion, indices_of
from asrtool.types import Padded

DIM, VOCABULARY = 6, 4


def build(dim_out: int = DIM, **options) -> Keyframe:
    torch.manual_seed(0)
    return Keyframe(
        KeyframeConfig(**options), dim_in=DIM, dim_out=dim_out, vocab_size=VOCABULARY
    ).eval()


def hearing(tokens: list[list[int]], **options) -> tuple[Keyframe, Padded]:
    """A downsampler and frames in which its head hears these tokens: the first channels are their
    scores.
    """
    downsampler = build(**options)
    with torch.no_grad():
        downsampler.head.weight.zero_()[:, :VOCABULARY].fill_diagonal_(1.0)
        downsampler.head.bias.zero_()
    generator = torch.Generator().manual_seed(1)
    rows = []
    for row in tokens:
        frames = 0.1 * torch.rand(len(row), DIM, generator=generator)
        frames[torch.arange(len(row)), torch.tensor(row, dtype=torch.int64)] += 5.0
        rows.append(frames)
    return downsampler, Padded.stack(rows)


def kept(downsampler: Keyframe, inputs: Padded) -> list[list[int]]:
    output = downsampler(inputs)
    return [
        row[:size].tolist()
        for row, size in zip(output.positions, output.frames.lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([0, 0, 5, 5, 0, 5, 7, 7, 0], [2, 5, 6]),
        ([3, 3, 3], [0]),
        ([1, 2, 2, 1], [0, 1, 3]),
        ([0, 0, 0], [0]),
        ([], []),
    ],
)
def test_the_first_frame_of_every_run_is_a_key_frame(ids, expected):
    garbage = [1, 2, 3]  # behind the end
    indices, counts = select_keyframes(torch.tensor([ids + garbage]), torch.tensor([len(ids)]))
    assert indices.tolist() == [expected] and counts.tolist() == [len(expected)]


def test_a_batch_is_padded_with_minus_1():
    ids = torch.tensor([[1, 2, 3], [0, 0, 9], [0, 4, 4], [7, 7, 7]])
    indices, counts = select_keyframes(ids, torch.tensor([3, 2, 3, 0]))
    assert indices.tolist() == [[0, 1, 2], [0, -1, -1], [1, -1, -1], [-1, -1, -1]]
    assert counts.tolist() == [3, 1, 1, 0]


def test_another_id_may_be_the_blank():
    indices, _ = select_keyframes(torch.tensor([[2, 0, 0, 2, 1]]), torch.tensor([5]), blank=2)
    assert indices.tolist() == [[1, 4]]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_have_empty_answers(shape):
    indices, counts = select_keyframes(
        torch.zeros(shape, dtype=torch.int64), torch.zeros(shape[0], dtype=torch.int64)
    )
    assert indices.shape == (shape[0], 0) and counts.tolist() == [0] * shape[0]


def test_it_agrees_with_a_loop_over_random_runs():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (200, 12), generator=generator)
    lengths = torch.randint(1, 13, (200,), generator=generator)
    indices, counts = select_keyframes(ids, lengths)
    rows = zip(ids.tolist(), lengths.tolist(), indices.tolist(), counts.tolist(), strict=True)
    for row, length, found, count in rows:
        key = [t for t in range(length) if row[t] and (t == 0 or row[t] != row[t - 1])] or [0]
        assert found[:count] == key and set(found[count:]) <= {-1}


def test_without_room_for_all_evenly_spread_frames_stay():
    kept = torch.tensor([[1, 1, 1, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1]])
    indices, counts = indices_of(kept.bool(), most=3)
    assert indices.tolist() == [[1, 4, 6], [2, 6, -1], [2, 4, 6]] and counts.tolist() == [3, 2, 3]
    # with room for all it is what it is without a limit, but for the number of columns
    indices, counts = indices_of(kept.bool(), most=8)
    exact, same = indices_of(kept.bool())
    assert indices.shape == (3, 8) and torch.equal(counts, same)
    assert torch.equal(indices[:, :7], exact)


@pytest.mark.parametrize(("text", "keep", "columns"), [(2, 1, 9), (2, 3, 27), (50, 1, 40)])
def test_in_training_on_a_device_the_text_makes_the_room(text, keep, columns):
    module = Keyframe(KeyframeConfig(keep=keep), 8, 8, vocab_size=5).to("meta")
    frames = Padded(torch.empty(2, 40, 8), torch.tensor([40, 30])).to("meta")
    module.longest_text = text
    output = module.train()(frames)
    assert output.frames.data.shape == (2, columns, 8)
    assert output.taps["overflow"].data.shape == (2, 1)
    with pytest.raises((RuntimeError, NotImplementedError)):  # recognition keeps all, and asks
        module.eval()(frames)


def test_the_overflow_is_counted(monkeypatch):
    torch.manual_seed(0)
    module = Keyframe(KeyframeConfig(), 8, 8, vocab_size=5)
    frames = Padded(torch.randn(2, 40, 8), torch.tensor([40, 30]))
    kept = module.train()(frames)
    assert (kept.taps["overflow"].data == 0).all()
    monkeypatch.setattr(module, "_room", lambda mask: 10)
    fewer = module(frames)
    assert (kept.frames.lengths > 10).all() and fewer.frames.lengths.tolist() == [10, 10]
    assert torch.equal(fewer.taps["overflow"].data[:, 0], kept.frames.lengths - 10.0)
    assert all(
        set(few.tolist()) <= set(all_.tolist())
        for few, all_ in zip(fewer.positions, kept.positions, strict=True)
    )


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (torch.zeros(2, 3, 4), torch.tensor([1, 1]), r"expected ids \(B, T\)"),
        (torch.zeros(2, 3), torch.tensor([1]), r"expected ids \(B, T\)"),
        (torch.zeros(2, 3), torch.tensor([1, 4]), "do not fit 3 frames"),
    ],
)
def test_what_does_not_fit_is_named(ids, lengths, message):
    with pytest.raises(ValueError, match=message):
        select_keyframes(ids, lengths)


def test_key_frames_stay_with_their_positions_and_the_rest_goes():
    downsampler, inputs = hearing([[0, 1, 1, 0, 1, 2], [0, 0, 0, 0], [3]], fusion="none")
    output = downsampler(inputs)
    assert kept(downsampler, inputs) == [[1, 4, 5], [0], [0]]
    torch.testing.assert_close(output.frames.data[0], inputs.data[0, [1, 4, 5]])
    assert not output.frames.data[1:, 1:].any()
    shifted = downsampler(inputs, 10 + 3 * torch.arange(6).expand(3, -1)).positions
    assert shifted[0].tolist() == [13, 22, 25] and shifted[1:, 0].tolist() == [10, 10]


def test_taps_are_as_long_as_before_the_drop():
    downsampler, inputs = hearing([[0, 1, 1, 0, 1, 2], [0, 0, 0, 0], [3]])
    taps = downsampler(inputs).taps
    assert taps["inter_ctc"].lengths.tolist() == taps["key_frames"].lengths.tolist() == [6, 4, 1]
    assert taps["inter_ctc"].data.shape == (3, 6, VOCABULARY)
    assert taps["key_frames"].data.tolist() == [[0, 1, 0, 0, 1, 1], [0] * 6, [1] + [0] * 5]


def test_chunks_around_key_frames_may_stay():
    downsampler, inputs = hearing([[0, 0, 0, 1, 0, 0, 0, 0, 0, 2], [1] * 4], keep=5)
    assert kept(downsampler, inputs) == [[1, 2, 3, 4, 5, 7, 8, 9], [0, 1, 2]]


def test_without_a_drop_every_frame_stays_and_is_fused():
    downsampler, inputs = hearing([[0, 1, 1, 0], [2, 2]], drop=False)
    assert kept(downsampler, inputs) == [[0, 1, 2, 3], [0, 1]]
    dropping, _ = hearing([[0, 1, 1, 0], [2, 2]])
    torch.testing.assert_close(
        downsampler(inputs).frames.data[0, 1], dropping(inputs).frames.data[0, 0]
    )
    assert not torch.equal(downsampler(inputs).frames.data[0], inputs.data[0])


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("kind", ["attention", "weighted", "concat"])
def test_fusion_starts_near_the_frame_itself(kind, radius):
    torch.manual_seed(0)
    offsets = tuple(range(-radius, radius + 1))
    fusion = FrameFusion(DIM, kind, offsets)
    frames, valid = torch.randn(1, 9, DIM), torch.ones(1, 9, dtype=torch.bool)
    fused = fusion(frames, valid, torch.arange(9)[None])
    share = torch.nn.functional.cosine_similarity(fused, frames, dim=-1)
    assert (share > 0.6).all()
    if radius == 0 or kind == "concat":
        torch.testing.assert_close(fused, frames)


def test_weighted_fusion_is_the_sum_it_says_and_leaves_out_what_is_beyond_the_utterance():
    fusion = FrameFusion(DIM, "weighted", (-1, 0, 1))
    frames, valid = torch.randn(1, 4, DIM), torch.tensor([[True, True, True, False]])
    left, middle, right = (fused for fused in fusion(frames, valid, torch.tensor([[0, 1, 2]]))[0])
    torch.testing.assert_close(middle, 0.1 * frames[0, 0] + 0.8 * frames[0, 1] + 0.1 * frames[0, 2])
    torch.testing.assert_close(left, (0.8 * frames[0, 0] + 0.1 * frames[0, 1]) / 0.9)
    torch.testing.assert_close(right, (0.1 * frames[0, 1] + 0.8 * frames[0, 2]) / 0.9)


def test_attention_fusion_is_the_softmax_it_says():
    torch.manual_seed(0)
    fusion = FrameFusion(DIM, "attention", (-1, 0, 1))
    frames = torch.randn(1, 3, DIM)
    energy = fusion.score(torch.tanh(fusion.proj(frames)))[0, :, 0] + torch.tensor([0.0, 2.0, 0.0])
    found = fusion(frames, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[1]]))
    torch.testing.assert_close(found[0, 0], energy.softmax(0) @ frames[0])


def test_a_causal_frame_sees_nothing_later():
    downsampler, inputs = hearing([[0, 1, 0, 2, 0, 0, 3, 0]], causal=True)
    changed = Padded(inputs.data.clone(), inputs.lengths)
    changed.data[:, 4:] = torch.randn(1, 4, DIM)
    before, after = downsampler(inputs), downsampler(changed)
    assert kept(downsampler, inputs) == [[0, 1, 3, 6]]  # frame 0 stays whatever follows
    torch.testing.assert_close(before.frames.data[:, :3], after.frames.data[:, :3])
    ahead, _ = hearing([[0, 1, 0, 2, 0, 0, 3, 0]])
    changed.data[:, :4] = inputs.data[:, :4]
    assert not torch.equal(ahead(inputs).frames.data[0, 1], ahead(changed).frames.data[0, 1])


def test_silence_and_an_untrained_head_have_finite_gradients():
    for inputs in (torch.zeros(3, 7, DIM), torch.randn(3, 7, DIM)):
        downsampler, data = build(), inputs.requires_grad_()
        output = downsampler(Padded(data, torch.tensor([7, 3, 0])))
        (
            output.frames.data.square().sum() + output.taps["inter_ctc"].data.square().sum()
        ).backward()
        assert (
            data.grad.isfinite().all()
            and output.frames.lengths[2] == 0
            and (output.frames.lengths[:2] > 0).all()
        )
        assert all(parameter.grad.isfinite().all() for parameter in downsampler.parameters())


def test_the_selection_has_no_gradient():
    downsampler, inputs = hearing([[0, 1, 1, 0, 1, 2]], fusion="none")
    data = inputs.data.requires_grad_()
    downsampler(inputs).frames.data.sum().backward()
    assert downsampler.head.weight.grad is None
    assert data.grad.sum(2).tolist() == [[0, DIM, 0, 0, DIM, DIM]]


def test_another_width_is_a_linear_map_away():
    assert (
        build(dim_out=10)(Padded(torch.randn(1, 5, DIM), torch.tensor([5]))).frames.data.shape[2]
        == 10
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1}, "radius must be at least 0"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"keep": 3, "causal": True}, "keep: 3 looks ahead"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KeyframeConfig(**options)
