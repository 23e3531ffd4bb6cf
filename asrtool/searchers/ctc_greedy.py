"""CTC best path: the most probable token of every frame, repetitions joined, blanks removed.

Graves et al., "Connectionist temporal classification", ICML 2006, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asrtool.searchers.base import SEARCHERS, Searcher, SearchModel, require_stream
from asrtool.types import EncoderOutput, Hypothesis


@dataclass(frozen=True, kw_only=True)
class CtcGreedyConfig:
    """Best path of a frame-synchronous head."""

    input: str = "ctc"  # stream to read
    collapse: bool = True  # join repeated tokens; false: one token per frame that is not blank, as AXE trains


@SEARCHERS.register("ctc_greedy", CtcGreedyConfig)
class CtcGreedy(Searcher):
    """One hypothesis per utterance; its score is the log-probability of the best path.

    A token's position is that of its most probable frame and its confidence the posterior there. A stream that has its
    own frames (a tap from before frames were dropped) is taken to lie on the grid after the stem.
    """

    def __init__(self, config: CtcGreedyConfig, *, model: SearchModel) -> None:
        require_stream(model, config.input, "ctc_greedy")
        self.config = config
        self.model = model

    @torch.inference_mode()
    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        log_probs, lengths = self.model.log_probs(encoded, self.config.input)
        best, path = log_probs.max(-1)
        positions = self._positions(encoded, lengths, best.shape[1]).tolist()
        best, path, lengths = best.double().cpu(), path.tolist(), lengths.tolist()
        return [
            [self._hypothesis(path[row][:length], best[row, :length], positions[row])]
            for row, length in enumerate(lengths)
        ]

    def _positions(self, encoded: EncoderOutput, lengths: Tensor, frames: int) -> Tensor:
        own = encoded.frames.lengths
        if frames == encoded.positions.shape[1] and torch.equal(lengths.to(own.device), own):
            return encoded.positions
        return torch.arange(frames).expand(len(lengths), frames)

    def _hypothesis(self, path: list[int], best: Tensor, positions: list[int]) -> Hypothesis:
        """path: the token of each frame, best (S,): its log-probability."""
        score = best.sum().item()
        if score != score:
            raise ValueError(f"ctc_greedy: the stream '{self.config.input}' holds NaN; check the model and its input")
        values = best.tolist()
        peaks: list[int] = []
        previous = self.model.blank
        for frame, token in enumerate(path):
            if token != self.model.blank:
                if token != previous or not self.config.collapse:
                    peaks.append(frame)
                elif values[frame] > values[peaks[-1]]:
                    peaks[-1] = frame
            previous = token
        return Hypothesis(
            tokens=tuple(path[frame] for frame in peaks),
            score=score,
            parts={self.config.input: score},
            positions=tuple(positions[frame] for frame in peaks),
            confidences=tuple(best[peaks].exp().tolist()),
        )
