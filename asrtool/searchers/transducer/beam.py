"""Beam search of a transducer, at most one token a frame: icefall's modified beam search.

With p(k | s, g) of a symbol k at frame s behind the prefix g, and a(g) the log-probability of g,

    a'(g) = log( exp(a(g)) p(blank | s, g) + exp(a(g^)) p(c | s, g^) ),   g = g^ c               (1)
    s(g) = w a(g) + sum over scores of weight * score(g) + length_bonus * |g|                    (2)

so two ways to the same prefix are added up, of which (1) has all that the beam still holds. After
each frame the `beam` prefixes with the highest s(g) stay. Scores are an n-gram language model and
hotwords (fusion.py); with these only the `candidates` most probable tokens may extend a prefix. A
token has the time and the confidence of the frame that emits it on the best path of the prefix.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from asrtool.registry import bounded
from asrtool.searchers import fusion
from asrtool.searchers.base import SEARCHERS, Scorer, SearcherConfig, SearchModel
from asrtool.searchers.fusion import NgramConfig, PrefixScore
from asrtool.searchers.hotwords import HotwordsConfig
from asrtool.searchers.transducer.base import PART, TransducerSearcher, stepped
from asrtool.types import Hypothesis


@dataclass(frozen=True, kw_only=True)
class TransducerBeamConfig(SearcherConfig):
    """Modified beam search of a transducer, at most one token a frame; n-gram model, hotwords."""

    input: str = "transducer"  # head to read
    beam: int = bounded(4, least=1)
    # with ngram or hotwords: how many tokens of a frame, the most probable ones, may extend a
    # prefix
    candidates: int = bounded(50, least=1)
    weights: dict[str, float] = field(default_factory=lambda: {PART: 1.0})  # and ngram, hotwords
    length_bonus: float = 0.0  # added per token
    ngram: NgramConfig | None = None
    hotwords: HotwordsConfig | None = None

    def __post_init__(self) -> None:
        fusion.check_weights(self.weights, ngram=self.ngram, hotwords=self.hotwords)
        if self.weights.get(PART, 0) <= 0 or not set(self.weights) <= {PART, "ngram", "hotwords"}:
            raise ValueError(
                f"weights may name {PART} (above 0), ngram and hotwords; got {self.weights}"
            )


@dataclass(eq=False)
class Prefix:
    """A node of the tree of prefixes of an utterance: equal prefixes of a beam are one node."""

    token: int = -1
    before: Prefix | None = None
    length: int = 0
    states: tuple[Hashable, ...] = ()  # of the scores other than the transducer's
    shares: tuple[float, ...] = ()  # these scores, unweighted
    # token -> for each score, what it adds and its next state
    gains: dict[int, list[tuple[float, Hashable]]] = field(default_factory=dict)
    # weak: a prefix that no beam and no longer prefix holds is forgotten
    longer: WeakValueDictionary[int, Prefix] = field(default_factory=WeakValueDictionary)

    def extended(self, token: int, scores: Sequence[PrefixScore]) -> Prefix:
        found = self.longer.get(token)
        if found is None:
            after = self.after(token, scores)
            shares = (share + gain for share, (gain, _) in zip(self.shares, after, strict=True))
            states = tuple(state for _, state in after)
            found = Prefix(token, self, self.length + 1, states, tuple(shares))
            self.longer[token] = found
        return found

    def after(self, token: int, scores: Sequence[PrefixScore]) -> list[tuple[float, Hashable]]:
        """What each score adds for one more token, and its state then."""
        if token not in self.gains:
            pairs = zip(scores, self.states, strict=True)
            self.gains[token] = [score.extend(state, token) for score, state in pairs]
        return self.gains[token]

    def tokens(self) -> tuple[int, ...]:
        found, prefix = [], self
        while prefix.before is not None:
            found.append(prefix.token)
            prefix = prefix.before
        return tuple(reversed(found))


# a token on the best path: link of the token before or None, position, log-probability
Link = tuple[Any, int, float]


@dataclass
class BeamState:
    """The beams of a batch: B utterances with K places each; a place without a prefix has -inf."""

    total: Tensor  # (B, K) float64, a(g) of (1)
    best: Tensor  # (B, K) float64: of the best path alone
    said: Any  # of B * K rows
    prefixes: list[list[Prefix | None]]
    links: list[list[Link | None]]

    def take(self, rows: Tensor) -> BeamState:
        chosen, beam = rows.tolist(), self.total.shape[1]
        device = self.total.device
        places = rows.to(device)[:, None] * beam + torch.arange(beam, device=device)
        return BeamState(
            self.total[rows.to(device)],
            self.best[rows.to(device)],
            self.said.take(places.flatten()),
            [self.prefixes[row] for row in chosen],
            [self.links[row] for row in chosen],
        )

    def join(self, other: BeamState) -> BeamState:
        return BeamState(
            torch.cat([self.total, other.total]),
            torch.cat([self.best, other.best]),
            self.said.join(other.said),
            [*self.prefixes, *other.prefixes],
            [*self.links, *other.links],
        )


class Following(NamedTuple):
    """All that may stand in the beams behind a frame: first the K prefixes as they are, then each
    of them with each of C tokens. All are (B, K + K * C).
    """

    total: Tensor
    best: Tensor
    rank: Tensor  # (2)
    source: Tensor  # place of the prefix that stays or grows
    token: Tensor  # -1: it stays
    log_prob: Tensor  # of the token that the best path emits in this frame
    moved: Tensor  # of one that stays: its best path is that of the prefix without the last token

    def take(self, order: Tensor) -> Following:
        """(B, N) of each utterance."""
        return Following(*(part.gather(1, order) for part in self))


@SEARCHERS.register("transducer_beam", TransducerBeamConfig)
class TransducerBeam(TransducerSearcher):
    """Up to `beam` hypotheses per utterance."""

    def __init__(
        self,
        config: TransducerBeamConfig,
        *,
        model: SearchModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        super().__init__(config, model=model)
        scores = fusion.load(config.ngram, config.hotwords, tokens, model.blank, model.eos)
        self.names, self.scores = tuple(scores), tuple(scores.values())
        self.weights = tuple(config.weights[name] for name in scores)

    @torch.inference_mode()
    def start(self, batch: int) -> BeamState:
        beam = self.config.beam
        said = self.head.start(batch * beam)
        total = torch.full((batch, beam), -inf, dtype=torch.float64, device=said.output.device)
        total[:, 0] = 0.0
        states = tuple(score.start() for score in self.scores)
        rest = [None] * (beam - 1)
        prefixes, links = [], []
        for _ in range(batch):
            prefixes.append([Prefix(states=states, shares=(0.0,) * len(states)), *rest])
            links.append([None] * beam)
        return BeamState(total, total.clone(), said, prefixes, links)

    def _frame(
        self, state: BeamState, frames: Tensor, there: Sequence[bool], positions: Sequence[int]
    ) -> Tensor:
        beam, device = self.config.beam, frames.device
        log_probs = self._symbols(frames.repeat_interleave(beam, 0), state.said)
        log_probs = log_probs.unflatten(0, (-1, beam))  # (B, K, V)
        spoken = log_probs[:, 0].argmax(1).cpu() != self.model.blank
        parents = self._parents(state.prefixes)
        following = self._following(state, log_probs, parents)
        order = following.rank.sort(dim=1, descending=True, stable=True).indices[:, :beam]
        chosen = Following(*(part.gather(1, order) for part in following))
        has = torch.tensor(there, device=device)[:, None]
        state.total = torch.where(has, chosen.total, state.total)
        state.best = torch.where(has, chosen.best, state.best)
        # one copy from the device; float64 holds whole numbers too
        numbers = torch.stack([part.double() for part in chosen], 2).tolist()
        sources, rows, tokens = list(range(len(there) * beam)), [], []
        for index in [index for index, one in enumerate(there) if one]:
            moves = self._move(state, index, numbers[index], parents[index], positions[index])
            for row, (source, token) in enumerate(moves, index * beam):
                sources[row] = index * beam + source
                if token >= 0:
                    rows.append(row)
                    tokens.append(token)
        if sources != list(range(len(sources))):
            state.said = state.said.take(torch.tensor(sources, device=device))
        if rows:
            state.said = stepped(self.head, state.said, rows, tokens)
        return spoken

    @staticmethod
    def _parents(beams: Sequence[Sequence[Prefix | None]]) -> list[list[int]]:
        """The place of each prefix without its last token; -1: that is not in the beam."""
        found = []
        for prefixes in beams:
            places = {id(prefix): place for place, prefix in enumerate(prefixes) if prefix}
            found.append([places.get(id(one.before), -1) if one else -1 for one in prefixes])
        return found

    def _following(
        self, state: BeamState, log_probs: Tensor, parents: Sequence[Sequence[int]]
    ) -> Following:
        """log_probs (B, K, V), which this changes."""
        blank, size, device = self.model.blank, log_probs.shape[2], log_probs.device
        silent = log_probs[..., blank].clone()
        log_probs[..., blank] = -inf
        # where each prefix g = g^ c comes from, in a row of K * V: c behind g^; where g^ is not in
        # the beam, a blank, which is impossible by now
        came = [
            [
                blank if place < 0 else place * size + prefix.token
                for place, prefix in zip(*row, strict=True)
            ]
            for row in zip(parents, state.prefixes, strict=True)
        ]
        index = torch.tensor(came, device=device)
        into = log_probs.flatten(1).gather(1, index)
        stays = torch.logaddexp(  # (1)
            state.total + silent, state.total.gather(1, index // size) + into
        )
        one, other = state.best + silent, state.best.gather(1, index // size) + into
        log_probs.flatten(1).scatter_(1, index, -inf)  # these ways are in `stays`
        beam = log_probs.shape[1]
        width = self.config.candidates if self.scores else beam
        values, tokens = log_probs.topk(min(width, size), dim=2)  # (B, K, C)
        grown = (state.total[:, :, None] + values).flatten(1)
        before = torch.tensor([[self._extra(p) for p in row] for row in state.prefixes])
        more = before.double()[:, :, None] + self._more(state.prefixes, tokens)
        extra = torch.cat([before.double(), more.flatten(1)], 1).to(device)
        place = torch.arange(beam, device=device)
        total = torch.cat([stays, grown], 1)
        return Following(
            total=total,
            best=torch.cat(
                [torch.maximum(one, other), (state.best[:, :, None] + values).flatten(1)], 1
            ),
            rank=self.config.weights[PART] * total + extra,
            source=torch.cat([place, place.repeat_interleave(tokens.shape[2])]).expand_as(total),
            token=torch.cat([torch.full_like(index, -1), tokens.flatten(1)], 1),
            log_prob=torch.cat([into, values.flatten(1)], 1),
            moved=torch.cat([other > one, torch.zeros_like(grown, dtype=torch.bool)], 1),
        )

    def _extra(self, prefix: Prefix | None) -> float:
        """(2) without its first term."""
        if prefix is None:
            return 0.0
        return self._weighted(prefix.shares) + self.config.length_bonus * prefix.length

    def _weighted(self, shares: Sequence[float]) -> float:
        return sum(w * share for w, share in zip(self.weights, shares, strict=True))

    def _more(self, beams: Sequence[Sequence[Prefix | None]], tokens: Tensor) -> Tensor:
        """What tokens (B, K, C) would add to (2) without its first term: float64, of that shape."""
        bonus = self.config.length_bonus
        if not self.scores:
            return torch.full(tokens.shape, bonus, dtype=torch.float64)
        gains = [
            [
                [
                    bonus + self._weighted([gain for gain, _ in one.after(token, self.scores)])
                    if one
                    else 0.0
                    for token in row
                ]
                for one, row in zip(prefixes, rows, strict=True)
            ]
            for prefixes, rows in zip(beams, tokens.tolist(), strict=True)
        ]
        return torch.tensor(gains, dtype=torch.float64)

    def _move(
        self,
        state: BeamState,
        index: int,
        chosen: Sequence[Sequence[float]],
        parents: Sequence[int],
        position: int,
    ) -> list[tuple[int, int]]:
        """Change prefixes and links of one utterance; chosen: of each place, the numbers of its
        `Following`. For each, the place that it comes from and the token that it grew by, or -1.
        """
        prefixes, links = state.prefixes[index], state.links[index]
        after: list[tuple[Prefix | None, Link | None]] = []
        moves = []
        for total, _, _, source, token, log_prob, moved in chosen:
            source, token = int(source), int(token)
            if self._check(total) == -inf:
                token = -1
                after.append((None, None))
            elif token >= 0:
                link = links[source], position, log_prob
                after.append((prefixes[source].extended(token, self.scores), link))
            elif moved:
                after.append((prefixes[source], (links[parents[source]], position, log_prob)))
            else:
                after.append((prefixes[source], links[source]))
            moves.append((source, token))
        state.prefixes[index] = [prefix for prefix, _ in after]
        state.links[index] = [link for _, link in after]
        return moves

    def partial(self, state: BeamState) -> list[Hypothesis]:
        return [nbest[0] for nbest in self._hypotheses(state, final=False)]

    def finish(self, state: BeamState) -> list[list[Hypothesis]]:
        return self._hypotheses(state, final=True)

    def _hypotheses(self, state: BeamState, final: bool) -> list[list[Hypothesis]]:
        rows = zip(state.prefixes, state.total.tolist(), state.links, strict=True)
        nbests = [
            [self._hypothesis(*place, final) for place in zip(*row, strict=True) if place[0]]
            for row in rows
        ]
        return [sorted(nbest, key=lambda hypothesis: -hypothesis.score) for nbest in nbests]

    def _hypothesis(
        self, prefix: Prefix, total: float, link: Link | None, final: bool
    ) -> Hypothesis:
        """final: the scores include the end of the text."""
        shares = prefix.shares
        if final:
            pairs = zip(self.scores, prefix.states, prefix.shares, strict=True)
            shares = tuple(share + score.end(state) for score, state, share in pairs)
        positions, log_probs = [], []
        while link is not None:
            link, position, log_prob = link
            positions.append(position)
            log_probs.append(log_prob)
        score = self.config.weights[PART] * total + self._weighted(shares)
        return Hypothesis(
            tokens=prefix.tokens(),
            score=score + self.config.length_bonus * prefix.length,
            parts={PART: total, **dict(zip(self.names, shares, strict=True))},
            positions=tuple(reversed(positions)),
            confidences=tuple(exp(value) for value in reversed(log_probs)),
        )
