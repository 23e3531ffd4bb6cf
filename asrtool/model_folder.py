"""The folder of a trained model: an experiment that training wrote, or a packed model (`asrtool
pack`).

model.json         description, origin and SHA-256 of the files; only of a packed model
config.yaml        all phases; of a packed model the packed one
decode.yaml        decoding config of a packed model
vocab/  cmvn.json
lengths.json       of the training utterances; an experiment has it in the phase's folder
model.safetensors  averaged weights; an experiment has <phase>/average-*.safetensors instead
lm/                a packed language model: config.yaml and model.safetensors
files/             n-gram models and hotwords that decode.yaml names
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from asrtool import experiment, hub
from asrtool.data import tokenizers
from asrtool.data.features import Cmvn
from asrtool.data.lengths import Lengths
from asrtool.encoders import PretrainedConfig, StreamingEncoder
from asrtool.errors import UserError
from asrtool.experiment import DecodeConfig, TrainConfig
from asrtool.heads import names_of
from asrtool.imports import load as import_modules
from asrtool.log import logger
from asrtool.models import (
    MODELS,
    TEXT_MODELS,
    AsrModel,
    HybridConfig,
    LanguageModel,
    LanguageModelConfig,
    Model,
)
from asrtool.models.origins import digests
from asrtool.nn.meta_device import without_weights
from asrtool.searchers import SEARCHERS, CtcGreedyConfig, Rescoring, StreamingSearcher
from asrtool.trainer import averaging, checkpoint, folder
from asrtool.trainer.folder import changed_copy

CARD, CONFIG, DECODE, WEIGHTS, LM = (
    "model.json",
    "config.yaml",
    "decode.yaml",
    "model.safetensors",
    "lm",
)
PACKED = (  # patterns of the files of a packed model
    *(CARD, CONFIG, DECODE, WEIGHTS, "README.md", "cmvn.json", "lengths.json"),
    *("vocab/*", f"{LM}/*", "files/*"),
)


@dataclass(frozen=True)
class Experiment:
    """The folder of a trained model, read by `open`."""

    folder: Path
    phases: Mapping[str, TrainConfig]
    packed: bool

    @classmethod
    def open(cls, folder: Path | str, imports: Iterable[str] = ()) -> Experiment:
        """folder: or `hf:user/model[@revision]`, which is downloaded. imports: the user's own
        modules that the model needs.

        Raises `UserError` as `open_folder`, and if the model needs modules that are not imported:
        they are never imported automatically.
        """
        import_modules(imports)
        folder = open_folder(folder)
        try:
            phases = experiment.read_phases(folder / CONFIG)
            return cls(folder, phases, (folder / CARD).exists())
        except experiment.NotImported as error:
            raise UserError(
                f"{folder} needs {', '.join(error.modules)}, which a model does not import by "
                f"itself; if you trust it, give {' '.join(f'--import {m}' for m in error.modules)} "
                f"(Python: imports={list(error.modules)})"
            ) from None

    def phase(self, name: str | None = None) -> tuple[str, TrainConfig]:
        """Name and config of a phase, by default the last. Raises `UserError` if there is none."""
        name = name or list(self.phases)[-1]
        if name not in self.phases:
            has = ", ".join(self.phases)
            raise UserError(f"{self.folder} has no phase '{name}'; it has: {has}")
        return name, self.phases[name]

    @cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.load(self.folder / "vocab")

    @property
    def cmvn(self) -> Cmvn | None:
        file = self.folder / "cmvn.json"
        bins = {
            name: phase.data.fbank.num_mel_bins
            for name, phase in self.phases.items()
            if phase.data.input == "fbank"
        }
        if not file.exists():
            if bins:
                raise UserError(
                    f"{self.folder} is incomplete: cmvn.json is missing, mean and standard "
                    f"deviation of the features that phase '{next(iter(bins))}' reads"
                )
            return None
        cmvn = Cmvn.load(file)
        wrong = next((name for name, count in bins.items() if count != len(cmvn.mean)), None)
        if wrong is not None:
            raise UserError(
                f"{file} has {len(cmvn.mean)} means, but the features of phase '{wrong}' have "
                f"{bins[wrong]} bins"
            )
        return cmvn

    @property
    def lm(self) -> Path | None:
        """The folder of the packed language model, if there is one."""
        return self.folder / LM if (self.folder / LM).exists() else None

    def weights(self, decode: DecodeConfig) -> Path:
        """The file of the averaged weights, which is written if it is missing or damaged."""
        if (self.folder / WEIGHTS).exists():
            return self.folder / WEIGHTS
        name, config = self.phase(decode.phase)
        phase = self.folder / name
        if not decode.unfinished and not folder.finished(phase):
            raise UserError(
                f"the training in {phase} is not finished; continue it (stage 3 again), or use the "
                "checkpoints it has by --set unfinished=true (--decode-args of run.sh)"
            )
        return averaging.average(phase, decode.average or config.trainer.average)

    def lengths(self, phase: str) -> Lengths | None:
        """The durations of a phase's training utterances; None if they were not recorded."""
        return Lengths.load(self.folder if self.packed else self.folder / phase)

    @cached_property
    def bases(self) -> list[dict]:
        """The base weights that a packed model omits: part, weights (name), revision, and the
        SHA-256 of each of their files.
        """
        return self.card.get("bases", [])

    @property
    def card(self) -> dict:
        """The content of model.json; of an experiment empty."""
        return json.loads((self.folder / CARD).read_text("utf-8")) if self.packed else {}

    def build(self, phase: str | None = None) -> Model:
        """The model of a phase, without its trained weights. Raises `UserError` if published
        weights that it needs are missing, or are not those that training began with.
        """
        name, config = self.phase(phase)
        config = without_published_weights(config, whole=self.packed and not self.bases)
        for base in self.bases:
            logger.info("%s: base weights of its %s: %s", self.folder, base["part"], name_of(base))
        try:
            model = build_model(config, self.tokenizer.size)
        except (OSError, ValueError) as error:
            if not self.bases:
                raise
            needed = ", ".join(map(name_of, self.bases))
            raise UserError(
                f"{self.folder} contains only trained tensors; its base weights, {needed}, cannot "
                f"be loaded: {error}"
            ) from error
        self._check_pretrained(name, model)
        return model

    def load(self, decode: DecodeConfig, weights: Path | None = None) -> Model:
        """The trained model on the CPU, for evaluation; weights: a file instead of the average."""
        model = self.build(decode.phase)
        checkpoint.load_model(model, weights or self.weights(decode), same_types=True)
        return model.eval()

    def decode_config(
        self,
        path: Path | None = None,
        overrides: Sequence[str] = (),
        streaming: bool = False,
    ) -> DecodeConfig:
        """The decoding config: the file `path`; without it that of a packed model, else the default
        search of the model's heads. Raises `UserError` if no head has one.

        overrides: of `--set`. streaming: a search that can run while audio arrives.
        """
        if path is not None:
            return experiment.load_decode(path, overrides)
        return experiment.changed_decode(self._own_search(streaming), overrides)

    def _own_search(self, streaming: bool) -> DecodeConfig:
        packed = self.folder / DECODE
        if packed.exists():
            decode = experiment.load_decode(packed)
            decode = replace(
                decode, searcher=moved(decode.searcher, lambda path: str(self.folder / path))
            )
            if not streaming or can_stream(decode.searcher):
                return decode
        name, config = self.phase()
        self.refuse_text(config)
        with without_weights():
            model = build_model(config, self.tokenizer.size)
        search = model.default_streaming_search() if streaming else model.default_search()
        how = "streamed" if streaming else "searched"
        if search is None or (streaming and not can_stream(experiment.search_config(search))):
            raise UserError(
                f"{self.folder}: no head of phase '{name}' ({names_of(model.heads)}) can be {how} "
                "without a config; give one by --config decode_*.yaml"
            )
        return DecodeConfig(searcher=experiment.search_config(search))

    def refuse_text(self, config: TrainConfig) -> None:
        """Raise `UserError` if the phase trained a language model."""
        if isinstance(config.model, TEXT_MODELS):
            raise UserError(
                f"{self.folder} holds a language model, which cannot recognise speech; give it by "
                "--lm"
            )

    def _check_pretrained(self, phase: str, model: Model) -> None:
        """Raise `UserError` if the pre-trained weights of `model` differ from those of training.

        Checkpoints omit tensors that never change; `model.json` of the phase has their
        fingerprints.
        """
        card = self.folder / phase / CARD
        trained = json.loads(card.read_text(encoding="utf-8")) if card.exists() else {}
        current = {source["part"]: source for source in model.sources}
        for source in trained.get("pretrained", []):
            fingerprint = current.get(source["part"], {}).get("fingerprint")
            if fingerprint != source["fingerprint"]:
                raise UserError(
                    f"{self.folder / phase} was trained on {source['part']} weights "
                    f"{source['weights']} with the fingerprint {source['fingerprint'][:16]}, which "
                    f"now have {str(fingerprint)[:16]}: restore the weights of the training, or "
                    "train again"
                )
        for base in self.bases:
            found = digests(base["weights"], base["revision"])
            other = [name for name, digest in base["files"].items() if found.get(name) != digest]
            if other:
                raise UserError(
                    f"{self.folder} was trained on {name_of(base)}, whose {other[0]} has changed: "
                    "its SHA-256 does not match"
                )


