"""Learning-rate schedules: pure functions of the step, so a resumed run needs only the step number.

Each returns a factor in 0..1 on the peak rate `optim.lr`; step 1 is the first update. `total: null`
is the planned number of steps of the run. A `warmup` or `hold` below 1 is a share of the total, so
that one config suits runs of any length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from asrtool.registry import Registry, bounded


class Schedule:
    """Built by `SCHEDULES.build(config, planned=number of steps of the run)`."""

    def factor(self, step: int) -> float:
        """Factor on the peak rate for update number `step` >= 1."""
        raise NotImplementedError


SCHEDULES: Registry[Schedule] = Registry("schedule")


def _cosine(start: float, end: float, share: float) -> float:
    """The value at `share` (0..1) of half a cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, share))))


def _steps(steps_or_share: float, total: int) -> int:
    return round(steps_or_share * total if steps_or_share < 1 else steps_or_share)


def _check(name: str, warmup: int, total: int) -> None:
    if not 0 <= warmup < total:
        raise ValueError(
            f"optim.schedule: {name} warms up for {warmup} of {total} steps; warmup must be at "
            "least 0 and less than the total"
        )


@dataclass(frozen=True, kw_only=True)
class ConstantConfig:
    """Constant rate, after a linear warm-up."""

    warmup: int = bounded(0, least=0)  # steps

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError("warmup must be at least 0")


@SCHEDULES.register("constant", ConstantConfig)
class Constant(Schedule):
    """min(step / warmup, 1)."""

    def __init__(self, config: ConstantConfig, *, planned: int) -> None:
        self._warmup = config.warmup

    def factor(self, step: int) -> float:
        return min(1.0, step / max(1, self._warmup))


@dataclass(frozen=True, kw_only=True)
class InverseSqrtConfig:
    """Linear warm-up, then the inverse square root of the step (Noam, arXiv 1706.03762).

    Its peak is `optim.lr`.
    """

    warmup: int = bounded(least=0)  # steps

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ValueError("warmup must be at least 1")


@SCHEDULES.register("inverse_sqrt", InverseSqrtConfig)
class InverseSqrt(Schedule):
    """min(step / warmup, sqrt(warmup / step))."""

    def __init__(self, config: InverseSqrtConfig, *, planned: int) -> None:
        self._warmup = config.warmup

    def factor(self, step: int) -> float:
        return min(step / self._warmup, math.sqrt(self._warmup / step))


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Linear warm-up, then linear decay to `end`."""

    warmup: float = bounded(0.0, least=0)  # steps, or a share of the total
    total: int | None = None  # steps, warm-up included
    end: float = 0.0  # factor at the last step and after it


@SCHEDULES.register("linear", LinearConfig)
class Linear(Schedule):
    def __init__(self, config: LinearConfig, *, planned: int) -> None:
        self._config = config
        self._total = planned if config.total is None else config.total
        self._warmup = _steps(config.warmup, self._total)
        _check("linear", self._warmup, self._total)

    def factor(self, step: int) -> float:
        warmup, end = self._warmup, self._config.end
        if step <= warmup:
            return step / warmup
        return end + (1.0 - end) * max(0.0, (self._total - step) / (self._total - warmup))


@dataclass(frozen=True, kw_only=True)
class CosineConfig:
    """Linear warm-up, then half a cosine down to `end` (arXiv 1608.03983, one cycle)."""

    warmup: float = bounded(0.0, least=0)  # steps, or a share of the total
    total: int | None = None  # steps, warm-up included
    end: float = 0.0  # factor at the last step and after it


@SCHEDULES.register("cosine", CosineConfig)
class Cosine(Schedule):
    def __init__(self, config: CosineConfig, *, planned: int) -> None:
        self._config = config
        self._total = planned if config.total is None else config.total
        self._warmup = _steps(config.warmup, self._total)
        _check("cosine", self._warmup, self._total)

    def factor(self, step: int) -> float:
        warmup = self._warmup
        if step <= warmup:
            return step / warmup
        return _cosine(1.0, self._config.end, (step - warmup) / (self._total - warmup))


@dataclass(frozen=True, kw_only=True)
class OneCycleConfig:
    """One-cycle (arXiv 1708.07120): half a cosine up, another down to almost 0; for short runs."""

    warmup: float = bounded(0.3, least=0)  # steps, or a share of the total
    total: int | None = None  # steps
    start: float = 0.04  # factor before the first step
    end: float = 4e-6  # factor at the last step and after it


@SCHEDULES.register("one_cycle", OneCycleConfig)
class OneCycle(Schedule):
    def __init__(self, config: OneCycleConfig, *, planned: int) -> None:
        self._config = config
        self._total = planned if config.total is None else config.total
        self._warmup = _steps(config.warmup, self._total)
        _check("one_cycle", self._warmup, self._total)

    def factor(self, step: int) -> float:
        if step <= self._warmup:
            return _cosine(self._config.start, 1.0, step / self._warmup)
        return _cosine(1.0, self._config.end, (step - self._warmup) / (self._total - self._warmup))


@dataclass(frozen=True, kw_only=True)
class TriStageConfig:
    """Linear warm-up, hold, exponential decay, for SSL encoders (arXiv 2006.11477, appendix B)."""

    warmup: float = bounded(0.1, least=0)  # steps, or a share of the total
    hold: float = 0.4  # the same
    total: int | None = None  # steps
    start: float = 0.01  # factor before the first step
    end: float = 0.05  # factor at the last step and after it

    def __post_init__(self) -> None:
        if not 0 < self.end <= 1:
            raise ValueError("end must be greater than 0 and at most 1")


@SCHEDULES.register("tri_stage", TriStageConfig)
class TriStage(Schedule):
    def __init__(self, config: TriStageConfig, *, planned: int) -> None:
        self._config = config
        self._total = planned if config.total is None else config.total
        self._warmup = _steps(config.warmup, self._total)
        self._held = self._warmup + _steps(config.hold, self._total)
        _check("tri_stage", self._held, self._total)

    def factor(self, step: int) -> float:
        start, end = self._config.start, self._config.end
        if step <= self._warmup:
            return start + (1.0 - start) * step / self._warmup
        if step <= self._held:
            return 1.0
        return end ** min(1.0, (step - self._held) / (self._total - self._held))
