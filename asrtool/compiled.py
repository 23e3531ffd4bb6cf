"""Functions of numbers and NumPy arrays as machine code by numba, which is imported and compiles at
the first call.

What was compiled is kept for the next process in NUMBA_CACHE_DIR, else in the user's cache folder:
below it in a folder of its own for every version of the functions, of numba and of the processor,
so that neither an update nor a cluster of several kinds of machines finds the code of another. One
process compiles at a time, the others wait for it and find what they need. Where nothing can be
kept, every process compiles, and says so. Where numba cannot be imported, the same functions run as
plain Python, slower, with the same results.

A compiled function may call others of its own package only, as `asrtool.searchers` with everything
below it: a version is made of the files of one package.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from asrtool.log import logger

TORN = (EOFError, pickle.UnpicklingError)  # what reading half a file raises
PACKAGE_DEPTH = 2  # names of the package whose functions share a version: asrtool.searchers

_functions: list[Compiled] = []
_folders: dict[Path, Path | None] = {}  # package -> where its machine code is kept, None: nowhere
_one_at_a_time = threading.RLock()


class Compiled:
    """A function, and its machine code when that is first needed; numba sees the latter where one
    calls another.
    """

    def __init__(self, function: Callable, **options: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.file = Path(function.__code__.co_filename)
        # asrtool/searchers for asrtool/searchers/ngram.py and asrtool/searchers/ctc/kernel.py alike
        depth = function.__module__.count(".")
        self.package = self.file.parents[max(0, depth - PACKAGE_DEPTH)]
        self.options = options
        self.ready: set[tuple] = set()  # the kinds of arguments that there is machine code for
        _functions.append(self)

    def __call__(self, *arguments: Any) -> Any:
        kinds = tuple([getattr(argument, "dtype", type(argument)) for argument in arguments])
        if kinds in self.ready:
            return self.machine_code(*arguments)
        if not available():
            return self.function(*arguments)
        with _one_at_a_time, _told():
            try:
                result = self._alone(arguments)
            except OSError as error:  # of the kept files: such functions raise none
                _keep_nothing(self.package, error)
                result = self.machine_code(*arguments)
        self.ready.add(kinds)
        return result

    @functools.cached_property
    def machine_code(self) -> Callable:
        return _compile(self.function, _folder(self.package), self.options)

    def _alone(self, arguments: tuple) -> Any:
        """Call the machine code while no other process changes what is kept."""
        folder = _folder(self.package)
        with _locked(folder):
            try:
                return self.machine_code(*arguments)
            except TORN:  # by a power cut
                for file in folder.glob("*/*.nb?"):
                    file.unlink()
                return self.machine_code(*arguments)


def compiled(function: Callable) -> Compiled:
    """Machine code that lets other threads run."""
    return Compiled(function)


def vectorised(function: Callable) -> Compiled:
    """The same, where a sum's order does not matter: it is added up in several places at once."""
    return Compiled(function, fastmath={"reassoc", "contract"})


def available() -> bool:
    """Whether numba can be imported."""
    return _numba() is not None


@functools.cache
def _numba() -> ModuleType | None:
    try:
        import numba
        from numba.extending import typeof_impl
    except ImportError:
        return None
    typeof_impl.register(Compiled)(lambda value, _: numba.typeof(value.machine_code))
    return numba


def _compile(function: Callable, kept: Path | None, options: dict[str, Any]) -> Callable:
    """A function that numba compiles for the kinds of arguments that it is called with."""
    numba = _numba()
    before = numba.config.CACHE_DIR  # looked at when the decorator is called
    numba.config.CACHE_DIR = str(kept or "")
    try:
        return numba.njit(cache=kept is not None, nogil=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before


def _folder(package: Path) -> Path | None:
    """Where the machine code of a package is kept."""
    if package not in _folders:
        try:
            folder = _folders[package] = _version(package)
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            _keep_nothing(package, error)
    return _folders[package]


def _version(package: Path) -> Path:
    """The folder for the functions as they are, this numba and this processor."""
    from llvmlite import binding

    processor = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    version = hashlib.sha256(f"{_numba().__version__} {processor}".encode())
    for file in sorted({function.file for function in _functions if function.package == package}):
        version.update(file.read_bytes())
    user = os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "asrtool"
    )
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or user)
    if folder.parts[:1] == ("~",):
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder")
    return folder / f"{package.name}-{version.hexdigest()[:16]}"


def _keep_nothing(package: Path, error: OSError) -> None:
    """Compile for this process alone."""
    reason = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    logger.warning(
        "compiled code cannot be kept (%s); name a folder for it by NUMBA_CACHE_DIR", reason
    )
    _folders[package] = None
    for function in _functions:
        if function.package == package:
            vars(function).pop("machine_code", None)


@contextlib.contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """Alone among the processes that use a folder, where its disk has locks."""
    if folder is None:
        yield
        return
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that compiles the same code")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a network disk without locks
            pass
        yield


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say once that something is compiled: what was kept is not."""
    from numba.core import event

    class Once(event.Listener):
        def on_start(self, event: object) -> None:
            _say()

        def on_end(self, event: object) -> None:
            pass

    with event.install_listener("numba:compile", Once()):
        yield


@functools.cache
def _say() -> None:
    logger.info("compiling for this processor, which takes up to half a minute")
