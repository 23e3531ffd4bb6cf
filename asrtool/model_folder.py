"""What lies in the folder of a trained model: an experiment as training left it, or a packed model
(`asrtool pack`).

model.json         what it is, where it comes from, SHA-256 of its files: only a packed model has it
config.yaml        of a packed model the one phase that was packed
decode.yaml        how to search; a packed model has it
vocab/  cmvn.json
lengths.json       of the training set's utterances; an experiment has it in the phase's folder
model.safetensors  averaged weights; an experiment has <phase>/average-*.safetensors instead
lm/                a packed language model: config.yaml and model.safetensors
files/             n-gram models and hotwords that decode.yaml names
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from asrtool import experiment
from asrtool.data.lengths import Lengths
from asrtool.data.tokenizers import load as load_tokenizer
from asrtool.encoders import SslConfig, StreamingEncoder
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.log import logger
from asrtool.models import MODELS, AsrModel, HybridConfig, LanguageModel, LanguageModelConfig
from asrtool.searchers import (
    ALIGNED,
    AttentionBeamConfig,
    CtcGreedyConfig,
    JointBeamConfig,
    LlmBeamConfig,
)
from asrtool.train import averaging, checkpoint, folder

CARD, CONFIG, DECODE, WEIGHTS, LM = (
    "model.json",
    "config.yaml",
    "decode.yaml",
    "model.safetensors",
    "lm",
)


class ExperimentError(ValueError):
    """The folder does not hold what is asked of it."""


def is_packed(exp: Path) -> bool:
    return (exp / CARD).exists()


def phase_config(exp: Path, decode: DecodeConfig | None = None) -> tuple[str, TrainConfig]:
    """Name and config of the phase that `decode` names, by default the last."""
    if not (exp / CONFIG).exists():
        raise ExperimentError(
            f"{exp} holds no {CONFIG}: train first (stage 3), or give another folder"
        )
    phases = experiment.load_phases(exp / CONFIG)
    name = (decode and decode.phase) or list(phases)[-1]
    if name not in phases:
        raise ExperimentError(f"{exp} has no phase '{name}'; it has: {', '.join(phases)}")
    return name, phases[name]


def averaged(exp: Path, decode: DecodeConfig) -> Path:
    """The file of the averaged weights, made if it is not there yet or damaged."""
    if is_packed(exp):
        return exp / WEIGHTS
    phase = exp / phase_config(exp, decode)[0]
    if not decode.unfinished and not folder.finished(phase):
        raise ExperimentError(
            f"the training in {phase} is not finished; go on with it (stage 3 again), or decode "
            "with the checkpoints "
            "it has by --set unfinished=true (--decode-args of run.sh)"
        )
    return averaging.average(phase, decode.average)


def lengths_of(exp: Path, phase: str) -> Lengths | None:
    """How long the utterances were that the phase was trained on; None where the folder does not
    say it.
    """
    return Lengths.load(exp if is_packed(exp) else exp / phase)


def build_model(config: TrainConfig, vocab_size: int) -> AsrModel:
    """The model of a phase, with fresh weights."""
    data = config.data
    fbank = data.input == "fbank"
    return MODELS.build(
        config.model,
        input_dim=data.fbank.num_mel_bins if fbank else 1,
        vocab_size=vocab_size,
        frame_shift=data.fbank.frame_shift_ms / 1000 if fbank else 1 / data.fbank.rate,
        streams=config.streams,
    )


def model_to_load(config: TrainConfig, vocab_size: int) -> AsrModel:
    """As `build_model`, for weights that asrtool has trained: where these hold the encoder too and
    its size is known, the published weights that training began with are not needed any more."""
    model = config.model
    if (
        isinstance(model, HybridConfig)
        and isinstance(model.encoder, SslConfig)
        and model.encoder.size is not None
    ):
        encoder = dataclasses.replace(model.encoder, weights=None)
        config = dataclasses.replace(config, model=dataclasses.replace(model, encoder=encoder))
    return build_model(config, vocab_size)


def check_pretrained(exp: Path, phase: str, model: AsrModel) -> None:
    """Raise `ExperimentError` where the pre-trained weights that the model was built on are not
    those of the training.

    Checkpoints leave out what never changes; `model.json` of the phase says what it was.
    """
    card = exp / phase / "model.json"
    trained = (
        json.loads(card.read_text(encoding="utf-8")).get("pretrained", []) if card.exists() else []
    )
    now = {source["part"]: source for source in getattr(model, "sources", ())}
    for source in trained:
        other = now.get(source["part"], {})
        if other.get("fingerprint") != source["fingerprint"]:
            raise ExperimentError(
                f"{exp / phase} was trained on {source['part']} weights {source['weights']} with "
                "the fingerprint "
                f"{source['fingerprint'][:16]}, those there now have "
                f"{str(other.get('fingerprint'))[:16]}: they were "
                "changed since"
            )


def decode_config(exp: Path) -> DecodeConfig:
    """How to search where nobody says it: as a packed model was packed; else by what the model
    has.
    """
    if (exp / DECODE).exists():
        decode = experiment.load_decode(exp / DECODE)
        return dataclasses.replace(
            decode, searcher=moved(decode.searcher, lambda path: str(exp / path))
        )
    config = phase_config(exp)[1]
    if "llm" in config.streams:
        searcher = LlmBeamConfig()
    elif {"ctc", "attention"} <= config.streams:
        searcher = JointBeamConfig()
    elif "ctc" in config.streams:
        searcher = CtcGreedyConfig()
    elif "attention" in config.streams:
        searcher = AttentionBeamConfig()
    elif config.rated is not None:
        searcher = CtcGreedyConfig(input=config.rated, collapse=config.rated != ALIGNED)
    else:
        has = ", ".join(sorted(config.streams))
        raise ExperimentError(
            f"{exp}: its model has the streams {has}; say how to search by --config decode_*.yaml"
        )
    return DecodeConfig(searcher=searcher, average=config.trainer.average)


def named_files(searcher: object) -> list[str]:
    """The files that a searcher's config names: every setting called `path`."""
    found = []
    for field in dataclasses.fields(searcher):
        value = getattr(searcher, field.name)
        if dataclasses.is_dataclass(value):
            found += named_files(value)
        elif field.name == "path" and value:
            found.append(value)
    return found


