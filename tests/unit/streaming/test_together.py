"""Many audios in one batch: each is heard as if it were alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.streaming import EndConfig, Result, Stream, together, with_chunks
from asrtool.streaming.together import Piece, Row, Streams, hear
from tests.toy_experiment import quiet

ENDS = EndConfig(pause=0.3)


@pytest.fixture(scope="module")
def recognizer(toy_stream) -> Recognizer:
    trained = Experiment.open(toy_stream / "exp")
    decode = trained.decode_config(streaming=True)
    return with_chunks(Recognizer.load(trained, decode), chunk_ms=160)


@pytest.fixture(scope="module")
def sounds(toy_stream) -> list[np.ndarray]:
    """Pairs of utterances, with a pause between them that ends a text."""
    paths = sorted((toy_stream / "data/test/audio").iterdir())
    samples = [soundfile.read(path, dtype="float32")[0] for path in paths]
    pause = quiet(0.5)
    return [
        np.concatenate([one, pause, other])
        for one, other in zip(samples[::2], samples[1::2], strict=True)
    ]


def alone(recognizer: Recognizer, sound: np.ndarray) -> list[Result]:
    stream = Stream(recognizer, ENDS)
    pieces = [*np.split(sound, range(700, len(sound), 700))]
    results = [stream.accept(piece) for piece in pieces] + [stream.accept(sound[:0], final=True)]
    return [result for result in results if result is not None and result.final]


def said(results: list[Result]) -> list[tuple]:
    return [(r.hypothesis.text, r.hypothesis.positions, round(r.start, 3)) for r in results]


def test_each_is_heard_as_if_it_were_alone(recognizer, sounds):
    """Rows begin, pause and end at random times; each gets what completes its next chunk, or a
    part of that.
    """
    draw = random.Random(0)
    streams, found = Streams(recognizer, ENDS), [[] for _ in sounds]
    waiting, inside, at = list(range(len(sounds))), {}, [0] * len(sounds)
    sizes = set()
    while waiting or inside:
        if waiting and (draw.random() < 0.3 or not inside):
            inside[streams.enter()] = waiting.pop()
        pieces = {}
        for row, number in inside.items():
            if draw.random() < 0.4:
                continue
            size = draw.choice((row.missing, draw.randrange(row.missing)))
            piece = sounds[number][at[number] : at[number] + size]
            at[number] += len(piece)
            pieces[row] = Piece(piece, at[number] == len(sounds[number]))
        sizes.add(len(pieces))
        for row, result in streams.accept(pieces).items():
            if result.final:
                found[inside[row]].append(result)
        inside = {row: n for row, n in inside.items() if not (row in pieces and pieces[row].final)}
        assert len(streams) == len(inside)
    assert max(sizes) >= 4  # some were computed side by side
    expected = [alone(recognizer, sound) for sound in sounds]
    assert [said(results) for results in found] == [said(results) for results in expected]
    assert sum(len(results) for results in found) > len(sounds)
    for results, own in zip(found, expected, strict=True):
        for result, other in zip(results, own, strict=True):
            assert result.classes["accent"] == pytest.approx(other.classes["accent"], abs=1e-4)


def test_a_final_result_has_words_within_its_span(recognizer, sounds):
    streams = Streams(recognizer, ENDS)
    row, at, finals = streams.enter(), 0, []
    while at < len(sounds[0]):
        size = row.missing
        piece = Piece(sounds[0][at : at + size], at + size >= len(sounds[0]))
        finals += [r for r in streams.accept({row: piece}).values() if r.final and r.words]
        at += size
    assert len(finals) > 1
    for result in finals:
        assert [word.text for word in result.words] == result.hypothesis.text.split()
        times = [time for word in result.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert result.start <= times[0] and times[-1] <= result.end + 1e-6
        assert all(0 < word.confidence <= 1 for word in result.words)


def test_the_samples_that_are_missing_complete_a_chunk(recognizer, sounds):
    """No sample more than a chunk needs: its result is not late."""
    streams = Streams(recognizer, ENDS)
    row, at = streams.enter(), 0
    for _ in range(4):
        size = row.missing
        assert streams.accept({row: Piece(sounds[0][at : at + size - 1])}) == {}
        assert row.missing == 1
        assert streams.accept({row: Piece(sounds[0][at + size - 1 : at + size])})
        at += size
    shift, length = 80, 200  # of 8 kHz
    assert at == 4 * 1280 + length - shift


def test_a_row_hears_the_frames_that_are_mirrored_at_its_end(recognizer, sounds):
    data = recognizer.config.data
    fbank = replace(data.fbank, snip_edges=False)
    mirrored = replace(
        recognizer, config=replace(recognizer.config, data=replace(data, fbank=fbank))
    )
    row = Row(mirrored, ENDS)
    pieces = Piece(sounds[0][:1000]), Piece(sounds[0][1000:], final=True)
    frames = sum(len(hear([row], [piece])[0]) for piece in pieces)
    assert frames == fbank.num_frames(len(sounds[0]))


def test_who_leaves_is_forgotten(recognizer, sounds):
    streams = Streams(recognizer, ENDS)
    rows = [streams.enter() for _ in range(3)]
    streams.accept({row: Piece(sounds[0][:3000]) for row in rows})
    late = streams.enter()
    for row in (rows[1], late, rows[1]):
        streams.leave(row)
    assert len(streams) == 2
    rest = {row: Piece(sounds[0][3000:], final=True) for row in (rows[0], rows[2])}
    results = streams.accept(rest)
    assert len(streams) == 0
    texts = {result.hypothesis.text for result in results.values()}
    assert len(texts) == 1 and texts.pop()
    with pytest.raises(ValueError, match="a row that has ended, left, or never entered"):
        streams.accept({rows[0]: Piece(sounds[0])})


def test_a_computation_that_fails_loses_no_other_rows(recognizer, sounds, monkeypatch):
    streams = Streams(recognizer, ENDS)
    good, bad = streams.enter(), streams.enter()
    streams.accept({good: Piece(sounds[0][:3000]), bad: Piece(sounds[0][:3000])})
    with monkeypatch.context() as patched:
        patched.setattr(together, "hear", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            streams.accept({bad: Piece(sounds[0][3000:])})
    assert len(streams) == 1
    results = streams.accept({good: Piece(sounds[0][3000:], final=True)})
    assert results[good].hypothesis.text


def test_a_search_that_cannot_stream_is_refused(recognizer):
    with pytest.raises(ValueError, match="chunks"):
        whole = replace(recognizer, settings=replace(recognizer.settings, chunk_ms=None))
        Streams(whole, ENDS)
