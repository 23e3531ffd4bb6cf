"""Weights in a local folder never lead to a question to the hub."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from asrtool.data import tokenizers
from asrtool.encoders import ENCODERS
from asrtool.models import llm, origins
from asrtool.stored_frames import FrontEnd
from tests import toy_llm, toy_ssl

pytestmark = pytest.mark.hf


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that were asked for; every connection is refused. Online, or nobody asks."""
    found: list[object] = []

    def refuse(*address: object, **options: object) -> None:
        found.append(address)
        raise OSError("no network in this test")

    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    if hasattr(transformers.utils.hub, "_is_offline_mode"):
        monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", False)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return found


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["hubert", "whisper", "wav2vec2-bert"])
def test_an_encoder(tmp_path: Path, asked: list, name: str, device: str) -> None:
    model = {"whisper": toy_ssl.make_whisper, "wav2vec2-bert": toy_ssl.make_bert}.get(name)
    toy_ssl.save(model() if model else toy_ssl.make(name), tmp_path)
    config = ENCODERS.config_type(name)(weights=str(tmp_path), tuning=frozen(name))
    with torch.device(device):
        ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000)
    origins.fingerprint(str(tmp_path), None, "encoder")
    assert FrontEnd(config=config, rate=16000).name.startswith(f"{name}-last-")
    assert asked == []


def frozen(name: str) -> object:
    tuning = ENCODERS.config_type(name).__dataclass_fields__["tuning"].default
    return type(tuning)(mode="frozen")


def test_a_language_model_and_its_tokenizer(tmp_path: Path, asked: list) -> None:
    toy_llm.save_llm(tmp_path)
    llm.load(toy_llm.config(tmp_path).llm, len(toy_llm.LETTERS) + 3)
    tokenizers.load_hf(str(tmp_path))
    assert asked == []


def test_a_name_of_the_hub_does_ask(asked: list) -> None:
    """The other tests could not fail if this one did not."""
    config = ENCODERS.config_type("hubert")(weights="nobody/no-such-model")
    with pytest.raises(ValueError, match="nobody/no-such-model"):
        ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000)
    assert asked
