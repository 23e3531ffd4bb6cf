"""CTC prefix beam search: the most probable texts, summed over their paths; batched, streaming.

Graves et al., ICML 2006, and Hannun et al., arXiv 1408.2873, with sums over all paths whose
prefixes stay in the beam. For a prefix g, with p_t(c) the posterior of token c in frame t:

    n_t(g), b_t(g)  probability that frames 1..t read g and end in its last token / in blank
    b_0(empty)    = 1
    phi_t(g, c)   = b_t(g)                where c repeats the last token of g        (1)
                  = n_t(g) + b_t(g)       otherwise
    n_t(g c)      = (n_{t-1}(g c) + phi_{t-1}(g, c)) p_t(c)                          (2)
    b_t(g)        = (n_{t-1}(g) + b_{t-1}(g)) p_t(blank)                             (3)

After each frame, the `beam` prefixes with the highest scores stay; equals keep their order:

    s(g) = w_ctc log(n_t(g) + b_t(g)) + sum over scores of w * score(g)
           + length_bonus * |g| + word_score * words(g)                                          (4)

A word counts when it is complete: at a space, or at the end. With a lexicon, no other words may be
completed (lexicon.py). Scores are an n-gram language model and hotwords (fusion.py). Without any of
these, all tokens of a frame are candidates. With them, only the `candidates` most probable tokens
may extend a prefix: the only approximation besides the beam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import exp, inf
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from asrtool import compiled
from asrtool.registry import bounded
from asrtool.searchers import fusion, lexicon
from asrtool.searchers.base import (
    SEARCHERS,
    FrameSearcher,
    Scorer,
    SearcherConfig,
    SearchModel,
    require_head,
)
from asrtool.searchers.ctc.compiled_beam import CompiledPrefixBeam
from asrtool.searchers.ctc.plain_beam import PlainPrefixBeam
from asrtool.searchers.ctc.settings import ScoredPrefix, Settings
from asrtool.searchers.fusion import NgramConfig, PrefixScore
from asrtool.searchers.hotwords import HotwordsConfig
from asrtool.searchers.lexicon import Lexicon
from asrtool.types import Hypothesis, Padded

PrefixBeam = CompiledPrefixBeam | PlainPrefixBeam
T = TypeVar("T")


def ctc_prefix_beam_search(
    log_probs: Tensor,
    lengths: Tensor,
    beam: int,
    blank: int = 0,
    *,
    nbest: int | None = None,
    excluded: Sequence[int] = (),
    candidates: int | None = None,
    scores: Mapping[str, PrefixScore] | None = None,
    weights: Mapping[str, float] | None = None,
    length_bonus: float = 0.0,
    word_score: float = 0.0,
    words: Lexicon | None = None,
    threads: int | None = None,
    plain: bool = False,
) -> list[list[Hypothesis]]:
    """log_probs (B, T, V), lengths (B,) -> up to `nbest` hypotheses of each utterance, best first.

    The score of a hypothesis is (4); its parts are unweighted. Positions are the frames in which
    its tokens are most probable on the best path, and confidences the posteriors there.

    log_probs: natural logarithms. nbest: None for `beam`. excluded: tokens that no hypothesis may
    contain. candidates: how many of the most probable tokens of a frame may extend a prefix; None:
    all. scores, weights: `ngram` and `hotwords`, built by `asrtool.searchers.fusion`. words: the
    lexicon that word_score counts by, and that may limit words (lexicon.py). threads: number of
    utterances in parallel; None: as many as torch's threads. plain: without numba. Raises
    `ValueError` for NaN and for shapes that do not fit.
    """
    if log_probs.dim() != 3 or lengths.shape != log_probs.shape[:1]:
        shapes = f"{tuple(log_probs.shape)} and {tuple(lengths.shape)}"
        raise ValueError(
            f"ctc prefix beam: expected log_probs (B, T, V) and lengths (B,), got {shapes}"
        )
    settings = Settings.make(
        log_probs.shape[2],
        beam=beam,
        blank=blank,
        excluded=tuple(excluded),
        candidates=candidates,
        scores=scores,
        weights=weights,
        bonus=length_bonus,
        word_score=word_score,
        lexicon=words,
    )

    def search(rows: np.ndarray) -> list[Hypothesis]:
        beam_search = start(settings, plain)
        beam_search.advance(rows)
        return hypotheses(beam_search, final=True, most=nbest)

    return side_by_side(search, split(Padded(log_probs, lengths)), threads=threads)


def start(settings: Settings, plain: bool = False) -> PrefixBeam:
    """The search of one utterance before its first frame, compiled if possible."""
    if plain or settings.tables is None or not compiled.available():
        return PlainPrefixBeam(settings)
    return CompiledPrefixBeam(settings)


def split(log_probs: Padded) -> list[np.ndarray]:
    """The frames (T_i, V) of each utterance, float32 or float64, on the CPU."""
    data = log_probs.data.detach()
    data = data if data.dtype in (torch.float32, torch.float64) else data.float()
    lengths = log_probs.lengths.tolist()
    if max(lengths, default=0) > data.shape[1] or min(lengths, default=0) < 0:
        raise ValueError(f"ctc prefix beam: lengths {lengths} do not fit {data.shape[1]} frames")
    return [
        row[:length] for row, length in zip(data.cpu().contiguous().numpy(), lengths, strict=True)
    ]


def side_by_side(
    function: Callable[..., T], *items: Sequence, threads: int | None = None
) -> list[T]:
    """`map` in several threads; None: as many as torch's. The compiled search releases the GIL."""
    workers = min(threads or torch.get_num_threads(), len(items[0]))
    if workers < 2:
        return [function(*row) for row in zip(*items, strict=True)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, *items))


