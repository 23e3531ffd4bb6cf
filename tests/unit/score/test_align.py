from __future__ import annotations

import math

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrtool.score import ErrorCounts, align, count_errors
from asrtool.score.align import count_pairs

tokens = st.lists(st.sampled_from("abc"), max_size=8)
ALIGNMENTS = ("levenshtein", "sclite")


def fewest_errors(reference, hypothesis) -> int:
    """Wagner and Fischer's recurrence, written out."""
    row = list(range(len(hypothesis) + 1))
    for i, left in enumerate(reference, start=1):
        previous, row = row, [i]
        for j, right in enumerate(hypothesis, start=1):
            row.append(min(previous[j - 1] + (left != right), previous[j] + 1, row[j - 1] + 1))
    return row[-1]


@settings(max_examples=300, deadline=None)
@given(tokens, tokens)
def test_levenshtein_total_equals_a_plain_dynamic_programme(reference, hypothesis):
    assert count_errors([reference], [hypothesis]).errors == fewest_errors(reference, hypothesis)


@settings(max_examples=100, deadline=None)
@given(tokens, tokens, st.sampled_from(ALIGNMENTS))
def test_an_alignment_spells_both_sides_and_has_the_counted_tags(reference, hypothesis, alignment):
    pairs = align(reference, hypothesis, alignment)
    assert [left for _, left, _ in pairs if left is not None] == reference
    assert [right for _, _, right in pairs if right is not None] == hypothesis
    assert all((left == right) == (tag == "C") for tag, left, right in pairs)
    tags = [tag for tag, _, _ in pairs]
    assert [tags.count(tag) for tag in "CSDI"] == count_pairs([(reference, hypothesis)], alignment)[
        0
    ].tolist()


def test_totals_equal_jiwers():
    references = ["the cat sat on the mat", "hello world", "a b c", "one two"]
    hypotheses = ["the hat sat the big mat", "hello world", "c b a", "two three four five"]
    theirs = jiwer.process_words(references, hypotheses)
    ours = count_errors(
        [text.split() for text in references], [text.split() for text in hypotheses]
    )
    expected = (theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions)
    assert (ours.correct, ours.substitutions, ours.deletions, ours.insertions) == expected


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_empty_sides_are_all_insertions_or_all_deletions(alignment):
    counts = count_pairs([([], ["a", "b"]), (["a"], []), ([], [])], alignment)
    assert counts.tolist() == [[0, 0, 0, 2], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_token_ids_count_like_words():
    assert count_errors([[5, 6, 7], [1]], [[5, 7], [2]]) == ErrorCounts(2, 1, 1, 0)
    assert count_errors([[-1]], [[-2]]).substitutions == 1  # Python hashes both to -2


def test_no_utterances_give_no_errors():
    assert count_errors([], []) == ErrorCounts()


def test_a_rate_may_exceed_one_and_is_infinite_without_reference():
    assert ErrorCounts(1, 0, 0, 3).rate == 3.0
    assert ErrorCounts(0, 0, 0, 2).rate == math.inf
    assert ErrorCounts().rate == 0.0


def test_counts_add_up():
    both = ErrorCounts(1, 2, 3, 4) + ErrorCounts(10, 20, 30, 40)
    assert both == ErrorCounts(11, 22, 33, 44)
    assert (both.reference, both.errors) == (66, 99)


def test_unequal_numbers_of_sequences_are_refused():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        count_errors(["a", "b"], ["a"])


def test_sclite_takes_substitutions_among_paths_of_equal_cost():
    # Three substitutions cost 12, and so do a match with two deletions and two insertions: sclite
    # substitutes.
    assert count_pairs([("abX", "Xcd")], "sclite").tolist() == [[0, 3, 0, 0]]


def test_an_unknown_alignment_lists_the_known_ones():
    with pytest.raises(ValueError, match="levenshtein, sclite"):
        align("a", "b", "kaldi")
