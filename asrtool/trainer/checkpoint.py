"""Checkpoints: folders of safetensors and JSON, written atomically and never unpickled.

    <phase>/step-00012000/   model.safetensors       the weights to decode with (the moving average
                                                     with `ema`)
                             optimizer.safetensors   "<parameter>/exp_avg" ...; deleted from older
                                                     checkpoints that are kept
                             state.json              TrainState, metric values, size and SHA-256 of
                                                     the other files
    <phase>/latest.json best.json                    pointers: {"path": "step-00012000", ...}

A checkpoint is torn if a file is missing, or differs in size or hash from state.json; torn
checkpoints are never used. One that cannot be read (a broken disk, a lost server, no permission) is
not torn, but an error: it may be intact.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asrtool.errors import UserError
from asrtool.log import first_few, logger, plural
from asrtool.system import atomic, stamp
from asrtool.trainer import parallel, records
from asrtool.trainer.records import TornError
from asrtool.trainer.renamed import present_name
from asrtool.types import Trainable

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
NAME = re.compile(r"step-([0-9]+)(\.tmp|\.old)?")


# -- writing ---------------------------------------------------------------


def folder_of(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, object],
) -> Path:
    """Write `folder`/step-<step> atomically.

    tensors: file name -> tensors; state: the content of state.json.
    """
    every(folder)  # raises if something else has the name of a checkpoint
    out = folder_of(folder, step)
    try:
        with atomic.replacing_folder(out) as target:
            # state.json is written last, with the hashes of the others: it makes the checkpoint
            # complete
            files = {}
            for name, content in tensors.items():
                save_file(
                    {key: value.detach().cpu().contiguous() for key, value in content.items()},
                    target / name,
                )
                files[name] = records.fingerprint(target / name)
            (target / STATE).write_text(
                json.dumps({**state, "files": files}, indent=1) + "\n", encoding="utf-8"
            )
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write checkpoint {out}: {error}; earlier checkpoints are intact: {cure(error)}"
        ) from error
    return out


def cure(error: Exception) -> str:
    """What to do about a write error."""
    # safetensors raises an error of its own, with the number of the system in its text
    code = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(code[1]) if code else None
    return (
        f"{'free some disk space' if number in stamp.FULL else 'fix this'} and run the same "
        "command again"
    )


def prune(folder: Path, keep: Collection[Path], newest: Path) -> None:
    """Delete checkpoints older than `newest`, which is intact.

    Those in `keep` stay, without their optimizer state. The last intact one before `newest` stays
    whole, to resume from if `newest` is lost. Those after `newest` are torn, and stay until an
    intact one replaces or passes them.
    """
    for leftover in _named(folder, leftovers=True):
        atomic.discard(leftover)
    older = [path for path in reversed(every(folder)) if _step(path) < _step(newest)]
    # sizes suffice here: hashing a checkpoint at every save would take as long as writing it
    spare = next((path for path in older if defect(path, facts=records.size) is None), None)
    for path in older:
        if path == spare:
            continue
        if path in keep:
            (path / OPTIMIZER).unlink(missing_ok=True)
        else:
            atomic.remove_folder(path)  # a half removed folder must not look like a torn checkpoint


# -- finding ---------------------------------------------------------------


def every(folder: Path) -> list[Path]:
    """All checkpoints of a phase, intact or torn, oldest first.

    Raises `UserError` if a file or a broken link has the name of a checkpoint.
    """
    return _named(folder)


def _named(folder: Path, leftovers: bool = False) -> list[Path]:
    """Checkpoints, oldest first, or the leftovers of killed writes (step-<step>.tmp or .old)."""
    paths = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = NAME.fullmatch(entry.name)
                if match is None or bool(match[2]) != leftovers:
                    continue
                if not leftovers and not entry.is_dir():
                    kind = "a broken link" if entry.is_symlink() else "a file"
                    raise UserError(
                        f"{entry.path} is {kind}, but has the name of a checkpoint, which is a "
                        "folder; move it away, then run the same command again"
                    )
                paths.append(folder / entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise records.unreadable(folder, error) from error
    return sorted(paths, key=_step)


def _step(path: Path) -> int:
    return int(NAME.fullmatch(path.name)[1])


def bring_back(folder: Path) -> None:
    """Restore a checkpoint that was being replaced when the training was killed."""
    for old in _named(folder, leftovers=True):
        atomic.bring_back(old.with_suffix(""))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that training can resume from; None if there never was one.

    Torn ones are skipped with a warning. Raises `UserError` if all are torn or gone, or one cannot
    be read: otherwise training would start again and overwrite what is left.
    """
    torn = {}
    for path in reversed(every(folder)):
        problem = defect(path)
        if problem is None:
            return path
        torn[path.name] = problem
        logger.warning("checkpoint %s is skipped: %s", path, problem)
    # no checkpoint, but a pointer to one: it has been deleted, so this is no new training
    last = records.pointer(folder, "latest")
    if not torn and last is None:
        return None
    listed = "; ".join(
        f"{name}: {problem}" for name, problem in (torn or {last["path"]: "it is missing"}).items()
    )
    raise UserError(
        f"{folder}: training cannot resume from any of its checkpoints ({listed}). Nothing was "
        f"changed. Restore one from a backup, or move {folder} away to train this phase again"
    )


