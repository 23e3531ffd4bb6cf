"""A user's own modules, which register encoders, losses and other components when imported.

They are named by the user: `import` of a training config, `--import` of a command, `imports=` in
Python. They are installed, or lie in a folder that the user names by `--import-from`. The current
folder is not searched, and what a trained model names is never imported by itself: whoever
downloads a model must not run its code by looking at it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from asrtool.errors import UserError


def load(names: Iterable[str], folders: Collection[Path | str] = ()) -> None:
    """Import modules by name. folders: further ones to search, from now on.

    Raises `UserError` for a name that is no module and for a module that fails.
    """
    for folder in folders:
        folder = Path(folder).resolve()
        if not folder.is_dir():
            raise UserError(f"--import-from {folder}: there is no such folder")
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # at the end: it hides no installed module
        _named.add(str(folder))
    for name in names:
        if name not in sys.modules:
            _load(name)


def not_loaded(names: Iterable[str]) -> list[str]:
    """Those that nobody has imported yet."""
    return [name for name in names if name not in sys.modules]


def add_options(options: argparse.ArgumentParser, modules: bool = True) -> None:
    """--import-from, and --import unless a training config names the modules."""
    if modules:
        options.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="your own module with components that the model uses; may be repeated",
        )
    else:
        # argparse would take it for --import-from
        options.add_argument("--import", action=_InConfig, help=argparse.SUPPRESS)
    options.add_argument(
        "--import-from",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder to search for your own modules; may be repeated",
    )


class _InConfig(argparse.Action):
    """Refuses --import where a training config names the modules."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(
            "this command reads the modules from the training config: name them there, in "
            "import: [...]; --import-from names a folder to search"
        )


def take(args: argparse.Namespace) -> None:
    """Import what the options of a command name."""
    load(args.imports, args.import_from)


_named: set[str] = set()  # folders that the user gave


def _load(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"cannot import '{name}': expected the name of a module, as in my_package.my_encoder"
        )
    importlib.invalidate_caches()
    with _without_current_folder():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"the module '{name}' cannot be imported: {error}") from error
            raise UserError(
                f"there is no module '{error.name}' to import: install it, or give its folder by "
                "--import-from; the current folder is not searched"
            ) from None
        except Exception as error:
            kind = type(error).__name__
            raise UserError(f"the module '{name}' cannot be imported: {kind}: {error}") from error


@contextmanager
def _without_current_folder() -> Iterator[None]:
    """`python -m` and an empty entry of PYTHONPATH search the current folder, which may be that of
    a model.
    """
    here, before = Path.cwd().resolve(), list(sys.path)
    sys.path[:] = [
        entry for entry in before if entry in _named or Path(entry or ".").resolve() != here
    ]
    try:
        yield
    finally:
        sys.path[:] = before + [entry for entry in sys.path if entry not in before]
