"""Laws of every registered decoder, in training and as a scorer of a search."""

from __future__ import annotations

import pytest
import torch

from asrtool.decoders import DECODERS
from asrtool.types import EncoderOutput, Padded

DIM, VOCABULARY, SMALL = (
    16,
    9,
    {"transformer": {"num_layers": 2, "num_heads": 2, "ffn_dim": 32, "dropout": 0.0}},
)
# name of a variant -> what it changes in an entry
VARIANTS = {"transformer, untied": {"tied": False}}
every_decoder = pytest.mark.parametrize("name", [*DECODERS.names(), *VARIANTS])


def build(name):
    torch.manual_seed(0)
    entry = name.split(",")[0]
    config = DECODERS.config_type(entry)(**{**SMALL[entry], **VARIANTS.get(name, {})})
    return DECODERS.build(config, dim=DIM, vocab_size=VOCABULARY).eval()


def encoded(lengths=(7, 4, 1)):
    generator = torch.Generator().manual_seed(1)
    frames = Padded.stack([torch.randn(length, DIM, generator=generator) for length in lengths])
    data = torch.where(frames.mask[..., None], frames.data, 50.0)  # garbage in the padding
    return EncoderOutput(
        frames=Padded(data, frames.lengths),
        positions=torch.arange(data.shape[1]).expand(len(lengths), -1),
    )


def targets(rows=((1, 2, 3), (4,), ())):
    return Padded.stack([torch.tensor(row, dtype=torch.int64) for row in rows])


@every_decoder
def test_logits_have_a_row_for_each_token_and_for_the_end(name):
    logits = build(name)(encoded(), targets())
    assert logits.data.shape == (3, 4, VOCABULARY) and logits.lengths.tolist() == [4, 2, 1]
    assert torch.isfinite(logits.data).all()


@every_decoder
def test_padding_of_frames_and_tokens_changes_nothing(name):
    decoder = build(name)
    together = decoder(encoded(), targets()).data
    for row, (length, tokens) in enumerate(zip((7, 4, 1), ((1, 2, 3), (4,), ()), strict=True)):
        frames = encoded().frames.data[row : row + 1, :length]
        alone = EncoderOutput(
            frames=Padded(frames, torch.tensor([length])), positions=torch.arange(length)[None]
        )
        single = decoder(alone, targets((tokens,))).data
        torch.testing.assert_close(
            single[0], together[row, : len(tokens) + 1], atol=1e-5, rtol=1e-5
        )


@every_decoder
def test_a_token_does_not_see_later_ones(name):
    decoder = build(name)
    first, second = (
        decoder(encoded(), targets()).data,
        decoder(encoded(), targets(((1, 2, 8), (4,), ()))).data,
    )
    torch.testing.assert_close(first[0, :3], second[0, :3])
    assert not torch.allclose(first[0, 3], second[0, 3])


@every_decoder
@torch.inference_mode()
def test_scoring_token_by_token_equals_the_training_pass(name):
    decoder, beam = build(name), 2
    # two beams of three utterances
    rows = ((1, 2, 3), (1, 5, 6), (4, 4, 4), (3, 2, 1), (7, 7, 1), (2, 2, 2))
    repeated = EncoderOutput(
        frames=Padded(
            encoded().frames.data.repeat_interleave(beam, 0),
            encoded().frames.lengths.repeat_interleave(beam),
        ),
        positions=encoded().positions.repeat_interleave(beam, 0),
    )
    expected = decoder(repeated, targets(rows)).data.log_softmax(-1)
    state = decoder.start(encoded(), beam)
    prefixes = torch.full((6, 1), VOCABULARY - 1)
    for step in range(4):
        scores, state = decoder.score(prefixes, state, None)
        torch.testing.assert_close(scores, expected[:, step], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores.logsumexp(-1), torch.zeros(6), atol=1e-5, rtol=0)
        if step < 3:
            prefixes = torch.cat([prefixes, torch.tensor(rows)[:, step : step + 1]], dim=1)


@every_decoder
@torch.inference_mode()
def test_selecting_rows_moves_beams_and_drops_utterances(name):
    decoder, beam = build(name), 2
    prefixes = torch.tensor([[8, 1], [8, 2], [8, 3], [8, 4], [8, 5], [8, 6]])
    _, state = decoder.score(prefixes[:, :1], decoder.start(encoded(), beam), None)
    everything, _ = decoder.score(prefixes, state, None)
    swapped = torch.tensor([1, 0, 5, 4])  # the second utterance is done
    some, _ = decoder.score(prefixes[swapped], decoder.select(state, swapped), None)
    torch.testing.assert_close(some, everything[swapped], atol=1e-5, rtol=1e-5)


@every_decoder
def test_every_parameter_gets_a_gradient(name):
    decoder = build(name)
    decoder(encoded(), targets()).data.square().sum().backward()
    assert not [key for key, parameter in decoder.named_parameters() if parameter.grad is None]


def test_an_untied_output_layer_has_weights_of_its_own():
    sizes = [
        sum(p.numel() for p in build(name).parameters()) for name in ("transformer", *VARIANTS)
    ]
    assert sizes[1] - sizes[0] == DIM * VOCABULARY
