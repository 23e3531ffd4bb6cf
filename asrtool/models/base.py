"""What a model is to training and to search, and the registry of models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from asrtool.registry import Registry
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


class AsrModel(nn.Module):
    """Built by `MODELS.build(config, input_dim=F, vocab_size=V, frame_shift=seconds per input step,
    streams={"ctc", ...})`.

    `streams` are the names that the configured losses read: a head exists where a loss reads it,
    and nowhere else.
    """

    blank: int | None = 0  # None: no token is one
    eos: int  # sos and eos: the last token
    frame_shift: float  # seconds per encoder position
    streams: frozenset[str]

    def forward(self, batch: Batch) -> ModelOutput:
        """Training: every stream that a loss reads."""
        raise NotImplementedError

    def encode(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        raise NotImplementedError

    def log_probs(self, encoded: EncoderOutput, stream: str = "ctc") -> Padded:
        """Frame-synchronous head `stream`: (B, S, V) float32 log-probabilities."""
        raise NotImplementedError

    def scorers(self) -> Mapping[str, object]:
        """Label-synchronous networks by name, e.g. `attention`; each is a Scorer by shape."""
        return {}

    def rescorers(self) -> Mapping[str, object]:
        """Networks that rate whole sequences by name: scorers, and what cannot go from left to
        right.
        """
        return self.scorers()


MODELS: Registry[AsrModel] = Registry("model")
