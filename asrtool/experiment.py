"""The schema of train_*.yaml and decode_*.yaml as dataclasses, and the reading of phases."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from asrtool import config, imports
from asrtool.data.config import DataConfig
from asrtool.errors import UserError
from asrtool.longform import WindowsConfig
from asrtool.losses import LOSSES
from asrtool.models import MODELS, TEXT_MODELS
from asrtool.registry import OMIT, bounded
from asrtool.searchers import (
    SEARCHERS,
    CtcGreedyConfig,
    CtcPrefixBeamConfig,
    RescoringConfig,
    TransducerBeamConfig,
    TransducerGreedyConfig,
)
from asrtool.searchers.fusion import NgramConfig
from asrtool.searchers.lexicon import OF_NGRAM
from asrtool.system import file_names
from asrtool.trainer.config import TrainerConfig
from asrtool.trainer.optim import DEFAULT, OPTIMIZERS

NGRAM_WEIGHT, WORD_SCORE = 0.5, 1.0  # of an n-gram model that the command line adds to a search


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Allowed differences between a phase and the weights that it starts from; any other mismatch
    is an error.
    """

    # name patterns of new parameters, which keep their initialisation
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()  # name patterns of old parameters that are dropped
    # new module: the old module whose weights it takes, such as heads.a: heads.b
    copy: dict[str, str] = field(default_factory=dict)
    # the vocabulary of the weights of --init: equal, a prefix of the new one, or unrelated
    vocab: Literal["keep", "extend", "replace"] = field(default="keep", metadata=OMIT)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One phase of training."""

    data: DataConfig
    model: Annotated[object, MODELS]
    losses: dict[str, Annotated[object, LOSSES]]
    optim: Annotated[object, OPTIMIZERS, DEFAULT]
    trainer: TrainerConfig
    init: InitConfig = field(default_factory=InitConfig)
    seed: int = 0
    # modules of the user's own, which are imported before the rest of the config is read
    import_: tuple[str, ...] = field(default=(), metadata=OMIT)

    def __post_init__(self) -> None:
        if not any(loss.weight for loss in self.losses.values()):
            raise ValueError("losses: at least one weight must not be 0")
        negative = [name for name, loss in self.losses.items() if loss.weight < 0]
        if negative:
            raise ValueError(
                f"losses.{negative[0]}: weight is {self.losses[negative[0]].weight:g}, which would "
                "make the loss grow; expected 0 or more"
            )
        if (self.data.input == "text") != isinstance(self.model, TEXT_MODELS):
            raise ValueError(
                "data.input: text is for model.type: language_model and causal_lm, and for no "
                "other model"
            )
        if self.data.features == "stored_frames":
            self._check_stored_frames()

    def _check_stored_frames(self) -> None:
        is_text = isinstance(self.model, TEXT_MODELS)
        frontend = None if is_text else self.model.encoder.frontend
        if frontend is None:
            raise ValueError(
                "data.features: stored_frames stores the frames of model.encoder.frontend, but "
                "the model has no front end: add one, or remove data.features"
            )
        if frontend.tuning.mode != "frozen":
            raise ValueError(
                f"model.encoder.frontend.tuning is {frontend.tuning.mode}: frames that change in "
                "training cannot be stored. Set it to frozen, or remove data.features: "
                "stored_frames"
            )
        if frontend.weights is None:
            raise ValueError(
                "model.encoder.frontend has no pre-trained weights, and frames of a random "
                "network are not worth storing: give weights, or remove data.features: "
                "stored_frames"
            )

    @property
    def heads(self) -> frozenset[str]:
        """The heads that losses with a weight above 0 read; the model builds these."""
        return frozenset(
            name
            for loss in self.losses.values()
            if loss.weight
            for name in LOSSES.class_of(loss).heads_of(loss)
        )


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How to decode with a trained model."""

    searcher: Annotated[object, SEARCHERS]
    # checkpoints whose weights are averaged; null: as many as at the end of training
    # (trainer.average), which makes them the same weights; 1: the best or the last checkpoint
    average: int | None = None
    phase: str | None = None  # null: the last
    unfinished: bool = False  # true: decode before training has finished, with its checkpoints
    batch_seconds: float = bounded(120.0, least=0)  # padded audio of one decoding batch
    nbest: int = bounded(1, least=1)  # hypotheses written to hyps.jsonl
    # of encoder and search, as trainer.precision; auto: bf16 if the device supports it in hardware
    precision: Literal["auto", "float32", "bf16", "fp16"] = field(default="float32", metadata=OMIT)
    # milliseconds of a chunk, for an encoder that can stream; null: whole utterances
    chunk_ms: float | None = bounded(None, least=0)
    # how many chunks before its own a frame sees; -1: all; null: as in training
    left_chunks: int | None = None
    # how to cut longer audio; null: sets are decoded whole, files by data.max_seconds
    windows: WindowsConfig | None = None
    chunk: int | None = field(default=None, metadata=OMIT)  # before `chunk_ms`: frames

    def __post_init__(self) -> None:
        if self.average is not None and self.average < 1:
            raise ValueError(
                f"average is {self.average}: give at least 1 checkpoint, or null for as many as "
                "training averaged"
            )
        if self.chunk is not None:
            raise ValueError(
                f"chunk: {self.chunk} counts frames, which are 40 ms long in one model and 80 ms "
                "in another: use chunk_ms, in milliseconds, as in chunk_ms: 640"
            )
        if self.chunk_ms is not None and not self.chunk_ms > 0:
            raise ValueError(
                f"chunk_ms is {self.chunk_ms:g}: give milliseconds above 0, or null for whole "
                "utterances"
            )
        if self.left_chunks is not None and (self.chunk_ms is None or self.left_chunks < -1):
            raise ValueError(
                "left_chunks needs chunk_ms, and must be -1 (all chunks) or at least 0"
            )


