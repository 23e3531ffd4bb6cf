"""Rows leave a running session and others enter it; none notices."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from asrtool.decoders import TransformerDecoderConfig
from asrtool.downsamplers import Conv2dConfig, Keyframe, KeyframeConfig, StridedConvConfig
from asrtool.encoders import ChunkConfig, ConformerConfig, EchoConfig
from asrtool.encoders.qifusion import AccentConfig, QifusionConfig
from asrtool.experiment import DecodeConfig
from asrtool.heads import LstmConfig, TransducerHeadConfig
from asrtool.models import MODELS, HybridConfig
from asrtool.recognition import Classifier
from asrtool.recognizer import Recognizer
from asrtool.searchers import SEARCHERS, CtcPrefixBeamConfig
from asrtool.streaming import Session
from asrtool.types import EncoderOutput, Hypothesis, Padded

BINS, VOCABULARY, CHUNK = 20, 9, 3
SHAPE = {"num_layers": 3, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 5, "dropout": 0.0}
STEM = {0: Conv2dConfig(channels=4, causal=True)}
STRIDED = {
    0: Conv2dConfig(channels=4, factor=2, causal=True),
    1: StridedConvConfig(kernel=3, causal=True),
}
KEY_FRAMES = {**STEM, 1: KeyframeConfig(causal=True)}


def conformer(downsamplers: dict, left_chunks: int | None, **options) -> object:
    chunk = ChunkConfig(left_chunks=left_chunks)
    return ConformerConfig(**SHAPE, causal=True, chunk=chunk, downsamplers=downsamplers, **options)


def qifusion(left_chunks: int | None) -> object:
    return QifusionConfig(
        **SHAPE,
        chunk=ChunkConfig(left_chunks=left_chunks),
        downsamplers=STRIDED,
        accent=AccentConfig(classes=3),
    )


ENCODERS = {
    "conformer": conformer(STEM, None),
    "conformer, 2 left chunks": conformer(STRIDED, 2, positions="relative"),
    "key frames": conformer(KEY_FRAMES, 2),
    "echo": conformer(STRIDED, 1, attention=EchoConfig(windows=(9,), look="back")),
    "qifusion": qifusion(None),
    "qifusion, 1 left chunk": qifusion(1),
}
SEARCHES = {
    "greedy": ("ctc_greedy", {}),
    # wide: of random weights, prefixes tie to 1e-7, and a narrow beam would keep either
    "prefix beam": ("ctc_prefix_beam", {"beam": 30}),
    "two passes": ("attention_rescoring", {"first_pass": CtcPrefixBeamConfig(beam=30)}),
    "transducer": ("transducer_greedy", {}),
    "transducer's beam": ("transducer_beam", {}),
}
CASES = [
    *((encoder, "greedy") for encoder in ENCODERS),
    *(("qifusion, 1 left chunk", search) for search in SEARCHES if search != "greedy"),
]


def recognizer(encoder: str, search: str) -> Recognizer:
    """Random weights, sharp enough to say something."""
    torch.manual_seed(0)
    heads = {"ctc", "attention", "transducer"}
    config = HybridConfig(
        encoder=ENCODERS[encoder],
        decoder=TransformerDecoderConfig(num_layers=1, num_heads=2, ffn_dim=16),
        heads={"transducer": TransducerHeadConfig(predictor=LstmConfig(dim=16), dim=16)},
    )
    model = MODELS.build(
        config,
        input_dim=BINS,
        vocab_size=VOCABULARY,
        frame_shift=0.01,
        heads=frozenset(heads),
    ).eval()
    with torch.no_grad():
        noise = Padded.stack([torch.randn(200, BINS)])
        for downsampler in model.encoder.downsamplers.values():
            if isinstance(downsampler, Keyframe):
                sharpen(downsampler.head, model.encode(noise, CHUNK).taps["inter_ctc"])
        ctc = model.heads["ctc"]
        sharpen(ctc, ctc.logits(model.encode(noise, CHUNK)))
        for parameter in model.heads["transducer"].parameters():
            parameter.mul_(6)
        model.heads["transducer"].joiner.bias[0] += 3.0
    kind, settings = SEARCHES[search]
    searcher = SEARCHERS.config_type(kind)(**settings)
    accents = Classifier("accent", "accent", ("a", "b", "c"))
    return Recognizer(
        config=None,
        settings=DecodeConfig(
            searcher=searcher, chunk_ms=1000 * CHUNK * model.encoder.seconds_per_frame
        ),
        model=model,
        searcher=SEARCHERS.build(searcher, model=model),
        tokenizer=SimpleNamespace(decode=lambda tokens: " ".join(map(str, tokens))),
        cmvn=None,
        weights=Path(),
        classifiers=(accents,) if encoder.startswith("qifusion") else (),
    )


def sharpen(head: torch.nn.Linear, logits: Padded) -> None:
    """Let another token win in every other frame: these logits get the mean 0, and count more."""
    head.bias -= logits.data.mean((0, 1))
    head.weight.mul_(5)
    head.bias.mul_(5)


@dataclass
class Utterance:
    """Features, of which the first `at` were heard, and whether it leaves before its end."""

    inputs: Tensor
    until: int
    at: int = 0

    def piece(self, size: int) -> tuple[Tensor, bool]:
        piece = self.inputs[self.at : min(self.at + size, self.until)]
        self.at += len(piece)
        return piece, self.at == len(self.inputs)

    @property
    def done(self) -> bool:
        return self.at == self.until


def utterances() -> list[Utterance]:
    """Of ragged lengths; some leave in the middle, one before it was heard."""
    generator = torch.Generator().manual_seed(1)
    lengths = (120, 33, 260, 1, 75, 190, 12, 90, 140)
    rows = [Utterance(torch.randn(n, BINS, generator=generator) * 2, n) for n in lengths]
    rows[4].until, rows[5].until, rows[7].until = 40, 101, 0
    return rows


Found = tuple[dict[str, Tensor], list[Hypothesis], dict]


def parts(encoded: EncoderOutput, row: int) -> dict[str, Tensor]:
    found = {"frames": encoded.frames, **encoded.taps}
    found["positions"] = Padded(encoded.positions, encoded.frames.lengths)
    return {name: part.unpad()[row] for name, part in found.items()}


def alone(recognizer: Recognizer, utterance: Utterance, draw: random.Random) -> Found:
    """What a session of its own gives."""
    session = Session(recognizer, 1)
    while not utterance.done:
        piece, final = utterance.piece(draw.randrange(50))
        session.accept(Padded.stack([piece]), torch.tensor([final]))
    heard = any(session._pieces)
    (nbest,), (classes,) = session.finish()
    return parts(session.encoded(), 0) if heard else {}, nbest, classes


def together(recognizer: Recognizer, several: list[Utterance], draw: random.Random) -> list[Found]:
    """What a session gives that rows enter and leave at random, up to four at a time."""
    session, waiting, inside = Session(recognizer, 0), list(range(len(several))), []
    found: dict[int, Found] = {}
    while waiting or inside:
        for _ in range(draw.randrange(3)):
            if waiting and len(inside) < 4:
                assert list(session.enter(1)) == [len(inside)]
                inside.append(waiting.pop(0))
        pieces = [several[index].piece(draw.choice((0, draw.randrange(60)))) for index in inside]
        if inside:
            inputs = Padded.stack([piece for piece, _ in pieces])
            session.accept(inputs, torch.tensor([final for _, final in pieces]))
        assert len(session.partial()) == session.batch == len(inside)
        leaving = [
            row for row, index in enumerate(inside) if several[index].done and draw.random() < 0.7
        ]
        draw.shuffle(leaving)
        if not leaving:
            continue
        encoded = session.encoded() if any(session._pieces) else None
        for row, nbest, classes in zip(leaving, *session.leave(leaving), strict=True):
            found[inside[row]] = (parts(encoded, row) if encoded else {}, nbest, classes)
        inside = [index for row, index in enumerate(inside) if row not in leaving]
    return [found[index] for index in range(len(several))]


@pytest.mark.parametrize(("encoder", "search"), CASES, ids=lambda value: value.replace(",", ""))
def test_every_row_gets_what_a_session_of_its_own_gives(encoder, search):
    built = recognizer(encoder, search)
    said = 0
    for seed in range(3):
        expected = [alone(built, one, random.Random(seed + 10)) for one in utterances()]
        found = together(built, utterances(), random.Random(seed))
        for (frames, nbest, classes), (own, own_nbest, own_classes) in zip(
            found, expected, strict=True
        ):
            for name in own:
                torch.testing.assert_close(frames[name], own[name], atol=1e-5, rtol=1e-5)
            assert own or not frames or not len(frames["frames"])
            best, own_best = nbest[0], own_nbest[0]
            assert best.tokens == own_best.tokens and best.text == own_best.text
            assert best.positions == own_best.positions
            scores = [h.score for h in own_nbest]
            assert [h.score for h in nbest] == pytest.approx(scores, abs=1e-3)
            assert set(classes) == set(own_classes)
            for label, values in own_classes.items():
                assert classes[label] == pytest.approx(values, abs=1e-5)
            said += len(nbest[0].tokens)
    assert said > 50


def test_a_restarted_session_takes_in_rows_as_well():
    built = recognizer("conformer", "greedy")
    first, second = (torch.randn(size, BINS) for size in (96, 60))
    own = Session(built, 1)
    own.accept(Padded.stack([second]), torch.tensor([True]))
    expected = own.finish()[0][0][0]
    session = Session(built, 1)
    session.accept(Padded.stack([first]), torch.tensor([False]))
    session.finish()
    session.restart()
    session.enter(1)
    session.accept(Padded.stack([first[:0], second]), torch.tensor([True, True]))
    assert session.finish()[0][1][0].tokens == expected.tokens


def test_what_left_is_no_longer_remembered():
    built = recognizer("conformer", "greedy")
    session = Session(built, 2)
    session.accept(torch_rows(400, 40), torch.tensor([False, False]))
    session.leave([0])
    # the keys of the longer row go with the next piece
    session.accept(torch_rows(12), torch.tensor([False]))
    layer = session._cache.layers[0].attention
    assert layer.key.shape[0] == 1 and layer.key.shape[2] < 20
    assert len(session._pieces) == 1


def torch_rows(*sizes: int) -> Padded:
    return Padded.stack([torch.randn(size, BINS) for size in sizes])


@pytest.mark.parametrize("rows", [[2], [-1], [0, 0]])
def test_only_rows_that_are_there_leave(rows):
    session = Session(recognizer("conformer", "greedy"), 2)
    with pytest.raises(ValueError, match=r"cannot leave: expected different ones of the 2 rows"):
        session.leave(rows)


def test_features_are_of_as_many_rows_as_the_session():
    session = Session(recognizer("conformer", "greedy"), 2)
    with pytest.raises(ValueError, match="1 rows of features and 1 ends for a session of 2 rows"):
        session.accept(torch_rows(30), torch.tensor([True]))
