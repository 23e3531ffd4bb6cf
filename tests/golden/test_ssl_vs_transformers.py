"""The pre-trained encoders give the numbers of `transformers`, from the weights that it writes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from asrtool.encoders import ENCODERS
from asrtool.types import Padded
from tests.toy_ssl import FAMILIES, make, save, waveforms

CASES = [(name, False) for name in FAMILIES] + [
    (name, True) for name in FAMILIES if name != "data2vec"
]
every_model = pytest.mark.parametrize("name, layer_norm", CASES)
every_family = pytest.mark.parametrize("name", FAMILIES)
LENGTHS = (9000, 16000, 5000)


def load(name: str, folder, **options):
    config = ENCODERS.config_type(name)(weights=str(folder), **options)
    return ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000).eval()


def normalised(samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the library's own feature extractor makes of waveforms: values and attention mask."""
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    arrays = [row.numpy() for row in samples]
    made = extractor(arrays, sampling_rate=16000, padding=True, return_tensors="pt")
    return made["input_values"], made["attention_mask"]


@every_model
def test_an_utterance_alone_has_the_frames_of_transformers(name, layer_norm, tmp_path):
    model = make(name, layer_norm)
    encoder = load(name, save(model, tmp_path))
    for row in waveforms(*LENGTHS):
        with torch.inference_mode():
            expected = model(normalised([row])[0]).last_hidden_state
            frames = encoder(Padded.stack([row])).frames
        assert frames.lengths.tolist() == [expected.shape[1]]
        torch.testing.assert_close(frames.data, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
def test_a_batch_has_the_frames_of_transformers_with_its_attention_mask(name, tmp_path):
    model = make(name, layer_norm=True)
    encoder = load(name, save(model, tmp_path))
    values, mask = normalised(waveforms(*LENGTHS))
    with torch.inference_mode():
        expected = model(values, attention_mask=mask).last_hidden_state
        frames = encoder(Padded.stack(waveforms(*LENGTHS))).frames
    for row, alone in enumerate(frames.unpad()):
        torch.testing.assert_close(alone, expected[row, : len(alone)], atol=1e-5, rtol=0)


@every_model
def test_a_batch_has_the_frames_of_each_utterance_alone(name, layer_norm, tmp_path):
    encoder = load(name, save(make(name, layer_norm), tmp_path)).double()
    rows = [row.double() for row in waveforms(*LENGTHS)]
    with torch.inference_mode():
        together = encoder(Padded.stack(rows)).frames.unpad()
        for row, samples in enumerate(rows):
            alone = encoder(Padded.stack([samples])).frames.data[0]
            torch.testing.assert_close(together[row], alone, atol=1e-10, rtol=0)


@every_family
def test_gradients_are_those_of_transformers(name, tmp_path):
    model = make(name)
    encoder = load(name, save(model, tmp_path), normalize=False).double()
    values = waveforms(9000)[0].double()
    frames = model.double()(values[None]).last_hidden_state
    weights = torch.randn(frames.shape, dtype=torch.float64)
    (frames * weights).sum().backward()
    (encoder(Padded.stack([values])).frames.data * weights).sum().backward()
    expected = {
        key: value.grad for key, value in model.named_parameters() if value.grad is not None
    }
    found = {
        key: value.grad for key, value in encoder.model.named_parameters() if value.grad is not None
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-9, rtol=1e-6)


def test_the_weights_of_a_recogniser_load_without_its_head(tmp_path):
    from transformers import Wav2Vec2ForCTC

    model = make("wav2vec2")
    whole = Wav2Vec2ForCTC(model.config)
    whole.wav2vec2.load_state_dict(model.state_dict())
    whole.save_pretrained(tmp_path)
    encoder = load("wav2vec2", tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[key], value)


def test_weights_of_another_family_are_refused(tmp_path):
    save(make("hubert"), tmp_path)
    with pytest.raises(ValueError, match="hold a model of type 'hubert'; take weights of wavlm"):
        load("wavlm", tmp_path)


def test_weights_of_another_size_are_refused(tmp_path):
    save(make("hubert"), tmp_path)
    with pytest.raises(ValueError, match="size: base means"):
        load("hubert", tmp_path, size="base")


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save(make("hubert"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layers.1.attention.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError,
        match="lack 1 of its tensors, such as encoder.layers.1.attention.q_proj.weight",
    ):
        load("hubert", tmp_path)


def test_weights_that_are_nowhere_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="weights .* cannot be read .*; expected a folder with the config.json"
    ):
        load("hubert", tmp_path / "nothing")


def test_features_are_refused():
    config = ENCODERS.config_type("hubert")(size="tiny")
    with pytest.raises(ValueError, match="set data.input: waveform"):
        ENCODERS.build(config, input_dim=80, vocab_size=5, frame_shift=0.01)


@every_family
def test_masks_and_layer_drop_follow_the_seeds_and_leave_evaluation_alone(name, tmp_path):
    folder = save(make(name), tmp_path)
    plain = load(name, folder)
    noisy = load(
        name, folder, time_mask=0.5, channel_mask=0.5, channel_mask_length=4, layer_drop=0.5
    )
    inputs = Padded.stack(waveforms(16000, 9000))
    assert torch.equal(noisy(inputs).frames.data, plain(inputs).frames.data)

    def drawn(seed: int) -> torch.Tensor:
        import random

        torch.manual_seed(seed)
        random.seed(seed)
        return noisy.train()(inputs).frames.data

    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))


def test_the_meta_device_needs_no_weights():
    config = ENCODERS.config_type("hubert")(weights="facebook/hubert-large-ll60k", size="large")
    with torch.device("meta"):
        encoder = ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000)
    assert 3.1e8 < sum(parameter.numel() for parameter in encoder.parameters()) < 3.2e8
    assert (
        encoder.frame_shift == pytest.approx(0.02) and dataclasses.replace(config).size == "large"
    )
