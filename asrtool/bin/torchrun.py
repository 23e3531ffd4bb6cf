"""torchrun whose failures end with the command's own message, not the launcher's traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from asrtool.system.processes import PARENT

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # passed on to the ranks
SAVING = "300"  # seconds for the ranks to save after a signal; torch's default is 30


def main(argv: Sequence[str] | None = None) -> None:
    logging.disable(logging.ERROR)  # the ranks report their errors themselves
    os.environ[PARENT] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SAVING)
    try:
        run.run(
            run.parse_args(
                ["--signals-to-handle", SIGNALS, *(sys.argv[1:] if argv is None else argv)]
            )
        )
    except ChildFailedError as error:
        # The first failure is the cause; the others follow from it.
        rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        if failure.exitcode < 0:
            print(
                f"rank {rank} was killed by signal {-failure.exitcode}; the others were stopped",
                file=sys.stderr,
            )
        sys.exit(max(failure.exitcode, 1))
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
