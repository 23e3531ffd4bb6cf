"""Train the phases of a config: what `asrtool train` and `asrtool.train` do."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from asrtool import config, distributed, experiment, stored_frames
from asrtool.data import augment, mixing, tokenizers
from asrtool.data.config import DataConfig
from asrtool.data.examples import Views
from asrtool.data.features import Cmvn
from asrtool.data.kaldi import datadir
from asrtool.data.kaldi.utterances import Utterances
from asrtool.data.lengths import Lengths
from asrtool.data.loader import Dataset, EvalLoader, StepLoader, readable, select
from asrtool.data.shards.loader import step_loader
from asrtool.data.text import Sentences, TextDataset, TextLoader
from asrtool.downsamplers import ExpertsConfig
from asrtool.encoders import EncoderConfig
from asrtool.errors import UserError
from asrtool.experiment import TrainConfig
from asrtool.heads import Head, Search, ranked
from asrtool.log import logger, plural
from asrtool.losses import LOSSES, AccentLossConfig
from asrtool.model_folder import build_model
from asrtool.models import LM_OUTPUT, AsrModel, Model, TextModel
from asrtool.nn.meta_device import without_weights
from asrtool.score import count_errors
from asrtool.score.normalize import splitter
from asrtool.searchers import SEARCHERS
from asrtool.stored_frames import FrontEnd
from asrtool.system import atomic, stamp
from asrtool.trainer import averaging, checkpoint, folder, optim, records
from asrtool.trainer.objective import Objective
from asrtool.trainer.trainer import Trainer, check_metric
from asrtool.types import Batch, ModelOutput, Utterance
from asrtool.warm_start import WarmStart

Sets = tuple[Sequence[Utterance], Sequence[Utterance]]  # for training, for validation
LARGEST_EXPONENT = 700.0  # exp of more than 709 overflows float64
MAKERS = {"train": "stage 1 makes it", "valid": "stage 1 makes it", "vocab": "stage 2 makes it"}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The inputs of a training."""

    train: Path  # folder of stage 1
    valid: Path  # likewise
    vocab: Path  # folder of stage 2
    text: tuple[Path, ...] = ()  # further text for a language model, one sentence per line
    init: WarmStart | None = None  # weights that the first phase starts from

    def roles(self) -> dict[str, Path]:
        """Every path by its role."""
        roles = {"train": self.train, "valid": self.valid, "vocab": self.vocab}
        if self.init is not None:
            roles["init"] = self.init.weights
        return roles | {f"text {number}": path for number, path in enumerate(self.text)}


def run(
    config_file: Path | str,
    *,
    train: Path | str,
    valid: Path | str,
    vocab: Path | str,
    exp: Path | str,
    overrides: Sequence[str] = (),
    text: Sequence[Path | str] = (),
    init: Path | str | None = None,
    import_from: Collection[Path] = (),
    command: str = "",
    force: bool = False,
) -> int:
    """Train the phases of a config, as `asrtool train` does; `asrtool.train` is this function.

    overrides: as in `--set`: "optim.lr=1e-3". text: files of further text, for language models.
    init: a file of weights, a trained experiment, a packed model or "hf:user/model"; init.vocab of
    the config says what happens to its vocabulary. import_from: folders with the modules that the
    config imports. See `train_into` for the others and the result.
    """
    phases = experiment.load_phases(Path(config_file), overrides, import_from)
    with distributed.process_group():
        start = WarmStart.open(init) if init and distributed.is_main() else None
        sources = Sources(
            train=Path(train),
            valid=Path(valid),
            vocab=Path(vocab),
            text=tuple(map(Path, text)),
            init=distributed.broadcast_object(start),
        )
        return train_into(Path(exp), phases, sources, command, force)


def train_into(
    exp: Path,
    phases: Mapping[str, TrainConfig],
    sources: Sources,
    command: str = "",
    force: bool = False,
) -> int:
    """Train the phases one after another into the folder `exp`. An interrupted training is resumed,
    a finished one is not repeated.

    command: written to command.txt. force: if `exp` holds another training, move it aside instead
    of raising `UserError`. Returns the signal that stopped the training, or 0. In a
    `distributed.process_group`, every rank calls it.
    """
    exp = Path(exp)
    with ExitStack() as stack:
        if distributed.is_main():
            # Rank 0 alone writes the folder and checks it; the others must not read it before.
            stack.enter_context(stamp.locked(exp))
            prepare(exp, phases, sources, command, force)
            check_phases(exp, phases, sources)
            check_stored_frames(phases, sources)
        distributed.barrier()
        return train_phases(exp, phases, sources)


