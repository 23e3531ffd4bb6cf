"""The interface of heads, and their registry.

A head turns the encoder's output into what a loss reads and a search uses. It owns its module, or
it names a tap: an output that the encoder itself computes because later layers depend on it. A head
exists only if a loss reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import nn

from asrtool.registry import Registry
from asrtool.types import Batch, EncoderOutput, HeadOutput, Padded

Search = Mapping[str, object]  # a searcher as in decode_*.yaml: {"type": ..., ...}


class Head(nn.Module):
    """Built by `HEADS.build(config, name=..., model=...)`; `model` is the `AsrModel` that owns it,
    whose `dim` (D), `vocab_size` (V), `eos` and `encoder` are set by then.

    A head `name` without an entry in `model.heads` has the default config of the registry's entry
    of that name.
    """

    # what one output vector describes; "lattice": a `Lattice`, "none": no distribution
    output: Literal["frame", "token", "utterance", "lattice", "none"]
    # how frames become tokens: "ctc" merges repeats and removes blanks, "token" has one frame per
    # token and removes blanks, "transducer" asks the predictor behind each token; None: the outputs
    # are not an alignment
    alignment: Literal["ctc", "token", "transducer"] | None = None
    precedence = 0  # the default search is that of the highest-ranking head that has one
    metrics: tuple[str, ...] = ()  # names of what `measure` returns
    exported = False  # whether `asrtool export` can write its log-probabilities

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, encoded: EncoderOutput, batch: Batch) -> HeadOutput:
        """Training: what the loss reads, logits with one or two lengths."""
        raise NotImplementedError

    def log_probs(self, encoded: EncoderOutput) -> Padded:
        """(B, S, V) float32 log-probabilities, a row per frame. Raises `LookupError` if the head
        has none.
        """
        raise LookupError(f"the head '{self.name}' has no distribution for each frame")

    # -- search -----------------------------------------------------------------

    def scorer(self) -> object | None:
        """A `Scorer` (asrtool/searchers/base.py) for label-synchronous search."""
        return None

    def rescorer(self) -> object | None:
        """A scorer of whole sequences: `scorer`, or a network that does not run left to right."""
        return self.scorer()

    def search(self, heads: Mapping[str, Head]) -> Search | None:
        """The default search of a model with these heads; None: this head offers none."""
        return None

    def streaming_search(self, heads: Mapping[str, Head]) -> Search | None:
        """The default search in streaming; `search`, unless the head overrides it."""
        return self.search(heads)

    # -- validation -------------------------------------------------------------

    def greedy_search(self) -> Search | None:
        """A search cheap enough for the error rates of validation; None: this head has none."""
        return None

    def measure(self, output: HeadOutput, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """metric -> (errors, total) of one batch, for heads without a cheap search."""
        return {}


class FrameHead(Head):
    """A distribution for each frame. Subclasses implement `logits`."""

    output = "frame"
    exported = True

    def logits(self, encoded: EncoderOutput) -> Padded:
        """The encoder's output -> logits (B, S, V)."""
        raise NotImplementedError

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return self.logits(encoded)

    def log_probs(self, encoded: EncoderOutput) -> Padded:
        logits, lengths = self.logits(encoded)
        return Padded(logits.float().log_softmax(-1), lengths)

    def search(self, heads: Mapping[str, Head]) -> Search | None:
        return self.greedy_search()

    def greedy_search(self) -> Search | None:
        return None if self.alignment is None else {"type": "ctc_greedy", "input": self.name}


def tap(encoded: EncoderOutput, name: str, wanted_by: str) -> Padded:
    """The tap `name` of an encoder's output. Raises `LookupError` if there is none."""
    if name not in encoded.taps:
        has = names_of(encoded.taps)
        raise LookupError(f"{wanted_by}: the encoder has no tap '{name}' (it has: {has})")
    return encoded.taps[name]


def ranked(heads: Mapping[str, Head]) -> list[Head]:
    """Heads by precedence, highest first."""
    return sorted(heads.values(), key=lambda head: -head.precedence)


def names_of(heads: Collection[str]) -> str:
    """The names of heads or taps, for messages."""
    return ", ".join(sorted(heads)) or "none"


HEADS: Registry[Head] = Registry("head")
