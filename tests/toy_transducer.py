"""A transducer (Graves, arXiv 1211.3711) as somebody would write it outside of the package: a head,
its loss, and a greedy search that streams.

    z(s, u) = W tanh(A h_s + g_u),   g_u: LSTM of sos y_1 ... y_u                  (1)

    p(y | x) = sum over all alignments of S blanks and U tokens that end in a blank
    alpha(s, u) = alpha(s - 1, u) blank(s - 1, u) + alpha(s, u - 1) token(s, u - 1)    (2)
    L = -log alpha(S - 1, U) blank(S - 1, U)                                       (3)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from asrtool import config, distributed
from asrtool.experiment import TrainConfig, search_config
from asrtool.heads import HEADS, Head, Search
from asrtool.losses import LOSSES, Loss
from asrtool.model_folder import build_model
from asrtool.models import AsrModel
from asrtool.nn.rows import PerRow
from asrtool.searchers import SEARCHERS, SearcherConfig, StreamingSearcher
from asrtool.trainer import parallel, validation
from asrtool.trainer.objective import Objective
from asrtool.trainer.step import Stepper
from asrtool.types import Batch, EncoderOutput, Hypothesis, Lattice, ModelOutput, Padded
from tests.toy_conformer import double_precision
from tests.toy_ranks import join
from tests.toy_training import ToyStep

# -- head ---------------------------------------------------------------------


@dataclass(frozen=True)
class Predicted(PerRow):
    """What the predictor knows of each row: its output g and the LSTM's state, each (B, D)."""

    output: Tensor
    hidden: Tensor
    cell: Tensor


@dataclass(frozen=True, kw_only=True)
class TransducerHeadConfig:
    """Predictor and joiner."""

    dim: int = 16


class TransducerHead(Head):
    """A lattice of logits (B, S, U + 1, V); blank 0."""

    output = "lattice"
    precedence = 45

    def __init__(self, config: TransducerHeadConfig, *, name: str, model: AsrModel) -> None:
        super().__init__(name)
        self.sos = model.eos
        self.embedding = nn.Embedding(model.vocab_size, config.dim)
        self.predictor = nn.LSTM(config.dim, config.dim, batch_first=True)
        self.frame_proj = nn.Linear(model.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, model.vocab_size)

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Lattice:
        tokens = F.pad(batch.targets.data, (1, 0), value=self.sos)
        predicted, _ = self.predictor(self.embedding(tokens))
        frames, lengths = encoded.frames
        scores = self.combine(frames[:, :, None], predicted[:, None])
        return Lattice(scores, lengths, batch.targets.lengths)

    def combine(self, frames: Tensor, predicted: Tensor) -> Tensor:
        """(1): frames (..., D), predicted (..., dim) -> logits (..., V)."""
        return self.out_proj((self.frame_proj(frames) + predicted).tanh())

    def start(self, batch: int) -> Predicted:
        zeros = self.embedding.weight.new_zeros(batch, self.predictor.hidden_size)
        tokens = torch.full((batch,), self.sos, device=zeros.device)
        return self.step(Predicted(zeros, zeros, zeros), tokens)

    def step(self, state: Predicted, tokens: Tensor) -> Predicted:
        """The state behind one more token (B,) of each row."""
        past = (state.hidden[None], state.cell[None])
        output, (hidden, cell) = self.predictor(self.embedding(tokens[:, None]), past)
        return Predicted(output[:, 0], hidden[0], cell[0])

    def greedy_search(self) -> Search:
        return {"type": "toy_transducer_greedy", "input": self.name}

    def search(self, heads: Mapping[str, Head]) -> Search:
        return self.greedy_search()


# -- loss ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TransducerLossConfig:
    """The transducer's negative log-likelihood."""

    weight: float
    input: str = "transducer"


class TransducerLoss(Loss):
    """(3), in nats: (B,). An utterance without frames gets 0 and is named by `skipped`."""

    def __init__(self, config: TransducerLossConfig, *, eos: int, blank: int = 0) -> None:
        self.head, self.blank = config.input, blank

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, lengths, _ = outputs.head(self.head)
        log_probs = logits.float().log_softmax(-1)
        loss = negative_log_likelihood(log_probs, lengths, batch.targets, self.blank)
        return loss.masked_fill(self.skipped(outputs, batch), 0.0)

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        return outputs.head(self.head).lengths == 0