def prepare(
    exp: Path, phases: Mapping[str, TrainConfig], sources: Sources, command: str, force: bool
) -> None:
    """Create the experiment's folder, or check that it belongs to this training."""
    for role, path in sources.roles().items():
        if not path.exists():
            raise UserError(f"--{role} {path} does not exist; {MAKERS.get(role, 'give another')}")
    check_start(sources, next(iter(phases.values())))
    folder.prepare(
        exp,
        {name: config.encode(TrainConfig, phase) for name, phase in phases.items()},
        experiment.dump_phases(phases),
        sources.roles(),
        command,
        force=force,
    )


def check_start(sources: Sources, phase: TrainConfig) -> None:
    """Raise `UserError` if the weights of --init are damaged or do not fit the vocabulary."""
    start = sources.init
    if start is None:
        if phase.init.vocab != "keep":
            raise UserError(
                f"init.vocab: {phase.init.vocab} needs --init: give the weights to start from"
            )
        return
    if start.weights.is_file() and (problem := records.damage(start.weights)) is not None:
        anew = "run the command that trained it again"
        raise UserError(f"--init {start.weights} cannot be used: {problem}; {anew}")
    start.check(phase, tokenizers.load(sources.vocab))


def check_phases(exp: Path, phases: Mapping[str, TrainConfig], sources: Sources) -> None:
    """Check every phase before the first one starts: an error in the last one would otherwise
    appear days later. Raises `UserError`.
    """
    if len(phases) == 1:  # it starts at once, and fails at once
        return
    tokenizer = tokenizers.load(exp / "vocab")
    start = sources.init
    before = checkpoint.shapes(start.weights) if start is not None else None
    origin = f"--init {start.name}" if start is not None else ""
    for name, phase in phases.items():
        try:
            model = check_phase(phase, tokenizer, exp / "vocab")
            noise_sets(phase, sources.train.parent)
            if before is not None:
                before = checkpoint.copied(before, model, phase.init.copy)
                missing = phase.init.missing
                if start is not None:
                    before = start.shapes(before, phase, tokenizer)
                    missing = (*missing, *start.new(phase, tokenizer))
                checkpoint.compare(origin, before, model, missing, phase.init.unused)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"phase '{name}': {error}") from error
        # On the meta device, only names and shapes of the weights pass from phase to phase.
        before = {key: tuple(value.shape) for key, value in checkpoint.model_tensors(model).items()}
        origin, start = f"the result of phase '{name}'", None


def check_phase(
    phase: TrainConfig, tokenizer: tokenizers.Tokenizer, vocab: Path | None = None
) -> nn.Module:
    """The model of a phase, without weights. Raises ValueError or RuntimeError if the model, the
    groups of its optimizer, its losses or its best metric are invalid.
    """
    with without_weights():
        model = build_model(phase, tokenizer.size)
    optim.assign(phase.optim, model)
    objective = make_objective(phase, tokenizer, vocab)
    check_metric(phase.trainer.best, objective.validated, validation_metrics(model, tokenizer))
    return model


def check_stored_frames(phases: Mapping[str, TrainConfig], sources: Sources) -> None:
    """Raise `UserError` if a phase reads stored frames of another front end."""
    for phase in phases.values():
        front_end = FrontEnd.of(phase)
        for path in (sources.train, sources.valid) if front_end is not None else ():
            stored_frames.check(path, front_end)


def train_phases(exp: Path, phases: Mapping[str, TrainConfig], sources: Sources) -> int:
    """Train every phase that is not finished, from the averaged weights of the previous one.

    Returns the signal that stopped the training, or 0.
    """
    sets: Sets | None = None
    read: tuple[str, ...] | None = None  # names of the training sets in `sets`
    start = sources.init
    for name, phase in phases.items():
        phase_folder = exp / name
        # Files may appear on the ranks' disks at different times: rank 0 decides for all.
        finished = distributed.broadcast_object(
            distributed.is_main() and folder.finished(phase_folder)
        )
        if not finished or needs_lengths(phase_folder, phase):
            # Read once, and only if some phase needs it: a large set takes minutes.
            names = tuple(part.set for part in phase.data.sets)
            if sets is None or names != read:
                sets, read = read_sets(sources, phase), names
            keep_lengths(phase_folder, phase, sets[0])
        if not finished:
            ended = train_phase(exp, phase_folder, phase, sources, sets, start)
            if ended:
                return ended
        # written again if it is damaged
        average = (
            averaging.average(phase_folder, phase.trainer.average)
            if distributed.is_main()
            else None
        )
        weights = distributed.broadcast_object(average)
        start = WarmStart(weights, str(weights))
        if finished:
            logger.info("%s is finished; its weights are %s", phase_folder, weights)
    return 0


