"""What a searcher, a scorer and a constraint are, and the registry of searchers.

A search sees a model only through `SearchModel`, so a test can search over a table of numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from asrtool.registry import Registry
from asrtool.types import EncoderOutput, Hypothesis, Padded


class Scorer(Protocol):
    """Scores the extensions of prefixes by log-probabilities, never above 0.

    Rows are utterance-major: row b * beam + k is beam k of utterance b; N = B * beam.
    """

    partial: bool  # True: scores pre-pruned candidates (N, K) instead of the whole vocabulary

    def start(self, encoded: EncoderOutput, beam: int) -> Any:
        """State of N empty prefixes."""

    def score(self, prefixes: Tensor, state: Any, candidates: Tensor | None) -> tuple[Tensor, Any]:
        """prefixes (N, U) with sos, candidates (N, K) or None -> log-probabilities, state.

        Log-probabilities are (N, K), or (N, V) without candidates. The state is that of these
        prefixes, to `select` from; the next call gets prefixes that are one token longer.
        """

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state with row i taken from row rows[i], rows (N',).

        Utterances that are done are left out as a whole. The others keep their order, and a beam
        never leaves its utterance: utterance i of the new state is utterance rows[i * beam] // beam
        of the old one.
        """


class SearchHead(Protocol):
    """The part of a head that search uses."""

    # how frames become tokens: "ctc" joins repeats and removes blanks, "token" has a frame for each
    # token; None: the head has no distribution for each frame
    alignment: str | None


class SearchModel(Protocol):
    """The part of a model that search uses."""

    blank: int | None  # never part of a hypothesis; None: every token may be
    eos: int
    frame_shift: float  # seconds per position
    heads: Mapping[str, SearchHead]  # those that training knew

    def log_probs(self, encoded: EncoderOutput, head: str = "ctc") -> Padded: ...

    def scorers(self) -> Mapping[str, Scorer]: ...


class Constraint(Protocol):
    """Forbids or limits extensions."""

    def apply(self, scores: Tensor, prefixes: Tensor) -> Tensor:
        """scores (N, V), prefixes (N, U) with sos -> scores, forbidden tokens at -inf.

        May change `scores`.
        """

    def select(self, rows: Tensor) -> Constraint:
        """The constraint for rows (N',), as `Scorer.select`; itself if it treats all rows alike."""


class Searcher:
    """Built by `SEARCHERS.build(config, model=..., tokens=..., scorers=...)`.

    model: a `SearchModel`. tokens: names of the vocabulary, for n-gram models and hotwords.
    scorers: name -> Scorer in addition to those of the model, such as a language model. The last
    two may be left out. The result of an utterance never depends on its batch.
    """

    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        """An n-best list per utterance, best first; tokens without sos/eos."""
        raise NotImplementedError


class SearchState(Protocol):
    """What a streaming search knows of each utterance of a batch."""

    def take(self, rows: Tensor) -> SearchState:
        """The state of rows (N,) alone, each at most once, in that order. Both states may share
        what belongs to a row: a row goes on in one of them.
        """

    def join(self, other: SearchState) -> SearchState:
        """The rows of `other` behind those of this one."""


class StreamingSearcher(Searcher):
    """A search that goes along with the encoder: `search` is `finish(listen(start(), everything))`,
    so any cut gives the same.

    A state belongs to the rows of a batch of utterances; `listen` changes it and gives it back.
    """

    def start(self, batch: int) -> SearchState:
        """The state of `batch` utterances of which nothing was heard yet."""
        raise NotImplementedError

    def listen(self, state: Any, encoded: EncoderOutput) -> tuple[Any, Padded]:
        """The state after the next frames of the encoder, perhaps none of some utterances, and
        which of them hold speech: (B, S) bool.
        """
        raise NotImplementedError

    def partial(self, state: Any) -> list[Hypothesis]:
        """The best hypothesis of each utterance so far."""
        raise NotImplementedError

    def finish(self, state: Any) -> list[list[Hypothesis]]:
        """As `search`; the state may not be used again."""
        raise NotImplementedError

    @torch.inference_mode()
    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        state, _ = self.listen(self.start(len(encoded.frames.lengths)), encoded)
        return self.finish(state)


class FrameSearcher(StreamingSearcher):
    """A frame-synchronous search over the log-probabilities of the head `config.input`."""

    model: SearchModel
    config: Any

    def advance(self, state: Any, log_probs: Padded, positions: Tensor) -> Any:
        """log_probs: the next frames of each utterance, (B, S, V), perhaps none of some; their
        positions (B, S).
        """
        raise NotImplementedError

    def listen(self, state: Any, encoded: EncoderOutput) -> tuple[Any, Padded]:
        log_probs = self.model.log_probs(encoded, self.config.input)
        spoken = log_probs.data.argmax(-1) != self.model.blank
        state = self.advance(state, log_probs, positions_of(encoded, log_probs))
        return state, Padded(spoken, log_probs.lengths)

    @torch.inference_mode()
    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        log_probs = self.model.log_probs(encoded, self.config.input)
        state = self.start(len(log_probs.lengths))
        return self.finish(self.advance(state, log_probs, positions_of(encoded, log_probs)))


SEARCHERS: Registry[Searcher] = Registry("searcher")


def require_head(
    model: SearchModel, name: str, searcher: str, alignments: Collection[str] = ("ctc",)
) -> None:
    """Raise `LookupError` where the model lacks the head of a searcher, or it is unsuitable.

    A head is suitable if its alignment is one of `alignments`.
    """
    if name not in model.heads:
        has = ", ".join(sorted(model.heads)) or "none"
        raise LookupError(f"{searcher}: the model has no head '{name}' (it has: {has})")
    if model.heads[name].alignment not in alignments:
        readable = [key for key, head in model.heads.items() if head.alignment in alignments]
        raise LookupError(
            f"{searcher} cannot read the head '{name}'; heads that it can read: "
            f"{', '.join(sorted(readable)) or 'none'}"
        )


def positions_of(encoded: EncoderOutput, output: Padded) -> Tensor:
    """(B, S) of the frames of a head; one with frames of its own (a tap from before frames were
    dropped) is taken to lie on the grid after the stem.

    Raises `ValueError` for an encoder that gives no position for each of its frames.
    """
    shape = getattr(encoded.positions, "shape", None)
    if shape != encoded.frames.data.shape[:2]:
        raise ValueError(
            f"the encoder gives positions {None if shape is None else tuple(shape)} for frames "
            f"{tuple(encoded.frames.data.shape)}; expected (B, S), the place of each frame on the "
            "grid after the stem"
        )
    lengths, frames = encoded.frames.lengths, output.data.shape[1]
    if frames == encoded.positions.shape[1] and torch.equal(
        output.lengths.to(lengths.device), lengths
    ):
        return encoded.positions
    return torch.arange(frames).expand(len(output.lengths), frames)
