from __future__ import annotations

from itertools import groupby, product

import pytest
import torch
from torch.nn import functional as F

from asrtool.losses import LOSSES
from asrtool.losses.blank_ctc import blank_regularized_ctc
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded

VOCABULARY = 4
TARGETS = [[1, 2, 3], [2, 2], [], [3, 1, 1, 2], [1], [3, 2, 1, 3, 1]]


def case(seed: int, frames: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, Padded]:
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randn(length, VOCABULARY, generator=generator, dtype=torch.float64)
        for length in frames
    ]
    logits = Padded.stack(rows, padding=7.0)
    targets = Padded.stack([torch.tensor(row, dtype=torch.int64) for row in TARGETS], padding=9)
    return logits.data.log_softmax(-1), logits.lengths, targets


def enumerated(log_probs, target: list[int], penalty: float, longest: int | None) -> float:
    """The loss over all sequences of a token for each frame that read as `target`."""
    paths = []
    for path in product(range(VOCABULARY), repeat=len(log_probs)):
        runs = [(token, len(list(run))) for token, run in groupby(path)]
        heard = [(token, length) for token, length in runs if token]
        if [token for token, _ in heard] != target:
            continue
        if longest is not None and any(length > longest for _, length in heard):
            continue
        score = sum(log_probs[t, token] for t, token in enumerate(path))
        paths.append(score - penalty * sum(length - 1 for _, length in heard))
    return -torch.stack(paths).logsumexp(0).item() if paths else float("inf")


@pytest.mark.parametrize("longest", [None, 1, 2, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_it_is_the_sum_over_all_paths(penalty, longest):
    log_probs, lengths, targets = case(0, (5, 4, 3, 5, 1, 5))
    loss = blank_regularized_ctc(log_probs, lengths, targets, 0, penalty, longest)
    for row, target in enumerate(TARGETS):
        expected = enumerated(log_probs[row, : lengths[row]], target, penalty, longest)
        if expected == float("inf"):
            assert loss[row] > 1e8
        else:
            assert loss[row].item() == pytest.approx(expected, abs=1e-9)


def test_without_restrictions_it_is_ctc():
    log_probs, lengths, targets = case(1, (60, 31, 9, 200, 5, 77))
    log_probs.requires_grad_()
    loss = blank_regularized_ctc(log_probs, lengths, targets)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    plain = F.ctc_loss(
        log_probs.transpose(0, 1), targets.data, lengths, targets.lengths, reduction="none"
    )
    (expected,) = torch.autograd.grad(plain.sum(), log_probs)
    torch.testing.assert_close(loss, plain, atol=1e-9, rtol=0)
    # F.ctc_loss gives the gradient of its logits: it adds the probabilities
    shares = log_probs.exp() * Padded(log_probs, lengths).mask[:, :, None]
    torch.testing.assert_close(gradient + shares, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("longest", [None, 2])
def test_its_gradient_is_that_of_finite_differences(longest):
    log_probs, lengths, targets = case(2, (9, 8, 3, 7, 2, 8))

    def loss(values):
        return blank_regularized_ctc(values, lengths, targets, 0, 0.7, longest)

    torch.autograd.gradcheck(loss, log_probs.requires_grad_())


def test_a_token_without_probability_leaves_the_gradient_finite():
    log_probs, lengths, targets = case(3, (12, 12, 12, 12, 12, 12))
    log_probs[:, 4:, 2] = -torch.inf
    log_probs.requires_grad_()
    blank_regularized_ctc(log_probs, lengths, targets, 0, 1.0).sum().backward()
    assert torch.isfinite(log_probs.grad).all()


def test_the_loss_ctc_takes_the_restrictions():
    log_probs, lengths, targets = case(4, (20, 12, 9, 20, 5, 30))
    frames = Padded(log_probs.float(), lengths)
    encoder = EncoderOutput(frames=frames, positions=torch.zeros(frames.data.shape[:2]))
    batch = Batch(ids=tuple("abcdef"), inputs=frames, targets=targets)
    outputs = ModelOutput(encoder=encoder, heads={"ctc": frames})
    kind = LOSSES.config_type("ctc")
    values = {
        key: LOSSES.build(kind(weight=1.0, **options), eos=3)(outputs, batch)
        for key, options in (
            ("plain", {}),
            ("soft", {"repeat_penalty": 2.0}),
            ("hard", {"longest_run": 1}),
        )
    }
    assert all(value.dtype == torch.float32 for value in values.values())
    expected = blank_regularized_ctc(log_probs, lengths, targets, 0, 2.0)
    torch.testing.assert_close(values["soft"].double(), expected, atol=1e-4, rtol=1e-5)
    spoken = targets.lengths > 0
    assert (values["soft"] > values["plain"])[spoken].all()
    assert (values["hard"] > values["soft"])[spoken].all()
