"""The heads of a `speech_llm`: what its language model writes, and the two sides of the matching
loss.

The language model is the model's own, which prompts and feeds it; only the projections of the
matching loss are modules of their heads.
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
    """A head that reads the model's language model."""

    output = "none"

    def __init__(self, config: object, *, name: str, model: object) -> None:
        super().__init__(name)
        if not hasattr(model, "read"):
            raise ValueError(f"the head '{name}' needs model.type: speech_llm")
        self._model = (model,)  # in a tuple: a reference, no module of this one

    @property
    def model(self) -> object:
        return self._model[0]


@dataclass(frozen=True, kw_only=True)
class LlmHeadConfig:
    """The next token by the language model behind prompt and speech (arXiv 2406.17272)."""


@HEADS.register("llm", LlmHeadConfig)
class LlmHead(LlmPart):
    """Logits (B, U + 1, V): row u describes token u, row U the end."""

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
        """Tokens that are not the most likely ones behind those before them, ends included."""
        targets = batch.targets.append(self.model.eos)
        wrong = (output.data.argmax(-1) != targets.data) & output.mask
        return {"token_error": (int(wrong.sum()), int(output.lengths.sum()))}


@dataclass(frozen=True, kw_only=True)
class SpeechHeadConfig:
    """The adapter's rows, for the matching loss."""


@HEADS.register("speech", SpeechHeadConfig)
class SpeechHead(LlmPart):
    """(B, S, D)."""

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return encoded.frames


@dataclass(frozen=True, kw_only=True)
class TextHeadConfig:
    """The transcript's embeddings, for the matching loss."""


@HEADS.register("text", TextHeadConfig)
class TextHead(LlmPart):
    """(B, U, D) without gradient."""

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return embedded(self.model, batch.targets)


class Projection(LlmPart):
    """A linear map without bias, in its own precision: language models may be bf16."""

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
    """(B, U, K); the embeddings get no gradient, the projection does."""

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return self.project(embedded(self.model, batch.targets))


@dataclass(frozen=True, kw_only=True)
class SpeechKeyHeadConfig:
    """Learned projection of the adapter's rows, for the matching loss."""

    dim: int = bounded(256, least=1)  # K, that of text_query


@HEADS.register("speech_key", SpeechKeyHeadConfig)
class SpeechKeyHead(Projection):
    """(B, S, K)."""

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        return self.project(encoded.frames)


def embedded(model: object, targets: Padded) -> Padded:
    """Tokens (B, U) -> what the language model reads of them (B, U, D), without a gradient."""
    return Padded(model.llm.get_input_embeddings()(targets.data).detach(), targets.lengths)