def name_of(base: Mapping[str, object]) -> str:
    """Name and revision of base weights."""
    return base["weights"] + (f" (revision {base['revision']})" if base["revision"] else "")


def open_folder(folder: Path | str) -> Path:
    """The folder of a trained model, after checks; a model on the hub is downloaded.

    Raises `UserError` if it holds no trained model, and if a file of a packed model or the
    vocabulary or CMVN of an experiment has changed.
    """
    asked, folder = folder, hub.local(folder, CARD)
    if not (folder / CONFIG).exists():
        asked = Path(asked)
        known = hub.is_reference(asked) or asked.is_absolute() or asked.parent.exists()
        meant = len(asked.parts) == 2 and not known
        raise UserError(
            f"{folder} holds no {CONFIG}: train a model first (stage 3), or give another folder"
            + (f"; a model on the hub is called {hub.PREFIX}{asked}" if meant else "")
        )
    if (folder / CARD).exists():
        check_packed(folder)
    elif (changed := changed_copy(folder)) is not None:
        raise UserError(
            f"{folder / changed} is not what the training began with; restore it from a backup,"
            " or from where stage 3 copied it (--vocab, --train)"
        )
    return folder


def can_stream(searcher: object) -> bool:
    """Whether the search of a searcher's config can run while audio arrives."""
    return issubclass(SEARCHERS.class_of(searcher), StreamingSearcher | Rescoring)


