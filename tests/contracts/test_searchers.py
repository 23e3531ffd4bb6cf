"""Laws of every registered searcher; a new entry is tested without writing a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import pytest
import torch
import yaml

from asrtool import config
from asrtool.searchers import SEARCHERS, Searcher
from asrtool.types import Hypothesis
from tests.toy_search import ToyModel, choose, heads, utterances

LENGTHS = (9, 1, 14, 5, 12)
every_searcher = pytest.mark.parametrize("name", SEARCHERS.names())


def build(name: str, model: ToyModel | None = None, **settings) -> Searcher:
    return SEARCHERS.build(
        SEARCHERS.config_type(name)(**settings), model=model or ToyModel(vocabulary=9, seed=3)
    )


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    assert [h.positions for h in found] == [h.positions for h in expected]
    for one, other in zip(found, expected, strict=True):
        # float64: only the order of sums differs
        assert one.score == pytest.approx(other.score, abs=1e-9)
        assert one.parts == pytest.approx(other.parts, abs=1e-9)
        assert (one.confidences or ()) == pytest.approx(other.confidences or (), abs=1e-9)


@every_searcher
def test_every_utterance_gets_its_hypotheses_best_first(name):
    results = build(name).search(utterances(LENGTHS))
    assert len(results) == len(LENGTHS)
    for nbest in results:
        scores = [h.score for h in nbest]
        assert scores and scores == sorted(scores, reverse=True)
        assert len({h.tokens for h in nbest}) == len(nbest)


@every_searcher
def test_tokens_are_neither_blank_nor_the_end(name):
    model = ToyModel(vocabulary=9, seed=3)
    for nbest in build(name, model).search(utterances(LENGTHS)):
        assert all(
            0 < token < (9 if name == "ctc_greedy" else model.eos)
            for h in nbest
            for token in h.tokens
        )


@every_searcher
def test_the_score_is_the_weighted_sum_of_the_parts(name):
    searcher = build(name)
    weights = searcher.config.weights or {"ctc": 1.0, "transducer": 1.0}
    for nbest in searcher.search(utterances(LENGTHS)):
        for h in nbest:
            assert h.score == pytest.approx(
                sum(weights[part] * value for part, value in h.parts.items()), abs=1e-9
            )


@every_searcher
def test_results_do_not_depend_on_batch_order_and_padding(name):
    encoded = utterances(LENGTHS)
    searcher = build(name)
    together = searcher.search(encoded)
    for row in range(len(LENGTHS)):
        assert_same(searcher.search(choose(encoded, [row]))[0], together[row])
    mixed = [3, 2, 0, 2]
    for row, found in zip(mixed, searcher.search(choose(encoded, mixed, padding=7)), strict=True):
        assert_same(found, together[row])


@every_searcher
def test_searching_twice_gives_the_same(name):
    searcher, encoded = build(name), utterances(LENGTHS)
    assert searcher.search(encoded) == searcher.search(encoded)


@every_searcher
def test_an_utterance_without_frames_is_empty_and_does_not_disturb_others(name):
    searcher, encoded = build(name), utterances(LENGTHS)
    lengths = encoded.frames.lengths.clone()
    lengths[2] = 0
    cut = replace(encoded, frames=encoded.frames._replace(lengths=lengths))
    results = searcher.search(cut)
    assert results[2][0].tokens == () and results[2][0].score == 0
    for row in (0, 1, 3, 4):
        assert_same(results[row], searcher.search(encoded)[row])


@every_searcher
def test_no_utterance_with_frames_is_legal(name):
    encoded = utterances((3,))
    nothing = replace(
        encoded,
        frames=encoded.frames._replace(
            data=encoded.frames.data[:, :0], lengths=torch.zeros(1, dtype=torch.int64)
        ),
        positions=encoded.positions[:, :0],
    )
    assert [h.tokens for h in build(name).search(nothing)[0]] == [()]


@every_searcher
def test_impossible_tokens_give_no_nan(name):
    model = ToyModel(vocabulary=5, seed=1)
    plain = model.log_probs

    def log_probs(encoded, stream="ctc"):
        data, lengths = plain(encoded, stream)
        return type(encoded.frames)(
            data.index_fill(2, torch.tensor([2, 3]), -float("inf")).log_softmax(-1), lengths
        )

    model.log_probs = log_probs
    for nbest in build(name, model).search(utterances(LENGTHS)):
        assert all(h.score == h.score and h.score > -float("inf") for h in nbest)


@every_searcher
def test_nan_of_a_model_is_an_error_and_no_result(name):
    model = ToyModel()
    model.head = model.head * float("nan")
    model.attention.mix = model.attention.mix * float("nan")
    model.transducer.mix = model.transducer.mix * float("nan")
    with pytest.raises(ValueError, match="NaN"):
        build(name, model).search(utterances((4, 2)))


@every_searcher
def test_a_missing_head_or_scorer_is_named_with_what_there_is(name):
    model = ToyModel()
    model.heads = heads("inter_ctc")
    with pytest.raises(
        LookupError, match="'(ctc|attention|llm|transducer)'.*it has: (inter_ctc|none)"
    ):
        build(name, model)


@every_searcher
def test_the_config_survives_yaml(name):
    kind = Annotated[object, SEARCHERS]
    before = SEARCHERS.config_type(name)()
    node = yaml.compose(yaml.safe_dump(config.encode(kind, before)))
    assert config.decode(kind, node) == before
