"""The only module that imports torchaudio; its Python part works even if its compiled extension
does not load.

The published torchaudio wheel is compiled against CUDA. With a CPU build of torch its extension
raises during `import torchaudio`, and transformers and peft, which import torchaudio if it is
installed, fail with it. Nothing is imported before it is needed, since most commands do without:

    torchaudio_adapter.load()             # transformers and peft can be imported now
    audio = torchaudio_adapter.require()  # the module, or an ImportError that says what to install

Resampling, filters, transforms and `compliance.kaldi` are Python and always available. Functions of
the extension (`forced_align`, `rnnt_loss`) raise when called if `extension_available()` is False.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from asrtool import versions


class Loaded(NamedTuple):
    """Result of `load`: the module, None if it is absent or broken; and why it or its extension is
    missing, else empty."""

    module: types.ModuleType | None
    problem: str


@functools.cache
def load() -> Loaded:
    """Import torchaudio, without its extension if that does not load."""
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or not spec.submodule_search_locations:
        return Loaded(None, "not installed")
    try:
        return Loaded(importlib.import_module("torchaudio"), "")
    # a missing library, another ABI, another CUDA version
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
    _forget()
    # A module that is in sys.modules already is not imported again: torchaudio takes the stand-in.
    sys.modules["torchaudio._extension"] = _without_extension(
        Path(spec.submodule_search_locations[0])
    )
    try:
        return Loaded(importlib.import_module("torchaudio"), reason)
    except Exception as error:  # broken beyond its extension: treated as absent
        _forget()
        return Loaded(None, str(error).strip().split("\n")[0])


def extension_available() -> bool:
    module = load().module
    return module is not None and module._extension._IS_TORCHAUDIO_EXT_AVAILABLE


def unloadable() -> Path | None:
    """The extension's file if it does not load with this torch. Without that file torchaudio and
    its dependents work; with it they fail unless `load` is called first."""
    module, problem = load()
    if module is None or not problem:
        return None
    return next((Path(module.__file__).parent / "lib").glob("_torchaudio*.so"), None)


def require() -> types.ModuleType:
    """The torchaudio module; raises ImportError that says what to install if it is not usable."""
    module, problem = load()
    if module is None:
        mend = f"`pip install --no-deps torchaudio=={versions.TORCHAUDIO}` mends it"
        raise ImportError(f"torchaudio cannot be imported ({problem}); {mend}")
    return module


def _without_extension(folder: Path) -> types.ModuleType:
    """A stand-in for `torchaudio._extension`, as in a build without compiled functions."""
    module = types.ModuleType("torchaudio._extension")
    module.__path__ = [str(folder / "_extension")]

    def fail_if_no_align(function: Callable) -> Callable:
        @functools.wraps(function)
        def refuse(*args: object, **kwargs: object) -> NoReturn:
            raise RuntimeError(
                f"torchaudio's {function.__name__} needs its extension, which does not load "
                "beside this torch"
            )

        return refuse

    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module._check_cuda_version = lambda: None
    module._load_lib = lambda name: False
    module.fail_if_no_align = fail_if_no_align
    return module


def _forget() -> None:
    """Remove the partially loaded modules of a failed import."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
