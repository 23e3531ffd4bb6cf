"""`asrtool <command> ...` is `python -m asrtool.bin.<command> ...`; without a command it lists
them.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path

from asrtool import __version__
from asrtool import bin as commands


def files() -> dict[str, Path]:
    """Every command and its file."""
    return {file.stem: file for file in sorted(Path(commands.__file__).parent.glob("[!_]*.py"))}


def describe() -> dict[str, str]:
    """Every command and the first line of its docstring, read without importing it (torch takes
    seconds).
    """
    docstrings = {
        name: ast.get_docstring(ast.parse(file.read_text("utf-8")))
        for name, file in files().items()
    }
    return {name: (text or "").split("\n")[0] for name, text in docstrings.items()}


def main(argv: list[str] | None = None) -> None:
    """Run one command; exit with 2 on a name that is none."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        known = describe()
        width = max(map(len, known))
        print("usage: asrtool <command> [options]      asrtool <command> --help\n")
        print("\n".join(f"  {name:{width}}  {line}" for name, line in known.items()))
        return
    if arguments[0] == "--version":
        print(f"asrtool {__version__}")
        return
    name, known = arguments[0].replace("-", "_"), files()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        print(
            f"asrtool: no command '{arguments[0]}'{meant} (asrtool --help lists them)",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv[0] = f"asrtool {name}"
    importlib.import_module(f"asrtool.bin.{name}").main(arguments[1:])


if __name__ == "__main__":
    main()
