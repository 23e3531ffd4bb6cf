"""Greedy search of a transducer: the most probable symbol at each point of the lattice.

A token leads to the same frame with one more token, the blank to the next frame. After
`max_symbols` tokens in one frame only the blank may follow, so an utterance of S frames never has
more than `max_symbols` * S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import torch
from torch import Tensor

from asrtool.registry import bounded
from asrtool.searchers.base import SEARCHERS, SearcherConfig
from asrtool.searchers.transducer.base import PART, TransducerSearcher, stepped
from asrtool.types import Hypothesis


@dataclass(frozen=True, kw_only=True)
class TransducerGreedyConfig(SearcherConfig):
    """The most probable symbol at every point of a transducer's lattice."""

    input: str = "transducer"  # head to read
    max_symbols: int = bounded(10, least=1)  # tokens of one frame


@dataclass
class Line:
    """What was said so far: tokens, and log-probability and position of each."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    score: float = 0.0


@dataclass
class GreedyState:
    """Of each utterance of a batch."""

    lines: list[Line]
    said: Any

    def take(self, rows: Tensor) -> GreedyState:
        return GreedyState([self.lines[row] for row in rows.tolist()], self.said.take(rows))

    def join(self, other: GreedyState) -> GreedyState:
        return GreedyState([*self.lines, *other.lines], self.said.join(other.said))


@SEARCHERS.register("transducer_greedy", TransducerGreedyConfig)
class TransducerGreedy(TransducerSearcher):
    """One hypothesis per utterance; its score is the log-probability of its path."""

    @torch.inference_mode()
    def start(self, batch: int) -> GreedyState:
        return GreedyState([Line() for _ in range(batch)], self.head.start(batch))

    def _frame(
        self, state: GreedyState, frames: Tensor, there: Sequence[bool], positions: Sequence[int]
    ) -> Tensor:
        speaking = [row for row, has in enumerate(there) if has]
        spoken = torch.zeros(len(there), dtype=torch.bool)
        for count in range(self.config.max_symbols + 1):
            index = torch.tensor(speaking, device=frames.device)
            log_probs = self._symbols(frames[index], state.said.take(index))
            if count == self.config.max_symbols:  # the blank is all that may follow
                log_probs = log_probs[:, self.model.blank, None]
            best, symbols = log_probs.max(1)
            emitted = []
            for row, value, symbol in zip(speaking, best.tolist(), symbols.tolist(), strict=True):
                line = state.lines[row]
                line.score += value
                if count < self.config.max_symbols and symbol != self.model.blank:
                    line.tokens.append(symbol)
                    line.log_probs.append(value)
                    line.positions.append(positions[row])
                    emitted.append(row)
            if not emitted:
                return spoken
            spoken[emitted] = True
            tokens = [state.lines[row].tokens[-1] for row in emitted]
            state.said = stepped(self.head, state.said, emitted, tokens)
            speaking = emitted
        return spoken

    def partial(self, state: GreedyState) -> list[Hypothesis]:
        return [
            Hypothesis(
                tokens=tuple(line.tokens),
                score=self._check(line.score),
                parts={PART: line.score},
                positions=tuple(line.positions),
                confidences=tuple(map(exp, line.log_probs)),
            )
            for line in state.lines
        ]

    def finish(self, state: GreedyState) -> list[list[Hypothesis]]:
        return [[hypothesis] for hypothesis in self.partial(state)]
