"""Averages of weights: over checkpoints of a phase, for decoding, and over all steps (`Ema`).

<phase>/average-10.safetensors is the mean of ten checkpoints, <phase>/average-10.json records its
size and SHA-256. An average that does not match its record is computed again from the same
checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asrtool.errors import UserError
from asrtool.log import logger, plural
from asrtool.system import atomic, stamp
from asrtool.trainer import checkpoint, parallel, records
from asrtool.trainer.checkpoint import MODEL, TornError
from asrtool.types import Trainable


def average(folder: Path, count: int) -> Path:
    """`<folder>/average-<count>.safetensors`, computed unless it exists and is intact.

    It is the mean of the phase's `count` highest-ranking checkpoints, with a warning if there are
    fewer. The average of a finished phase never changes: while it is intact it needs no
    checkpoints, and a damaged one is recomputed only from its original checkpoints.
    """
    # temporary files of a run that was killed while it wrote
    for leftover in folder.glob("average-*.safetensors.*"):
        stamp.sweep(leftover.with_suffix(""))
    out = folder / f"average-{count}.safetensors"
    finished = records.pointer(folder, "finished") or {}
    final, problem = finished.get("path") == out.name, _problem(out)
    if final and problem is None:
        return out
    chosen = (
        _again(out, problem, finished["sources"])
        if final and "sources" in finished
        else first(folder, count)
    )
    sources = ",".join(path.name for path in chosen)
    if problem is not None or averaged_from(out) != sources:
        # several sets may be decoded at the same time: the first process writes, the others wait
        # and find its result
        with stamp.locked(out, wait=True):
            if not _is_current(out, sources):
                if problem is not None and out.exists():
                    logger.warning("%s is computed again: %s", out, problem)
                _write(out, chosen, sources)
    return out


def first(folder: Path, count: int) -> list[Path]:
    """The `count` highest-ranking intact checkpoints of a phase, or all if there are fewer.

    Raises `UserError` if there is none.
    """
    metric, by = ranking(folder)
    chosen = list(islice(filter(_usable, checkpoint.rank(folder, metric, by)), count))
    if not chosen:
        ended = records.pointer(folder, "finished")
        kept = (
            f"; it is finished, and has the average {ended['path']}"
            if ended
            else "; continue the training first"
        )
        raise UserError(f"{folder} has no intact checkpoint with a value of {metric}{kept}")
    if len(chosen) < count:
        text = "%s has only %s with a value of %s; expected %d to average"
        logger.warning(text, folder, plural(len(chosen), "checkpoint"), metric, count)
    return chosen


def ranking(folder: Path) -> tuple[str, str]:
    """The metric that ranks checkpoints, and whether the "best" or the "last" ones are averaged."""
    for path in reversed(checkpoint.every(folder)):
        try:
            entry = checkpoint.read_state(path).get("ranking")
        except TornError:
            continue
        if entry is not None:
            return entry["metric"], entry["average_by"]
    best = records.pointer(folder, "best") or {}  # older versions only wrote it there
    if "metric" not in best or "average_by" not in best:
        raise UserError(f"{folder} has no validated checkpoint yet; continue the training first")
    return best["metric"], best["average_by"]


def mean(files: Iterable[Path]) -> dict[str, Tensor]:
    """The mean of each tensor, summed in float64; integers (counters) are the first file's."""
    total: dict[str, Tensor] = {}
    count = 0
    for file in files:
        tensors = checkpoint.load(file)
        count += 1
        for name, value in tensors.items():
            if name not in total:
                total[name] = value.double() if value.is_floating_point() else value
            elif value.is_floating_point():
                total[name] += value
    return {
        name: (total[name] / count).to(value.dtype) if value.is_floating_point() else total[name]
        for name, value in tensors.items()
    }


def averaged_from(path: Path) -> str | None:
    """The names of the averaged checkpoints, joined by commas; None if unknown."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("sources")
    except (OSError, SafetensorError):
        return None


def _problem(out: Path) -> str | None:
    """How an average differs from its record, or None."""
    noted = records.pointer(out.parent, out.stem)
    try:
        records.compare(out, noted or {})
    except TornError as error:
        return str(error)
    return None


def _is_current(out: Path, sources: str) -> bool:
    return _problem(out) is None and averaged_from(out) == sources


def _again(out: Path, problem: str | None, sources: str) -> list[Path]:
    """The checkpoints of a final average. Raises `UserError` if any is missing or torn."""
    chosen = [out.parent / name for name in sources.split(",")]
    missing = {
        path.name: defect
        for path in chosen
        if (defect := checkpoint.defect(path, [MODEL])) is not None
    }
    if missing:
        listed = "; ".join(f"{name}: {defect}" for name, defect in missing.items())
        raise UserError(
            f"{out} cannot be used: {problem}; it cannot be computed again either ({listed}). "
            f"Restore it from a backup, or move {out.parent} away to train the phase again"
        )
    return chosen


def _usable(path: Path) -> bool:
    problem = checkpoint.defect(path, [MODEL])
    if problem is not None:
        logger.warning("checkpoint %s is left out of the average: %s", path, problem)
    return problem is None


def _write(out: Path, chosen: Iterable[Path], sources: str) -> None:
    try:
        with atomic.replacing(out) as temporary:
            save_file(
                mean(path / MODEL for path in chosen), temporary, metadata={"sources": sources}
            )
        records.note(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}; {checkpoint.cure(error)}") from error


# -- moving average of all steps -------------------------------------------


class Ema:
    """A moving average: shadow <- d * shadow + (1 - d) * weights after every update.

    d = min(decay, (1 + n) / (10 + n)) for update n. Initially d is small, so that the average
    forgets the random initialisation. With `trainer.ema`, validation, checkpoints and decoding use
    the average.
    """

    def __init__(self, model: Trainable, decay: float) -> None:
        self.decay = decay
        self._parameters = {
            name: value for name, value in model.named_parameters() if name not in model.frozen
        }
        self._shadow = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        # all tensors in a few kernels: one for each would cost a GPU more than the work in it
        torch._foreach_lerp_(*self._pairs(), 1.0 - decay)

    @contextmanager
    def averaged(self) -> Iterator[dict[str, Tensor]]:
        """Within the block, the model holds the averages; yields the training weights."""
        self._swap()
        try:
            yield self._shadow
        finally:
            self._swap()

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Take the model's weights as the averages, and load `weights` (by name) into the model.

        Checkpoints hold the averages as the model, and the training weights beside the optimizer.
        """
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._shadow[name].copy_(parameter)
                parallel.fill(parameter, weights[name])

    @torch.no_grad()
    def _swap(self) -> None:
        averages, parameters = self._pairs()
        training = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, averages)
        torch._foreach_copy_(averages, training)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The averages, and the weights of the model; of sharded ones, the part of this rank."""
        tensors = self._shadow.values(), self._parameters.values()
        return tuple([parallel.local(value.detach()) for value in group] for group in tensors)
