"""The two losses for frames that are about as many as tokens: published numbers by hand, and every
odd shape.
"""

from __future__ import annotations

import pytest
import torch

from asrtool.losses import LOSSES, AxeConfig, TilConfig
from asrtool.losses.axe import aligned_cross_entropy
from asrtool.losses.til import time_independence_loss
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded

FOUR = [[0.1, 0.6, 0.2, 0.1], [0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1], [0.2, 0.1, 0.1, 0.6]]
TWO = [[0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.2, 0.6]]
BOTH = pytest.mark.parametrize("loss", [aligned_cross_entropy, time_independence_loss])


def case(probs, text, dtype=torch.float64):
    tokens = torch.tensor([["_abc".index(letter) for letter in text]], dtype=torch.int64)
    log_probs = torch.tensor([probs], dtype=dtype).log()
    return log_probs, torch.tensor([len(probs)]), tokens, torch.tensor([len(text)])


@pytest.mark.parametrize(
    ("probs", "text", "penalty", "expected"),
    [
        *((FOUR, "abc", penalty, 2.071473) for penalty in (1.0, 2.0, 5.0)),
        (FOUR, "ab", 1.0, 3.170086),
        *(
            (FOUR, "abcca", penalty, value)
            for penalty, value in ((1.0, 4.884884), (2.0, 7.698295), (5.0, 11.071321))
        ),
        *((FOUR, "c", penalty, 5.809143) for penalty in (1.0, 2.0, 5.0)),
        (FOUR, "bac", 1.0, 5.115996),
        *((TWO, "abc", penalty, value) for penalty, value in ((1.0, 2.631089), (2.0, 3.141915))),
        (TWO, "ac", 1.0, 1.021651),
        (TWO, "a", 1.0, 2.813411),
    ],
)
def test_axe_by_hand(probs, text, penalty, expected):
    assert aligned_cross_entropy(*case(probs, text), skip_penalty=penalty).item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("text", "mean"), [("abc", 1.393394), ("cba", 1.393394), ("abcca", 1.391974)]
)
def test_til_by_hand(text, mean):
    assert time_independence_loss(*case(FOUR, text)).item() == pytest.approx(
        max(4, len(text)) * mean, abs=1e-5
    )


def test_til_forgets_the_order_and_axe_does_not():
    def losses(loss):
        return {round(loss(*case(FOUR, text)).item(), 6) for text in ("abc", "acb", "bca", "cba")}

    assert len(losses(time_independence_loss)) == 1 and len(losses(aligned_cross_entropy)) > 2


@BOTH
def test_without_tokens_every_frame_is_blank(loss):
    log_probs, lengths, tokens, none = case(FOUR, "")
    blank = log_probs[..., 0]
    expected = -blank.sum() if loss is aligned_cross_entropy else -4 * (blank.exp().mean()).log()
    assert loss(log_probs, lengths, tokens, none).item() == pytest.approx(expected.item())


@BOTH
@pytest.mark.parametrize(
    "shape", [(2, 0, 5, 3), (2, 4, 5, 0), (2, 0, 5, 0), (0, 4, 5, 3), (1, 1, 2, 1)]
)
def test_empty_tensors_have_a_loss_and_a_gradient(loss, shape):
    batch, frames, vocabulary, tokens = shape
    log_probs = torch.randn(batch, frames, vocabulary).log_softmax(-1).requires_grad_()
    target = torch.ones(batch, tokens, dtype=torch.int64)
    value = loss(log_probs, torch.full((batch,), frames), target, torch.full((batch,), tokens))
    value.sum().backward()
    assert value.shape == (batch,) and value.isfinite().all() and log_probs.grad.isfinite().all()
    if not frames:
        assert not value.any()


