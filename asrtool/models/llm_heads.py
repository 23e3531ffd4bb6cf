"""The heads of a `speech_llm`: the language model's output, and both sides of the matching loss.

The language model belongs to the model, which prepares its input. Of these heads, only the
projections of the matching loss own modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from asrtool.heads import HEADS, Head, Search
from asrtool.models.llm_scorer import LlmScorer, left_aligned
from asrtool.registry import bounded
from asrtool.types import Batch, EncoderOutput, Padded


class LlmPart(Head):
    """A head over the model's language model."""

    output = "none"

    def __init__(self, config: object, *, name: str, model: object) -> None:
        super().__init__(name)
        if not hasattr(model, "read"):
            raise ValueError(f"the head '{name}' needs model.type: speech_llm")
        # in a tuple, so that nn.Module does not register the model as a submodule of its own head
        self._model = (model,)

    @property
    def model(self) -> object:
        return self._model[0]


@dataclass(frozen=True, kw_only=True)
class LlmHeadConfig:
    """The next token, predicted by the language model from prompt and speech (arXiv 2406.17272)."""


@HEADS.register("llm", LlmHeadConfig)
class LlmHead(LlmPart):
    """Logits (B, U + 1, V): row u predicts token u, row U the end."""

    output = "token"
    precedence = 50
    metrics = ("token_error",)

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        model, targets = self.model, batch.targets
        model.check_batch(encoded.frames.lengths, batch)
        embeddings, mask = model.read(encoded.frames, targets)
        output = model.caller(model.llm, embeddings, mask, targets.data.shape[1] + 1)
        return Padded(left_aligned(output.logits, targets.lengths), targets.lengths + 1)

    def scorer(self) -> LlmScorer:
        return LlmScorer(self.model)

    def search(self, heads: Mapping[str, Head]) -> Search:
        return {"type": "llm_beam", "weights": {self.name: 1.0}}

    def measure(self, output: Padded, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """Tokens, ends included, that are not the most likely ones given those before them."""
        targets = batch.targets.append(self.model.eos)
        wrong = (output.data.argmax(-1) != targets.data) & output.mask
        return {"token_error": (int(wrong.sum()), int(output.lengths.sum()))}


@dataclass(frozen=True, kw_only=True)
class SpeechHeadConfig:
    """The adapter's rows, for the matching loss."""


@HEADS.register("speech", SpeechHeadConfig)
class SpeechHead(LlmPart):
    """The adapter's rows (B, S, D)."""

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return encoded.frames


@dataclass(frozen=True, kw_only=True)
class TextHeadConfig:
    """The transcript's embeddings, for the matching loss."""


@HEADS.register("text", TextHeadConfig)
class TextHead(LlmPart):
    """The transcript's embeddings (B, U, D), without a gradient."""

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return embedded(self.model, batch.targets)


class Projection(LlmPart):
    """A linear map without bias, in float32 even if the language model is in bf16."""

    def __init__(self, config: object, *, name: str, model: object) -> None:
        super().__init__(config, name=name, model=model)
        self.linear = nn.Linear(model.dim, config.dim, bias=False)

    def project(self, part: Padded) -> Padded:
        """(B, N, D) -> (B, N, K)."""
        return Padded(self.linear(part.data.to(self.linear.weight.dtype)), part.lengths)


@dataclass(frozen=True, kw_only=True)
class TextQueryHeadConfig:
    """Learned projection of the transcript's embeddings, for the matching loss."""

    dim: int = bounded(256, least=1)  # K, that of speech_key


@HEADS.register("text_query", TextQueryHeadConfig)
class TextQueryHead(Projection):
    """Projected embeddings (B, U, K); the projection gets a gradient, the embeddings do not."""

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return self.project(embedded(self.model, batch.targets))


@dataclass(frozen=True, kw_only=True)
class SpeechKeyHeadConfig:
    """Learned projection of the adapter's rows, for the matching loss."""

    dim: int = bounded(256, least=1)  # K, that of text_query


@HEADS.register("speech_key", SpeechKeyHeadConfig)
class SpeechKeyHead(Projection):
    """Projected rows (B, S, K)."""

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return self.project(encoded.frames)


def embedded(model: object, targets: Padded) -> Padded:
    """Tokens (B, U) -> their input embeddings (B, U, D), without a gradient."""
    return Padded(model.llm.get_input_embeddings()(targets.data).detach(), targets.lengths)
