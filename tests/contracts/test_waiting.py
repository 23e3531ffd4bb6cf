"""A training step never waits for the device but in its one read: every registered loss, model,
encoder, downsampler and decoder; a new entry is tested without writing a test.
"""

from __future__ import annotations

import pytest
import torch

from asrtool.decoders import DECODERS
from asrtool.downsamplers import DOWNSAMPLERS, Conv1dMlpConfig, Conv2dConfig, KeyframeConfig
from asrtool.encoders import ENCODERS, ChunkConfig, ConformerConfig, EchoConfig
from asrtool.encoders.qifusion import AccentConfig, QifusionConfig
from asrtool.heads import HEADS, PREDICTORS, CtcHeadConfig, TransducerHeadConfig
from asrtool.losses import LOSSES
from asrtool.models import MODELS, CausalLmConfig, HybridConfig, LanguageModelConfig
from asrtool.models.causal_lm import CopyConfig
from asrtool.models.llm import LlmConfig
from asrtool.models.speech_llm import SpeechLlmConfig
from asrtool.trainer.objective import Objective
from asrtool.trainer.optim import SgdConfig
from asrtool.trainer.step import Stepper
from asrtool.tuning import Tuning
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded
from tests.contracts import test_encoders, test_losses
from tests.toy_device import META, Waited, unawaited
from tests.toy_training import ToyStep

