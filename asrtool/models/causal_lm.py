"""A causal language model in an architecture of `transformers`, trained on text by asrtool's own trainer.

    p(y) = prod_u p(y_u | y_<u),  u = 1 ... U + 1,  y_0 = sos, y_{U+1} = eos

`asrtool export_llm` makes a folder of it that `transformers` reads, with a tokenizer of the recipe's characters: the
small language model that a speech LLM can be built on without downloading one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from asrtool.models import llm
from asrtool.models.base import MODELS, AsrModel
from asrtool.models.llm import LlmConfig, Shape
from asrtool.models.prompt import SPEECH
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


@dataclass(frozen=True, kw_only=True)
class CausalLmConfig:
    """A Llama from scratch over the recipe's vocabulary; it hears nothing."""

    shape: Shape = "llama-mini"


@MODELS.register("causal_lm", CausalLmConfig)
class CausalLm(AsrModel):
    """Streams: `lm`, logits (B, U + 1, V), whose row u rates token u and whose last row rates eos."""

    STREAM = "lm"

    def __init__(
        self, config: CausalLmConfig, *, input_dim: int, vocab_size: int, frame_shift: float, streams: frozenset[str]
    ) -> None:
        super().__init__()
        if streams != {self.STREAM}:
            read = ", ".join(sorted(streams))
            raise ValueError(f"a language model has the stream '{self.STREAM}' alone; the losses read: {read}")
        self.frame_shift, self.eos, self.streams = frame_shift, vocab_size - 1, frozenset(streams)
        self.llm, _ = llm.load(LlmConfig(shape=config.shape, prompt=SPEECH), vocab_size)
        self.caller = llm.Caller(self.llm)

    def forward(self, batch: Batch) -> ModelOutput:
        tokens = pad(batch.targets.data, (1, 0), value=self.eos)
        read = Padded(tokens, batch.targets.lengths + 1)
        embeddings = self.llm.get_input_embeddings()(tokens)
        logits = self.caller(self.llm, embeddings, read.mask, tokens.shape[1]).logits
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        encoded = EncoderOutput(frames=Padded(embeddings, read.lengths), positions=positions)
        return ModelOutput(encoder=encoded, streams={self.STREAM: Padded(logits, read.lengths)})

    def encode(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        raise ValueError("a language model recognises no speech; give the experiment of a recogniser")
