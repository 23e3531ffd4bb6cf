"""Name -> (config dataclass, class). One `Registry` per kind of component."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from types import MappingProxyType
from typing import Generic, TypeVar

from asrtool.errors import UserError

# metadata of a config's field that is not written where it has its default
OMIT = MappingProxyType({"omit": True})

T = TypeVar("T")


class UnknownName(UserError):
    """Raised for a name that is not registered; the message lists the valid ones."""


def suggest(name: str, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    close = get_close_matches(name, valid, n=1)
    return (f"; did you mean '{close[0]}'?" if close else "") + f" (valid: {', '.join(valid)})"


class Registry(Generic[T]):
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._configs: dict[str, type] = {}
        self._classes: dict[type, tuple[str, type[T]]] = {}

    def register(self, name: str, config: type) -> Callable[[type[T]], type[T]]:
        def bind(cls: type[T]) -> type[T]:
            if name in self._configs:
                raise ValueError(f"{self.kind} '{name}' is already registered")
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
        """The class that is registered by a name."""
        return self._classes[self.config_type(name)][1]

    def name_of(self, config: object) -> str:
        return self._classes[type(config)][0]

    def position(self, config: object) -> int:
        """How many entries were registered before that of `config`."""
        return list(self._classes).index(type(config))

    def class_of(self, config: object) -> type[T]:
        """The class that `build` makes an instance of."""
        return self._classes[type(config)][1]

    def build(self, config: object, **needs) -> T:
        return self.class_of(config)(config, **needs)
