"""What each study on real speech trains and decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

LIBRISPEECH = "../librispeech/conf"
FSDD = "../fsdd/conf"
WHISPER = f"{LIBRISPEECH}/whisper"
BASE = "whisper-base"
TINY_EN = "whisper-tiny.en"


# sets of noise beside those of `data`: to train with, and to count insertions on
NOISES = ("noise_train", "noise_eval")
# as ../aishell1/studies/noisy_sets.py calls the copies of a set: dB of noise; reverberation
CONDITIONS = ("snr20", "snr10", "snr0", "room")


class Decoding(NamedTuple):
    config: str
    lm: str | None = None  # as `--lm` of the recipe
    args: str = ""  # as `--decode-args` of the recipe
    sets: tuple[str, ...] | None = None  # None: all of the study


GREEDY = Decoding("conf/decode_greedy.yaml")
FOUR_GRAM = Decoding(f"{WHISPER}/decode_whisper_cnn.yaml", lm="ngram:4")


@dataclass(frozen=True, kw_only=True)
class System:
    """One line of a study's table."""

    config: str  # training config, as seen from the recipe's folder
    changes: tuple[str, ...] = ()
    weights: Mapping[str, str] | None = None  # key of the config -> name of the model
    decodings: Mapping[str, Decoding] = field(default_factory=lambda: {"greedy": GREEDY})
    train_set: str = "study_train_1h"
    unit: str = "char"
    vocab_size: int = 0
    tokenizer: str | None = None  # of unit hf: the language model on the hub
    encoder: str | None = None  # the system of the study whose encoder it takes over
    start: str | None = None  # the system of the study whose weights it begins with
    title: str = ""
    small: bool = False  # trained in 40 minutes of two cores: --budget small
    large: bool = False  # needs a GPU: --budget large, and in no other
    against: str | None = None  # the system that it is compared with
    primary: str = "greedy"  # decoding of the comparison


@dataclass(frozen=True, kw_only=True)
class Study:
    """The systems of a table, and the sets on which they are measured."""

    systems: Mapping[str, System]
    recipe: str = "accents"  # the folder in egs/ whose run.sh trains them
    corpus: str = ""  # that recipe's folder in the one of the corpora
    dev: tuple[str, ...] = ("study_dev", "study_dev_speakers")  # pooled; validation is the first
    tests: tuple[str, ...] = ("test_librispeech", "test_librispeech_other")
    beside: tuple[str, ...] = ("test_speechocean762",)
    macro: bool = False  # tests: the mean over accents instead of pooled
    noise: bool = False  # insertions are counted on noise
    # a test set that is also decoded with noise and in a room, and how many frames are searched
    degraded: str | None = None
    speeds: bool = False  # errors on the test sets also by speaking rate and by length

    @property
    def conditions(self) -> tuple[str, ...]:
        """The degraded copies of the test set."""
        return (
            () if self.degraded is None else tuple(f"{self.degraded}_{one}" for one in CONDITIONS)
        )

    @property
    def speech(self) -> tuple[str, ...]:
        return (*self.dev, *self.tests, *self.beside, *self.conditions)

    @property
    def sets(self) -> tuple[str, ...]:
        """All that are decoded."""
        return (*self.speech, NOISES[1]) if self.noise else self.speech


FRONT_END = {"model.encoder.frontend.weights": BASE}
READ = dict(config=f"{WHISPER}/train_whisper_cnn.yaml", weights=FRONT_END)
BOTH = {"greedy": GREEDY, "4gram": FOUR_GRAM}

RECOGNISER = {
    "frozen_10min": System(
        **READ,
        train_set="study_train_10min",
        decodings=BOTH,
        changes=("trainer.epochs=40",),  # as many steps as an hour's passes
        title="whisper-base frozen, 10 minutes",
    ),
    "frozen_1h": System(
        **READ,
        decodings=BOTH,
        changes=("trainer.epochs=15",),
        title="whisper-base frozen, 1 hour",
    ),
    "frozen": System(
        **READ,
        train_set="study_train",
        decodings=BOTH,
        title="whisper-base frozen, 3.4 hours",
        small=True,
    ),
}

CONFORMER = "conf/studies/train_keyframe_baseline.yaml"
# on an hour
SMALL_CONFORMER = dict(
    config=CONFORMER,
    changes=("trainer.epochs=12",),
    weights=FRONT_END,
)
# two views of each utterance: as many steps, and as much audio in each
CONSISTENCY = ("losses.consistency={type: consistency, weight: 0.2}", "trainer.epochs=6")
E_BRANCHFORMER = SMALL_CONFORMER | dict(config="conf/studies/train_ebranchformer.yaml")
BASELINES = {
    "conformer": System(title="Conformer, CTC", small=True, **SMALL_CONFORMER),
    "cr_ctc": System(
        **SMALL_CONFORMER | dict(changes=CONSISTENCY),
        against="conformer",
        title="Conformer, two views (CR-CTC)",
    ),
    "ebranchformer": System(against="conformer", title="E-Branchformer, CTC", **E_BRANCHFORMER),
    "ebranchformer_cr_ctc": System(
        **E_BRANCHFORMER | dict(changes=CONSISTENCY),
        against="ebranchformer",
        title="E-Branchformer, two views (CR-CTC)",
    ),
}

