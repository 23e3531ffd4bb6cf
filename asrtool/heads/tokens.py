"""Heads with a distribution for each token: attention decoders from left to right, and from right
to left for rescoring (arXiv 2106.05642).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from asrtool.decoders import DECODERS
from asrtool.decoders.base import Reversed
from asrtool.heads.base import HEADS, Head, Search
from asrtool.types import Batch, EncoderOutput, Padded


@dataclass(frozen=True, kw_only=True)
class AttentionHeadConfig:
    """An attention decoder (hybrid CTC/attention, arXiv 1609.06773)."""

    decoder: Annotated[object, DECODERS]


@HEADS.register("attention", AttentionHeadConfig)
class AttentionHead(Head):
    """Logits (B, U + 1, V): row u predicts token u, row U the end."""

    output = "token"
    precedence = 40

    def __init__(self, config: AttentionHeadConfig, *, name: str, model: object) -> None:
        super().__init__(name)
        self.decoder = DECODERS.build(config.decoder, dim=model.dim, vocab_size=model.vocab_size)

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return self.decoder(encoded, batch.targets)

    def scorer(self) -> object:
        return self.decoder

    def search(self, heads: Mapping[str, Head]) -> Search:
        ctc = self._ctc(heads)
        if ctc is None:
            return {"type": "attention_beam", "weights": {self.name: 1.0}}
        return {"type": "joint_beam", "weights": {self.name: 0.7, ctc: 0.3}}

    def streaming_search(self, heads: Mapping[str, Head]) -> Search | None:
        """CTC prefix beam search along with the audio; the decoders rescore at the end."""
        if self._ctc(heads) != "ctc":
            return None
        reverse = [name for name, head in heads.items() if isinstance(head, ReverseHead)]
        shares = {reverse[0]: 0.15, self.name: 0.35} if reverse else {self.name: 0.5}
        return {"type": "attention_rescoring", "weights": {"ctc": 0.5, **shares}}

    @staticmethod
    def _ctc(heads: Mapping[str, Head]) -> str | None:
        """The CTC head to search with; it reads the same frames as this one."""
        return "ctc" if "ctc" in heads else None


@dataclass(frozen=True, kw_only=True)
class ReverseHeadConfig(AttentionHeadConfig):
    """An attention decoder from right to left, for `attention_rescoring`."""


@HEADS.register("reverse", ReverseHeadConfig)
class ReverseHead(AttentionHead):
    """Logits (B, U + 1, V): row u predicts token u from those after it, row U the start. In this
    order, the loss is `cross_entropy` as for the other decoder.
    """

    precedence = 0

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return Reversed(self.decoder).logits(encoded, batch.targets)

    def scorer(self) -> None:
        return None

    def rescorer(self) -> object:
        return Reversed(self.decoder)

    def search(self, heads: Mapping[str, Head]) -> None:
        return None

    def streaming_search(self, heads: Mapping[str, Head]) -> None:
        return None