def defect(
    path: Path,
    names: Iterable[str] = (MODEL, OPTIMIZER),
    facts: records.Facts = records.fingerprint,
) -> str | None:
    """How a checkpoint is torn, or None.

    names: the files to check; facts: what to compare, size alone or SHA-256 too. Raises `UserError`
    if it cannot be read.
    """
    try:
        files = read_state(path).get("files")
        if not isinstance(files, dict):
            return f"{STATE} does not list its files"
        for name in names:
            if not isinstance(files.get(name), dict):
                return f"{STATE} does not list {name}"
            records.compare(path / name, files[name], facts)
    except TornError as error:
        return str(error)
    return None


def read_state(path: Path) -> dict:
    """The content of a checkpoint's state.json."""
    return records.read(path / STATE)


def rank(folder: Path, metric: str, by: str) -> list[Path]:
    """The checkpoints with a value of `metric`, the "best" (lowest) or "last" (newest) first."""
    ranked = []
    for path in every(folder):
        try:
            value = read_state(path).get("metrics", {}).get(metric)
        except TornError:
            continue
        if value is not None:
            # NaN would make the order undefined: it ranks last
            ranked.append((float("inf") if value != value else value, _step(path), path))
    ranked.sort(key=(lambda item: item[:2]) if by == "best" else (lambda item: -item[1]))
    return [path for *_, path in ranked]


# -- tensors of models and optimizers --------------------------------------