SHAPE = {"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 5}
VOCABULARY = 30
DECODER = DECODERS.config_type("transformer")(num_layers=1, num_heads=2, ffn_dim=32)
LM = {"lm": ("cross_entropy", {"input": "lm"})}
FRAMES = {
    "ctc": ("ctc", {}),
    "focal": ("focal_ctc", {}),
    "weighted": ("ctc", {"class_weights": "inverse_frequency", "class_weighting": "utterance"}),
    "regular": ("ctc", {"repeat_penalty": 0.1, "longest_run": 2}),
    "aligned": ("axe", {}),
    "til": ("til", {}),
}
TRANSDUCER = {"transducer": ("transducer", {"fast_emit": 0.01})}
TOKENS = {
    "attention": ("cross_entropy", {}),
    "reverse": ("cross_entropy", {"input": "reverse"}),
}
LLM = {"llm": ("cross_entropy", {"input": "llm"})}
MATCHING = {"matching": ("matching", {"projected": True}), "contrast": ("contrastive", {})}


def conformer(**options) -> ConformerConfig:
    return ConformerConfig(**{**SHAPE, "downsamplers": {0: Conv2dConfig(channels=4)}, **options})


def losses(parts: dict) -> dict:
    """name -> loss; parts: name -> (entry of the registry, options)."""
    built = {}
    for name, (kind, options) in parts.items():
        config = LOSSES.config_type(kind)(weight=1.0, **options)
        built[name] = LOSSES.build(config, eos=VOCABULARY - 1)
        built[name].count([1] * VOCABULARY)
        built[name].count_labels({"accent": [3, 1]})
    return built


def batch(samples: bool, views: int = 1) -> Batch:
    """Utterances of 0.4 to 0.9 seconds with texts of other lengths."""
    generator = torch.Generator().manual_seed(0)
    sizes, texts = ((90, 90, 40, 40) if views > 1 else (90, 40, 61, 90)), (4, 1, 0, 3)
    shapes = [(160 * size,) if samples else (size, 20) for size in sizes]
    inputs = Padded.stack([torch.randn(shape, generator=generator) for shape in shapes])
    targets = Padded.stack(
        [torch.randint(1, VOCABULARY - 1, (size,), generator=generator) for size in texts]
    )
    labels = {"accent": torch.tensor([0, 1, -1, 0])}
    ids = tuple("abcd")
    return Batch(ids=ids, inputs=inputs, targets=targets, labels=labels, views=views)


def step(patch: pytest.MonkeyPatch, config: object, parts: dict, samples: bool, views: int = 1):
    """One step of a model on a device that nobody can wait for: two micro-batches."""
    torch.manual_seed(0)
    terms = losses(parts)
    model = MODELS.build(
        config,
        input_dim=1 if samples else 20,
        vocab_size=VOCABULARY,
        frame_shift=1 / 16000 if samples else 0.01,
        heads=frozenset(heads_of(parts)),
    )
    stepper = Stepper(
        SgdConfig(lr=0.1),
        model.train(),
        Objective(terms, dict.fromkeys(terms, 1.0)),
        planned=10,
        precision="float32",
        device=META,
        seed=0,
    )
    batches = [batch(samples, views)] * 2
    group = ToyStep(count=8, batches=batches, epoch=0, index=0, last=False)
    with unawaited(patch) as reads:
        stepper.update(group, 1, flags=(0.0, 1.0))
    # loss, frames and terms; flags, and micro-batches that did not fit; norm and scale; which
    # utterances have no finite loss
    assert reads == [2 + len(stepper.objective.terms) + 3 + 2 + 2 * len(batches[0])]


def heads_of(parts: dict) -> set[str]:
    configs = [LOSSES.config_type(kind)(weight=1.0, **options) for kind, options in parts.values()]
    return {name for config in configs for name in LOSSES.class_of(config).heads_of(config)}


# -- losses ----------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_and_its_gradient_wait_for_nothing(name, monkeypatch):
    (loss,) = losses({name: (name, {})}).values()
    outputs, batch = test_losses.case(loss, padding=2)
    heads = {key: part.to(META, non_blocking=True) for key, part in outputs.heads.items()}
    for part in heads.values():
        part.data.requires_grad_()
    frames = outputs.encoder.frames.to(META, non_blocking=True)
    encoder = EncoderOutput(frames=frames, positions=outputs.encoder.positions)
    with unawaited(monkeypatch) as reads:
        on_device = batch.to(META, non_blocking=True)
        found = ModelOutput(encoder=encoder, heads=heads)
        values, monitored = loss.measured(found, on_device)
        values.sum().backward()
        skipped = loss.skipped(found, on_device)
    assert not reads and values.device == skipped.device == META
    assert set(monitored) >= set(loss.monitors)


# -- models ----------------------------------------------------------------


# an encoder of somebody's own may wait, as torch's packed sequences do
OURS = [
    name
    for name in ENCODERS.names()
    if ENCODERS.class_of(test_encoders.small(name)).__module__.startswith("asrtool.")
]


@pytest.mark.hf
@pytest.mark.parametrize("name", OURS)
def test_a_step_of_every_encoder_waits_once(name, monkeypatch):
    encoder = test_encoders.small(name)
    config = HybridConfig(encoder=encoder, decoder=DECODER, reverse_decoder=DECODER)
    accent = {"accent": ("accent", {})} if name == "qifusion" else {}
    samples = ENCODERS.class_of(encoder).reads_samples
    step(monkeypatch, config, FRAMES | TOKENS | TRANSDUCER | accent, samples)


# the losses of a downsampler's own heads
INNER = {
    "keyframe": {"inner": ("ctc", {"input": "inter_ctc"})},
    "experts": {"inner": ("expert_ctc", {})},
}


@pytest.mark.parametrize("name", DOWNSAMPLERS.names())
def test_a_step_of_every_downsampler_waits_once(name, monkeypatch):
    kind, stem = DOWNSAMPLERS.config_type(name), {0: Conv2dConfig(channels=4)}
    stems = {0: kind(channels=4)} if name == "conv2d" else {**stem, 1: kind()}
    config = HybridConfig(encoder=conformer(downsamplers=stems))
    step(monkeypatch, config, FRAMES | INNER.get(name, {}), samples=False)


OTHERS = {
    "relative": {"positions": "relative"},
    "chunks": {
        "causal": True,
        "chunk": ChunkConfig(),
        "downsamplers": {0: Conv2dConfig(channels=4, causal=True)},
    },
    "layers dropped": {"layer_drop": 0.5, "attention_dropout": 0.1},
    "windows": {"attention": EchoConfig(mode="heads", windows=(3, 8))},
    "spans": {"attention": EchoConfig(windows=(5,))},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS.keys())
def test_a_step_of_other_conformers_waits_once(options, monkeypatch):
    step(monkeypatch, HybridConfig(encoder=conformer(**options)), FRAMES, samples=False)


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_a_step_of_every_predictor_waits_once(name, monkeypatch):
    heads = {"transducer": TransducerHeadConfig(predictor=PREDICTORS.config_type(name)())}
    step(monkeypatch, HybridConfig(encoder=conformer(), heads=heads), TRANSDUCER, samples=False)


def test_ctc_behind_key_frames_waits_once(monkeypatch):
    stems = {0: Conv2dConfig(channels=4), 1: KeyframeConfig(keep=3)}
    heads = {"ctc": CtcHeadConfig(input="frames")}
    config = HybridConfig(encoder=conformer(downsamplers=stems), heads=heads)
    inner = {"inner": ("ctc", {"input": "inter_ctc"})}
    step(monkeypatch, config, FRAMES | TRANSDUCER | inner, samples=False)


def test_two_views_and_accents_wait_once(monkeypatch):
    accent = AccentConfig(classes=2)
    config = HybridConfig(encoder=QifusionConfig(**SHAPE, accent=accent))
    more = {"accent": ("accent", {"class_weights": "inverse_frequency"})}
    step(monkeypatch, config, {**FRAMES, **more, "views": ("consistency", {})}, False, views=2)


TEXT = {
    "language_model": LanguageModelConfig(num_layers=1, dim=16, num_heads=2, ffn_dim=32),
    "causal_lm": CausalLmConfig(shape="llama-tiny", copy=CopyConfig()),
}
SPEECH = {
    "convolution": Conv1dMlpConfig(rate=2, hidden_dim=16),
    "key frames": KeyframeConfig(),
}


@pytest.mark.hf
@pytest.mark.parametrize("name", TEXT)
def test_a_step_of_a_language_model_waits_once(name, monkeypatch):
    step(monkeypatch, TEXT[name], LM, samples=False)


@pytest.mark.hf
@pytest.mark.parametrize("adapter", SPEECH.values(), ids=SPEECH.keys())
def test_a_step_of_a_speech_llm_waits_once(adapter, monkeypatch):
    settings = LlmConfig(shape="llama-tiny", prompt="{speech}", tuning=Tuning(mode="full"))
    heads = {name: HEADS.config_type(name)(dim=8) for name in ("text_query", "speech_key")}
    config = SpeechLlmConfig(encoder=conformer(), adapter=adapter, llm=settings, heads=heads)
    inner = {"inner": ("ctc", {"input": "inter_ctc"})} if adapter == SPEECH["key frames"] else {}
    step(monkeypatch, config, LLM | MATCHING | FRAMES | inner, samples=False)


def test_no_model_is_left_out():
    assert set(MODELS.names()) == {"hybrid", "speech_llm", *TEXT}
    assert set(DECODERS.names()) == {"transformer"}


# -- the device itself -----------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda values: values.sum().item(),
        lambda values: values.tolist(),
        lambda values: bool(values.any()),
        lambda values: values.nonzero(),
        lambda values: values[values > 0],
        lambda values: values.cpu(),
        lambda values: values + torch.tensor([1, 2, 3]).to(META),
        lambda values: values[torch.tensor([0, 2])],
        lambda values: values.repeat_interleave(values),
        lambda values: torch.nn.functional.ctc_loss(
            torch.zeros(3, 1, 5), values[None], values[:1], values[:1]
        ),
    ],
)
def test_what_would_wait_for_a_device_is_refused(wait, monkeypatch):
    values = torch.tensor([1, 2, 3], device=META)
    with unawaited(monkeypatch), pytest.raises((Waited, RuntimeError, NotImplementedError)):
        wait(values)
