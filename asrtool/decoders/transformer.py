"""Transformer attention decoder (arXiv 1706.03762, pre-norm); in a search, a `Scorer` with caches.

    p(y_u | y_<u, x),  u = 1 ... U + 1,  y_0 = sos,  y_{U+1} = eos

The last token of the vocabulary is both sos and eos.

One loop over the layers serves training (all tokens at once, causal mask), search (the newest token
of each beam, its past in the cache) and rescoring (every prefix of an n-best list once). In the
last two, the tokens of an utterance form a tree, and a mask lets each see its ancestors. So beams
share their past, reordering beams copies no cache, and frames are projected to keys and values once
per utterance. On a CPU, a step of a search is the same in machine code (step.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asrtool.decoders import step
from asrtool.decoders.base import DECODERS, Decoder
from asrtool.nn.attention import GrowingKeyValue
from asrtool.nn.masks import attention_mask, causal_mask
from asrtool.nn.positions import rotations
from asrtool.nn.transformer import DecoderLayerCache, TransformerDecoderLayer
from asrtool.registry import bounded
from asrtool.types import EncoderOutput, Padded

# largest share of distinct prefixes in an n-best list at which a tree is faster than sequences
WORTHWHILE = 0.7
PRUNED = 8  # steps after which nodes of dead beams are removed
FEW_ALIVE = 0.7  # largest share of live nodes at which removing the others is worth a copy


@dataclass(frozen=True, kw_only=True)
class TransformerDecoderConfig:
    """Transformer attention decoder, of the encoder's width."""

    num_layers: int = bounded(6, least=0)
    num_heads: int = bounded(4, least=1)
    ffn_dim: int = bounded(2048, least=1)
    dropout: float = bounded(0.1, least=0, below=1)
    tied: bool = True  # the output layer has the weights of the embedding


@dataclass(frozen=True)
class DecoderState:
    """The state of a search: a tree of the tokens of all beams so far, K nodes by age."""

    layers: tuple[DecoderLayerCache, ...]  # keys and values of the nodes and of the frames
    memory_mask: Tensor  # (B, 1, 1, S)
    seen: Tensor  # (B, beam, K) bool: the nodes on each beam's prefix
    pruned: int = 0  # K when nodes of dead beams were last removed
    weights: step.Weights | None = None  # where a step is machine code