@BOTH
def test_what_stands_in_the_padding_changes_nothing(loss):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(length, 6, generator=generator).log_softmax(-1) for length in (7, 2, 0, 4)]
    texts = [
        torch.tensor(text, dtype=torch.int64) for text in ([1, 2, 2], [3, 4, 5, 1, 2], [1], [])
    ]
    dirty = Padded.stack(rows, padding=float("nan")), Padded.stack(texts, padding=-100)
    data = dirty[0].data.requires_grad_()
    together = loss(data, dirty[0].lengths, *dirty[1])
    together.sum().backward()
    assert data.grad[dirty[0].mask].isfinite().all() and not data.grad[~dirty[0].mask].any()
    for row, (frames, text) in enumerate(zip(rows, texts, strict=True)):
        alone = loss(
            frames[None], torch.tensor([len(frames)]), text[None], torch.tensor([len(text)])
        )
        torch.testing.assert_close(together[row], alone[0])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_result_is_float32_or_better(loss, dtype):
    log_probs, *others = case(FOUR, "abc", dtype)
    result = loss(log_probs, *others)
    assert result.dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(result.double(), loss(*case(FOUR, "abc")), atol=0.05, rtol=0.0)
    assert loss(log_probs, *(value.int() for value in others)).equal(result)


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": torch.tensor([5])}, r"lengths \[5\] must lie between 0 and 4"),
        ({"lengths": torch.tensor([4, 4])}, r"lengths must have shape \(1,\), got \(2,\)"),
        ({"target_lengths": torch.tensor([4])}, r"target_lengths \[4\] must lie between 0 and 3"),
        ({"targets": torch.tensor([[1, 2, 4]])}, "ids outside the vocabulary of 4"),
        (
            {"targets": torch.tensor([1, 2, 3])},
            r"expected log_probs \(B, T, V\) and targets \(B, " r"U\)",
        ),
        ({"blank": 4}, "blank 4 is outside"),
        ({"log_probs": torch.zeros(1, 4, 4, dtype=torch.int64)}, "must be floating point"),
    ],
)
def test_what_does_not_fit_is_named(loss, change, message):
    names = ("log_probs", "lengths", "targets", "target_lengths")
    with pytest.raises(ValueError, match=message):
        loss(**{**dict(zip(names, case(FOUR, "abc"), strict=True)), **change})


def test_a_skip_penalty_must_be_above_0():
    with pytest.raises(ValueError, match="skip_penalty must be above 0"):
        AxeConfig(weight=1.0, skip_penalty=0.0)
    with pytest.raises(ValueError, match="skip_penalty must be above 0"):
        aligned_cross_entropy(*case(FOUR, "a"), skip_penalty=-1.0)


def test_probability_0_costs_infinity_only_where_it_must():
    log_probs, lengths, tokens, count = case([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], "ab")
    assert aligned_cross_entropy(log_probs, lengths, tokens, count).item() == pytest.approx(
        2 * 0.693147, abs=1e-5
    )
    assert aligned_cross_entropy(log_probs, lengths, tokens.flip(1), count).item() == float("inf")


@pytest.mark.parametrize("config", [AxeConfig(weight=1.0), TilConfig(weight=1.0)])
def test_fewer_frames_than_tokens_everywhere_is_no_reason_to_skip(config):
    logits = torch.zeros(3, 2, 5, requires_grad=True)  # an untrained head
    rows = Padded(logits, torch.tensor([2, 1, 0]))
    outputs = ModelOutput(
        encoder=EncoderOutput(frames=rows, positions=torch.zeros(3, 2)),
        heads={"aligned": rows},
    )
    targets = Padded(torch.randint(1, 5, (3, 9)), torch.tensor([9, 5, 3]))
    loss = LOSSES.build(config, eos=4)
    batch = Batch(ids=("a", "b", "c"), inputs=rows, targets=targets)
    values = loss(outputs, batch)
    values.sum().backward()
    assert values.isfinite().all() and (values[:2] > 0).all() and values[2] == 0
    assert logits.grad.isfinite().all() and logits.grad[:2].any()
    assert loss.skipped(outputs, batch).tolist() == [False, False, True]
