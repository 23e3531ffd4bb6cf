from __future__ import annotations

import pytest

from asrtool.searchers.hotwords import Hotwords, HotwordsConfig


def bonus(hotwords: Hotwords, text: str, cut: int = 1) -> tuple[float, list[float]]:
    """The final bonus of a text that is read in pieces, and the bonus after each piece."""
    state, total, along = hotwords.start(), 0.0, []
    for begin in range(0, len(text), cut):
        value, state = hotwords.extend(state, text[begin : begin + cut])
        total += value
        along.append(total)
    return total + hotwords.end(state), along


PHRASES = {"new york": 8.0, "york": 4.0, "yorker": 6.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("new york", 12),
        ("in new york city", 12),
        ("new yorks", 0),
        ("yorker", 6),
        ("york york", 8),
        ("new  york", 4),
        ("anew york", 4),
        ("york new", 4),
        ("new new york", 12),
    ],
)
@pytest.mark.parametrize("cut", [1, 2, 3, 20])
def test_whole_phrases_between_word_boundaries_count_however_the_text_is_cut(text, expected, cut):
    assert bonus(Hotwords(PHRASES, spaced=True), text, cut)[0] == pytest.approx(expected)


def test_the_way_to_a_phrase_is_paid_in_advance_and_paid_back():
    along = bonus(Hotwords({"abc": 6.0}, spaced=True), "abcd")[1]
    assert along == pytest.approx([2, 4, 6, 0])


@pytest.mark.parametrize(
    ("text", "expected"), [("ab", 2), ("abc", 5), ("abd", 2), ("xabcab", 7), ("aab", 2)]
)
def test_where_nothing_is_spaced_phrases_stand_anywhere(text, expected):
    assert bonus(Hotwords({"ab": 2.0, "a bc": 3.0}, spaced=False), text)[0] == pytest.approx(
        expected
    )


def test_a_file_has_a_phrase_a_line_and_weights_where_given(tmp_path):
    path = tmp_path / "hotwords.txt"
    path.write_text("new\u2028york\r\nBartholomew\t4.5\n\n", encoding="utf-8", newline="")
    hotwords = Hotwords.load(HotwordsConfig(path=str(path), weight=2.0), spaced=True)
    assert bonus(hotwords, "Bartholomew in new york")[0] == pytest.approx(6.5)


@pytest.mark.parametrize("line", ["a\tb", "a\t0", "\t3", "a\t1\t2"])
def test_a_line_that_cannot_be_meant_is_named(line, tmp_path):
    path = tmp_path / "hotwords.txt"
    path.write_text("fine\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="hotwords.txt:2: "):
        Hotwords.load(HotwordsConfig(path=str(path)), spaced=True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no.txt: no such file"):
        Hotwords.load(HotwordsConfig(path=str(tmp_path / "no.txt")), spaced=True)
    with pytest.raises(ValueError, match="must be above 0"):
        HotwordsConfig(path="x", weight=0.0)
