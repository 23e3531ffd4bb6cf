"""What both searches share: a transducer is read frame by frame, batched and streaming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor

from asrtool.searchers.base import (
    SEARCHERS,
    Scorer,
    SearchModel,
    StreamingSearcher,
    require_head,
)
from asrtool.types import EncoderOutput, Padded

PART = "transducer"  # of a score: the log-probability of the text


class Transducer(Protocol):
    """What a search needs of a head whose alignment is "transducer"."""

    def frames(self, encoded: EncoderOutput) -> Padded:
        """(B, S, J): what `symbols` reads."""

    def start(self, rows: int) -> Any:
        """What is known of N rows before their first token: a state with `take` and `join`."""

    def step(self, said: Any, tokens: Tensor) -> Any:
        """The state behind one more token (N,) of each row."""

    def symbols(self, frames: Tensor, said: Any) -> Tensor:
        """frames (N, J) -> log-probabilities of the next symbol (N, V)."""


class TransducerSearcher(StreamingSearcher):
    """What both searches share: they read the head `config.input` frame by frame."""

    def __init__(
        self,
        config: Any,
        *,
        model: SearchModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        self.name = SEARCHERS.name_of(config)
        require_head(model, config.input, self.name, ("transducer",))
        self.config, self.model = config, model
        self.head: Transducer = model.heads[config.input]

    @torch.inference_mode()
    def listen(self, state: Any, encoded: EncoderOutput) -> tuple[Any, Padded]:
        frames, lengths = self.head.frames(encoded)
        spoken = torch.zeros(frames.shape[:2], dtype=torch.bool)
        known, positions = lengths.tolist(), encoded.positions.tolist()
        for index in range(max(known, default=0)):
            there = [index < length for length in known]
            spoken[:, index] = self._frame(
                state, frames[:, index], there, [row[index] for row in positions]
            )
        return state, Padded(spoken.to(frames.device), lengths)

    def _frame(
        self, state: Any, frames: Tensor, there: Sequence[bool], positions: Sequence[int]
    ) -> Tensor:
        """Change the state by one frame (B, J) of the utterances that have it; (B,): was a token
        said?
        """
        raise NotImplementedError

    def _symbols(self, frames: Tensor, said: Any) -> Tensor:
        """Log-probabilities (N, V) float64; no text holds sos/eos. Raises `ValueError` for NaN."""
        log_probs = self.head.symbols(frames, said).double()
        log_probs[:, self.model.eos] = -inf
        return log_probs

    def _check(self, score: float) -> float:
        """Raise `ValueError` if a score is NaN."""
        if score != score:
            raise ValueError(
                f"{self.name}: the head '{self.config.input}' gives NaN; check the model and its "
                "input"
            )
        return score


def stepped(head: Transducer, said: Any, rows: Sequence[int], tokens: Sequence[int]) -> Any:
    """The state of all N rows, of which these have said one more token each."""
    some, device = torch.tensor(rows), said.output.device
    after = head.step(said.take(some.to(device)), torch.tensor(tokens, device=device))
    order = torch.arange(len(said.output))
    order[some] = len(said.output) + torch.arange(len(rows))
    return said.join(after).take(order.to(device))
