"""A causal language model in an architecture of `transformers`, trained on text by asrtool's own
trainer.

    p(y) = prod_u p(y_u | y_<u),  u = 1 ... U + 1,  y_0 = sos, y_{U+1} = eos

`asrtool export_llm` writes it to a folder that `transformers` reads, with a tokenizer of the
recipe's characters: a small language model for a speech LLM, without a download.

A large language model can copy what its prompt spells, because its training text is full of
repetitions. A small one never learns this from single sentences, and then the rows of an adapter
mean nothing to it. With `copy`, each sentence follows a spelling of itself, in the manner of a
recogniser's frames:

    [y_1 y_1 0 y_2 0 0 y_3 y_3 y_3] sos [y_1 y_2 y_3]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from asrtool.models import llm
from asrtool.models.base import MODELS
from asrtool.models.llm import LlmConfig, Shape
from asrtool.models.llm_scorer import left_aligned
from asrtool.models.prompt import SPEECH
from asrtool.models.text import OUTPUT, TextModel, check_output
from asrtool.registry import bounded
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded, on_host


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """How sentences are preceded by a spelling of themselves. In validation all of them are, with
    every token repeated twice and followed by one gap.
    """

    share: float = bounded(0.5, least=0, most=1)  # share of training sentences with a spelling
    repeats: int = 3  # of a token, at most
    gaps: int = 3  # after a token, at most; a gap is token 0, which no text contains

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.repeats < 1 or self.gaps < 0:
            raise ValueError(
                f"copy: share ({self.share}) must be above 0 and at most 1, repeats "
                f"({self.repeats}) at least 1 and "
                f"gaps ({self.gaps}) at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class CausalLmConfig:
    """A Llama from scratch over the recipe's vocabulary; it reads no audio."""

    shape: Shape = "llama-mini"
    copy: CopyConfig | None = None


@MODELS.register("causal_lm", CausalLmConfig)
class CausalLm(TextModel):
    """Output `lm`: logits (B, U + 1, V); row u predicts token u, the last row eos."""

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
        read, mask = (part.to(table.weight.device, non_blocking=True) for part in self.read(batch))
        embeddings = table(read).masked_fill(~mask[:, :, None], 0)
        output = self.caller(self.llm, embeddings, mask, tokens.data.shape[1])
        logits = Padded(left_aligned(output.logits, batch.targets.lengths), tokens.lengths)
        positions = torch.arange(tokens.data.shape[1], device=tokens.data.device).expand(
            tokens.data.shape
        )
        encoded = EncoderOutput(
            frames=Padded(table(tokens.data), tokens.lengths), positions=positions
        )
        return ModelOutput(encoder=encoded, heads={OUTPUT: logits})

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the language model reads: tokens (B, K) on the host, padded on the left, and mask.

        Rows differ in length by their spellings: so aligned, the sentences end together, and the
        last U + 1 positions hold what is scored.
        """
        targets = batch.targets
        pairs = [(part, on_host(part)) for part in targets]
        known = [part.cpu() if host is None else host for part, host in pairs]
        start = torch.tensor([self.eos])
        rows = [torch.cat([self.spelt(row), start, row]) for row in Padded(*known).unpad()]
        longest = max(map(len, rows))
        tokens = torch.stack([pad(row, (longest - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return tokens, torch.arange(longest) >= (longest - lengths)[:, None]

    def spelt(self, tokens: Tensor) -> Tensor:
        """Sentence tokens (U,) -> what precedes them: nothing, or the tokens with repetitions and
        gaps.
        """
        if self.copy is None or (self.training and torch.rand(()) >= self.copy.share):
            return tokens[:0]
        if self.training:
            repeats = torch.randint(1, self.copy.repeats + 1, (len(tokens),))
            gaps = torch.randint(0, self.copy.gaps + 1, (len(tokens),))
        else:
            repeats = torch.full((len(tokens),), min(self.copy.repeats, 2))
            gaps = torch.full((len(tokens),), min(self.copy.gaps, 1))
        # y_1 0 y_2 0 ..., each element repeated counts times
        counts = torch.stack([repeats, gaps], 1).flatten()
        return (
            torch.stack([tokens, torch.zeros_like(tokens)], 1).flatten().repeat_interleave(counts)
        )
