"""What sherpa-onnx reads (https://github.com/k2-fsa/sherpa-onnx): which of its models have the
features of ours, their metadata, and tokens.txt.

It has no switch for features: each kind of model has its own. Of CTC models,

    offline  zipformer_ctc      samples in [-1, 1], 20 Hz to 400 Hz below Nyquist, mirrored ends
    offline  fire_red_asr_ctc   16-bit samples, 20 Hz to Nyquist, whole frames: 80 bins of 16 kHz
    online   wenet_ctc          as zipformer_ctc, on 16-bit samples
    online   zipformer2_ctc     as zipformer_ctc

and of transducers, offline and online,

    transducer                  as zipformer_ctc

are made without dither, so that texts are the same every time; wenet_ctc offline is not. Read in
its csrc/offline-recognizer-ctc-impl.h, online-recognizer-ctc-impl.h and features.h, 1.13.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from asrtool.data import tokenizers
from asrtool.data.fbank import FLOOR, SCALE, FbankConfig
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.recognizer import Recognizer

BLANK = "<blk>"
# tokens that it leaves out of texts
SILENT = ("SIL", "</s>")
PER_FRAME = 4  # input frames of an output frame, from which it reckons times, but for `factor`


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of model, and the features that sherpa-onnx computes for it."""

    name: str  # of the class method of its recognisers, after `from_`
    features: FbankConfig
    rate: int | None = None  # Hz, where it has no setting for it
    bins: int | None = None
    factor: int | None = PER_FRAME  # None: it reads the metadata


OFFLINE = (
    Kind(name="zipformer_ctc", features=FbankConfig(preset="sherpa")),
    Kind(name="fire_red_asr_ctc", features=FbankConfig(), rate=16000, bins=80, factor=None),
)
ONLINE = {
    "wenet": (
        Kind(name="wenet_ctc", features=FbankConfig(preset="sherpa")),
        Kind(name="wenet_ctc", features=FbankConfig(high_hz=-400.0, snip_edges=False)),
    ),
    "zipformer": (Kind(name="zipformer2_ctc", features=FbankConfig(preset="sherpa")),),
}


TRANSDUCER = Kind(name="transducer", features=FbankConfig(preset="sherpa"))
# the graphs of a transducer: encoder first
PARTS = ("encoder", "decoder", "joiner")


def kind_of(recognizer: Recognizer, kinds: Sequence[Kind]) -> Kind:
    """The one of these kinds that has the features of ours. Raises `UserError` where none has, with
    what to set in training.
    """
    data = recognizer.config.data
    if data.input != "fbank":
        raise UserError(
            "sherpa-onnx computes log-mel features by itself, but this model reads samples "
            f"(data.input: {data.input}); export without --for sherpa-onnx, for onnxruntime"
        )
    found = {kind: differences(data.fbank, kind) for kind in kinds}
    fitting = [kind for kind, differing in found.items() if not differing]
    if fitting:
        return fitting[0]
    nearest = min(kinds, key=lambda kind: len(found[kind]))
    raise UserError(
        f"sherpa-onnx computes other features than those that this model was trained on "
        f"({'; '.join(found[nearest])}): train with data.fbank: {{preset: sherpa}}, or export with "
        "--from-samples, for onnxruntime"
    )


def differences(config: FbankConfig, kind: Kind) -> list[str]:
    """What is not as sherpa-onnx has it, as in "fbank.snip_edges is True, there False"."""
    own, there = asdict(config), asdict(kind.features)
    own["high_hz"] = config.top_hz
    there["high_hz"] = config.rate / 2 + kind.features.high_hz
    there["rate"] = kind.rate or config.rate
    there["num_mel_bins"] = kind.bins or config.num_mel_bins
    names = [setting.name for setting in fields(FbankConfig) if setting.name != "preset"]
    return [
        f"fbank.{name} is {own[name]}, there {there[name]}"
        for name in names
        if own[name] != there[name]
    ]


def scaled(config: FbankConfig) -> tuple[float, float]:
    """What features of 16-bit samples have more than those of `config`, and the lowest value of
    any: online, sherpa-onnx gives WeNet's models the former.
    """
    return 2 * math.log(SCALE / config.sample_scale), math.log(FLOOR)


