"""Where the curves of log.jsonl are shown live: TensorBoard and Weights & Biases.

Both packages are imported where they are used. TensorBoard is written wherever it is installed; a
run is sent to Weights & Biases where `trainer.wandb` names a project, and then it must be.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import yaml

from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.system import atomic
from asrtool.trainer.config import TrainerConfig

RUN = "wandb.json"  # in a phase's folder: the id of its run


class Board(Protocol):
    """The curves of one phase."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve; `values` are finite."""

    def close(self) -> None: ...


class Boards:
    """All boards of a phase."""

    def __init__(self, *boards: Board) -> None:
        self._boards = boards

    def write(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """Write the finite ones of `values` to every board."""
        finite = {prefix + name: value for name, value in values.items() if math.isfinite(value)}
        for board in self._boards:
            board.write(step, finite)

    def close(self) -> None:
        for board in self._boards:
            board.close()


def open_boards(config: TrainerConfig, phase: Path, logs: Path, start: int) -> Boards:
    """The boards of the phase in folder `phase`, from step `start` on.

    Raises `UserError` where Weights & Biases is asked for and cannot be used.
    """
    boards: list[Board] = []
    if config.wandb is not None:
        boards.append(Wandb(config.wandb, phase, logs))
    if config.tensorboard and (writer := _tensorboard(logs, phase.name, start)) is not None:
        boards.append(writer)
    return Boards(*boards)


# -- TensorBoard -----------------------------------------------------------


class TensorBoard:
    """Event files in `folder`; records after step `start` are dropped."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _tensorboard(logs: Path, phase: str, start: int) -> TensorBoard | None:
    try:
        return TensorBoard(logs / "tensorboard" / phase, start)
    except ImportError:
        _say_missing(logs)
        return None


@functools.cache
def _say_missing(exp: Path) -> None:
    """Say it once, whatever the number of phases."""
    text = (
        "TensorBoard is not installed (pip install tensorboard); log.jsonl holds the curves, "
        "and asrtool plot"
    )
    logger.info("%s %s draws them", text, exp)


# -- Weights & Biases ------------------------------------------------------


class Wandb:
    """A run of the project, `<experiment>/<phase>`, which an interrupted training goes on with.

    What the package reads from the environment stays its own: WANDB_MODE=offline writes the run
    into `<exp>/wandb`, for `wandb sync`; WANDB_ENTITY names a team.
    """

    def __init__(self, project: str, phase: Path, logs: Path) -> None:
        wandb = _wandb()
        exp = logs.resolve().name
        try:
            self._run = wandb.init(
                project=project,
                name=f"{exp}/{phase.name}",
                group=exp,
                id=_run_id(phase),
                resume="allow",
                dir=str(logs),
                config=_config(logs, phase.name),
                # the console is log.jsonl's and the terminal's
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:  # no key, no network, no such team
            reason = " ".join(str(error).split())
            raise UserError(
                f"trainer.wandb: no run of the project '{project}' can be started ({reason}); log "
                "in by `wandb login`, or set WANDB_MODE=offline and send the run later by `wandb "
                "sync`"
            ) from error
        # steps of another process that were done after its last checkpoint are done again; with
        # the number of the step as a value they lie on top of each other
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


def _wandb() -> object:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "trainer.wandb needs the package wandb, which is not installed: pip install -e "
            "'.[wandb]'; or leave trainer.wandb out"
        ) from error
    return wandb


def _run_id(phase: Path) -> str:
    """That of the phase's run, the same after an interruption."""
    path = phase / RUN
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    found = secrets.token_hex(4)
    atomic.write_text(path, json.dumps({"id": found}) + "\n")
    return found


def _config(logs: Path, phase: str) -> dict:
    """The resolved config of the phase, where the experiment's folder has one."""
    path = logs / "config.yaml"
    if not path.exists():
        return {}
    return yaml.safe_load(path.read_text(encoding="utf-8"))["phases"][phase]
