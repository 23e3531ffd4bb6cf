#!/usr/bin/env python
"""Mean cosine between the gradient of the accent loss and that of all other losses.

    python studies/cosines.py --exp exp/mini --seeds "0 1 2" qifusion

reads log.jsonl of each seed and prints a row for each phase and epoch.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("tag", help="name of the experiments, without -s<seed>")
    options.add_argument("--exp", type=Path, required=True, help="folder of the experiments")
    options.add_argument("--seeds", required=True, help="as in '0 1 2'")
    args = options.parse_args()
    values_by_epoch = defaultdict(list)
    for seed in args.seeds.split():
        for line in (
            (args.exp / f"{args.tag}-s{seed}" / "log.jsonl")
            .read_text(encoding="utf-8")
            .rstrip()
            .split("\n")
        ):
            record = json.loads(line)
            if record.get("event") == "gradients":
                values = record["cosine"], record["norm"] / record["norm_others"]
                values_by_epoch[record["phase"], record["epoch"]].append(values)
    if not values_by_epoch:
        print("No records: trainings shorter than trainer.log_every steps have none.")
        return
    print(
        "| phase | epoch | cosine | below 0, % of the records | norm relative to the others | "
        "records |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for (phase, epoch), records in values_by_epoch.items():
        cosines, ratios = np.array(records).T
        below = 100 * float((cosines < 0).mean())
        print(
            f"| {phase} | {epoch} | {cosines.mean():+.3f} | {below:.0f} | {ratios.mean():.3f} | "
            f"{len(records)} |"
        )


if __name__ == "__main__":
    main()