def without_published_weights(config: TrainConfig, whole: bool = False) -> TrainConfig:
    """The config to load weights trained by asrtool with. If they include the encoder and its size
    is known, the published weights that training began with are no longer needed.

    whole: the trained weights include frozen tensors, as in a packed model.
    """
    model = config.model
    if not isinstance(model, HybridConfig):
        return config
    return replace(config, model=replace(model, encoder=_without_weights(model.encoder, whole)))


def _without_weights(encoder: object, whole: bool) -> object:
    """An encoder's config without published weights, if the trained ones replace them."""
    if isinstance(encoder, PretrainedConfig):
        # checkpoints omit frozen tensors
        needed = encoder.size is None or (encoder.tuning.mode != "full" and not whole)
        return encoder if needed else replace(encoder, weights=None)
    if encoder.frontend is None:
        return encoder
    return replace(encoder, frontend=_without_weights(encoder.frontend, whole))


def build_model(config: TrainConfig, vocab_size: int) -> Model:
    """The model of a phase, with fresh weights."""
    data = config.data
    fbank = data.input == "fbank"
    return MODELS.build(
        config.model,
        input_dim=data.fbank.num_mel_bins if fbank else 1,
        vocab_size=vocab_size,
        frame_shift=data.fbank.frame_shift_ms / 1000 if fbank else 1 / data.fbank.rate,
        heads=config.heads,
    )