def train_phase(
    exp: Path,
    folder: Path,
    phase: TrainConfig,
    sources: Sources,
    sets: Sets,
    start: WarmStart | None,
) -> int:
    """Train one phase in `folder`, from other weights if given; returns 0, or the signal that
    stopped it.
    """
    tokenizer = tokenizers.load(exp / "vocab")
    torch.manual_seed(phase.seed)  # the same initial weights on every rank
    model = build_model(phase, tokenizer.size)
    longest = model.encoder.max_seconds if isinstance(model, AsrModel) else None
    batches, validation = loaders(exp, phase, sources, sets, tokenizer, longest)
    if start is not None:
        if any(folder.glob("step-*")):
            text = "%s began from the weights %s and resumes from its own checkpoints"
            logger.info(text, folder, start.weights)
        else:
            fresh = (
                "a fresh optimizer and step 1: this is a start, not the resuming of another "
                "training"
            )
            logger.info("%s starts from the weights %s with %s", folder, start.weights, fresh)
        start.load(model, phase, tokenizer)
    logger.info("%s: %s", folder, batches.describe())
    if isinstance(model, AsrModel):
        # Now, rather than when the first utterance that is too long is drawn.
        model.check_room(
            (u.id, u.duration, tokenizer.encode(u.text)) for u in batches.dataset.utterances
        )
    trainer = Trainer(
        phase.trainer,
        phase.optim,
        model,
        make_objective(phase, tokenizer, exp / "vocab", sets[0]),
        batches,
        validation,
        folder,
        rates=validation_metrics(model, tokenizer),
        seed=phase.seed,
        frame_seconds=frame_seconds(phase.data, model),
        logs=exp,
    )
    if distributed.is_main():
        describe(model, folder, sources.init)
    return trainer.run()


def needs_lengths(folder: Path, phase: TrainConfig) -> bool:
    """Whether the durations of a phase's training utterances are still to be recorded."""
    return phase.data.input != "text" and Lengths.load(folder) is None


def keep_lengths(folder: Path, phase: TrainConfig, utterances: Sequence[Utterance]) -> None:
    """Record the durations of the training utterances, from which recognition plans windows."""
    if distributed.is_main() and needs_lengths(folder, phase):
        seconds = Utterances.of(utterances).durations
        within = (phase.data.min_seconds <= seconds) & (seconds <= phase.data.max_seconds)
        folder.mkdir(parents=True, exist_ok=True)
        Lengths.of(seconds[within]).save(folder)


def read_sets(sources: Sources, phase: TrainConfig) -> Sets:
    """The training and the validation set."""
    if phase.data.input == "text":
        return Sentences([sources.train, *sources.text]), Sentences([sources.valid])
    if sources.text:
        raise UserError("--text is for language models (data.input: text)")
    return mixing.read(sources.train, phase.data), datadir.read(sources.valid)


def loaders(
    exp: Path,
    phase: TrainConfig,
    sources: Sources,
    sets: Sets,
    tokenizer: tokenizers.Tokenizer,
    longest: float | None = None,
) -> tuple[StepLoader, EvalLoader]:
    """The batches of a phase for training and for validation.

    longest: seconds of the longest input of the encoder; longer utterances are left out. None: any
    length.
    """
    if phase.data.input == "text":
        training = TextDataset(
            sets[0], tokenizer, phase.data, phase.seed, longest=phase.data.batch.size
        )
        return TextLoader(training), EvalLoader(TextDataset(sets[1], tokenizer, phase.data))
    labels = tokenizers.load_labels(exp / "vocab")
    check_labels(phase, labels)
    if phase.data.input == "fbank" and not (exp / "cmvn.json").exists():
        made = (
            "stage 1 (asrtool extract_features --training) makes it, whether features are "
            "stored or not"
        )
        raise UserError(
            f"{sources.train} has no cmvn.json, mean and variance of the training set; {made}"
        )
    cmvn = Cmvn.load(exp / "cmvn.json") if phase.data.input == "fbank" else None
    kept, _ = select(sets[0], phase.data)
    # The slowest copy of an utterance (speed below 1) is the longest and must fit into the encoder;
    # with stored frames the copies are utterances of their own.
    stored = phase.data.features == "stored_frames"
    slowest = 1.0 if stored else min(1.0, *phase.data.augment.speeds)
    kept = readable(kept, None if longest is None else longest * slowest, "training")
    noise = noise_sets(phase, sources.train.parent)
    kept = with_non_speech(kept, phase, noise)
    training = Dataset(
        kept,
        tokenizer,
        phase.data,
        cmvn,
        labels,
        training=True,
        seed=phase.seed,
        sets=noise,
        views=views_of(phase),
    )
    return step_loader(training, sources.train, mixing.plan(training)), EvalLoader(
        Dataset(readable(sets[1], longest, "validation"), tokenizer, phase.data, cmvn, labels)
    )


