"""What sherpa-onnx would read wrongly is refused, with what to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import asrtool
from asrtool.data.fbank import FbankConfig
from asrtool.errors import UserError
from asrtool.export import sherpa
from asrtool.export.sherpa import OFFLINE, ONLINE
from asrtool.log import logger


def model(input: str = "fbank", **fbank: object) -> SimpleNamespace:
    data = SimpleNamespace(input=input, fbank=FbankConfig(**fbank))
    return SimpleNamespace(config=SimpleNamespace(data=data))


@pytest.mark.parametrize(
    ("fbank", "kinds", "name"),
    [
        ({"preset": "sherpa"}, OFFLINE, "zipformer_ctc"),
        ({"preset": "sherpa", "rate": 8000, "num_mel_bins": 40}, OFFLINE, "zipformer_ctc"),
        ({"high_hz": 7600, "snip_edges": False, "sample_scale": 1}, OFFLINE, "zipformer_ctc"),
        ({}, OFFLINE, "fire_red_asr_ctc"),
        ({"high_hz": 8000}, OFFLINE, "fire_red_asr_ctc"),
        ({"preset": "sherpa"}, ONLINE["wenet"], "wenet_ctc"),
        ({"high_hz": -400, "snip_edges": False}, ONLINE["wenet"], "wenet_ctc"),
        ({"preset": "sherpa"}, ONLINE["zipformer"], "zipformer2_ctc"),
    ],
)
def test_each_kind_of_features_has_its_kind_of_model(fbank, kinds, name):
    assert sherpa.kind_of(model(**fbank), kinds).name == name


@pytest.mark.parametrize(
    ("fbank", "kinds", "what"),
    [
        (
            {},
            ONLINE["zipformer"],
            "high_hz is 8000.0, there 7600.0; fbank.snip_edges is True, there False; "
            "fbank.sample_scale is 32768.0, there 1.0",
        ),
        (
            {},
            ONLINE["wenet"],
            r"\(fbank.high_hz is 8000.0, there 7600.0; fbank.snip_edges is True, there False\)",
        ),
        ({"num_mel_bins": 40}, OFFLINE, r"\(fbank.num_mel_bins is 40, there 80\)"),
        ({"rate": 8000}, OFFLINE, r"\(fbank.rate is 8000, there 16000\)"),
        (
            {"high_hz": -400, "snip_edges": False},
            OFFLINE,
            r"\(fbank.sample_scale is 32768.0, there",
        ),
        ({"dither": 1.0}, OFFLINE, r"\(fbank.dither is 1.0, there 0.0\)"),
        ({"frame_length_ms": 32.0}, OFFLINE, r"\(fbank.frame_length_ms is 32.0, there 25.0\)"),
    ],
)
def test_other_features_are_refused_by_the_keys_that_differ(fbank, kinds, what):
    with pytest.raises(UserError, match=what + r".*train with data.fbank: \{preset: sherpa\}"):
        sherpa.kind_of(model(**fbank), kinds)


def test_a_model_of_samples_is_refused():
    with pytest.raises(UserError, match=r"by itself, but this model reads samples"):
        sherpa.kind_of(model("waveform"), OFFLINE)


def test_tokens_have_ids_a_blank_and_word_starts():
    tokens = ["<blank>", "<unk>", "<space>", "a", "\u00e9", "<sos/eos>"]
    expected = "<blk> 0\n<unk> 1\n\u2581 2\na 3\n\u00e9 4\n<sos/eos> 5\n"
    assert sherpa.tokens_text(tokens, 0) == expected
    assert sherpa.tokens_text(["<blank>", "\u2581THE", "S"], 0) == "<blk> 0\n\u2581THE 1\nS 2\n"


@pytest.mark.parametrize(
    ("token", "what"),
    [
        ("SIL", "leaves the token 'SIL' out"),
        ("a b", "holds white space"),
        ("", "holds white space"),
        ("\u2581", "two tokens .* read as '\u2581'"),
        ("<blk>", "two tokens .* read as '<blk>'"),
        ("\u01a1", "read this vocabulary as one of bytes"),
    ],
)
def test_tokens_that_would_be_read_as_something_else_are_refused(token, what):
    with pytest.raises(UserError, match=what):
        sherpa.tokens_text(["<blank>", "<unk>", "<space>", token, "<sos/eos>"], 0)


def test_the_metadata_are_those_that_it_asks_for(toy):
    recognizer = asrtool.load(toy / "exp")
    kinds = {kind.name: kind for kind in OFFLINE}
    facts = sherpa.metadata(recognizer, kinds["zipformer_ctc"])
    size = str(recognizer.tokenizer.size)
    assert facts == {
        "model_type": "zipformer2_ctc",
        "vocab_size": size,
        "subsampling_factor": "4",
    }
    facts = sherpa.metadata(recognizer, kinds["fire_red_asr_ctc"])
    assert facts["model_type"] == "fire-red-asr-2-ctc" and facts["subsampling_factor"] == "4"
    assert facts["cmvn_mean"].split(",") == ["0"] * 80
    assert facts["cmvn_inv_stddev"].split(",") == ["1"] * 80


def test_export_json_says_how_to_make_the_recogniser(toy):
    recognizer = asrtool.load(toy / "exp")
    kinds = {kind.name: kind for kind in OFFLINE}
    facts = sherpa.facts_of(recognizer, kinds["zipformer_ctc"], streaming=False)
    assert facts == {
        "recognizer": "OfflineRecognizer.from_zipformer_ctc",
        "sample_rate": 8000,
        "feature_dim": 20,
    }
    assert sherpa.facts_of(recognizer, kinds["fire_red_asr_ctc"], streaming=False) == {
        "recognizer": "OfflineRecognizer.from_fire_red_asr_ctc"
    }


def test_times_of_other_frames_are_said_to_be_wrong(toy, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    recognizer = asrtool.load(toy / "exp")
    kinds = {kind.name: kind for kind in OFFLINE}
    sherpa.warn_of_times(recognizer, kinds["zipformer_ctc"])
    assert not caplog.text
    recognizer.model.encoder.seconds_per_frame = 0.08
    sherpa.warn_of_times(recognizer, kinds["fire_red_asr_ctc"])
    assert not caplog.text
    sherpa.warn_of_times(recognizer, kinds["zipformer_ctc"])
    assert "40 ms, which is 80 ms in this model" in caplog.text and "by 2" in caplog.text
