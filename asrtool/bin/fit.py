"""Propose data.batch.max_seconds_per_device: measure the memory of training steps at growing size.

asrtool fit conf/train_conformer.yaml --train dump/fbank80/train --vocab data/vocab_char \\
  --memory 80G

On a GPU, its memory is used and the proposal is tried. With --memory and no GPU, the tensors of
steps on the CPU are counted. This differs from a GPU: its allocator rounds sizes up and fragments,
its kernels have work space of their own, and it may choose another kernel for attention; 1.5 GB and
the margin are left for that. Measure again on the GPU where it is close.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from asrtool import distributed, experiment, imports
from asrtool.data import tokenizers
from asrtool.data.loader import StepLoader
from asrtool.errors import UserError
from asrtool.experiment import TrainConfig
from asrtool.log import set_up
from asrtool.model_folder import build_model
from asrtool.models import AsrModel
from asrtool.trainer.capacity.fit import MARGIN, Proposal, Sample, propose
from asrtool.trainer.capacity.memory import recompute
from asrtool.trainer.precision import choose, tf32
from asrtool.trainer.step import GIGABYTE, Stepper
from asrtool.training import Sources, frame_seconds, loaders, make_objective, read_sets
from asrtool.types import Batch

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    device = distributed.device()
    if device.type != "cuda" and args.memory is None:
        raise UserError("there is no GPU here: give the memory of one, as in --memory 80G")
    amount = args.memory or torch.cuda.get_device_properties(device).total_memory
    phases = experiment.load_phases(
        args.config, experiment.split_overrides(args.set), args.import_from
    )
    if args.phase is not None and args.phase not in phases:
        raise UserError(f"{args.config} has no phase '{args.phase}'; it has: {', '.join(phases)}")
    sources = Sources(train=args.train, valid=args.train, vocab=args.vocab)
    for name in [args.phase] if args.phase is not None else phases:
        proposal = fit(phases[name], sources, device, amount, args.margin)
        print("\n".join(render(name, phases[name], proposal, device, amount, args.margin)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("config", type=Path, help="train_*.yaml")
    options.add_argument(
        "--train", type=Path, required=True, help="training set: a folder that stage 1 wrote"
    )
    options.add_argument(
        "--vocab", type=Path, required=True, help="vocabulary folder that stage 2 wrote"
    )
    options.add_argument(
        "--memory", type=amount_of, help="of the device, as in 80G (default: that of this GPU)"
    )
    options.add_argument(
        "--margin", type=float, default=MARGIN, help=f"share to keep free (default: {MARGIN:g})"
    )
    options.add_argument("--phase", help="one of the config's phases (default: each)")
    options.add_argument(
        "--set", action="append", default=[], metavar="'KEY=VALUE ...'", help="overrides"
    )
    imports.add_options(options, modules=False)
    args = options.parse_args(argv)
    if not 0 <= args.margin < 1:
        options.error(f"--margin {args.margin:g}: give a share from 0 to below 1")
    return args


def amount_of(text: str) -> float:
    """Bytes: `80G`, `24 GB`, `8e9`."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no amount of memory, such as 80G")
    return float(found[1]) * UNITS[found[2].upper()]


def fit(
    phase: TrainConfig, sources: Sources, device: torch.device, amount: float, margin: float
) -> Proposal:
    """Measure one phase."""
    with tempfile.TemporaryDirectory() as folder:
        # what a training copies to its folder
        exp = Path(folder)
        (exp / "vocab").symlink_to(sources.vocab.resolve())
        if (sources.train / "cmvn.json").exists():
            (exp / "cmvn.json").symlink_to((sources.train / "cmvn.json").resolve())
        tokenizer = tokenizers.load(exp / "vocab")
        torch.manual_seed(phase.seed)
        model = build_model(phase, tokenizer.size)
        sets = read_sets(sources, phase)
        longest = model.encoder.max_seconds if isinstance(model, AsrModel) else None
        batches, _ = loaders(exp, phase, sources, sets, tokenizer, longest)
        if phase.trainer.activation_checkpointing:
            recompute(model)
        stepper = Stepper(
            phase.optim,
            model,
            make_objective(phase, tokenizer, exp / "vocab", sets[0]),
            planned=phase.trainer.steps or 1,
            precision=precision_of(phase, device),
            device=device,
            seed=phase.seed,
        )
        unit = frame_seconds(phase.data, model) or 1.0
        with tf32(phase.trainer.tf32, device):
            return propose(stepper, samples(batches), unit, amount, margin, phase.data.batch.size)


def precision_of(phase: TrainConfig, device: torch.device) -> str:
    """On a CPU, which stands in for a GPU, all formats of 16 bits are bf16."""
    asked = phase.trainer.precision
    if device.type != "cuda" and asked in ("auto", "fp16"):
        return "bf16"
    return choose(asked, device)


def samples(batches: StepLoader) -> list[Sample]:
    """The longest, the shortest and the densest utterance."""
    dataset, lengths = batches.dataset, batches.plan.lengths
    chosen = {
        "longest": int(lengths.argmax()),
        "shortest": int(lengths.argmin()),
        "densest": int((dataset.utterances.characters / lengths).argmax()),
    }

    def repeat(index: int, count: int) -> Batch:
        batch, problems = dataset.reader.batch([dataset.utterances[index]] * count)
        if batch is None:
            raise UserError(f"an utterance cannot be read: {next(iter(problems.values()))}")
        return batch

    return [
        Sample(name=name, batch=lambda count, index=index: repeat(index, count))
        for name, index in chosen.items()
    ]


def render(
    name: str,
    phase: TrainConfig,
    proposal: Proposal,
    device: torch.device,
    amount: float,
    margin: float,
) -> Iterator[str]:
    """What was measured, and the line for the config."""
    unit = "tokens" if phase.data.input == "text" else "seconds"
    how = "measured on this GPU" if device.type == "cuda" else "counted on the CPU"
    yield f"phase {name}: a step of one device, {how}"
    yield f"{'utterance':10} {unit:>9} {'rows':>6} {'GB':>9} {f'GB per 100 {unit}':>20}"
    for cost in proposal.costs:
        per = 100 * cost.row / cost.length / GIGABYTE
        peak = cost.peak / GIGABYTE
        yield f"{cost.name:10} {cost.length:9.2f} {cost.rows:6} {peak:9.4f} {per:20.4f}"
    yield f"{'update':10} {'':9} {'':6} {proposal.update / GIGABYTE:9.4f}"
    size, whole = proposal.size, phase.data.batch.size
    free = f"{amount / GIGABYTE:g} GB, of which {margin:.0%} stay free"
    if size >= whole:
        yield f"the whole global batch of {whole:g} {unit} fits on one device ({free})"
        size = whole
    # rounded down to what is easy to read
    step = 10 if size >= 100 else 1
    yield f"--set data.batch.max_{unit}_per_device={max(1, int(size // step * step)):g}    # {free}"


if __name__ == "__main__":
    main()
