from __future__ import annotations

import math

import pytest
import torch

from asrtool.searchers.ctc import scorer as scorer_module
from asrtool.searchers.ctc.scorer import CtcPrefixScorer
from asrtool.types import EncoderOutput, Padded
from tests.toy_search import ToyModel, choose, heads, utterances

INF = float("inf")


@pytest.fixture(autouse=True, params=[True, False], ids=["compiled", "torch"])
def machine_code(request, monkeypatch):
    monkeypatch.setattr(CtcPrefixScorer, "machine_code", request.param)


class Table:
    """A model whose CTC log-probabilities are given."""

    blank, frame_shift, heads = 0, 0.04, heads("ctc")

    def __init__(self, log_probs: torch.Tensor) -> None:
        self.table = log_probs
        self.eos = log_probs.shape[2] - 1

    def log_probs(self, encoded: EncoderOutput | None, head: str = "ctc") -> Padded:
        return Padded(self.table, torch.full((len(self.table),), self.table.shape[1]))


def follow(
    scorer: CtcPrefixScorer, encoded, rows: list[list[int]], candidates=None
) -> torch.Tensor:
    """The scores after feeding token rows step by step, one beam per row of an utterance."""
    beam = len(rows) // (1 if encoded is None else len(encoded.frames.lengths))
    state = scorer.start(encoded, beam)
    for length in range(len(rows[0]) + 1):
        prefixes = torch.tensor([[scorer.model.eos, *row[:length]] for row in rows])
        scores, state = scorer.score(prefixes, state, candidates)
    return scores


@pytest.mark.parametrize("rows", [[[]], [[1]], [[1, 1]], [[3, 2, 3, 3]]], ids=str)
def test_extensions_and_the_end_share_all_probability(rows):
    logits = torch.randn(1, 12, 6, generator=torch.Generator().manual_seed(0)).double()
    logits[:, :, 5] = -INF  # the label that shares its id with the end
    scores = follow(CtcPrefixScorer(Table(logits.log_softmax(2))), None, rows)
    assert scores.logsumexp(1).item() == pytest.approx(0, abs=1e-9)


def test_candidates_get_what_the_whole_vocabulary_gets():
    encoded, rows = utterances((12, 7)), [[1, 1], [3, 4], [2, 2], [4, 1]]
    scorer = CtcPrefixScorer(ToyModel(vocabulary=6, seed=2))
    candidates = torch.tensor([[5, 1, 2], [4, 3, 5], [0, 2, 1], [1, 5, 3]])
    whole = follow(scorer, encoded, rows)
    torch.testing.assert_close(
        follow(scorer, encoded, rows, candidates), whole.gather(1, candidates)
    )


def test_rows_follow_a_selection_and_utterances_may_leave():
    encoded, scorer = utterances((12, 7, 9)), CtcPrefixScorer(ToyModel(vocabulary=6, seed=2))
    state = scorer.start(encoded, 2)
    _, state = scorer.score(torch.full((6, 1), 5), state, None)
    _, state = scorer.score(torch.tensor([[5, t] for t in (1, 2, 3, 4, 1, 3)]), state, None)
    state = scorer.select(state, torch.tensor([1, 1, 5, 4]))  # the utterance in the middle is done
    scores, _ = scorer.score(
        torch.tensor([[5, 2, 2], [5, 2, 1], [5, 3, 3], [5, 1, 4]]), state, None
    )
    alone = follow(scorer, choose(encoded, [0, 2]), [[2, 2], [2, 1], [3, 3], [1, 4]])
    torch.testing.assert_close(scores, alone)


def test_improbable_tokens_keep_their_score_in_float32():
    table = torch.full((1, 40, 3), -300.0)
    table[0, :, 0] = 0.0  # exp(-300) is 0 in float32
    scores = follow(CtcPrefixScorer(Table(table)), None, [[]])
    assert scores[0, 1].item() == pytest.approx(-300 + math.log(40), abs=1e-5)


@pytest.mark.parametrize("block", [1, 100])
def test_improbable_tokens_may_be_computed_in_blocks(block, monkeypatch):
    table = torch.randn(1, 40, 7, generator=torch.Generator().manual_seed(0)) * 100
    expected = follow(CtcPrefixScorer(Table(table.double().log_softmax(2))), None, [[4, 2]])
    monkeypatch.setattr(scorer_module, "BLOCK", block)
    found = follow(CtcPrefixScorer(Table(table.log_softmax(2))), None, [[4, 2]])
    # float32 log-probabilities of size 400, summed
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-5)


def test_certain_frames_allow_one_sequence_and_no_other():
    path = [0, 1, 1, 0, 1, 2]
    table = torch.full((1, len(path), 4), -INF)
    table[0, range(len(path)), path] = 0.0
    scorer = CtcPrefixScorer(Table(table))
    scores = follow(scorer, None, [[1, 1, 2], [1, 2, 1], [1, 1, 1]])
    assert scores[0].tolist() == [-INF, -INF, -INF, 0.0]  # only the end
    assert (scores[1:] == -INF).all()
    assert follow(scorer, None, [[1]])[0].tolist() == [-INF, 0.0, -INF, -INF]


def test_long_utterances_stay_exact():
    table = (
        torch.randn(1, 3000, 8, generator=torch.Generator().manual_seed(1)).double().log_softmax(2)
    )
    tokens = [1 + t % 3 for t in range(20)]
    scores = follow(CtcPrefixScorer(Table(table)), None, [tokens])
    none, blank = [-INF] * 3001, [0.0]  # (3) and (4), frame by frame
    rows = table[0].tolist()
    for row in rows:
        blank.append(blank[-1] + row[0])
    add = lambda a, b: max(a, b) + math.log1p(math.exp(-abs(a - b))) if max(a, b) > -INF else -INF  # noqa: E731
    psi, previous = 0.0, None
    for token in [*tokens, 5]:
        arrival = [b if token == previous else add(n, b) for n, b in zip(none, blank, strict=True)]
        before, psi, n, b = psi, -INF, [-INF], [-INF]
        for t, row in enumerate(rows):
            psi = add(psi, arrival[t] + row[token])
            n.append(add(n[t], arrival[t]) + row[token])
            b.append(add(b[t], n[t]) + row[0])
        none, blank, previous = n, b, token
    assert scores[0, 5].item() == pytest.approx(psi - before, abs=1e-8)
