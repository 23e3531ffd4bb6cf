"""Laws of every registered loss; a new entry is tested without writing a test."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from asrtool.losses import LOSSES, Loss
from asrtool.types import Batch, EncoderOutput, Lattice, ModelOutput, Padded

VOCABULARY = 7
TARGETS = [[2, 3, 3, 4], [], [5], [1, 2]]
FRAMES = [12, 5, 3, 6]
ACCENTS = [3, 0, 1, 2]


def case(
    loss: Loss,
    rows=range(4),
    padding: int = 0,
    frames=FRAMES,
    dtype=torch.float32,
    requires_grad=False,
):
    """Random outputs of the heads that a loss reads, for some utterances of the case, with extra
    padding of garbage. An utterance has as many rows as the loss compares views.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = [
        [
            loss.example(frames[index], len(TARGETS[index]), VOCABULARY, generator)
            for _ in range(loss.views)
        ]
        for index in range(4)
    ]
    heard = [torch.randn(frames[index], VOCABULARY, generator=generator) for index in range(4)]
    names = list(drawn[0][0])
    views = [view for index in rows for view in drawn[index]]
    rows = [index for index in rows for _ in range(loss.views)]

    def stream(name: str) -> Padded | Lattice:
        if views[0][name].dim() == 3:
            return lattice([view[name].to(dtype) for view in views], padding, requires_grad)
        padded = Padded.stack([view[name].to(dtype) for view in views])
        data = nn.functional.pad(padded.data, (0, 0, 0, padding), value=9.0)
        data = torch.where(Padded(data, padded.lengths).mask[..., None], data, 9.0)
        return Padded(data.requires_grad_(requires_grad), padded.lengths)

    targets = Padded.stack([torch.tensor(TARGETS[index], dtype=torch.int64) for index in rows])
    targets = Padded(nn.functional.pad(targets.data, (0, padding)), targets.lengths)
    streams = {name: stream(name) for name in names}
    inputs = Padded.stack([heard[index].to(dtype) for index in rows])
    encoder = EncoderOutput(frames=inputs, positions=torch.zeros(inputs.data.shape[:2]))
    labels = {"accent": torch.tensor([ACCENTS[index] for index in rows])}
    batch = Batch(
        ids=tuple(map(str, rows)), inputs=inputs, targets=targets, labels=labels, views=loss.views
    )
    return ModelOutput(encoder=encoder, heads=streams), batch


def lattice(rows: list[Tensor], padding: int, requires_grad: bool) -> Lattice:
    """Rows (S_i, U_i + 1, 2), with garbage behind their ends."""
    lengths, columns = (torch.tensor([row.shape[axis] for row in rows]) for axis in (0, 1))
    size = (len(rows), int(lengths.max()) + padding, int(columns.max()) + padding, 2)
    data = torch.full(size, 9.0, dtype=rows[0].dtype)
    for filled, row in zip(data, rows, strict=True):
        filled[: len(row), : row.shape[1]] = row
    return Lattice(data.requires_grad_(requires_grad), lengths, columns - 1)


def build(name: str):
    return LOSSES.build(LOSSES.config_type(name)(weight=1.0), eos=VOCABULARY - 1)


every_loss = pytest.mark.parametrize("name", LOSSES.names())


def per_utterance(loss: Loss, values: Tensor) -> Tensor:
    """(B,) -> (utterances, views)."""
    return values.unflatten(0, (-1, loss.views))


@every_loss
def test_one_finite_number_at_least_0_for_each_utterance(name):
    loss = build(name)
    values = loss(*case(loss))
    assert values.shape == (4 * loss.views,) and values.dtype == torch.float32
    assert torch.isfinite(values).all() and (values >= 0).all()


@every_loss
def test_padding_changes_nothing(name):
    loss = build(name)
    torch.testing.assert_close(
        loss(*case(loss, padding=5)), loss(*case(loss)), atol=1e-5, rtol=1e-5
    )


@every_loss
def test_permuting_the_batch_permutes_the_loss(name):
    loss, order = build(name), [2, 0, 3, 1]
    permuted, values = (per_utterance(loss, loss(*case(loss, rows))) for rows in (order, range(4)))
    torch.testing.assert_close(permuted, values[order], atol=1e-5, rtol=1e-5)


@every_loss
def test_an_utterance_alone_has_the_loss_it_has_in_a_batch(name):
    loss = build(name)
    together = per_utterance(loss, loss(*case(loss)))
    for row in range(4):
        alone = loss(*case(loss, [row]))
        torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=1e-5)


@every_loss
def test_an_utterance_too_short_for_its_text_gets_a_finite_loss_and_gradient(name):
    loss = build(name)
    outputs, batch = case(loss, frames=[3, 5, 1, 6], requires_grad=True)
    loss(outputs, batch).sum().backward()
    gradients = [
        stream.data.grad for stream in outputs.heads.values() if stream.data.grad is not None
    ]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    assert loss.skipped(outputs, batch).shape == (len(batch),)


@every_loss
def test_the_gradient_is_that_of_finite_differences(name):
    loss = build(name)
    if loss.views > 1:  # views get no gradient from each other: tests/unit/losses
        return
    outputs, batch = case(loss, dtype=torch.float64)
    stream = outputs.head(loss.head)

    def value(data: Tensor) -> Tensor:
        changed = ModelOutput(
            encoder=outputs.encoder,
            heads={**outputs.heads, loss.head: stream._replace(data=data)},
        )
        return loss(changed, batch).sum()

    data = stream.data.clone().requires_grad_()
    (analytic,) = torch.autograd.grad(value(data), data)
    row, frame, token = 0, min(2, int(stream.lengths[0]) - 1), 3
    step = 1e-2  # losses are float32 inside, so the step is large
    up, down = data.detach().clone(), data.detach().clone()
    up[row, frame, token] += step
    down[row, frame, token] -= step
    assert analytic[row, frame, token].sum().item() == pytest.approx(
        ((value(up) - value(down)) / (2 * step)).item(), abs=2e-3
    )


@every_loss
def test_padding_gets_no_gradient(name):
    loss = build(name)
    outputs, batch = case(loss, padding=3, requires_grad=True)
    loss(outputs, batch).sum().backward()
    stream = outputs.head(loss.head)
    assert (stream.data.grad[~stream.mask] == 0).all()


@every_loss
def test_a_loss_owns_no_parameters(name):
    loss = build(name)
    assert not isinstance(loss, nn.Module) or not list(loss.parameters())
