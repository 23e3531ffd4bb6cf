"""Whisper's encoder and wav2vec-BERT give the numbers of `transformers`.

ASRTOOL_PRETRAINED names a folder with whisper-base and whisper-tiny.en for the slow tests, and
ASRTOOL_SPEECH one with recordings of 16 kHz.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile
import torch

from asrtool.encoders import ENCODERS, Wav2vec2BertConfig, WhisperConfig
from asrtool.types import Padded
from tests.toy_ssl import make_bert, make_whisper, save, waveforms

# ragged: 30 s, less than a mel frame, odd and even numbers of mel frames, a part of one
LENGTHS = (16000, 480000, 100, 5121, 48000, 9007)


def load(folder, **options):
    config = WhisperConfig(weights=str(folder), **options)
    return ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000).eval()


def rows() -> list[torch.Tensor]:
    """Noise that swells, so that the floor of the mel is reached."""
    return [
        row * (0.01 + torch.sin(torch.arange(len(row)) / 9e3) ** 8) for row in waveforms(*LENGTHS)
    ]


def features(samples: list[torch.Tensor], bins: int = 80) -> torch.Tensor:
    from transformers import WhisperFeatureExtractor

    arrays = [row.numpy() for row in samples]
    extractor = WhisperFeatureExtractor(feature_size=bins)
    return extractor(arrays, sampling_rate=16000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model = make_whisper()
    return model, save(model, tmp_path_factory.mktemp("whisper"))


@pytest.mark.parametrize("padded", [True, False])
def test_the_log_mel_is_that_of_the_feature_extractor(tiny, padded):
    found = load(tiny[1], pad_to_30s=padded).log_mel(Padded.stack(rows()))
    assert found.lengths.tolist() == [max(1, length // 160) for length in LENGTHS]
    for row, expected, count in zip(
        found.data, features(rows()), found.lengths.tolist(), strict=True
    ):
        upto = 3000 if padded else min(count + 3, 3000)
        torch.testing.assert_close(row[:, :upto], expected[:, :upto], atol=1e-6, rtol=0)


def test_padded_frames_are_those_of_transformers(tiny):
    model, folder = tiny
    encoder = load(folder, pad_to_30s=True)
    with torch.inference_mode():
        expected = model.model.encoder(features(rows())).last_hidden_state
        frames = encoder(Padded.stack(rows())).frames
    assert frames.lengths.tolist() == [50, 1500, 1, 16, 150, 28]
    for row, found in enumerate(frames.unpad()):
        torch.testing.assert_close(found, expected[row, : len(found)], atol=1e-4, rtol=0)


def test_thirty_seconds_are_the_same_in_both_forms(tiny):
    whole = Padded.stack(rows()[1:2])
    with torch.inference_mode():
        one, other = (
            load(tiny[1], pad_to_30s=padded)(whole).frames.data for padded in (True, False)
        )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padded", [True, False])
def test_the_batch_changes_nothing(tiny, padded):
    encoder = load(tiny[1], pad_to_30s=padded)
    samples = [row for row in rows() if len(row) < 50000]
    with torch.inference_mode():
        together = encoder(Padded.stack(samples, padding=float("nan"))).frames.unpad()
        for row, frames in zip(samples, together, strict=True):
            alone = encoder(Padded.stack([row])).frames.data[0]
            torch.testing.assert_close(frames, alone, atol=1e-5, rtol=0)


def test_layers_are_those_of_transformers(tiny):
    model, folder = tiny
    inputs = Padded.stack(rows()[:1])
    with torch.inference_mode():
        states = model.model.encoder(features(rows()[:1]), output_hidden_states=True).hidden_states
        second = load(folder, layer=2, pad_to_30s=True)
        torch.testing.assert_close(second(inputs).frames.data, states[2][:, :50], atol=1e-4, rtol=0)
        total = load(folder, layer="sum", pad_to_30s=True)(inputs).frames.data
    assert len(second.model.layers) == 2
    torch.testing.assert_close(total, torch.stack(states[1:]).mean(0)[:, :50], atol=1e-4, rtol=0)


def test_longer_audio_is_refused(tiny):
    encoder = load(tiny[1])
    with pytest.raises(ValueError, match=r"30.1 seconds: encoder whisper reads at most 30; cut it"):
        encoder(Padded.stack([torch.zeros(481000)]))
    assert encoder(Padded.stack([torch.zeros(480100)])).frames.lengths.tolist() == [1500]


@pytest.mark.parametrize("config", [WhisperConfig(size="tiny"), Wav2vec2BertConfig(size="tiny")])
def test_another_sampling_rate_is_refused(config):
    with pytest.raises(ValueError, match="reads samples at 16000 Hz, got 8000 Hz"):
        ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 8000)


def test_masks_and_layer_drop_follow_the_seeds_and_leave_evaluation_alone(tiny):
    import random

    plain = load(tiny[1])
    noisy = load(tiny[1], time_mask=0.5, channel_mask=0.5, channel_mask_length=4, layer_drop=0.5)
    inputs = Padded.stack(waveforms(16000, 9000))
    assert torch.equal(noisy(inputs).frames.data, plain(inputs).frames.data)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        random.seed(seed)
        return noisy.train()(inputs).frames.data

    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))


def test_the_meta_device_needs_no_weights():
    config = WhisperConfig(weights="openai/whisper-base", size="base")
    with torch.device("meta"):
        encoder = ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000)
    assert 1.9e7 < sum(parameter.numel() for parameter in encoder.parameters()) < 2.1e7
    assert encoder.frame_shift == pytest.approx(0.02) and encoder.max_seconds == pytest.approx(30)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper-base", "whisper-tiny.en"])
def test_published_weights_on_speech(name):
    from transformers import WhisperModel

    found = [os.environ.get(key) for key in ("ASRTOOL_PRETRAINED", "ASRTOOL_SPEECH")]
    if None in found or not (Path(found[0]) / name).is_dir():
        pytest.skip("ASRTOOL_PRETRAINED and ASRTOOL_SPEECH name no folders with weights and speech")
    folder, files = Path(found[0]) / name, sorted(Path(found[1]).rglob("*.flac"))[:3]
    samples = [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files]
    samples = [row[:length] for row, length in zip(samples, (200000, 40000, 20123), strict=True)]
    with torch.inference_mode():
        expected = WhisperModel.from_pretrained(folder).eval().encoder(features(samples))[0]
        for padded in (True, False):
            encoder = load(folder, pad_to_30s=padded)
            frames = encoder(Padded.stack(samples)).frames.unpad()
            for row, (one, alone) in enumerate(zip(frames, samples, strict=True)):
                if padded:
                    torch.testing.assert_close(one, expected[row, : len(one)], atol=1e-4, rtol=0)
                alone = encoder(Padded.stack([alone])).frames.data[0]
                # of the largest number: other sums in other shapes
                assert (one - alone).abs().max() <= 1e-5 * alone.abs().max()


@pytest.mark.parametrize("positions", ["relative_key", "rotary"])
def test_wav2vec_bert(tmp_path, positions):
    from transformers import SeamlessM4TFeatureExtractor

    model, samples = make_bert(position_embeddings_type=positions), waveforms(16000, 9000, 5111)
    config = Wav2vec2BertConfig(weights=str(save(model, tmp_path)))
    encoder = ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000).eval()
    extract = SeamlessM4TFeatureExtractor()
    batch = extract([row.numpy() for row in samples], sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).last_hidden_state
        frames = encoder(Padded.stack(samples)).frames
        assert frames.lengths.tolist() == batch["attention_mask"].sum(1).tolist()
        for row, found in enumerate(frames.unpad()):
            torch.testing.assert_close(found, expected[row, : len(found)], atol=1e-4, rtol=0)
            alone = encoder(Padded.stack([samples[row]])).frames.data[0]
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
