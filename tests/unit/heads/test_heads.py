"""What a model asks its heads, and what is refused."""

from __future__ import annotations

import pytest
import torch

from asrtool.decoders import TransformerDecoderConfig
from asrtool.downsamplers import Conv2dConfig, KeyframeConfig
from asrtool.encoders import ConformerConfig
from asrtool.encoders.qifusion import AccentConfig, QifusionConfig
from asrtool.heads import AlignedHeadConfig, AttentionHeadConfig, CtcHeadConfig, ranked
from asrtool.losses import LOSSES
from asrtool.models import MODELS, AsrModel, HybridConfig
from asrtool.models.base import default_head
from asrtool.types import Batch, Padded
from tests import toy_llm

VOCABULARY = 9
SHAPE = {"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 16, "kernel": 3, "dropout": 0.0}
STEM = {0: Conv2dConfig(channels=4)}
KEY_FRAMES = ConformerConfig(**SHAPE, downsamplers={**STEM, 1: KeyframeConfig()})
PLAIN = ConformerConfig(**SHAPE, downsamplers=STEM)
DECODER = TransformerDecoderConfig(num_layers=1, num_heads=2, ffn_dim=16)


def build(*heads: str, encoder: object = PLAIN, **settings) -> AsrModel:
    torch.manual_seed(0)
    decoders = {
        key: DECODER
        for head, key in (("attention", "decoder"), ("reverse", "reverse_decoder"))
        if head in heads
    }
    return MODELS.build(
        HybridConfig(encoder=encoder, **decoders, **settings),
        input_dim=20,
        vocab_size=VOCABULARY,
        frame_shift=0.01,
        heads=frozenset(heads),
    ).eval()


def batch(**more) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        ids=("a", "b"),
        inputs=Padded.stack([torch.randn(size, 20, generator=generator) for size in (90, 41)]),
        targets=Padded.stack([torch.tensor([1, 2, 2]), torch.tensor([3])]),
        **more,
    )


GREEDY = {"type": "ctc_greedy"}
JOINT = {"type": "joint_beam", "weights": {"attention": 0.7, "ctc": 0.3}}
TWO_PASSES = {"type": "attention_rescoring", "weights": {"ctc": 0.5, "attention": 0.5}}
THREE = {"ctc": 0.5, "reverse": 0.15, "attention": 0.35}