def named_files(searcher: object) -> list[str]:
    """The files that a searcher's config names: every field called `path`."""
    paths = []
    for field in dataclasses.fields(searcher):
        value = getattr(searcher, field.name)
        if dataclasses.is_dataclass(value):
            paths += named_files(value)
        elif field.name == "path" and value:
            paths.append(value)
    return paths


def moved(searcher: object, move: Callable[[str], str]) -> object:
    """The same config with move(path) for every field called `path`."""
    changed = {}
    for field in dataclasses.fields(searcher):
        value = getattr(searcher, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = moved(value, move)
        elif field.name == "path" and value:
            changed[field.name] = move(value)
    return dataclasses.replace(searcher, **changed)


def language_model(
    exp: Path, vocab: Path, device: torch.device | str = "cpu"
) -> tuple[LanguageModel, Path]:
    """The averaged language model of an experiment and the file of its weights. Raises `UserError`
    if its vocabulary differs from the recogniser's, `vocab`.
    """
    trained = Experiment.open(exp)
    config = trained.phase()[1]
    if not isinstance(config.model, LanguageModelConfig):
        raise UserError(
            f"{exp} holds no language model: its config says model.type: "
            f"{MODELS.name_of(config.model)}"
        )
    tokenizer = tokenizers.load(vocab)
    if (trained.folder / "vocab").exists() and trained.tokenizer.tokens != tokenizer.tokens:
        raise UserError(
            f"the vocabulary of the language model in {exp} differs from the recogniser's, {vocab}"
        )
    model = build_model(config, tokenizer.size)
    weights = trained.weights(DecodeConfig(searcher=CtcGreedyConfig()))
    checkpoint.load_model(model, weights, same_types=True)
    return model.to(device).eval(), weights


def sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_packed(exp: Path) -> None:
    """Raise `UserError` if a file of a packed model is missing or has changed."""
    try:
        listed = json.loads((exp / CARD).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{exp / CARD} is damaged; pack the model again (asrtool pack)") from None
    for name, digest in listed.items():
        if not (exp / name).exists():
            raise UserError(f"{exp} is incomplete: {name} is missing")
        if sha256(exp / name) != digest:
            raise UserError(f"{exp / name} is not what was packed: SHA-256 does not match")


def in_chunks(model: AsrModel, decode: DecodeConfig) -> AsrModel:
    """The model with the left context of a decoding config. It shares the weights with `model`,
    which is not changed. Raises `UserError` if the encoder cannot stream, or not in such chunks.
    """
    if decode.chunk_ms is None:
        return model
    encoder = model.encoder
    chunk = chunk_frames(encoder, decode)
    frame = 1000 * encoder.seconds_per_frame
    logger.info("chunks of %d frames, %.0f ms", chunk, chunk * frame)
    longest = encoder.longest_chunk
    if longest is None:
        logger.warning("the model was trained on whole utterances, never on chunks")
    elif chunk > longest:
        logger.warning(
            "chunks of %g ms are longer than in training, which had at most %g ms",
            decode.chunk_ms,
            longest * frame,
        )
    if decode.left_chunks is None:
        return model
    # Shallow copies: setting a submodule would register it in the original's _modules dict too.
    limited, changed = copy.copy(encoder), copy.copy(model)
    limited.left_chunks = None if decode.left_chunks == -1 else decode.left_chunks
    changed._modules = {**model._modules, "encoder": limited}
    return changed


def chunk_frames(encoder: nn.Module, decode: DecodeConfig) -> int | None:
    """Encoder frames per chunk of a decoding config; None: no chunks. Raises `UserError` if the
    encoder cannot stream, or if a chunk is not a multiple of its frames.
    """
    if decode.chunk_ms is None:
        return None
    if not isinstance(encoder, StreamingEncoder):
        raise UserError(f"chunk_ms: {decode.chunk_ms:g}: the encoder cannot stream")
    if encoder.obstacle:
        raise UserError(f"chunk_ms: {decode.chunk_ms:g}: {encoder.obstacle}")
    try:
        return encoder.frames_of(decode.chunk_ms)
    except ValueError as error:
        raise UserError(str(error)) from None
