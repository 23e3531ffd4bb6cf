"""Pictures, and the numbers around the utterances."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import soundfile

from asrtool.data import audio
from asrtool.report import details, facts
from asrtool.score import align
from asrtool.types import Utterance


def test_a_png_keeps_every_pixel():
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 333), dtype=np.uint8)
    read = np.asarray(image.open(io.BytesIO(details.grey_png(pixels))))
    assert (read == pixels).all()


def decoded(uri: str) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_a_tone_is_a_bright_line_at_its_time_and_height():
    time = np.arange(32000) / 16000
    wave = np.where(time < 1, 0.0, 0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    found = details.picture(
        wave + 1e-4 * np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    )
    shades = decoded(found["image"])
    assert found["seconds"] == 2.0 and shades.shape == (80, 198)
    column = round((1.5 - found["first"]) / found["step"])
    assert shades[:, column].max() > 240 and shades[:, 20].max() < 130
    mel = 1127 * np.log1p(np.array([20, 1000, 8000]) / 700)
    # from the top, where the highest filter is
    expected = 80 - (mel[1] - mel[0]) / (mel[2] - mel[0]) * 81
    assert abs(shades[:, column].argmax() - expected) <= 1.5


def test_long_audio_is_averaged_and_short_audio_has_no_picture():
    wave = np.random.default_rng(0).standard_normal(16000 * 40).astype(np.float32) * 0.1
    found = details.picture(wave)
    shades = decoded(found["image"])
    assert shades.shape[1] <= details.COLUMNS
    assert shades.shape[1] * found["step"] == pytest.approx(40, abs=0.1)
    assert details.picture(wave[:200]) == {"seconds": 0.0125}


def test_links_of_segments_play_their_part_and_pipes_have_none(tmp_path):
    whole = Utterance(id="a", audio=str(tmp_path / "a b#1.flac"), duration=2.0, speaker="s")
    assert details.link(whole, tmp_path / "page.html") == "a%20b%231.flac"
    part = Utterance(
        id="a", audio=str(tmp_path / "x.wav"), duration=1.5, speaker="s", recording="r", start=3.25
    )
    assert details.link(part, tmp_path / "deep/page.html") == "../x.wav#t=3.250,4.750"
    for path in ("sox x.mp3 -t wav - |", "x.sph"):
        assert (
            details.link(
                Utterance(id="a", audio=path, duration=1.0, speaker="s"), tmp_path / "page.html"
            )
            is None
        )


def test_a_segment_is_cut_before_it_is_drawn(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.linspace(-0.5, 0.5, 32000), 16000)
    part = Utterance(
        id="a", audio=str(tmp_path / "x.wav"), duration=0.5, speaker="s", recording="r", start=1.0
    )
    assert np.allclose(details.samples(part), audio.read(str(tmp_path / "x.wav"))[16000:24000])


# -- facts -------------------------------------------------------------------


def test_histogram_and_edits():
    assert facts.histogram(np.array([[5, 0, 0, 0], [5, 1, 0, 1], [0, 9, 9, 9]]), last=3) == [
        1,
        0,
        1,
        1,
    ]
    pairs = [("a b c", "a x c"), ("a b c", "a x"), ("a", "a um")]
    found = facts.edits(align(left.split(), right.split()) for left, right in pairs)
    assert found["S"] == {"top": [["b", "x", 2]], "kinds": 1, "total": 2}
    assert found["D"]["top"] == [["c", None, 1]]
    assert found["I"]["top"] == [[None, "um", 1]]


def test_curves_take_a_repeated_step_as_it_was_done_last_and_leave_out_what_is_not_finite(tmp_path):
    lines = [
        {"event": "step", "phase": "a", "step": 20, "loss": 5.0, "rate": 1.0, "data_wait": 0.1},
        {"event": "step", "phase": "a", "step": 40, "loss": 4.0, "rate": 1.0},
        {"event": "step", "phase": "a", "step": 40, "loss": 3.0, "rate": 1.0},
        {"event": "step", "phase": "a", "step": 60, "loss": float("nan"), "rate": 1.0},
        {"event": "valid", "phase": "a", "step": 40, "valid/wer": 0.5},
        {"event": "step", "phase": "b", "step": 20, "loss": 1.0},
        {"event": "finished", "phase": "b", "step": 20, "best": 0.5},
    ]
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st'
    )
    first, second = facts.curves(tmp_path)
    assert first == {
        "phase": "a",
        "step": {"loss": [[20, 5.0], [40, 3.0]], "rate": [[20, 1.0], [40, 1.0], [60, 1.0]]},
        "valid": {"valid/wer": [[40, 0.5]]},
        "epochs": [],
    }
    assert second == {"phase": "b", "step": {"loss": [[20, 1.0]]}, "valid": {}, "epochs": []}


def test_long_curves_are_averaged(tmp_path):
    records = [
        {"event": "step", "phase": "a", "step": step, "loss": step / 1000}
        for step in range(1, 3001)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    points = facts.curves(tmp_path)[0]["step"]["loss"]
    assert len(points) == facts.POINTS
    assert all(abs(step / 1000 - loss) < 3e-3 for step, loss in points)
