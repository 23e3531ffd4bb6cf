"""CTC where only the device knows how many frames there are."""

from __future__ import annotations

import torch

from asrtool.losses.ctc import ctc, ended
from asrtool.types import Padded


def test_sure_blanks_behind_the_end_change_neither_loss_nor_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 9, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([9, 4, 6, 3, 7])
    # the fourth is too long for its frames, the last is empty
    rows = ([1, 1, 2], [3], [5, 4, 5], [1, 2, 3, 4], [])
    targets = Padded.stack([torch.tensor(row, dtype=torch.int64) for row in rows])

    def value(hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = logits.log_softmax(-1)
        if hidden:
            log_probs = ended(log_probs, lengths, 0)
        loss = ctc(log_probs, torch.full((5,), 9) if hidden else lengths, targets, 0)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        return loss, gradient

    for found, expected in zip(value(True), value(False), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert value(False)[0][3] == 0
