"""Stage 3: train the phases of a config one after another; an interrupted training goes on, a
finished one is left alone."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from asrtool import config, distributed, experiment
from asrtool.data import augment, tokenizers
from asrtool.data.config import DataConfig
from asrtool.data.examples import DataError
from asrtool.data.features import Cmvn
from asrtool.data.kaldi import datadir
from asrtool.data.lengths import Lengths
from asrtool.data.loader import Dataset, EvalLoader, StepLoader, select
from asrtool.data.shards.loader import step_loader
from asrtool.data.text import Sentences, TextDataset, TextLoader
from asrtool.experiment import TrainConfig
from asrtool.log import logger, set_up
from asrtool.losses import LOSSES, AccentLossConfig
from asrtool.losses.cross_entropy import append
from asrtool.models import LanguageModel, SpeechLlm, SpeechLlmConfig
from asrtool.recognizer import build_model
from asrtool.score import count_errors
from asrtool.score.normalize import splitter
from asrtool.searchers import ALIGNED, SEARCHERS, CtcGreedyConfig
from asrtool.system import atomic, stamp
from asrtool.train import averaging, checkpoint, folder, optim, records
from asrtool.train.objective import Objective
from asrtool.train.trainer import Trainer, check_metric
from asrtool.types import Batch, ModelOutput, Utterance


class PhaseError(ValueError):
    """A phase of the config cannot be trained; found before the first one starts."""


Sets = tuple[Sequence[Utterance], Sequence[Utterance]]  # for training, for validation
MAKERS = {"train": "stage 1 makes it", "valid": "stage 1 makes it", "vocab": "stage 2 makes it"}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    phases = experiment.load_phases(args.config, experiment.split_overrides(args.set))
    with distributed.process_group(), ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(stamp.locked(args.exp))
            prepare(args, phases)
            check_phases(args, phases)
        distributed.barrier()
        ended = train(args, phases)
    if ended == signal.SIGINT:
        sys.exit(130)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool train", description=__doc__)
    options.add_argument("--config", type=Path, required=True, help="train_*.yaml")
    options.add_argument(
        "--train", type=Path, required=True, help="training set: a folder that stage 1 wrote"
    )
    options.add_argument("--valid", type=Path, required=True, help="validation set, likewise")
    options.add_argument(
        "--vocab", type=Path, required=True, help="vocabulary folder that stage 2 wrote"
    )
    options.add_argument("--exp", type=Path, required=True, help="experiment folder to write")
    options.add_argument(
        "--text",
        type=Path,
        action="append",
        default=[],
        help="further text for a language model, a sentence a line",
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="'KEY=VALUE ...'",
        help="overrides of the config; may be repeated",
    )
    options.add_argument(
        "--init",
        type=Path,
        help="warm start of the first phase: a checkpoint folder or .safetensors file",
    )
    options.add_argument(
        "--force",
        choices=("true", "false"),
        default="false",
        help="train anew where --exp holds another training",
    )
    return options.parse_args(argv)


def prepare(args: argparse.Namespace, phases: Mapping[str, TrainConfig]) -> None:
    """Write the experiment's folder, or make sure that it is this training's."""
    sources = {"train": args.train, "valid": args.valid, "vocab": args.vocab}
    if args.init is not None:
        sources["init"] = args.init
    sources |= {f"text {number}": path for number, path in enumerate(args.text)}
    for role, path in sources.items():
        if not path.exists():
            raise folder.FolderError(
                f"--{role} {path} does not exist; {MAKERS.get(role, 'give another')}"
            )
    if (
        args.init is not None
        and args.init.is_file()
        and (problem := records.damage(args.init)) is not None
    ):
        anew = "the command that trained it makes it anew"
        raise checkpoint.CheckpointError(f"--init {args.init} cannot be used: {problem}; {anew}")
    folder.prepare(
        args.exp,
        {name: config.encode(TrainConfig, phase) for name, phase in phases.items()},
        experiment.dump_phases(phases),
        sources,
        shlex.join(sys.argv),
        force=args.force == "true",
    )


def check_phases(args: argparse.Namespace, phases: Mapping[str, TrainConfig]) -> None:
    """Find out before the first of several phases starts what would stop a later one, days
    after.
    """
    if len(phases) == 1:  # it is about to start
        return
    tokenizer = tokenizers.load(args.exp / "vocab")
    before = checkpoint.shapes(args.init) if args.init is not None else None
    origin = f"--init {args.init}"
    for name, phase in phases.items():
        try:
            with torch.device("meta"):
                model = build_model(phase, tokenizer.size)
            optim.assign(phase.optim, model)
            objective = make_objective(phase, tokenizer, args.exp / "vocab")
            check_metric(phase.trainer.best, objective.terms, measures_rates(phase))
            noise_sets(phase, args.train.parent)
            if before is not None:
                before = checkpoint.copied(before, model, phase.init.copy)
                checkpoint.compare(origin, before, model, phase.init.missing, phase.init.unused)
        except (ValueError, RuntimeError, datadir.DataDirError) as error:
            raise PhaseError(f"phase '{name}': {error}") from error
        before = {key: tuple(value.shape) for key, value in checkpoint.model_tensors(model).items()}
        origin = f"what phase '{name}' leaves"


def train(args: argparse.Namespace, phases: Mapping[str, TrainConfig]) -> int:
    """Train every phase that is not finished; each starts from the averaged weights of the one
    before.

    Gives the signal that stopped it, or 0.
    """
    sets: Sets | None = None
    weights = args.init
    for name, phase in phases.items():
        where = args.exp / name
        finished = distributed.broadcast_object(distributed.is_main() and folder.finished(where))
        if not finished or needs_lengths(where, phase):
            sets = sets or read_sets(args, phase)
            keep_lengths(where, phase, sets[0])
        if not finished:
            ended = train_phase(where, phase, args, sets, weights)
            if ended:
                return ended
        # made anew where it is damaged
        average = averaging.average(where, phase.trainer.average) if distributed.is_main() else None
        weights = distributed.broadcast_object(average)
        if finished:
            logger.info("%s is finished; its weights are %s", where, weights)
    return 0


def train_phase(
    where: Path,
    phase: TrainConfig,
    args: argparse.Namespace,
    sets: Sets,
    weights: Path | None,
) -> int:
    """One phase in folder `where`, from `weights` where they are given; 0, or the signal that
    stopped it.
    """
    tokenizer = tokenizers.load(args.exp / "vocab")
    batches, validation = loaders(phase, args, sets, tokenizer)
    torch.manual_seed(phase.seed)
    model = build_model(phase, tokenizer.size)
    if weights is not None:
        if any(where.glob("step-*")):
            logger.info(
                "%s began from the weights %s and goes on from its own checkpoints", where, weights
            )
        else:
            fresh = (
                "a fresh optimizer and step 1: this is a start, not the resuming of another "
                "training"
            )
            logger.info("%s starts from the weights %s with %s", where, weights, fresh)
        checkpoint.load_model(
            model, weights, phase.init.missing, phase.init.unused, phase.init.copy
        )
    logger.info("%s: %s", where, batches.describe())
    if isinstance(model, SpeechLlm):
        model.check_room(
            [(u.id, u.duration, tokenizer.encode(u.text)) for u in batches.dataset.utterances]
        )
    measured = measures_rates(phase)
    trainer = Trainer(
        phase.trainer,
        phase.optim,
        model,
        make_objective(phase, tokenizer, args.exp / "vocab"),
        batches,
        validation,
        where,
        rates=measured(model, tokenizer) if measured else None,
        seed=phase.seed,
        frame_seconds=frame_seconds(phase.data),
        logs=args.exp,
    )
    if distributed.is_main():
        describe(model, where)
    return trainer.run()


def needs_lengths(where: Path, phase: TrainConfig) -> bool:
    """Whether it is not kept yet how long the utterances are that the phase is trained on."""
    return phase.data.input != "text" and Lengths.load(where) is None


def keep_lengths(where: Path, phase: TrainConfig, utterances: Sequence[Utterance]) -> None:
    if distributed.is_main() and needs_lengths(where, phase):
        chosen = [
            u.duration
            for u in utterances
            if phase.data.min_seconds <= u.duration <= phase.data.max_seconds
        ]
        where.mkdir(parents=True, exist_ok=True)
        Lengths.of(chosen).save(where)


def read_sets(args: argparse.Namespace, phase: TrainConfig) -> Sets:
    """Training and validation set."""
    if phase.data.input == "text":
        return Sentences([args.train, *args.text]), Sentences([args.valid])
    if args.text:
        raise folder.FolderError("--text is for language models (data.input: text)")
    return datadir.read(args.train), datadir.read(args.valid)


def loaders(
    phase: TrainConfig, args: argparse.Namespace, sets: Sets, tokenizer: tokenizers.Tokenizer
) -> tuple[StepLoader, EvalLoader]:
    """Batches of a phase for training and for validation."""
    if phase.data.input == "text":
        training = TextDataset(
            sets[0], tokenizer, phase.data, phase.seed, longest=phase.data.batch.size
        )
        return TextLoader(training), EvalLoader(TextDataset(sets[1], tokenizer, phase.data))
    labels = tokenizers.load_labels(args.exp / "vocab")
    check_labels(phase, labels)
    if phase.data.input == "fbank" and not (args.exp / "cmvn.json").exists():
        made = (
            "stage 1 (asrtool extract_features --training) makes it, whether features are "
            "stored or not"
        )
        raise DataError(
            f"{args.train} has no cmvn.json, mean and variance of the training set; {made}"
        )
    cmvn = Cmvn.load(args.exp / "cmvn.json") if phase.data.input == "fbank" else None
    kept, _ = select(sets[0], phase.data)
    noise = noise_sets(phase, args.train.parent)
    kept = with_non_speech(kept, phase, noise)
    training = Dataset(
        kept, tokenizer, phase.data, cmvn, labels, training=True, seed=phase.seed, sets=noise
    )
    return step_loader(training, args.train), EvalLoader(
        Dataset(sets[1], tokenizer, phase.data, cmvn, labels)
    )


def check_labels(phase: TrainConfig, labels: Mapping[str, Sequence[str]]) -> None:
    """Losses of labels: the model tells as many values apart as the training set has; without any
    they are masked.
    """
    for name, loss in phase.losses.items():
        if not isinstance(loss, AccentLossConfig) or not loss.weight:
            continue
        values, has = labels.get(loss.label, ()), ", ".join(labels) or "none"
        if not values:
            text = "losses.%s: no utterance has the label '%s' (there are: %s); the term is 0"
            logger.warning(text, name, loss.label, has)
        classes = getattr(getattr(phase.model.encoder, "accent", None), "classes", len(values))
        if len(values) > classes:
            raise PhaseError(
                f"losses.{name}: the label '{loss.label}' has {len(values)} values in the "
                "training set, but "
                f"model.encoder.accent.classes is {classes}; set it to {len(values)}"
            )


def frame_seconds(data: DataConfig) -> float | None:
    """Seconds from one input to the next; None where inputs are tokens."""
    if data.input == "text":
        return None
    return data.fbank.frame_shift_ms / 1000 if data.input == "fbank" else 1 / data.fbank.rate


def describe(model: nn.Module, where: Path) -> None:
    """Write `model.json` of a phase, for `asrtool results`: parameters, how many are trained,
    seconds per position.
    """
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    facts = {
        "parameters": sum(size for size, _ in parameters),
        "trained": sum(size for size, trained in parameters if trained),
        "frame_shift": getattr(model, "frame_shift", None),
        "pretrained": list(getattr(model, "sources", ())),
    }
    where.mkdir(parents=True, exist_ok=True)
    atomic.write_text(where / "model.json", json.dumps(facts) + "\n")


def make_objective(phase: TrainConfig, tokenizer: tokenizers.Tokenizer, vocab: Path) -> Objective:
    losses = {name: LOSSES.build(loss, eos=tokenizer.eos) for name, loss in phase.losses.items()}
    for loss in losses.values():
        loss.count(tokenizers.load_counts(vocab))
    return Objective(losses, {name: loss.weight for name, loss in phase.losses.items()})


def measures_rates(phase: TrainConfig) -> type[GreedyRates | TokenErrors | Perplexity] | None:
    """What is measured in validation beside the loss: error rates need a frame-synchronous head
    that is trained; a language model that hears speech has the share of tokens that it guesses
    wrong."""
    if phase.data.input == "text":
        return Perplexity
    if phase.rated is None and isinstance(phase.model, SpeechLlmConfig):
        return TokenErrors
    return GreedyRates if phase.rated else None


def noise_sets(phase: TrainConfig, parent: Path) -> dict[str, list[Utterance]]:
    """The utterances of the sets that the augmentation names; they lie beside the training set."""
    return {name: datadir.read(parent / name) for name in phase.data.augment.sets}


def with_non_speech(
    kept: Sequence[Utterance], phase: TrainConfig, sets: Mapping[str, Sequence[Utterance]]
) -> Sequence[Utterance]:
    """The training utterances, and stretches without speech as the config asks for."""
    config = phase.data.augment.non_speech
    if config is None:
        return kept
    count = max(1, round(config.share / (1 - config.share) * len(kept)))
    logger.info(
        "%d stretches of '%s' with an empty text are added to %d utterances",
        count,
        config.set,
        len(kept),
    )
    return [*kept, *augment.non_speech(sets[config.set], config, count, phase.seed)]


class GreedyRates:
    """Word and character errors of the best path of the first stream of `RATED` that the model
    has.
    """

    names = ("wer", "cer")

    def __init__(self, model: nn.Module, tokenizer: tokenizers.Tokenizer) -> None:
        stream = next(stream for stream in experiment.RATED if stream in model.streams)
        self._searcher = SEARCHERS.build(
            CtcGreedyConfig(input=stream, collapse=stream != ALIGNED), model=model
        )
        self._tokenizer = tokenizer

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> dict[str, tuple[int, int]]:
        found = [
            self._tokenizer.decode(nbest[0].tokens)
            for nbest in self._searcher.search(outputs.encoder)
        ]
        rates = {}
        for name in self.names:
            split = splitter(name)
            counts = count_errors(
                [split(text) for text in batch.texts], [split(text) for text in found]
            )
            rates[name] = (counts.errors, counts.reference)
        return rates


class TokenErrors:
    """How many tokens are not the likeliest behind those before them, ends included: no search is
    needed for it.
    """

    names = ("token_error",)

    def __init__(self, model: nn.Module, tokenizer: tokenizers.Tokenizer) -> None:
        self._eos = tokenizer.eos

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> dict[str, tuple[int, int]]:
        targets = append(batch.targets, self._eos)
        wrong = (outputs.stream("llm").data.argmax(-1) != targets.data) & targets.mask
        return {"token_error": (int(wrong.sum()), int(targets.lengths.sum()))}


class Perplexity:
    """exp of the mean negative log-probability of a token, ends included, without label
    smoothing.
    """

    names = ("perplexity",)

    def __init__(self, model: nn.Module, tokenizer: tokenizers.Tokenizer) -> None:
        self._eos = tokenizer.eos

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> dict[str, tuple[float, int]]:
        logits = outputs.stream(LanguageModel.STREAM)
        targets = append(batch.targets, self._eos)
        values = logits.data.float().log_softmax(-1).gather(2, targets.data[:, :, None])[:, :, 0]
        return {"perplexity": (-float((values * targets.mask).sum()), int(targets.lengths.sum()))}

    @staticmethod
    def value(negative_log_prob: float, tokens: float) -> float:
        return math.exp(min(negative_log_prob / tokens, 700.0))


if __name__ == "__main__":
    main()
