"""The language model of a `speech_llm` as a `Scorer` for label-synchronous search, with a cache of
keys and values.

    rows of an utterance:  [0 0 before speech after | y_1 ... y_u]

Padding is on the left, so that all rows end together. Prompt and speech are computed once per
utterance, and their keys and values are then copied to its beams. Each step feeds one token.

`verify` feeds several tokens of a draft at once, the first time together with prompt and speech.
`cut` then removes those that were rejected, a different number in each row, and moves the rows to
the right again:

    before  [0 p s s | y_1 y_2 r_3]        [p s s s | y_1 r_2 r_3]
    after     [0 p s s | y_1 y_2]          [0 p s s s | y_1]  ->  both end in their newest token
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from asrtool.models.llm import Caller
from asrtool.types import EncoderOutput, Padded

# layers whose keys and values can be cut to those of a prefix
CUTTABLE = frozenset({"full_attention", "sliding_attention"})


class Reader(Protocol):
    """The part of a model that the scorer uses."""

    llm: nn.Module
    caller: Caller
    vocab_size: int
    eos: int

    def read(self, speech: Padded, targets: Padded | None = None) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class LlmState:
    """State of N prefixes. The cache of `transformers` changes in place, so `score` and `select`
    invalidate the state that they are given.
    """

    mask: Tensor  # (N, K): valid positions so far
    cache: object | None  # None: no cache; `embeddings` are read again in every step
    log_probs: Tensor | None  # (N, V) of the first token; None from the first step on
    # (N, K, D) of the prompt and the speech: without a cache, and before the first `verify`
    embeddings: Tensor | None = None


class LlmScorer:
    """log p(y_u | y_<u, speech, prompt) over the whole vocabulary.

    caching: False computes the whole prefix anew in every step, as a reference for the cache.
    """

    partial = False

    def __init__(self, model: Reader, caching: bool = True) -> None:
        self.model = model
        self.caching = caching

    def start(self, encoded: EncoderOutput, beam: int) -> LlmState:
        embeddings, mask = self.model.read(encoded.frames)
        rows = torch.arange(len(mask), device=mask.device).repeat_interleave(beam)
        if not self.caching:
            return LlmState(mask[rows], None, None, embeddings[rows])
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.llm.config)
        log_probs = self._log_probs(embeddings, mask, cache)
        if beam > 1:
            cache.reorder_cache(rows)
        return LlmState(mask[rows], cache, log_probs[rows])

    def score(
        self, prefixes: Tensor, state: LlmState, candidates: Tensor | None
    ) -> tuple[Tensor, LlmState]:
        """prefixes (N, U) with sos -> log-probabilities (N, V) or (N, K), state.

        The language model never sees sos: the prompt takes its place.
        """
        if state.log_probs is not None:
            log_probs, state = state.log_probs, LlmState(state.mask, state.cache, None)
        elif state.cache is None:
            tokens = self._embed(prefixes[:, 1:])
            mask = pad(state.mask, (0, tokens.shape[1]), value=True)
            log_probs = self._log_probs(torch.cat([state.embeddings, tokens], 1), mask, None)
        else:
            state = LlmState(pad(state.mask, (0, 1), value=True), state.cache, None)
            log_probs = self._log_probs(self._embed(prefixes[:, -1:]), state.mask, state.cache)
        return log_probs if candidates is None else log_probs.gather(1, candidates), state

    def select(self, state: LlmState, rows: Tensor) -> LlmState:
        # greedy search keeps every row in place: the cache need not be copied
        if len(rows) == len(state.mask) and torch.equal(
            rows, torch.arange(len(rows), device=rows.device)
        ):
            return state
        if state.cache is not None:
            state.cache.reorder_cache(rows)
        part = {
            name: value if value is None else value[rows]
            for name, value in vars(state).items()
            if name != "cache"
        }
        return LlmState(**part, cache=state.cache)

    def sequence_scores(self, encoded: EncoderOutput, targets: Padded) -> Tensor:
        """targets (B * n, U), n per utterance -> log-probabilities (B * n,) float64, with ends."""
        each = len(targets.lengths) // len(encoded.frames.lengths)
        speech = Padded(*(part.repeat_interleave(each, 0) for part in encoded.frames))
        embeddings, mask = self.model.read(speech, targets)
        keep = targets.data.shape[1] + 1
        logits = self.model.caller(self.model.llm, embeddings, mask, keep).logits
        wanted = targets.append(self.model.eos).data
        log_probs = left_aligned(logits, targets.lengths).float().log_softmax(-1)
        values = log_probs.gather(2, wanted[:, :, None])[:, :, 0].double()
        return values.masked_fill(~Padded(wanted, targets.lengths + 1).mask, 0.0).sum(1)

    # -- several tokens in one pass ------------------------------------------

    def prepare(self, encoded: EncoderOutput) -> LlmState:
        """The state of B empty prefixes for `verify`; nothing is computed yet.

        Raises `ValueError` if the language model keeps a state that cannot be cut.
        """
        from transformers import DynamicCache

        kinds = set(getattr(self.model.llm.config.get_text_config(), "layer_types", None) or ())
        if not kinds <= CUTTABLE or "past_key_values" not in self.model.caller.takes:
            raise ValueError(
                "drafts cannot be verified by this language model: the state of its layers "
                f"({', '.join(sorted(kinds - CUTTABLE)) or 'without keys and values'}) cannot be "
                "cut back to an accepted prefix; search by llm_beam"
            )
        embeddings, mask = self.model.read(encoded.frames)
        # Without the config, layers with sliding windows keep all keys; otherwise they would drop
        # some that are needed again after a cut.
        return LlmState(mask, DynamicCache(), None, embeddings)

    def verify(
        self, state: LlmState, newest: Tensor | None, draft: Padded
    ) -> tuple[Iterator[Tensor], LlmState]:
        """One pass over the newest token of each prefix (N,), None while all are empty, and what
        may follow it, draft (N, U).

        Returns log-probabilities (U_i + 1, V) of each row, one row at a time, since all of them
        take much memory: row u is of the token after u tokens of the draft. The state includes the
        whole draft, (N, U), which `cut` shortens.
        """
        tokens = draft
        if newest is not None:
            tokens = Padded(torch.cat([newest[:, None], draft.data], 1), draft.lengths + 1)
        embeddings = self._embed(tokens.data)
        if state.embeddings is not None:
            embeddings = torch.cat([state.embeddings, embeddings], 1)
        mask = torch.cat([state.mask, tokens.mask], 1)
        keep = draft.data.shape[1] + 1
        logits = self.model.caller(self.model.llm, embeddings, mask, keep, state.cache).logits
        rows = (
            self._normalized(row[: length + 1])
            for row, length in zip(logits, draft.lengths.tolist(), strict=True)
        )
        return rows, LlmState(mask, state.cache, None)

    def cut(self, state: LlmState, rejected: Tensor) -> LlmState:
        """The state without the last `rejected` (N,) positions of each row."""
        fewest, most = (int(value) for value in rejected.aminmax())
        if most == 0:
            return state
        size = state.mask.shape[1]
        if fewest == most:
            state.cache.crop(-most)
            return replace(state, mask=state.mask[:, : size - most])
        columns = torch.arange(size, device=rejected.device) - rejected[:, None]
        mask = state.mask.gather(1, columns.clamp(min=0)) & (columns >= 0)
        first = int(mask.any(0).int().argmax())  # the columns before it are padding in every row
        columns, mask = columns[:, first:].clamp(min=0), mask[:, first:]
        for layer in state.cache.layers:
            layer.keys = layer.keys.take_along_dim(columns[:, None, :, None], 2)
            layer.values = layer.values.take_along_dim(columns[:, None, :, None], 2)
        return replace(state, mask=mask)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.model.llm.get_input_embeddings()(tokens)

    def _log_probs(self, embeddings: Tensor, mask: Tensor, cache: object | None) -> Tensor:
        """(N, V) log-probabilities of the token after the last position."""
        logits = self.model.caller(self.model.llm, embeddings, mask, 1, cache).logits[:, 0]
        return self._normalized(logits)

    def _normalized(self, logits: Tensor) -> Tensor:
        """Logits of all embeddings -> float32 log-probabilities (N, V) of the vocabulary."""
        # embeddings are often padded to a round number: the tokenizer lacks the last ids
        return logits.float().log_softmax(-1)[:, : self.model.vocab_size]


def right_aligned(rows: Sequence[Tensor], least: int = 0) -> tuple[Tensor, Tensor]:
    """Rows (K_i, D) -> (B, K, D), padded on the left to a K of at least `least`, and their mask
    (B, K).
    """
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    longest = max(least, *map(len, rows))
    padded = torch.stack([pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    return padded, torch.arange(longest, device=lengths.device) >= (longest - lengths)[:, None]


def left_aligned(logits: Tensor, lengths: Tensor) -> Tensor:
    """logits (B, U + 1, V), right-aligned rows of lengths + 1 entries -> the same, left-aligned."""
    size = logits.shape[1]
    index = torch.arange(size, device=logits.device) + (size - 1 - lengths)[:, None]
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    return logits[rows, index.clamp(max=size - 1)]