def negative_log_likelihood(
    log_probs: Tensor, lengths: Tensor, targets: Padded, blank: int
) -> Tensor:
    """log_probs (B, S, U + 1, V), lengths (B,) -> (B,), by (2) frame after frame."""
    blanks = log_probs[..., blank]  # (B, S, U + 1)
    tokens = targets.data[:, None, :, None].expand(-1, log_probs.shape[1], -1, 1)
    emitted = log_probs[:, :, :-1].gather(3, tokens)[..., 0]  # (B, S, U)
    # a frame's row of (2) is alpha(s, u) = climb(u) + log sum_{v <= u} exp(below(v) - climb(v))
    climbs = F.pad(emitted, (1, 0)).cumsum(2)
    alphas = [climbs[:, 0]]
    for frame in range(1, log_probs.shape[1]):
        below, climb = alphas[-1] + blanks[:, frame - 1], climbs[:, frame]
        alphas.append(climb + (below - climb).logcumsumexp(1))
    ends = torch.stack(alphas, 1) + blanks
    rows, last = torch.arange(len(lengths), device=lengths.device), (lengths - 1).clamp(min=0)
    return -ends[rows, last, targets.lengths]


# -- search -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TransducerGreedyConfig(SearcherConfig):
    """The most probable symbol at every point of the lattice."""

    input: str = "transducer"
    most: int = 5  # tokens of one frame


@dataclass
class TransducerState:
    """Of a batch: each row's tokens, their positions, its score, and the predictor's state."""

    tokens: list[list[int]]
    positions: list[list[int]]
    scores: list[float]
    predicted: Predicted

    def take(self, rows: Tensor) -> TransducerState:
        lists = (self.tokens, self.positions, self.scores)
        return TransducerState(
            *([part[row] for row in rows.tolist()] for part in lists), self.predicted.take(rows)
        )

    def join(self, other: TransducerState) -> TransducerState:
        return TransducerState(
            self.tokens + other.tokens,
            self.positions + other.positions,
            self.scores + other.scores,
            self.predicted.join(other.predicted),
        )


class TransducerGreedy(StreamingSearcher):
    """One hypothesis per utterance; its score is that of its path."""

    def __init__(
        self,
        config: TransducerGreedyConfig,
        *,
        model: AsrModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, object] | None = None,
    ) -> None:
        self.config, self.model = config, model
        self.head: TransducerHead = model.heads[config.input]

    @torch.no_grad()
    def start(self, batch: int) -> TransducerState:
        rows = range(batch)
        predicted = self.head.start(batch)
        return TransducerState([[] for _ in rows], [[] for _ in rows], [0.0] * batch, predicted)

    @torch.no_grad()
    def listen(
        self, state: TransducerState, encoded: EncoderOutput
    ) -> tuple[TransducerState, Padded]:
        frames, lengths = encoded.frames
        spoken = torch.zeros(frames.shape[:2], dtype=torch.bool, device=frames.device)
        for frame in range(frames.shape[1]):
            spoken[:, frame] = self._frame(
                state, frames[:, frame], frame < lengths, encoded.positions[:, frame].tolist()
            )
        return state, Padded(spoken, lengths)

    def _frame(
        self, state: TransducerState, frame: Tensor, there: Tensor, positions: list[int]
    ) -> Tensor:
        """Climb in one frame (B, D) of the rows that have it until each gives a blank; which gave
        a token, (B,).
        """
        climbing, spoke = there, torch.zeros_like(there)
        for count in range(self.config.most + 1):
            log_probs = self.head.combine(frame, state.predicted.output).float().log_softmax(-1)
            log_probs[:, self.model.eos] = -torch.inf  # no text holds it
            if count == self.config.most:  # the blank is all that may follow
                log_probs = log_probs[:, : self.model.blank + 1]
            best, symbols = log_probs.max(-1)
            for row in climbing.nonzero()[:, 0].tolist():
                state.scores[row] += float(best[row])
                if symbols[row] != self.model.blank:
                    state.tokens[row].append(int(symbols[row]))
                    state.positions[row].append(positions[row])
            climbing = climbing & (symbols != self.model.blank)
            spoke = spoke | climbing
            if not climbing.any():
                break
            state.predicted = chosen(
                climbing, self.head.step(state.predicted, symbols), state.predicted
            )
        return spoke

    def partial(self, state: TransducerState) -> list[Hypothesis]:
        return [
            Hypothesis(
                tokens=tuple(tokens),
                score=score,
                parts={self.config.input: score},
                positions=tuple(positions),
            )
            for tokens, positions, score in zip(
                state.tokens, state.positions, state.scores, strict=True
            )
        ]

    def finish(self, state: TransducerState) -> list[list[Hypothesis]]:
        return [[found] for found in self.partial(state)]