def split_overrides(texts: Sequence[str]) -> list[str]:
    """Split arguments of --set like a shell: each may hold several `a.b=value`."""
    return [part for text in texts for part in shlex.split(text)]


def load_phases(
    path: Path, overrides: Sequence[str] = (), import_from: Collection[Path] = ()
) -> dict[str, TrainConfig]:
    """One config per phase, in order; a file without `phases:` is the single phase 'train'.

    Overrides apply last, to every resolved phase; `phases.<name>.a.b=value` addresses one of them.
    The modules named by `import:` are imported first, also from the folders `import_from`. So this
    is for a user's own config; `read_phases` reads that of a trained model.
    """
    nodes = _phases(path, overrides)
    imports.load(_imports(nodes), import_from)
    return {name: config.decode(TrainConfig, node) for name, node in nodes.items()}


def read_phases(path: Path) -> dict[str, TrainConfig]:
    """The phases of a trained model. Nothing is imported: raises `NotImported` if the config names
    modules that are not imported yet.
    """
    nodes = _phases(path)
    if missing := imports.not_loaded(_imports(nodes)):
        raise NotImported(missing)
    return {name: config.decode(TrainConfig, node) for name, node in nodes.items()}


class NotImported(UserError):
    """A config names `modules` that are not imported."""

    def __init__(self, modules: Sequence[str]) -> None:
        super().__init__(f"needs the modules {', '.join(modules)}")
        self.modules = tuple(modules)


def _imports(nodes: Mapping[str, yaml.MappingNode]) -> list[str]:
    """The modules that phases name by `import:`, each once."""
    names = {}
    for node in nodes.values():
        named = config.split(node, "import")[1]
        if named is not None:
            names |= dict.fromkeys(config.decode(tuple[str, ...], named, "import"))
    return list(names)


def _phases(path: Path, overrides: Sequence[str] = ()) -> dict[str, yaml.MappingNode]:
    """The resolved node of each phase."""
    base, phases = config.split(config.read(path), "phases")
    names = list(config.entries(phases, "phases")) if phases is not None else ["train"]
    nodes = {name: base for name in names}
    if phases is not None:
        for name, (key, _) in config.entries(phases, "phases").items():
            if file_names.of(name) != name:
                expected = "letters, digits, - and _, because it names a folder of the experiment"
                raise config.ConfigError(
                    key, f"phases.{name}", f"invalid name of a phase; expected {expected}"
                )
        nodes = {
            name: config.merge(base, node)
            for name, (_, node) in config.entries(phases, "phases").items()
        }
    # phases.<name>.a.b=value goes to one phase, any other override to all of them.
    for text in overrides:
        targets, inner = names, text
        if text.startswith("phases."):
            key, equals, value = text.partition("=")
            _, name, *rest = key.split(".", 2)
            if not equals or not rest:
                raise ValueError(
                    f"--set {text}: expected phases.<name>.<key>=value, as in phases."
                    f"{name or names[0]}.optim.lr=1e-4"
                )
            inner = f"{rest[0]}={value}"
            if name not in names:
                raise ValueError(
                    f"--set {text}: no such phase; phases of {path}: {', '.join(names)}"
                )
            targets = [name]
        for name in targets:
            nodes[name] = config.override(nodes[name], [inner])
    return nodes


def search_config(search: Mapping[str, object]) -> object:
    """{"type": ..., ...}, as in decode_*.yaml -> the config of a searcher."""
    return config.decode(Annotated[object, SEARCHERS], yaml.compose(yaml.safe_dump(dict(search))))


