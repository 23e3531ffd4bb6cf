"""CTC best path: the most probable token of each frame, with repeats merged and blanks removed.

Graves et al., "Connectionist temporal classification", ICML 2006, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp

import torch
from torch import Tensor

from asrtool.searchers.base import (
    SEARCHERS,
    FrameSearcher,
    Scorer,
    SearcherConfig,
    SearchModel,
    require_head,
)
from asrtool.types import Hypothesis, Padded


@dataclass(frozen=True, kw_only=True)
class CtcGreedyConfig(SearcherConfig):
    """Best path of a frame-synchronous head."""

    input: str = "ctc"  # head to read
    # true: merge repeated tokens; false: one token per non-blank frame; null: as the head defines
    collapse: bool | None = None


@dataclass
class Path:
    """The best path of one utterance so far: tokens, and log-probability and position of each one's
    peak.
    """

    tokens: list[int] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    score: float = 0.0
    last: int | None = None  # token of the last frame


@dataclass
class CtcGreedyState:
    """The best path of each utterance of a batch."""

    paths: list[Path]

    def take(self, rows: Tensor) -> CtcGreedyState:
        return CtcGreedyState([self.paths[row] for row in rows.tolist()])

    def join(self, other: CtcGreedyState) -> CtcGreedyState:
        return CtcGreedyState([*self.paths, *other.paths])


@SEARCHERS.register("ctc_greedy", CtcGreedyConfig)
class CtcGreedy(FrameSearcher):
    """One hypothesis per utterance; its score is the log-probability of the best path.

    A token's position is that of its most probable frame, and its confidence the posterior there.
    """

    def __init__(
        self,
        config: CtcGreedyConfig,
        *,
        model: SearchModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        require_head(model, config.input, "ctc_greedy", ("ctc", "token"))
        joins = model.heads[config.input].alignment == "ctc"
        if config.collapse and not joins:
            raise ValueError(
                f"ctc_greedy: the head '{config.input}' has a frame for every token, repeated ones "
                "too: set collapse: false, or leave it out"
            )
        self.config = config
        self.model = model
        self.collapse = joins if config.collapse is None else config.collapse

    def start(self, batch: int) -> CtcGreedyState:
        return CtcGreedyState([Path() for _ in range(batch)])

    @torch.inference_mode()
    def advance(
        self, state: CtcGreedyState, log_probs: Padded, positions: Tensor
    ) -> CtcGreedyState:
        best, tokens = log_probs.data.max(-1)
        rows = zip(
            state.paths,
            best.tolist(),
            tokens.tolist(),
            positions.tolist(),
            log_probs.lengths.tolist(),
            strict=True,
        )
        for path, values, names, frames, length in rows:
            self._read(path, values[:length], names[:length], frames[:length])
        return state

    def _read(
        self, path: Path, values: list[float], tokens: list[int], positions: list[int]
    ) -> None:
        for value, token, position in zip(values, tokens, positions, strict=True):
            path.score += value
            if token != self.model.blank:
                if token != path.last or not self.collapse:
                    # a new token; a repeat after a blank is one too, as `last` is then the blank
                    path.tokens.append(token)
                    path.peaks.append(value)
                    path.positions.append(position)
                elif value > path.peaks[-1]:
                    path.peaks[-1], path.positions[-1] = value, position
            path.last = token

    def partial(self, state: CtcGreedyState) -> list[Hypothesis]:
        return [self._hypothesis(path) for path in state.paths]

    def finish(self, state: CtcGreedyState) -> list[list[Hypothesis]]:
        return [[self._hypothesis(path)] for path in state.paths]

    def _hypothesis(self, path: Path) -> Hypothesis:
        if path.score != path.score:  # NaN
            raise ValueError(
                f"ctc_greedy: the head '{self.config.input}' gives NaN; check the model and its "
                "input"
            )
        return Hypothesis(
            tokens=tuple(path.tokens),
            score=path.score,
            parts={self.config.input: path.score},
            positions=tuple(path.positions),
            confidences=tuple(map(exp, path.peaks)),
        )