def chosen(rows: Tensor, new: Predicted, old: Predicted) -> Predicted:
    """The new state of the rows (B,) that are True, the old one of the others."""
    rows = rows[:, None]
    return Predicted(
        torch.where(rows, new.output, old.output),
        torch.where(rows, new.hidden, old.hidden),
        torch.where(rows, new.cell, old.cell),
    )


# -- registries ---------------------------------------------------------------

ENTRIES = (
    (HEADS, "toy_transducer", TransducerHeadConfig, TransducerHead),
    (LOSSES, "toy_transducer", TransducerLossConfig, TransducerLoss),
    (SEARCHERS, "toy_transducer_greedy", TransducerGreedyConfig, TransducerGreedy),
)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Inside, the registries know the transducer; behind, they are as before, since other tests go
    through every entry.
    """
    before = [(r, dict(r._configs), dict(r._classes)) for r, *_ in ENTRIES]
    try:
        for registry, name, settings, cls in ENTRIES:
            registry.register(name, settings)(cls)
        yield
    finally:
        for registry, configs, classes in before:
            registry._configs, registry._classes = configs, classes


# -- training -----------------------------------------------------------------

BINS, VOCABULARY = 20, 8
CONFIG = """
data: {{fbank: {{num_mel_bins: {bins}}}, batch: {{seconds: 20}}}}
model:
  type: hybrid
  encoder: {{type: conformer, num_layers: 2, dim: 16, num_heads: 2, ffn_dim: 32, kernel: 5,
    dropout: 0.0, causal: true, chunk: {{}},
    downsamplers: {{0: {{type: conv2d, factor: 4, channels: 4, causal: true}}}}}}
  heads: {{transducer: {{type: toy_transducer, dim: 12}}}}
losses:
  transducer: {{type: toy_transducer, weight: 1.0}}
optim: {{lr: 0.01, clip: 5.0}}
trainer: {{steps: 4}}
"""


def train_config() -> TrainConfig:
    return config.decode(TrainConfig, yaml.compose(CONFIG.format(bins=BINS)))


def model(seed: int = 0) -> AsrModel:
    torch.manual_seed(seed)
    return build_model(train_config(), VOCABULARY)


def batch(numbers: Sequence[int]) -> Batch:
    """Utterances of different lengths, the first of which says nothing."""
    rows = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(30 + 11 * number, BINS, generator=generator)
        rows.append((inputs, torch.randint(1, VOCABULARY - 1, (number,), generator=generator)))
    inputs, targets = (Padded.stack(list(column)) for column in zip(*rows, strict=True))
    return Batch(ids=tuple(f"u{number}" for number in numbers), inputs=inputs, targets=targets)


def train(shares: Sequence[Sequence[Sequence[int]]], rank: int = 0, shared: str = "ddp") -> Stepper:
    """Four updates on the utterances that `shares` deals to ranks and micro-batches."""
    settings = train_config()
    built = model()
    losses = {name: LOSSES.build(loss, eos=built.eos) for name, loss in settings.losses.items()}
    stepper = Stepper(
        settings.optim,
        built,
        Objective(losses, {name: loss.weight for name, loss in settings.losses.items()}),
        planned=4,
        precision="float32",
        device=torch.device("cpu"),
        seed=0,
        shared=shared,
    )
    batches = [batch(group) for group in shares[rank]]
    count = sum(len(group) for share in shares for group in share)
    step = ToyStep(count=count, batches=batches, epoch=0, index=0, last=False)
    stepper.dry_run(batch([3]))
    for number in range(1, 5):
        stepper.update(step, number)
    return stepper


def validate(stepper: Stepper) -> list[float]:
    """Scores of two utterances by the search that the head names for validation."""
    scores = []

    def search(built: AsrModel, outputs: ModelOutput, batch: Batch) -> dict:
        settings = search_config(built.heads["transducer"].greedy_search())
        nbests = SEARCHERS.build(settings, model=built).search(outputs.encoder)
        scores.extend(nbest[0].score for nbest in nbests)
        return {}

    validation.measure_batch(stepper, batch([2, 4]), search)
    return scores


def work(rank: int, world: int, port: int, folder: Path, shares: list[list[list[int]]]) -> None:
    """On each of several ranks: weights after training, and what is found by them in validation."""
    join(rank, world, port)
    found = {}
    with distributed.process_group(), registered(), double_precision():
        for shared in ("ddp", "fsdp"):
            stepper = train(shares, rank, shared)
            found[f"{shared} scores"] = validate(stepper)
            found[shared] = parallel.gather(stepper.model.state_dict(), keep=True)
    torch.save(found, folder / f"{rank}.pt")
