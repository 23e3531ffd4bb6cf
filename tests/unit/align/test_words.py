"""Words and their times, and the files that hold them."""

from __future__ import annotations

import math

import pytest

from asrtool.align import Alignment, Timed, text_of, times_of, words_of
from asrtool.align.formats import ctm, srt, subtitles, textgrid


def timed(*pieces: str, seconds: float = 0.1, confidence: float = 0.9) -> list[Timed]:
    bounds = [round(seconds * place, 3) for place in range(len(pieces) + 1)]
    return [
        Timed(token=token, text=piece, start=start, end=end, confidence=confidence)
        for token, (piece, start, end) in enumerate(zip(pieces, bounds, bounds[1:], strict=False))
    ]


def words(*pieces: str, **settings) -> list:
    return words_of(timed(*pieces, **settings))


def test_positions_and_frame_shift_give_seconds():
    alignment = Alignment(starts=(1, 3), ends=(2, 5), log_probs=(0.0, math.log(0.5)), score=-1.0)
    parts = times_of(
        alignment, [7, 8], ["a", "b"], positions=[0, 2, 4, 6, 9], frame_shift=0.04, duration=0.39
    )
    assert [(part.start, part.end) for part in parts] == [(0.08, 0.12), (0.24, 0.39)]
    assert [part.confidence for part in parts] == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["h", "i", " ", "y", "o", "u"], ["hi", "you"]),
        ([" the", " c", "at"], ["the", "cat"]),
        ([" ", "the", " ", "cat", " "], ["the", "cat"]),
        (["今", "天", "天", "气"], ["今", "天", "天", "气"]),
        (["今天", " ok", "ay", "好"], ["今天", "okay", "好"]),
        (["o", "k", "今", "a", "b"], ["ok", "今", "ab"]),
        ([], []),
        ([" ", " "], []),
    ],
)
def test_spaces_and_han_characters_make_words(pieces, expected):
    found = words(*pieces)
    assert [word.text for word in found] == expected
    assert text_of(found) == "".join(pieces).strip()


def test_a_word_lasts_from_its_first_visible_token_to_its_last():
    first, second = words("h", "i", " ", "y", "o")
    assert (first.start, first.end, second.start, second.end) == (0.0, 0.2, 0.3, 0.5)
    assert [[part.token for part in word.parts] for word in (first, second)] == [[0, 1], [2, 3, 4]]


def test_a_line_of_ctm_has_six_fields_whatever_the_file_is_called():
    assert ctm("my talk\t1", words("a")).split()[0] == "my_talk_1"


def test_ctm_has_a_line_for_each_word_and_counts_from_the_recording():
    assert ctm("rec", words("a", " ", "b"), start=2.0) == (
        "rec 1 2.000 0.100 a 0.9000\nrec 1 2.200 0.100 b 0.9000\n"
    )


def test_a_textgrid_has_no_gaps_and_doubles_quotation_marks():
    text = textgrid({"words": words('"a', " ", "b")}, 0.5)
    bounds = [
        line.split("=")[1].strip()
        for line in text.splitlines()
        if line.startswith("            xm")
    ]
    assert bounds == ["0.000", "0.100", "0.100", "0.200", "0.200", "0.300", "0.300", "0.500"]
    assert 'text = """a"' in text
    assert "intervals: size = 1" in textgrid({"words": []}, 0.5)


def test_subtitles_are_short_and_end_at_pauses():
    long = words(*[" word"] * 30, seconds=0.1)
    assert [len(cue) for cue in subtitles(long)] == [17, 13]  # 17 words are 84 characters
    slow = words(*[" word"] * 4, seconds=2.0)
    assert [len(cue) for cue in subtitles(slow)] == [3, 1]
    late = words_of([*timed(" a"), timed(" b")[0].later(1.5)])
    assert [len(cue) for cue in subtitles(late)] == [1, 1]
    assert srt(late) == (
        "1\n00:00:00,000 --> 00:00:00,100\na\n\n2\n00:00:01,500 --> 00:00:01,600\nb\n"
    )
    assert "word\nword" in srt(long)
