"""Stage 1: store features or the frames of a frozen front end, or only measure lengths; make speed
copies, and mean and variance of the training set.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from asrtool import imports
from asrtool.data import features
from asrtool.data.config import DataConfig
from asrtool.data.extraction import Summary, extract
from asrtool.data.kaldi import datadir
from asrtool.data.shards import packing
from asrtool.errors import UserError
from asrtool.log import logger, plural, set_up
from asrtool.system import stamp

if TYPE_CHECKING:
    from asrtool.experiment import TrainConfig
    from asrtool.stored_frames import FrontEnd, Maker

GIGABYTE = 1e9
SHOWN = 5  # skipped utterances listed in the log; skipped.txt lists all
TOLERATED = 0.1  # share of utterances that may be unusable


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    run(args, *load_config(args.config, args.set, args.import_from))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool extract_features", description=__doc__)
    options.add_argument(
        "--config",
        "--train-config",
        dest="config",
        type=Path,
        required=True,
        help="train_*.yaml; its data: part is used",
    )
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override of the config"
    )
    options.add_argument("--data", type=Path, required=True, help="data directory to read")
    options.add_argument(
        "--out", type=Path, required=True, help="folder to write: that data directory with features"
    )
    options.add_argument(
        "--training",
        action="store_true",
        help="this is the training set: also make speed copies and cmvn.json",
    )
    options.add_argument("--nj", type=int, default=1, help="processes")
    options.add_argument(
        "--force", action="store_true", help="extract again, even if nothing changed"
    )
    imports.add_options(options, modules=False)
    args = options.parse_args(argv)
    if args.nj < 1:
        options.error(f"--nj is {args.nj}, expected at least 1")
    return args


def load_config(
    path: Path, overrides: Sequence[str], import_from: Collection[Path] = ()
) -> tuple[DataConfig, FrontEnd | None]:
    """The data part of the first phase, and the front end whose frames it stores. All phases must
    use the same features, because they share the folder; raises `UserError` otherwise.
    """
    # imported here: worker processes import this module, but need no model
    from asrtool import experiment

    phases = experiment.load_phases(path, experiment.split_overrides(overrides), import_from)
    return common_features(path, phases)


def common_features(
    path: Path, phases: Mapping[str, TrainConfig]
) -> tuple[DataConfig, FrontEnd | None]:
    """As `load_config`, from the phases of the file `path`."""
    from asrtool.stored_frames import FrontEnd

    front_ends = {name: FrontEnd.of(phase) for name, phase in phases.items()}
    ids = {
        name: features.feature_id(phase.data, front_ends[name] and front_ends[name].name)
        for name, phase in phases.items()
    }
    if len(set(ids.values())) > 1:
        needed = ", ".join(f"{name}: {feature_id}" for name, feature_id in ids.items())
        raise UserError(
            f"{path}: the phases need different features ({needed}); use one config for each"
        )
    first = next(iter(phases))
    return phases[first].data, front_ends[first]


def run(args: argparse.Namespace, config: DataConfig, front_end: FrontEnd | None = None) -> None:
    """Build the folder, unless it is up to date."""
    options = {
        "input": config.input,
        "features": config.features,
        "fbank": config.fbank.stamped(),
        "training": args.training,
        "speeds": features.copies(config) if args.training else (1.0,),
    }
    if config.shards is not None and args.training:
        options["shards"] = [config.shards.size_mb, config.shards.seed]
    if front_end is not None:
        options["frames"] = front_end.digest
    with stamp.building(args.out, "features", [args.data], options, args.force) as target:
        if target is None:
            return
        maker = None if front_end is None else make_room(args, config, front_end, target)
        summary = extract(
            args.data,
            config,
            target,
            final=args.out,
            training=args.training,
            nj=args.nj if maker is None or maker.device == "cpu" else 1,  # one network on a GPU
            frames=maker,
        )
        report_rates(summary, args.data)
        report_skipped(args.data, summary.skipped, summary.total, target, args.out)
        if maker is not None:
            maker.note(target, summary.long)
        if summary.stats is not None:
            summary.stats.cmvn().save(target / "cmvn.json")
        if "shards" in options:
            packing.pack_set(args.data, target, args.out, config)
    copied = f", {summary.rows} with speed copies" if len(options["speeds"]) > 1 else ""
    kept = summary.total - len(summary.skipped)
    hours = summary.seconds / 3600
    name = features.feature_id(config, front_end and front_end.name)
    count = plural(kept, "utterance")
    logger.info("%s: %s%s, %.2f hours, %s", args.out, count, copied, hours, name)


def make_room(
    args: argparse.Namespace, config: DataConfig, front_end: FrontEnd, target: Path
) -> Maker:
    """The maker of the frames. Logs how large they will be; raises `UserError` if the disk has too
    little space.
    """
    from asrtool.stored_frames import Maker

    maker = Maker(front_end, "cuda" if torch.cuda.is_available() else "cpu")
    durations = datadir.read(args.data, measure=False).durations
    known = durations[~np.isnan(durations)]
    # unmeasured ones are assumed to be average
    seconds = float(known.sum()) * len(durations) / max(1, len(known))
    speeds = features.copies(config) if args.training else (1.0,)
    size = maker.size(seconds * sum(1 / speed for speed in speeds))
    free = shutil.disk_usage(target).free
    logger.info(
        "%s: frames of %s, %d numbers every %.0f ms of %.2f hours at %d speeds: %.2f GB, and %.1f "
        "GB are free",
        *(args.out, front_end.name, maker.dim, 1000 * maker.frame_shift, seconds / 3600),
        *(len(speeds), size / GIGABYTE, free / GIGABYTE),
    )
    # while shards are written, the archives that they are packed from still exist
    needed = size * (2 if config.shards is not None and args.training else 1)
    if needed > free:
        raise UserError(
            f"{args.out}: the frames take {needed / GIGABYTE:.2f} GB, and {free / GIGABYTE:.2f} GB "
            "are free: store one layer instead of the sum, fewer speeds, or free some disk space"
        )
    return maker


def report_rates(summary: Summary, data: Path) -> None:
    for rate, number in sorted(summary.rates.items()):
        count = plural(number, "utterance")
        logger.info("%s: %s resampled from %d Hz", data, count, rate)


def report_skipped(
    data: Path, skipped: Sequence[tuple[str, str]], total: int, target: Path, out: Path
) -> None:
    """Log the utterances that were left out and write them to skipped.txt. Raises `UserError` if
    more than TOLERATED of all are.
    """
    if not skipped:
        return
    for key, reason in skipped[:SHOWN]:
        logger.warning("left out %s: %s", key, reason)
    share = f"{len(skipped)} of {total} utterances"
    if len(skipped) > TOLERATED * total:
        first, reason = skipped[0]
        advice = f"`asrtool check_data {data} --audio` lists all"
        raise UserError(f"{data}: {share} cannot be used, first {first}: {reason}; {advice}")
    logger.warning("%s: left out %s, see %s", data, share, out / "skipped.txt")
    text = "".join(f"{key} {reason}\n" for key, reason in skipped)
    (target / "skipped.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
