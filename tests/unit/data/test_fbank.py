from __future__ import annotations

import pytest
import torch

from asrtool.data.fbank import Fbank, FbankConfig, mel_filters
from asrtool.types import Padded

# float32: sums of another batch are taken in another order; log of small energies magnifies it
ROUNDING = 2e-4


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_only_whole_frames_count() -> None:
    fbank = Fbank(FbankConfig())
    counts = {samples: len(fbank(noise(samples))) for samples in (0, 1, 399, 400, 559, 560, 16000)}
    assert counts == {0: 0, 1: 0, 399: 0, 400: 1, 559: 1, 560: 2, 16000: 98}
    assert counts == {samples: FbankConfig().num_frames(samples) for samples in counts}


def test_padding_and_neighbours_do_not_change_the_features() -> None:
    fbank = Fbank(FbankConfig())
    rows = [noise(length, seed=length) for length in (16000, 399, 47111, 8000)]
    batch = fbank(Padded.stack(rows, padding=0.3))
    assert batch.lengths.tolist() == [98, 0, 292, 48]
    for row, found in zip(rows, batch.unpad(), strict=True):
        torch.testing.assert_close(found, fbank(row), atol=ROUNDING, rtol=0)


def test_mirrored_ends_give_a_frame_for_every_shift_whatever_stands_behind_a_row() -> None:
    fbank = Fbank(FbankConfig(snip_edges=False))
    counts = [(0, 0), (79, 0), (80, 1), (239, 1), (240, 2), (16000, 100)]
    rows = [noise(length, seed=length) for length, _ in counts]
    batch = fbank(Padded.stack(rows, padding=0.3))
    assert batch.lengths.tolist() == [count for _, count in counts]
    for row, found in zip(rows, batch.unpad(), strict=True):
        torch.testing.assert_close(found, fbank(row), atol=ROUNDING, rtol=0)
        mirror = torch.cat([row.flip(0), row, row.flip(0)])  # by hand, where one mirror is enough
        if len(row) >= 280:
            whole = Fbank(FbankConfig())(mirror[len(row) - 120 :])
            torch.testing.assert_close(found, whole[: len(found)], atol=ROUNDING, rtol=0)


def test_a_preset_is_its_settings() -> None:
    config = FbankConfig(preset="sherpa", num_mel_bins=40, rate=8000)
    assert config == FbankConfig(
        high_hz=-400.0, snip_edges=False, sample_scale=1.0, num_mel_bins=40, rate=8000
    )
    assert FbankConfig(preset="sherpa", high_hz=-400) == FbankConfig(preset="sherpa")


def test_folders_from_before_a_setting_stay_up_to_date() -> None:
    before = ("dither", "frame_length_ms", "frame_shift_ms", "high_hz", "low_hz")
    assert sorted(FbankConfig().stamped()) == [*before, "num_mel_bins", "rate"]
    assert FbankConfig(preset="sherpa").stamped()["snip_edges"] is False


def test_the_scale_of_samples_moves_the_features_and_the_floor() -> None:
    samples = torch.cat([noise(8000), torch.zeros(1600)])
    one, scaled = (Fbank(FbankConfig(sample_scale=scale))(samples) for scale in (1.0, 32768.0))
    floor = torch.finfo(torch.float32).eps
    expected = (scaled - 2 * torch.tensor(32768.0).log()).clamp(min=torch.tensor(floor).log())
    torch.testing.assert_close(one, expected, atol=ROUNDING, rtol=0)


def test_frames_beyond_the_length_are_zero() -> None:
    batch = Fbank(FbankConfig())(Padded(noise(2, 16000), torch.tensor([16000, 5000])))
    assert not batch.data[1, batch.lengths[1] :].any() and batch.data[0].all()


def test_long_audio_gives_the_same_frames_as_its_parts() -> None:
    fbank, samples = Fbank(FbankConfig()), noise(160 * 1000 + 240)
    torch.testing.assert_close(
        fbank(samples)[700:], fbank(samples[160 * 700 :]), atol=ROUNDING, rtol=0
    )


def test_a_constant_offset_does_not_matter() -> None:
    fbank, samples = Fbank(FbankConfig()), noise(8000)
    # rounding next to the offset
    torch.testing.assert_close(fbank(samples + 0.1), fbank(samples), atol=5e-3, rtol=0)


def test_silence_gives_the_floor_and_no_infinity() -> None:
    features = Fbank(FbankConfig())(torch.zeros(1600))
    torch.testing.assert_close(
        features, torch.full_like(features, torch.finfo(torch.float32).eps).log()
    )


def test_a_tone_is_loudest_in_the_filter_around_it() -> None:
    config = FbankConfig()
    tone = 0.3 * torch.sin(2 * torch.pi * 1000 / config.rate * torch.arange(8000))
    filters = mel_filters(config)
    expected = filters[round(1000 * config.fft_size / config.rate)].argmax()
    assert (Fbank(config)(tone).argmax(dim=1) == expected).all()


def test_dither_follows_the_seed_and_hides_digital_silence() -> None:
    fbank = Fbank(FbankConfig(dither=1.0))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(fbank(torch.zeros(1600)))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert results[0].mean() > 0


def test_the_samples_stay_as_they_are() -> None:
    samples = noise(1600)
    before = samples.clone()
    Fbank(FbankConfig(dither=1.0))(samples)
    assert torch.equal(samples, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_features() -> None:
    samples = Padded(noise(3, 16000), torch.tensor([16000, 12000, 399]))
    fbank = Fbank(FbankConfig())
    found = fbank(samples.to("cuda"))
    assert found.data.device.type == "cuda" and found.lengths.device.type == "cuda"
    torch.testing.assert_close(found.data.cpu(), fbank(samples).data, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_mel_bins": 2}, "num_mel_bins is 2"),
        ({"high_hz": 9000}, "are not within 0 to 8000 Hz"),
        ({"low_hz": 4000, "high_hz": 3000}, "filters from 4000 to 3000 Hz"),
        ({"frame_shift_ms": 0}, "frame_shift_ms"),
        ({"frame_shift_ms": 30}, "frame_shift_ms"),
        ({"rate": 0}, "rate"),
        ({"dither": -1}, "dither"),
        ({"sample_scale": 0}, "sample_scale is 0"),
        ({"preset": "sherpa", "high_hz": 4000}, "preset: sherpa means high_hz: -400"),
        ({"preset": "sherpa", "dither": 1.0}, "preset: sherpa means dither: 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FbankConfig(**settings)