def views_of(phase: TrainConfig) -> Views:
    """The views of each utterance that the losses of a phase compare."""
    losses = [loss for loss in phase.losses.values() if loss.weight]
    comparing = [loss for loss in losses if LOSSES.class_of(loss).views > 1]
    if not comparing:
        return Views()
    augment = phase.data.augment
    if phase.data.input == "fbank" and augment.spec_augment is None and augment.spec_sub is None:
        logger.warning(
            "views of an utterance differ by dropout alone: set data.augment.spec_augment"
        )
    return Views(
        max(LOSSES.class_of(loss).views for loss in comparing),
        max(loss.time_masks for loss in comparing),
    )


def check_labels(phase: TrainConfig, labels: Mapping[str, Sequence[str]]) -> None:
    """Check that the model has a class for each value of a label that a loss classifies.

    Raises `UserError` if it has too few. Warns of labels without any value: their loss is 0.
    """
    for name, loss in phase.losses.items():
        if not isinstance(loss, AccentLossConfig) or not loss.weight:
            continue
        values, has = labels.get(loss.label, ()), ", ".join(labels) or "none"
        if not values:
            text = "losses.%s: no utterance has the label '%s' (there are: %s); the term is 0"
            logger.warning(text, name, loss.label, has)
        for key, classes in accent_classes(phase.model.encoder).items():
            if len(values) > classes:
                raise UserError(
                    f"losses.{name}: the label '{loss.label}' has {len(values)} values in the "
                    f"training set, but model.encoder.{key} is {classes}; set it to {len(values)}"
                )


def accent_classes(encoder: EncoderConfig) -> dict[str, int]:
    """Key of an encoder's config -> the number of accents that it tells apart."""
    found = {} if encoder.accent is None else {"accent.classes": encoder.accent.classes}
    layers = getattr(encoder, "downsamplers", {}).items()
    experts = ((layer, one.experts) for layer, one in layers if isinstance(one, ExpertsConfig))
    return found | {f"downsamplers.{layer}.experts": number for layer, number in experts}


def frame_seconds(data: DataConfig, model: Model) -> float | None:
    """Seconds from one input to the next; None if the inputs are tokens."""
    if data.input == "text":
        return None
    if data.features == "stored_frames":
        return model.encoder.frontend.frame_shift
    return data.fbank.frame_shift_ms / 1000 if data.input == "fbank" else 1 / data.fbank.rate


def describe(model: Model, folder: Path, init: WarmStart | None = None) -> None:
    """Write `model.json` of a phase, for `asrtool results` and `asrtool pack`: numbers of
    parameters and of trained ones, seconds per position, pre-trained weights, origin of `--init`.
    """
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    facts = {
        "parameters": sum(size for size, _ in parameters),
        "trained": sum(size for size, trained in parameters if trained),
        "frame_shift": model.frame_shift,
        "pretrained": list(model.sources),
    }
    if init is not None:
        facts["init"] = init.name
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "model.json", json.dumps(facts) + "\n")


def make_objective(
    phase: TrainConfig,
    tokenizer: tokenizers.Tokenizer,
    vocab: Path | None,
    utterances: Iterable[Utterance] = (),
) -> Objective:
    """The weighted losses of a phase.

    vocab: folder of stage 2, whose counts of tokens and labels some losses use; None: none are
    used. utterances: the training set, whose labels are counted.
    """
    losses = {name: LOSSES.build(loss, eos=tokenizer.eos) for name, loss in phase.losses.items()}
    weights = {name: loss.weight for name, loss in phase.losses.items()}
    if vocab is None:
        return Objective(losses, weights)
    labels = {}
    if any(isinstance(loss, AccentLossConfig) for loss in phase.losses.values()):
        labels = count_labels(tokenizers.load_labels(vocab), utterances)
    for loss in losses.values():
        loss.count(tokenizers.load_counts(vocab))
        loss.count_labels(labels)
    return Objective(losses, weights)


