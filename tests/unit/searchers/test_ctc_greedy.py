from __future__ import annotations

import pytest
import torch

from asrtool.searchers import CtcGreedy, CtcGreedyConfig
from asrtool.types import EncoderOutput, Hypothesis, Padded
from tests.toy_search import heads


class Frames:
    """A model whose head is given as the most probable token of each frame, with its
    posterior.
    """

    blank, eos, frame_shift = 0, 4, 0.04
    heads = heads("ctc", "inter_ctc")

    def __init__(self, path: list[tuple[int, float]], head: str = "ctc") -> None:
        self.head = head
        self.probabilities = torch.full((1, len(path), 5), 0.0)
        for frame, (token, probability) in enumerate(path):
            self.probabilities[0, frame] = (1 - probability) / 4
            self.probabilities[0, frame, token] = probability

    def log_probs(self, encoded: EncoderOutput, head: str = "ctc") -> Padded:
        assert head == self.head
        return Padded(self.probabilities.log(), torch.tensor([self.probabilities.shape[1]]))


def search(path, positions=None, **settings) -> Hypothesis:
    model = Frames(path, settings.get("input", "ctc"))
    positions = torch.tensor([positions or list(range(len(path)))])
    frames = Padded(torch.zeros(1, positions.shape[1], 3), torch.tensor([positions.shape[1]]))
    encoded = EncoderOutput(frames=frames, positions=positions)
    return CtcGreedy(CtcGreedyConfig(**settings), model=model).search(encoded)[0][0]


def test_repetitions_join_and_blanks_go():
    path = [(0, 0.9), (1, 0.9), (1, 0.9), (0, 0.9), (1, 0.9), (2, 0.9), (2, 0.9)]
    assert search(path).tokens == (1, 1, 2)


def test_without_collapse_every_frame_is_a_token():
    path = [(0, 0.9), (1, 0.9), (1, 0.9), (0, 0.9), (1, 0.9), (2, 0.9), (2, 0.9)]
    assert search(path, collapse=False).tokens == (1, 1, 1, 2, 2)


def test_a_token_is_placed_at_its_peak_on_the_grid_of_the_encoder():
    hypothesis = search(
        [(1, 0.5), (1, 0.8), (1, 0.6), (0, 0.9), (3, 0.7)], positions=[0, 3, 5, 8, 12]
    )
    assert hypothesis.positions == (3, 12)
    assert hypothesis.confidences == pytest.approx((0.8, 0.7), abs=1e-6)  # float32 posteriors


def test_the_first_of_equal_peaks_counts():
    assert search([(1, 0.8), (1, 0.8)]).positions == (0,)


def test_a_stream_with_its_own_frames_lies_on_the_grid_itself():
    path = [(0, 0.9), (0, 0.9), (0, 0.9), (2, 0.9)]
    assert search(path, positions=[7, 9], input="inter_ctc").positions == (3,)


def test_the_score_is_that_of_the_whole_path_and_named_after_the_head():
    hypothesis = search([(0, 0.5), (1, 0.25)], input="inter_ctc")
    assert hypothesis.score == pytest.approx(torch.tensor(0.125).log().item(), abs=1e-6)
    assert hypothesis.parts == {"inter_ctc": hypothesis.score}


def test_silence_is_an_empty_hypothesis():
    hypothesis = search([(0, 0.9), (0, 0.9)])
    assert (hypothesis.tokens, hypothesis.positions, hypothesis.confidences) == ((), (), ())
