"""A CTC head drafts, the language model of a `speech_llm` verifies (Saon et al., arXiv 2603.11243).

    draft      d_1 ... d_U, the best path of a CTC head, in tokens of the language model
    entropies  H_t = -sum_v p_t(v) log p_t(v) of the head's frames, in nats

    1. If max_t H_t <= `entropy`, the draft is the result.
    2. Else one pass over prompt, speech and draft gives p(. | d_1 ... d_{u-1}) for u = 1 ... U + 1.
       From left to right, d_u is accepted if it is the best token, or p(d_u | ...) >= `likelihood`.
       d_{U+1}, the end of the text, is a token like any other.
    3. Where a token is rejected, the best one takes its place. The search goes on behind it, token
       by token, or with what is left of the draft (`redraft`).

Without `entropy` and `likelihood` it is strict: the tokens are those of `llm_beam` with beam 1.
Both compute the same log-probabilities in passes of different size, so that only ties within their
rounding can differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from asrtool.registry import bounded
from asrtool.searchers import drafts
from asrtool.searchers.base import SEARCHERS, Scorer, Searcher, SearcherConfig, SearchModel
from asrtool.searchers.drafts import Draft, EncoderCtcConfig
from asrtool.searchers.llm_beam import LlmConstraintsConfig
from asrtool.types import Drafted, EncoderOutput, Hypothesis, Padded

NOTHING = Draft((), 0.0, 0.0)


class Verifier(Protocol):
    """A scorer of the whole vocabulary that can read several tokens in one pass."""

    def prepare(self, encoded: EncoderOutput) -> Any:
        """The state of B empty prefixes."""

    def verify(
        self, state: Any, newest: Tensor | None, draft: Padded
    ) -> tuple[Iterator[Tensor], Any]:
        """newest (N,): the last token of each prefix, None while all are empty; draft (N, U): what
        may follow -> for each row log-probabilities (U_i + 1, V) of the token after 0 ... U_i
        tokens of the draft, and the state of newest and draft, padded to U.
        """

    def cut(self, state: Any, rejected: Tensor) -> Any:
        """The state without the last `rejected` (N,) positions of each row."""

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of rows (N',)."""


@dataclass(frozen=True, kw_only=True)
class LlmDraftConfig(SearcherConfig):
    """Greedy search with the language model of a `speech_llm`, which verifies a draft of CTC."""

    # head that drafts, over the tokens of the language model; null: ctc, unless encoder_ctc is set
    input: str | None = None
    # the head that the encoder was trained with drafts instead
    encoder_ctc: EncoderCtcConfig | None = None
    scorer: str = "llm"  # head that verifies
    # nats: a draft is not verified if no frame has a higher entropy; null: every draft is
    entropy: float | None = bounded(None, least=0)
    # probability that suffices for a token of the draft; null: only the best token is accepted
    likelihood: float | None = bounded(None, least=0, most=1)
    redraft: bool = False  # after a rejected token, go on with what is left of the draft
    constraints: LlmConstraintsConfig = LlmConstraintsConfig()

    def __post_init__(self) -> None:
        if self.input is not None and self.encoder_ctc is not None:
            raise ValueError("input and encoder_ctc are two sources of the draft; set one of them")
        for name in ("length_bonus", "length_penalty"):
            if getattr(self.constraints, name):
                raise ValueError(
                    f"constraints.{name}: {getattr(self.constraints, name):g} ranks hypotheses, "
                    "but a greedy search has only one; leave it out, or search by llm_beam"
                )

    @property
    def weights(self) -> Mapping[str, float]:
        return {self.scorer: 1.0}


