"""Check configs before any stage runs: read them as the stages do, and print the name of the
features.

It also builds the model of the training config without weights, so that a width that is not
divisible by the number of heads, an unknown metric or a pattern that matches no parameter is an
error here, not only in stage 3. A model whose published weights are not on this disk is checked in
stage 3.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from asrtool import experiment, imports
from asrtool.bin.extract_features import common_features
from asrtool.data.features import feature_id
from asrtool.errors import UserError
from asrtool.experiment import TrainConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz"  # stands in for the vocabulary of stage 2


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    path = args.train_config
    overrides = experiment.split_overrides(args.train_args)
    phases = experiment.load_phases(path, overrides, args.import_from)
    data, front_end = common_features(path, phases)
    if args.decode_config is not None:
        overrides = experiment.split_overrides(args.decode_args)
        settings = experiment.load_decode(
            args.decode_config, overrides, args.ngram, args.ngram_unit
        )
        experiment.check_ngram(args.decode_config, settings.searcher)
    name = feature_id(data, front_end and front_end.name)
    if args.sets is not None:
        check_sets(path, phases, args.sets.split(), args.dump and args.dump / name)
    check_models(path, phases)
    print(name)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="asrtool check_config",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("path", nargs="?", type=Path, metavar="config", help="train_*.yaml")
    options.add_argument(
        "--train-config", "--config", dest="train_config", type=Path, help="the same, as an option"
    )
    options.add_argument("--decode-config", type=Path, help="decode_*.yaml")
    for name, more in (("train", ["--set"]), ("decode", [])):
        options.add_argument(
            *(f"--{name}-args", *more),
            dest=f"{name}_args",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="overrides",
        )
    options.add_argument(
        "--sets", help="names of all data directories of the recipe, among them those of noises"
    )
    options.add_argument(
        "--dump", type=Path, help="folder that may have further sets with features"
    )
    experiment.add_ngram_options(options)
    imports.add_options(options, modules=False)
    args = options.parse_args(argv)
    if (args.path is None) == (args.train_config is None):
        options.error("give one config: asrtool check_config conf/train_conformer.yaml")
    args.train_config = args.train_config or args.path
    return args


def check_sets(
    path: Path, phases: Mapping[str, TrainConfig], sets: Sequence[str], dump: Path | None
) -> None:
    """Raise UserError if training reads a set that the recipe does not prepare."""
    for phase in phases.values():
        needed = {name: "data.augment" for name in phase.data.augment.sets}
        needed |= {part.set: "data.sets" for part in phase.data.sets}
        for name, key in needed.items():
            if name not in sets and not (dump and (dump / name / "wav.scp").exists()):
                raise UserError(
                    f"{path}: {key} needs the data directory '{name}', which is none of "
                    f"{', '.join(sets)}; add it by --extra-sets {name}"
                )


def check_models(path: Path, phases: Mapping[str, TrainConfig]) -> None:
    """Raise UserError if stage 3 could not build the model, losses or optimizer of a phase."""
    from asrtool.data.tokenizers import BLANK, EOS, UNK, CharConfig, CharTokenizer
    from asrtool.training import check_phase

    tokens = [BLANK, UNK, *LETTERS, EOS]
    tokenizer = CharTokenizer(CharConfig(), tokens=tokens, folder=Path())
    for name, phase in phases.items():
        # The shapes of such a model are in its config.json, which may have to be downloaded first.
        if any(not Path(weights).is_dir() for weights in published(phase.model)):
            continue
        try:
            check_phase(phase, tokenizer)
        except (ValueError, RuntimeError) as error:
            where = f"phase '{name}': " if len(phases) > 1 else ""
            raise UserError(f"{path}: {where}{error}") from error


def published(model: object) -> Iterator[str]:
    """The published weights that a model's config names, by folder or hub name."""
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name == "weights" and isinstance(value, str):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from published(value)


if __name__ == "__main__":
    main()