DIGIT_CONFORMER = dict(
    config=f"{FSDD}/train_conformer.yaml", train_set="train", unit="bpe", vocab_size=30
)
DIGIT_E_BRANCHFORMER = DIGIT_CONFORMER | dict(
    config=f"{FSDD}/ebranchformer/train_ebranchformer.yaml", against="conformer"
)
# half of the 6 epochs, of two views
DIGIT_CONSISTENCY = (CONSISTENCY[0], "trainer.epochs=3")
DIGITS = {
    "conformer": System(title="Conformer, CTC", small=True, **DIGIT_CONFORMER),
    "cr_ctc": System(
        changes=DIGIT_CONSISTENCY,
        against="conformer",
        title="Conformer, two views (CR-CTC)",
        **DIGIT_CONFORMER,
    ),
    "ebranchformer": System(title="E-Branchformer, CTC", **DIGIT_E_BRANCHFORMER),
}

KEYFRAME = "conf/studies/train_keyframe.yaml"
FRAMES = "model.encoder.downsamplers.2"
ALIGNED = Decoding(f"{LIBRISPEECH}/keyframe/decode_keyframe_aligned.yaml")
ON_FRAMES = dict(weights=FRONT_END, train_set="study_train")
ON_KEY_FRAMES = dict(
    config=KEYFRAME, decodings={"aligned": ALIGNED}, primary="aligned", **ON_FRAMES
)
KEYFRAMES = {
    "baseline": System(
        config=CONFORMER,
        title="every frame, CTC",
        **ON_FRAMES,
    ),
    "axe": System(against="baseline", title="key frames, AXE", small=True, **ON_KEY_FRAMES),
    "til": System(
        changes=(
            "losses.aligned={type: til, weight: 0}",
            "phases.keyframe.losses.aligned.weight=0.7",
            "phases.keyframe.trainer.best=valid/loss",
        ),
        against="axe",
        title="key frames, TIL",
        **ON_KEY_FRAMES,
    ),
    "nofusion": System(
        changes=(f"{FRAMES}.fusion=none",),
        against="axe",
        title="key frames, no fusion",
        **ON_KEY_FRAMES,
    ),
    "radius2": System(
        changes=(f"{FRAMES}.radius=2",),
        against="axe",
        title="key frames, 5 frames fused",
        **ON_KEY_FRAMES,
    ),
    "consistency": System(
        changes=("losses.consistency={type: consistency, weight: 0.2, input: inter_ctc}",),
        against="axe",
        title="key frames, AXE; inter-CTC of two views agrees (CR-CTC)",
        **ON_KEY_FRAMES,
    ),
    "blank": System(
        changes=("losses.inter_ctc.repeat_penalty=2",),
        against="axe",
        title="key frames, AXE; blank-regularized inter-CTC",
        **ON_KEY_FRAMES,
    ),
    "pieces": System(
        unit="bpe",
        vocab_size=300,
        against="axe",
        title="key frames, AXE, 300 word pieces instead of letters",
        **ON_KEY_FRAMES,
    ),
    "uma": System(
        config=CONFORMER,
        changes=(f"{FRAMES}.type=uma",),
        against="baseline",
        title="unimodal aggregation, CTC",
        **ON_FRAMES,
    ),
}

