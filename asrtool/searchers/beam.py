"""Label-synchronous beam search over any sum of scorers, batched over utterances.

In each step, every live prefix g of an utterance is extended by its best tokens and by eos:

    s(g c) = s(g) + sum over scorers of weight * log p(c | g, x) + length_bonus                  (1)
    s(g eos) = s(g) + sum over scorers of weight * log p(eos | g, x)                             (2)

Among the best `beam` extensions of an utterance, those by eos are finished hypotheses. The best
`beam` extensions by other tokens stay alive. An utterance is done when no continuation of a live
prefix can beat its finished hypotheses: log-probabilities are never above 0, so s(g) plus the most
that length terms can still add bounds all continuations (3). Its rows then leave the batch.

Scorers of the whole vocabulary propose `candidates` extensions, and partial scorers score only
these (Watanabe et al., IEEE JSTSP 2017). If the vocabulary is no larger than that, or all scorers
are partial, partial scorers score all tokens.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isnan
from typing import Any

import torch
from torch import Tensor

from asrtool.registry import bounded
from asrtool.searchers import fusion
from asrtool.searchers.base import (
    SEARCHERS,
    Constraint,
    Scorer,
    Searcher,
    SearcherConfig,
    SearchModel,
)
from asrtool.searchers.constraints import ConstraintsConfig
from asrtool.searchers.ctc.scorer import CtcPrefixScorer
from asrtool.searchers.fusion import NgramConfig, NgramScorer
from asrtool.types import EncoderOutput, Hypothesis

INF = float("inf")
NEVER_PROPOSED = 2  # tokens that are never candidates: blank and eos


@dataclass(frozen=True, kw_only=True)
class BeamConfig(SearcherConfig):
    """Beam, scorers and limits of a search."""

    beam: int = bounded(10, least=1)
    # scorer -> weight; a CTC head such as `ctc` is a CTC prefix scorer; weight 0: not computed
    weights: dict[str, float] = field()  # no default, unlike in the base class
    # extensions of a prefix that partial scorers score; null: 1.5 * beam
    candidates: int | None = bounded(None, least=1)
    # the search ends when so many hypotheses are final; up to `beam` are returned
    nbest: int = bounded(1, least=1)
    constraints: ConstraintsConfig = ConstraintsConfig()
    ngram: NgramConfig | None = None  # the scorer `ngram`

    def __post_init__(self) -> None:
        fusion.check_weights(self.weights, ngram=self.ngram)
        if self.beam < 1:
            raise ValueError(f"beam must be at least 1, got {self.beam}")
        if not 1 <= self.nbest <= self.beam:
            raise ValueError(f"nbest must be between 1 and beam ({self.beam}), got {self.nbest}")
        if self.candidates is not None and self.candidates < self.beam:
            raise ValueError(f"candidates ({self.candidates}) must be at least beam ({self.beam})")
        if min(self.weights.values(), default=0) < 0 or not any(self.weights.values()):
            raise ValueError(
                f"weights must not be negative, and one must be above 0; got {self.weights}"
            )


@dataclass(frozen=True, kw_only=True)
class AttentionBeamConfig(BeamConfig):
    """Beam search with the attention decoder alone."""

    weights: dict[str, float] = field(default_factory=lambda: {"attention": 1.0})


@dataclass(frozen=True, kw_only=True)
class JointBeamConfig(BeamConfig):
    """One-pass joint decoding: attention decoder and CTC prefix probabilities."""

    weights: dict[str, float] = field(default_factory=lambda: {"attention": 0.7, "ctc": 0.3})


@dataclass(frozen=True)
class Live:
    """The prefixes of all utterances that are not done; dead rows have score -inf.

    B utterances, N = B * beam rows, M scorers.
    """

    utterances: tuple[int, ...]  # their indices in the batch
    prefixes: Tensor  # (N, U + 1) incl. sos
    scores: Tensor  # (B, beam) float64, s(g)
    parts: Tensor  # (B, beam, M) float64, unweighted
    states: tuple[Any, ...]  # one per scorer
    constraints: tuple[Constraint, ...]

    def select(self, blocks: Sequence[int], rows: Tensor, scorers: Sequence[Scorer]) -> Live:
        """Keep the utterances at `blocks`, and take row i from row rows[i].

        The caller sets scores and parts.
        """
        return replace(
            self,
            utterances=tuple(self.utterances[block] for block in blocks),
            prefixes=self.prefixes[rows],
            states=tuple(
                scorer.select(state, rows)
                for scorer, state in zip(scorers, self.states, strict=True)
            ),
            constraints=tuple(constraint.select(rows) for constraint in self.constraints),
        )


@dataclass(frozen=True)
class Extensions:
    """The best 2 * beam extensions of each utterance, best first.

    At most `beam` of them end (one per prefix), so that `beam` others remain. All are
    (B, 2 * beam), and parts (B, 2 * beam, M).
    """

    scores: Tensor
    parts: Tensor
    parents: Tensor  # beam index of the extended prefix
    tokens: Tensor

    @cached_property
    def ranked(self) -> list[list[tuple[float, int, int]]]:
        """(score, parent, token) of each, on the host: the device is read once a step."""
        columns = torch.stack([self.scores, self.parents.double(), self.tokens.double()], 2)
        return [
            [(score, int(parent), int(token)) for score, parent, token in row]
            for row in columns.tolist()
        ]


@SEARCHERS.register("attention_beam", AttentionBeamConfig)
@SEARCHERS.register("joint_beam", JointBeamConfig)
class Beam(Searcher):
    """Beam search; with beam 1, no partial scorers and no length terms it is greedy search.

    `parts` of a hypothesis holds the unweighted log-probability of each scorer; constraints.py
    defines its score. An utterance without frames gets the empty hypothesis with score 0. If the
    constraints allow no hypothesis, it gets the empty one with score -inf.
    """

    def __init__(
        self,
        config: BeamConfig,
        *,
        model: SearchModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        self.config = config
        self.model = model
        known = {**model.scorers(), **(scorers or {})}
        if config.ngram is not None:
            loaded = fusion.load(config.ngram, None, tokens, model.blank, model.eos)
            known["ngram"] = NgramScorer(loaded["ngram"], model.eos)
        named = {
            name: self._scorer(name, known) for name, weight in config.weights.items() if weight
        }
        # full scorers come first: they propose the candidates of partial ones
        self.names = tuple(sorted(named, key=lambda name: named[name].partial))
        self.scorers = tuple(named[name] for name in self.names)
        self.weights = tuple(config.weights[name] for name in self.names)
        self.proposers = sum(not scorer.partial for scorer in self.scorers)
        self.candidates = config.candidates or -(-3 * config.beam // 2)

    def _scorer(self, name: str, scorers: Mapping[str, Scorer]) -> Scorer:
        if name in scorers:
            return scorers[name]
        ctc = {key for key, head in self.model.heads.items() if head.alignment == "ctc"}
        if name in ctc:
            return CtcPrefixScorer(self.model, name)
        has = ", ".join(sorted({*scorers, *ctc})) or "none"
        raise LookupError(
            f"beam search: the model has no scorer '{name}' for weights.{name} (it has: {has})"
        )

    @torch.inference_mode()
    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        lengths = encoded.frames.lengths.tolist()
        limits = self.config.constraints.limits(encoded, self.model.frame_shift)
        finished: list[list[Hypothesis]] = [[] for _ in lengths]
        live = self._start(encoded, limits) if any(lengths) else None
        while live is not None:
            extensions, live = self._extend(live)
            self._finish(live, extensions, finished)
            live = self._advance(live, extensions, limits, finished)
        return [
            hypotheses or [self._empty(-INF if length else 0.0)]
            for hypotheses, length in zip(finished, lengths, strict=True)
        ]

    def _start(self, encoded: EncoderOutput, limits: list[int]) -> Live:
        """The empty prefix of every utterance with frames: one live row, the others are dead.

        With `beam` live copies, the first step would return `beam` copies of each extension.
        """
        beam, device, count = self.config.beam, encoded.frames.data.device, len(limits)
        scores = torch.full((count, beam), -INF, dtype=torch.float64, device=device)
        scores[:, 0] = 0.0
        live = Live(
            utterances=tuple(range(count)),
            prefixes=torch.full(
                (count * beam, 1), self.model.eos, dtype=torch.int64, device=device
            ),
            scores=scores,
            parts=torch.zeros((count, beam, len(self.scorers)), dtype=torch.float64, device=device),
            states=tuple(scorer.start(encoded, beam) for scorer in self.scorers),
            constraints=tuple(
                self.config.constraints.build(limits, eos=self.model.eos, beam=beam, device=device)
            ),
        )
        kept = encoded.frames.lengths.nonzero()[:, 0]
        if len(kept) == count:
            return live
        rows = (kept[:, None] * beam + torch.arange(beam, device=device)).flatten()
        # utterances without frames leave the batch at once: scorers never see them
        moved = live.select(kept.tolist(), rows, self.scorers)
        return replace(moved, scores=live.scores[kept], parts=live.parts[kept])

    def _extend(self, live: Live) -> tuple[Extensions, Live]:
        """(1) and (2) for every live prefix: the best extensions, and the scorers' new states.

        Each of N rows is extended by K tokens: those of `_propose`, with eos as the last one.
        """
        # Full scorers see all V tokens, which is cheap: a network computes them anyway. Their
        # weighted sum selects K tokens per row, and only these go through partial scorers, whose
        # cost grows with the number of tokens.
        total, shares, states = self._score_vocabulary(live)
        tokens, possible = self._propose(total, proposals_only=len(shares) < len(self.scorers))
        shares = [share.gather(1, tokens) for share in shares]  # (N, V) -> (N, K)
        for index in range(len(shares), len(self.scorers)):
            share, states[index] = self.scorers[index].score(live.prefixes, states[index], tokens)
            shares.append(share)
        # unweighted, one column per scorer: hypotheses report their parts
        parts = torch.stack([share.double() for share in shares], 2)  # (N, K, M)
        return self._best(live, tokens, parts, possible), replace(live, states=tuple(states))

    def _score_vocabulary(self, live: Live) -> tuple[Tensor, list[Tensor], list[Any]]:
        """Weighted sum (N, V) and unweighted scores (N, V) of the scorers that score every token,
        and the states of all scorers. Forbidden tokens are -inf in the sum.

        Partial scorers are last. They are left for the proposed tokens, unless the vocabulary is no
        larger than these with blank and eos, or no scorer proposes any.
        """
        shares: list[Tensor] = []
        states = list(live.states)
        total: Tensor | None = None
        for index, scorer in enumerate(self.scorers):
            if (
                scorer.partial
                and self.proposers
                and total.shape[1] > self.candidates + NEVER_PROPOSED
            ):
                break
            share, states[index] = scorer.score(live.prefixes, states[index], None)
            weighted = self.weights[index] * share
            total = weighted if total is None else total + weighted
            shares.append(share)
        # Heads share the vocabulary with CTC, but the blank is never a token of a hypothesis: CTC
        # enters by prefix scores, which sum over all blanks.
        if self.model.blank is not None:
            total[:, self.model.blank] = -INF
        for constraint in live.constraints:
            total = constraint.apply(total, live.prefixes)
        return total, shares, states

    def _propose(self, total: Tensor, proposals_only: bool) -> tuple[Tensor, Tensor]:
        """Tokens (N, K) to extend each prefix by, eos last, and which of them are possible.

        total (N, V) is changed. proposals_only: partial scorers are still missing, so more than
        `beam` tokens are needed; otherwise no others can be among the best `beam` of a prefix.
        """
        ends = total[:, self.model.eos, None].clone()
        # eos has a column of its own: it competes with finished hypotheses, not with other tokens
        total[:, self.model.eos] = -INF
        width = self.candidates if proposals_only else self.config.beam
        best, tokens = total.topk(min(width, total.shape[1] - 1))
        tokens = torch.cat([tokens, torch.full_like(ends, self.model.eos, dtype=tokens.dtype)], 1)
        return tokens, torch.cat([best, ends], 1) != -INF

    def _best(self, live: Live, tokens: Tensor, parts: Tensor, possible: Tensor) -> Extensions:
        """The best 2 * beam extensions of each utterance.

        tokens (N, K), their unweighted parts (N, K, M), and which of them are possible (N, K).
        """
        # (1) and (2): the weighted sum over scorers (N, K), plus the score of the prefix
        # (B, beam, K)
        utterances, beam = live.scores.shape
        scores = (parts * parts.new_tensor(self.weights)).sum(2)
        if bonus := self.config.constraints.length_bonus:
            scores = scores + bonus * (tokens != self.model.eos).double()
        scores = (
            scores.masked_fill(~possible, -INF).view(utterances, beam, -1) + live.scores[:, :, None]
        )
        width = scores.shape[2]
        # the best of all beams of an utterance: index = beam * K + column
        scores, chosen = scores.flatten(1).topk(2 * beam)
        parts = (parts.view(utterances, beam, width, -1) + live.parts[:, :, None]).flatten(1, 2)
        return Extensions(
            scores=scores,
            parts=parts.gather(1, chosen[:, :, None].expand(-1, -1, parts.shape[2])),
            parents=chosen // width,
            tokens=tokens.view(utterances, -1).gather(1, chosen),
        )

    def _finish(self, live: Live, extensions: Extensions, finished: list[list[Hypothesis]]) -> None:
        """Collect finished hypotheses: ends among the best `beam` extensions of an utterance."""
        eos, ends = self.model.eos, []
        for block, row in enumerate(extensions.ranked):
            # topk ranks NaN above every number, so the first shows whether there is any
            if isnan(row[0][0]):
                raise ValueError(
                    f"beam search: a scorer ({', '.join(self.names)}) gave NaN; check the model "
                    "and its input"
                )
            for rank, (score, parent, token) in enumerate(row[: self.config.beam]):
                if token == eos and score > -INF:
                    ends.append((block, rank, block * self.config.beam + parent, score))
        if not ends:
            return
        blocks, ranks, rows, scores = map(list, zip(*ends, strict=True))
        ended = zip(
            blocks,
            live.prefixes[rows, 1:].tolist(),
            scores,
            extensions.parts[blocks, ranks].tolist(),
            strict=True,
        )
        for block, tokens, score, parts in ended:
            hypotheses = finished[live.utterances[block]]
            hypothesis = Hypothesis(
                tokens=tuple(tokens),
                score=self.config.constraints.ranked(score, len(tokens)),
                parts=dict(zip(self.names, parts, strict=True)),
            )
            insort(hypotheses, hypothesis, key=lambda other: -other.score)
            del hypotheses[self.config.beam :]

    def _advance(
        self,
        live: Live,
        extensions: Extensions,
        limits: list[int],
        finished: list[list[Hypothesis]],
    ) -> Live | None:
        """The best `beam` extensions that do not end, without the utterances that are done."""
        beam, device, num_tokens = self.config.beam, live.prefixes.device, live.prefixes.shape[1]
        # of each utterance that goes on: its block, and the ranks of its next prefixes, best first
        going: list[int] = []
        kept: list[list[int]] = []
        for block, utterance in enumerate(live.utterances):
            row = extensions.ranked[block]
            # ends at the back, where they fill a beam that is wider than the others are many
            order = sorted(range(len(row)), key=lambda rank: row[rank][2] == self.model.eos)
            score, _, token = row[order[0]]
            best = -INF if token == self.model.eos else score
            if self._is_open(best, num_tokens, limits[utterance], finished[utterance]):
                going.append(block)
                kept.append(order[:beam])
        if not going:
            return None
        blocks = torch.tensor(going, device=device)[:, None]
        ranks = torch.tensor(kept, device=device)
        # row of the parent prefix, among the N rows of this step
        rows = (blocks * beam + extensions.parents[blocks, ranks]).flatten()
        moved = live.select(going, rows, self.scorers)
        tokens = extensions.tokens[blocks, ranks]
        scores = extensions.scores[blocks, ranks].masked_fill(tokens == self.model.eos, -INF)
        return replace(
            moved,
            prefixes=torch.cat([moved.prefixes, tokens.view(-1, 1)], 1),
            scores=scores,
            parts=extensions.parts[blocks, ranks],
        )

    def _is_open(
        self, best: float, num_tokens: int, limit: int, hypotheses: list[Hypothesis]
    ) -> bool:
        """(3): whether a continuation of the best live prefix can still enter the n-best list."""
        if best == -INF or len(hypotheses) < self.config.nbest:
            return best > -INF
        return (
            self.config.constraints.best_possible(best, num_tokens, limit)
            > hypotheses[self.config.nbest - 1].score
        )

    def _empty(self, score: float) -> Hypothesis:
        return Hypothesis(tokens=(), score=score, parts=dict.fromkeys(self.names, score))