def hypotheses(
    search: PrefixBeam, final: bool, positions: Sequence[int] | None = None, most: int | None = None
) -> list[Hypothesis]:
    """At most `most` hypotheses, best first; final: scores include the end of the text.

    positions: those of the frames; None: 0, 1, 2, ...
    """
    settings = search.settings
    nbest = [_hypothesis(prefix, settings, positions) for prefix in search.results(final, most)]
    if not nbest:
        return [
            Hypothesis(tokens=(), score=-inf, parts=dict.fromkeys(("ctc", *settings.scores), -inf))
        ]
    return sorted(nbest, key=lambda hypothesis: -hypothesis.score)


def _hypothesis(
    prefix: ScoredPrefix, settings: Settings, positions: Sequence[int] | None
) -> Hypothesis:
    frames = prefix.frames if positions is None else [positions[frame] for frame in prefix.frames]
    return Hypothesis(
        tokens=prefix.tokens,
        score=settings.score(prefix),
        parts=prefix.parts,
        positions=tuple(frames),
        confidences=tuple(exp(value) for value in prefix.log_probs),
    )


@dataclass(frozen=True, kw_only=True)
class CtcPrefixBeamConfig(SearcherConfig):
    """Prefix beam search over a CTC head, optionally with an n-gram model and hotwords."""

    input: str = "ctc"  # head to read
    beam: int = bounded(10, least=1)
    # with ngram, hotwords or a lexicon: how many tokens of a frame, the most probable ones, may
    # extend a prefix
    candidates: int = bounded(50, least=1)
    weights: dict[str, float] = field(default_factory=lambda: {"ctc": 1.0})  # ctc, ngram, hotwords
    length_bonus: float = 0.0  # added per token
    word_score: float = 0.0  # added per word
    # the only words that may be completed: a file with one per line, or `ngram` for those of the
    # n-gram model; null: any word
    lexicon: str | None = None
    ngram: NgramConfig | None = None
    hotwords: HotwordsConfig | None = None

    def __post_init__(self) -> None:
        fusion.check_weights(self.weights, ngram=self.ngram, hotwords=self.hotwords)
        if self.weights.get("ctc", 0) <= 0 or not set(self.weights) <= {"ctc", "ngram", "hotwords"}:
            raise ValueError(
                f"weights may name ctc (above 0), ngram and hotwords; got {self.weights}"
            )
        if self.lexicon == lexicon.OF_NGRAM and (self.ngram is None or self.ngram.unit != "word"):
            raise ValueError("lexicon: ngram needs the n-gram model, with unit: word")
        if self.beam < 1 or self.candidates < 1:
            raise ValueError(
                f"beam ({self.beam}) and candidates ({self.candidates}) must be at least 1"
            )


