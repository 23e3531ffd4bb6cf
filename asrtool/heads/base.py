"""What a head is, and the registry of heads.

A head makes of the encoder's output what a loss reads and a search uses. It owns its module, or it
names a tap: an output that the encoder computes itself because later layers depend on it. A head
exists where a loss reads it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import nn

from asrtool.registry import Registry
from asrtool.types import Batch, EncoderOutput, HeadOutput, Padded

Search = Mapping[str, object]  # a searcher as decode_*.yaml writes it: {"type": ..., ...}


class Head(nn.Module):
    """Built by `HEADS.build(config, name=..., model=...)`; `model` is the `AsrModel` it belongs to,
    of which `dim` (D), `vocab_size` (V), `eos` and `encoder` are known by then.

    Without an entry in `model.heads`, a head called `name` has the default config of the registry's
    entry of that name.
    """

    # what one of its vectors describes; "lattice": (B, S, U + 1, V), "none": no distribution
    output: Literal["frame", "token", "utterance", "lattice", "none"]
    # how frames become tokens: "ctc" joins repeats and removes blanks, "token" has a frame for each
    # token, of which blanks are removed; None: these outputs are no alignment
    alignment: Literal["ctc", "token"] | None = None
    precedence = 0  # the model is searched by the head that ranks highest and names a search
    metrics: tuple[str, ...] = ()  # what `measure` counts
    exported = False  # whether `asrtool export` can write its log-probabilities

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, encoded: EncoderOutput, batch: Batch) -> HeadOutput:
        """What its loss needs, in training: logits with one or two lengths."""
        raise NotImplementedError

    def log_probs(self, encoded: EncoderOutput) -> Padded:
        """(B, S, V) float32 log-probabilities, a row per frame. Raises `LookupError` for a head
        that has none.
        """
        raise LookupError(f"the head '{self.name}' has no distribution for each frame")

    # -- search -----------------------------------------------------------------

    def scorer(self) -> object | None:
        """A `Scorer` (asrtool/searchers/base.py) for label-synchronous search."""
        return None

    def rescorer(self) -> object | None:
        """What scores whole sequences: the scorer, or a network that cannot go left to right."""
        return self.scorer()

    def search(self, heads: Mapping[str, Head]) -> Search | None:
        """The search of a model with these heads where nobody names one; None: this head has
        none."""
        return None

    def streaming_search(self, heads: Mapping[str, Head]) -> Search | None:
        """The same while the audio comes in; by default a `search` that can stream."""
        return self.search(heads)

    # -- validation -------------------------------------------------------------

    def greedy_search(self) -> Search | None:
        """A search that is cheap enough for validation, which counts its word and character
        errors."""
        return None

    def measure(self, output: HeadOutput, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """metric -> (errors, of how many) of one batch, for heads without a cheap search."""
        return {}


class FrameHead(Head):
    """A distribution for each frame. Subclasses give `logits`."""

    output = "frame"
    exported = True

    def logits(self, encoded: EncoderOutput) -> Padded:
        """(B, S, V)."""
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
    """A tap of the encoder. Raises `LookupError` where it has none of that name."""
    if name not in encoded.taps:
        has = names_of(encoded.taps)
        raise LookupError(f"{wanted_by}: the encoder has no tap '{name}' (it has: {has})")
    return encoded.taps[name]


def ranked(heads: Mapping[str, Head]) -> list[Head]:
    """The one to search by first."""
    return sorted(heads.values(), key=lambda head: -head.precedence)


def names_of(heads: Collection[str]) -> str:
    """For messages."""
    return ", ".join(sorted(heads)) or "none"


HEADS: Registry[Head] = Registry("head")