def count_labels(
    labels: Mapping[str, Sequence[str]], utterances: Iterable[Utterance]
) -> dict[str, list[int]]:
    """Label -> the number of utterances with each value, in the order of the model's classes."""
    rows = Utterances.of(utterances)
    codes = {name: rows.label(name, values) for name, values in labels.items()}
    return {
        name: np.bincount(codes[name] + 1, minlength=len(values) + 1)[1:].tolist()
        for name, values in labels.items()
    }


def noise_sets(phase: TrainConfig, parent: Path) -> dict[str, Utterances]:
    """The utterances of the sets named by the augmentation; the folders are next to the training
    set's."""
    return {name: datadir.read(parent / name) for name in phase.data.augment.sets}


def with_non_speech(
    kept: Sequence[Utterance], phase: TrainConfig, sets: Mapping[str, Sequence[Utterance]]
) -> Sequence[Utterance]:
    """The training utterances, and the stretches without speech of the config."""
    config = phase.data.augment.non_speech
    if config is None:
        return kept
    # share of all = count / (count + utterances), solved for count
    count = max(1, round(config.share / (1 - config.share) * len(kept)))
    logger.info(
        "%s of '%s' with an empty text added to %s",
        plural(count, "stretch", "stretches"),
        config.set,
        plural(len(kept), "utterance"),
    )
    return Utterances.joined(
        [kept, augment.non_speech(sets[config.set], config, count, phase.seed)]
    )


def validation_metrics(model: Model, tokenizer: tokenizers.Tokenizer) -> Metrics | None:
    """The metrics of validation besides the loss: error rates of the highest-ranking head that has
    a greedy search, and the metrics that heads compute themselves; perplexity of a language model.
    """
    if isinstance(model, TextModel):
        return Perplexity(tokenizer)
    heads = ranked(model.heads)
    own = [HeadMetrics(head) for head in heads if head.metrics]
    searches = [search for head in heads if (search := head.greedy_search()) is not None]
    rates = [ErrorRates(search, model, tokenizer) for search in searches[:1]]
    return AllOf([*rates, *own]) if rates or own else None


class AllOf:
    """Several metrics as one."""

    def __init__(self, parts: Sequence[ErrorRates | HeadMetrics]) -> None:
        self._parts = parts
        self.names = tuple(name for part in parts for name in part.names)

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> dict[str, tuple[float, float]]:
        return {
            name: sums for part in self._parts for name, sums in part(model, outputs, batch).items()
        }


class ErrorRates:
    """Word and character error rate of a search."""

    names = ("wer", "cer")

    def __init__(self, search: Search, model: AsrModel, tokenizer: tokenizers.Tokenizer) -> None:
        self._searcher = SEARCHERS.build(
            experiment.search_config(search), model=model, tokens=tokenizer.tokens
        )
        self._tokenizer = tokenizer

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> dict[str, tuple[int, int]]:
        texts = [
            self._tokenizer.decode(nbest[0].tokens)
            for nbest in self._searcher.search(outputs.encoder)
        ]
        rates = {}
        for name in self.names:
            split = splitter(name)
            counts = count_errors(
                [split(text) for text in batch.texts], [split(text) for text in texts]
            )
            rates[name] = (counts.errors, counts.reference)
        return rates


class HeadMetrics:
    """The metrics that a head computes itself (`Head.measure`)."""

    def __init__(self, head: Head) -> None:
        self._head, self.names = head, head.metrics

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> Mapping[str, tuple[float, float]]:
        return self._head.measure(outputs.head(self._head.name), batch)


class Perplexity:
    """exp of the mean negative log-probability per token with <eos>, without label smoothing."""

    names = ("perplexity",)

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._eos = tokenizer.eos

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> dict[str, tuple[float, int]]:
        logits = outputs.head(LM_OUTPUT)
        targets = batch.targets.append(self._eos)
        values = logits.data.float().log_softmax(-1).gather(2, targets.data[:, :, None])[:, :, 0]
        return {"perplexity": (-float((values * targets.mask).sum()), int(targets.lengths.sum()))}

    @staticmethod
    def value(negative_log_prob: float, tokens: float) -> float:
        return math.exp(min(negative_log_prob / tokens, LARGEST_EXPONENT))


Metrics = AllOf | Perplexity
