"""What a decoder is, and the registry of decoders."""

from __future__ import annotations

from torch import Tensor, nn

from asrtool.registry import Registry
from asrtool.types import EncoderOutput, Padded


class Decoder(nn.Module):
    """A label-synchronous network over encoder frames; in a search it is a `Scorer` (asrtool/searchers/base.py).

    Built by `DECODERS.build(config, dim=D, vocab_size=V)`; the last token of the vocabulary is sos and eos.
    """

    def forward(self, encoded: EncoderOutput, targets: Padded) -> Padded:
        """targets (B, U) without sos/eos -> logits (B, U + 1, V): row u rates token u, row U the end."""
        raise NotImplementedError

    # The Scorer half: see asrtool.searchers.base.Scorer.
    def start(self, encoded: EncoderOutput, beam: int) -> object:
        raise NotImplementedError

    def score(self, prefixes: Tensor, state: object, candidates: Tensor | None) -> tuple[Tensor, object]:
        raise NotImplementedError

    def select(self, state: object, rows: Tensor) -> object:
        raise NotImplementedError


DECODERS: Registry[Decoder] = Registry("decoder")
