"""YAML to frozen dataclasses; types come from the dataclass and are never guessed by YAML.

`read` composes a file (with its `extends:` parent) into YAML nodes, `override` merges `--set
a.b=value` into them, `decode` turns nodes into a config dataclass, and `encode` is its inverse.
Every error names file, line and dotted key, and suggests a correction.

A trailing underscore is no part of the key: field `import_` is the key `import`, which Python
reserves. Bounds of numbers, and whether a field is written, are the field's own
(`asrtool/registry.py`). A dataclass with `SHORT`, the name of a field, may be given as the value of
that field alone.
"""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from asrtool.errors import UserError
from asrtool.registry import Registry, UnknownName, bounds_of, is_left_out, suggest


class ConfigError(UserError):
    """An invalid YAML file or override; the message starts with file:line and the dotted key."""

    def __init__(self, node: yaml.Node, where: str, problem: str) -> None:
        mark = node.start_mark
        line = "" if mark.name.startswith("--set") else f":{mark.line + 1}"
        super().__init__(f"{mark.name}{line}: {where or 'top level'}: {problem}")


# -- reading ---------------------------------------------------------------


def read(path: Path) -> yaml.MappingNode:
    """Compose `path` and merge it over its `extends:` parent."""
    return _read(Path(os.path.normpath(path)), ())


def _read(path: Path, children: tuple[Path, ...]) -> yaml.MappingNode:
    node = _compose(path)
    node = node or yaml.MappingNode("map", [], yaml.Mark(str(path), 0, 0, 0, None, None))
    node, parent = split(node, "extends")
    if parent is None:
        return node
    if not isinstance(parent, yaml.ScalarNode) or not parent.value:
        raise ConfigError(parent, "extends", "expected the path of one file, as in ../base.yaml")
    # normalised, so that messages name the path as a user would write it
    target = Path(os.path.normpath(path.parent / parent.value))
    if target in (path, *children):
        raise ConfigError(parent, "extends", f"'{parent.value}' extends itself")
    if not target.is_file():
        raise ConfigError(
            parent, "extends", f"no file '{target}'; paths are relative to the folder of this file"
        )
    return merge(_read(target, (path, *children)), node)


def _compose(path: Path) -> yaml.Node | None:
    """The nodes of a file; raises UserError if it is not YAML."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8, but byte {error.start} is not") from None
    loader = None
    try:
        # Composed, not loaded: nodes keep the text of scalars and the line of every key.
        loader = yaml.SafeLoader(text)
        loader.name = str(path)
        return loader.get_single_node()
    except RecursionError:
        raise UserError(f"{path}: lists or mappings are nested too deeply for a config") from None
    except yaml.YAMLError as error:
        # Only some YAML errors have a position, and their texts are in different attributes.
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise UserError(f"{path}{line}: not YAML: {problem}") from None
    finally:
        if loader is not None:
            loader.dispose()


def override(node: yaml.MappingNode, overrides: Sequence[str]) -> yaml.MappingNode:
    """`node` with `a.b=value` overrides merged over it; values are YAML, as in `x={lr: 1}`."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(f"--set {text}: expected key.key=value")
        try:
            leaf = yaml.compose(value, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError):
            short = value if len(value) < 80 else f"{value[:80]}..."
            raise ValueError(f"--set {key}={short}: the value is not YAML") from None
        leaf = leaf or yaml.ScalarNode("str", "", yaml.Mark("", 0, 0, 0, None, None))
        _rename(leaf, f"--set {text}")
        # From the inside out: a.b=1 becomes {a: {b: 1}}.
        for part in reversed(key.split(".")):
            leaf = yaml.MappingNode(
                "map", [(yaml.ScalarNode("str", part, leaf.start_mark), leaf)], leaf.start_mark
            )
        node = merge(node, leaf)
    return node


def _rename(node: yaml.Node, name: str) -> None:
    """Make errors anywhere in the value of an override name the override."""
    node.start_mark.name = name
    for item in getattr(node, "value", ()) if not isinstance(node, yaml.ScalarNode) else ():
        for part in item if isinstance(item, tuple) else (item,):
            _rename(part, name)


def merge(base: yaml.Node, top: yaml.Node) -> yaml.Node:
    """Merge mappings key by key; `top` replaces any other node, and a mapping of another `type`."""
    if not (isinstance(base, yaml.MappingNode) and isinstance(top, yaml.MappingNode)):
        return top
    old, new = entries(base), entries(top)
    # The keys of another type of component mean nothing to this one.
    if "type" in new and "type" in old and new["type"][1].value != old["type"][1].value:
        return top
    for key, (key_node, value) in new.items():
        old[key] = (key_node, merge(old[key][1], value) if key in old else value)
    return _mapping(top, old)


def entries(node: yaml.Node, where: str = "") -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Key -> (key node, value node)."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(node, where, "expected a mapping")
    items: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(key, where, "expected a plain key")
        if key.value in items:
            raise ConfigError(key, _join(where, key.value), "key given twice")
        items[key.value] = (key, value)
    return items


def split(node: yaml.Node, key: str, where: str = "") -> tuple[yaml.MappingNode, yaml.Node | None]:
    """`node` without `key`, and the value of `key`."""
    items = entries(node, where)
    _, value = items.pop(key, (None, None))
    return _mapping(node, items), value


def _mapping(like: yaml.Node, items: dict) -> yaml.MappingNode:
    return yaml.MappingNode("map", list(items.values()), like.start_mark)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


# -- decoding --------------------------------------------------------------


