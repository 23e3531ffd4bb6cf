"""A user's own modules, which register encoders, losses and other components when imported.

The user names them: `import` in a training config, `--import` of a command, `imports=` in Python.
They are installed, or in a folder given by `--import-from`. The current folder is not searched, and
modules named by a trained model are never imported automatically: inspecting a downloaded model
must not run its code.
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
    """Import modules by name. folders: added to the search path for the rest of the process.

    Raises `UserError` if a module is not found or its import fails.
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
    """The modules that are not imported yet."""
    return [name for name in names if name not in sys.modules]


def add_options(options: argparse.ArgumentParser, modules: bool = True) -> None:
    """Add --import-from, and --import if no training config names the modules (`modules`)."""
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
        # argparse would read it as an abbreviation of --import-from
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
    """Rejects --import for commands that read the modules from a training config."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(
            "this command reads the modules from the training config: name them there, in "
            "import: [...]; --import-from names a folder to search"
        )


def take(args: argparse.Namespace) -> None:
    """Import the modules named by the options of a command."""
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
            # The module itself (or its package) is missing, or it is found but imports a missing
            # one.
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
    """Remove the current folder from the search path: `python -m` and an empty entry of PYTHONPATH
    add it, and it may be the folder of a downloaded model.
    """
    here, before = Path.cwd().resolve(), list(sys.path)
    sys.path[:] = [
        entry for entry in before if entry in _named or Path(entry or ".").resolve() != here
    ]
    try:
        yield
    finally:
        # Keep entries that the imported module itself has added.
        sys.path[:] = before + [entry for entry in sys.path if entry not in before]
