"""Optimizers, parameter groups chosen by name pattern, freezing, and a schedule.

Weight decay applies to matrices and convolution kernels only. Biases and normalisation gains (fewer
than two dimensions, or named `*bias*`) are not decayed, nor are embedding tables: decay would
shrink the row of a rare token between its updates.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated

import torch
from torch import nn

from asrtool.errors import UserError
from asrtool.registry import Registry, bounded
from asrtool.trainer.renamed import present_name
from asrtool.trainer.schedules import SCHEDULES, ConstantConfig, Schedule
from asrtool.types import Trainable


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Settings of the parameters that match the group's pattern."""

    lr_scale: float = 1.0  # factor on the scheduled rate
    # of those parameters that are decayed at all; null: `optim.weight_decay`
    weight_decay: float | None = bounded(None, least=0)
    freeze: bool = False  # never trained
    freeze_until: int = bounded(0, least=0)  # frozen up to and including this step
    # false: the pattern may match nothing, for configs with variants that lack the part
    required: bool = True

    def __post_init__(self) -> None:
        if self.lr_scale <= 0:
            raise ValueError(
                "lr_scale must be greater than 0; to keep parameters fixed, use freeze: true"
            )
        if self.freeze_until < 0:
            raise ValueError("freeze_until must be at least 0")
        if self.freeze and self.freeze_until:
            raise ValueError(
                "freeze: true freezes for the whole run; use freeze_until alone to train later"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Settings of every optimizer.

    groups: name pattern -> settings; the first pattern that matches a parameter applies.
    """

    lr: float  # peak rate of the schedule
    weight_decay: float = bounded(1e-2, least=0)
    clip: float = bounded(5.0, infinite=True)  # maximum norm of the gradient; .inf for no limit
    schedule: Annotated[object, SCHEDULES] = field(default_factory=ConstantConfig)
    groups: dict[str, GroupConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or not self.clip > 0 or not self.weight_decay >= 0:
            raise ValueError(
                "lr and clip must be greater than 0 (lr finite), weight_decay at least 0"
            )


# Built by `OPTIMIZERS.build(config, groups=...)`; groups: parameter groups of `torch.optim`, each
# with its own lr and weight_decay. The state must consist of tensors, because checkpoints do.
OPTIMIZERS: Registry[torch.optim.Optimizer] = Registry("optimizer", OptimConfig)
DEFAULT = "adamw"  # if a config gives no type


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimConfig):
    """AdamW (arXiv 1711.05101): weight decay is decoupled from the gradient."""

    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps <= 0:
            raise ValueError("eps must be greater than 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be at least 0 and below 1")


@OPTIMIZERS.register("adamw", AdamWConfig)
class AdamW(torch.optim.AdamW):
    def __init__(self, config: AdamWConfig, *, groups: list[dict]) -> None:
        super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class AdamConfig(AdamWConfig):
    """Adam (arXiv 1412.6980): weight decay is part of the gradient (L2)."""

    weight_decay: float = bounded(0.0, least=0)


@OPTIMIZERS.register("adam", AdamConfig)
class Adam(torch.optim.Adam):
    def __init__(self, config: AdamConfig, *, groups: list[dict]) -> None:
        super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class SgdConfig(OptimConfig):
    """Stochastic gradient descent; weight decay is part of the gradient (L2)."""

    weight_decay: float = bounded(0.0, least=0)
    momentum: float = bounded(0.9, least=0, most=1)
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError("momentum must be at least 0 and below 1")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0")


@OPTIMIZERS.register("sgd", SgdConfig)
class Sgd(torch.optim.SGD):
    def __init__(self, config: SgdConfig, *, groups: list[dict]) -> None:
        super().__init__(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def build(
    config: OptimConfig, model: Trainable, planned: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """The optimizer of all parameters that are trained at any time, and the schedule.

    planned: number of steps of the whole run.
    """
    chosen = assign(config, model)
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    # Parameters with the same rate and decay share a group: fused optimizers run once per group.
    buckets: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = chosen[name]
        if group.freeze:
            continue
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        # Weight decay is for matrices: not for biases, gains of norms and embedding tables.
        bare = parameter.ndim < 2 or "bias" in name.rpartition(".")[2] or id(parameter) in tables
        buckets.setdefault((group.lr_scale, 0.0 if bare else decay), []).append(parameter)
    groups = [
        {"params": parameters, "lr_scale": scale, "weight_decay": decay, "lr": config.lr * scale}
        for (scale, decay), parameters in buckets.items()
    ]
    optimizer = OPTIMIZERS.build(config, groups=groups)
    return optimizer, SCHEDULES.build(config.schedule, planned=planned)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group to `rate` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def freeze(config: OptimConfig, model: Trainable, step: int) -> bool:
    """Set `requires_grad` for update number `step`; returns whether any parameter changed."""
    chosen = assign(config, model)
    changed = False
    for name, parameter in model.named_parameters():
        wanted = not chosen[name].freeze and step > chosen[name].freeze_until
        changed |= parameter.requires_grad != wanted
        # a frozen parameter keeps no gradient of earlier steps, which clipping would count
        parameter.requires_grad_(wanted)
        if not wanted:
            parameter.grad = None
    return changed


def unfreeze_steps(config: OptimConfig) -> list[int]:
    """The steps, in ascending order, at which further parameters are unfrozen."""
    return sorted(
        {group.freeze_until + 1 for group in config.groups.values() if group.freeze_until}
    )


def assign(config: OptimConfig, model: Trainable) -> Mapping[str, GroupConfig]:
    """Parameter name -> its group.

    Parameters that the model itself freezes (`frozen`, such as weights with LoRA) stay frozen
    whatever the patterns say. Raises `UserError` for a pattern without effect, and if nothing is
    left to train.
    """
    frozen = model.frozen
    known = [name for name, _ in model.named_parameters()]
    names = [name for name in known if name not in frozen]
    chosen: dict[str, GroupConfig] = {}
    for pattern, group in config.groups.items():
        matching = [name for name in known if fnmatchcase(name, present_name(pattern))]
        if not matching and group.required:
            raise UserError(
                f"optim.groups: '{pattern}' matches no parameter{_near(pattern, known)}"
            )
        # one config for all phases may name parameters that the model of this one freezes
        if frozen.issuperset(matching):
            continue
        free = [name for name in matching if name not in chosen and name not in frozen]
        if not free and group.required:
            raise UserError(
                f"optim.groups: every parameter that matches '{pattern}' is taken by an earlier "
                "pattern"
            )
        chosen.update(dict.fromkeys(free, group))
    if (names or frozen) and all(name in chosen and chosen[name].freeze for name in names):
        raise UserError(
            "optim.groups freezes every parameter of the model; nothing is left to train"
        )
    rest = GroupConfig()
    return {
        **{name: chosen.get(name, rest) for name in names},
        **dict.fromkeys(frozen, GroupConfig(freeze=True)),
    }


def _near(pattern: str, names: list[str]) -> str:
    """A suggestion for a pattern: similar module names, or the names at the model's top level."""
    parts = [name.split(".") for name in names]
    modules = {".".join(part[:depth]) + ".*" for part in parts for depth in range(1, len(part))}
    close = difflib.get_close_matches(pattern, sorted(modules) + names, n=3)
    if close:
        return f"; did you mean {' or '.join(repr(name) for name in close)}?"
    return f"; the model's parameters start with {', '.join(sorted({part[0] for part in parts}))}"
