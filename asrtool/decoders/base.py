"""The interface of decoders, and their registry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrtool.registry import Registry
from asrtool.types import EncoderOutput, Padded


class Decoder(nn.Module):
    """A label-synchronous network over encoder frames; in a search it is a `Scorer`.

    Built by `DECODERS.build(config, dim=D, vocab_size=V)`. The last token of the vocabulary is sos
    and eos. See asrtool/searchers/base.py for `Scorer`.
    """

    def forward(self, encoded: EncoderOutput, targets: Padded) -> Padded:
        """targets (B, U) without sos/eos -> logits (B, U + 1, V): row u predicts token u, row U
        eos.

        With targets (B * n, U), the n sequences of an utterance are adjacent rows.
        """
        raise NotImplementedError

    def sequence_scores(self, encoded: EncoderOutput, targets: Padded) -> Tensor:
        """targets (B * n, U) -> (B * n,) float64 log-probabilities of the sequences with eos."""
        logits, lengths = self(encoded, targets)
        # row u predicts token u; eos, the last id of the vocabulary, follows the last token
        following = targets.append(logits.shape[-1] - 1).data
        log_probs = logits.gather(2, following[:, :, None])[
            :, :, 0
        ].float() - logits.float().logsumexp(-1)
        return log_probs.double().masked_fill(~Padded(following, lengths).mask, 0.0).sum(1)

    # The Scorer half: see asrtool.searchers.base.Scorer.
    def start(self, encoded: EncoderOutput, beam: int) -> object:
        raise NotImplementedError

    def score(
        self, prefixes: Tensor, state: object, candidates: Tensor | None
    ) -> tuple[Tensor, object]:
        raise NotImplementedError

    def select(self, state: object, rows: Tensor) -> object:
        raise NotImplementedError


class Reversed:
    """A decoder trained on reversed sequences: it scores from the end to the start."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def logits(self, encoded: EncoderOutput, targets: Padded) -> Padded:
        """As `Decoder.forward`, in the order of `targets`.

        Row u scores token u, given those after it; row U scores the start.
        """
        # Row r of the decoder predicts token U - 1 - r, and its last row the start: all but the
        # last are flipped back.
        logits, lengths = self.decoder(encoded, flip(targets))
        return Padded(
            torch.cat([flip(Padded(logits[:, :-1], targets.lengths)).data, logits[:, -1:]], 1),
            lengths,
        )

    def sequence_scores(self, encoded: EncoderOutput, targets: Padded) -> Tensor:
        """(B * n,) as `Decoder.sequence_scores`."""
        return self.decoder.sequence_scores(encoded, flip(targets))


def flip(sequences: Padded) -> Padded:
    """Every row (B, U, ...) reversed within its length; the padding stays where it is."""
    data, lengths = sequences
    index = torch.arange(data.shape[1], device=data.device).expand(len(data), -1)
    index = torch.where(sequences.mask, lengths[:, None] - 1 - index, index)
    index = index.view(*index.shape, *[1] * (data.dim() - 2)).expand_as(data)
    return Padded(data.gather(1, index), lengths)


DECODERS: Registry[Decoder] = Registry("decoder")
