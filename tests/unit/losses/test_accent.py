"""The accent loss against its formula, frame by frame, and utterances of which nothing is known."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from asrtool.losses import AccentLoss, AccentLossConfig
from asrtool.losses.accent import mean_posteriors
from asrtool.losses.class_weights import label_weights
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded

LENGTHS, TRUTH = (4, 2, 3, 0), (2, 0, -1, 1)


def case(dtype=torch.float32, truth=TRUTH, labels=True) -> tuple[ModelOutput, Batch]:
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(length, 3, generator=generator, dtype=torch.float64).to(dtype)
        for length in LENGTHS
    ]
    logits = Padded.stack(rows, padding=7.0)
    encoder = EncoderOutput(frames=logits, positions=torch.zeros(len(LENGTHS), 4))
    given = {"accent": torch.tensor(truth)} if labels else {}
    batch = Batch(
        ids=("a", "b", "c", "d"),
        inputs=logits,
        targets=Padded.stack([torch.zeros(0)] * 4),
        labels=given,
    )
    return ModelOutput(encoder=encoder, heads={"accent": logits}), batch


def loss(**options) -> AccentLoss:
    return AccentLoss(AccentLossConfig(weight=1.0, **options), eos=5)


def by_hand(row: torch.Tensor, truth: int, form: str) -> float:
    total = 0.0
    for frame in row.tolist():
        scale = sum(exp(value) for value in frame)
        probs = [exp(value) / scale for value in frame]
        if form == "cross_entropy":
            total -= log(probs[truth])
        else:
            total -= sum(log((q if a == truth else 1 - q) + 1e-6) for a, q in enumerate(probs))
    return total / len(row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", ["bce", "cross_entropy"])
def test_it_is_its_formula(form, dtype):
    outputs, batch = case(dtype)
    found = loss(form=form)(outputs, batch).tolist()
    rows = outputs.heads["accent"].unpad()
    assert found[:2] == pytest.approx([by_hand(rows[i], TRUTH[i], form) for i in (0, 1)], abs=1e-5)
    assert found[2:] == [0.0, 0.0]  # no label; no frames


@pytest.mark.parametrize("form", ["bce", "cross_entropy"])
@pytest.mark.parametrize(("truth", "labels"), [((-1,) * 4, True), (TRUTH, False)])
def test_a_set_without_the_label_is_masked_and_gives_gradients_of_zero(form, truth, labels):
    outputs, batch = case(truth=truth, labels=labels)
    data = outputs.heads["accent"].data.requires_grad_()
    found = loss(form=form)(outputs, batch)
    found.sum().backward()
    assert found.tolist() == [0.0] * 4 and not data.grad.any()


def test_saturated_frames_have_finite_losses_and_gradients():
    outputs, batch = case()
    data = outputs.heads["accent"].data
    data[0] = torch.tensor([1e4, -1e4, -1e4])
    data.requires_grad_()
    found = loss()(outputs, batch)
    found.sum().backward()
    assert found[0].item() == pytest.approx(-2 * log(1e-6), rel=1e-3) and data.grad.isfinite().all()


def test_a_label_beyond_the_head_says_what_to_set():
    outputs, batch = case(truth=(3, 0, 0, 0))
    with pytest.raises(
        ValueError, match="label 'accent' has at least 4 values.*3.*model.encoder.accent.classes"
    ):
        loss()(outputs, batch)


def test_the_utterance_is_what_its_frames_are_in_the_mean():
    logits = case()[0].heads["accent"]
    found = mean_posteriors(logits)
    torch.testing.assert_close(found[0], logits.data[0].softmax(-1).mean(0))
    torch.testing.assert_close(found[1], logits.data[1, :2].softmax(-1).mean(0))
    assert found[3].tolist() == [0.0] * 3
    outputs, batch = case(truth=(int(found[0].argmax()), (int(found[1].argmax()) + 1) % 3, -1, -1))
    assert loss().monitor(outputs, batch)["accuracy"].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_rare_accents_weigh_more_and_the_mean_weight_of_the_training_set_is_1():
    counts = [80, 15, 5]
    for power, expected in ((1.0, [100 / 3 / n for n in counts]), (0.0, [1.0] * 3)):
        weights = label_weights(counts, power, 0.01, 100.0)
        assert weights.tolist() == pytest.approx(expected)
    weights = label_weights(counts, 0.5, 0.01, 100.0)
    assert weights[2] / weights[0] == pytest.approx(4.0)
    assert (weights * torch.tensor(counts)).sum() == pytest.approx(100)
    assert label_weights([80, 15, 0], 1.0, 0.5, 3.0)[[0, 2]].tolist() == pytest.approx(
        [47.5 / 80, 3]
    )
    assert (
        label_weights([0, 0], 1.0, 0.5, 3.0).tolist() == label_weights([], 1, 0.5, 3).tolist() == []
    )


@pytest.mark.parametrize("form", ["bce", "cross_entropy"])
def test_class_weights_multiply_the_loss_of_each_utterance(form):
    outputs, batch = case()
    plain, weighted = loss(form=form), loss(form=form, class_weights="inverse_frequency")
    weighted.count_labels({"accent": [10, 20, 40], "other": [1]})
    weights = label_weights([10, 20, 40], 0.5, 0.2, 5.0)[[2, 0, 0, 1]]
    torch.testing.assert_close(weighted(outputs, batch), plain(outputs, batch) * weights)
    assert weighted(outputs, batch)[2:].tolist() == [0.0, 0.0]  # no label; no frames
    weighted.count_labels({})  # no utterance has the label: validation may have one
    torch.testing.assert_close(weighted(outputs, batch), plain(outputs, batch))


def test_class_weights_without_counts_and_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="call `count_labels` first"):
        loss(class_weights="inverse_frequency")(*case())
    with pytest.raises(ValueError, match="class_power must be at least 0"):
        loss(class_power=-1.0)
    with pytest.raises(ValueError, match="class_limits must be .lowest, highest. with"):
        loss(class_limits=(2.0, 5.0))
