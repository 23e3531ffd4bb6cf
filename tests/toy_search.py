"""Search spaces small enough to enumerate: a model made of tables, and what a search over it must
find.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from math import inf, log
from types import SimpleNamespace

import torch
from torch import Tensor

from asrtool.nn.rows import PerRow
from asrtool.types import EncoderOutput, Padded

WIDTH = 5  # of a frame


@dataclass(frozen=True)
class MemoryState:
    bias: Tensor  # (N, V) what the utterance adds
    memory: Tensor  # (N, V) of the prefix, its newest token not yet in it


class MemoryScorer:
    """A tiny recurrent network: m = tanh(0.7 m + row of the newest token), probabilities softmax(W
    m + bias).

    It depends on the whole prefix and on the utterance, so a search that mixes up rows gets other
    scores.
    """

    partial = False

    def __init__(self, vocabulary: int, seed: int, sharpness: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64)
        self.mix = (
            torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64)
            * sharpness
        )
        self.from_frames = torch.randn(WIDTH, vocabulary, generator=generator, dtype=torch.float64)

    def bias(self, frames: Padded) -> Tensor:
        total = (frames.data * frames.mask[..., None]).sum(1).double()
        return total / frames.lengths.clamp(min=1)[:, None] @ self.from_frames

    def start(self, encoded: EncoderOutput, beam: int) -> MemoryState:
        bias = self.bias(encoded.frames).repeat_interleave(beam, 0)
        return MemoryState(bias, torch.zeros_like(bias))

    def score(
        self, prefixes: Tensor, state: MemoryState, candidates: Tensor | None
    ) -> tuple[Tensor, MemoryState]:
        memory = torch.tanh(0.7 * state.memory + self.rows[prefixes[:, -1]])
        log_probs = (memory @ self.mix + state.bias).log_softmax(-1)
        return log_probs if candidates is None else log_probs.gather(1, candidates), MemoryState(
            state.bias, memory
        )

    def select(self, state: MemoryState, rows: Tensor) -> MemoryState:
        if isinstance(state, tuple):
            return state[0][rows], [state[1][row] for row in rows.tolist()]
        return MemoryState(state.bias[rows], state.memory[rows])

    # of a `Verifier`: the state is the bias, and m after each token that was read, padding too

    def prepare(self, encoded: EncoderOutput) -> tuple[Tensor, list[list[Tensor]]]:
        bias = self.bias(encoded.frames)
        return bias, [[torch.zeros_like(row)] for row in bias]

    def verify(self, state, newest: Tensor | None, draft: Padded):
        bias, known = state
        sos = torch.full((len(known),), len(self.rows) - 1)
        tokens = torch.cat([(sos if newest is None else newest)[:, None], draft.data], 1)
        rows, memories = [], []
        for row, length in enumerate(draft.lengths.tolist()):
            memory, found = known[row][-1], []
            for token in tokens[row]:
                memory = torch.tanh(0.7 * memory + self.rows[token])
                found.append(memory)
            rows.append((torch.stack(found[: length + 1]) @ self.mix + bias[row]).log_softmax(-1))
            memories.append([*known[row], *found])
        return iter(rows), (bias, memories)

    def cut(self, state, rejected: Tensor):
        bias, known = state
        pairs = zip(known, rejected.tolist(), strict=True)
        return bias, [memories[: len(memories) - count] for memories, count in pairs]

    def sequence(self, frames: Padded, tokens: tuple[int, ...], eos: int) -> float:
        """Log-probability of one whole sequence for one utterance, computed without a search."""
        bias, memory, total = (
            self.bias(frames)[0],
            torch.zeros(len(self.rows), dtype=torch.float64),
            0.0,
        )
        for previous, token in itertools.pairwise((eos, *tokens, eos)):
            memory = torch.tanh(0.7 * memory + self.rows[previous])
            total += (memory @ self.mix + bias).log_softmax(-1)[token].item()
        return total


@dataclass(frozen=True)
class ToySaid(PerRow):
    """What was said in N rows: tanh of sums over the tokens, which depend on their order."""

    output: Tensor  # (N, V)


class ToyTransducer:
    """A `Transducer`: its predictor is m = tanh(0.7 m + row of the token), and its joiner adds m W
    to a projection of the frame; the blank is likelier than a token.
    """

    alignment = "transducer"

    def __init__(self, vocabulary: int, seed: int, sharpness: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(seed + 2000)
        shapes = ((vocabulary, vocabulary), (vocabulary, vocabulary), (WIDTH, vocabulary))
        self.rows, self.mix, self.project = (
            sharpness * torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in shapes
        )

    def frames(self, encoded: EncoderOutput) -> Padded:
        return Padded(encoded.frames.data.double() @ self.project, encoded.frames.lengths)

    def start(self, rows: int) -> ToySaid:
        return ToySaid(torch.zeros(rows, len(self.rows), dtype=torch.float64))

    def step(self, said: ToySaid, tokens: Tensor) -> ToySaid:
        return ToySaid(torch.tanh(0.7 * said.output + self.rows[tokens]))

    def symbols(self, frames: Tensor, said: ToySaid) -> Tensor:
        logits = frames + said.output @ self.mix
        logits[:, 0] += 2.0
        return logits.log_softmax(-1)


def heads(*names: str) -> dict[str, SimpleNamespace]:
    """What a search sees of heads with these names."""
    alignments = {"ctc": "ctc", "inter_ctc": "ctc", "aligned": "token"}
    return {name: SimpleNamespace(alignment=alignments.get(name)) for name in names}


class ToyModel:
    """A `SearchModel` of frames (B, S, 5): a CTC head, a label-synchronous scorer and a transducer,
    all random.
    """

    blank = 0
    frame_shift = 0.04

    def __init__(self, vocabulary: int = 4, seed: int = 0, sharpness: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(seed + 1000)
        self.eos = vocabulary - 1
        self.transducer = ToyTransducer(vocabulary, seed, sharpness)
        self.heads = {**heads("ctc", "attention"), "transducer": self.transducer}
        self.head = (
            torch.randn(WIDTH, vocabulary, generator=generator, dtype=torch.float64) * sharpness
        )
        self.attention = MemoryScorer(vocabulary, seed, sharpness)

    def log_probs(self, encoded: EncoderOutput, head: str = "ctc") -> Padded:
        return Padded(
            (encoded.frames.data.double() @ self.head).log_softmax(-1), encoded.frames.lengths
        )

    def scorers(self) -> dict[str, MemoryScorer]:
        return (
            {"attention": self.attention, "llm": self.attention}
            if "attention" in self.heads
            else {}
        )

    def tokens(self) -> range:
        """Ids that a hypothesis may hold."""
        return range(1, self.eos)

    def sequences(self, longest: int) -> list[tuple[int, ...]]:
        """All hypotheses of up to `longest` tokens."""
        return [
            s
            for length in range(longest + 1)
            for s in itertools.product(self.tokens(), repeat=length)
        ]


def utterances(lengths: tuple[int, ...], seed: int = 0, padding: int = 0) -> EncoderOutput:
    """Random frames with garbage behind their ends; positions two apart, as if every other frame
    had been dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, WIDTH, generator=generator) for length in lengths]
    data, lengths = Padded.stack(rows)
    data = torch.nn.functional.pad(data, (0, 0, 0, padding))
    frames = Padded(torch.where(Padded(data, lengths).mask[..., None], data, 99.0), lengths)
    return EncoderOutput(
        frames=frames, positions=2 * torch.arange(data.shape[1]).expand(len(lengths), -1)
    )


