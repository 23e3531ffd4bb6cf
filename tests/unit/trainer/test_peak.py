"""The counter of memory against sizes that are known."""

from __future__ import annotations

import torch
from torch import nn

from asrtool.trainer.capacity.peak import Counter, Peak

ROWS, WIDTH = 1000, 64
SQUARE, FRAMES = 4 * WIDTH * WIDTH, 4 * ROWS * WIDTH  # bytes of a matrix of weights, of activations


def chain(count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count)))


def test_activations_are_held_until_the_backward_pass_and_gradients_after_it():
    model, inputs = chain(4), torch.randn(ROWS, WIDTH)
    with Counter([inputs, *model.parameters()]) as counter:
        before = counter.now
        output = model(inputs)
        assert before == 4 * SQUARE + FRAMES
        assert counter.now - before == 4 * FRAMES
        output.sum().backward()
        del output
        # a few bytes of scalars aside
        assert counter.now - before - 4 * SQUARE < 100
    assert counter.peak - before >= 4 * FRAMES + SQUARE


def test_views_and_changes_in_place_take_nothing():
    x = torch.randn(ROWS, WIDTH)
    with Counter([x]) as counter:
        x[10:].transpose(0, 1).mul_(2).add_(1)
    assert counter.peak == counter.now == x.nbytes


def test_the_peak_of_a_cpu_is_that_of_the_counter():
    with Peak(torch.device("cpu")) as peak:
        for _ in range(3):
            torch.zeros(ROWS, WIDTH) + 1
    assert peak.bytes == 2 * FRAMES
