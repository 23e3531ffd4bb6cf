"""A step of a search in machine code, against the same layers in torch."""

from __future__ import annotations

import pytest
import torch

from asrtool.decoders import TransformerDecoder, TransformerDecoderConfig, step
from asrtool.decoders.transformer import DecoderState
from asrtool.types import EncoderOutput, Padded

DIM, VOCABULARY, STEPS = 24, 13, 24  # steps enough for nodes of dead beams to be removed


def decoder(**settings) -> TransformerDecoder:
    torch.manual_seed(0)
    config = TransformerDecoderConfig(num_layers=2, num_heads=3, ffn_dim=40, **settings)
    module = TransformerDecoder(config, dim=DIM, vocab_size=VOCABULARY).eval()
    for parameter in module.parameters():  # biases and norms are 0 and 1 before training
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def encoded(lengths: tuple[int, ...]) -> EncoderOutput:
    frames = torch.randn(
        len(lengths), max(lengths), DIM, generator=torch.Generator().manual_seed(1)
    )
    positions = torch.arange(max(lengths)).expand(len(lengths), -1)
    return EncoderOutput(frames=Padded(frames, torch.tensor(lengths)), positions=positions)


@torch.inference_mode()
def follow(module, lengths, beam: int) -> tuple[list[torch.Tensor], DecoderState]:
    """The scores of each step of a search whose beams die, move and leave at random."""
    generator = torch.Generator().manual_seed(2)
    state, found = module.start(encoded(lengths), beam), []
    prefixes = torch.full((len(lengths) * beam, 1), module.sos)
    for number in range(STEPS):
        scores, state = module.score(prefixes, state, None)
        found.append(scores)
        utterances = len(prefixes) // beam
        going = torch.arange(utterances)[: 1 if number == STEPS // 2 else None]
        # most beams follow the first one: the others' nodes die
        parents = torch.randint(beam, (len(going), beam), generator=generator).clamp(max=1)
        rows = (going[:, None] * beam + parents).flatten()
        state = module.select(state, rows)
        newest = torch.randint(VOCABULARY - 1, (len(rows), 1), generator=generator)
        prefixes = torch.cat([prefixes[rows], newest], 1)
    return found, state


@pytest.mark.parametrize("lengths", [(9,), (9, 4), (3, 7, 1)], ids=str)
@pytest.mark.parametrize("beam", [1, 4, 5, 12])
def test_scores_are_those_of_torch(monkeypatch, lengths, beam):
    monkeypatch.setattr(step, "FEW", 100)
    found, state = follow(decoder(), lengths, beam)
    assert state.weights is not None
    if beam > 2:
        assert state.seen.shape[2] < STEPS * beam  # nodes were removed
    monkeypatch.setattr(step, "suits", lambda frames, rows: False)
    expected, state = follow(decoder(), lengths, beam)
    assert state.weights is None
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_an_output_layer_of_its_own_and_no_layers(monkeypatch):
    for module in (decoder(tied=False), decoder()):
        module.layers = module.layers[: 2 if module.output_weight is not None else 0]
        monkeypatch.setattr(step, "suits", lambda frames, rows: True)
        found, _ = follow(module, (5,), 3)
        monkeypatch.setattr(step, "suits", lambda frames, rows: False)
        for one, other in zip(found, follow(module, (5,), 3)[0], strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_a_state_may_be_continued_twice():
    module, prefixes = decoder(), torch.full((3, 1), VOCABULARY - 1)
    with torch.inference_mode():
        _, state = module.score(prefixes, module.start(encoded((6,)), 3), None)
        scores = [
            module.score(torch.cat([prefixes, torch.tensor([[1], [token], [2]])], 1), state)[0]
            for token in (3, 4, 3)
        ]
    assert scores[0].equal(scores[2])
    assert not scores[0][1].allclose(scores[1][1])


def test_where_torch_computes(monkeypatch):
    frames = torch.zeros(1, 2, DIM)
    assert not step.suits(frames, 10)  # a gradient may be taken
    with torch.inference_mode():
        assert step.suits(frames, 10)
        assert not step.suits(frames.double(), 10)
        with torch.autocast("cpu", torch.bfloat16):
            assert not step.suits(frames, 10)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        assert step.suits(frames, step.FEW)
        assert not step.suits(frames, step.FEW + 1)


def test_a_wrapped_projection_is_left_to_torch():
    """As LoRA wraps it: its class is not that of torch."""

    class Wrapped(torch.nn.Linear):
        pass

    module = decoder()
    module.layers[1].attention.v_proj = Wrapped(DIM, DIM)
    with torch.inference_mode():
        assert module.start(encoded((4,)), 5).weights is None