def choose(encoded: EncoderOutput, rows: list[int], padding: int = 0) -> EncoderOutput:
    """Some utterances of a batch as a batch of their own, cut to the longest and padded again."""
    lengths = encoded.frames.lengths[rows]
    longest = int(lengths.max())
    data = torch.nn.functional.pad(
        encoded.frames.data[rows, :longest], (0, 0, 0, padding), value=-77.0
    )
    positions = torch.nn.functional.pad(
        encoded.positions[rows, :longest], (0, padding), value=12345
    )
    return EncoderOutput(frames=Padded(data, lengths), positions=positions)


def collapse(path: tuple[int, ...], blank: int = 0) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def label_probabilities(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """CTC by enumeration of all paths: (S, V) -> probability of every label sequence."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    rows = log_probs.exp().tolist()
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(rows)):
        probability = 1.0
        for row, token in zip(rows, path, strict=True):
            probability *= row[token]
        found[collapse(path)] += probability
    return dict(found)


def prefix_log_probability(labels: dict[tuple[int, ...], float], prefix: tuple[int, ...]) -> float:
    """log psi(prefix): the probability of all label sequences that begin with it."""
    return safe_log(sum(p for sequence, p in labels.items() if sequence[: len(prefix)] == prefix))


def safe_log(value: float) -> float:
    return log(value) if value > 0 else -inf
