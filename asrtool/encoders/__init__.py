"""The encoders: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.encoders.base import (
    ENCODERS,
    Encoder,
    EncoderConfig,
    StreamingEncoder,
    check_encoder,
)
from asrtool.encoders.cnn import Cnn, CnnConfig
from asrtool.encoders.conformer import ChunkConfig, Conformer, ConformerConfig
from asrtool.encoders.ebranchformer import EBranchformer, EBranchformerConfig
from asrtool.encoders.echo import ATTENTIONS, EchoConfig
from asrtool.encoders.pretrained import PretrainedConfig, PretrainedEncoder
from asrtool.encoders.qifusion import AccentConfig, Qifusion, QifusionConfig
from asrtool.encoders.ssl import (
    Data2vecConfig,
    HubertConfig,
    SslConfig,
    SslEncoder,
    Wav2vec2Config,
    WavlmConfig,
)
from asrtool.encoders.wav2vec2_bert import Wav2vec2Bert, Wav2vec2BertConfig
from asrtool.encoders.whisper import Whisper, WhisperConfig

__all__ = [
    "ATTENTIONS",
    "ENCODERS",
    "AccentConfig",
    "ChunkConfig",
    "Cnn",
    "CnnConfig",
    "Conformer",
    "ConformerConfig",
    "Data2vecConfig",
    "EBranchformer",
    "EBranchformerConfig",
    "EchoConfig",
    "Encoder",
    "EncoderConfig",
    "HubertConfig",
    "PretrainedConfig",
    "PretrainedEncoder",
    "Qifusion",
    "QifusionConfig",
    "SslConfig",
    "SslEncoder",
    "StreamingEncoder",
    "Wav2vec2Bert",
    "Wav2vec2BertConfig",
    "Wav2vec2Config",
    "WavlmConfig",
    "Whisper",
    "WhisperConfig",
    "check_encoder",
]
