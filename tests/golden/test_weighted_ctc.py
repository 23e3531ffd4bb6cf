"""Focal and class-weighted CTC against sums over all paths, written down without either."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from asrtool.losses import LOSSES, CtcConfig, FocalCtcConfig
from asrtool.losses.class_weights import inverse_frequency
from asrtool.losses.focal_ctc import focal
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded

TARGETS = [[1, 2], [3, 3, 1], [2], []]
FRAMES = [5, 5, 3, 2]
COUNTS = [0, 40, 5, 15, 0, 0]  # blank, three tokens, one that never occurs, eos


def collapse(path) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token]


def paths(log_probs: Tensor, target: list[int]) -> tuple[Tensor, Tensor]:
    """-log of the probability of all paths of log_probs (S, V), and the posterior of each token at
    each frame.
    """
    frames, size = log_probs.shape
    chosen = [
        path for path in itertools.product(range(size), repeat=frames) if collapse(path) == target
    ]
    scores = torch.stack([sum(log_probs[t, c] for t, c in enumerate(path)) for path in chosen])
    total = scores.logsumexp(0)
    posterior = torch.zeros(frames, size, dtype=log_probs.dtype)
    for path, share in zip(chosen, (scores - total).exp().tolist(), strict=True):
        for t, c in enumerate(path):
            posterior[t, c] += share
    return -total, posterior


def case(scale: float = 1.0):
    generator = torch.Generator().manual_seed(0)
    rows = [scale * torch.randn(frames, 6, generator=generator) for frames in FRAMES]
    stream = Padded.stack(rows)
    stream.data.requires_grad_()
    targets = Padded.stack([torch.tensor(target, dtype=torch.int64) for target in TARGETS])
    outputs = ModelOutput(
        encoder=EncoderOutput(frames=stream, positions=stream.mask), heads={"ctc": stream}
    )
    return outputs, Batch(ids=tuple("abcd"), inputs=stream, targets=targets), rows


def build(config):
    loss = LOSSES.build(config, eos=5)
    loss.count(COUNTS)
    return loss


def gradient(loss, outputs, batch) -> Tensor:
    (found,) = torch.autograd.grad(loss(outputs, batch).sum(), outputs.head("ctc").data)
    return found


# 60 tokens of 3 kinds: 20 each
WEIGHTS = [1.0, (20 / 40) ** 0.5, (20 / 5) ** 0.5, (20 / 15) ** 0.5, 5.0, 5.0]


def test_class_weights_are_the_inverse_of_the_frequency():
    torch.testing.assert_close(inverse_frequency(COUNTS, 0.5, 0.2, 5.0), torch.tensor(WEIGHTS))
    assert inverse_frequency(COUNTS, 0.0, 0.2, 5.0)[:4].tolist() == [1.0] * 4
    assert inverse_frequency([0, 10**6, 1, 1], 1.0, 0.5, 3.0).tolist() == [1.0, 0.5, 3.0, 3.0]


def test_utterance_weights_times_the_sum_over_all_paths():
    outputs, batch, rows = case()
    found = build(CtcConfig(weight=1.0, class_weights="inverse_frequency"))(outputs, batch)
    for row, (logits, target) in enumerate(zip(rows, TARGETS, strict=True)):
        plain, _ = paths(logits.double().log_softmax(-1), target)
        mean = sum(WEIGHTS[token] for token in target) / len(target) if target else 1.0
        assert found[row].item() == pytest.approx(mean * plain.item(), rel=1e-5)


def test_the_reweighted_gradient_is_that_of_reweighted_posteriors():
    outputs, batch, rows = case()
    loss = build(
        CtcConfig(weight=1.0, class_weights="inverse_frequency", class_weighting="gradient")
    )
    values, found = loss(outputs, batch), gradient(loss, outputs, batch)
    for row, (logits, target) in enumerate(zip(rows, TARGETS, strict=True)):
        log_probs = logits.double().log_softmax(-1)
        plain, posterior = paths(log_probs, target)
        assert values[row].item() == pytest.approx(plain.item(), rel=1e-5)
        weighted = posterior * torch.tensor(WEIGHTS, dtype=torch.float64)
        expected = log_probs.exp() - weighted / weighted.sum(-1, keepdim=True)
        torch.testing.assert_close(found[row, : len(logits)].double(), expected, atol=1e-5, rtol=0)
        assert not found[row, len(logits) :].any()


@pytest.mark.parametrize("form", ["utterance", "gradient"])
def test_class_weights_of_1_are_plain_ctc_exactly(form):
    outputs, batch, _ = case()
    plain = build(CtcConfig(weight=1.0))
    weighted = build(
        CtcConfig(
            weight=1.0, class_weights="inverse_frequency", class_weighting=form, class_power=0.0
        )
    )
    weighted.weights = torch.ones(6)
    assert torch.equal(weighted(outputs, batch), plain(outputs, batch))
    slopes = gradient(weighted, outputs, batch), gradient(plain, outputs, batch)
    # other roundings
    torch.testing.assert_close(*slopes, atol=1e-6 if form == "gradient" else 0, rtol=0)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("probability", ["length", "sentence"])
def test_focal_ctc_is_its_formula_over_the_sum_over_all_paths(probability, gamma):
    outputs, batch, rows = case()
    config = FocalCtcConfig(weight=1.0, alpha=0.5, gamma=gamma, probability=probability)
    found, slope = build(config)(outputs, batch), gradient(build(config), outputs, batch)
    for row, (logits, target) in enumerate(zip(rows, TARGETS, strict=True)):

        def value(x: Tensor, target=target) -> Tensor:
            plain, _ = paths(x.log_softmax(-1), target)
            p = torch.exp(-plain / (max(1, len(target)) if probability == "length" else 1))
            return 0.5 * (1 - p) ** gamma * plain

        x = logits.double().detach()
        assert found[row].item() == pytest.approx(value(x).item(), rel=1e-5)
        for frame, token in ((0, 0), (1, 2), (len(x) - 1, 3)):
            step = torch.zeros_like(x)
            step[frame, token] = 1e-5
            expected = (value(x + step) - value(x - step)).item() / 2e-5
            assert slope[row, frame, token].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("probability", ["length", "sentence"])
def test_alpha_1_and_gamma_0_are_plain_ctc_exactly(probability):
    outputs, batch, _ = case()
    plain = build(CtcConfig(weight=1.0))
    loss = build(FocalCtcConfig(weight=1.0, alpha=1.0, gamma=0.0, probability=probability))
    assert torch.equal(loss(outputs, batch), plain(outputs, batch))
    assert torch.equal(gradient(loss, outputs, batch), gradient(plain, outputs, batch))


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0])
def test_gradients_are_finite_as_the_probability_goes_to_1(gamma):
    for value in (0.0, 1e-30, 1e-12, 1e-7, 1e-3, 50.0, 1e4):
        loss = torch.tensor([value], requires_grad=True)
        focal(loss, torch.tensor([3]), 0.25, gamma).sum().backward()
        assert loss.grad.isfinite().all() and (loss.grad >= 0).all()
    outputs, batch, _ = case()
    sure = torch.full((4, 5, 6), -200.0)
    for row, path in enumerate(([1, 1, 2, 2, 0], [3, 0, 3, 1, 1], [2, 2, 2], [0, 0])):
        for frame, token in enumerate(path):
            sure[row, frame, token] = 200.0
    stream = Padded(sure.requires_grad_(), outputs.head("ctc").lengths)
    outputs = ModelOutput(encoder=outputs.encoder, heads={"ctc": stream})
    configs = [
        FocalCtcConfig(weight=1.0, gamma=gamma),
        CtcConfig(weight=1.0, class_weights="inverse_frequency"),
        CtcConfig(weight=1.0, class_weights="inverse_frequency", class_weighting="gradient"),
    ]
    for config in configs:
        assert gradient(build(config), outputs, batch).isfinite().all()


def test_an_utterance_that_no_path_fits_gets_nothing():
    outputs, batch, _ = case()
    stream = outputs.head("ctc")
    short = ModelOutput(
        encoder=outputs.encoder, heads={"ctc": Padded(stream.data, torch.tensor([1, 2, 3, 2]))}
    )
    for config in (
        CtcConfig(weight=1.0, class_weights="inverse_frequency", class_weighting="gradient"),
        CtcConfig(weight=1.0, class_weights="inverse_frequency"),
        FocalCtcConfig(weight=1.0),
    ):
        loss = build(config)
        assert loss.skipped(short, batch).tolist() == [True, True, False, False]
        assert loss(short, batch)[:2].tolist() == [0.0, 0.0] and loss(short, batch).isfinite().all()
        assert not gradient(loss, short, batch)[:2].any()


def test_weights_need_counts():
    outputs, batch, _ = case()
    config = CtcConfig(weight=1.0, class_weights="inverse_frequency")
    with pytest.raises(ValueError, match="need the counts of the tokens"):
        LOSSES.build(config, eos=5)(outputs, batch)
    with pytest.raises(ValueError, match="make it again"):
        LOSSES.build(config, eos=5).count(None)
    with pytest.raises(ValueError, match="no token occurs"):
        LOSSES.build(config, eos=5).count([0] * 6)


@pytest.mark.parametrize(
    "wrong", [{"class_limits": (2.0, 5.0)}, {"class_limits": (0.0, 5.0)}, {"class_power": -1.0}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError):
        CtcConfig(weight=1.0, **wrong)
    with pytest.raises(ValueError):
        FocalCtcConfig(weight=1.0, alpha=0.0)


def test_weights_of_the_gradient_are_refused_beside_blank_regularisation() -> None:
    weighted = {"class_weights": "inverse_frequency", "class_weighting": "gradient"}
    for regularized in ({"repeat_penalty": 2.0}, {"longest_run": 2}):
        CtcConfig(weight=1.0, class_weights="inverse_frequency", **regularized)
        with pytest.raises(ValueError, match="use class_weighting: utterance with them"):
            CtcConfig(weight=1.0, **weighted, **regularized)