def decode(kind: Any, node: yaml.Node, where: str = "") -> Any:
    """Turn `node` into a value of type `kind`, or raise `ConfigError`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:  # Annotated[object, REGISTRY], with a default type if there is one
        return _component(*args[1:], node=node, where=where)
    if origin in (Union, types.UnionType):  # X | None, or X | Y | None of scalars
        if (
            isinstance(node, yaml.ScalarNode)
            and node.style is None
            and node.value in ("null", "~", "")
        ):
            return None
        return _alternative([a for a in args if a is not type(None)], node, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, node, where)
    if origin in (list, tuple):
        if not isinstance(node, yaml.SequenceNode):
            raise ConfigError(node, where, "expected a list")
        # tuple[float, float] has a fixed length, tuple[str, ...] and list[str] have not.
        if origin is tuple and Ellipsis not in args:
            if len(node.value) != len(args):
                raise ConfigError(
                    node, where, f"expected {len(args)} values, got {len(node.value)}"
                )
            return tuple(
                decode(a, item, f"{where}[{i}]")
                for i, (a, item) in enumerate(zip(args, node.value, strict=True))
            )
        return origin(decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(node.value))
    if origin is dict:
        return {
            _scalar(args[0], None, (), key, where): decode(args[1], value, _join(where, name))
            for name, (key, value) in entries(node, where).items()
        }
    return _scalar(kind, origin, args, node, where)


def _alternative(kinds: Sequence[Any], node: yaml.Node, where: str) -> Any:
    """The node decoded as the first of several types that it fits."""
    *others, last = kinds
    for kind in others:
        try:
            return decode(kind, node, where)
        except ConfigError:
            continue
    try:
        return decode(last, node, where)
    except ConfigError:
        if not others:
            raise
        expected = " or ".join(map(_described, kinds))
        got = f", got '{node.value}'" if isinstance(node, yaml.ScalarNode) else ""
        raise ConfigError(node, where, f"expected {expected}{got}") from None


def _described(kind: Any) -> str:
    return " or ".join(map(repr, get_args(kind))) if get_args(kind) else _WORDS.get(kind, str(kind))


def _component(
    registry: Registry, default: str | None = None, *, node: yaml.Node, where: str
) -> Any:
    node, kind_node = split(node, "type", where)
    if kind_node is None and default is not None:
        return _dataclass(registry.config_type(default), node, where)
    if kind_node is None:
        raise ConfigError(
            node,
            where,
            f"missing 'type'; valid {registry.kind} types: {', '.join(registry.names())}",
        )
    try:
        kind = registry.config_type(kind_node.value)
    except UnknownName as error:
        raise ConfigError(kind_node, _join(where, "type"), str(error)) from None
    return _dataclass(kind, node, where)


def _dataclass(kind: type, node: yaml.Node, where: str) -> Any:
    short = getattr(kind, "SHORT", None)
    if short is not None and isinstance(node, yaml.ScalarNode):
        node = _mapping(node, {short: (yaml.ScalarNode("str", short, node.start_mark), node)})
    items = entries(node, where)
    hints = get_type_hints(kind, include_extras=True)
    fields = {_key(f): f for f in dataclasses.fields(kind)}
    for key, (key_node, _) in items.items():
        if key not in fields:
            raise ConfigError(
                key_node,
                _join(where, key),
                f"unknown key for {kind.__name__}" + suggest(key, fields),
            )
    missing = [
        n
        for n, f in fields.items()
        if n not in items
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(node, where, f"{kind.__name__} is missing: {', '.join(missing)}")
    values = {
        fields[k].name: decode(hints[fields[k].name], v, _join(where, k))
        for k, (_, v) in items.items()
    }
    for key, (_, value_node) in items.items():
        field = fields[key]
        if (problem := bounds_of(field).problem(values[field.name])) is not None:
            raise ConfigError(value_node, _join(where, key), problem)
    try:
        return kind(**values)
    except ValueError as error:  # raised by a __post_init__ check
        raise ConfigError(node, where, str(error)) from None


def _key(field: dataclasses.Field) -> str:
    return field.name.removesuffix("_")


_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def _scalar(kind: Any, origin: Any, args: tuple, node: yaml.Node, where: str) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(
            node, where, f"expected {_WORDS.get(kind, 'one value')}, not a list or mapping"
        )
    text = node.value
    if kind is str and node.style is None and text in ("null", "~", ""):
        raise ConfigError(node, where, "expected text, got nothing")
    if origin is Literal:
        if text not in args:
            raise ConfigError(node, where, f"'{text}' is not allowed" + suggest(text, args))
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        # YAML's notation, which `dump` writes
        if kind is float and text.lstrip("+-").lower() in (".inf", ".nan"):
            text = text.replace(".", "")
        return kind(text)
    except (ValueError, KeyError):
        raise ConfigError(node, where, f"expected {_WORDS.get(kind, kind)}, got '{text}'") from None


# -- writing ---------------------------------------------------------------


def encode(kind: Any, value: Any) -> Any:
    """The inverse of `decode`: plain dicts, lists and scalars, with `type` keys put back."""
    origin, args = get_origin(kind), get_args(kind)
    if value is None:
        return None
    if origin is Annotated:
        registry, *default = args[1:]
        name, fields = registry.name_of(value), encode(type(value), value)
        return fields if name in default else {"type": name, **fields}
    if origin in (Union, types.UnionType):
        kinds = [a for a in args if a is not type(None)]
        return encode(kinds[0], value) if len(kinds) == 1 else value  # several: all scalars
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return {
            _key(f): encode(hints[f.name], getattr(value, f.name))
            for f in dataclasses.fields(kind)
            if not is_left_out(f, getattr(value, f.name))
        }
    if origin in (list, tuple):
        return [encode(args[0], item) for item in value]
    if origin is dict:
        return {key: encode(args[1], item) for key, item in value.items()}
    return value
