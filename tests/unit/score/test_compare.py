from __future__ import annotations

import math

import numpy as np
import pytest

from asrtool.errors import UserError
from asrtool.score import align, score
from asrtool.score.compare import compare, matched_pairs, segment_differences, text, verdict

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


def spoil(texts: dict[str, str], rate: float, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {
        name: " ".join("x" if rng.random() < rate else word for word in sentence.split())
        for name, sentence in texts.items()
    }


@pytest.fixture(scope="module")
def references() -> dict[str, str]:
    rng = np.random.default_rng(0)
    return {
        f"s{row % 10}-{row:03}": " ".join(rng.choice(WORDS, rng.integers(1, 20)))
        for row in range(120)
    }


@pytest.fixture(scope="module")
def speakers(references) -> dict[str, str]:
    return {name: name[:2] for name in references}


def test_numbers_are_those_of_two_scores(references, speakers):
    first, second = spoil(references, 0.2, 1), spoil(references, 0.1, 2)
    found = compare(references, first, second, speakers=speakers)
    for number, texts in (
        (found.numbers["rate"].first, first),
        (found.numbers["rate"].second, second),
    ):
        assert number == pytest.approx(score(references, texts).total.rate)
    assert found.errors.sum(axis=0).tolist() == [total.errors for total in found.totals]


def test_a_system_compared_with_itself_is_no_better(references, speakers):
    texts = spoil(references, 0.2, 1)
    found = compare(references, texts, texts, speakers=speakers)
    assert found.numbers["rate"].intervals == {"utterance": (0.0, 0.0), "speaker": (0.0, 0.0)}
    assert (found.pairs.p, found.sign_test, found.wins) == (1.0, 1.0, (0, 0, 120))
    assert verdict(found) == "no difference beyond chance at the 5% level"


def test_a_clear_difference_is_found_by_every_test_and_in_the_right_direction(references, speakers):
    worse, better = spoil(references, 0.3, 1), spoil(references, 0.05, 2)
    found = compare(references, worse, better, speakers=speakers)
    for unit in ("utterance", "speaker"):
        assert found.numbers["rate"].intervals[unit][1] < 0
        assert found.numbers["rate"].better[unit] == found.numbers["correct"].better[unit] == 1.0
    assert found.pairs.p < 1e-6
    assert found.sign_test < 1e-6
    assert verdict(found) == "B is better at the 5% level"
    assert verdict(compare(references, better, worse)) == "A is better at the 5% level"


def test_pairs_are_drawn_together():
    """Both systems fail on the same hard utterances; what differs is one word in each, always."""
    references = {f"u{row}": "a b c d e f g h" for row in range(40)}
    first = {
        name: "x x x x x x x h" if row % 2 else "a b c d e f g x"
        for row, name in enumerate(references)
    }
    second = {
        name: "x x x x x x g h" if row % 2 else "a b c d e f g h"
        for row, name in enumerate(references)
    }
    found = compare(references, first, second)
    assert found.numbers["rate"].value == pytest.approx(-1 / 8)
    assert found.numbers["rate"].intervals["utterance"] == pytest.approx((-1 / 8, -1 / 8))


def test_equally_good_systems_differ_in_about_5_of_100_sets():
    hits = {"pairs": 0, "bootstrap": 0}
    for seed in range(150):
        rng = np.random.default_rng(seed)
        references = {f"u{row}": " ".join(rng.choice(WORDS, 8)) for row in range(60)}
        found = compare(
            references, spoil(references, 0.15, 2 * seed), spoil(references, 0.15, 2 * seed + 1)
        )
        low, high = found.numbers["rate"].intervals["utterance"]
        hits["pairs"] += found.pairs.p < 0.05
        hits["bootstrap"] += not low <= 0 <= high
    assert 1 <= hits["pairs"] <= 16  # 7.5 expected, one sigma is 2.7
    assert 1 <= hits["bootstrap"] <= 16


def test_segments_end_after_two_words_that_both_got_right():
    def segments(reference, first, second):
        return segment_differences(
            *(align(reference.split(), side.split()) for side in (first, second))
        )

    assert segments("a b c d e", "a b c d e", "a b c d e") == []
    assert segments("a b c d e", "x b c d e", "a b c d y") == [-1, 1]
    assert segments("a b c d", "x b c d", "a b y d") == [0]  # one correct word in between
    assert segments("a b c d", "x b c d", "a b z c y") == [1]  # an insertion breaks the run
    assert segments("a b", "a b c", "a b") == [-1]
    assert segments("", "", "oh oh") == [2]


def test_the_test_of_few_or_equal_segments():
    assert (matched_pairs([]).p, matched_pairs([0, 0, 0]).p) == (1.0, 1.0)
    assert math.isnan(matched_pairs([2]).deviation)
    assert matched_pairs([2]).p == 1.0
    assert matched_pairs([-1, -1, -1]).p == 0.0
    found = matched_pairs([1, 0, 2, 0, 1, -1])
    assert (found.mean, found.z) == (0.5, pytest.approx(0.5 / (1.0488 / math.sqrt(6)), abs=1e-3))


def test_the_sign_test_is_the_binomials():
    references = {f"u{row}": "a b" for row in range(10)}
    wrong = dict.fromkeys(references, "a x")
    mixed = {name: "a b" if row < 9 else "x x" for row, name in enumerate(references)}
    found = compare(references, wrong, mixed)
    assert found.wins == (9, 1, 0)
    assert found.sign_test == pytest.approx(2 * 11 / 1024)


def test_changed_utterances_and_words_are_listed(references):
    texts = {"u1": "the cat sat", "u2": "a cat ran", "u3": "hello"}
    first = {"u1": "the hat sat", "u2": "a hat ran", "u3": "hello"}
    second = {"u1": "the cat sat", "u2": "a cat ran", "u3": "hello uh no"}
    found = compare(texts, first, second)
    assert found.changed(5, better=True) == [("u1", 1, 0), ("u2", 1, 0)]
    assert found.changed(5, better=False) == [("u3", 0, 2)]
    assert found.changed_words(5, better=True) == [("cat", 2, 2, 0)]
    assert found.changed_words(5, better=False) == []
    assert found.inserted == {"uh": (0, 1), "no": (0, 1)}
    printed = text(found)
    assert "  fewer errors in B: u1 1 -> 0, u2 1 -> 0\n  more errors in B: u3 0 -> 2\n" in printed
    assert "  wrong less often: cat 2 -> 0 of 2\n" in printed


def test_groups_are_compared_each(references, speakers):
    accents = {name: "north" if name < "s5" else "south" for name in references}
    first = spoil(references, 0.2, 1)
    second = {
        name: (first[name] if accents[name] == "south" else references[name]) for name in references
    }
    groups = compare(
        references, first, second, labels={"accent": accents}, speakers=speakers
    ).groups["accent"]
    assert groups["north"].second == 0.0
    assert groups["north"].intervals["utterance"][1] < 0
    assert groups["south"].value == 0.0


def test_a_missing_hypothesis_is_an_error_unless_it_shall_count(references):
    texts = dict(references)
    del texts["s0-000"]
    with pytest.raises(UserError, match="1 of 120 utterances have no hypothesis: s0-000"):
        compare(references, references, texts)
    assert compare(references, references, texts, missing="deletions").wins[1] == 1
