"""Functions of numbers and NumPy arrays, compiled to machine code by numba at their first call.

Machine code is cached in NUMBA_CACHE_DIR, else in the user's cache folder, with one subfolder per
version of the functions, of numba and of the processor: neither an update nor a cluster of
different machines loads stale or foreign code. One process compiles at a time; the others wait for
it and load the result. Without a writable cache every process compiles, and logs it. Without numba
the same functions run as plain Python: slower, with the same results.

A compiled function may only call compiled functions of its own package, such as `asrtool.searchers`
with its subpackages: a version is a hash of the files of one package.
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

TORN = (EOFError, pickle.UnpicklingError)  # raised by reading half a file
PACKAGE_DEPTH = 2  # parts of the name of a package that shares a version: asrtool.searchers

_functions: list[Compiled] = []
_folders: dict[Path, Path | None] = {}  # package -> its cache, None: not cached
_one_at_a_time = threading.RLock()


class Compiled:
    """A function that is compiled at its first call; compiled callers call its machine code."""

    def __init__(self, function: Callable, **options: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.file = Path(function.__code__.co_filename)
        # asrtool/searchers for asrtool/searchers/ngram.py and asrtool/searchers/ctc/kernel.py alike
        depth = function.__module__.count(".")
        self.package = self.file.parents[max(0, depth - PACKAGE_DEPTH)]
        self.options = options
        self.ready: set[tuple] = set()  # argument types that machine code exists for
        _functions.append(self)

    def __call__(self, *arguments: Any) -> Any:
        # Kernels are called once per frame: this check has to be cheap.
        kinds = tuple([getattr(argument, "dtype", type(argument)) for argument in arguments])
        if kinds in self.ready:
            return self.machine_code(*arguments)
        if not available():
            return self.function(*arguments)
        with _one_at_a_time, _logged():
            try:
                result = self._alone(arguments)
            except OSError as error:  # from the cache: the functions themselves raise none
                _keep_nothing(self.package, error)
                result = self.machine_code(*arguments)
        self.ready.add(kinds)
        return result

    @functools.cached_property
    def machine_code(self) -> Callable:
        return _compile(self.function, _folder(self.package), self.options)

    def _alone(self, arguments: tuple) -> Any:
        """Call the machine code while no other process changes the cache."""
        folder = _folder(self.package)
        with _locked(folder):
            try:
                return self.machine_code(*arguments)
            except TORN:  # a power cut while the file was written
                for file in folder.glob("*/*.nb?"):
                    file.unlink()
                return self.machine_code(*arguments)


def compiled(function: Callable) -> Compiled:
    """Decorator: machine code, which releases the GIL."""
    return Compiled(function)


def vectorised(function: Callable) -> Compiled:
    """Decorator: as `compiled`, but sums may be reordered, which allows SIMD instructions."""
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
    # A compiled function that refers to a Compiled sees numba's function instead.
    typeof_impl.register(Compiled)(lambda value, _: numba.typeof(value.machine_code))
    return numba


def _compile(function: Callable, kept: Path | None, options: dict[str, Any]) -> Callable:
    """numba's lazy function: it compiles for each combination of argument types at the call."""
    numba = _numba()
    before = numba.config.CACHE_DIR  # read once, when the decorator is called
    numba.config.CACHE_DIR = str(kept or "")
    try:
        return numba.njit(cache=kept is not None, nogil=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before


def _folder(package: Path) -> Path | None:
    """The cache of a package; None if it is not writable."""
    if package not in _folders:
        try:
            folder = _folders[package] = _version(package)
            folder.mkdir(parents=True, exist_ok=True)
            # os.access says nothing about full or read-only network disks; writing a file does.
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            _keep_nothing(package, error)
    return _folders[package]


def _version(package: Path) -> Path:
    """The cache folder for the current source files, numba and processor."""
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
    """Continue without a cache: this process compiles for itself."""
    reason = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    logger.warning(
        "compiled code cannot be kept (%s); name a folder for it by NUMBA_CACHE_DIR", reason
    )
    _folders[package] = None
    for function in _functions:
        if function.package == package:
            # Clear the cached_property, so that the next call compiles without the cache.
            vars(function).pop("machine_code", None)


@contextlib.contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """Hold the lock of a cache folder, if its file system supports locks."""
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
def _logged() -> Iterator[None]:
    """Log the first compilation; loading from the cache raises no such event."""
    from numba.core import event

    class Once(event.Listener):
        def on_start(self, event: object) -> None:
            _log_compiling()

        def on_end(self, event: object) -> None:
            pass

    with event.install_listener("numba:compile", Once()):
        yield


@functools.cache
def _log_compiling() -> None:
    logger.info("compiling for this processor, which takes up to half a minute")
