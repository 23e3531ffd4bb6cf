"""CTC against the sum over every path, for all that is small enough to enumerate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from asrtool.losses import LOSSES, CtcConfig
from asrtool.losses.ctc import frames_needed
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


def collapse(path):
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def enumerate_paths(log_probs, target):
    frames, vocabulary = log_probs.shape
    total = -math.inf
    for path in itertools.product(range(vocabulary), repeat=frames):
        if collapse(path) == target:
            score = sum(log_probs[frame, token].item() for frame, token in enumerate(path))
            total = (
                max(total, score) + math.log1p(math.exp(-abs(total - score)))
                if total > -math.inf
                else score
            )
    return -total


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("target", [(), (1,), (1, 1), (1, 2), (2, 1, 2), (3, 3, 1)])
def test_ctc_is_the_sum_over_all_paths(frames, target):
    logits = torch.randn(
        1, frames, 4, generator=torch.Generator().manual_seed(frames), dtype=torch.float64
    )
    stream = Padded(logits, torch.tensor([frames]))
    targets = Padded(
        torch.tensor([target], dtype=torch.int64).reshape(1, -1), torch.tensor([len(target)])
    )
    outputs = ModelOutput(
        encoder=EncoderOutput(frames=stream, positions=stream.mask), heads={"ctc": stream}
    )
    batch = Batch(ids=("a",), inputs=stream, targets=targets)
    loss = LOSSES.build(CtcConfig(weight=1.0), eos=3)
    expected = enumerate_paths(logits[0].log_softmax(-1), target)
    feasible = math.isfinite(expected)
    assert loss.skipped(outputs, batch).item() is (not feasible)
    assert (frames_needed(targets).item() <= frames) is feasible
    # float32 inside
    assert loss(outputs, batch).item() == pytest.approx(expected if feasible else 0.0, abs=1e-5)
