"""A causal language model in an architecture of `transformers`, trained on text by asrtool's own
trainer.

    p(y) = prod_u p(y_u | y_<u),  u = 1 ... U + 1,  y_0 = sos, y_{U+1} = eos

`asrtool export_llm` makes a folder of it that `transformers` reads, with a tokenizer of the
recipe's characters: the small language model that a speech LLM can be built on without downloading
one.

A large language model writes down what its prompt spells, for texts are full of repetitions. A
small one never learns it from sentences alone, and an adapter's rows then tell it nothing. With
`copy`, sentences follow upon themselves:

    [y_1 y_1 0 y_2 0 0 y_3 y_3 y_3] sos [y_1 y_2 y_3]        the first part as the frames of a
        recogniser would spell it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from asrtool.models import llm
from asrtool.models.base import MODELS
from asrtool.models.llm import LlmConfig, Shape
from asrtool.models.llm_scorer import left_aligned, right_aligned
from asrtool.models.prompt import SPEECH
from asrtool.models.text import OUTPUT, TextModel, check_output
from asrtool.registry import bounded
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """How sentences are spelt in front of themselves. Validation spells all of them, each token
    twice and a gap.
    """

    share: float = bounded(0.5, least=0, most=1)  # of the training's sentences
    repeats: int = 3  # of a token, at most
    gaps: int = 3  # behind a token, at most: token 0, which no text holds

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.repeats < 1 or self.gaps < 0:
            raise ValueError(
                f"copy: share ({self.share}) must be above 0 and at most 1, repeats "
                f"({self.repeats}) at least 1 and "
                f"gaps ({self.gaps}) at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class CausalLmConfig:
    """A Llama from scratch over the recipe's vocabulary; it hears nothing."""

    shape: Shape = "llama-mini"
    copy: CopyConfig | None = None


@MODELS.register("causal_lm", CausalLmConfig)
class CausalLm(TextModel):
    """Output `lm`: logits (B, U + 1, V); row u describes token u, the last row eos."""

    def __init__(
        self,
        config: CausalLmConfig,
        *,
        input_dim: int,
        vocab_size: int,
        frame_shift: float,
        heads: frozenset[str],
    ) -> None:
        super().__init__()
        check_output(heads)
        self.frame_shift, self.eos = frame_shift, vocab_size - 1
        self.copy = config.copy
        self.llm, _ = llm.load(LlmConfig(shape=config.shape, prompt=SPEECH), vocab_size)
        self.caller = llm.Caller(self.llm)

    def forward(self, batch: Batch) -> ModelOutput:
        tokens = Padded(pad(batch.targets.data, (1, 0), value=self.eos), batch.targets.lengths + 1)
        table = self.llm.get_input_embeddings()
        rows = [torch.cat([self.spelt(row[1:]), row]) for row in tokens.unpad()]
        embeddings, mask = right_aligned(table(torch.cat(rows)).split([len(row) for row in rows]))
        output = self.caller(self.llm, embeddings, mask, tokens.data.shape[1])
        logits = Padded(left_aligned(output.logits, batch.targets.lengths), tokens.lengths)
        positions = torch.arange(tokens.data.shape[1], device=tokens.data.device).expand(
            tokens.data.shape
        )
        encoded = EncoderOutput(
            frames=Padded(table(tokens.data), tokens.lengths), positions=positions
        )
        return ModelOutput(encoder=encoded, heads={OUTPUT: logits})

    def spelt(self, tokens: Tensor) -> Tensor:
        """What stands in front of the sentence tokens (U,): nothing, or its tokens with repetitions
        and gaps.
        """
        if self.copy is None or (self.training and torch.rand(()) >= self.copy.share):
            return tokens[:0]
        if self.training:
            repeats = torch.randint(1, self.copy.repeats + 1, (len(tokens),))
            gaps = torch.randint(0, self.copy.gaps + 1, (len(tokens),))
        else:
            repeats = torch.full((len(tokens),), min(self.copy.repeats, 2))
            gaps = torch.full((len(tokens),), min(self.copy.gaps, 1))
        counts = torch.stack([repeats, gaps], 1).flatten().to(tokens.device)
        return (
            torch.stack([tokens, torch.zeros_like(tokens)], 1).flatten().repeat_interleave(counts)
        )
