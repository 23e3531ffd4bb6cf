"""Read configs as the stages will, so that a mistake shows before any work; prints the name of the
features.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from asrtool import experiment, imports
from asrtool.bin.extract_features import load_config
from asrtool.data.features import feature_id


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    data, front_end = load_config(args.train_config, args.train_args, args.import_from)
    if args.decode_config is not None:
        overrides = experiment.split_overrides(args.decode_args)
        settings = experiment.load_decode(
            args.decode_config, overrides, args.ngram, args.ngram_unit
        )
        experiment.check_ngram(args.decode_config, settings.searcher)
    print(feature_id(data, front_end and front_end.name))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="asrtool check_config", description=__doc__)
    options.add_argument("--train-config", type=Path, required=True, help="train_*.yaml")
    options.add_argument("--decode-config", type=Path, help="decode_*.yaml")
    for name in ("train", "decode"):
        options.add_argument(
            f"--{name}-args", action="append", default=[], metavar="KEY=VALUE", help="overrides"
        )
    experiment.add_ngram_options(options)
    imports.add_options(options, modules=False)
    return options.parse_args(argv)


if __name__ == "__main__":
    main()
