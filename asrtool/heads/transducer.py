"""The head of a transducer (Graves, arXiv 1211.3711): predictor and joiner.

    z(s, u) = W tanh(A h_s + g_u) + b,   g_u = predictor(y_1 ... y_u)                            (1)
    p(k | s, u) = softmax(z(s, u))_k                                                             (2)

h_s is a frame of the encoder, and k a token or the blank. The predictor is an LSTM, as in the
paper, or it knows the last few tokens alone (Ghodsi et al. 2020, "RNN-Transducer with Stateless
Prediction Network"; here in the form of icefall: an embedding and one convolution).

The loss needs two of the V probabilities at each (s, u). So (1) is computed block by block, of a
batch (B, S, U + 1, V) never more than ROOM numbers at once, and again in the backward pass; a batch
of one block is kept instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from asrtool.heads.base import HEADS, Head, Search
from asrtool.nn.rows import PerRow
from asrtool.registry import Registry, bounded
from asrtool.types import Batch, EncoderOutput, Lattice, Padded, on_host

BLANK = 0
ROOM = 1 << 24  # logits of a block: 64 MiB in float32
NOTHING = -1  # in front of the first token, where no blank stands either


@dataclass(frozen=True)
class Said(PerRow):
    """What a predictor knows of N rows: output (N, J), g of (1), and what the next one needs."""

    output: Tensor
    memory: tuple[Tensor, ...]


class Predictor(nn.Module):
    """Built by `PREDICTORS.build(config, dim=J, vocab_size=V, blank=0)`. A text begins with the
    blank, which is no token of any text.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, U) -> g (B, U + 1, J): column u has read u tokens."""
        raise NotImplementedError

    def start(self, rows: int) -> Said:
        """Before the first token."""
        raise NotImplementedError

    def step(self, said: Said, tokens: Tensor) -> Said:
        """Behind one more token (N,) of each row."""
        raise NotImplementedError


PREDICTORS: Registry[Predictor] = Registry("predictor")


@dataclass(frozen=True, kw_only=True)
class StatelessConfig:
    """The last `context` tokens: embedding, grouped convolution, ReLU, as in icefall."""

    context: int = bounded(2, least=1)
    dim: int = bounded(512, least=4)

    def __post_init__(self) -> None:
        if self.dim % 4:
            raise ValueError(
                f"dim is {self.dim}: expected a multiple of 4, the channels of a group"
            )


@PREDICTORS.register("stateless", StatelessConfig)
class StatelessPredictor(Predictor):
    """memory: the last tokens (N, context)."""

    def __init__(self, config: StatelessConfig, *, dim: int, vocab_size: int, blank: int) -> None:
        super().__init__()
        self.context, self.blank = config.context, blank
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.conv = nn.Conv1d(
            config.dim, config.dim, config.context, groups=config.dim // 4, bias=False
        )
        self.linear = nn.Linear(config.dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        before = pad(pad(tokens, (1, 0), value=self.blank), (self.context - 1, 0), value=NOTHING)
        return self.read(before)

    def read(self, tokens: Tensor) -> Tensor:
        """tokens (B, context + U) -> (B, U + 1, J): of every `context` tokens in a row."""
        embedded = self.embedding(tokens.clamp(min=0)) * (tokens >= 0)[:, :, None]
        return self.linear(self.conv(embedded.transpose(1, 2)).relu().transpose(1, 2))

    def start(self, rows: int) -> Said:
        before = torch.full((rows, self.context), NOTHING, device=self.embedding.weight.device)
        before[:, -1] = self.blank
        return Said(self.read(before)[:, 0], (before,))

    def step(self, said: Said, tokens: Tensor) -> Said:
        before = torch.cat([said.memory[0][:, 1:], tokens[:, None]], 1)
        return Said(self.read(before)[:, 0], (before,))


@dataclass(frozen=True, kw_only=True)
class LstmConfig:
    """All tokens, by an LSTM, as in the paper."""

    num_layers: int = bounded(1, least=1)
    dim: int = bounded(640, least=1)
    dropout: float = bounded(0.1, least=0, below=1)  # of embeddings, and between layers


@PREDICTORS.register("lstm", LstmConfig)
class LstmPredictor(Predictor):
    """memory: the LSTM's states, each (N, num_layers, dim)."""

    def __init__(self, config: LstmConfig, *, dim: int, vocab_size: int, blank: int) -> None:
        super().__init__()
        self.blank = blank
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.num_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.dim, config.dim, config.num_layers, batch_first=True, dropout=between
        )
        self.linear = nn.Linear(config.dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self._read(pad(tokens, (1, 0), value=self.blank))[0])

    def _read(
        self, tokens: Tensor, before: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        embedded = self.dropout(self.embedding(tokens)).float()
        # in float32: few CPUs have 16-bit LSTMs, and errors would add up from token to token
        with torch.autocast(embedded.device.type, enabled=False):
            return self.lstm(embedded, before)

    def start(self, rows: int) -> Said:
        zeros = self.embedding.weight.new_zeros(rows, self.lstm.num_layers, self.lstm.hidden_size)
        tokens = torch.full((rows,), self.blank, device=zeros.device)
        return self.step(Said(zeros[:, 0], (zeros, zeros)), tokens)

    def step(self, said: Said, tokens: Tensor) -> Said:
        before = tuple(part.transpose(0, 1).contiguous() for part in said.memory)
        output, after = self._read(tokens[:, None], before)
        return Said(self.linear(output[:, 0]), tuple(part.transpose(0, 1) for part in after))


@dataclass(frozen=True, kw_only=True)
class TransducerHeadConfig:
    """Predictor and joiner of a transducer (arXiv 1211.3711)."""

    predictor: Annotated[object, PREDICTORS] = StatelessConfig()
    dim: int = bounded(512, least=1)  # J, of the joiner


@HEADS.register("transducer", TransducerHeadConfig)
class TransducerHead(Head):
    """A lattice (B, S, U + 1, 2); blank 0."""

    output = "lattice"
    alignment = "transducer"
    precedence = 50

    def __init__(self, config: TransducerHeadConfig, *, name: str, model: object) -> None:
        super().__init__(name)
        self.predictor = PREDICTORS.build(
            config.predictor, dim=config.dim, vocab_size=model.vocab_size, blank=BLANK
        )
        self.frame_linear = nn.Linear(model.dim, config.dim)
        self.joiner = nn.Linear(config.dim, model.vocab_size)

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Lattice:
        targets = batch.targets
        # ids in the padding may be anything, and an embedding needs valid ones
        tokens = targets.data.masked_fill(~targets.mask, BLANK)
        said, following = self.predictor(tokens), pad(tokens, (0, 1), value=BLANK)
        frames, lengths = self.frames(encoded)
        numbers = frames.shape[1] * said.shape[1] * self.joiner.out_features
        if len(frames) * numbers <= ROOM:  # kept, which saves the second time
            return Lattice(self._scores(frames, said, following), lengths, targets.lengths)
        count = max(1, ROOM // numbers)  # utterances of a block
        blocks = zip(
            frames.split(count),
            said.split(count),
            following.split(count),
            longest(lengths, count, frames.shape[1]),
            longest(targets.lengths, count, tokens.shape[1]),
            strict=True,
        )
        data = torch.cat([self._block(*block) for block in blocks])
        return Lattice(data, lengths, targets.lengths)

    def _block(
        self, frames: Tensor, said: Tensor, following: Tensor, heard: int, spoken: int
    ) -> Tensor:
        """Utterances of at most `heard` frames and `spoken` tokens; 0 behind these: frames
        (B, S, J), said (B, U + 1, J), following (B, U + 1) -> (B, S, U + 1, 2).
        """
        columns, total = spoken + 1, said.shape[1]
        count = max(1, ROOM // (len(frames) * columns * self.joiner.out_features))
        parts = [
            self._again(part, said[:, :columns], following[:, :columns])
            for part in frames[:, :heard].split(count, 1)
        ]
        return pad(torch.cat(parts, 1), (0, 0, 0, total - columns, 0, frames.shape[1] - heard))

    def _again(self, *inputs: Tensor) -> Tensor:
        """`_scores`, whose logits are not kept for the backward pass, but computed again."""
        if not torch.is_grad_enabled():
            return self._scores(*inputs)
        return checkpoint(self._scores, *inputs, use_reentrant=False, preserve_rng_state=False)

    def _scores(self, frames: Tensor, said: Tensor, following: Tensor) -> Tensor:
        """(2) of the blank and of the following tokens: (B, S, U + 1, 2)."""
        logits = self.logits(frames[:, :, None], said[:, None]).float()
        tokens = following[:, None, :, None].expand(-1, frames.shape[1], -1, 1)
        wanted = torch.stack([logits[..., BLANK], logits.gather(3, tokens)[..., 0]], 3)
        return wanted - logits.logsumexp(3, keepdim=True)

    def logits(self, frames: Tensor, said: Tensor) -> Tensor:
        """(1): frames (..., J) and said (..., J), each of the other's shape or 1 -> (..., V)."""
        return self.joiner((frames + said).tanh())

    # -- search: a `Transducer` of asrtool/searchers/transducer ----------------

    def frames(self, encoded: EncoderOutput) -> Padded:
        """A h of (1): (B, S, J)."""
        return Padded(self.frame_linear(encoded.frames.data), encoded.frames.lengths)

    def start(self, rows: int) -> Said:
        return self.predictor.start(rows)

    def step(self, said: Said, tokens: Tensor) -> Said:
        return self.predictor.step(said, tokens)

    def symbols(self, frames: Tensor, said: Said) -> Tensor:
        """log of (2): frames (N, J), said of N rows -> (N, V) float32."""
        return self.logits(frames, said.output).float().log_softmax(-1)

    def search(self, heads: Mapping[str, Head]) -> Search:
        return {"type": "transducer_beam", "input": self.name}

    def greedy_search(self) -> Search:
        return {"type": "transducer_greedy", "input": self.name}


def longest(lengths: Tensor, count: int, size: int) -> list[int]:
    """The longest of every `count` utterances; `size`, of any, where only the device knows."""
    known = on_host(lengths)
    parts = lengths.split(count)
    return [size] * len(parts) if known is None else [int(p.max()) for p in known.split(count)]
