"""What a loss is, and the registry of losses. Losses own no parameters: heads do."""

from __future__ import annotations

from collections.abc import Mapping

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
    monitors: tuple[str, ...] = ()  # what `monitor` gives: logged beside the loss as <loss>.<name>, never trained on

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        """(B,) float32."""
        raise NotImplementedError

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        """(B,) bool: utterances that got 0 because no finite loss exists for them."""
        return outputs.stream(self.stream).lengths.new_zeros(len(batch)).bool()

    def monitor(self, outputs: ModelOutput, batch: Batch) -> Mapping[str, Tensor]:
        """(B,) without gradient for each name of `monitors`."""
        return {}


LOSSES: Registry[Loss] = Registry("loss")
