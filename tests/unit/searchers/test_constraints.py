from __future__ import annotations

import pytest
import torch

from asrtool.searchers import ConstraintsConfig
from asrtool.searchers.constraints import MaxTokens, MinTokens, NoRepeatNgram
from tests.toy_search import utterances

EOS, INF = 4, float("inf")


def allowed(constraint, prefixes: list[list[int]]) -> list[list[int]]:
    scores = constraint.apply(
        torch.zeros(len(prefixes), 5), torch.tensor([[EOS, *row] for row in prefixes])
    )
    return [[token for token, value in enumerate(row) if value > -INF] for row in scores.tolist()]


def test_a_repeated_ngram_is_forbidden():
    assert allowed(NoRepeatNgram(2), [[1, 2, 1], [1, 2, 3], [2, 2, 2]]) == [
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4],
        [0, 1, 3, 4],
    ]


def test_one_token_may_be_all_that_must_not_repeat():
    assert allowed(NoRepeatNgram(1), [[1, 3]]) == [[0, 2, 4]]


def test_a_prefix_shorter_than_the_ngram_is_free():
    assert allowed(NoRepeatNgram(3), [[1, 1]]) == [[0, 1, 2, 3, 4]]


def test_forbidden_tokens_stay_forbidden_and_others_keep_their_score():
    scores = torch.tensor([[-INF, -1.0, -2.0, -3.0, -4.0]])
    found = NoRepeatNgram(2).apply(scores, torch.tensor([[EOS, 1, 2, 1, 3, 1]]))
    assert found.tolist() == [[-INF, -1.0, -INF, -INF, -4.0]]
    assert scores[0, 2] == -2.0  # not in place


def test_only_the_end_may_follow_at_the_limit_of_a_row():
    constraint = MaxTokens(torch.tensor([2, 3]), eos=EOS)
    assert allowed(constraint, [[1, 1], [1, 1]]) == [[4], [0, 1, 2, 3, 4]]
    assert allowed(constraint.select(torch.tensor([1, 0])), [[1, 1], [1, 1]]) == [
        [0, 1, 2, 3, 4],
        [4],
    ]


def test_the_end_waits_for_the_least_number_of_tokens():
    assert allowed(MinTokens(2, eos=EOS), [[1]]) == [[0, 1, 2, 3]]
    assert allowed(MinTokens(2, eos=EOS), [[1, 1]]) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, [10, 3]),
        ({"max_tokens": 4}, [4, 3]),
        ({"max_tokens_per_frame": 0.25}, [3, 1]),
        # positions 0 2 4 ...
        ({"max_tokens_per_frame": None, "max_tokens_per_second": 5.0}, [10, 3]),
        ({"max_tokens_per_second": 2.0}, [4, 1]),
        ({"max_tokens_per_frame": 0.1, "min_tokens": 2}, [2, 2]),
    ],
    ids=str,
)
def test_the_smallest_limit_counts(settings, limits):
    assert ConstraintsConfig(**settings).limits(utterances((10, 3)), frame_shift=0.1) == limits


@pytest.mark.parametrize("bonus", [0.0, 0.7, -0.7])
@pytest.mark.parametrize("penalty", [0.0, 0.5, 2.0])
def test_no_continuation_beats_the_best_possible_score(bonus, penalty):
    config = ConstraintsConfig(length_bonus=bonus, length_penalty=penalty)
    best = config.best_possible(-3.0, 4, limit=12)
    reachable = [
        config.ranked(-3.0 + bonus * more - lost, 4 + more)
        for more in range(9)
        for lost in (0.0, 1.0)
    ]
    assert max(reachable) == pytest.approx(best)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"max_tokens_per_frame": None},
        {"min_tokens": -1},
        {"max_tokens": 2, "min_tokens": 3},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError):
        ConstraintsConfig(**settings)