ECHO = "conf/studies/train_echo.yaml"
READER = "conf/studies/train_echo_reader.yaml"
TINY = dict(weights={"model.encoder.frontend.weights": TINY_EN})
ATTENTION = "model.encoder.frontend.attention"
# CTC 0.7 with class weights, focal CTC 0.3
HYBRID = (
    "losses.ctc.weight=0.7",
    "losses.ctc.class_weights=inverse_frequency",
    "losses.focal={type: focal_ctc, weight: 0.3}",
)
# whisper-tiny.en stays frozen: the loss alone is compared
ECHO_LOSSES = {
    "ctc": ("CTC", (), None),
    "focal": ("focal CTC", ("losses={focal: {type: focal_ctc, weight: 1.0}}",), "ctc"),
    "weighted": (
        "class-weighted CTC",
        ("losses.ctc.class_weights=inverse_frequency",),
        "ctc",
    ),
    "hybrid": ("class-weighted CTC 0.7, focal CTC 0.3", HYBRID, "ctc"),
}
LARGE = dict(weights=FRONT_END, train_set="study_train", large=True)
BASE_SIZE = "model.encoder.frontend.size=base"
ECHOTUNE = {
    "reader": System(config=READER, title="whisper-tiny.en frozen, CTC", **TINY),
    "plain": System(
        config="conf/studies/train_echo_baseline.yaml",
        start="reader",
        against="reader",
        title="whisper-tiny.en, CTC",
        **TINY,
    ),
    **{
        f"{mode}{window}": System(
            config=ECHO,
            changes=(f"{ATTENTION}.mode={mode}", f"{ATTENTION}.windows=[{window}]"),
            start="reader",
            against="plain",
            title=f"Echo-MSA, {kind} windows of {window}",
            small=(mode, window) == ("adaptive", 64),
            **TINY,
        )
        for mode, kind, windows in (
            ("adaptive", "adaptive", (16, 64)),
            ("single", "fixed", (4, 64, 256)),
        )
        for window in windows
    },
    "gate_half": System(
        config=ECHO,
        changes=(f"{ATTENTION}.gate_fixed=0.5",),
        start="reader",
        against="adaptive64",
        title="Echo-MSA, adaptive windows of 64, gate fixed at 0.5",
        **TINY,
    ),
    **{
        f"rare_{name}": System(
            config=READER,
            changes=changes,
            train_set="study_train_1h_few_rare",
            against=other and f"rare_{other}",
            title=f"{title}, few rare letters, frozen",
            **TINY,
        )
        for name, (title, changes, other) in ECHO_LOSSES.items()
    },
    "base_reader": System(
        config=READER,
        changes=(BASE_SIZE,),
        title="whisper-base frozen, CTC, 3.4 hours",
        **LARGE,
    ),
    "base_plain": System(
        config="conf/studies/train_echo_baseline.yaml",
        changes=(BASE_SIZE,),
        start="base_reader",
        against="base_reader",
        title="whisper-base, CTC, 3.4 hours",
        **LARGE,
    ),
    "base_adaptive64": System(
        config=ECHO,
        changes=(BASE_SIZE,),
        start="base_reader",
        against="base_plain",
        title="whisper-base, Echo-MSA, adaptive windows of 64, 3.4 hours",
        **LARGE,
    ),
}

QIFUSION = "conf/studies/train_accents_qifusion.yaml"
ACCENT = "model.encoder.accent"
WITH_ACCENTS = dict(weights=FRONT_END, train_set="study_accents")
ACCENTS = {
    "conformer": System(
        config="conf/studies/train_accents.yaml", title="Conformer", **WITH_ACCENTS
    ),
    "qifusion": System(
        config=QIFUSION, against="conformer", title="Qifusion-Net", small=True, **WITH_ACCENTS
    ),
    "experts": System(
        config="conf/studies/train_accents_experts.yaml",
        against="qifusion",
        title="accent experts with a CTC each (MoE-CTC)",
        **WITH_ACCENTS,
    ),
    "accent_loss": System(
        config=QIFUSION,
        changes=(f"{ACCENT}.fusion=none",),
        against="qifusion",
        title="accent head and loss alone, nothing fused",
        **WITH_ACCENTS,
    ),
    "sum": System(
        config=QIFUSION,
        changes=(f"{ACCENT}.fusion=add",),
        against="qifusion",
        title="accent embedding added, no cross attention",
        **WITH_ACCENTS,
    ),
    "attention_alone": System(
        config=QIFUSION,
        changes=(
            f"{ACCENT}.classes=0",
            "losses.accent.weight=0",
        ),
        against="qifusion",
        title="cross attention without the accent loss",
        **WITH_ACCENTS,
    ),
    **{
        f"weight{weight:g}": System(
            config=QIFUSION,
            changes=(f"losses.accent.weight={weight}",),
            against="qifusion",
            title=f"accent loss of weight {weight:g}",
            **WITH_ACCENTS,
        )
        for weight in (0.1, 1.0)
    },
}
# of the labels in utt2accent; all others have too few clips
ACCENT_CLASSES = ("us", "england", "australia", "mandarin")