def moved(searcher: object, place: Callable[[str], str]) -> object:
    """The same config with place(path) for every `path`."""
    changed = {}
    for field in dataclasses.fields(searcher):
        value = getattr(searcher, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = moved(value, place)
        elif field.name == "path" and value:
            changed[field.name] = place(value)
    return dataclasses.replace(searcher, **changed)


def language_model(
    exp: Path, vocab: Path, device: torch.device | str = "cpu"
) -> tuple[LanguageModel, Path]:
    """The averaged language model of a folder and its file, for a recogniser with the vocabulary of
    folder `vocab`.
    """
    config = phase_config(exp)[1]
    if not isinstance(config.model, LanguageModelConfig):
        raise ExperimentError(
            f"{exp} holds no language model: its config says model.type: {kind(config)}"
        )
    tokenizer = load_tokenizer(vocab)
    if (exp / "vocab").exists() and load_tokenizer(exp / "vocab").tokens != tokenizer.tokens:
        raise ExperimentError(
            f"the language model in {exp} has another vocabulary than the recogniser ({vocab})"
        )
    model = build_model(config, tokenizer.size)
    decode = DecodeConfig(searcher=CtcGreedyConfig(), average=config.trainer.average)
    weights = exp / WEIGHTS if (exp / WEIGHTS).exists() else averaged(exp, decode)
    checkpoint.load_model(model, weights)
    return model.to(device).eval(), weights


def kind(config: TrainConfig) -> str:
    """The name of a phase's model."""
    return MODELS.name_of(config.model)


def sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_packed(exp: Path) -> None:
    """Raise `ExperimentError` where a file of a packed model is not what was packed."""
    try:
        listed = json.loads((exp / CARD).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        raise ExperimentError(
            f"{exp / CARD} is damaged; pack the model again (asrtool pack)"
        ) from None
    for name, digest in listed.items():
        if not (exp / name).exists():
            raise ExperimentError(f"{exp} is not complete: {name} is missing")
        if sha256(exp / name) != digest:
            raise ExperimentError(f"{exp / name} is not what was packed: its SHA-256 is another")


def limit_chunks(model: AsrModel, decode: DecodeConfig) -> None:
    """Prepare the encoder for the chunks of a decoding config; raises where it cannot stream."""
    if decode.chunk is None:
        return
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, StreamingEncoder) or encoder.obstacle:
        why = getattr(encoder, "obstacle", None) or "the encoder cannot stream"
        raise ExperimentError(f"chunk: {decode.chunk}: {why}")
    if decode.left_chunks is not None:
        encoder.left_chunks = None if decode.left_chunks == -1 else decode.left_chunks
    logger.info(
        "chunks of %d frames, %.0f ms",
        decode.chunk,
        1000 * decode.chunk * encoder.seconds_per_frame,
    )
