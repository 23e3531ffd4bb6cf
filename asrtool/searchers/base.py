"""The interfaces of searchers, scorers and constraints, and the registry of searchers.

A search sees a model only through `SearchModel`, so a test can search over a table of numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from asrtool.registry import Registry
from asrtool.types import EncoderOutput, Hypothesis, Padded


class SearcherConfig:
    """Base of the config of every searcher: what other parts read of any of them.

    These are class variables of a plain class, not fields: greedy search has no key `ngram` in
    YAML. The dataclass of a search that takes an n-gram model declares a field of that name.
    """

    # scorer or part of the score -> its weight
    weights: ClassVar[Mapping[str, float]] = MappingProxyType({})
    # an n-gram language model (`fusion.NgramConfig`); None: the search uses none
    ngram: ClassVar[object | None] = None
    # a list of phrases with a bonus (`hotwords.HotwordsConfig`); None: there is none
    hotwords: ClassVar[object | None] = None
    # the file of a CTC head (`drafts.EncoderCtcConfig`); None: the search reads none
    encoder_ctc: ClassVar[object | None] = None
    # a file of the only words that may be completed, or "ngram" for those of the n-gram model
    lexicon: ClassVar[str | None] = None
    # limits on hypotheses (`constraints.ConstraintsConfig`); None: there are none
    constraints: ClassVar[object | None] = None
    # the search whose n-best list this one rescores; None: it is a search of its own
    first_pass: ClassVar[object | None] = None


class Scorer(Protocol):
    """Scores extensions of prefixes by log-probabilities, never above 0.

    Rows are utterance-major: row b * beam + k is beam k of utterance b; N = B * beam.
    """

    partial: bool  # True: scores pre-pruned candidates (N, K) instead of the whole vocabulary

    def start(self, encoded: EncoderOutput, beam: int) -> Any:
        """The state of N empty prefixes."""

    def score(self, prefixes: Tensor, state: Any, candidates: Tensor | None) -> tuple[Tensor, Any]:
        """prefixes (N, U) with sos, candidates (N, K) or None -> log-probabilities, state.

        Log-probabilities are (N, K), or (N, V) without candidates. The state returned is that of
        these prefixes, for `select`; the prefixes of the next call are one token longer.
        """

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state with row i taken from row rows[i], rows (N',).

        Finished utterances are dropped as a whole. The others keep their order, and a beam never
        leaves its utterance: utterance i of the new state is utterance rows[i * beam] // beam of
        the old one.
        """


class SearchHead(Protocol):
    """The part of a head that a search uses."""

    # how frames become tokens: "ctc" merges repeats and removes blanks, "token" has one frame per
    # token, "transducer" is a `Transducer` (transducer/base.py); None: no frame has a distribution
    alignment: str | None


class SearchModel(Protocol):
    """The part of a model that a search uses."""

    blank: int | None  # never part of a hypothesis; None: there is no blank
    eos: int
    frame_shift: float  # seconds per position
    heads: Mapping[str, SearchHead]  # the heads that were trained

    def log_probs(self, encoded: EncoderOutput, head: str = "ctc") -> Padded: ...

    def scorers(self) -> Mapping[str, Scorer]: ...


class Constraint(Protocol):
    """Forbids or limits extensions."""

    def apply(self, scores: Tensor, prefixes: Tensor) -> Tensor:
        """scores (N, V), prefixes (N, U) with sos -> scores, forbidden tokens at -inf.

        May change `scores`.
        """

    def select(self, rows: Tensor) -> Constraint:
        """The constraint for rows (N',), as `Scorer.select`; itself if it is the same for all."""


class Searcher:
    """Built by `SEARCHERS.build(config, model=..., tokens=..., scorers=...)`; the config derives
    from `SearcherConfig`.

    model: a `SearchModel`. tokens: names of the vocabulary, for n-gram models and hotwords.
    scorers: name -> Scorer in addition to those of the model, such as a language model. The last
    two are optional. The result of an utterance never depends on its batch.
    """

    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        """An n-best list per utterance, best first; tokens without sos/eos."""
        raise NotImplementedError


class SearchState(Protocol):
    """The state of a streaming search, for each utterance of a batch."""

    def take(self, rows: Tensor) -> SearchState:
        """The state of rows (N,), each at most once, in that order. The two states may share the
        data of a row, so a row may continue in one of them only.
        """

    def join(self, other: SearchState) -> SearchState:
        """The rows of this state, then those of `other`."""


class StreamingSearcher(Searcher):
    """A search that follows the encoder piece by piece. `search` is `finish(listen(start(), all))`,
    so the result does not depend on the pieces.

    A state holds a batch of utterances; `listen` changes it and returns it.
    """

    def start(self, batch: int) -> SearchState:
        """The state of `batch` utterances before their first frame."""
        raise NotImplementedError

    def listen(self, state: Any, encoded: EncoderOutput) -> tuple[Any, Padded]:
        """The state after the encoder's next frames, and which of these hold speech: (B, S) bool.

        Some utterances may have no new frames.
        """
        raise NotImplementedError

    def partial(self, state: Any) -> list[Hypothesis]:
        """The best hypothesis of each utterance so far."""
        raise NotImplementedError

    def finish(self, state: Any) -> list[list[Hypothesis]]:
        """The n-best lists, as from `search`; the state must not be used again."""
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
        """The state after the next frames: log_probs (B, S, V), positions (B, S).

        Some utterances may have no new frames.
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


SEARCHERS: Registry[Searcher] = Registry("searcher", SearcherConfig)


def require_head(
    model: SearchModel, name: str, searcher: str, alignments: Collection[str] = ("ctc",)
) -> None:
    """Raise `LookupError` if the model lacks the head that a searcher reads, or its alignment is
    none of `alignments`.
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
    """Positions (B, S) of the frames that a head's output describes.

    An output with other frames than the encoder's (a tap from before frames were dropped) is on the
    grid after the stem. Raises `ValueError` unless the encoder has a position for every frame.
    """
    shape = tuple(encoded.positions.shape) if isinstance(encoded.positions, Tensor) else None
    if shape != tuple(encoded.frames.data.shape[:2]):
        raise ValueError(
            f"the encoder returns positions {shape} for frames "
            f"{tuple(encoded.frames.data.shape)}; expected (B, S), the index of each frame on the "
            "grid after the stem"
        )
    lengths, frames = encoded.frames.lengths, output.data.shape[1]
    if frames == encoded.positions.shape[1] and torch.equal(
        output.lengths.to(lengths.device), lengths
    ):
        return encoded.positions
    return torch.arange(frames).expand(len(output.lengths), frames)