def load_decode(
    path: Path, overrides: Sequence[str] = (), ngram: Path | None = None, unit: str = "word"
) -> DecodeConfig:
    """The config at `path`. ngram: an n-gram model to add by `with_ngram`. Overrides apply last."""
    node = config.read(path)
    if ngram is None:
        return config.decode(DecodeConfig, config.override(node, overrides))
    # the n-gram model is added to the type of search that overrides choose; the other overrides may
    # change what it adds
    kinds = [text for text in overrides if text.split("=")[0] in ("searcher", "searcher.type")]
    settings = config.decode(DecodeConfig, config.override(node, kinds))
    settings = replace(settings, searcher=with_ngram(settings.searcher, str(ngram), unit))
    return changed_decode(settings, [text for text in overrides if text not in kinds])


def changed_decode(settings: DecodeConfig, overrides: Sequence[str]) -> DecodeConfig:
    """The config with overrides as in --set."""
    if not overrides:
        return settings
    node = yaml.compose(dump(config.encode(DecodeConfig, settings)))
    return config.decode(DecodeConfig, config.override(node, overrides))


def add_model_argument(
    options: argparse.ArgumentParser, name: str = "model", also: str = "", **how: object
) -> None:
    """The trained model of a command, which `model_folder.Experiment.open` opens; also: what is
    said of it beside that.
    """
    what = "experiment that stage 3 wrote, a folder of `asrtool pack`, or hf:user/model"
    options.add_argument(name, type=Path, help=what + also, **how)


def add_set_option(options: argparse.ArgumentParser, what: str) -> None:
    """`--set`, for `split_overrides`."""
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=what)


def add_ngram_options(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--ngram",
        type=Path,
        help="n-gram model (ARPA) that the search also uses, with weights.ngram",
    )
    options.add_argument(
        "--ngram-unit",
        choices=("word", "token"),
        default="word",
        help="units of the n-gram model (default: word)",
    )


def search_files(searcher: Any) -> dict[str, str]:
    """The files that a search reads: n-gram model, lexicon, hotwords, CTC head of the encoder."""
    searcher = searcher.first_pass or searcher
    files = {}
    for kind in ("ngram", "hotwords", "encoder_ctc"):
        settings = getattr(searcher, kind)
        if settings is not None and settings.path is not None:
            files[kind] = settings.path
    if searcher.lexicon not in (None, OF_NGRAM):
        files["lexicon"] = searcher.lexicon
    return files


def check_ngram(path: Path, searcher: Any) -> None:
    """Raise `ConfigError` if the search of a decoding config has an n-gram model without a file."""
    ngram = (searcher.first_pass or searcher).ngram
    if ngram is not None and ngram.path is None:
        raise config.ConfigError(
            config.read(path),
            "searcher.ngram",
            "no file is given; give one with --ngram <file>, with --lm ngram:<order> in a "
            "recipe, or set searcher.ngram.path",
        )


def with_ngram(searcher: Any, path: str, unit: str) -> Any:
    """The config of the search with an n-gram model from a file.

    Weights that it lacks become NGRAM_WEIGHT and, for words, WORD_SCORE. Greedy search becomes a
    prefix beam search; rescoring gets the model in its first pass, and keeps its part of the score.
    Raises `ValueError` for a search that takes no n-gram model.
    """
    if isinstance(searcher, CtcGreedyConfig):
        searcher = CtcPrefixBeamConfig(input=searcher.input)
    if isinstance(searcher, TransducerGreedyConfig):
        searcher = TransducerBeamConfig(input=searcher.input)
    if isinstance(searcher, RescoringConfig):
        first = with_ngram(searcher.first_pass, path, unit)
        weights = {"ngram": NGRAM_WEIGHT, **searcher.weights}
        return replace(searcher, first_pass=first, weights=weights)
    if not any(field.name == "ngram" for field in fields(searcher)):
        raise ValueError(
            f"the searcher '{SEARCHERS.name_of(searcher)}' takes no n-gram model; choose "
            "ctc_prefix_beam, transducer_beam, joint_beam or attention_rescoring"
        )
    more = {}
    if isinstance(searcher, CtcPrefixBeamConfig) and searcher.ngram is None and unit == "word":
        more = {"word_score": searcher.word_score or WORD_SCORE}
    return replace(
        searcher,
        ngram=NgramConfig(path=path, unit=unit),
        weights={"ngram": NGRAM_WEIGHT, **searcher.weights},
        **more,
    )


def dump_phases(phases: dict[str, TrainConfig]) -> str:
    """YAML that `load_phases` reads back to the same configs: every phase, fully resolved."""
    return dump(
        {"phases": {name: config.encode(TrainConfig, phase) for name, phase in phases.items()}}
    )


def dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
