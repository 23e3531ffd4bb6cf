"""Checkpoints: folders of safetensors and JSON, written aside and renamed; nothing is ever unpickled.

    <phase>/step-00012000/   model.safetensors       the weights to decode with (the moving average where `ema` is on)
                             optimizer.safetensors   "<parameter>/exp_avg" ...; gone from older checkpoints kept for
                             averaging state.json              TrainState, metric values, size and SHA-256 of the other
                             files
    <phase>/latest.json best.json                    pointers: {"path": "step-00012000", ...}
    <phase>/average-10.safetensors                   the mean of ten of them

A checkpoint that a crash or a full disk has torn is never chosen: its files must have the size and hash that state.json
says.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from asrtool import atomic, stamp
from asrtool.log import logger
from asrtool.train import parallel

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, torn, or does not fit the model."""


# -- writing ---------------------------------------------------------------


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object]) -> Path:
    """Write `folder`/step-<step> from file name -> tensors and what state.json must remember; all of it or nothing."""
    out = place(folder, step)
    target = out.with_name(out.name + ".tmp")
    shutil.rmtree(target, ignore_errors=True)
    try:
        target.mkdir(parents=True)
        files = {}
        for name, content in tensors.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, target / name)
            files[name] = _fingerprint(target / name)
        (target / STATE).write_text(json.dumps({**state, "files": files}, indent=1) + "\n", encoding="utf-8")
        atomic.replace_folder(target, out)
        point(folder, "latest", out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise CheckpointError(
            f"cannot write checkpoint {out}: {error}; earlier checkpoints are untouched: make room and run the same "
            "command again"
        ) from error
    return out


def point(folder: Path, name: str, target: Path, **facts: object) -> None:
    """Write the pointer `<folder>/<name>.json`."""
    pointer = folder / f"{name}.json"
    aside = pointer.with_suffix(".json.tmp")
    with open(aside, "w", encoding="utf-8") as stream:
        stream.write(json.dumps({"path": target.name, **facts}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, pointer)


def prune(folder: Path, keep: Collection[Path], newest: Path, resumable: int = 2) -> None:
    """Delete all checkpoints but `keep`, `newest` and the one before; the kept older ones lose their optimizer state.

    What is newer than `newest` was torn when training went on from an earlier one, and goes too.
    """
    for leftover in [*folder.glob("step-*.tmp"), *folder.glob("step-*.old")]:
        shutil.rmtree(leftover, ignore_errors=True)
    present = every(folder)
    last = present.index(newest) + 1
    for path in present[: max(0, last - resumable)]:
        if path in keep:
            (path / OPTIMIZER).unlink(missing_ok=True)
        else:
            _remove(path)
    for path in present[last:]:
        _remove(path)


def _remove(path: Path) -> None:
    doomed = path.with_name(path.name + ".tmp")  # half a removal must not look like a torn checkpoint
    os.rename(path, doomed)
    shutil.rmtree(doomed)


# -- finding ---------------------------------------------------------------


def every(folder: Path) -> list[Path]:
    """All checkpoints of a phase, oldest first, whole or torn."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that training can resume from; torn ones are named and passed over."""
    for path in reversed(every(folder)):
        problem = defect(path)
        if problem is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path, problem)
    return None


def defect(path: Path, names: Iterable[str] = (MODEL, OPTIMIZER)) -> str | None:
    """What is wrong with these files of a checkpoint, or None."""
    try:
        files = read_state(path)["files"]
    except (CheckpointError, KeyError, TypeError) as error:
        return str(error) if isinstance(error, CheckpointError) else f"{STATE} does not list its files"
    for name in names:
        if name not in files:
            return f"{STATE} does not list {name}"
        if not (path / name).exists():
            return f"{name} is missing"
        if _fingerprint(path / name) != files[name]:
            size = (path / name).stat().st_size
            return f"{name} is not what was written (it has {size} bytes, expected {files[name]['size']})"
    return None


def read_state(path: Path) -> dict:
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE} cannot be read: {error}") from error


def rank(folder: Path, metric: str, by: str) -> list[Path]:
    """Checkpoints with a value of `metric`, the first to average first: `by` "best" (lowest first) or "last" (newest
    first)."""
    rated = []
    for path in every(folder):
        try:
            value = read_state(path).get("metrics", {}).get(metric)
        except CheckpointError:
            continue
        if value is not None:
            rated.append((float("inf") if value != value else value, int(path.name[5:]), path))
    rated.sort(key=(lambda item: item[:2]) if by == "best" else (lambda item: -item[1]))
    return [path for *_, path in rated]


# -- averaging -------------------------------------------------------------


def average(folder: Path, count: int) -> Path:
    """`<folder>/average-<count>.safetensors`, made unless it is there: the mean weights of the checkpoints that the
    phase ranks first.

    What "first" means (metric, best or last) is what training wrote into best.json. Fewer than `count` are averaged
    with a warning.
    """
    try:
        best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
        metric, by = best["metric"], best["average_by"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder} holds no validated checkpoint yet (no usable best.json); train on first"
        ) from error
    chosen = [path for path in rank(folder, metric, by) if _usable(path)][:count]
    if not chosen:
        raise CheckpointError(f"{folder} holds no whole checkpoint with a value of {metric}")
    if len(chosen) < count:
        logger.warning(
            "%s holds only %d checkpoints with a value of %s; asked to average %d", folder, len(chosen), metric, count
        )
    out = folder / f"average-{count}.safetensors"
    sources = ",".join(sorted(path.name for path in chosen))
    if averaged_from(out) != sources:
        with stamp.locked(out, wait=True):  # several sets may be decoded at the same time
            aside = out.with_name(out.name + ".tmp")
            try:
                save_file(mean(path / MODEL for path in chosen), aside, metadata={"sources": sources})
                os.replace(aside, out)
            except (OSError, SafetensorError) as error:
                aside.unlink(missing_ok=True)
                again = "make room, then run the same command again"
                raise CheckpointError(f"cannot write {out}: {error}; {again}") from error
    return out