@pytest.mark.parametrize(
    ("heads", "whole", "streaming"),
    [
        (("ctc",), {**GREEDY, "input": "ctc"}, {**GREEDY, "input": "ctc"}),
        (("ctc", "inter_ctc"), {**GREEDY, "input": "ctc"}, {**GREEDY, "input": "ctc"}),
        (
            ("aligned", "inter_ctc"),
            {**GREEDY, "input": "aligned"},
            {**GREEDY, "input": "aligned"},
        ),
        (("inter_ctc",), {**GREEDY, "input": "inter_ctc"}, {**GREEDY, "input": "inter_ctc"}),
        (("ctc", "attention"), JOINT, TWO_PASSES),
        (("ctc", "attention", "reverse"), JOINT, {**TWO_PASSES, "weights": THREE}),
        # the decoder searches whole utterances; what can go along is the head below it
        (
            ("aligned", "attention"),
            {"type": "attention_beam", "weights": {"attention": 1.0}},
            {**GREEDY, "input": "aligned"},
        ),
        (("attention",), {"type": "attention_beam", "weights": {"attention": 1.0}}, None),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_the_head_that_ranks_highest_says_how_the_model_is_searched(heads, whole, streaming):
    model = build(*heads, encoder=KEY_FRAMES)
    assert model.default_search() == whole
    assert model.default_streaming_search() == streaming
    ranks = [head.precedence for head in ranked(model.heads)]
    assert ranks == sorted(ranks, reverse=True)


def test_a_head_without_a_search_leaves_it_to_the_next_and_none_is_none():
    encoder = QifusionConfig(**SHAPE, accent=AccentConfig(classes=3))
    assert build("accent", "ctc", encoder=encoder).default_search()["type"] == "ctc_greedy"
    model = build("accent", encoder=encoder)
    assert model.default_search() is None and model.default_streaming_search() is None


def test_a_head_that_nobodys_loss_reads_is_refused():
    with pytest.raises(
        ValueError, match="model.heads has 'aligned', but no loss reads it; .*input: aligned"
    ):
        build("ctc", heads={"aligned": AlignedHeadConfig()})


def test_a_head_of_another_name_needs_a_type():
    with pytest.raises(ValueError, match="a loss reads the head 'fast': give it a type in model.h"):
        build("ctc", "fast")
    model = build("ctc", "fast", heads={"fast": CtcHeadConfig(input="frames")})
    assert set(model(batch()).heads) == {"ctc", "fast"}
    assert model.heads["fast"].greedy_search() == {**GREEDY, "input": "fast"}


def test_a_decoder_that_nobody_configured_is_asked_for():
    config = HybridConfig(encoder=PLAIN)
    with pytest.raises(
        ValueError, match="reads the head 'attention', but model.decoder is not set"
    ):
        MODELS.build(
            config,
            input_dim=20,
            vocab_size=VOCABULARY,
            frame_shift=0.01,
            heads=frozenset({"attention"}),
        )
    with pytest.raises(ValueError, match="'attention', which needs settings: .* in model.heads"):
        default_head("attention")


@pytest.mark.parametrize(
    ("name", "one", "settings"),
    [
        ("attention", AttentionHeadConfig(decoder=DECODER), {"decoder": DECODER}),
        ("ctc", CtcHeadConfig(), {"ctc_input": "frames"}),
    ],
)
def test_a_head_is_configured_once(name, one, settings):
    with pytest.raises(ValueError, match=f"the head '{name}' is configured twice"):
        HybridConfig(encoder=PLAIN, heads={name: one}, **settings)


@pytest.mark.parametrize("name", ["inter_ctc", "accent"])
def test_a_tap_that_the_encoder_does_not_have_is_named_with_what_it_has(name):
    with pytest.raises(LookupError, match=f"'{name}': the encoder has no tap '{name}' .*none"):
        build("ctc", name)(batch())
    with pytest.raises(LookupError, match="no tap 'accent' .it has: inter_ctc, key_frames"):
        build("accent", encoder=KEY_FRAMES)(batch())


def test_a_head_that_names_a_tap_passes_it_on_and_owns_nothing():
    model = build("inter_ctc", encoder=KEY_FRAMES)
    output = model(batch())
    torch.testing.assert_close(
        output.head("inter_ctc").data, output.encoder.taps["inter_ctc"].data, atol=0, rtol=0
    )
    assert not list(model.heads.parameters())


def test_ctc_reads_the_tap_that_it_is_told():
    encoder = QifusionConfig(**SHAPE, accent=AccentConfig(classes=3))
    assert build("ctc", encoder=encoder).heads["ctc"].source == "acoustic"
    assert build("ctc", encoder=encoder, ctc_input="frames").heads["ctc"].source == "frames"
    with pytest.raises(LookupError, match="reads the tap 'loud', which the encoder does not have"):
        build("ctc", ctc_input="loud")(batch())


# -- a speech LLM keeps the encoder's taps ---------------------------------------


@pytest.mark.hf
def test_a_speech_llm_trains_and_measures_the_heads_of_its_encoder(tmp_path):
    """Key frames, accents and the aligned loss, beside the language model."""
    encoder = QifusionConfig(
        **SHAPE,
        downsamplers={0: Conv2dConfig(channels=4, causal=True), 1: KeyframeConfig(causal=True)},
        accent=AccentConfig(classes=3, layers=(1,)),
    )
    parts = toy_llm.config(toy_llm.save_llm(tmp_path / "llm"), encoder=encoder)
    names = ("llm", "aligned", "inter_ctc", "accent")
    model, case = toy_llm.build(parts, names), toy_llm.batch(False)
    case = Batch(
        ids=case.ids,
        inputs=case.inputs,
        targets=case.targets,
        labels={"accent": torch.tensor([0, 2, 1, -1])},
    )
    output = model(case)
    assert set(output.heads) == set(names)
    assert {"inter_ctc", "key_frames", "accent"} <= set(output.encoder.taps)
    assert output.head("accent").data.shape[2] == 3
    # the intermediate head has the frames before any was dropped, the others those that stayed
    assert (output.head("inter_ctc").lengths >= output.head("accent").lengths).all()
    assert output.head("aligned").lengths.equal(output.encoder.frames.lengths)
    configs = {
        "llm": ("cross_entropy", {"input": "llm"}),
        "til": ("til", {}),
        "inter": ("ctc", {"input": "inter_ctc"}),
        "accent": ("accent", {}),
    }
    total = torch.zeros(())
    for kind, settings in configs.values():
        config = LOSSES.config_type(kind)(weight=1.0, **settings)
        total = total + LOSSES.build(config, eos=model.eos)(output, case).sum()
    total.backward()
    missed = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and name.startswith("encoder.") and value.grad is None
    ]
    assert not missed
    assert model.default_search() == {"type": "llm_beam", "weights": {"llm": 1.0}}
    assert model.blank == 0