@dataclass
class PrefixBeamState:
    """The search of each utterance of a batch, and the positions of its frames so far. A search is
    None before the first frames, whose size is V.
    """

    searches: list[PrefixBeam | None]
    positions: list[list[int]]

    def take(self, rows: Tensor) -> PrefixBeamState:
        chosen = rows.tolist()
        return PrefixBeamState(
            [self.searches[row] for row in chosen], [self.positions[row] for row in chosen]
        )

    def join(self, other: PrefixBeamState) -> PrefixBeamState:
        return PrefixBeamState(
            [*self.searches, *other.searches], [*self.positions, *other.positions]
        )


@SEARCHERS.register("ctc_prefix_beam", CtcPrefixBeamConfig)
class CtcPrefixBeam(FrameSearcher):
    """Prefix beam search over the head `input`. No hypothesis contains sos/eos."""

    def __init__(
        self,
        config: CtcPrefixBeamConfig,
        *,
        model: SearchModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        require_head(model, config.input, "ctc_prefix_beam")
        self.config = config
        self.model = model
        self.scores = fusion.load(config.ngram, config.hotwords, tokens, model.blank, model.eos)
        self.lexicon = self._lexicon(tokens)
        self.settings: Settings | None = None  # known with the first frames, whose size is V

    def _lexicon(self, tokens: Sequence[str] | None) -> Lexicon | None:
        config = self.config
        if not config.word_score and config.lexicon is None:
            return None
        if tokens is None:
            raise ValueError(
                "word_score and lexicon need the names of the tokens: pass `tokens` to the searcher"
            )
        model = self.scores["ngram"].model if "ngram" in self.scores else None
        texts = fusion.spell(tokens, self.model.blank, self.model.eos)
        return lexicon.load(config.lexicon, texts, model)

    def start(self, batch: int) -> PrefixBeamState:
        return PrefixBeamState([None] * batch, [[] for _ in range(batch)])

    def advance(
        self, state: PrefixBeamState, log_probs: Padded, positions: Tensor
    ) -> PrefixBeamState:
        settings = self._settings(log_probs.data.shape[2])
        state.searches = [search or start(settings) for search in state.searches]
        try:
            side_by_side(
                lambda search, rows: search.advance(rows), state.searches, split(log_probs)
            )
        except ValueError as error:
            raise ValueError(
                f"ctc_prefix_beam: the head '{self.config.input}' gives {error}; check the "
                "model and its input"
            ) from None
        for seen, row, length in zip(
            state.positions, positions.tolist(), log_probs.lengths.tolist(), strict=True
        ):
            seen.extend(row[:length])
        return state

    def _settings(self, num_tokens: int) -> Settings:
        if self.settings is None or len(self.settings.skip) != num_tokens:
            self.settings = Settings.make(
                num_tokens,
                beam=self.config.beam,
                blank=self.model.blank,
                excluded=(self.model.eos,),
                candidates=self.config.candidates if self.scores or self.lexicon else None,
                scores=self.scores,
                weights=self.config.weights,
                bonus=self.config.length_bonus,
                word_score=self.config.word_score,
                lexicon=self.lexicon,
            )
        return self.settings

    def partial(self, state: PrefixBeamState) -> list[Hypothesis]:
        return [nbest[0] for nbest in self._hypotheses(state, final=False, most=1)]

    def finish(self, state: PrefixBeamState) -> list[list[Hypothesis]]:
        return self._hypotheses(state, final=True)

    def _hypotheses(
        self, state: PrefixBeamState, final: bool, most: int | None = None
    ) -> list[list[Hypothesis]]:
        return [
            self._nothing(final) if search is None else hypotheses(search, final, positions, most)
            for search, positions in zip(state.searches, state.positions, strict=True)
        ]

    def _nothing(self, final: bool) -> list[Hypothesis]:
        """The n-best list of an utterance before its first frame: the empty hypothesis."""
        parts = {
            "ctc": 0.0,
            **{name: score.end(score.start()) * final for name, score in self.scores.items()},
        }
        score = sum(self.config.weights[name] * value for name, value in parts.items())
        return [Hypothesis(tokens=(), score=score, parts=parts, positions=(), confidences=())]
