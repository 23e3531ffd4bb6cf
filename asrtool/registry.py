"""Name -> (config dataclass, class): one `Registry` per kind of component. And what a field of a
config says of itself: the bounds of its value, and whether it is written.

    dropout: float = bounded(0.1, least=0, below=1)
    snr_db: tuple[float, float] = bounded((5.0, 25.0), ordered=True)
    sizes: tuple[int, ...] | None = field(default=None, metadata=OMIT)

`asrtool.config` compares what a file or --set gives with these bounds, and names file, line and
key. A field without bounds takes every finite number; what depends on several fields is for the
`__post_init__` of the dataclass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from asrtool.errors import UserError

T = TypeVar("T")


class UnknownName(UserError):
    """Raised for a name that is not registered; the message lists the valid ones."""


def suggest(name: str, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    close = get_close_matches(name, valid, n=1)
    return (f"; did you mean '{close[0]}'?" if close else "") + f" (valid: {', '.join(valid)})"


class Registry(Generic[T]):
    """kind: what its entries are, for messages. base: the class that the config of every entry must
    derive from; it declares the attributes that other parts read.
    """

    def __init__(self, kind: str, base: type = object) -> None:
        self.kind = kind
        self.base = base
        self._configs: dict[str, type] = {}
        self._classes: dict[type, tuple[str, type[T]]] = {}

    def register(self, name: str, config: type) -> Callable[[type[T]], type[T]]:
        def bind(cls: type[T]) -> type[T]:
            if name in self._configs:
                raise ValueError(f"{self.kind} '{name}' is already registered")
            if not issubclass(config, self.base):
                raise TypeError(
                    f"{config.__name__}, the config of {self.kind} '{name}', must derive from "
                    f"{self.base.__module__}.{self.base.__name__}: other parts read what that "
                    "class declares"
                )
            if config in self._classes:
                raise ValueError(
                    f"{config.__name__} already builds {self.kind} '{self._classes[config][0]}'"
                )
            self._configs[name] = config
            self._classes[config] = (name, cls)
            return cls

        return bind

    def names(self) -> list[str]:
        return sorted(self._configs)

    def config_type(self, name: str) -> type:
        if name not in self._configs:
            raise UnknownName(f"unknown {self.kind} '{name}'" + suggest(name, self.names()))
        return self._configs[name]

    def class_named(self, name: str) -> type[T]:
        """The class registered under a name."""
        return self._classes[self.config_type(name)][1]

    def name_of(self, config: object) -> str:
        return self._classes[type(config)][0]

    def position(self, config: object) -> int:
        """How many entries were registered before that of `config`."""
        return list(self._classes).index(type(config))

    def class_of(self, config: object) -> type[T]:
        """The class of which `build` makes an instance."""
        return self._classes[type(config)][1]

    def build(self, config: object, **needs) -> T:
        return self.class_of(config)(config, **needs)


# -- what a field of a config says of itself ----------------------------------

_BOUNDS = "bounds"
# metadata of a field that is not written where it has its default, so that files from before it
# existed stay the same
OMIT = MappingProxyType({"omit": True})


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The numbers that a field takes: its value, or those that its value holds."""

    least: float | None = None
    most: float | None = None
    below: float | None = None
    ordered: bool = False  # two numbers, [lowest, highest]
    infinite: bool = False  # infinity means "no limit"

    def problem(self, value: object) -> str | None:
        """Why `value` cannot be meant; None where it can."""
        numbers = list(_numbers(value))
        if any(math.isnan(one) or (math.isinf(one) and not self.infinite) for one in numbers):
            return f"expected a finite number, got {_short(value)}"
        if self.ordered and len(numbers) == 2 and numbers[0] > numbers[1]:
            return f"expected [lowest, highest], got {numbers}"
        if all(map(self._holds, numbers)):
            return None
        limits = {"at least": self.least, "at most": self.most, "below": self.below}
        words = [f"{how} {limit:g}" for how, limit in limits.items() if limit is not None]
        return f"expected {' and '.join(words)}, got {_short(value)}"

    def _holds(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )


def bounded(
    default: Any = MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    ordered: bool = False,
    infinite: bool = False,
    omit: bool = False,
) -> Any:
    """A dataclass's field whose numbers lie within these bounds; omit: as `OMIT`."""
    bounds = Bounds(least=least, most=most, below=below, ordered=ordered, infinite=infinite)
    return dataclasses.field(default=default, metadata={_BOUNDS: bounds, **(OMIT if omit else {})})


def bounds_of(field: dataclasses.Field) -> Bounds:
    return field.metadata.get(_BOUNDS, Bounds())


def is_left_out(field: dataclasses.Field, value: object) -> bool:
    """Whether a config is written without this field."""
    return bool(field.metadata.get("omit")) and value == field.default


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        yield from _numbers(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)


def _short(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
