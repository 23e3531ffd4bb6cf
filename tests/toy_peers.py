"""What a rank does in tests/unit/system/test_peers.py:

python tests/toy_peers.py <rank> <world> <folder> <how rank 1 ends>
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

from asrtool.system import peers


def share(folder: Path, rank: int, port: int) -> int:
    file = folder / "port"
    if rank == 0:
        file.with_suffix(".tmp").write_text(str(port))
        file.with_suffix(".tmp").rename(file)
    while not file.exists():
        time.sleep(0.01)
    return int(file.read_text())


def main(rank: int, world: int, folder: Path, how: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank))
    with peers.watched(rank, world, lambda port: share(folder, rank, port)):
        # a loader process, which must not keep up the connection of its dead parent
        multiprocessing.get_context("fork").Process(
            target=time.sleep, args=(15,), daemon=True
        ).start()
        if rank == 1 and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and how == "error":
            raise ValueError("out of luck")
        if rank == 1 and how == "leaves":
            return
        if how != "leaves":
            threading.Event().wait()  # as in a collective with a rank that is gone
        time.sleep(1)
    print("left")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