def metadata(recognizer: Recognizer, kind: Kind) -> dict[str, str]:
    """Of an offline model."""
    facts = {
        "vocab_size": recognizer.model.vocab_size,
        "subsampling_factor": factor_of(recognizer),
    }
    if kind.name == "fire_red_asr_ctc":
        # the graph normalises by itself
        facts |= {"model_type": "fire-red-asr-2-ctc"}
        facts |= {"cmvn_mean": ",".join(["0"] * kind.bins)}
        facts |= {"cmvn_inv_stddev": ",".join(["1"] * kind.bins)}
    else:
        facts |= {"model_type": "zipformer2" if kind == TRANSDUCER else "zipformer2_ctc"}
    return {key: str(value) for key, value in facts.items()}


def factor_of(recognizer: Recognizer) -> int:
    """Input frames of one output frame."""
    encoder = recognizer.model.encoder
    seconds = getattr(encoder, "seconds_per_frame", recognizer.model.frame_shift)
    return round(seconds / recognizer.step)


def warn_of_times(recognizer: Recognizer, kind: Kind) -> None:
    """Say where sherpa-onnx reckons times of tokens with frames of another length."""
    factor = factor_of(recognizer)
    if kind.factor not in (None, factor):
        logger.warning(
            "sherpa-onnx takes a frame for %d ms, which is %d ms in this model: texts are right, "
            "times have to be multiplied by %g",
            *(10 * kind.factor, 10 * factor, factor / kind.factor),
        )


def tokens_text(tokens: Sequence[str], blank: int) -> str:
    """tokens.txt: `<blk>`, U+2581 for the space, ids. Raises `UserError` for tokens that
    sherpa-onnx would read as something else.
    """
    names = []
    for index, token in enumerate(tokens):
        name = BLANK if index == blank else token
        name = tokenizers.WORD_START if name == tokenizers.SPACE else name
        if name in SILENT:
            raise UserError(
                f"sherpa-onnx leaves the token '{name}' out of every text: make the vocabulary "
                "without it, such as with another number of tokens"
            )
        if not name or any(character.isspace() for character in name):
            raise UserError(
                f"token {index}, {name!r}, holds white space, where tokens.txt of sherpa-onnx ends "
                "a token: make the vocabulary without it"
            )
        names.append(name)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the vocabulary has two tokens that sherpa-onnx would read as '{twice}'")
    # of what it takes for tokens of bytes: see IsByteBPE in its csrc/symbol-table.cc
    if max(b"".join(name.removeprefix(tokenizers.WORD_START).encode() for name in names)) == 0xC6:
        raise UserError(
            "sherpa-onnx would read this vocabulary as one of bytes, since its last character in "
            "Unicode is one of U+0180 to U+01BF: add a later one, such as U+4E00, to the text that "
            "the vocabulary is made from"
        )
    return "".join(f"{name} {index}\n" for index, name in enumerate(names))


def facts_of(recognizer: Recognizer, kind: Kind, streaming: bool) -> dict:
    """The arguments of its recogniser, for export.json."""
    fbank = recognizer.config.data.fbank
    facts: dict = {
        "recognizer": f"{'Online' if streaming else 'Offline'}Recognizer.from_{kind.name}",
        "sample_rate": fbank.rate,
        "feature_dim": fbank.num_mel_bins,
    }
    if kind.rate is not None:
        del facts["sample_rate"], facts["feature_dim"]
    if kind.name == "wenet_ctc":  # which the others know from their metadata
        facts["chunk_size"] = recognizer.chunk
        facts["num_left_chunks"] = recognizer.model.encoder.left_chunks
    return facts


def files_of(kind: Kind, file: Path) -> dict[str, Path]:
    """The arguments of its recogniser that name files: those beside `file`, the first graph."""
    tokens = file.with_name(tokenizers.TOKENS)
    if kind.name != TRANSDUCER.name:
        return {"model": file, "tokens": tokens}
    first, *_ = PARTS
    names = {part: file.with_name(file.name.replace(first, part)) for part in PARTS}
    return {**names, "tokens": tokens}


def write_tokens(recognizer: Recognizer, file: Path) -> None:
    text = tokens_text(recognizer.tokenizer.tokens, recognizer.model.blank)
    file.write_text(text, encoding="utf-8")