GEMMA = "gemma-3-270m"
LLM = f"{LIBRISPEECH}/speech_llm/decode_llm.yaml"
LIBRISPEECH_SETS = ("study_dev", "study_dev_speakers", "test_librispeech", "test_librispeech_other")
ELSEWHERE = ("test_speechocean762", "test_commonvoice")
NO_LIMITS = "searcher.constraints.no_repeat_ngram=0 searcher.constraints.max_tokens_per_second=null"
# chosen on study_dev
LIMITS = "searcher.constraints.no_repeat_ngram=4 searcher.constraints.max_tokens_per_second=6"
GREEDY_LLM = "batch_seconds=300 searcher.beam=1"
READS_SPEECH = dict(
    config="conf/studies/train_speech_llm.yaml",
    weights=FRONT_END | {"model.llm.weights": GEMMA},
    train_set="study_train",
    unit="hf",
    tokenizer=f"google/{GEMMA}",
    decodings={"greedy": Decoding(LLM, args=f"{GREEDY_LLM} {LIMITS}")},
)
# of the systems of the primary contrast: also before the training with empty transcripts, and
# without limits on the search
IN_DETAIL = READS_SPEECH | dict(
    decodings=READS_SPEECH["decodings"]
    | {
        "before": Decoding(
            LLM, args=f"{GREEDY_LLM} {LIMITS} phase=speech", sets=(*LIBRISPEECH_SETS, NOISES[1])
        ),
        "unlimited": Decoding(LLM, args=f"{GREEDY_LLM} {NO_LIMITS}", sets=(*ELSEWHERE, NOISES[1])),
    }
)
ALIGNED_FIRST = READS_SPEECH | dict(
    config="conf/studies/train_speech_llm_aligned.yaml", encoder="pieces", against="aligned"
)


def beside(name: str, loss: str, title: str) -> System:
    """A loss beside the cross entropy, throughout the training."""
    changes = (f"losses.{name}={loss}",)
    return System(changes=changes, encoder="pieces", against="lora", title=title, **READS_SPEECH)


PIECES = KEYFRAMES["pieces"]
TINY_SIZE = "model.encoder.frontend.size=tiny"
SPEECH_LLM = {
    "pieces": replace(PIECES, against=None, title="the encoder alone, key frames and AXE"),
    "pieces_tiny": replace(
        PIECES,
        weights=TINY["weights"],
        changes=(TINY_SIZE,),
        against="pieces",
        title="the encoder alone, on whisper-tiny.en",
    ),
    "lora": System(encoder="pieces", title="adapter and LoRA", **IN_DETAIL),
    "matching": beside("matching", "{type: matching, weight: 0.1}", "matching loss, cosines"),
    "matching_scaled": beside(
        "matching",
        "{type: matching, weight: 0.1, products: scaled}",
        "matching loss, scaled products",
    ),
    "contrastive": beside("contrastive", "{type: contrastive, weight: 0.1}", "contrastive loss"),
    "aligned": System(
        small=True,
        title="adapter first, by the matching loss in a band; then adapter and LoRA",
        **ALIGNED_FIRST | dict(decodings=IN_DETAIL["decodings"], against="lora"),
    ),
    "aligned_adapter": System(
        changes=("model.llm.tuning.mode=frozen",), title="the same without LoRA", **ALIGNED_FIRST
    ),
    "aligned_frames": System(
        changes=(f"{FRAMES}.drop=false", "model.adapter.rate=10", "model.adapter.kernel=20"),
        title="the same with 5 rows a second instead of one for each key frame",
        **ALIGNED_FIRST,
    ),
    "aligned_tiny": System(
        changes=(TINY_SIZE,),
        title="the same on whisper-tiny.en",
        **ALIGNED_FIRST
        | dict(encoder="pieces_tiny", weights=READS_SPEECH["weights"] | TINY["weights"]),
    ),
}

STUDIES: dict[str, Study] = {
    "recogniser": Study(systems=RECOGNISER),
    "baselines": Study(systems=BASELINES),
    "digits": Study(
        systems=DIGITS,
        recipe="fsdd",
        corpus="fsdd",
        dev=("dev",),
        tests=("test_speaker",),
        beside=("test",),
    ),
    "keyframes": Study(systems=KEYFRAMES, degraded="test_librispeech"),
    "echotune": Study(systems=ECHOTUNE, speeds=True),
    "accents": Study(
        systems=ACCENTS,
        dev=("study_accents_dev",),
        tests=("study_accents_commonvoice", "study_accents_speechocean762"),
        beside=("test_librispeech", "test_librispeech_other"),
        macro=True,
    ),
    "speech_llm": Study(systems=SPEECH_LLM, beside=ELSEWHERE, noise=True),
}


def trained_as(study: str, name: str) -> str:
    """The name of a system's training: of the first system of all studies that is trained alike."""
    wanted = training(STUDIES[study], name)
    return next(
        f"{key}_{other}"
        for key, one in STUDIES.items()
        for other in one.systems
        if training(one, other) == wanted
    )


def training(study: Study, name: str) -> tuple:
    """All that decides what a training does, but the seed."""
    system = study.systems[name]
    before = [one and training(study, one) for one in (system.encoder, system.start)]
    vocabulary = (system.unit, system.vocab_size, system.tokenizer)
    sets = (study.recipe, system.train_set, study.dev[0])
    weights = sorted((system.weights or {}).items())
    return (system.config, system.changes, weights, *sets, *vocabulary, *before)
