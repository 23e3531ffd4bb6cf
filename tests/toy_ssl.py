"""Tiny random models of `transformers`, written to disk as published ones are."""

from __future__ import annotations

from pathlib import Path

import torch

from asrtool import torchaudio_adapter

FAMILIES = {
    "data2vec": "Data2VecAudio",
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "wavlm": "WavLM",
}
SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embedding_groups": 4,
}


def make(name: str, layer_norm: bool = False, **settings):
    """A model in evaluation mode; `layer_norm`: convolutions and layers normalised as in the
    published large models.
    """
    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    import transformers

    kind = getattr(transformers, FAMILIES[name] + "Model")
    if layer_norm:
        settings = {
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
            **settings,
        }
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**SHAPE, **settings})).eval()
    # biases and gains that are not 0 and 1, or what leaves them out would pass
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def waveforms(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) + 0.02 for length in lengths]


def make_whisper(**settings):
    """A whole tiny Whisper, encoder and decoder."""
    torchaudio_adapter.load()
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    shape = {
        "d_model": 24,
        "encoder_layers": 3,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "vocab_size": 100,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
    }
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**shape, **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_bert(**settings):
    """A tiny wav2vec-BERT."""
    torchaudio_adapter.load()
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    shape = {key: value for key, value in SHAPE.items() if "conv" not in key}
    torch.manual_seed(0)
    model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**{**shape, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
