"""A rank in tests/unit/system/test_two_hosts.py: it sums over ranks until it is stopped.

python tests/toy_two_hosts.py watched|plain
"""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist

from asrtool import distributed


def work() -> None:
    print("started", flush=True)
    while True:
        dist.all_reduce(torch.ones(1))
        time.sleep(0.2)


def main(how: str) -> None:
    if how == "watched":
        with distributed.process_group():
            work()
    dist.init_process_group("gloo", timeout=distributed.PATIENCE)
    work()


if __name__ == "__main__":
    main(sys.argv[1])