def mean(files: Iterable[Path]) -> dict[str, Tensor]:
    """Tensor by tensor, summed in float64; whole numbers (counters) are those of the first file."""
    total: dict[str, Tensor] = {}
    count = 0
    for file in files:
        tensors = load(file)
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


def _usable(path: Path) -> bool:
    problem = defect(path, [MODEL])
    if problem is not None:
        logger.warning("checkpoint %s is not averaged: %s", path, problem)
    return problem is None


def averaged_from(path: Path) -> str | None:
    """Which checkpoints an average was made of."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("sources")
    except (OSError, SafetensorError):
        return None


# -- tensors of models and optimizers --------------------------------------


def load(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    try:
        return load_file(file, device)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state by name; tied weights once, under their first name; without what is stored elsewhere
    (`pretrained`: names of frozen weights that building the model reads)."""
    tensors = model.state_dict(keep_vars=True)
    elsewhere = getattr(model, "pretrained", frozenset())
    firsts = _first_names(tensors)
    return {name: tensors[name] for name, first in firsts.items() if name == first and name not in elsewhere}


def load_model(
    model: nn.Module,
    path: Path,
    missing: Collection[str] = (),
    unused: Collection[str] = (),
    copy: Mapping[str, str] | None = None,
) -> None:
    """Fill `model` from a checkpoint folder or a .safetensors file.

    `missing`: patterns of names that may be absent from the file (they keep their initialisation); `unused`: patterns
    of names in the file that the model need not have; `copy`: see `copied`. Any other difference in names or shapes is
    a `CheckpointError` that lists them.
    """
    path = Path(path)
    if path.is_dir():
        problem = defect(path, [MODEL])
        if problem is not None:
            raise CheckpointError(f"{path} cannot be used: {problem}")
    source = copied(load(path / MODEL if path.is_dir() else path), model, copy or {})
    own = model.state_dict(keep_vars=True)
    sizes = {name: tuple(value.shape) for name, value in source.items()}
    absent, extra = compare(str(path), sizes, model, missing, unused)
    for what, names in (("keep their initialisation", absent), ("of the file are not used", extra)):
        if names:
            logger.info("%s: %d tensors %s: %s", path, len(names), what, _some(names))
    for name in own:
        if name in source:
            parallel.fill(own[name], source[name])


def copied(source: Mapping[str, object], model: nn.Module, copy: Mapping[str, str]) -> dict:
    """`source` by name, and for names below a key of `copy` that only `model` has, what lies below its value."""
    own = model.state_dict(keep_vars=True)
    pairs = [(key, old + key[len(new) :]) for new, old in copy.items() for key in own if key.startswith(f"{new}.")]
    return {**{name: source[origin] for name, origin in pairs if origin in source}, **source}


def compare(
    what: str,
    source: Mapping[str, tuple[int, ...]],
    model: nn.Module,
    missing: Collection[str] = (),
    unused: Collection[str] = (),
) -> tuple[list[str], list[str]]:
    """Names that only `model` has and names that only `source` (name -> shape) has; an error where that is not allowed.

    what: where the source comes from, for the message.
    """
    own = model.state_dict(keep_vars=True)
    firsts = _first_names(own)
    elsewhere = getattr(model, "pretrained", frozenset())
    absent = [name for name in own if firsts[name] == name and name not in source and name not in elsewhere]
    extra = [name for name in source if name not in own]
    shapes = [
        f"{name} {tuple(shape)}, in the model {tuple(own[name].shape)}"
        for name, shape in source.items()
        if name in own and tuple(shape) != tuple(own[name].shape)
    ]
    problems = [
        _listed("not in the file: ", [name for name in absent if not _allowed(name, missing)]),
        _listed("not in the model: ", [name for name in extra if not _allowed(name, unused)]),
        _listed("of another shape: ", shapes),
    ]
    if any(problems):
        raise CheckpointError(
            f"{what} does not fit the model: {'; '.join(filter(None, problems))}. What is meant to differ is "
            "allowed by name patterns in init.missing and init.unused"
        )
    return absent, extra


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights in a checkpoint folder or file, without reading them."""
    file = path / MODEL if path.is_dir() else path
    try:
        with safe_open(file, "pt") as stream:
            names = stream.keys()
            return {name: tuple(stream.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """ "<parameter>/<key>" -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; parameters without an entry were frozen so far."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = {names[id(parameter)]: number for number, parameter in enumerate(own)}
    unknown = sorted({key.rpartition("/")[0] for key in tensors} - set(places))
    if unknown:
        raise CheckpointError(f"the optimizer state is of another model; it also has {_some(unknown)}")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        parameter = own[places[name]]
        if value.shape == parameter.shape:  # fused AdamW pairs numbers by their place in memory: strides must agree
            value = parallel.like(value, parameter)
        state.setdefault(places[name], {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


# -- small helpers ---------------------------------------------------------


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the first name of the same memory."""
    seen: dict[tuple, str] = {}
    return {name: seen.setdefault(_memory(name, value), name) for name, value in tensors.items()}


def _memory(name: str, value: Tensor) -> tuple:
    if isinstance(value, DTensor) or value.is_meta:  # the memory of a share, or of none, tells nothing: the object does
        return (id(value),)
    return (value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,)


def _fingerprint(file: Path) -> dict[str, object]:
    with open(file, "rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _allowed(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: list[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _listed(what: str, names: list[str]) -> str:
    return what + _some(names) if names else ""
