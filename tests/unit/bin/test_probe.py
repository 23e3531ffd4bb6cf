"""What one forward pass gives away, on models of a few hundred parameters; docs/report.md's
commands run it whole.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from asrtool.bin import probe
from asrtool.decoders import TransformerDecoderConfig
from asrtool.downsamplers import Conv2dConfig, StridedConvConfig
from asrtool.encoders import AccentConfig, QifusionConfig
from asrtool.encoders.conformer import ConformerConfig
from asrtool.errors import UserError
from asrtool.models import MODELS, HybridConfig
from asrtool.nn.attention import CrossAttention
from asrtool.types import Batch, EncoderOutput, Padded

VOCABULARY = ["<blank>", "<unk>", "a", "b", "c", "<sos/eos>"]
TOKENS = [["a", "b", "b"], ["c"], []]


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = ConformerConfig(
        num_layers=1,
        dim=16,
        num_heads=2,
        ffn_dim=32,
        kernel=5,
        downsamplers={0: Conv2dConfig(factor=4, channels=4)},
    )
    config = HybridConfig(
        encoder=encoder, decoder=TransformerDecoderConfig(num_layers=2, num_heads=2, ffn_dim=32)
    )
    streams = frozenset({"ctc", "attention"})
    return MODELS.build(config, input_dim=20, vocab_size=6, frame_shift=0.01, heads=streams).eval()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs = Padded.stack([torch.randn(length, 20, generator=generator) for length in (80, 37, 20)])
    empty = Padded.stack([torch.zeros(0, dtype=torch.int64)] * 3)
    return probe.with_targets(
        Batch(ids=("u1", "u2", "u3"), inputs=inputs, targets=empty), TOKENS, VOCABULARY
    )


@torch.inference_mode()
def test_blanks_and_attention_of_each_utterance(model):
    case = batch()
    lines = list(probe.taps(model, case, TOKENS))
    log_probs = model.log_probs(model.encode(case.inputs)).unpad()
    for line, name, tokens, row in zip(lines, case.ids, TOKENS, log_probs, strict=True):
        assert line["id"] == name and "key_frames" not in line
        curve = line["curves"]["ctc: not blank"]
        assert curve["step"] == pytest.approx(0.04)
        assert curve["values"] == pytest.approx((1 - row[:, 0].exp()).tolist(), abs=1e-4)
        heat = line["maps"]["attention of the decoder"]
        assert heat["rows"] == [*tokens, "<eos>"]
        assert [len(values) for values in heat["values"]] == [len(row)] * (len(tokens) + 1)
        assert [sum(values) for values in heat["values"]] == pytest.approx(
            [1] * (len(tokens) + 1), abs=5e-3
        )


@torch.inference_mode()
def test_the_weights_are_those_that_the_layer_used():
    torch.manual_seed(0)
    layer = CrossAttention(8, 1)
    x, frames, mask = (
        torch.randn(2, 3, 8),
        torch.randn(2, 5, 8),
        torch.arange(5) < torch.tensor([5, 3])[:, None],
    )
    memory = layer.project(frames)
    with probe.CrossAttentions(layer) as seen:
        output = layer(x, memory, mask[:, None, None])
    torch.testing.assert_close(layer.merge(seen.mean()[:, None] @ memory.value), output)
    assert seen.mean()[1, :, 3:].abs().max() == 0
    layer(x, memory, None)
    assert len(seen.weights) == 1, "nothing is collected outside"


@torch.inference_mode()
def test_kept_frames_and_taps(model, monkeypatch):
    case = batch()
    encode = model.encode

    def encode_with_taps(inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        found = encode(inputs, chunk)
        kept = Padded(found.frames.data[:, ::2], (found.frames.lengths + 1) // 2)
        gate = Padded(torch.full((*found.frames.data.shape[:2], 1), 0.25), found.frames.lengths)
        heads = Padded(torch.full((*found.frames.data.shape[:2], 3), 0.5), found.frames.lengths)
        wide = Padded(found.frames.data.repeat(1, 1, 2), found.frames.lengths)
        taps = {"gate": gate, "heads": heads, "wide": wide}
        return replace(found, frames=kept, positions=found.positions[:, ::2], taps=taps)

    monkeypatch.setattr(model, "encode", encode_with_taps)
    first = next(iter(probe.taps(model, case, TOKENS)))
    assert first["key_frames"] == pytest.approx([0.08 * n for n in range(10)])
    assert set(first["curves"]) == {"gate"}, "the head sees kept frames only, the tap all of them"
    assert first["curves"]["gate"]["values"] == [0.25] * 20
    assert first["maps"] == {"heads": {"step": pytest.approx(0.04), "values": [[0.5] * 20] * 3}}


def test_a_token_of_another_vocabulary_is_refused():
    with pytest.raises(UserError, match="utterance u2: token 'z' is not in the vocabulary"):
        probe.with_targets(batch(), [["a"], ["z"], []], VOCABULARY)


@torch.inference_mode()
def test_accents_are_a_map_and_a_stride_drops_no_frames():
    encoder = QifusionConfig(
        num_layers=2,
        dim=16,
        num_heads=2,
        ffn_dim=32,
        kernel=3,
        accent=AccentConfig(classes=3, layers=(1,)),
        downsamplers={
            0: Conv2dConfig(channels=4, causal=True),
            1: StridedConvConfig(kernel=3, causal=True),
        },
    )
    decoder = TransformerDecoderConfig(num_layers=1, num_heads=2, ffn_dim=32)
    streams = frozenset({"ctc", "attention", "accent"})
    torch.manual_seed(0)
    model = MODELS.build(
        HybridConfig(encoder=encoder, decoder=decoder),
        input_dim=20,
        vocab_size=6,
        frame_shift=0.01,
        heads=streams,
    )
    for line, length in zip(probe.taps(model.eval(), batch(), TOKENS), (10, 5, 3), strict=True):
        assert "key_frames" not in line and set(line["curves"]) == {"ctc: not blank"}
        assert line["curves"]["ctc: not blank"]["step"] == pytest.approx(0.08)
        accents = line["maps"]["accent"]["values"]
        assert [len(row) for row in accents] == [length] * 3
        assert [sum(column) for column in zip(*accents, strict=True)] == pytest.approx(
            [1] * length, abs=1e-3
        )