@DECODERS.register("transformer", TransformerDecoderConfig)
class TransformerDecoder(Decoder):
    """Embedding, sinusoidal positions, layers, and logits by the embedding or an output layer."""

    partial = False  # Scorer: scores the whole vocabulary

    def __init__(self, config: TransformerDecoderConfig, *, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.sos = vocab_size - 1
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(dim, config.num_heads, config.ffn_dim, config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))
        self.output_weight = None  # tied: that of the embedding
        if not config.tied:
            self.output_weight = nn.Parameter(torch.empty(vocab_size, dim))
            nn.init.normal_(self.output_weight, std=dim**-0.5)

    def forward(self, encoded: EncoderOutput, targets: Padded) -> Padded:
        tokens = F.pad(targets.data, (1, 0), value=self.sos)  # (B, U + 1)
        lengths = targets.lengths + 1
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        mask = attention_mask(Padded(tokens, lengths).mask, causal_mask(positions, positions))
        memory_mask, layers = self._read(encoded)
        x, _ = self._layers(self._embed(tokens, positions), mask, memory_mask, layers)
        return Padded(self._logits(x), lengths)

    def sequence_scores(self, encoded: EncoderOutput, targets: Padded) -> Tensor:
        """targets (B * n, U) -> (B * n,) float64 log-probabilities of the sequences with eos.

        Sequences of an utterance share the work for common prefixes, where that is faster.
        """
        utterances = len(encoded.frames.lengths)
        rows = [row.tolist() for row in targets.unpad()]
        beam = len(rows) // max(utterances, 1)
        trees = [
            PrefixTree(rows[first : first + beam], self.sos)
            for first in range(0, len(rows), max(beam, 1))
        ]
        most = WORTHWHILE * beam * (targets.data.shape[1] + 1)
        # first the utterances with few enough distinct prefixes, as trees; then the others
        alike = torch.tensor([len(tree.tokens) <= most for tree in trees], dtype=torch.bool)
        scores = torch.zeros((utterances, beam), dtype=torch.float64, device=targets.data.device)
        for together in (True, False):
            chosen = alike == together
            if not chosen.any():
                continue
            shared = [tree for tree, pick in zip(trees, chosen.tolist(), strict=True) if pick]
            chosen_rows, beam_rows = (
                chosen.to(scores.device),
                chosen.repeat_interleave(beam).to(scores.device),
            )
            part = EncoderOutput(
                frames=Padded(*(x[chosen_rows] for x in encoded.frames)),
                positions=encoded.positions[chosen_rows],
            )
            if together:
                part_scores = self._tree_scores(part, shared, beam)
            else:
                part_scores = super().sequence_scores(
                    part, Padded(targets.data[beam_rows], targets.lengths[beam_rows])
                )
            scores[chosen_rows] = part_scores.view(-1, beam)
        return scores.flatten()

    def _tree_scores(
        self, encoded: EncoderOutput, trees: Sequence[PrefixTree], beam: int
    ) -> Tensor:
        """`sequence_scores` that computes each prefix once; a tree holds `beam` sequences."""
        device, size = encoded.frames.data.device, max(len(tree.tokens) for tree in trees)
        # tokens, positions (B, K) and seen (B, K, K) of the nodes, padded to the largest tree. The
        # position of a node is its depth, and `seen` replaces the causal mask.
        tokens = torch.tensor([tree.padded(tree.tokens, size) for tree in trees], device=device)
        positions = torch.tensor([tree.padded(tree.depths, size) for tree in trees], device=device)
        seen = torch.stack([tree.seen(size) for tree in trees]).to(device)
        memory_mask, layers = self._read(encoded)
        x = self._embed(tokens, positions)
        logits = self._logits(self._layers(x, seen[:, None], memory_mask, layers)[0])
        # Logits (B, K, V): node k predicts its successor. The steps of all sequences in one list:
        # the utterance, the node before the step, and the token (or eos) after it.
        steps = [(row, *step) for row, tree in enumerate(trees) for step in tree.steps]
        utterance, node, token = (
            torch.tensor(column, device=device) for column in zip(*steps, strict=True)
        )
        values = (
            logits[utterance, node, token].float() - logits.float().logsumexp(-1)[utterance, node]
        ).double()
        # the sequence that each step belongs to, among B * beam: the score is the sum of its steps
        sequence = (
            torch.tensor([i for tree in trees for i in tree.sequences], device=device)
            + utterance * beam
        )
        return values.new_zeros(len(trees) * beam).index_add_(0, sequence, values)

    # -- Scorer: see asrtool.searchers.base ---------------------------------

    def start(self, encoded: EncoderOutput, beam: int) -> DecoderState:
        memory_mask, layers = self._read(encoded)
        nothing = torch.zeros(
            (len(memory_mask), beam, 0), dtype=torch.bool, device=memory_mask.device
        )
        weights = None
        if not self.training and step.suits(encoded.frames.data, len(memory_mask) * beam):
            weights = self._weights()
        memories = [
            layer.memory if weights is None else step.by_head(layer.memory) for layer in layers
        ]
        layers = tuple(
            DecoderLayerCache(GrowingKeyValue.empty(memory), memory) for memory in memories
        )
        return DecoderState(layers, memory_mask, nothing, weights=weights)

    def score(
        self, prefixes: Tensor, state: DecoderState, candidates: Tensor | None = None
    ) -> tuple[Tensor, DecoderState]:
        """prefixes (N, U) -> log-probabilities (N, V) or of candidates (N, K), and the state.

        Only the newest token goes through the layers; keys and values of the others are cached.
        """
        utterances, beam, _ = state.seen.shape
        # each newest token is a new node, which sees the nodes of its prefix and itself:
        # (B, beam, K + beam)
        itself = torch.eye(beam, dtype=torch.bool, device=prefixes.device).expand(
            utterances, -1, -1
        )
        seen = torch.cat([state.seen, itself], 2)
        positions = torch.full((1, 1), prefixes.shape[1] - 1, device=prefixes.device)
        # the beams of an utterance are one sequence of `beam` queries over its tree
        x = self._embed(prefixes[:, -1].view(utterances, beam), positions)
        if state.weights is None:
            x, layers = self._layers(x, seen[:, None], state.memory_mask, state.layers)
            logits = self._logits(x).flatten(0, 1)
        else:
            lengths = state.memory_mask[:, 0, 0].sum(1)
            logits, layers = step.advance(x, seen, lengths, state.layers, state.weights)
        log_probs = logits.float().log_softmax(-1)
        log_probs = log_probs if candidates is None else log_probs.gather(1, candidates)
        return log_probs, replace(state, layers=layers, seen=seen)

    def select(self, state: DecoderState, rows: Tensor) -> DecoderState:
        """rows (N',): utterances may be dropped as a whole; a beam never leaves its utterance.

        Nodes stay in place: reordering beams changes only which nodes each one sees.
        """
        layers, memory_mask, beam = state.layers, state.memory_mask, state.seen.shape[1]
        utterances = rows[::beam] // beam
        if len(utterances) < len(memory_mask):
            layers, memory_mask = (
                tuple(layer.take(utterances) for layer in layers),
                memory_mask[utterances],
            )
        seen = state.seen.flatten(0, 1)[rows].unflatten(0, (-1, beam))
        state = replace(state, layers=layers, memory_mask=memory_mask, seen=seen)
        return _pruned(state) if seen.shape[2] >= state.pruned + PRUNED * beam else state

    # -- shared by training, search and rescoring -----------------------------

    def _read(self, encoded: EncoderOutput) -> tuple[Tensor, tuple[DecoderLayerCache, ...]]:
        """The frames' mask (B, 1, 1, S), and their keys and values in each layer."""
        memory_mask = attention_mask(encoded.frames.mask)
        return memory_mask, tuple(layer.init_cache(encoded.frames.data) for layer in self.layers)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens (N, U), positions (N or 1, U or 1) -> (N, U, D)."""
        sinusoids = torch.view_as_real(
            rotations(positions, self.embedding.embedding_dim // 2)
        ).flatten(-2)[:, 0]
        x = self.embedding(tokens) * self.embedding.embedding_dim**0.5 + sinusoids
        return self.dropout(x)

    def _layers(
        self,
        x: Tensor,
        mask: Tensor,
        memory_mask: Tensor,
        caches: tuple[DecoderLayerCache, ...],
    ) -> tuple[Tensor, tuple[DecoderLayerCache, ...]]:
        """x (N, U, D), mask (N, 1, U, K) -> (N, U, D), caches."""
        following = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, mask, memory_mask, cache)
            following.append(cache)
        return x, tuple(following)

    def _logits(self, x: Tensor) -> Tensor:
        """(N, U, D) -> (N, U, V)."""
        return F.linear(self.norm(x), self._output_weight(), self.output_bias)

    def _output_weight(self) -> Tensor:
        return self.embedding.weight if self.output_weight is None else self.output_weight

    def _weights(self) -> step.Weights | None:
        """Parameters for machine code; None if a layer is not what that computes."""
        layers = tuple(map(step.layer_weights, self.layers))
        output = step.Affine(step.array(self._output_weight()), step.array(self.output_bias))
        if None in layers:
            return None
        return step.Weights(layers, step.affine(self.norm), self.norm.eps, output)


def _pruned(state: DecoderState) -> DecoderState:
    """The state without the nodes that no beam sees any more, if there are many of them.

    All utterances keep as many nodes as the one with the most, so that (B, K) stays rectangular.
    """
    seen = state.seen
    alive = seen.any(1)  # (B, K)
    most = int(alive.sum(1).max())
    if most > FEW_ALIVE * seen.shape[2]:
        return replace(state, pruned=seen.shape[2])
    # a stable sort: live nodes come first, in order; shorter rows keep some dead ones, which no
    # beam sees
    kept = (~alive).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    layers = tuple(
        DecoderLayerCache(GrowingKeyValue.of(layer.prefix.gather(kept)), layer.memory)
        for layer in state.layers
    )
    seen = seen.gather(2, kept[:, None].expand(-1, seen.shape[1], -1))
    return replace(state, layers=layers, seen=seen, pruned=most)


class PrefixTree:
    """A tree of the distinct prefixes of several sequences; node 0 is sos.

    tokens, depths, parents: of each node. steps: (node, next token) for every token and the eos of
    every sequence; sequences: the sequence of each step.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], sos: int) -> None:
        self.tokens, self.depths, self.parents = [sos], [0], [-1]
        self.steps: list[tuple[int, int]] = []
        self.sequences: list[int] = []
        children: dict[tuple[int, int], int] = {}
        for index, sequence in enumerate(sequences):
            node = 0
            for depth, token in enumerate(sequence, 1):
                self.steps.append((node, token))
                if (node, token) not in children:
                    children[node, token] = len(self.tokens)
                    self.tokens.append(token)
                    self.depths.append(depth)
                    self.parents.append(node)
                node = children[node, token]
            self.steps.append((node, sos))
            self.sequences += [index] * (len(sequence) + 1)

    def padded(self, values: list[int], size: int) -> list[int]:
        return values + [0] * (size - len(values))

    def seen(self, size: int) -> Tensor:
        """(size, size) bool: every node sees its ancestors and itself, the padding only itself."""
        seen = np.eye(size, dtype=bool)
        # parents precede their children, so the row of a parent is complete when it is read
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return torch.from_numpy(seen)
