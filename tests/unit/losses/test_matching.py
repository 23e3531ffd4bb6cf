"""The matching loss against a loop over tokens, and its bad inputs; the contrastive term
likewise.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asrtool.losses import LOSSES, matching_loss
from asrtool.losses.matching import matching_attention, monotonic
from asrtool.train.objective import Objective
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded

DIM = 6
TOKENS = ([4, 4, 2], [1], [])


def case(dtype=torch.float64) -> tuple[Padded, Padded]:
    """Text of 3, 1 and 0 tokens, speech of 5, 2 and 4 rows, padded with NaN."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, DIM, generator=generator, dtype=torch.float64)
    text = Padded.stack([table[row].to(dtype) for row in TOKENS], math.nan)
    rows = [
        torch.randn(n, DIM, generator=generator, dtype=torch.float64).to(dtype) for n in (5, 2, 4)
    ]
    speech = Padded.stack(rows, math.nan)
    return text, speech


def by_hand(text: Tensor, speech: Tensor, scaled: bool, mse: float, cosine: float) -> float:
    total = 0.0
    for token in text:
        scores = [float(token @ row) / (math.sqrt(DIM) if scaled else 1.0) for row in speech]
        weights = [math.exp(score - max(scores)) for score in scores]
        found = sum(w * row for w, row in zip(weights, speech, strict=True)) / sum(weights)
        total += mse * float((found - token).square().sum())
        total += cosine * (1 - float(found @ token / found.norm() / token.norm()))
    return total


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("mse", "cosine"), [(1.0, 1.0), (100.0, 0.0), (0.0, 1.0)])
def test_it_is_the_formula(scaled, mse, cosine):
    text, speech = case()
    loss = matching_loss(*text, *speech, scaled=scaled, mse=mse, cosine=cosine)
    expected = [
        by_hand(t, s, scaled, mse, cosine)
        for t, s in zip(text.unpad(), speech.unpad(), strict=True)
    ]
    assert loss.shape == (3,) and loss.dtype == torch.float64
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_gradients_are_those_of_finite_differences_and_reach_the_speech_alone():
    text, speech = case()
    rows = torch.nan_to_num(speech.data, 3.0).requires_grad_()
    words = torch.nan_to_num(text.data, 3.0).requires_grad_()
    loss = lambda rows: matching_loss(words, text.lengths, rows, speech.lengths)  # noqa: E731
    assert torch.autograd.gradcheck(loss, rows)
    loss(rows).sum().backward()
    assert words.grad is None
    assert (
        (rows.grad[~speech.mask] == 0).all()
        and (rows.grad[2] == 0).all()
        and rows.grad[0, :5].abs().min() > 0
    )


def test_no_text_and_no_speech_are_legal():
    speech = torch.randn(2, 3, DIM, requires_grad=True)
    loss = matching_loss(torch.randn(2, 0, DIM), torch.tensor([0, 0]), speech, torch.tensor([3, 0]))
    assert loss.tolist() == [0, 0]
    loss.sum().backward()
    assert torch.isfinite(speech.grad).all()
    text = torch.randn(1, 2, DIM)
    silent = matching_loss(text, torch.tensor([2]), torch.randn(1, 3, DIM), torch.tensor([0]))
    torch.testing.assert_close(silent, text.square().sum((1, 2)) + 2)
    empty = matching_loss(text, torch.tensor([2]), torch.randn(1, 0, DIM), torch.tensor([0]))
    torch.testing.assert_close(empty, silent)
    assert matching_loss(
        text[:0], torch.tensor([]).long(), text[:0], torch.tensor([]).long()
    ).shape == (0,)


def test_speech_that_is_the_text_costs_nothing_once_attention_is_sharp():
    text = 30 * torch.eye(DIM)[None]
    lengths = torch.tensor([DIM])
    assert matching_loss(text, lengths, text, lengths).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speech": torch.zeros(3, 5, DIM + 1)}, "same B and D"),
        ({"text": torch.zeros(3, DIM)}, "same B and D"),
        ({"text_lengths": torch.tensor([3, 1])}, r"text_lengths must have shape \(3,\)"),
        ({"speech_lengths": torch.tensor([6, 1, 1])}, "between 0 and 5"),
        ({"mse": -1.0}, "must not be negative"),
        ({"mse": 0.0, "cosine": 0.0}, "one must be above 0"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    text, speech = case()
    given = {
        "text": text.data,
        "text_lengths": text.lengths,
        "speech": speech.data,
        "speech_lengths": speech.lengths,
    }
    with pytest.raises(ValueError, match=message):
        matching_loss(**{**given, **change})


def outputs() -> tuple[ModelOutput, Batch]:
    text, speech = case(torch.float32)
    encoder = EncoderOutput(frames=speech, positions=torch.zeros(3, 5))
    tokens = Padded.stack([torch.tensor(row, dtype=torch.int64) for row in TOKENS])
    batch = Batch(ids=("a", "b", "c"), inputs=speech, targets=tokens)
    return ModelOutput(encoder=encoder, heads={"speech": speech, "text": text}), batch


def test_the_entropy_of_its_attention_is_logged_beside_it():
    kind = LOSSES.config_type("matching")
    objective = Objective({"matching": LOSSES.build(kind(weight=2.0), eos=4)}, {"matching": 2.0})
    assert objective.terms == ("matching", "matching.entropy", "matching.monotonic")
    report = objective(*outputs())
    text, speech = case()
    weights = matching_attention(*text, *speech)
    entropy = report.terms["matching.entropy"]
    assert entropy[1].item() == pytest.approx(
        -(weights[1, 0, :2] * weights[1, 0, :2].log()).sum().item(), abs=1e-5
    )
    assert entropy[2] == 0 and 0 < entropy[0] < math.log(5)
    torch.testing.assert_close(report.total, 2 * report.terms["matching"].sum())


def test_how_monotonic_an_attention_is():
    rising = torch.eye(4)[None]
    mixed = torch.eye(4)[[0, 2, 1, 3]][None]
    weights = torch.cat([rising, rising.flip(1), mixed, rising])
    found = monotonic(weights, torch.tensor([4, 4, 4, 1]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 2 / 3, 0.5]))


def test_the_contrastive_term_is_the_formula_with_equal_tokens_as_one():
    kind = LOSSES.config_type("contrastive")
    loss = LOSSES.build(kind(weight=1.0, temperature=0.5), eos=4)(*outputs())
    text, speech = (part.unpad()[0].float() for part in case())
    found = (text @ speech.T / math.sqrt(DIM)).softmax(1) @ speech
    cosines = torch.nn.functional.cosine_similarity(found[:, None], text[None], dim=2) / 0.5
    odds = cosines.exp()
    expected = -torch.log(
        torch.stack([odds[0, :2].sum(), odds[1, :2].sum(), odds[2, 2]]) / odds.sum(1)
    ).sum()
    torch.testing.assert_close(
        loss, torch.stack([expected, torch.tensor(0.0), torch.tensor(0.0)]), atol=1e-5, rtol=0
    )
