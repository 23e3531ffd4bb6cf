#!/usr/bin/env python
"""Mean cosine of the gradients of the accent loss and of all others by phase and epoch, from
log.jsonl of each seed.

python studies/cosines.py --exp exp/mini --seeds "0 1 2" qifusion
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
    options.add_argument("tag")
    options.add_argument("--exp", type=Path, required=True, help="folder of the experiments")
    options.add_argument("--seeds", required=True, help="as in '0 1 2'")
    args = options.parse_args()
    found = defaultdict(list)
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
                found[record["phase"], record["epoch"]].append(values)
    if not found:
        print("No record: trainings shorter than trainer.log_every steps have none.")
        return
    print(
        "| phase | epoch | cosine | below 0, % of the records | norm against that of the others | "
        "records |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for (phase, epoch), records in found.items():
        cosines, ratios = np.array(records).T
        below = 100 * float((cosines < 0).mean())
        print(
            f"| {phase} | {epoch} | {cosines.mean():+.3f} | {below:.0f} | {ratios.mean():.3f} | "
            f"{len(records)} |"
        )


if __name__ == "__main__":
    main()
