"""What a loss is, and the registry of losses. Losses own no parameters: heads do."""

from __future__ import annotations

from torch import Tensor

from asrtool.registry import Registry
from asrtool.types import Batch, ModelOutput


class Loss:
    """One number per utterance; the objective weighs, the trainer sums and divides.

    Built by `LOSSES.build(config, eos=id of sos/eos)`. A sequence loss is a sum over tokens (or frames) of each
    utterance, computed in float32; an utterance it cannot rate (CTC: fewer frames than tokens and repeats) gets 0 and
    is named by `skipped`.
    """

    stream: str  # the stream of ModelOutput that it reads; the model builds a head for it

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        """(B,) float32."""
        raise NotImplementedError

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        """(B,) bool: utterances that got 0 because no finite loss exists for them."""
        return outputs.stream(self.stream).lengths.new_zeros(len(batch)).bool()


LOSSES: Registry[Loss] = Registry("loss")