def load(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file, under their current names."""
    try:
        tensors = load_file(file, device)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    return {present_name(name): value for name, value in tensors.items()}


def model_tensors(model: Trainable) -> dict[str, Tensor]:
    """The model's state by name.

    Tied weights appear once, under their first name. Weights stored elsewhere are left out
    (`pretrained`: frozen weights that are loaded when the model is built).
    """
    tensors = model.state_dict(keep_vars=True)
    firsts = _first_names(tensors)
    return {
        name: tensors[name]
        for name, first in firsts.items()
        if name == first and name not in model.pretrained
    }


def load_model(
    model: Trainable,
    path: Path,
    missing: Collection[str] = (),
    unused: Collection[str] = (),
    copy: Mapping[str, str] | None = None,
    same_types: bool = False,
    change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
) -> list[str]:
    """Load a checkpoint folder or a .safetensors file into `model`; returns the names of the
    tensors that were copied.

    `missing`: patterns of names that may be absent from the file; these keep their initialisation.
    `unused`: patterns of names in the file that the model may lack. `copy`: see `copied`.
    `same_types`: reject numbers of another type, such as converted weights, instead of casting
    them. `change`: applied to the tensors before they are compared with the model's. Any other
    difference in names or shapes is a `UserError` that lists them.
    """
    path = Path(path)
    if path.is_dir() and (problem := defect(path, [MODEL])) is not None:
        raise UserError(f"{path} cannot be used: {problem}")
    source = copied(load(path / MODEL if path.is_dir() else path), model, copy or {})
    source = source if change is None else change(source)
    state = model.state_dict(keep_vars=True)
    sizes = {name: tuple(value.shape) for name, value in source.items()}
    absent, extra = compare(str(path), sizes, model, missing, unused)
    converted = [
        f"{name} ({str(source[name].dtype).removeprefix('torch.')})"
        for name in state
        if same_types and name in source and source[name].dtype != state[name].dtype
    ]
    # Silently cast weights would decode, but no longer with the numbers that were validated.
    if converted:
        expected = str(state[converted[0].split(" ")[0]].dtype).removeprefix("torch.")
        raise UserError(
            f"{path}: {len(converted)} tensors are of another type than {expected}, so they are not"
            f" what was trained: {first_few(converted, 3)}"
        )
    for text, names in (("as initialised", absent), ("of the file not used", extra)):
        if names:
            count = plural(len(names), "tensor")
            logger.info("%s: %s %s: %s", path, count, text, first_few(names, 8))
    taken = [name for name in state if name in source]
    for name in taken:
        parallel.fill(state[name], source[name])
    return taken


def copied(source: Mapping[str, object], model: nn.Module, copy: Mapping[str, str]) -> dict:
    """`source` by name, extended by copies: new module -> old module whose weights it takes.

    Weights that `source` has under the new name take precedence.
    """
    state = model.state_dict(keep_vars=True)
    copy = {present_name(f"{new}."): present_name(f"{old}.") for new, old in copy.items()}
    pairs = [
        (key, old + key[len(new) :])
        for new, old in copy.items()
        for key in state
        if key.startswith(new)
    ]
    # Later entries win: weights under the new name override the copies.
    return {**{name: source[origin] for name, origin in pairs if origin in source}, **source}


def compare(
    source_name: str,
    source: Mapping[str, tuple[int, ...]],
    model: Trainable,
    missing: Collection[str] = (),
    unused: Collection[str] = (),
) -> tuple[list[str], list[str]]:
    """Names that only `model` has, and names that only `source` (name -> shape) has.

    source_name: the origin of `source`, for the message. Raises `UserError` for names that no
    pattern of `missing` or `unused` allows, and for different shapes.
    """
    state = model.state_dict(keep_vars=True)
    # A tied parameter has several names; the file has the first one only.
    firsts = _first_names(state)
    absent = [
        name
        for name in state
        if firsts[name] == name and name not in source and name not in model.pretrained
    ]
    extra = [name for name in source if name not in state]
    shapes = [
        f"{name} {tuple(shape)}, expected {tuple(state[name].shape)}"
        for name, shape in source.items()
        if name in state and tuple(shape) != tuple(state[name].shape)
    ]
    names = [
        _listed("not in the file: ", [name for name in absent if not _allowed(name, missing)]),
        _listed("not in the model: ", [name for name in extra if not _allowed(name, unused)]),
    ]
    problems = [*names, _listed("of a different shape: ", shapes)]
    if any(problems):
        allowed = "; name patterns in init.missing and init.unused allow what is intended"
        raise UserError(
            f"{source_name} does not fit the model: {'; '.join(filter(None, problems))}"
            f"{allowed if any(names) else ''}"
        )
    return absent, extra


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights in a checkpoint folder or file, without reading them."""
    file = path / MODEL if path.is_dir() else path
    try:
        with safe_open(file, "pt") as stream:
            names = stream.keys()
            return {present_name(name): tuple(stream.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """ "<parameter>/<key>" -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`. Parameters without an entry have been frozen so far.

    Raises `UserError` if the state belongs to another model.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    numbers = {names[id(parameter)]: number for number, parameter in enumerate(parameters)}
    unknown = sorted({key.rpartition("/")[0] for key in tensors} - set(numbers))
    if unknown:
        raise UserError(
            f"the optimizer state belongs to a different model; it also has {first_few(unknown, 8)}"
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        parameter = parameters[numbers[name]]
        # fused AdamW pairs elements by their position in memory, so strides must agree too
        if value.shape == parameter.shape:
            value = parallel.like(value, parameter)
        state.setdefault(numbers[name], {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


# -- small helpers ---------------------------------------------------------


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the first name with the same memory, which differs for tied weights."""
    seen: dict[tuple, str] = {}
    return {name: seen.setdefault(_memory(name, value), name) for name, value in tensors.items()}


def _memory(name: str, value: Tensor) -> tuple:
    # shards and meta tensors have no memory of their own: identify the object instead
    if parallel.is_share(value) or value.is_meta:
        return (id(value),)
    return (value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,)


def _allowed(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, present_name(pattern)) for pattern in patterns)


def _listed(label: str, names: list[str]) -> str:
    return label + first_few(names, 8) if names else ""
