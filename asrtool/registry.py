"""Name -> (config dataclass, class). One `Registry` per kind of component."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from types import MappingProxyType
from typing import Generic, TypeVar

from asrtool.errors import UserError

# metadata of a config field that is not written while it has its default value
OMIT = MappingProxyType({"omit": True})

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