@SEARCHERS.register("llm_draft", LlmDraftConfig)
class LlmDraft(Searcher):
    """One hypothesis per utterance. Its score is the log-probability of the language model, without
    the end if it reached the limit on tokens; of a draft that was not verified, that of the CTC
    path. `drafted` says how much of the draft was accepted, and in how many passes.
    """

    def __init__(
        self,
        config: LlmDraftConfig,
        *,
        model: SearchModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.drafter = drafts.drafter(
            model, config.input, config.encoder_ctc, config.entropy is not None
        )
        known = {**model.scorers(), **(scorers or {})}
        able = {name: scorer for name, scorer in known.items() if hasattr(scorer, "verify")}
        if config.scorer not in able:
            has = ", ".join(sorted(able)) or "none"
            raise LookupError(
                f"llm_draft: the model has no head '{config.scorer}' that verifies drafts (it has: "
                f"{has})"
            )
        self.verifier: Verifier = able[config.scorer]

    @torch.inference_mode()
    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        limits = self.config.constraints.limits(encoded, self.model.frame_shift)
        spoken = encoded.frames.lengths.tolist()
        found = [self._unverified(NOTHING, self.config.scorer) for _ in spoken]
        rows = []
        for utterance, draft in enumerate(self.drafter.draft(encoded)):
            limit = limits[utterance]
            if spoken[utterance] and self._is_certain(draft, limit):
                found[utterance] = self._unverified(draft, self.drafter.name)
            elif spoken[utterance]:
                rows.append(Row(utterance, limit, draft.tokens, self.config.redraft))
        for row in self._verified(encoded, rows):
            found[row.utterance] = self._result(row)
        return [[hypothesis] for hypothesis in found]

    def _is_certain(self, draft: Draft, limit: int) -> bool:
        """Step 1, for a draft that satisfies the constraints."""
        if self.config.entropy is None or draft.entropy > self.config.entropy:
            return False
        return self.config.constraints.allow(draft.tokens, limit)

    def _unverified(self, draft: Draft, part: str) -> Hypothesis:
        size = len(draft.tokens)
        return Hypothesis(
            tokens=draft.tokens,
            score=draft.score,
            parts={part: draft.score},
            drafted=Drafted(tokens=size, accepted=size, passes=0),
        )

    def _result(self, row: Row) -> Hypothesis:
        # as in beam.py: if the constraints allow no hypothesis, it is empty and impossible
        tokens = () if row.score == -inf else tuple(row.tokens)
        counts = Drafted(tokens=len(row.draft), accepted=row.accepted, passes=row.passes)
        return Hypothesis(
            tokens=tokens, score=row.score, parts={self.config.scorer: row.score}, drafted=counts
        )

    # -- steps 2 and 3 -------------------------------------------------------

    def _verified(self, encoded: EncoderOutput, rows: list[Row]) -> list[Row]:
        """The rows with their texts, in passes over all that are not done."""
        device = encoded.frames.data.device
        live, newest = list(rows), None
        if live:
            chosen = torch.tensor([row.utterance for row in live], device=device)
            state = self.verifier.select(self.verifier.prepare(encoded), chosen)
        while live:
            draft = Padded.stack([torch.tensor(row.tail, dtype=torch.int64) for row in live])
            draft = draft.to(device)
            outputs, state = self.verifier.verify(state, newest, draft)
            rejected = []
            for row, log_probs in zip(live, outputs, strict=True):
                before = row.accepted
                self._read(row, self._opinion(row, log_probs))
                rejected.append(draft.data.shape[1] - (row.accepted - before))
            going = [index for index, row in enumerate(live) if not row.done]
            live = [live[index] for index in going]
            if live:
                chosen = torch.tensor(going, device=device)
                cut = torch.tensor([rejected[index] for index in going], device=device)
                state = self.verifier.cut(self.verifier.select(state, chosen), cut)
                newest = torch.tensor([row.tokens[-1] for row in live], device=device)
        return rows

    def _opinion(self, row: Row, log_probs: Tensor) -> Opinion:
        """log_probs (U + 1, V) of the tail of a row and its end; changed."""
        tail, eos = row.tail, self.model.eos
        if log_probs.isnan().any():
            raise ValueError(
                f"llm_draft: the scorer '{self.config.scorer}' gave NaN; check the model and its "
                "input"
            )
        if self.model.blank is not None:
            log_probs[:, self.model.blank] = -inf
        self._constrain(row, log_probs)
        wanted = torch.tensor([*tail, eos], device=log_probs.device)
        drafted, ends = log_probs.gather(1, wanted[:, None])[:, 0], log_probs[:, eos].clone()
        log_probs[:, eos] = -inf
        best, tokens = log_probs.topk(1)  # of equal ones that which beam.py takes
        # one transfer from the device; ids are exact in float64
        values = torch.stack([part.double() for part in (tokens[:, 0], best[:, 0], ends, drafted)])
        tokens, best, ends, drafted = values.tolist()
        return Opinion([int(token) for token in tokens], best, ends, drafted)

    def _constrain(self, row: Row, log_probs: Tensor) -> None:
        """Set what may not follow the prefixes of a row's tail to -inf."""
        device, eos = log_probs.device, self.model.eos
        constraints = self.config.constraints.build([row.limit], eos=eos, beam=1, device=device)
        text = torch.tensor([[eos, *row.tokens, *row.tail]], device=device)
        for place in range(len(log_probs)):
            scores = log_probs[place, None]
            for constraint in constraints:
                scores = constraint.apply(scores, text[:, : 1 + len(row.tokens) + place])
            log_probs[place] = scores[0]

    def _read(self, row: Row, opinion: Opinion) -> None:
        """Accept the tail of a row up to the first token that is rejected, and put the best one
        there.
        """
        eos, row.passes = self.model.eos, row.passes + 1
        # an end is drafted only where the draft ends
        drafted = [*row.tail, eos if row.ends_with_tail else None]
        for place, proposed in enumerate(drafted):
            ended = opinion.ends[place] > opinion.best[place]
            token = eos if ended else opinion.tokens[place]
            score = opinion.ends[place] if ended else opinion.best[place]
            accepted = proposed == token
            if proposed is not None and self._suffices(opinion.drafted[place]):
                token, score, accepted = proposed, opinion.drafted[place], True
            row.score += score
            if score == -inf or token == eos:
                row.done = True
                return
            row.append(token, accepted)
            if row.done or not accepted:
                return

    def _suffices(self, log_prob: float) -> bool:
        """Whether a token of the draft is accepted although another one is better."""
        enough = self.config.likelihood
        return enough is not None and log_prob > -inf and exp(log_prob) >= enough


class Opinion(NamedTuple):
    """What the language model says of each token of a draft and its end: lists of U + 1."""

    tokens: list[int]  # the best token, ends apart
    best: list[float]  # its log-probability
    ends: list[float]  # that of the end of the text
    drafted: list[float]  # that of the draft's token, at last of the end


@dataclass
class Row:
    """One utterance while it is searched."""

    utterance: int
    limit: int  # on tokens
    draft: tuple[int, ...]
    redraft: bool
    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    place: int | None = 0  # of the draft's token that comes next; None: the draft was left
    accepted: int = 0  # tokens of the draft
    passes: int = 0
    done: bool = False
    # entry j: the edit distance between the tokens and the first j of the draft
    distances: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.distances = list(range(len(self.draft) + 1))

    @property
    def tail(self) -> tuple[int, ...]:
        """What is verified next: the rest of the draft, within the limit."""
        if self.place is None:
            return ()
        return self.draft[self.place : self.place + self.limit - len(self.tokens)]

    @property
    def ends_with_tail(self) -> bool:
        return self.place is not None and self.place + len(self.tail) == len(self.draft)

    def append(self, token: int, accepted: bool) -> None:
        """Extend the text by a token; it is the draft's next one if it was accepted."""
        self.tokens.append(token)
        self.done = len(self.tokens) == self.limit
        if self.redraft:
            self.distances = extended(self.distances, self.draft, token)
        if accepted:
            self.accepted, self.place = self.accepted + 1, self.place + 1
        elif self.redraft:
            # Where the draft fits the text best. Of equal places the last: a replaced token is
            # passed over, and after a word that the draft has too much, so is that word.
            fewest = min(self.distances)
            self.place = max(j for j, value in enumerate(self.distances) if value == fewest)
        else:
            self.place = None


def extended(distances: Sequence[int], draft: Sequence[int], token: int) -> list[int]:
    """Edit distances (U + 1) of a text to the prefixes of a draft -> those of text + token."""
    row = [distances[0] + 1]
    for j, other in enumerate(draft):
        row.append(min(distances[j] + (other != token), distances[j + 1] + 1, row[j] + 1))
    return row
