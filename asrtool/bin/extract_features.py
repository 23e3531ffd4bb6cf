"""Stage 1: audio to stored features (or to lengths alone), speed copies, and the training set's
mean and variance.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from asrtool import imports
from asrtool.data import features
from asrtool.data.config import DataConfig
from asrtool.data.extraction import ExtractionError, Summary, extract
from asrtool.data.shards import packing
from asrtool.log import logger, set_up
from asrtool.system import stamp

SHOWN = 5  # skipped utterances that the log names; skipped.txt names all
TOLERATED = 0.1  # share of utterances that may be unusable


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    set_up()
    config = load_config(args.config, args.set, args.import_from)
    run(args, config)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool extract_features", description=__doc__)
    options.add_argument(
        "--config", type=Path, required=True, help="train_*.yaml; its data: part is used"
    )
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override of the config"
    )
    options.add_argument("--data", type=Path, required=True, help="data directory to read")
    options.add_argument(
        "--out", type=Path, required=True, help="folder to write: that data directory with features"
    )
    options.add_argument(
        "--training", action="store_true", help="the training set: speed copies and cmvn.json too"
    )
    options.add_argument("--nj", type=int, default=1, help="processes")
    options.add_argument(
        "--force", action="store_true", help="make it again even if nothing changed"
    )
    imports.add_options(options, modules=False)
    args = options.parse_args(argv)
    if args.nj < 1:
        options.error(f"--nj is {args.nj}, expected at least 1")
    return args


def load_config(
    path: Path, overrides: Sequence[str], import_from: Collection[Path] = ()
) -> DataConfig:
    """The data part of the first phase; all phases must want the same features, since they share
    the folder.
    """
    # here, since worker processes import this module and need no model
    from asrtool import experiment

    phases = experiment.load_phases(path, experiment.split_overrides(overrides), import_from)
    ids = {name: features.feature_id(phase.data) for name, phase in phases.items()}
    if len(set(ids.values())) > 1:
        wanted = ", ".join(f"{name}: {feature_id}" for name, feature_id in ids.items())
        raise ExtractionError(
            f"{path}: the phases want different features ({wanted}); use a config for each"
        )
    return next(iter(phases.values())).data


def run(args: argparse.Namespace, config: DataConfig) -> None:
    """Build the folder, unless it is up to date."""
    options = {
        "input": config.input,
        "features": config.features,
        "fbank": asdict(config.fbank),
        "training": args.training,
        "speeds": features.copies(config) if args.training else (1.0,),
    }
    if config.shards is not None and args.training:
        options["shards"] = [config.shards.size_mb, config.shards.seed]
    with stamp.building(args.out, "features", [args.data], options, args.force) as target:
        if target is None:
            return
        summary = extract(
            args.data, config, target, final=args.out, training=args.training, nj=args.nj
        )
        report_rates(summary, args.data)
        report_skipped(args.data, summary.skipped, summary.total, target, args.out)
        if summary.stats is not None:
            summary.stats.cmvn().save(target / "cmvn.json")
        if "shards" in options:
            packing.pack_set(args.data, target, args.out, config)
    copied = f", {summary.rows} with speed copies" if len(options["speeds"]) > 1 else ""
    kept = summary.total - len(summary.skipped)
    hours, name = summary.seconds / 3600, features.feature_id(config)
    logger.info("%s: %d utterances%s, %.2f hours, %s", args.out, kept, copied, hours, name)


def report_rates(summary: Summary, data: Path) -> None:
    for rate, number in sorted(summary.rates.items()):
        logger.info("%s: %d utterances were resampled from %d Hz", data, number, rate)


def report_skipped(
    data: Path, skipped: Sequence[tuple[str, str]], total: int, target: Path, out: Path
) -> None:
    """Say what was left out, and write it to skipped.txt; too much of it stops the stage."""
    if not skipped:
        return
    for key, why in skipped[:SHOWN]:
        logger.warning("left out %s: %s", key, why)
    share = f"{len(skipped)} of {total} utterances"
    if len(skipped) > TOLERATED * total:
        first, why = skipped[0]
        advice = f"`asrtool check_data {data} --audio` lists all"
        raise ExtractionError(f"{data}: {share} cannot be used, first {first}: {why}; {advice}")
    logger.warning("%s: left out %s, see %s", data, share, out / "skipped.txt")
    text = "".join(f"{key} {why}\n" for key, why in skipped)
    (target / "skipped.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
